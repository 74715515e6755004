//! `build`: the classic builder's request, with the context sent as a tar archive.

mod context;
mod secrets;

use futures::future::LocalBoxFuture;
use hyper::header::HeaderName;
use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt as _;

use self::context::Context;
use super::progress::{self, Show};
use crate::client::{JsonStream, Request};
use crate::command::{Arity, Command, Ctx};
use crate::container::spec::to_map;
use crate::container::values;
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Kind, Parsed};
use crate::output::emit_line;
use crate::registry;

/// The header with credentials for all registries.
const REGISTRIES: HeaderName = HeaderName::from_static("x-registry-config");

const FLAGS: &[Flag] = &[
    Flag::list("add-host", "Add a name to /etc/hosts (HOST:IP)"),
    Flag::list("build-arg", "Set a build-time variable"),
    Flag::list("cache-from", "Images whose steps count as done"),
    Flag::text("cgroup-parent", "Parent cgroup of the build's containers"),
    Flag::int("cpu-period", "CFS period of the build's containers"),
    Flag::int("cpu-quota", "CFS quota of the build's containers"),
    Flag::int("cpu-shares", "CPU weight of the build's containers").short('c'),
    Flag::text("cpuset-cpus", "CPUs of the build's containers (0-3, 0,1)"),
    Flag::text("cpuset-mems", "Memory nodes of the build's containers"),
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
    Flag::new(
        "memory-swap",
        Kind::SwapBytes,
        "Memory and swap limit of the build's containers",
    ),
    Flag::text("network", "Network of the build's containers"),
    Flag::switch("no-cache", "Do everything anew"),
    Flag::text("platform", "Platform of the image"),
    Flag::switch("pull", "Fetch newer versions of the base images"),
    Flag::switch("quiet", "Print the image's ID only").short('q'),
    Flag::switch("rm", "Remove intermediate containers").default("true"),
    Flag::list(
        "secret",
        "What commands may read and the image has not (id=NAME,src=FILE or id=NAME,env=VARIABLE)",
    )
    .check(secrets::check),
    Flag::new(
        "shm-size",
        Kind::Bytes,
        "Size of /dev/shm of the build's containers",
    ),
    // The daemon says why it has not these.
    Flag::list("security-opt", "Not supported").hidden(),
    Flag::switch("squash", "Not supported").hidden(),
    Flag::list("tag", "Name of the image").short('t'),
    Flag::text("target", "Build up to this stage"),
    Flag::list("ulimit", "Set a resource limit (NAME=SOFT[:HARD])").check(values::ulimit),
];

/// The `build` command.
pub const BUILD: Command = Command::new(
    "build",
    "[OPTIONS] PATH | URL | -",
    "Make an image from a Dockerfile",
    Arity::Exactly(1),
    run_build,
)
.flags(&[FLAGS])
.common()
.spelled(&["bulkhead image build", "bulkhead build"]);

fn run_build(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let name = parsed.args[0].as_str();
        let quiet = parsed.on("quiet");
        let (context, dockerfile) = Context::find(name, parsed.given("file"))?;
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
            // A parameter of ours, which other engines do not look at.
            .query_if("steptimes", true)
            .query_if("nocache", parsed.on("no-cache"))
            .query_if("pull", parsed.on("pull"))
            .query_if("rm", parsed.on("rm"))
            .query_if("forcerm", parsed.on("force-rm"))
            .query_if("q", quiet)
            .query_if("squash", parsed.on("squash"))
            .query_some("memory", parsed.given("memory"))
            .query_some("memswap", parsed.given("memory-swap"))
            .query_some("shmsize", parsed.given("shm-size"))
            .query_some("cpuperiod", parsed.given("cpu-period"))
            .query_some("cpuquota", parsed.given("cpu-quota"))
            .query_some("cpushares", parsed.given("cpu-shares"))
            .query_some("cpusetcpus", parsed.given("cpuset-cpus"))
            .query_some("cpusetmems", parsed.given("cpuset-mems"))
            .query_some("cgroupparent", parsed.given("cgroup-parent"))
            .query_some("networkmode", parsed.given("network"))
            .query_some("target", parsed.given("target"))
            .query_some("platform", parsed.given("platform"))
            .query_some("isolation", parsed.given("isolation"))
            .query("buildargs", Value::Object(arguments).to_string())
            .query(
                "labels",
                Value::Object(to_map(parsed.list("label"))).to_string(),
            );
        for (key, flag) in [
            ("t", "tag"),
            ("extrahosts", "add-host"),
            ("securityopt", "security-opt"),
        ] {
            for text in parsed.list(flag) {
                request = request.query(key, text);
            }
        }
        let sources: Vec<&str> = parsed
            .list("cache-from")
            .iter()
            .flat_map(|text| text.split(','))
            .collect();
        if !sources.is_empty() {
            request = request.query("cachefrom", json!(sources).to_string());
        }
        let mut limits = Vec::new();
        for text in parsed.list("ulimit") {
            limits.push(values::parse_ulimit(text).map_err(CliError::msg)?);
        }
        if !limits.is_empty() {
            request = request.query("ulimits", json!(limits).to_string());
        }
        if let Some(secrets) = secrets::header(parsed.list("secret"))? {
            request = request.header(secrets::HEADER, secrets);
        }
        if let Some(all) = registry::all(&ctx)? {
            request = request.header(REGISTRIES, all);
        }
        let id = match context {
            Context::Remote(url) => {
                let request = request.query("remote", url);
                follow(ctx.client().stream(request).await?, quiet).await?
            }
            Context::Stdin(head) => {
                let all = std::io::Cursor::new(head).chain(tokio::io::stdin());
                let request = request.upload(all);
                follow(ctx.client().stream(request).await?, quiet).await?
            }
            Context::Dockerfile(content) => {
                let archive = context::only_dockerfile(&content)
                    .map_err(|e| CliError::io("pack the Dockerfile", e))?;
                let request = request.upload(std::io::Cursor::new(archive));
                follow(ctx.client().stream(request).await?, quiet).await?
            }
            Context::Directory(directory) => {
                let (writer, reader) = tokio::io::duplex(256 << 10);
                let runtime = tokio::runtime::Handle::current();
                let packing = tokio::task::spawn_blocking(move || {
                    directory.pack(tokio_util::io::SyncIoBridge::new_with_handle(
                        writer, runtime,
                    ))
                });
                let sent = ctx.client().stream(request.upload(reader)).await;
                let packed = packing.await.map_err(|e| CliError::msg(e.to_string()))?;
                let stream = sent?;
                packed.map_err(|e| CliError::io(name, e))?;
                follow(stream, quiet).await?
            }
        };
        if quiet {
            emit_line(&id)?;
        }
        if let Some(path) = parsed.given("iidfile") {
            std::fs::write(path, &id).map_err(|e| CliError::io(path, e))?;
        }
        Ok(())
    })
}

/// Follows a build, and gives its image's ID: a quiet one says nothing else.
async fn follow(stream: JsonStream, quiet: bool) -> CliResult<String> {
    if quiet {
        return Ok(progress::quietly(stream).await?.trim().to_owned());
    }
    let mut id = String::new();
    let take = |aux: &Value| {
        if let Some(found) = aux.get("ID").and_then(Value::as_str) {
            id = found.to_owned();
        }
    };
    progress::show(stream, Show::Stdout, take).await?;
    Ok(id)
}
