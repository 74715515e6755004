//! Passing this process's signals on to a container.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::client::Request;
use crate::command::Ctx;
use crate::error::{CliError, CliResult};

/// The signals that are passed on, with their names. SIGCHLD, SIGPIPE and SIGURG are this
/// process's own affair; SIGKILL and SIGSTOP cannot be caught; the faults must end it.
const FORWARDED: &[(i32, &str)] = &[
    (1, "HUP"),
    (2, "INT"),
    (3, "QUIT"),
    (10, "USR1"),
    (12, "USR2"),
    (14, "ALRM"),
    (15, "TERM"),
    (18, "CONT"),
    (24, "XCPU"),
    (25, "XFSZ"),
    (26, "VTALRM"),
    (27, "PROF"),
    (29, "IO"),
    (30, "PWR"),
];

/// Interrupts after which the user clearly wants this process to end at once.
const PATIENCE: u32 = 3;

/// The signals that this process gets from now on, kept until the container is there.
pub struct Forwarding {
    arrived: mpsc::UnboundedReceiver<&'static str>,
}

impl Forwarding {
    /// Starts to catch signals. SIGINT and SIGTERM no longer end the command.
    pub fn catch(ctx: &Ctx) -> CliResult<Self> {
        let (sender, arrived) = mpsc::unbounded_channel();
        for (number, name) in FORWARDED {
            let mut stream = signal(SignalKind::from_raw(*number))
                .map_err(|e| CliError::io("handle signals", e))?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() {
                    if sender.send(*name).is_err() {
                        return;
                    }
                }
            });
        }
        ctx.own_signals();
        Ok(Self { arrived })
    }

    /// Sends what arrived and what arrives to the container `id`, while the runtime lives.
    pub fn send_to(mut self, ctx: &Ctx, id: &str) {
        let (ctx, id) = (ctx.clone(), id.to_owned());
        tokio::task::spawn_local(async move {
            let mut interrupts = 0;
            while let Some(name) = self.arrived.recv().await {
                if matches!(name, "INT" | "TERM") {
                    interrupts += 1;
                    if interrupts >= PATIENCE {
                        crate::terminal::restore();
                        crate::output::complain(format!(
                            "\ngot {PATIENCE} SIGTERM/SIGINTs, forcefully exiting"
                        ));
                        std::process::exit(1);
                    }
                }
                let request = Request::post(&["containers", &id, "kill"]).query("signal", name);
                // The container may have ended meanwhile; its exit code says so.
                let _ = ctx.client().done(request).await;
            }
        });
    }
}
