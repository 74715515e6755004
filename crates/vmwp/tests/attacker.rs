//! An attacker who has taken over a worker: what is tried from inside its jail fails.
//!
//! The worker is this program, executed again behind a script, which enters the very jail
//! that `vmwp` enters and then tries one thing after the other: without the filter of system
//! calls each fails by itself; with it the first one is the end.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

#[allow(dead_code, reason = "shared with other tests")]
mod common;

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};

use bulkhead_jail::filter::{Call, Filter};
use bulkhead_machine::worker::Worker;
use bulkhead_machine::worker::protocol::receive_files;
use bulkhead_machine::{Accelerator, Console, EngineKind, ExitReason, MachineConfig};
use bulkhead_vmwp::confine::Jail;
use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;

/// What the attacker is to try, and behind which of the filters, if any.
const ATTACK: &str = "VMWP_ATTACK";
const FILTER: &str = "VMWP_FILTER";
/// A process of the host, and the name of a socket of the host's.
const VICTIM: &str = "VMWP_VICTIM";
const SOCKET: &str = "VMWP_SOCKET";

type Attack = (&'static str, fn() -> io::Result<()>);

fn refused_by_kernel(result: rustix::io::Result<()>) -> io::Result<()> {
    result.map_err(io::Error::from)
}

/// Everything, by name. Each must fail.
const ATTACKS: &[Attack] = &[
    ("open a file", || {
        std::fs::File::open("/etc/passwd").map(drop)
    }),
    ("open its memory", || {
        std::fs::File::open("/proc/self/mem").map(drop)
    }),
    ("leave the root", || {
        std::fs::read_dir("/../..").and_then(something)
    }),
    ("see files", || std::fs::read_dir("/").and_then(something)),
    ("make a file", || std::fs::write("/file", "x")),
    ("run a program", || {
        std::process::Command::new("/bin/sh").status().map(drop)
    }),
    ("connect to a port", || {
        let port = std::env::var(SOCKET).unwrap().parse().unwrap();
        std::net::TcpStream::connect(("127.0.0.1", port)).map(drop)
    }),
    ("connect to a socket", || {
        use std::os::linux::net::SocketAddrExt;
        let name = std::env::var(SOCKET).unwrap();
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        UnixStream::connect_addr(&address).map(drop)
    }),
    ("signal a process of the host", || {
        refused_by_kernel(rustix::process::kill_process(victim(), Signal::KILL))
    }),
    ("signal everybody", || {
        // SAFETY: no memory is passed.
        match unsafe { libc::kill(-1, libc::SIGKILL) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }),
    ("find a process of the host", || {
        let flags = rustix::process::PidfdFlags::empty();
        refused_by_kernel(rustix::process::pidfd_open(victim(), flags).map(drop))
    }),
    ("trace a process of the host", || {
        let pid = victim().as_raw_nonzero().get();
        // SAFETY: no memory is passed.
        match unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }),
    ("mount", || {
        let flags = rustix::mount::MountFlags::empty();
        refused_by_kernel(rustix::mount::mount("proc", "/", "proc", flags, c""))
    }),
    ("make the root writable", || {
        let flags = rustix::mount::MountFlags::BIND;
        refused_by_kernel(rustix::mount::mount_remount("/", flags, c""))
    }),
    ("become root", || {
        let root = rustix::thread::Uid::ROOT;
        refused_by_kernel(rustix::thread::set_thread_res_uid(root, root, root))
    }),
    ("become another worker", || {
        let other = rustix::thread::Uid::from_raw(0x7000_0001);
        refused_by_kernel(rustix::thread::set_thread_res_uid(other, other, other))
    }),
    ("have capabilities", || {
        let sets = rustix::thread::capabilities(None)?;
        let none =
            sets.effective.is_empty() && sets.permitted.is_empty() && sets.inheritable.is_empty();
        if none {
            Err(io::ErrorKind::PermissionDenied.into())
        } else {
            Ok(())
        }
    }),
    ("take a namespace", || {
        // SAFETY: this process has one thread.
        let taken = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) };
        refused_by_kernel(taken)
    }),
    ("change the root", || {
        refused_by_kernel(rustix::process::chroot("/"))
    }),
    ("raise a limit", || {
        let limit = rustix::process::Rlimit {
            current: Some(4096),
            maximum: Some(4096),
        };
        let resource = rustix::process::Resource::Nofile;
        refused_by_kernel(rustix::process::setrlimit(resource, limit))
    }),
    ("send a packet out", || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.send_to(b"x", "192.0.2.1:9").map(drop)
    }),
];

/// What hurts nobody in a process that has nothing, but is the first that code does which was
/// brought in.
const SUSPECT: &[Attack] = &[
    ("make code", || {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: it is mapped where nothing is, and used by nobody.
        let place = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }),
    ("start a thread", || {
        std::thread::Builder::new().spawn(|| ())?.join().unwrap();
        Ok(())
    }),
    ("control a device", || {
        let mut available = 0;
        let input = io::stdin().as_raw_fd();
        // SAFETY: the number lives through the call. It fails on what is not KVM.
        unsafe { libc::ioctl(input, KVM_CREATE_VM, &raw mut available) };
        Ok(())
    }),
    ("signal itself", || {
        let itself = rustix::process::getpid();
        refused_by_kernel(rustix::process::kill_process(itself, Signal::CONT))
    }),
];

/// `KVM_CREATE_VM` of `linux/kvm.h`.
const KVM_CREATE_VM: libc::c_ulong = 0xae01;

/// What each filter has to answer with the end.
const FATAL: &[&str] = &[
    "open a file",
    "run a program",
    "connect to a port",
    "trace a process of the host",
    "mount",
    "become root",
    "take a namespace",
    "raise a limit",
    "make code",
    "start a thread",
    "control a device",
    "signal itself",
];

/// The filters, by the engine and the thread.
const FILTERS: [(&str, &[Call]); 5] = [
    ("qemu", bulkhead_engine_qemu::WORKER_CALLS),
    ("kvm main", bulkhead_engine_kvm::MAIN_CALLS),
    ("kvm vcpu", bulkhead_engine_kvm::VCPU_CALLS),
    ("kvm disks", bulkhead_engine_kvm::DISKS_CALLS),
    ("kvm devices", bulkhead_engine_kvm::DEVICES_CALLS),
];

fn victim() -> Pid {
    let pid = std::env::var(VICTIM).unwrap().parse().unwrap();
    Pid::from_raw(pid).unwrap()
}

fn something(mut entries: std::fs::ReadDir) -> io::Result<()> {
    match entries.next() {
        Some(_) => Ok(()),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

/// In the jail. The exit code says how many attacks succeeded, the last words which.
fn attack(what: &str) -> ! {
    let control = UnixStream::from(bulkhead_jail::take_socket().unwrap());
    let (config, files) = receive_files(&control).unwrap();
    let jail = Jail::begin(&config, &files);
    let missing = jail.enter(&control).unwrap();
    assert!(missing.is_empty(), "{missing:?}");
    drop(files);
    let filter = std::env::var(FILTER).unwrap();
    if let Some((_, calls)) = FILTERS.iter().find(|(name, _)| *name == filter) {
        Filter::new(*calls).unwrap().set().unwrap();
    }
    let chosen = |(name, _): &&Attack| what == "all" || *name == what;
    let mut attacks: Vec<_> = ATTACKS.iter().filter(chosen).collect();
    if what != "all" {
        attacks.extend(SUSPECT.iter().filter(chosen));
    }
    assert!(!attacks.is_empty(), "nobody knows how to {what}");
    let mut succeeded = 0;
    for (name, attack) in attacks {
        if attack().is_ok() {
            eprintln!("could {name}");
            succeeded += 1;
        }
    }
    std::process::exit(succeeded);
}

/// Starts the attacker as a worker; how it ended.
async fn outcome(directory: &std::path::Path, what: &str, filter: &str, port: u16) -> String {
    let script = directory.join("vmwp");
    let text = format!(
        "#!/bin/sh\nexport {ATTACK}='{what}' {FILTER}='{filter}'\n\
         export {VICTIM}={} {SOCKET}={port}\nexec {}\n",
        std::process::id(),
        std::env::current_exe().unwrap().display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let empty = directory.join("empty");
    std::fs::write(&empty, "").unwrap();
    let config = MachineConfig {
        id: "attacker".to_owned(),
        engine: EngineKind::Qemu,
        accelerator: Accelerator::Tcg,
        kernel: empty.clone(),
        kernel_hz: None,
        initramfs: empty,
        cmdline_extra: Vec::new(),
        memory_bytes: 128 << 20,
        balloon_bytes: 0,
        vcpus: 1,
        placement: bulkhead_machine::Placement::default(),
        disks: Vec::new(),
        nics: Vec::new(),
        runtime_dir: directory.to_owned(),
        console: Console::Quiet,
    };
    let (worker, _port) = Worker::spawn(&script, &config, Vec::new()).await.unwrap();
    let exit = worker.wait().await;
    assert_eq!(exit.reason, ExitReason::WorkerLost, "{exit:?}");
    exit.detail
}

fn main() {
    if let Ok(what) = std::env::var(ATTACK) {
        attack(&what);
    }
    // An ordinary test run hands over filters and flags; there is one test here.
    if std::env::args().any(|argument| argument == "--list") {
        println!("attacker: test");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let directory = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let _named = abstract_listener(port);
        for (what, attack) in ATTACKS
            .iter()
            .filter(|(name, _)| name.starts_with("connect"))
        {
            // SAFETY: no other thread reads or writes the environment.
            unsafe { std::env::set_var(SOCKET, port.to_string()) };
            assert!(attack().is_ok(), "nobody can {what}, which proves nothing");
        }
        let all = outcome(directory.path(), "all", "none", port).await;
        assert!(all.ends_with("exited with code 0"), "{all}");
        println!("{} attacks fail in the jail", ATTACKS.len());
        for (filter, _) in FILTERS {
            for what in FATAL {
                let detail = outcome(directory.path(), what, filter, port).await;
                assert!(detail.contains("SIGSYS"), "{filter}: {what}: {detail}");
            }
            println!("{} are the end behind the filter '{filter}'", FATAL.len());
        }
        for (what, _) in SUSPECT {
            let detail = outcome(directory.path(), what, "none", port).await;
            assert!(detail.contains("exited with code 1"), "{what}: {detail}");
        }
    });
}

/// A socket of the host's network namespace, without a file.
fn abstract_listener(port: u16) -> UnixListener {
    use std::os::linux::net::SocketAddrExt;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(port.to_string()).unwrap();
    UnixListener::bind_addr(&address).unwrap()
}
