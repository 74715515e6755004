//! Boots one machine in this process until its agent speaks, and prints what that took as a
//! line of JSON. `cargo xtask bench` runs it for each engine in turns, both on KVM.
//!
//! QEMU opens `/dev/kvm` as a user without rights: the bench lets everybody.
//!
//! Arguments: the engine (`kvm` or `qemu`), the guest directory, MiB of memory, CPUs, an empty
//! directory, and optionally a file for the console.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulkhead_engine_kvm::KvmEngine;
use bulkhead_engine_qemu::QemuEngine;
use bulkhead_jail::Identity;
use bulkhead_machine::{
    Accelerator, Console, Engine, EngineKind, Machine, MachineConfig, MachineFiles,
};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// Nothing that boots takes as long, even where KVM itself is emulated.
const LIMIT: Duration = Duration::from_secs(120);

/// Debian's user and group that own nothing.
const NOBODY: u32 = 65534;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [engine, guest, mib, cpus, directory, rest @ ..] = arguments.as_slice() else {
        let usage = "arguments: ENGINE GUEST-DIRECTORY MIB CPUS DIRECTORY [CONSOLE-FILE]";
        return Err(usage.into());
    };
    let engine = match engine.as_str() {
        "kvm" => EngineKind::Kvm,
        "qemu" => EngineKind::Qemu,
        other => return Err(format!("no engine {other}").into()),
    };
    let guest = std::path::absolute(guest)?;
    let config = MachineConfig {
        engine,
        runtime_dir: directory.into(),
        ..config(&guest, mib.parse()?, cpus.parse()?, rest.first())
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(measure(&config))
}

fn config(guest: &Path, mib: u64, vcpus: u32, console: Option<&String>) -> MachineConfig {
    MachineConfig {
        id: "figures".to_owned(),
        engine: EngineKind::Kvm,
        accelerator: Accelerator::Kvm,
        kernel: guest.join("vmlinux"),
        kernel_hz: None,
        initramfs: guest.join("initramfs.cpio"),
        cmdline_extra: Vec::new(),
        memory_bytes: mib << 20,
        balloon_bytes: 0,
        vcpus,
        placement: bulkhead_machine::Placement::default(),
        disks: Vec::new(),
        nics: Vec::new(),
        runtime_dir: PathBuf::from("/"),
        console: console.map_or(Console::Quiet, |path| Console::File { path: path.into() }),
    }
}

async fn measure(config: &MachineConfig) -> Result<(), Failure> {
    let (mut ours, theirs) = UnixStream::pair()?;
    let theirs = theirs.into_std()?;
    theirs.set_nonblocking(false)?;
    let files = MachineFiles::open(config, OwnedFd::from(theirs), Vec::new())?;
    let start = Instant::now();
    let figures = match config.engine {
        EngineKind::Kvm => {
            let machine = KvmEngine.prepare_machine(config, files)?.start()?;
            let ready = ready(&machine, &mut ours, start).await?;
            machine.pause().await?;
            let figures = (
                ready,
                machine.exits(),
                Some(private_kib(config.memory_bytes)?),
            );
            machine.kill();
            machine.wait().await;
            figures
        }
        EngineKind::Qemu => {
            let identity = Identity {
                uid: NOBODY,
                gid: NOBODY,
                groups: Vec::new(),
            };
            let engine = QemuEngine::find(identity)?;
            let machine = engine.prepare(config, files)?.boot().await?;
            let ready = ready(machine.as_ref(), &mut ours, start).await?;
            machine.kill();
            machine.wait().await;
            (ready, None, None)
        }
    };
    let (ready, exits, private_kib) = figures;
    let figures = serde_json::json!({
        "ready_ms": ready.as_secs_f64() * 1e3,
        "exits": exits,
        "private_kib": private_kib,
    });
    println!("{figures}");
    Ok(())
}

/// How long it took until the agent's first byte.
async fn ready(
    machine: &dyn Machine,
    agent: &mut UnixStream,
    start: Instant,
) -> Result<Duration, Failure> {
    let mut first = [0; 1];
    tokio::select! {
        read = tokio::time::timeout(LIMIT, agent.read_exact(&mut first)) => {
            read??;
        }
        exit = machine.wait() => return Err(format!("{exit:?}").into()),
    }
    Ok(start.elapsed())
}

/// What this process alone holds, the guest's memory left out, KiB: private pages of every
/// mapping that is too small to be that.
fn private_kib(guest_bytes: u64) -> Result<u64, Failure> {
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    let mut sum = 0;
    let mut is_guest = false;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            let (start, end) = first.split_once('-').ok_or("not a line of smaps")?;
            let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16));
            is_guest = end? - start? >= guest_bytes;
        } else if matches!(first, "Private_Dirty:" | "Private_Hugetlb:") && !is_guest {
            sum += words.next().unwrap_or_default().parse::<u64>()?;
        }
    }
    Ok(sum)
}
