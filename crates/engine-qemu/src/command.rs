//! QEMU's command line. Pure: no file is opened here.
//!
//! The figures behind the choices are in `docs/vm-boot.md`.

use std::ffi::OsString;
use std::os::fd::RawFd;

use bulkhead_machine::{
    Accelerator, Console, MachineConfig, QUICK_WORDS, QUIET_WORDS, RESET_ON_PANIC, TALKATIVE_WORD,
};
use serde_json::json;

/// Memory is handed out in these units, bytes: a large page.
const MEMORY_UNIT: u64 = 2 << 20;
/// Less memory than this, bytes, and the kernel cannot even unpack its initramfs.
pub(crate) const MIN_MEMORY: u64 = 96 << 20;

/// What QEMU is born with.
#[derive(Debug, Clone)]
pub(crate) struct Descriptors {
    pub(crate) transport: RawFd,
    pub(crate) monitor: RawFd,
    pub(crate) last_words: RawFd,
    /// Names under which QEMU can open them: it takes no descriptor here.
    pub(crate) kernel: String,
    pub(crate) initramfs: String,
    /// One for each disk.
    pub(crate) disks: Vec<DiskDescriptors>,
    pub(crate) console: Option<RawFd>,
    /// One for each network card.
    pub(crate) taps: Vec<RawFd>,
}

/// What a disk is made of.
#[derive(Debug, Clone)]
pub(crate) enum DiskDescriptors {
    /// A single layer.
    Layer(RawFd),
    /// Several, and what joins them ([`crate::vmdk`]).
    Layers { joint: RawFd, files: Vec<RawFd> },
    /// A writable disk.
    Scratch(RawFd),
}

impl Descriptors {
    /// Those that QEMU opens by a name like a file's, all that are not given by number.
    fn named(&self) -> impl Iterator<Item = RawFd> + '_ {
        let disks = self.disks.iter().flat_map(|disk| match disk {
            DiskDescriptors::Layer(one) | DiskDescriptors::Scratch(one) => vec![*one],
            DiskDescriptors::Layers { joint, files } => std::iter::once(*joint)
                .chain(files.iter().copied())
                .collect(),
        });
        disks.chain(self.console)
    }

    /// All.
    pub(crate) fn all(&self) -> Vec<RawFd> {
        let numbered = [self.transport, self.monitor, self.last_words].into_iter();
        numbered
            .chain(self.taps.iter().copied())
            .chain(self.named())
            .collect()
    }
}

/// The name under which QEMU opens a descriptor that it was given by `-add-fd`.
pub(crate) fn fdset(descriptor: RawFd) -> String {
    format!("/dev/fdset/{descriptor}")
}

/// Where the guest's kernel gets its time from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    /// From KVM.
    Kvm,
    /// From the host's time stamp counter, which runs at this many kHz.
    Tsc(u64),
    /// By polling an emulated timer chip, which does not always work.
    Pit,
}

/// The guest kernel's command line.
pub(crate) fn kernel_command_line(config: &MachineConfig, clock: Clock) -> String {
    let mut words = vec![RESET_ON_PANIC];
    words.extend(QUICK_WORDS);
    match config.accelerator {
        Accelerator::Tcg => words.extend(SOFTWARE_WORDS),
        Accelerator::Kvm => {}
    }
    let mut frequencies = Vec::new();
    if let Clock::Tsc(khz) = clock {
        frequencies.extend([format!("tsc_early_khz={khz}"), "tsc=reliable".to_owned()]);
        let per_tick = config
            .kernel_hz
            .and_then(|hz| khz.saturating_mul(1000).checked_div(u64::from(hz)));
        // Loops per jiffy, which the kernel sets to the TSC's ticks when it knows them.
        frequencies.extend(per_tick.map(|ticks| format!("lpj={ticks}")));
    }
    words.extend(frequencies.iter().map(String::as_str));
    match config.console {
        Console::Quiet => words.extend(QUIET_WORDS),
        Console::File { .. } => words.push(TALKATIVE_WORD),
    }
    words.extend(config.cmdline_extra.iter().map(String::as_str));
    words.join(" ")
}

/// What only helps where a CPU is emulated: nothing speculates there, so there is nothing
/// to mitigate.
const SOFTWARE_WORDS: [&str; 1] = ["mitigations=off"];

/// Everything that QEMU can emulate but for the promise that copying by single bytes
/// (`rep movsb`, `rep stosb`) is fast: the kernel and the C library believe it, and QEMU
/// takes a round for each byte. Without it a boot takes a quarter less of the CPU, and a
/// transfer through the port half.
const SOFTWARE_CPU: &str = "max,-erms,-fsrm";

/// The arguments.
pub(crate) fn arguments(
    config: &MachineConfig,
    clock: Clock,
    descriptors: &Descriptors,
) -> Vec<OsString> {
    let mut out = Arguments::default();
    out.words(["-nodefaults", "-no-user-config", "-nographic"]);
    out.pair("-name", format!("guest={}", config.id));
    out.pair(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    );
    let timer = match clock {
        Clock::Kvm | Clock::Tsc(_) => "off",
        Clock::Pit => "on",
    };
    out.pair(
        "-machine",
        format!(
            "microvm,acpi=on,rtc=on,pit={timer},pic={timer},isa-serial=on,\
             auto-kernel-cmdline=off,dump-guest-core=off"
        ),
    );
    match config.accelerator {
        Accelerator::Kvm => {
            out.pair("-accel", "kvm");
            out.pair("-cpu", "host");
        }
        Accelerator::Tcg => {
            // One thread for all vCPUs: with one each, a CPU can go on running code that
            // another one has patched (docs/adr/0021-one-thread-for-emulated-cpus.md).
            out.pair("-accel", "tcg,thread=single");
            out.pair("-cpu", SOFTWARE_CPU);
        }
    }
    out.pair("-smp", config.vcpus.to_string());
    out.pair("-m", format!("size={}M", memory(config) >> 20));
    for descriptor in descriptors.named() {
        out.pair("-add-fd", format!("fd={descriptor},set={descriptor}"));
    }
    out.pair("-kernel", descriptors.kernel.as_str());
    out.pair("-initrd", descriptors.initramfs.as_str());
    out.pair("-append", kernel_command_line(config, clock));
    out.words(["-no-reboot", "-global", "virtio-mmio.force-legacy=false"]);

    let Descriptors {
        transport,
        monitor,
        last_words,
        console,
        disks,
        taps,
        ..
    } = descriptors;
    out.pair("-chardev", format!("socket,id=monitor,fd={monitor}"));
    out.pair("-mon", "chardev=monitor,mode=control");
    out.pair("-chardev", format!("socket,id=agent,fd={transport}"));
    out.device(&json!({"driver": "virtio-serial-device", "id": "ports", "max_ports": 2}));
    match console {
        None => {
            // Two devices write there, one after the other.
            out.pair(
                "-chardev",
                format!("socket,id=words,fd={last_words},mux=on"),
            );
            out.pair("-serial", "chardev:words");
            out.device(&json!({"driver": "virtconsole", "chardev": "words", "nr": 0}));
        }
        Some(console) => {
            out.pair(
                "-chardev",
                format!("file,id=console,path={}", fdset(*console)),
            );
            out.pair("-serial", "chardev:console");
        }
    }
    out.device(&json!({
        "driver": "virtserialport", "chardev": "agent", "name": "bulkhead.agent", "nr": 1
    }));
    out.pair(
        "-object",
        // By a system call: there is no /dev where QEMU runs.
        json!({"qom-type": "rng-builtin", "id": "entropy"}).to_string(),
    );
    out.device(&json!({"driver": "virtio-rng-device", "rng": "entropy"}));
    out.device(&json!({"driver": "virtio-balloon-device"}));
    for (disk, descriptors) in config.disks.iter().zip(disks) {
        out.disk(disk.serial(), descriptors);
    }
    for (index, (nic, tap)) in config.nics.iter().zip(taps).enumerate() {
        // A tap in the namespace that the container's network is in; the kernel does the rest.
        out.pair("-netdev", format!("tap,id=net{index},fd={tap},vhost=off"));
        let [a, b, c, d, e, f] = nic.mac;
        out.device(&json!({
            "driver": "virtio-net-device", "netdev": format!("net{index}"),
            "mac": format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"),
        }));
    }
    out.0
}

/// The machine's memory, bytes: what was asked for, rounded up.
pub(crate) fn memory(config: &MachineConfig) -> u64 {
    config
        .memory_bytes
        .div_ceil(MEMORY_UNIT)
        .saturating_mul(MEMORY_UNIT)
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn words<const N: usize>(&mut self, words: [&str; N]) {
        self.0.extend(words.map(OsString::from));
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.push(option.into());
        self.0.push(value.into());
    }

    fn device(&mut self, device: &serde_json::Value) {
        self.pair("-device", device.to_string());
    }

    fn disk(&mut self, serial: &str, disk: &DiskDescriptors) {
        // Flushes of the guest reach stable storage (`no-flush` off); the host's page cache
        // is used, so that containers of one image share it.
        let cache = json!({"direct": false, "no-flush": false});
        let read_only = |driver: &str, descriptor: RawFd| {
            json!({
                "driver": driver, "node-name": serial, "read-only": true, "cache": cache,
                "file": {
                    "driver": "file", "filename": fdset(descriptor), "read-only": true,
                },
            })
        };
        let node = match disk {
            DiskDescriptors::Layers { joint, .. } => read_only("vmdk", *joint),
            DiskDescriptors::Layer(file) => read_only("raw", *file),
            DiskDescriptors::Scratch(file) => json!({
                "driver": "raw", "node-name": serial, "cache": cache, "discard": "unmap",
                "file": {
                    "driver": "file", "filename": fdset(*file), "discard": "unmap",
                    "locking": "on",
                },
            }),
        };
        self.pair("-blockdev", node.to_string());
        self.device(&json!({
            "driver": "virtio-blk-device", "drive": serial, "serial": serial,
            // A full disk of the host is an error for the guest; QEMU would stop the machine.
            "werror": "report", "rerror": "report",
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_machine::{Disk, EngineKind, LayerFile, Nic};

    fn config() -> MachineConfig {
        MachineConfig {
            id: "abc".to_owned(),
            engine: EngineKind::Qemu,
            accelerator: Accelerator::Tcg,
            kernel: "/k".into(),
            kernel_hz: Some(250),
            initramfs: "/i".into(),
            cmdline_extra: vec!["x=y".to_owned()],
            memory_bytes: (128 << 20) + 1,
            balloon_bytes: 0,
            vcpus: 2,
            placement: bulkhead_machine::Placement::default(),
            disks: vec![
                Disk::Layers {
                    files: vec![LayerFile {
                        path: "/l,1".into(),
                        bytes: 4096,
                    }],
                },
                Disk::Scratch { path: "/s".into() },
            ],
            nics: vec![Nic {
                mac: [2, 0, 0, 0, 0, 0xfe],
            }],
            runtime_dir: "/r".into(),
            console: Console::Quiet,
        }
    }

    fn line(config: &MachineConfig) -> String {
        let descriptors = Descriptors {
            transport: 7,
            monitor: 8,
            last_words: 9,
            kernel: "/k".to_owned(),
            initramfs: "/i".to_owned(),
            disks: vec![
                DiskDescriptors::Layers {
                    joint: 11,
                    files: vec![12, 13],
                },
                DiskDescriptors::Scratch(14),
            ],
            console: match config.console {
                Console::Quiet => None,
                Console::File { .. } => Some(15),
            },
            taps: vec![10],
        };
        let words = arguments(config, Clock::Tsc(2_000_000), &descriptors);
        words
            .iter()
            .map(|word| word.to_str().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn memory_is_rounded_up() {
        assert!(line(&config()).contains("-m size=130M"));
    }

    #[test]
    fn a_quiet_machine_speaks_until_its_console_is_there_and_a_talkative_one_on() {
        let quiet = line(&config());
        assert!(quiet.contains("mux=on -serial chardev:words"));
        assert!(quiet.contains(" quiet earlyprintk="));
        let loud = line(&MachineConfig {
            console: Console::File {
                path: "/a,b".into(),
            },
            ..config()
        });
        assert!(loud.contains("console=ttyS0") && loud.contains("path=/dev/fdset/15"));
        assert!(loud.contains("-add-fd fd=15,set=15"));
    }

    #[test]
    fn no_path_of_the_host_is_told() {
        let line = line(&config());
        for host in ["/l,1", "/s\"", "/r"] {
            assert!(!line.contains(host), "{line}");
        }
        for descriptor in 11..15 {
            assert!(line.contains(&format!("-add-fd fd={descriptor},set={descriptor}")));
        }
        assert!(line.contains(r#""filename":"/dev/fdset/11","read-only":true"#));
    }

    #[test]
    fn a_network_card_is_a_tap() {
        let line = line(&config());
        assert!(line.contains("-netdev tap,id=net0,fd=10,vhost=off"));
        assert!(line.contains(r#""netdev":"net0","mac":"02:00:00:00:00:fe""#));
    }

    #[test]
    fn extra_words_come_last() {
        assert!(kernel_command_line(&config(), Clock::Pit).ends_with(" x=y"));
    }

    #[test]
    fn a_known_frequency_replaces_the_timer_chip() {
        let line = line(&config());
        assert!(line.contains("pit=off,pic=off") && line.contains("tsc_early_khz=2000000"));
        assert!(line.contains(" lpj=8000000 "));
    }
}
