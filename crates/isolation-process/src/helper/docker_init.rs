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

/// Runs what follows `--`.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.skip_while(|argument| argument == "--");
    let Some(program) = arguments.next() else {
        eprintln!("docker-init: no command given");
        return ExitCode::from(127);
    };
    let mut forwarded = SigSet::all();
    for signal in OWN {
        forwarded.remove(signal);
    }
    let mut waited = forwarded;
    waited.add(Signal::SIGCHLD);
    // A terminal stops who takes its foreground from the background, which the child does, and
    // who does more from there, as this process is then: not those that have these blocked.
    let mut blocked = waited;
    blocked.add(Signal::SIGTTIN);
    blocked.add(Signal::SIGTTOU);
    let mut before = SigSet::empty();
    if let Err(error) = sigprocmask(SigmaskHow::SIG_BLOCK, Some(&blocked), Some(&mut before)) {
        eprintln!("docker-init: {error}");
        return ExitCode::FAILURE;
    }
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
            sigprocmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
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
        match waited.wait() {
            Ok(Signal::SIGCHLD) => {}
            Ok(signal) => {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), signal);
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
