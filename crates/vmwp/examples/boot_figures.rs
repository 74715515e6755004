//! Figures of the worker and its engines, each as a line of JSON. `cargo xtask bench` runs it
//! in turns, on KVM.
//!
//! ```text
//! boot_figures kvm|qemu VMWP GUEST-DIRECTORY MIB CPUS DIRECTORY [CONSOLE-FILE]
//! boot_figures exits GUEST-DIRECTORY MIB CPUS DIRECTORY [CONSOLE-FILE]
//! boot_figures filters
//! ```
//!
//! The first starts the worker binary as a supervisor does, with a machine of this engine, and
//! tells how long it took until the agent's first byte: both engines come the same way there,
//! by a process of their own and into the jail. QEMU opens `/dev/kvm` as a user without
//! rights: the bench lets everybody.
//!
//! The second boots a machine of ours in this process, because only whoever runs a CPU can ask
//! KVM how often it was left, which is the same wherever that is. The third counts what the
//! filters of the worker's threads allow. The directory is an empty one.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulkhead_engine_kvm::KvmEngine;
use bulkhead_jail::filter::Call;
use bulkhead_machine::worker::Worker;
use bulkhead_machine::{
    Accelerator, Console, EngineKind, Machine, MachineConfig, MachineExit, MachineFiles,
};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// Nothing that boots takes as long, even where KVM itself is emulated.
const LIMIT: Duration = Duration::from_secs(120);

const USAGE: &str = "arguments: kvm|qemu VMWP GUEST-DIRECTORY MIB CPUS DIRECTORY [CONSOLE-FILE], \
                     or exits GUEST-DIRECTORY MIB CPUS DIRECTORY [CONSOLE-FILE], or filters";

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let figures = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["kvm", vmwp, ref machine @ ..] => {
            start(Path::new(vmwp), config(EngineKind::Kvm, machine)?)
        }
        ["qemu", vmwp, ref machine @ ..] => {
            start(Path::new(vmwp), config(EngineKind::Qemu, machine)?)
        }
        ["exits", ref machine @ ..] => exits(config(EngineKind::Kvm, machine)?),
        ["filters"] => Ok(filters()),
        _ => Err(USAGE.into()),
    };
    println!("{}", figures?);
    Ok(())
}

fn config(engine: EngineKind, arguments: &[&str]) -> Result<MachineConfig, Failure> {
    let [guest, mib, cpus, directory, ref console @ ..] = *arguments else {
        return Err(USAGE.into());
    };
    let guest = std::path::absolute(guest)?;
    Ok(MachineConfig {
        id: "figures".to_owned(),
        engine,
        accelerator: Accelerator::Kvm,
        kernel: guest.join("vmlinux"),
        kernel_hz: None,
        initramfs: guest.join("initramfs.cpio"),
        cmdline_extra: Vec::new(),
        memory_bytes: mib.parse::<u64>()? << 20,
        balloon_bytes: 0,
        vcpus: cpus.parse()?,
        placement: bulkhead_machine::Placement::default(),
        disks: Vec::new(),
        nics: Vec::new(),
        runtime_dir: PathBuf::from(directory),
        console: match console {
            [path, ..] => Console::File { path: path.into() },
            [] => Console::Quiet,
        },
    })
}

fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(future)
}

/// From nothing, with the files still to be opened, until the agent speaks.
fn start(vmwp: &Path, config: MachineConfig) -> Result<serde_json::Value, Failure> {
    block_on(async {
        let start = Instant::now();
        let (worker, mut agent) = Worker::spawn(vmwp, &config, Vec::new()).await?;
        speaks(&mut agent, worker.wait()).await?;
        let ready = start.elapsed();
        worker.kill().await;
        Ok(serde_json::json!({ "ready_ms": ready.as_secs_f64() * 1e3 }))
    })
}

/// How often a guest was left until its agent spoke.
fn exits(config: MachineConfig) -> Result<serde_json::Value, Failure> {
    block_on(async {
        let (mut ours, theirs) = UnixStream::pair()?;
        let theirs = theirs.into_std()?;
        theirs.set_nonblocking(false)?;
        let files = MachineFiles::open(&config, OwnedFd::from(theirs), Vec::new())?;
        let machine = KvmEngine.prepare_machine(&config, files)?.start()?;
        speaks(&mut ours, machine.wait()).await?;
        machine.pause().await?;
        let exits = machine.exits();
        machine.kill();
        machine.wait().await;
        Ok(serde_json::json!({ "exits": exits }))
    })
}

/// Waits for the agent's first byte.
async fn speaks(
    agent: &mut UnixStream,
    end: impl Future<Output = MachineExit>,
) -> Result<(), Failure> {
    let mut first = [0; 1];
    tokio::select! {
        read = tokio::time::timeout(LIMIT, agent.read_exact(&mut first)) => {
            read??;
            Ok(())
        }
        exit = end => Err(format!("{exit:?}").into()),
    }
}

/// How many system calls each of the worker's threads may make when the machine runs in it.
fn filters() -> serde_json::Value {
    let count = |calls: &[Call]| {
        let different: BTreeSet<_> = calls.iter().map(|call| call.number).collect();
        different.len()
    };
    serde_json::json!({
        "vmwp": count(bulkhead_engine_kvm::MAIN_CALLS),
        "vcpu": count(bulkhead_engine_kvm::VCPU_CALLS),
        "disks": count(bulkhead_engine_kvm::DISKS_CALLS),
        "devices": count(bulkhead_engine_kvm::DEVICES_CALLS),
    })
}
