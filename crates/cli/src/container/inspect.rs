//! `container inspect`, `top`, and `diff`.

use futures::future::LocalBoxFuture;
use serde::Deserialize;
use serde_json::Value;

use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Parsed};
use crate::format::tabs::Tabs;
use crate::output::emit;
use crate::system::inspect::{self, FORMAT_HELP};

const FLAGS: &[Flag] = &[
    Flag::text("format", FORMAT_HELP).short('f'),
    Flag::switch("size", "Measure the container's files too").short('s'),
];

/// `container inspect`.
pub const INSPECT: Command = Command::new(
    "inspect",
    "[OPTIONS] CONTAINER [CONTAINER...]",
    "Show all details of containers",
    Arity::AtLeast(1),
    run_inspect,
)
.flags(&[FLAGS]);

fn run_inspect(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let mut printer = inspect::Inspector::new(parsed.text("format"))?;
        for name in &parsed.args {
            let request =
                Request::get(&["containers", name, "json"]).query_if("size", parsed.on("size"));
            printer.add(ctx.client().json(request).await.map_err(CliError::from));
        }
        printer.finish()
    })
}

/// The `top` command.
pub const TOP: Command = Command::new(
    "top",
    "CONTAINER [ps OPTIONS]",
    "Show the processes of a container",
    Arity::AtLeast(1),
    run_top,
)
.options_first()
.spelled(&["bulkhead container top", "bulkhead top"]);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Processes {
    titles: Vec<String>,
    processes: Option<Vec<Vec<String>>>,
}

fn run_top(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let (name, options) = (&parsed.args[0], &parsed.args[1..]);
        let request = Request::get(&["containers", name, "top"])
            .query_some("ps_args", (!options.is_empty()).then(|| options.join(" ")));
        let list: Processes = ctx.client().json(request).await?;
        let mut text = list.titles.join("\t");
        text.push('\n');
        for process in list.processes.unwrap_or_default() {
            text.push_str(&process.join("\t"));
            text.push('\n');
        }
        emit(
            Tabs {
                minimum: 20,
                padding: 3,
            }
            .align(&text),
        )
    })
}

/// The `diff` command.
pub const DIFF: Command = Command::new(
    "diff",
    "CONTAINER",
    "List the files that a container has changed",
    Arity::Exactly(1),
    run_diff,
)
.spelled(&["bulkhead container diff", "bulkhead diff"]);

fn run_diff(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let request = Request::get(&["containers", &parsed.args[0], "changes"]);
        let changes: Option<Vec<Value>> = ctx.client().json(request).await?;
        let mut text = String::new();
        for change in changes.unwrap_or_default() {
            let kind = match change.get("Kind").and_then(Value::as_i64) {
                Some(0) => 'C',
                Some(1) => 'A',
                _ => 'D',
            };
            let path = change
                .get("Path")
                .and_then(Value::as_str)
                .unwrap_or_default();
            text.push_str(&format!("{kind} {path}\n"));
        }
        emit(text)
    })
}
