//! A process in the guest.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bulkhead_agent_protocol::{
    Kill, Resize, StandardStream, Start, Stdio as StdioRequest, Stream, Wait,
};
use bulkhead_isolation::{
    ErrorKind, ExitStatus, IsolationError, Process, Result, Stdio, TerminalSize,
};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::vm::{Vm, clean};

const SIGKILL: i32 = 9;

/// How long a SIGKILL for the container's init may take to be answered; a guest that does
/// not do even this is ended from outside.
const KILL_DEADLINE: Duration = Duration::from_secs(20);

/// For an exit that the agent reported before the machine ended to be read.
const LAST_REPLY_DEADLINE: Duration = Duration::from_secs(2);

/// The exit code of a process that was lost with its machine.
const LOST: u32 = 137;

/// Which of its streams a process has.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub stdin: bool,
    pub terminal: bool,
}

/// See the module.
pub struct VmProcess {
    vm: Arc<Vm>,
    /// The agent's name for it; empty for the container's init.
    name: String,
    pid: Option<u32>,
    terminal: bool,
    stdio: Mutex<Stdio>,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl VmProcess {
    /// Takes up a process that the agent has just created: its streams, and the wait for
    /// its exit.
    ///
    /// # Errors
    /// That the agent does not hand over its streams.
    pub async fn attach(
        vm: Arc<Vm>,
        name: String,
        pid: Option<u32>,
        wanted: Wanted,
    ) -> Result<Arc<Self>> {
        let open = |stream: StandardStream, wanted: bool| {
            let request = StdioRequest {
                process: name.clone(),
                stream,
            };
            let vm = &vm;
            async move {
                if !wanted {
                    return Ok(None);
                }
                let ((), stream) = vm.request(request).await?;
                Result::<Option<Stream>>::Ok(Some(stream))
            }
        };
        let (stdin, stdout, stderr) = tokio::try_join!(
            open(StandardStream::Stdin, wanted.stdin),
            open(StandardStream::Stdout, true),
            open(StandardStream::Stderr, !wanted.terminal),
        )?;
        let stdio = Stdio {
            stdin: stdin.map(|stream| Box::pin(stream) as _),
            stdout: stdout.map(|stream| Box::pin(stream) as _),
            stderr: stderr.map(|stream| Box::pin(stream) as _),
        };
        let (sender, exit) = watch::channel(None);
        tokio::spawn({
            let vm = Arc::clone(&vm);
            let name = name.clone();
            async move {
                sender.send_replace(Some(follow(&vm, name).await));
            }
        });
        Ok(Arc::new(Self {
            vm,
            name,
            pid,
            terminal: wanted.terminal,
            stdio: Mutex::new(stdio),
            exit,
        }))
    }

    fn check_running(&self) -> Result<()> {
        if self.exit.borrow().is_some() {
            return Err(IsolationError::new(
                ErrorKind::NotFound,
                "the process has exited",
            ));
        }
        Ok(())
    }
}

/// Waits for a process's exit, whatever becomes of the machine.
async fn follow(vm: &Vm, name: String) -> ExitStatus {
    let reply = vm.call_patiently(Wait { process: name });
    tokio::pin!(reply);
    let reply = tokio::select! {
        biased;
        reply = &mut reply => reply,
        ended = vm.end() => {
            // The agent's last words may still be on their way through our own buffers.
            match timeout(LAST_REPLY_DEADLINE, &mut reply).await {
                Ok(Ok(status)) => Ok(status),
                _ => Err(IsolationError::new(ErrorKind::FailedPrecondition, ended)),
            }
        }
    };
    // The guest's clock is the guest's business.
    let at = jiff::Timestamp::now();
    match reply {
        Ok(status) => ExitStatus {
            code: status.code.min(255),
            at,
            oom_killed: status.oom_killed,
            failure: status.failure.as_deref().map(clean),
        },
        Err(error) => ExitStatus {
            code: LOST,
            at,
            oom_killed: false,
            failure: Some(error.message),
        },
    }
}

#[async_trait]
impl Process for VmProcess {
    fn pid(&self) -> Option<u32> {
        self.pid
    }

    fn take_stdio(&self) -> Stdio {
        // Nothing that could panic happens under this lock.
        let mut stdio = self.stdio.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *stdio)
    }

    async fn start(&self) -> Result<()> {
        self.vm
            .call(Start {
                process: self.name.clone(),
            })
            .await
    }

    async fn kill(&self, signal: i32) -> Result<()> {
        self.check_running()?;
        let call = self.vm.call(Kill {
            process: self.name.clone(),
            signal,
        });
        let killed = if signal == SIGKILL && self.name.is_empty() {
            match timeout(KILL_DEADLINE, call).await {
                Ok(Err(error)) if error.kind == ErrorKind::Unavailable => None,
                Ok(killed) => Some(killed),
                Err(_) => None,
            }
        } else {
            Some(call.await)
        };
        match killed {
            // It went away in the meantime.
            Some(Err(error)) if error.kind == ErrorKind::FailedPrecondition => {
                Err(IsolationError::new(ErrorKind::NotFound, error.message))
            }
            Some(killed) => killed,
            None => {
                tracing::warn!("the guest does not react to SIGKILL, so the VM is killed");
                self.vm.kill().await;
                Ok(())
            }
        }
    }

    async fn resize(&self, size: TerminalSize) -> Result<()> {
        if !self.terminal {
            return Ok(());
        }
        self.vm
            .call(Resize {
                process: self.name.clone(),
                size,
            })
            .await
    }

    async fn wait(&self) -> ExitStatus {
        let mut exit = self.exit.clone();
        let status = exit
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|status| status.clone());
        status.unwrap_or_else(|| ExitStatus {
            code: LOST,
            at: jiff::Timestamp::now(),
            oom_killed: false,
            failure: Some("nobody waits for the process any more".to_owned()),
        })
    }
}
