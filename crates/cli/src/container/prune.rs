//! `container prune`, and what all the prune commands share.

use futures::future::LocalBoxFuture;
use serde_json::Value;

use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Kind, Parsed};
use crate::format::units;
use crate::output::{confirm, emit};
use crate::system::filters;

/// Flags of the prune commands.
pub const FLAGS: &[Flag] = &[
    Flag::new(
        "filter",
        Kind::List("filter"),
        "Remove only what matches (NAME=VALUE)",
    )
    .check(filters::check),
    Flag::switch("force", "Do not ask").short('f'),
];

/// `container prune`.
pub const PRUNE: Command = Command::new(
    "prune",
    "[OPTIONS]",
    "Remove all stopped containers",
    Arity::None,
    run_prune,
)
.flags(&[FLAGS]);

/// What the user gets to read before a prune, or nothing to prune if it is refused.
pub fn ask(parsed: &Parsed, warning: &str) -> CliResult {
    if parsed.on("force") || confirm(&format!("{warning}\nAre you sure you want to continue?"))? {
        return Ok(());
    }
    // Declining is no failure.
    Err(CliError::Exit(0))
}

/// What a prune removed, and the bytes that freed.
#[derive(Default)]
pub struct Pruned {
    /// Lines to show.
    pub lines: Vec<String>,
    /// Bytes.
    pub space: u64,
}

impl Pruned {
    /// Reads an answer whose list of removed things is `key`.
    pub fn from_answer(answer: &Value, key: &str) -> Self {
        let lines = answer
            .get(key)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|item| match item {
                Value::String(name) => Some(name.clone()),
                Value::Object(image) => {
                    let text = |k: &str| image.get(k).and_then(Value::as_str);
                    let untagged = text("Untagged").map(|t| format!("untagged: {t}"));
                    untagged.or_else(|| text("Deleted").map(|t| format!("deleted: {t}")))
                }
                _ => None,
            })
            .collect();
        let space = answer
            .get("SpaceReclaimed")
            .and_then(Value::as_u64)
            .unwrap_or(0);
        Self { lines, space }
    }

    /// Prints it under `title`.
    pub fn print(&self, title: &str) -> CliResult {
        if self.lines.is_empty() {
            return Ok(());
        }
        emit(format!("{title}:\n{}\n\n", self.lines.join("\n")))
    }
}

/// The closing line of a prune.
pub fn print_total(space: u64) -> CliResult {
    emit(format!(
        "Total reclaimed space: {}\n",
        units::size4(units::float_u(space))
    ))
}

/// Prunes containers.
pub async fn containers(ctx: &Ctx, filter: &[String]) -> CliResult<Pruned> {
    let request =
        Request::post(&["containers", "prune"]).query_some("filters", filters::encode(filter));
    let answer: Value = ctx.client().json(request).await?;
    Ok(Pruned::from_answer(&answer, "ContainersDeleted"))
}

fn run_prune(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        ask(&parsed, "WARNING! This will remove all stopped containers.")?;
        let pruned = containers(&ctx, parsed.list("filter")).await?;
        pruned.print("Deleted Containers")?;
        print_total(pruned.space)
    })
}
