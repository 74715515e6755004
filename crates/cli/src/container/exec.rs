//! The `exec` command.

use futures::future::LocalBoxFuture;
use serde_json::{Value, json};

use super::files::{BareKey, key_values};
use super::session::{self, Ended, Resized, Session, check_tty};
use super::values;
use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Parsed};
use crate::output::complain;
use crate::terminal;

const FLAGS: &[Flag] = &[
    Flag::switch("detach", "Run in the background").short('d'),
    Flag::text("detach-keys", "Keys that detach from the command"),
    Flag::list("env", "Set an environment variable")
        .short('e')
        .check(values::env),
    Flag::list(
        "env-file",
        "Set the environment variables that a file lists",
    ),
    Flag::switch("interactive", "Keep standard input open").short('i'),
    Flag::switch("privileged", "Give the command all privileges"),
    Flag::switch("tty", "Give the command a terminal").short('t'),
    Flag::text("user", "User and group: <name|uid>[:<group|gid>]").short('u'),
    Flag::text("workdir", "Working directory of the command").short('w'),
];

/// The `exec` command.
pub const EXEC: Command = Command::new(
    "exec",
    "[OPTIONS] CONTAINER COMMAND [ARG...]",
    "Run a command in a running container",
    Arity::AtLeast(2),
    run_exec,
)
.flags(&[FLAGS])
.options_first()
.common()
.spelled(&["bulkhead container exec", "bulkhead exec"]);

fn run_exec(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(exec(ctx, parsed))
}

async fn exec(ctx: Ctx, parsed: Parsed) -> CliResult {
    let name = &parsed.args[0];
    let env = key_values(
        parsed.list("env-file"),
        parsed.list("env"),
        BareKey::Environment,
    )
    .map_err(CliError::msg)?;
    let detached = parsed.on("detach");
    let tty = parsed.on("tty");
    let stdin = parsed.on("interactive") && !detached;
    let keys = match parsed.given("detach-keys") {
        Some(keys) => keys.to_owned(),
        None => ctx.config().detach_keys,
    };
    let detach_keys = session::detach_keys(&keys)?;
    if !detached && tty && stdin && !terminal::stdin_is_terminal() {
        // A container that does not exist is the more important thing to say.
        ctx.client().inspect_container(name).await?;
        check_tty(stdin, tty)?;
    }
    let size = if tty {
        json!([terminal::size().0, terminal::size().1])
    } else {
        Value::Null
    };
    let body = json!({
        "User": parsed.text("user"),
        "Privileged": parsed.on("privileged"),
        "Tty": tty,
        "ConsoleSize": size,
        "AttachStdin": stdin,
        "AttachStderr": !detached,
        "AttachStdout": !detached,
        "DetachKeys": keys,
        "Env": env,
        "WorkingDir": parsed.text("workdir"),
        "Cmd": &parsed.args[1..],
    });
    let created: Value = ctx
        .client()
        .json(Request::post(&["containers", name, "exec"]).json(&body))
        .await?;
    let id = match created.get("Id").and_then(Value::as_str) {
        Some(id) if !id.is_empty() => id.to_owned(),
        _ => return Err(CliError::msg("exec ID empty")),
    };
    let start = Request::post(&["exec", &id, "start"])
        .json(&json!({"Detach": detached, "Tty": tty, "ConsoleSize": size}));
    if detached {
        return Ok(ctx.client().done(start).await?);
    }
    let connection = ctx.client().hijack(start).await?;
    if tty
        && terminal::stdin_is_terminal()
        && let Err(error) = session::follow_size(&ctx, Resized::Exec(id.clone()), false).await
    {
        complain(format!("Error monitoring TTY size: {error}"));
    }
    let session = Session {
        stdin,
        stdout: true,
        stderr: true,
        tty,
        detach_keys,
    };
    if session.run(connection).await? == Ended::Detached {
        return Err(CliError::msg("read escape sequence"));
    }
    let ended: Value = match ctx
        .client()
        .json(Request::get(&["exec", &id, "json"]))
        .await
    {
        Ok(ended) => ended,
        // The daemon has gone, and the exit code with it.
        Err(error) if error.is_unreachable() => return Err(CliError::Exit(255)),
        Err(error) => return Err(error.into()),
    };
    match ended
        .get("ExitCode")
        .and_then(Value::as_i64)
        .unwrap_or_default()
    {
        0 => Ok(()),
        code => Err(CliError::Exit(i32::try_from(code).unwrap_or(255))),
    }
}
