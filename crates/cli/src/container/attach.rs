//! The `attach` command.

use futures::future::LocalBoxFuture;
use serde_json::Value;

use super::session::{self, Ended, Resized, Session, check_tty};
use super::signals::Forwarding;
use super::start::truth;
use super::wait::Waiting;
use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Parsed};
use crate::terminal;

const FLAGS: &[Flag] = &[
    Flag::text("detach-keys", "Keys that detach from the container"),
    Flag::switch("no-stdin", "Do not attach standard input"),
    Flag::switch("sig-proxy", "Pass signals on to the container").default("true"),
];

/// The `attach` command.
pub const ATTACH: Command = Command::new(
    "attach",
    "[OPTIONS] CONTAINER",
    "Connect to a running container's standard streams",
    Arity::Exactly(1),
    run_attach,
)
.flags(&[FLAGS])
.spelled(&["bulkhead container attach", "bulkhead attach"]);

fn check_state(details: &Value) -> CliResult {
    let refuse = |why: &str| Err(CliError::msg(format!("You cannot attach to a {why}")));
    if !truth(details, "/State/Running") {
        return refuse("stopped container, start it first");
    }
    if truth(details, "/State/Paused") {
        return refuse("paused container, unpause it first");
    }
    if truth(details, "/State/Restarting") {
        return refuse("restarting container, wait until it is running");
    }
    Ok(())
}

fn run_attach(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let name = &parsed.args[0];
        let waiting = Waiting::begin(&ctx, name, "").await?;
        let details = ctx.client().inspect_container(name).await?;
        check_state(&details)?;
        let tty = truth(&details, "/Config/Tty");
        let no_stdin = parsed.on("no-stdin");
        check_tty(!no_stdin, tty)?;
        let keys = match parsed.given("detach-keys") {
            Some(keys) => keys.to_owned(),
            None => ctx.config().detach_keys,
        };
        let session = Session {
            stdin: !no_stdin && truth(&details, "/Config/OpenStdin"),
            stdout: true,
            stderr: true,
            tty,
            detach_keys: session::detach_keys(&keys)?,
        };
        if parsed.on("sig-proxy") && !tty {
            Forwarding::catch(&ctx)?.send_to(&ctx, name);
        }
        let request = Request::post(&["containers", name, "attach"])
            .query("stream", "1")
            .query_if("stdin", session.stdin)
            .query("stdout", "1")
            .query("stderr", "1")
            .query_some("detachKeys", Some(&keys).filter(|k| !k.is_empty()));
        let connection = ctx.client().hijack(request).await?;
        // It may have ended between the two requests: then no stream would ever end.
        check_state(&ctx.client().inspect_container(name).await?)?;
        if tty && terminal::stdout_is_terminal() {
            session::follow_size(&ctx, Resized::Container(name.clone()), true).await?;
        }
        if session.run(connection).await? == Ended::Detached {
            return Err(CliError::msg("read escape sequence"));
        }
        match waiting.code().await? {
            0 => Ok(()),
            code => Err(CliError::Exit(code)),
        }
    })
}
