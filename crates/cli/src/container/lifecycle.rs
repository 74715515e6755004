//! Commands that change the state of several containers in turn: stop, kill, restart, rm,
//! pause, unpause, rename.

use futures::StreamExt;
use futures::future::LocalBoxFuture;
use futures::stream;

use crate::client::{ClientError, Request};
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult, join};
use crate::flags::{Flag, Parsed};
use crate::output::{complain, emit_line};

/// Requests that are under way at once.
const PARALLEL: usize = 50;

const STOP_FLAGS: &[Flag] = &[
    Flag::text("signal", "Signal to send").short('s'),
    Flag::int("time", "").alias_of("timeout"),
    Flag::int("timeout", "Seconds to wait before the container is killed").short('t'),
];

const KILL_FLAGS: &[Flag] = &[Flag::text("signal", "Signal to send").short('s')];

const RM_FLAGS: &[Flag] = &[
    Flag::switch("force", "Kill a container that is running").short('f'),
    Flag::switch("link", "Remove the link instead of the container").short('l'),
    Flag::switch("volumes", "Remove the container's anonymous volumes too").short('v'),
];

const MANY: &str = "[OPTIONS] CONTAINER [CONTAINER...]";

/// The `stop` command.
pub const STOP: Command = Command::new(
    "stop",
    MANY,
    "Stop running containers",
    Arity::AtLeast(1),
    run_stop,
)
.flags(&[STOP_FLAGS])
.spelled(&["bulkhead container stop", "bulkhead stop"]);

/// The `restart` command.
pub const RESTART: Command = Command::new(
    "restart",
    MANY,
    "Restart containers",
    Arity::AtLeast(1),
    run_restart,
)
.flags(&[STOP_FLAGS])
.spelled(&["bulkhead container restart", "bulkhead restart"]);

/// The `kill` command.
pub const KILL: Command = Command::new(
    "kill",
    MANY,
    "Send a signal to running containers",
    Arity::AtLeast(1),
    run_kill,
)
.flags(&[KILL_FLAGS])
.spelled(&["bulkhead container kill", "bulkhead kill"]);

/// The `rm` command.
pub const RM: Command = Command::new("rm", MANY, "Remove containers", Arity::AtLeast(1), run_rm)
    .flags(&[RM_FLAGS])
    .spelled(&[
        "bulkhead container rm",
        "bulkhead container remove",
        "bulkhead rm",
    ]);

/// The `pause` command.
pub const PAUSE: Command = Command::new(
    "pause",
    "CONTAINER [CONTAINER...]",
    "Freeze all processes of containers",
    Arity::AtLeast(1),
    run_pause,
)
.spelled(&["bulkhead container pause", "bulkhead pause"]);

/// The `unpause` command.
pub const UNPAUSE: Command = Command::new(
    "unpause",
    "CONTAINER [CONTAINER...]",
    "Let frozen containers go on",
    Arity::AtLeast(1),
    run_unpause,
)
.spelled(&["bulkhead container unpause", "bulkhead unpause"]);

/// The `rename` command.
pub const RENAME: Command = Command::new(
    "rename",
    "CONTAINER NEW_NAME",
    "Rename a container",
    Arity::Exactly(2),
    run_rename,
)
.spelled(&["bulkhead container rename", "bulkhead rename"]);

/// Sends a request for every name, several at a time; prints the names that worked in the
/// order in which they were given.
async fn for_each(
    ctx: &Ctx,
    names: &[String],
    request: impl Fn(&str) -> Request,
    tolerate: impl Fn(&ClientError) -> bool,
) -> CliResult {
    let requests = names.iter().map(|name| {
        let request = request(name);
        async move { (name, ctx.client().done(request).await) }
    });
    let mut answers = stream::iter(requests).buffered(PARALLEL);
    let mut errors = Vec::new();
    while let Some((name, answer)) = answers.next().await {
        match answer {
            Ok(()) => emit_line(name)?,
            Err(error) if tolerate(&error) => complain(error),
            Err(error) => errors.push(error.into()),
        }
    }
    join(errors)
}

fn never(_: &ClientError) -> bool {
    false
}

fn stopping(parsed: &Parsed, verb: &'static str) -> impl Fn(&str) -> Request {
    let signal = parsed.given("signal").map(str::to_owned);
    let timeout = parsed
        .changed("timeout")
        .then(|| parsed.int("timeout").to_string());
    move |name| {
        Request::post(&["containers", name, verb])
            .query_some("signal", signal.as_ref())
            .query_some("t", timeout.as_ref())
    }
}

fn note_time_flag(parsed: &Parsed) {
    if parsed.spelled("time") {
        complain("Flag --time has been deprecated, use --timeout instead");
    }
}

fn run_stop(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        note_time_flag(&parsed);
        for_each(&ctx, &parsed.args, stopping(&parsed, "stop"), never).await
    })
}

fn run_restart(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        note_time_flag(&parsed);
        for_each(&ctx, &parsed.args, stopping(&parsed, "restart"), never).await
    })
}

fn run_kill(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let signal = parsed.given("signal");
        let request =
            |name: &str| Request::post(&["containers", name, "kill"]).query_some("signal", signal);
        for_each(&ctx, &parsed.args, request, never).await
    })
}

fn run_rm(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        if parsed.args.iter().any(|a| a.trim_matches('/').is_empty()) {
            return Err(CliError::msg("container name cannot be empty"));
        }
        let force = parsed.on("force");
        let request = |name: &str| {
            Request::delete(&["containers", name.trim_matches('/')])
                .query_if("v", parsed.on("volumes"))
                .query_if("link", parsed.on("link"))
                .query_if("force", force)
        };
        let gone = |e: &ClientError| force && matches!(e, ClientError::Api { status: 404, .. });
        for_each(&ctx, &parsed.args, request, gone).await
    })
}

fn run_pause(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let request = |name: &str| Request::post(&["containers", name, "pause"]);
        for_each(&ctx, &parsed.args, request, never).await
    })
}

fn run_unpause(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let request = |name: &str| Request::post(&["containers", name, "unpause"]);
        for_each(&ctx, &parsed.args, request, never).await
    })
}

fn run_rename(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let (old, new) = (parsed.args[0].trim(), parsed.args[1].trim());
        if old.is_empty() || new.is_empty() {
            return Err(CliError::msg(
                "Error: Neither old nor new names may be empty",
            ));
        }
        let request = Request::post(&["containers", old, "rename"]).query("name", new);
        match ctx.client().done(request).await {
            Ok(()) => Ok(()),
            Err(error) => {
                complain(error);
                Err(CliError::msg(format!(
                    "Error: failed to rename container named {old}"
                )))
            }
        }
    })
}
