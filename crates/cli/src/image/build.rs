//! `build`: the classic builder's request, with the context sent as a tar archive.

use std::io;
use std::path::Path;

use futures::future::LocalBoxFuture;
use serde_json::{Map, Value};

use super::progress::{self, Show};
use crate::client::Request;
use crate::command::{Arity, Command, Ctx};
use crate::container::files::go_error;
use crate::container::spec::to_map;
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Kind, Parsed};
use crate::output::emit_line;

const FLAGS: &[Flag] = &[
    Flag::list("build-arg", "Set a build-time variable"),
    Flag::text("file", "The Dockerfile (default: PATH/Dockerfile)").short('f'),
    Flag::switch(
        "force-rm",
        "Remove intermediate containers although the build fails",
    ),
    Flag::text("iidfile", "Write the image's ID to this file"),
    Flag::text(
        "isolation",
        "What separates the build's containers: process or hyperv",
    ),
    Flag::list("label", "Set a label on the image"),
    Flag::new(
        "memory",
        Kind::Bytes,
        "Memory limit of the build's containers",
    )
    .short('m'),
    Flag::text("network", "Network of the build's containers"),
    Flag::switch("no-cache", "Do everything anew"),
    Flag::text("platform", "Platform of the image"),
    Flag::switch("pull", "Fetch newer versions of the base images"),
    Flag::switch("quiet", "Print the image's ID only").short('q'),
    Flag::switch("rm", "Remove intermediate containers").default("true"),
    Flag::list("tag", "Name of the image").short('t'),
    Flag::text("target", "Build up to this stage"),
];

/// The `build` command.
pub const BUILD: Command = Command::new(
    "build",
    "[OPTIONS] PATH | -",
    "Make an image from a Dockerfile",
    Arity::Exactly(1),
    run_build,
)
.flags(&[FLAGS])
.common()
.spelled(&["bulkhead image build", "bulkhead build"]);

/// The name under which a Dockerfile from outside the context is sent.
const OUTSIDE: &str = ".dockerfile.bulkhead";

/// Writes the context. Devices and sockets are left out: they mean nothing elsewhere.
fn pack(root: &Path, outside: Option<&[u8]>, target: impl io::Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(target);
    archive.follow_symlinks(false);
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        let mut entries = std::fs::read_dir(&directory)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let (path, kind) = (entry.path(), entry.file_type()?);
            let name = path
                .strip_prefix(root)
                .map_err(io::Error::other)?
                .to_owned();
            if kind.is_dir() {
                archive.append_dir(&name, &path)?;
                pending.push(path);
            } else if kind.is_file() || kind.is_symlink() {
                archive.append_path_with_name(&path, &name)?;
            }
        }
    }
    if let Some(content) = outside {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(content.len()).unwrap_or(u64::MAX));
        header.set_mode(0o600);
        archive.append_data(&mut header, OUTSIDE, content)?;
    }
    archive.into_inner()?.flush()
}

fn run_build(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let context = parsed.args[0].as_str();
        let quiet = parsed.on("quiet");
        let (dockerfile, outside) = dockerfile(&parsed, context)?;
        let mut arguments = Map::new();
        for text in parsed.list("build-arg") {
            let (key, value) = match text.split_once('=') {
                Some((key, value)) => (key, Value::from(value)),
                None => (text.as_str(), std::env::var(text).ok().into()),
            };
            arguments.insert(key.to_owned(), value);
        }
        let mut request = Request::post(&["build"])
            .query("dockerfile", dockerfile)
            .query_if("nocache", parsed.on("no-cache"))
            .query_if("pull", parsed.on("pull"))
            .query_if("rm", parsed.on("rm"))
            .query_if("forcerm", parsed.on("force-rm"))
            .query_if("q", quiet)
            .query_some("memory", parsed.given("memory"))
            .query_some("networkmode", parsed.given("network"))
            .query_some("target", parsed.given("target"))
            .query_some("platform", parsed.given("platform"))
            .query_some("isolation", parsed.given("isolation"))
            .query("buildargs", Value::Object(arguments).to_string())
            .query(
                "labels",
                Value::Object(to_map(parsed.list("label"))).to_string(),
            );
        for tag in parsed.list("tag") {
            request = request.query("t", tag);
        }
        let mut id = String::new();
        let take = |aux: &Value| {
            if let Some(found) = aux.get("ID").and_then(Value::as_str) {
                id = found.to_owned();
            }
        };
        let show = if quiet { Show::Nothing } else { Show::Stdout };
        if context == "-" {
            let stream = ctx
                .client()
                .stream(request.upload(tokio::io::stdin()))
                .await?;
            progress::show(stream, show, take).await?;
        } else {
            let root = std::path::PathBuf::from(context);
            let (writer, reader) = tokio::io::duplex(256 << 10);
            let runtime = tokio::runtime::Handle::current();
            let packing = tokio::task::spawn_blocking(move || {
                let bridge = tokio_util::io::SyncIoBridge::new_with_handle(writer, runtime);
                pack(&root, outside.as_deref(), bridge)
            });
            let sent = ctx.client().stream(request.upload(reader)).await;
            let packed = packing.await.map_err(|e| CliError::msg(e.to_string()))?;
            let stream = sent?;
            packed.map_err(|e| CliError::io(context, e))?;
            progress::show(stream, show, take).await?;
        }
        if quiet {
            emit_line(&id)?;
        }
        if let Some(path) = parsed.given("iidfile") {
            std::fs::write(path, &id).map_err(|e| CliError::io(path, e))?;
        }
        Ok(())
    })
}

/// The Dockerfile's name in the context, and its content if it is not in there.
fn dockerfile(parsed: &Parsed, context: &str) -> CliResult<(String, Option<Vec<u8>>)> {
    let given = parsed.given("file");
    if context == "-" {
        return Ok((given.unwrap_or("Dockerfile").to_owned(), None));
    }
    let missing = |path: &str, e: &io::Error| {
        CliError::msg(format!(
            "unable to prepare context: {}",
            go_error(path, "lstat", e)
        ))
    };
    let root = Path::new(context)
        .canonicalize()
        .map_err(|e| missing(context, &e))?;
    if !root.is_dir() {
        return Err(CliError::msg(format!(
            "unable to prepare context: context must be a directory: {context}"
        )));
    }
    let Some(given) = given else {
        let default = root.join("Dockerfile");
        std::fs::symlink_metadata(&default).map_err(|e| missing(&default.to_string_lossy(), &e))?;
        return Ok(("Dockerfile".to_owned(), None));
    };
    let whole = Path::new(given)
        .canonicalize()
        .map_err(|e| missing(given, &e))?;
    match whole.strip_prefix(&root) {
        Ok(inside) => Ok((inside.to_string_lossy().into_owned(), None)),
        Err(_) => {
            let content = std::fs::read(&whole).map_err(|e| missing(given, &e))?;
            Ok((OUTSIDE.to_owned(), Some(content)))
        }
    }
}
