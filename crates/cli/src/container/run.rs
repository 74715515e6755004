//! The `run` command: create, attach, wait, start, and the container's exit code as ours.

use futures::future::LocalBoxFuture;

use super::create::{self, with_help};
use super::options::{GENERAL, NETWORK, RESOURCES, SECURITY, STORAGE};
use super::session::{self, Ended, Resized, Session, check_tty};
use super::signals::Forwarding;
use super::wait::Waiting;
use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult, EXIT_DAEMON};
use crate::flags::{Flag, Parsed};
use crate::output::{complain, emit_line};
use crate::terminal;

const OWN: &[Flag] = &[
    Flag::switch(
        "detach",
        "Run in the background and print the container's ID",
    )
    .short('d'),
    Flag::text("detach-keys", "Keys that detach from the container"),
    Flag::switch("sig-proxy", "Pass signals on to the container").default("true"),
];

/// The `run` command.
pub const RUN: Command = Command::new(
    "run",
    "[OPTIONS] IMAGE [COMMAND] [ARG...]",
    "Create a container and start it",
    Arity::AtLeast(1),
    run_run,
)
.flags(&[OWN, GENERAL, RESOURCES, SECURITY, NETWORK, STORAGE])
.options_first()
.common()
.spelled(&["bulkhead container run", "bulkhead run"]);

/// The exit code for a container that could not be run, from the daemon's explanation, as
/// the Docker CLI derives it: the API has no field for it.
fn failure_code(message: &str) -> i32 {
    let says = |words: &str| message.contains(words);
    if says("executable file not found")
        || says("no such file or directory")
        || says("system cannot find the file specified")
    {
        127
    } else if says("permission denied") || says("is a directory") {
        126
    } else {
        EXIT_DAEMON
    }
}

fn failed(error: CliError) -> CliError {
    if error.is_silent() {
        return error;
    }
    let message = error.to_string();
    let code = failure_code(&message);
    with_help("run", message, code)
}

fn run_run(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(run(ctx, parsed))
}

async fn run(ctx: Ctx, parsed: Parsed) -> CliResult {
    let detached = parsed.on("detach");
    let spec = create::spec_of(&parsed, "run", detached)?;
    if detached && !parsed.list("attach").is_empty() {
        return Err(CliError::msg(
            "conflicting options: cannot specify both --attach and --detach",
        ));
    }
    check_tty(spec.stdin, spec.tty)?;
    let (stdin, stdout, stderr, tty) = (spec.stdin, spec.stdout, spec.stderr, spec.tty);
    let auto_remove = spec.auto_remove;
    let attached = stdin || stdout || stderr;
    let keys = match parsed.given("detach-keys") {
        Some(keys) => keys.to_owned(),
        None if attached => ctx.config().detach_keys,
        None => String::new(),
    };
    let detach_keys = session::detach_keys(&keys)?;

    let id = create::create(&ctx, &parsed, spec).await.map_err(failed)?;
    let start = Request::post(&["containers", &id, "start"]);
    if !attached {
        emit_line(&id)?;
        return ctx.client().done(start).await.map_err(|e| failed(e.into()));
    }

    if parsed.on("sig-proxy") {
        Forwarding::catch(&ctx)?.send_to(&ctx, &id);
    }
    let connection = ctx
        .client()
        .hijack(
            Request::post(&["containers", &id, "attach"])
                .query("stream", "1")
                .query_if("stdin", stdin)
                .query_if("stdout", stdout)
                .query_if("stderr", stderr)
                .query_some("detachKeys", Some(&keys).filter(|k| !k.is_empty())),
        )
        .await?;
    let condition = if auto_remove { "removed" } else { "next-exit" };
    let waiting = Waiting::begin(&ctx, &id, condition).await;
    let session = Session {
        stdin,
        stdout,
        stderr,
        tty,
        detach_keys,
    };
    let mut session = session.spawn(connection);
    if let Err(error) = ctx.client().done(start).await {
        session.cancel().await;
        if auto_remove && let Ok(waiting) = waiting {
            // Its removal is part of the failure: nothing is left when this returns.
            let _ = waiting.code().await;
        }
        return Err(failed(error.into()));
    }
    if tty
        && terminal::stdout_is_terminal()
        && let Err(error) = session::follow_size(&ctx, Resized::Container(id), false).await
    {
        complain(format!("Error monitoring TTY size: {error}"));
    }
    let code = async {
        match waiting {
            Ok(waiting) => waiting.code_or_complain().await,
            Err(error) => {
                complain(format!("error waiting for container: {error}"));
                EXIT_DAEMON
            }
        }
    };
    tokio::pin!(code);
    let status = tokio::select! {
        biased;
        ended = session.ended() => match ended? {
            Ended::Detached => return Ok(()),
            Ended::Closed => code.await,
        },
        status = &mut code => {
            // The last output may still be on its way.
            if stdout || stderr {
                let _ = session.ended().await;
            }
            status
        }
    };
    if status == 0 {
        Ok(())
    } else {
        Err(CliError::Exit(status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_from_explanations() {
        assert_eq!(
            failure_code("exec: \"x\": executable file not found in $PATH: unknown"),
            127
        );
        assert_eq!(failure_code("stat /x: no such file or directory"), 127);
        assert_eq!(failure_code("exec: \"/\": permission denied: unknown"), 126);
        assert_eq!(failure_code("exec: \"/\": is a directory: unknown"), 126);
        assert_eq!(failure_code("no such image"), 125);
    }
}
