//! Images as archives: `import`, `load`, `save`.

use std::io::IsTerminal;

use futures::future::LocalBoxFuture;
use serde_json::Value;

use super::progress::{self, Show};
use super::reference::Reference;
use crate::client::{BodyStream, JsonStream, Request};
use crate::command::{Arity, Command, Ctx};
use crate::container::copy::Output;
use crate::container::files::go_error;
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Parsed};
use crate::output::emit;

const IMPORT_FLAGS: &[Flag] = &[
    Flag::list("change", "Apply a Dockerfile instruction to the image").short('c'),
    Flag::text("message", "Message for the image's history").short('m'),
    Flag::text("platform", "Platform of the image"),
];

/// The `import` command.
pub const IMPORT: Command = Command::new(
    "import",
    "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
    "Make an image of a root filesystem in a tar archive",
    Arity::AtLeast(1),
    run_import,
)
.flags(&[IMPORT_FLAGS])
.spelled(&["bulkhead image import", "bulkhead import"]);

async fn open(path: &str) -> CliResult<tokio::fs::File> {
    tokio::fs::File::open(path)
        .await
        .map_err(|e| CliError::msg(go_error(path, "open", &e)))
}

fn run_import(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let source = parsed.args[0].as_str();
        let name = parsed.args.get(1).map(String::as_str).unwrap_or_default();
        if !name.is_empty() {
            Reference::parse(name).map_err(|e| CliError::msg(e.to_string()))?;
        }
        let remote = ["http://", "https://", "ftp://"]
            .iter()
            .any(|p| source.starts_with(p));
        let mut request = Request::post(&["images", "create"])
            .query("fromSrc", if remote { source } else { "-" })
            .query("repo", name)
            .query_some("message", parsed.given("message"))
            .query_some("platform", parsed.given("platform"));
        for change in parsed.list("change") {
            request = request.query("changes", change);
        }
        let request = match source {
            "-" => request.upload(tokio::io::stdin()),
            _ if remote => request,
            path => request.upload(open(path).await?),
        };
        let stream = ctx.client().stream(request).await?;
        progress::show(stream, Show::Stdout, |_| {}).await
    })
}

const LOAD_FLAGS: &[Flag] = &[
    Flag::text("input", "Read this file instead of standard input").short('i'),
    Flag::text("platform", "Load only this platform of the images"),
    Flag::switch("quiet", "Do not show progress").short('q'),
];

/// The `load` command.
pub const LOAD: Command = Command::new(
    "load",
    "[OPTIONS]",
    "Load images from a tar archive",
    Arity::None,
    run_load,
)
.flags(&[LOAD_FLAGS])
.spelled(&["bulkhead image load", "bulkhead load"]);

fn run_load(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let quiet = parsed.on("quiet") || !std::io::stdout().is_terminal();
        let request = Request::post(&["images", "load"])
            .query("quiet", if quiet { "1" } else { "0" })
            .query_some("platform", platform(parsed.given("platform")));
        let request = match parsed.given("input") {
            Some(path) => request.upload(open(path).await?),
            None if std::io::stdin().is_terminal() => {
                return Err(CliError::msg(
                    "requested load from stdin, but stdin is empty",
                ));
            }
            None => request.upload(tokio::io::stdin()),
        };
        let response = ctx.client().send(request).await?;
        let json = response
            .headers()
            .get(hyper::header::CONTENT_TYPE)
            .is_some_and(|t| t.as_bytes().starts_with(b"application/json"));
        if json {
            return progress::show(JsonStream::new(response), Show::Stdout, |_| {}).await;
        }
        let mut body = BodyStream::new(response);
        while let Some(bytes) = body.next().await? {
            emit(&bytes)?;
        }
        Ok(())
    })
}

/// `os/architecture[/variant]` as the API's JSON.
fn platform(text: Option<&str>) -> Option<String> {
    let mut parts = text?.split('/');
    let os = parts.next().unwrap_or_default();
    let architecture = parts.next().unwrap_or_default();
    let mut value = serde_json::json!({"os": os, "architecture": architecture});
    if let Some(variant) = parts.next() {
        value["variant"] = Value::from(variant);
    }
    Some(value.to_string())
}

const SAVE_FLAGS: &[Flag] = &[
    Flag::text("output", "Write to this file instead of standard output").short('o'),
    Flag::text("platform", "Save only this platform of the images"),
];

/// The `save` command.
pub const SAVE: Command = Command::new(
    "save",
    "[OPTIONS] IMAGE [IMAGE...]",
    "Write images to a tar archive",
    Arity::AtLeast(1),
    run_save,
)
.flags(&[SAVE_FLAGS])
.spelled(&["bulkhead image save", "bulkhead save"]);

fn run_save(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let output = Output::choose(parsed.given("output"), "image")?;
        let mut request = Request::get(&["images", "get"]);
        for name in &parsed.args {
            request = request.query("names", name);
        }
        let request = request.query_some("platform", platform(parsed.given("platform")));
        let response = ctx.client().send(request).await?;
        output.fill(BodyStream::new(response)).await
    })
}
