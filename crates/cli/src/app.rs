//! The life of one invocation: arguments in, exit code out.

use std::future::pending;

use tokio::signal::unix::{SignalKind, signal};

use crate::command::Ctx;
use crate::dispatch::{self, Invocation};
use crate::error::{CliError, CliResult};
use crate::{output, terminal};

/// Runs a client command and returns the exit code. The caller must end the process with it:
/// a thread that reads standard input may still be blocked.
pub fn main(args: &[String]) -> i32 {
    let result = run(args);
    terminal::restore();
    match result {
        Ok(()) => 0,
        Err(error) => {
            if !error.is_silent() {
                output::complain(&error);
            }
            error.exit_code()
        }
    }
}

fn run(args: &[String]) -> CliResult {
    let Some(Invocation {
        command,
        parsed,
        ctx,
    }) = dispatch::resolve(args)?
    else {
        return Ok(());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::io("start the runtime", e))?;
    let local = tokio::task::LocalSet::new();
    let result = local.block_on(&runtime, async {
        let run = command(ctx.clone(), parsed);
        tokio::select! {
            biased;
            result = run => result,
            code = terminated(&ctx) => Err(CliError::Exit(code)),
        }
    });
    // Reads of standard input cannot be cancelled; the process ends without them.
    runtime.shutdown_background();
    result
}

/// Waits for SIGINT or SIGTERM, unless the command handles them; gives the exit code.
async fn terminated(ctx: &Ctx) -> i32 {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return pending().await;
    };
    loop {
        let code = tokio::select! {
            _ = interrupt.recv() => 130,
            _ = terminate.recv() => 143,
        };
        if !ctx.owns_signals() {
            return code;
        }
    }
}
