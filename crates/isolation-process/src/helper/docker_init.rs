//! PID 1 of a container with `--init`: runs the payload as its child, passes signals on,
//! reaps orphans, and ends as the payload did.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};

/// Signals that mean this process and not its child.
const OWN: [Signal; 9] = [
    Signal::SIGCHLD,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGSEGV,
    Signal::SIGBUS,
    Signal::SIGILL,
    Signal::SIGFPE,
    Signal::SIGTRAP,
    Signal::SIGABRT,
];

/// Those that are passed on.
fn forwarded() -> SigSet {
    let mut forwarded = SigSet::all();
    for signal in OWN {
        forwarded.remove(signal);
    }
    forwarded
}

/// What this process has blocked, from its first moment: who starts it sees to that, because
/// PID 1 of a namespace loses a signal for which it has no handler yet.
///
/// A terminal stops who takes its foreground from the background, which the child does, and
/// who does more from there, as this process is then: not those that have that blocked.
pub(super) fn blocked() -> SigSet {
    let mut blocked = forwarded();
    for signal in [Signal::SIGCHLD, Signal::SIGTTIN, Signal::SIGTTOU] {
        blocked.add(signal);
    }
    blocked
}

/// Runs what follows `--`.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.skip_while(|argument| argument == "--");
    let Some(program) = arguments.next() else {
        eprintln!("docker-init: no command given");
        return ExitCode::from(127);
    };
    let mut waited = forwarded();
    waited.add(Signal::SIGCHLD);
    if let Err(error) = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&blocked()), None) {
        eprintln!("docker-init: {error}");
        return ExitCode::FAILURE;
    }
    // A payload starts with none blocked.
    let none = SigSet::empty();
    let mut command = Command::new(&program);
    command.args(arguments);
    // SAFETY: between fork and exec only calls that are async-signal-safe.
    unsafe {
        command.pre_exec(move || {
            // A group and, with a terminal, the foreground of its own, so that keys typed
            // there reach the payload once and not by us again.
            let own = nix::unistd::Pid::from_raw(0);
            let _ = nix::unistd::setpgid(own, own);
            let _ = nix::unistd::tcsetpgrp(std::io::stdin(), nix::unistd::getpgrp());
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&none), None)?;
            Ok(())
        });
    }
    let child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("docker-init: exec {}: {error}", program.to_string_lossy());
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            return ExitCode::from(if missing { 127 } else { 126 });
        }
    };
    let Ok(child) = i32::try_from(child.id()) else {
        return ExitCode::FAILURE;
    };
    loop {
        match wait(&waited) {
            Ok(libc::SIGCHLD) => {}
            Ok(signal) => {
                // SAFETY: the call touches no memory. A child that has ended and is not reaped
                // yet keeps its number.
                unsafe { libc::kill(child, signal) };
                continue;
            }
            Err(Errno::EINTR) => continue,
            Err(_) => return ExitCode::FAILURE,
        }
        if let Some(code) = reap(child) {
            return ExitCode::from(code);
        }
    }
}

/// The next of these signals, by its number: real-time ones have no name.
fn wait(signals: &SigSet) -> Result<libc::c_int, Errno> {
    let mut signal = 0;
    // SAFETY: both are valid for the call.
    match unsafe { libc::sigwait(signals.as_ref(), &raw mut signal) } {
        0 => Ok(signal),
        error => Err(Errno::from_raw(error)),
    }
}

/// Reaps all that have ended; the exit code of `child` if it is among them.
fn reap(child: i32) -> Option<u8> {
    let mut ended = None;
    loop {
        let mut status = 0;
        // SAFETY: `status` is valid for the call.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid <= 0 {
            return ended;
        }
        if pid == child {
            let code = if libc::WIFSIGNALED(status) {
                128 + libc::WTERMSIG(status)
            } else {
                libc::WEXITSTATUS(status)
            };
            ended = Some(u8::try_from(code).unwrap_or(255));
        }
    }
}
