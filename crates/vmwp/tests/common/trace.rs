//! Which system calls the threads of a worker make once their filters are set, seen from
//! outside by ptrace(2).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc;

use bulkhead_jail::filter::{Argument, Call};

/// A call: its number and its arguments.
pub type Made = (i64, [u64; 6]);

/// What was called, by the name of the thread, which for those of CPUs is `vcpu`.
pub type Seen = BTreeMap<String, BTreeSet<Made>>;

/// Whether this is what the entry allows.
pub fn is_allowed(call: &Call, (number, arguments): &Made) -> bool {
    let holds = |argument: &Argument| match *argument {
        Argument::Is(index, value) => arguments[usize::from(index)] == value,
        Argument::Int(index, value) => {
            arguments[usize::from(index)] & u64::from(u32::MAX) == u64::from(value)
        }
        Argument::Without(index, bits) => arguments[usize::from(index)] & bits == 0,
    };
    let any = || call.when.iter().any(|all| all.iter().all(holds));
    call.number == *number && (call.when.is_empty() || any())
}

/// A worker that is watched.
pub struct Trace {
    seen: mpsc::Receiver<Seen>,
}

impl Trace {
    /// Watches a process of one thread, a child of this one, and the threads that it starts,
    /// until it ends.
    pub fn of(pid: u32) -> Self {
        let pid = i32::try_from(pid).unwrap();
        let (sender, seen) = mpsc::channel();
        let (attached, attaching) = mpsc::channel();
        std::thread::spawn(move || {
            // SAFETY: no memory is passed.
            let seized = unsafe {
                libc::ptrace(
                    libc::PTRACE_SEIZE,
                    pid,
                    std::ptr::null_mut::<libc::c_void>(),
                    libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE,
                )
            };
            assert_eq!(seized, 0, "{}", std::io::Error::last_os_error());
            // SAFETY: as above.
            unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, pid, 0, 0) };
            attached.send(()).unwrap();
            sender.send(follow(pid)).unwrap();
        });
        attaching.recv().unwrap();
        Self { seen }
    }

    /// What was called, once it has ended.
    pub fn seen(self) -> Seen {
        self.seen.recv().unwrap()
    }
}

fn follow(pid: i32) -> Seen {
    let mut filtered = BTreeMap::<i32, String>::new();
    let mut seen = Seen::new();
    while let Some((thread, signal)) = next_stop(pid) {
        let mut pass_on = 0;
        if signal == libc::SIGTRAP | 0x80 {
            let info = call(thread);
            if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                // SAFETY: this is the member that belongs to `op`.
                let entry = unsafe { info.u.entry };
                let number = i64::try_from(entry.nr).unwrap();
                if let Some(name) = filtered.get(&thread) {
                    let made = seen.entry(name.clone()).or_default();
                    made.insert((number, entry.args));
                }
                // Nothing is restricted before, and nothing else restricts.
                if number == libc::SYS_seccomp {
                    filtered.insert(thread, name(pid, thread));
                }
            }
        } else if signal != libc::SIGTRAP {
            pass_on = signal;
        }
        // SAFETY: no memory is passed.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, thread, 0, pass_on) };
    }
    assert!(!filtered.is_empty(), "no filter was set");
    seen
}

fn name(pid: i32, thread: i32) -> String {
    let comm = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/comm")).unwrap();
    let comm = comm.trim_end();
    comm.trim_end_matches(|last: char| last.is_ascii_digit())
        .to_owned()
}

/// The thread of the next stop, and the signal that it shows; `None` at the end of the
/// process, which is left to whoever reaps.
fn next_stop(pid: i32) -> Option<(i32, i32)> {
    let look = |kind, id, options| {
        // SAFETY: all zeroes is a value of it.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        loop {
            // SAFETY: the structure lives through the call.
            let done = unsafe { libc::waitid(kind, id, &raw mut info, options | libc::__WALL) };
            if done == 0 {
                return Some(info);
            }
            if std::io::Error::last_os_error().kind() != std::io::ErrorKind::Interrupted {
                return None;
            }
        }
    };
    loop {
        // Of this thread's alone: it has no other children than those that it traces.
        let any = libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | libc::__WNOTHREAD;
        let info = look(libc::P_ALL, 0, any)?;
        // SAFETY: a change of state has a process.
        let thread = unsafe { info.si_pid() };
        let id = libc::id_t::try_from(thread).unwrap();
        if [libc::CLD_TRAPPED, libc::CLD_STOPPED].contains(&info.si_code) {
            look(libc::P_PID, id, libc::WSTOPPED)?;
            // SAFETY: a stop has a status: the signal, and above it the event.
            return Some((thread, unsafe { info.si_status() } & 0xff));
        }
        if thread == pid {
            return None;
        }
        look(libc::P_PID, id, libc::WEXITED)?;
    }
}

fn call(thread: i32) -> libc::ptrace_syscall_info {
    // SAFETY: all zeroes is a value of it.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let size = size_of_val(&info);
    // SAFETY: the structure lives through the call and has the length that is given.
    unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, size, &raw mut info) };
    info
}
