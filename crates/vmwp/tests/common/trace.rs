//! Which system calls a worker makes once its filter is set, seen from outside by ptrace(2).

use std::collections::BTreeSet;
use std::sync::mpsc;

/// A worker that is watched.
pub struct Trace {
    seen: mpsc::Receiver<BTreeSet<i64>>,
}

impl Trace {
    /// Watches a process of one thread, a child of this one, until it ends.
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
                    libc::PTRACE_O_TRACESYSGOOD,
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

    /// The numbers, once it has ended.
    pub fn seen(self) -> BTreeSet<i64> {
        self.seen.recv().unwrap()
    }
}

fn follow(pid: i32) -> BTreeSet<i64> {
    let mut filtered = false;
    let mut seen = BTreeSet::new();
    while let Some(signal) = next_stop(pid) {
        let mut pass_on = 0;
        if signal == libc::SIGTRAP | 0x80 {
            let info = call(pid);
            if info.op == libc::PTRACE_SYSCALL_INFO_ENTRY {
                // SAFETY: this is the member that belongs to `op`.
                let number = unsafe { info.u.entry.nr };
                let number = i64::try_from(number).unwrap();
                if filtered {
                    seen.insert(number);
                }
                // Nothing is restricted before, and nothing else restricts.
                filtered |= number == libc::SYS_seccomp;
            }
        } else if signal != libc::SIGTRAP {
            pass_on = signal;
        }
        // SAFETY: no memory is passed.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid, 0, pass_on) };
    }
    assert!(filtered, "no filter was set");
    seen
}

/// The signal that the next stop shows; `None` at the end, which is left to whoever reaps.
fn next_stop(pid: i32) -> Option<i32> {
    let id = libc::id_t::try_from(pid).unwrap();
    let look = |options| {
        // SAFETY: all zeroes is a value of it.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        loop {
            // SAFETY: the structure lives through the call.
            let done = unsafe { libc::waitid(libc::P_PID, id, &raw mut info, options) };
            if done == 0 {
                return Some(info);
            }
            if std::io::Error::last_os_error().kind() != std::io::ErrorKind::Interrupted {
                return None;
            }
        }
    };
    let info = look(libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | libc::__WALL)?;
    if ![libc::CLD_TRAPPED, libc::CLD_STOPPED].contains(&info.si_code) {
        return None;
    }
    look(libc::WSTOPPED | libc::__WALL)?;
    // SAFETY: a stop has a status: the signal, and above it the event.
    Some(unsafe { info.si_status() } & 0xff)
}

fn call(pid: i32) -> libc::ptrace_syscall_info {
    // SAFETY: all zeroes is a value of it.
    let mut info: libc::ptrace_syscall_info = unsafe { std::mem::zeroed() };
    let size = size_of_val(&info);
    // SAFETY: the structure lives through the call and has the length that is given.
    unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, size, &raw mut info) };
    info
}
