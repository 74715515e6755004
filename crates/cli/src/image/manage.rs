//! `tag`, `rmi`, `image inspect`, `image prune`.

use futures::future::LocalBoxFuture;
use serde_json::Value;

use super::reference::Reference;
use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::container::prune::{Pruned, ask, print_total};
use crate::error::{CliError, CliResult, join};
use crate::flags::{Flag, Kind, Parsed, quote};
use crate::output::{complain, emit_line};
use crate::system::filters;
use crate::system::inspect::{FORMAT_HELP, Inspector};

/// The `tag` command.
pub const TAG: Command = Command::new(
    "tag",
    "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]",
    "Give an image a further name",
    Arity::Exactly(2),
    run_tag,
)
.spelled(&["bulkhead image tag", "bulkhead tag"]);

fn run_tag(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let (source, target) = (&parsed.args[0], &parsed.args[1]);
        let wrong = |text: &str, why: &dyn std::fmt::Display| {
            CliError::msg(format!(
                "Error parsing reference: {} is not a valid repository/tag: {why}",
                quote(text)
            ))
        };
        Reference::parse(source).map_err(|e| wrong(source, &e))?;
        let reference = match Reference::parse(target) {
            Ok(named @ Reference::Named { .. }) => named.with_default_tag(),
            Ok(Reference::Id(_)) => return Err(wrong(target, &"invalid reference format")),
            Err(error) => return Err(wrong(target, &error)),
        };
        if reference.digest().is_some() {
            return Err(CliError::msg(
                "refusing to create a tag with a digest reference",
            ));
        }
        let request = Request::post(&["images", source, "tag"])
            .query("repo", reference.familiar_name())
            .query_some("tag", reference.tag());
        Ok(ctx.client().done(request).await?)
    })
}

const RMI_FLAGS: &[Flag] = &[
    Flag::switch("force", "Remove the image although it is used").short('f'),
    Flag::switch("no-prune", "Keep untagged parents"),
    Flag::list("platform", "Remove only this platform of the image"),
];

/// The `rmi` command.
pub const RMI: Command = Command::new(
    "rmi",
    "[OPTIONS] IMAGE [IMAGE...]",
    "Remove images",
    Arity::AtLeast(1),
    run_rmi,
)
.flags(&[RMI_FLAGS])
.spelled(&["bulkhead image rm", "bulkhead image remove", "bulkhead rmi"]);

fn run_rmi(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let force = parsed.on("force");
        let mut errors: Vec<CliError> = Vec::new();
        for name in &parsed.args {
            let request = Request::delete(&["images", name])
                .query_if("force", force)
                .query_if("noprune", parsed.on("no-prune"));
            let removed: Vec<Value> = match ctx.client().json(request).await {
                Ok(removed) => removed,
                Err(error) => {
                    errors.push(error.into());
                    continue;
                }
            };
            for item in removed {
                let text = |key: &str| item.get(key).and_then(Value::as_str);
                if let Some(deleted) = text("Deleted") {
                    emit_line(format!("Deleted: {deleted}"))?;
                } else if let Some(untagged) = text("Untagged") {
                    emit_line(format!("Untagged: {untagged}"))?;
                }
            }
        }
        // With --force what is not there is as wanted; anything else is a failure.
        if force && errors.iter().all(CliError::is_not_found) {
            errors.iter().for_each(complain);
            return Ok(());
        }
        join(errors)
    })
}

const INSPECT_FLAGS: &[Flag] = &[
    Flag::text("format", FORMAT_HELP).short('f'),
    Flag::text("platform", "Show this platform of the image"),
];

/// `image inspect`.
pub const INSPECT: Command = Command::new(
    "inspect",
    "[OPTIONS] IMAGE [IMAGE...]",
    "Show all details of images",
    Arity::AtLeast(1),
    run_inspect,
)
.flags(&[INSPECT_FLAGS]);

fn run_inspect(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let mut printer = Inspector::new(parsed.text("format"))?;
        for name in &parsed.args {
            let request = Request::get(&["images", name, "json"]);
            printer.add(ctx.client().json(request).await.map_err(CliError::from));
        }
        printer.finish()
    })
}

const PRUNE_FLAGS: &[Flag] = &[
    Flag::switch("all", "Remove every image that no container uses").short('a'),
    Flag::new(
        "filter",
        Kind::List("filter"),
        "Remove only what matches (NAME=VALUE)",
    )
    .check(filters::check),
    Flag::switch("force", "Do not ask").short('f'),
];

/// `image prune`.
pub const PRUNE: Command = Command::new(
    "prune",
    "[OPTIONS]",
    "Remove unused images",
    Arity::None,
    run_prune,
)
.flags(&[PRUNE_FLAGS]);

/// Prunes images; `all` takes those with names too.
pub async fn prune(ctx: &Ctx, filter: &[String], all: bool) -> CliResult<Pruned> {
    let mut filter = filter.to_vec();
    filter.push(format!("dangling={}", !all));
    let request =
        Request::post(&["images", "prune"]).query_some("filters", filters::encode(&filter));
    let answer: Value = ctx.client().json(request).await?;
    Ok(Pruned::from_answer(&answer, "ImagesDeleted"))
}

fn run_prune(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let all = parsed.on("all");
        let warning = if all {
            "WARNING! This will remove all images without at least one container associated to \
             them."
        } else {
            "WARNING! This will remove all dangling images."
        };
        ask(&parsed, warning)?;
        let pruned = prune(&ctx, parsed.list("filter"), all).await?;
        pruned.print("Deleted Images")?;
        print_total(pruned.space)
    })
}
