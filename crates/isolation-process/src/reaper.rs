//! The one place where this process waits for children.
//!
//! A container's init is born two generations down, in a helper that has gone by the time
//! the payload runs; the supervisor (a child subreaper) or the guest agent (PID 1)
//! inherits it. So exits of PIDs arrive here that nobody in this process has spawned, and
//! may arrive before anyone has learned the PID: while an [`Expectation`] is alive, exits
//! that nobody has claimed are kept for [`Reaper::adopt`]; otherwise they are discarded.
//!
//! `waitid` runs only under the lock that [`Reaper::kill`] takes too, so a signal never
//! reaches a recycled PID. `waitid(P_ALL)` takes exits from every other waiter in the
//! process: nothing else may wait for children where a reaper runs (no `tokio::process`,
//! no `Child::wait` of the standard library).

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_isolation::ExitStatus;
use rustix::process::{Pid, Signal};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 + the signal.
    pub code: u32,
    /// When it was reaped.
    pub at: jiff::Timestamp,
}

impl Exit {
    /// As the seam has it.
    pub fn status(self) -> ExitStatus {
        ExitStatus {
            code: self.code,
            at: self.at,
            oom_killed: false,
            failure: None,
        }
    }
}

/// Waits for every child of this process, born or inherited.
#[derive(Debug, Default)]
pub struct Reaper {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    watched: HashMap<Pid, watch::Sender<Option<Exit>>>,
    unclaimed: HashMap<Pid, Exit>,
    expectations: usize,
}

/// Keeps unclaimed exits from being discarded while it lives.
#[derive(Debug)]
pub struct Expectation {
    reaper: Arc<Reaper>,
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let mut state = self.reaper.lock();
        state.expectations -= 1;
        if state.expectations == 0 {
            state.unclaimed.clear();
        }
    }
}

/// A child that is waited for by the reaper.
#[derive(Debug, Clone)]
pub struct Child {
    pid: Pid,
    exit: watch::Receiver<Option<Exit>>,
}

impl Child {
    /// Its number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The exit, if it has happened.
    pub fn exited(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for the exit; any number of callers, before or after it.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(value) => value.unwrap_or_else(lost),
            Err(_) => lost(),
        }
    }
}

/// The answer when a reaper ended before the child did.
fn lost() -> Exit {
    Exit {
        code: 137,
        at: jiff::Timestamp::now(),
    }
}

impl Reaper {
    /// Starts reaping on the current tokio runtime, and makes this process the one that
    /// inherits its orphaned descendants.
    ///
    /// # Errors
    /// That the signal handler could not be installed, or `prctl` failed.
    pub fn start() -> io::Result<Arc<Self>> {
        let reaper = Arc::new(Self::default());
        if rustix::process::getpid() != Pid::INIT {
            rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        }
        let mut children = signal(SignalKind::child())?;
        let weak = Arc::downgrade(&reaper);
        tokio::spawn(async move {
            loop {
                let Some(reaper) = weak.upgrade() else { return };
                reaper.reap();
                drop(reaper);
                if children.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Spawns a child that this reaper waits for.
    ///
    /// # Errors
    /// What `Command::spawn` says.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        // Under the lock, so that its exit cannot be reaped before it is registered.
        let mut state = self.lock();
        let spawned = command.spawn()?;
        let pid = i32::try_from(spawned.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("spawned child without a PID"))?;
        Ok(state.watch(pid))
    }

    /// Announces that descendants will be adopted; hold it from before the spawn that
    /// leads to them until after the last [`Reaper::adopt`].
    pub fn expect(self: &Arc<Self>) -> Expectation {
        self.lock().expectations += 1;
        Expectation {
            reaper: Arc::clone(self),
        }
    }

    /// Waits from now on for a descendant that is or will be inherited by this process.
    /// With a live [`Expectation`] its exit is not missed, however early it was.
    pub fn adopt(&self, pid: Pid, _expected: &Expectation) -> Child {
        let mut state = self.lock();
        let exit = state.unclaimed.remove(&pid);
        let child = state.watch(pid);
        if let Some(exit) = exit
            && let Some(sender) = state.watched.remove(&pid)
        {
            sender.send_replace(Some(exit));
        }
        child
    }

    /// Sends a signal to a watched child.
    ///
    /// # Errors
    /// `ESRCH` when it has been reaped, or what `kill` says.
    pub fn kill(&self, pid: Pid, signal: Signal) -> io::Result<()> {
        let state = self.lock();
        if !state.watched.contains_key(&pid) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Sends any signal number, real-time ones too, to a watched child.
    ///
    /// # Errors
    /// As [`Reaper::kill`]; `EINVAL` for a number that is no signal.
    pub fn kill_raw(&self, pid: Pid, signal: i32) -> io::Result<()> {
        let state = self.lock();
        if !state.watched.contains_key(&pid) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        // SAFETY: kill(2) takes plain numbers and touches no memory of ours.
        if unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) } == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }

    fn reap(&self) {
        let mut state = self.lock();
        while let Some((pid, code)) = wait_any() {
            let exit = Exit {
                code,
                at: jiff::Timestamp::now(),
            };
            tracing::debug!(pid = pid.as_raw_nonzero(), code, "reaped");
            if let Some(sender) = state.watched.remove(&pid) {
                sender.send_replace(Some(exit));
            } else if state.expectations > 0 {
                state.unclaimed.insert(pid, exit);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent between any two statements that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reaps one dead child: its PID and exit code, or 128 + its signal.
fn wait_any() -> Option<(Pid, u32)> {
    let mut status = 0;
    // __WALL: also children whose exit signal is not SIGCHLD.
    // SAFETY: `status` is valid for the call, which writes nothing else.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
    // Zero (none has ended) is no `Pid`, negative (no children) neither.
    let pid = (pid > 0).then(|| Pid::from_raw(pid)).flatten()?;
    let code = if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    };
    Some((pid, u32::try_from(code).unwrap_or(255)))
}

impl State {
    fn watch(&mut self, pid: Pid) -> Child {
        let (sender, exit) = watch::channel(None);
        self.watched.insert(pid, sender);
        Child { pid, exit }
    }
}
