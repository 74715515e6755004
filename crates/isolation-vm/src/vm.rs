//! A running machine with an agent in it: requests, their deadlines, and the end of both.
//!
//! The agent is as trustworthy as the guest, which is not at all: what it says is bounded
//! and cleaned, and no request waits for it for ever.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bulkhead_agent_protocol::{Call, Connection, Role, Shutdown, Stream, WireError, call, hello};
use bulkhead_isolation::{ErrorKind, IsolationError, Result};
use bulkhead_machine::worker::{Worker, WorkerError};
use bulkhead_machine::{ExitReason, MachineConfig, MachineExit};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::shares::Shares;
use crate::{group, sweep};

/// How long the guest may take for what it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// From the worker's start to the agent's first bytes. Software emulation needs 1.5 s on
    /// an idle machine; on one with ten times as much to do as it has CPUs, 25 s were seen.
    pub boot: Duration,
    /// From a request to its reply; the slowest is mounting 127 layers under emulation.
    pub call: Duration,
    /// For the agent to unmount and power off; after that the plug is pulled. Writing back
    /// what the payload left in the guest's memory takes most of it.
    pub shutdown: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            boot: Duration::from_secs(120),
            call: Duration::from_secs(60),
            shutdown: Duration::from_secs(30),
        }
    }
}

/// How often a machine is started whose guest cannot measure its timer. On a host with ten times
/// as much to do as it has CPUs, three starts of a hundred were in vain.
pub(crate) const STARTS: u32 = 5;

/// For the worker to tell how its machine ended, once the agent is gone.
const LAST_WORDS_DEADLINE: Duration = Duration::from_secs(5);

/// Longest text that is taken over from a guest, bytes.
const MAX_TEXT: usize = 4096;

/// See the module. Dropping it kills the machine.
#[derive(Debug)]
pub struct Vm {
    worker: Worker,
    connection: Connection,
    runtime_dir: PathBuf,
    deadlines: Deadlines,
    shares: tokio::sync::Mutex<Option<Shares>>,
}

impl Vm {
    /// Starts a worker, whose network cards are these taps, and waits until the agent answers. On an error the machine is gone;
    /// its runtime directory is the caller's.
    ///
    /// A guest whose kernel could not measure its timer, because the host did not let it run
    /// meanwhile, is started again, a few times.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when the machine cannot be started here, else
    /// [`ErrorKind::Other`].
    pub async fn boot(
        vmwp: &Path,
        config: &MachineConfig,
        taps: Vec<OwnedFd>,
        deadlines: Deadlines,
    ) -> Result<Self> {
        for attempt in 1..=STARTS {
            let taps = taps.iter().map(OwnedFd::try_clone);
            let taps = taps
                .collect::<std::io::Result<_>>()
                .map_err(|error| IsolationError::other("cannot hand over a tap device", error))?;
            if let Some(vm) = Self::boot_once(vmwp, config, taps, deadlines).await? {
                return Ok(vm);
            }
            tracing::info!(attempt, "the guest could not measure its timer");
        }
        Err(IsolationError::new(
            ErrorKind::Unavailable,
            hello::HelloError::Mistimed.to_string(),
        ))
    }

    /// `None`: [`hello::HelloError::Mistimed`].
    async fn boot_once(
        vmwp: &Path,
        config: &MachineConfig,
        taps: Vec<OwnedFd>,
        deadlines: Deadlines,
    ) -> Result<Option<Self>> {
        let (worker, mut transport) = Worker::spawn(vmwp, config, taps)
            .await
            .map_err(not_started)?;
        if let Err(error) = sweep::record(&config.runtime_dir, worker.pid()) {
            worker.kill().await;
            return Err(IsolationError::other(
                "cannot note the VM worker's number",
                error,
            ));
        }
        let greeted = tokio::select! {
            biased;
            exit = worker.wait() => Err(ended_early(&exit)),
            greeted = timeout(deadlines.boot, greet(&mut transport)) => match greeted {
                Ok(Ok(())) => Ok(true),
                Ok(Err(hello::HelloError::Mistimed)) => Ok(false),
                Ok(Err(hello::HelloError::Io(_))) => {
                    // The machine has ended, or is about to.
                    let exit = timeout(LAST_WORDS_DEADLINE, worker.wait()).await;
                    Err(exit.map_or_else(
                        |_| IsolationError::new(ErrorKind::Other, "the guest's agent was lost"),
                        |exit| ended_early(&exit),
                    ))
                }
                Ok(Err(error)) => Err(IsolationError::new(ErrorKind::Unavailable, error.to_string())),
                Err(_) => Err(IsolationError::new(
                    ErrorKind::Other,
                    format!(
                        "the guest did not start up within {} s",
                        deadlines.boot.as_secs()
                    ),
                )),
            },
        };
        match greeted {
            Ok(true) => {}
            Ok(false) => {
                worker.kill().await;
                return Ok(None);
            }
            Err(error) => {
                worker.kill().await;
                return Err(error);
            }
        }
        let (connection, _none) = Connection::spawn(transport, Role::Host);
        Ok(Some(Self {
            worker,
            connection,
            runtime_dir: config.runtime_dir.clone(),
            deadlines,
            shares: tokio::sync::Mutex::new(None),
        }))
    }

    /// Keeps the machine to these CPUs of the host.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pin(&self, cpus: &[u32]) -> Result<()> {
        self.worker.pin(cpus).map_err(|error| {
            let source = std::error::Error::source(&error).map(ToString::to_string);
            let source = source.unwrap_or_default();
            IsolationError::new(ErrorKind::Other, format!("{error}: {source}"))
        })
    }

    /// Has the guest give up so much of its memory, bytes, in all.
    ///
    /// # Errors
    /// That there is no machine any more, or that its engine refuses.
    pub async fn balloon(&self, bytes: u64) -> Result<()> {
        let done = self.worker.balloon(bytes).await;
        done.map_err(|error| IsolationError::new(ErrorKind::Other, error.to_string()))
    }

    /// Keeps what is shared with the guest until the machine has ended.
    pub async fn keep(&self, shares: Shares) {
        *self.shares.lock().await = Some(shares);
    }

    /// The connection to the agent, for whoever carries bytes.
    pub fn connection(&self) -> Connection {
        self.connection.clone()
    }

    /// Asks the agent for something and waits for the answer, within a deadline.
    ///
    /// # Errors
    /// The agent's; [`ErrorKind::FailedPrecondition`] when the machine has ended.
    pub async fn call<C: Call>(&self, request: C) -> Result<C::Reply> {
        self.request(request).await.map(|(reply, _)| reply)
    }

    /// As [`Vm::call`]; the stream comes with the answer, at its first raw byte.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub async fn request<C: Call>(&self, request: C) -> Result<(C::Reply, Stream)> {
        self.request_with(request, &[]).await
    }

    /// As [`Vm::request`]; after the request go these bytes.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub async fn request_with<C: Call>(
        &self,
        request: C,
        payload: &[Vec<u8>],
    ) -> Result<(C::Reply, Stream)> {
        let request: bulkhead_agent_protocol::Request = request.into();
        let name = request.name();
        let exchange = self.exchange::<C>(request, payload);
        match timeout(self.deadlines.call, exchange).await {
            Ok(result) => result,
            Err(_) => Err(IsolationError::new(
                ErrorKind::Unavailable,
                format!(
                    "the guest did not answer within {} s (request: {name})",
                    self.deadlines.call.as_secs()
                ),
            )),
        }
    }

    /// As [`Vm::call`], without a deadline: the answer comes when it comes, or the end.
    ///
    /// # Errors
    /// As [`Vm::call`].
    pub async fn call_patiently<C: Call>(&self, request: C) -> Result<C::Reply> {
        let exchange = self.exchange::<C>(request.into(), &[]);
        exchange.await.map(|(reply, _)| reply)
    }

    async fn exchange<C: Call>(
        &self,
        request: bulkhead_agent_protocol::Request,
        payload: &[Vec<u8>],
    ) -> Result<(C::Reply, Stream)> {
        let mut stream = match self.connection.open().await {
            Ok(stream) => stream,
            Err(_) => return Err(self.has_ended().await),
        };
        let answered = async {
            bulkhead_agent_protocol::write_message(&mut stream, &request).await?;
            for bytes in payload {
                stream.write_all(bytes).await?;
            }
            stream.flush().await?;
            bulkhead_agent_protocol::read_message::<Result<C::Reply>, _>(&mut stream).await
        };
        match answered.await {
            Ok(Ok(reply)) => Ok((reply, stream)),
            Ok(Err(error)) => Err(IsolationError::new(error.kind, clean(&error.message))),
            Err(error) => Err(self.explain(error).await),
        }
    }

    /// Why a stream broke: the machine's end, or the agent's own doing.
    async fn explain(&self, error: WireError) -> IsolationError {
        if matches!(error, WireError::Io(_))
            && let Ok(ended) = timeout(Duration::from_secs(1), self.has_ended()).await
        {
            return ended;
        }
        IsolationError::other("the guest's answer is of no use", error)
    }

    async fn has_ended(&self) -> IsolationError {
        IsolationError::new(ErrorKind::FailedPrecondition, self.end().await)
    }

    /// Waits for the end of the machine, or of the agent, after which the machine is ended
    /// too. Any number of callers. A sentence for a person.
    pub async fn end(&self) -> String {
        let exit = tokio::select! {
            exit = self.worker.wait() => exit,
            _ = self.connection.ended() => {
                match timeout(LAST_WORDS_DEADLINE, self.worker.wait()).await {
                    Ok(exit) => exit,
                    Err(_) => {
                        self.worker.kill().await;
                        MachineExit::new(ExitReason::Killed, "the guest's agent was lost")
                    }
                }
            }
        };
        clean(&exit.detail)
    }

    /// Pulls the plug.
    pub async fn kill(&self) {
        self.worker.kill().await;
    }

    /// Ends the machine: in order if the agent can, by force if not. Afterwards nothing of
    /// it is left on the host. Doing it again does nothing.
    ///
    /// # Errors
    /// That its files cannot be removed.
    pub async fn shut_down(&self) -> Result<()> {
        let orderly = async {
            let mut stream = match self.connection.open().await {
                Ok(stream) => stream,
                // After an end of its own there is nothing to be said.
                Err(error) => {
                    tracing::debug!(%error, "the guest cannot be told to shut down");
                    return;
                }
            };
            match call(&mut stream, Shutdown).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let error = clean(&error.message);
                    tracing::warn!(error, "the guest could not release everything");
                }
                // It has ended, or will be ended.
                Err(error) => tracing::debug!(%error, "no answer to the shutdown"),
            }
            // The agent powers off when it sees our end of the stream.
            let _ = stream.shutdown().await;
            self.worker.wait().await;
        };
        if timeout(self.deadlines.shutdown, orderly).await.is_err() {
            tracing::warn!("the guest did not shut down in time and is killed");
        }
        self.worker.kill().await;
        let shares = self.shares.lock().await.take();
        if let Some(shares) = shares {
            shares.release().await;
        }
        remove_directory(&self.runtime_dir).await
    }
}

/// Removes a machine's small files, and its control group.
///
/// # Errors
/// What the system says.
pub async fn remove_directory(directory: &Path) -> Result<()> {
    group::remove(directory)
        .await
        .map_err(|error| IsolationError::other("cannot remove the VM's control group", error))?;
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(IsolationError::other(
            format!("cannot remove {}", directory.display()),
            error,
        )),
        _ => Ok(()),
    }
}

async fn greet(transport: &mut UnixStream) -> std::result::Result<(), hello::HelloError> {
    hello::receive(transport).await?;
    hello::send(transport).await
}

fn not_started(error: WorkerError) -> IsolationError {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(source) = cause {
        message = format!("{message}: {source}");
        cause = source.source();
    }
    IsolationError::new(ErrorKind::Unavailable, message)
}

fn ended_early(exit: &MachineExit) -> IsolationError {
    let kind = match exit.reason {
        ExitReason::BootFailed => ErrorKind::Unavailable,
        _ => ErrorKind::Other,
    };
    let detail = clean(&exit.detail);
    IsolationError::new(kind, format!("the VM did not start up: {detail}"))
}

/// A guest's text that may be shown: short, and without what a terminal would obey.
pub fn clean(text: &str) -> String {
    let cut = text.floor_char_boundary(MAX_TEXT);
    text[..cut]
        .chars()
        .map(|c| {
            if c.is_control() && c != '\n' {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_texts_are_harmless() {
        assert_eq!(clean("a\x1b[2Jb\nc"), "a\u{fffd}[2Jb\nc");
        assert!(clean(&"ä".repeat(MAX_TEXT)).len() <= MAX_TEXT);
    }
}
