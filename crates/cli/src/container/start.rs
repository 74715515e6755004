//! The `start` command.

use futures::future::LocalBoxFuture;
use serde_json::Value;

use super::session::{self, Ended, Resized, Session};
use super::signals::Forwarding;
use super::wait::Waiting;
use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Parsed};
use crate::output::{complain, emit_line};
use crate::terminal;

const FLAGS: &[Flag] = &[
    Flag::switch("attach", "Show the container's output and pass signals on").short('a'),
    Flag::text("checkpoint", "Not supported").hidden(),
    Flag::text("checkpoint-dir", "Not supported").hidden(),
    Flag::text("detach-keys", "Keys that detach from the container"),
    Flag::switch("interactive", "Attach standard input").short('i'),
];

/// The `start` command.
pub const START: Command = Command::new(
    "start",
    "[OPTIONS] CONTAINER [CONTAINER...]",
    "Start stopped containers",
    Arity::AtLeast(1),
    run_start,
)
.flags(&[FLAGS])
.spelled(&["bulkhead container start", "bulkhead start"]);

/// A boolean somewhere in an answer.
pub fn truth(details: &Value, pointer: &str) -> bool {
    details
        .pointer(pointer)
        .and_then(Value::as_bool)
        .unwrap_or_default()
}

/// A text somewhere in an answer.
pub fn text<'a>(details: &'a Value, pointer: &str) -> &'a str {
    details
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn run_start(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        if parsed.given("checkpoint").is_some() || parsed.given("checkpoint-dir").is_some() {
            return Err(CliError::msg("checkpoints are not supported"));
        }
        if parsed.on("attach") || parsed.on("interactive") {
            return start_attached(&ctx, &parsed).await;
        }
        let mut failed = Vec::new();
        for name in &parsed.args {
            match ctx
                .client()
                .done(Request::post(&["containers", name, "start"]))
                .await
            {
                Ok(()) => emit_line(name)?,
                Err(error) => {
                    complain(error);
                    failed.push(name.as_str());
                }
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        Err(CliError::msg(format!(
            "Error: failed to start containers: {}",
            failed.join(", ")
        )))
    })
}

async fn start_attached(ctx: &Ctx, parsed: &Parsed) -> CliResult {
    let [name] = parsed.args.as_slice() else {
        return Err(CliError::msg(
            "you cannot start and attach multiple containers at once",
        ));
    };
    let details = ctx.client().inspect_container(name).await?;
    let id = text(&details, "/Id").to_owned();
    let tty = truth(&details, "/Config/Tty");
    let auto_remove = truth(&details, "/HostConfig/AutoRemove");
    let keys = match parsed.given("detach-keys") {
        Some(keys) => keys.to_owned(),
        None => ctx.config().detach_keys,
    };
    let session = Session {
        stdin: parsed.on("interactive") && truth(&details, "/Config/OpenStdin"),
        stdout: true,
        stderr: true,
        tty,
        detach_keys: session::detach_keys(&keys)?,
    };
    if !tty {
        Forwarding::catch(ctx)?.send_to(ctx, &id);
    }
    let request = Request::post(&["containers", &id, "attach"])
        .query("stream", "1")
        .query_if("stdin", session.stdin)
        .query("stdout", "1")
        .query("stderr", "1")
        .query_some("detachKeys", Some(&keys).filter(|k| !k.is_empty()));
    let connection = ctx.client().hijack(request).await?;
    let condition = if auto_remove { "removed" } else { "next-exit" };
    let waiting = Waiting::begin(ctx, &id, condition).await?;
    let mut session = session.spawn(connection);
    let started = ctx
        .client()
        .done(Request::post(&["containers", &id, "start"]))
        .await;
    if let Err(error) = started {
        session.cancel().await;
        if auto_remove {
            let _ = waiting.code().await;
        }
        return Err(error.into());
    }
    if tty
        && terminal::stdout_is_terminal()
        && let Err(error) = session::follow_size(ctx, Resized::Container(id), false).await
    {
        complain(format!("Error monitoring TTY size: {error}"));
    }
    if session.ended().await? == Ended::Detached {
        return Ok(());
    }
    match waiting.code_or_complain().await {
        0 => Ok(()),
        code => Err(CliError::Exit(code)),
    }
}
