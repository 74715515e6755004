//! QEMU's command line. Pure: no file is opened here.
//!
//! The figures behind the choices are in `docs/vm-boot.md`.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::Path;

use bulkhead_machine::{Accelerator, BootError, Console, Disk, MachineConfig};
use serde_json::json;

/// Memory is handed out in these units, bytes: a large page.
const MEMORY_UNIT: u64 = 2 << 20;
/// Less memory than this, bytes, and the kernel cannot even unpack its initramfs.
pub(crate) const MIN_MEMORY: u64 = 96 << 20;

/// The descriptors that QEMU is born with.
#[derive(Debug, Clone)]
pub(crate) struct Descriptors {
    pub(crate) transport: RawFd,
    pub(crate) monitor: RawFd,
    pub(crate) last_words: RawFd,
    /// One for each network card.
    pub(crate) taps: Vec<RawFd>,
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
    // A panic resets the machine at once, and a machine that resets has ended.
    let mut words = vec!["panic=-1"];
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
        // Until the virtio console is there, what the kernel has to say goes to a serial port:
        // a panic on the way has words too. The port's real driver is spared.
        Console::Quiet => words.extend([
            "quiet",
            "earlyprintk=serial,ttyS0,115200",
            "8250.nr_uarts=0",
            "console=hvc0",
        ]),
        Console::File { .. } => words.push("console=ttyS0"),
    }
    words.extend(config.cmdline_extra.iter().map(String::as_str));
    words.join(" ")
}

/// What spares a distribution's kernel work that a guest has no use for: waiting for grace
/// periods, testing its ciphers, the certificates that would vouch for modules (the
/// initramfs is as trustworthy as the kernel), a random source beside the CPU's and virtio's.
const QUICK_WORDS: [&str; 3] = [
    "rcupdate.rcu_expedited=1",
    "cryptomgr.notests",
    "initcall_blacklist=load_system_certificate_list,jent_mod_init",
];

/// What only helps where a CPU is emulated: nothing speculates there, so there is nothing
/// to mitigate.
const SOFTWARE_WORDS: [&str; 1] = ["mitigations=off"];

/// The arguments.
pub(crate) fn arguments(
    config: &MachineConfig,
    clock: Clock,
    descriptors: &Descriptors,
    layers: Option<&Path>,
) -> Result<Vec<OsString>, BootError> {
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
             auto-kernel-cmdline=off"
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
            out.pair("-cpu", "max");
        }
    }
    out.pair("-smp", config.vcpus.to_string());
    out.pair("-m", format!("size={}M", memory(config) >> 20));
    out.pair("-kernel", config.kernel.as_os_str());
    out.pair("-initrd", config.initramfs.as_os_str());
    out.pair("-append", kernel_command_line(config, clock));
    out.words(["-no-reboot", "-global", "virtio-mmio.force-legacy=false"]);

    let Descriptors {
        transport,
        monitor,
        last_words,
        taps,
    } = descriptors;
    out.pair("-chardev", format!("socket,id=monitor,fd={monitor}"));
    out.pair("-mon", "chardev=monitor,mode=control");
    out.pair("-chardev", format!("socket,id=agent,fd={transport}"));
    out.device(&json!({"driver": "virtio-serial-device", "id": "ports", "max_ports": 2}));
    match &config.console {
        Console::Quiet => {
            // Two devices write there, one after the other.
            out.pair(
                "-chardev",
                format!("socket,id=words,fd={last_words},mux=on"),
            );
            out.pair("-serial", "chardev:words");
            out.device(&json!({"driver": "virtconsole", "chardev": "words", "nr": 0}));
        }
        Console::File { path } => {
            // In QEMU's option syntax a comma in a value is doubled.
            let path = text(path)?.replace(',', ",,");
            out.pair("-chardev", format!("file,id=console,path={path}"));
            out.pair("-serial", "chardev:console");
        }
    }
    out.device(&json!({
        "driver": "virtserialport", "chardev": "agent", "name": "bulkhead.agent", "nr": 1
    }));
    out.pair(
        "-object",
        json!({"qom-type": "rng-random", "id": "entropy", "filename": "/dev/urandom"}).to_string(),
    );
    out.device(&json!({"driver": "virtio-rng-device", "rng": "entropy"}));
    for disk in &config.disks {
        out.disk(disk, layers)?;
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
    Ok(out.0)
}

/// The machine's memory, bytes: what was asked for, rounded up.
pub(crate) fn memory(config: &MachineConfig) -> u64 {
    config
        .memory_bytes
        .div_ceil(MEMORY_UNIT)
        .saturating_mul(MEMORY_UNIT)
}

fn text(path: &Path) -> Result<&str, BootError> {
    path.to_str().ok_or_else(|| {
        BootError::InvalidConfig(format!(
            "the path '{}' is not UTF-8, which a VM's files must be",
            path.display()
        ))
    })
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

    fn disk(&mut self, disk: &Disk, layers: Option<&Path>) -> Result<(), BootError> {
        let serial = disk.serial();
        // Flushes of the guest reach stable storage (`no-flush` off); the host's page cache
        // is used, so that containers of one image share it.
        let cache = json!({"direct": false, "no-flush": false});
        let node = match (disk, layers) {
            (Disk::Layers { .. }, Some(descriptor)) => json!({
                "driver": "vmdk", "node-name": serial, "read-only": true, "cache": cache,
                "file": {
                    "driver": "file", "filename": text(descriptor)?, "read-only": true,
                },
            }),
            (Disk::Layers { files }, None) => {
                let [file] = files.as_slice() else {
                    return Err(BootError::InvalidConfig(
                        "a disk of layers needs at least one".to_owned(),
                    ));
                };
                json!({
                    "driver": "raw", "node-name": serial, "read-only": true, "cache": cache,
                    "file": {
                        "driver": "file", "filename": text(&file.path)?, "read-only": true,
                    },
                })
            }
            (Disk::Scratch { path }, _) => json!({
                "driver": "raw", "node-name": serial, "cache": cache, "discard": "unmap",
                "file": {
                    "driver": "file", "filename": text(path)?, "discard": "unmap",
                    "locking": "on",
                },
            }),
        };
        self.pair("-blockdev", node.to_string());
        self.device(&json!({
            "driver": "virtio-blk-device", "drive": serial, "serial": serial,
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_machine::{EngineKind, LayerFile, Nic};

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
            vcpus: 2,
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
            taps: vec![10],
        };
        let words = arguments(config, Clock::Tsc(2_000_000), &descriptors, None).unwrap();
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
        assert!(loud.contains("console=ttyS0") && loud.contains("path=/a,,b"));
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
