//! Boots one machine in this process until its agent speaks, and prints what that took as a
//! line of JSON. `cargo xtask bench` runs it; the machine must be able to run KVM guests.
//!
//! Arguments: the guest directory, MiB of memory, CPUs, and optionally a file for the console.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bulkhead_engine_kvm::KvmEngine;
use bulkhead_machine::{Accelerator, Console, EngineKind, Machine, MachineConfig, MachineFiles};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// Nothing that boots takes as long, even where KVM itself is emulated.
const LIMIT: Duration = Duration::from_secs(120);

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [guest, mib, cpus, rest @ ..] = arguments.as_slice() else {
        return Err("arguments: GUEST-DIRECTORY MIB CPUS [CONSOLE-FILE]".into());
    };
    let guest = std::path::absolute(guest)?;
    let config = config(&guest, mib.parse()?, cpus.parse()?, rest.first());
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
    let prepared = KvmEngine.prepare_machine(config, files)?;
    let prepared_after = start.elapsed();
    let machine = prepared.start()?;
    let mut first = [0; 1];
    tokio::select! {
        read = tokio::time::timeout(LIMIT, ours.read_exact(&mut first)) => {
            read??;
        }
        exit = machine.wait() => return Err(format!("{exit:?}").into()),
    }
    let ready_after = start.elapsed();
    machine.pause().await?;
    let exits = machine.exits();
    let private = private_kib()?;
    machine.kill();
    let exit = machine.wait().await;
    let number = |value: Option<u64>| value.map_or_else(|| "null".to_owned(), |v| v.to_string());
    println!(
        "{{\"prepared_ms\":{},\"ready_ms\":{},\"exits\":{},\"private_kib\":{private},\
         \"exit\":\"{:?}\"}}",
        prepared_after.as_millis(),
        ready_after.as_millis(),
        number(exits),
        exit.reason,
    );
    Ok(())
}

/// What this process alone holds, the guest's memory left out, KiB: private pages of every
/// mapping but the memory file's.
fn private_kib() -> Result<u64, Failure> {
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    let mut sum = 0;
    let mut is_guest = false;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            is_guest = line.contains("memfd:guest-memory");
        } else if matches!(
            first,
            "Private_Dirty:" | "Private_Clean:" | "Private_Hugetlb:"
        ) && !is_guest
            && first != "Private_Clean:"
        {
            sum += words.next().unwrap_or_default().parse::<u64>()?;
        }
    }
    Ok(sum)
}
