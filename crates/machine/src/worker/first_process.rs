//! Starting a process as the first of a namespace of processes.
//!
//! Only children enter a new namespace for processes, so whoever wants one makes it and
//! starts a child. A thread that has done so can start no more threads, and a child that asks
//! to die with its parent dies with the thread that started it. Both are met by a thread that
//! does nothing else and lives as long as the child.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command};

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::thread::UnshareFlags;
use tokio::sync::oneshot;

/// A process could not be started.
#[derive(Debug)]
pub(super) enum StartError {
    /// It does not start.
    Spawn(io::Error),
    /// It cannot be watched, and was ended.
    Watch(io::Error),
}

/// Starts a command as the first process of a namespace, which nobody in it can signal and
/// whose end ends all others there. Where the host does not allow that, it says so in the log
/// and starts it as an ordinary one. The descriptor becomes readable when it has ended.
pub(super) async fn start(command: Command) -> Result<(Child, OwnedFd), StartError> {
    let (sender, started) = oneshot::channel();
    std::thread::Builder::new()
        .name("vmwp-parent".to_owned())
        .stack_size(128 << 10)
        .spawn(move || {
            let started = spawn(command);
            let watched = match &started {
                Ok((_, pidfd)) => pidfd.try_clone().ok(),
                Err(_) => None,
            };
            // Whoever waited for it may be gone; then the child reads the end of its socket.
            let _ = sender.send(started);
            if let Some(pidfd) = watched {
                wait(&pidfd);
            }
        })
        .map_err(StartError::Spawn)?;
    started
        .await
        // Only a thread that panicked drops the sender without a word.
        .unwrap_or_else(|_| Err(StartError::Spawn(io::ErrorKind::Other.into())))
}

fn spawn(mut command: Command) -> Result<(Child, OwnedFd), StartError> {
    // SAFETY: for processes alone; nothing that this thread shares with others changes.
    if let Err(error) = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) } {
        tracing::warn!(%error, "the VM worker has no PID namespace of its own on this host");
    }
    let mut child = command.spawn().map_err(StartError::Spawn)?;
    match pidfd_open(child.id()) {
        Ok(pidfd) => Ok((child, pidfd)),
        Err(error) => {
            // Not reaped yet, so the number is still its own. It may have ended itself.
            let _ = child.kill();
            let _ = child.wait();
            Err(StartError::Watch(error))
        }
    }
}

fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?)
}

/// Waits for the end of the process, which somebody else reaps.
fn wait(pidfd: &OwnedFd) {
    let mut descriptors = [PollFd::new(pidfd, PollFlags::IN)];
    loop {
        match rustix::event::poll(&mut descriptors, None) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return,
            Err(error) => {
                tracing::warn!(%error, "cannot watch the VM worker");
                // Returning would end the child.
                let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
                return;
            }
        }
    }
}
