//! `POST /build`: the classic builder. The context comes in the body, the answer is a stream
//! of JSON lines. What fails before the first line is due is answered with a status.

use std::collections::{BTreeMap, VecDeque};
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::post;
use axum::{Json, Router};
use bulkhead_build::dockerfile::MAX_DOCKERFILE_BYTES;
use bulkhead_build::ignore::IgnoreFile;
use bulkhead_build::tree::{self, ContextError, ContextLimits, ContextTree, Mtime};
use bulkhead_build::{BuildError, Host, HostError, Options, Secrets};
use bulkhead_image::{ImageId, Reference};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ClientGone;
use super::images::registry::api_error;
use super::images::{encode, failure, feed, stream_response, until_filter};
use super::query::{Params, check_filters};
use crate::error::{ApiError, ApiResult};
use crate::services::build::{BuildHost, BuildSettings, Said, secrets};
use crate::services::images::{self, BodyReader};
use crate::state::AppState;

/// Lines that wait for a slow client.
const BACKLOG: usize = 64;
/// Bytes that are kept of what a quiet build would have said.
const MAX_KEPT_BYTES: usize = 4 << 20;
/// Bytes of a remote context that are looked at to tell what it is.
const LOOKED_AT: u64 = 100;
/// Largest `.dockerignore` that is read.
const MAX_IGNORE_BYTES: u64 = 1 << 20;

/// The routes.
pub fn router() -> Router<AppState> {
    Router::new()
        .route("/build", post(build))
        .route("/build/cancel", post(cancel))
        .route("/build/prune", post(prune))
}

/// What a request asks for, checked before its body is read.
struct Request {
    dockerfile: String,
    remote: Option<String>,
    tags: Vec<Reference>,
    quiet: bool,
    arguments: BTreeMap<String, Option<String>>,
    labels: BTreeMap<String, String>,
    target: Option<String>,
    platform: Option<String>,
    no_cache: bool,
    /// Whether steps say how long they took: our own client asks for it.
    times: bool,
    cache_from: Vec<String>,
    remove: bool,
    force_remove: bool,
    secrets: Secrets,
    settings: BuildSettings,
}

impl Request {
    fn parse(params: &Params, headers: &HeaderMap) -> ApiResult<Self> {
        match params.get("version") {
            None | Some("1") => {}
            Some("2") => {
                return Err(ApiError::bad_request(
                    "BuildKit is not available: build with DOCKER_BUILDKIT=0",
                ));
            }
            Some(version) => {
                return Err(ApiError::bad_request(format!(
                    "invalid version {version:?}"
                )));
            }
        }
        if params.flag("squash") {
            return Err(ApiError::bad_request(
                "squash is not supported: use a multi-stage build",
            ));
        }
        let outputs = params.get("outputs").unwrap_or("null");
        if !matches!(outputs, "null" | "[]") {
            return Err(ApiError::bad_request(
                "custom outputs are not supported by the classic builder",
            ));
        }
        let remote = params.get("remote").map(str::to_owned);
        let is_git = remote.as_deref().is_some_and(|remote| {
            let http = remote.starts_with("http://") || remote.starts_with("https://");
            !http
                || remote
                    .split('#')
                    .next()
                    .unwrap_or_default()
                    .ends_with(".git")
        });
        if is_git {
            return Err(ApiError::bad_request(
                "git repositories as build contexts are not supported: clone the repository and \
                 build from the directory",
            ));
        }
        let mut tags = Vec::new();
        for tag in params.all("t").filter(|tag| !tag.is_empty()) {
            let reference = images::reference(tag, None)?;
            if reference.digest().is_some() {
                return Err(ApiError::bad_request("build tag cannot contain a digest"));
            }
            if !tags.contains(&reference) {
                tags.push(reference);
            }
        }
        // Also where no image is looked for by it, or is only after some steps.
        let platform = params.get("platform").map(str::to_owned);
        if let Some(platform) = &platform {
            crate::platform::parse(platform)?;
        }
        let credentials = headers
            .get("x-registry-config")
            .and_then(|value| value.to_str().ok())
            .and_then(|text| bulkhead_registry::decode_base64(text.trim_end()))
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Ok(Self {
            dockerfile: params.get("dockerfile").unwrap_or("Dockerfile").to_owned(),
            remote,
            tags,
            quiet: params.flag("q"),
            arguments: json_param(params, "buildargs")?.unwrap_or_default(),
            labels: json_param(params, "labels")?.unwrap_or_default(),
            target: params.get("target").map(str::to_owned),
            platform,
            no_cache: params.flag("nocache"),
            times: params.flag("steptimes"),
            cache_from: json_param(params, "cachefrom")?.unwrap_or_default(),
            remove: params.flag_or("rm", true),
            force_remove: params.flag("forcerm"),
            secrets: secrets::from_headers(headers)?,
            settings: BuildSettings {
                host_config: host_config(params)?,
                pull: params.flag("pull"),
                credentials,
            },
        })
    }
}

fn json_param<T: serde::de::DeserializeOwned>(params: &Params, key: &str) -> ApiResult<Option<T>> {
    params
        .get(key)
        .map(|text| {
            serde_json::from_str::<Option<T>>(text)
                .map_err(|error| ApiError::bad_request(format!("invalid {key}: {error}")))
        })
        .transpose()
        .map(Option::flatten)
}

/// The limits of the request in the words of containers.
fn host_config(params: &Params) -> ApiResult<Map<String, Value>> {
    let mut config = Map::new();
    for (key, name) in [
        ("memory", "Memory"),
        ("memswap", "MemorySwap"),
        ("cpushares", "CpuShares"),
        ("cpuperiod", "CpuPeriod"),
        ("cpuquota", "CpuQuota"),
        ("shmsize", "ShmSize"),
    ] {
        if let Some(value) = params.number::<i64>(key)?.filter(|value| *value != 0) {
            config.insert(name.to_owned(), json!(value));
        }
    }
    for (key, name) in [
        ("cpusetcpus", "CpusetCpus"),
        ("cpusetmems", "CpusetMems"),
        ("cgroupparent", "CgroupParent"),
        ("networkmode", "NetworkMode"),
        ("isolation", "Isolation"),
    ] {
        if let Some(value) = params.get(key) {
            config.insert(name.to_owned(), json!(value));
        }
    }
    if let Some(ulimits) = json_param::<Value>(params, "ulimits")? {
        config.insert("Ulimits".to_owned(), ulimits);
    }
    let hosts: Vec<&str> = params
        .all("extrahosts")
        .filter(|host| !host.is_empty())
        .collect();
    // As one JSON list, or given again and again.
    let hosts = match hosts[..] {
        [one] if one.starts_with('[') => json_param::<Value>(params, "extrahosts")?,
        [] => None,
        ref many => Some(json!(many)),
    };
    if let Some(hosts) = hosts {
        config.insert("ExtraHosts".to_owned(), hosts);
    }
    if params.all("securityopt").any(|option| !option.is_empty()) {
        return Err(ApiError::bad_request(
            "The daemon on this platform does not support setting security options on build",
        ));
    }
    Ok(config)
}

async fn build(
    State(state): State<AppState>,
    axum::Extension(ClientGone(unanswered)): axum::Extension<ClientGone>,
    params: Params,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    let request = match Request::parse(&params, &headers).and_then(|request| {
        let isolation = request.settings.host_config.get("Isolation");
        state
            .containers
            .check_isolation(isolation.and_then(Value::as_str))?;
        Ok(request)
    }) {
        Ok(request) => request,
        Err(error) => {
            // Clients look at the answer only when they have sent everything.
            let mut rest = body.into_data_stream();
            while let Some(Ok(_)) = rest.next().await {}
            return Err(error);
        }
    };
    let (frames, reader) = BodyReader::new();
    tokio::spawn(feed(body, frames));
    let (sender, mut lines) = mpsc::channel::<Bytes>(BACKLOG);
    let gone = CancellationToken::new();
    let finished = CancellationToken::new();
    // The client's end, and the daemon's.
    let (watched, cancel, over) = (sender.clone(), gone.clone(), finished.clone());
    let shutdown = state.shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = watched.closed() => cancel.cancel(),
            // A quiet build says nothing until it is done.
            () = unanswered.cancelled() => cancel.cancel(),
            () = shutdown.cancelled() => cancel.cancel(),
            () = over.cancelled() => {}
        }
    });
    let task = {
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || {
            let _entered = runtime.enter();
            let _over = finished.drop_guard();
            work(state, request, reader, &sender, gone)
        })
    };
    let first = lines.recv().await;
    if first.is_none() {
        return match task.await {
            Ok(Ok(())) => Ok(stream_response(Body::empty())),
            Ok(Err(error)) => Err(refusal(error)),
            Err(error) => Err(ApiError::internal("build", &error)),
        };
    }
    let rest = futures::stream::unfold(lines, |mut lines| async move {
        lines.recv().await.map(|line| (line, lines))
    });
    let outcome = futures::stream::once(async move {
        match task.await {
            Ok(Ok(())) => Bytes::new(),
            Ok(Err(error)) => encode(&last_line(&error)),
            Err(error) => encode(&failure(&error.to_string())),
        }
    });
    let all = futures::stream::iter(first)
        .chain(rest)
        .chain(outcome)
        .map(Ok::<Bytes, std::convert::Infallible>);
    Ok(stream_response(Body::from_stream(all)))
}

/// Sends a line, and waits while the client is slow: on the build's own thread, but also where
/// that waits for a container within the runtime, which tokio's `blocking_send` refuses.
fn tell(lines: &mpsc::Sender<Bytes>, line: Bytes) {
    // Unconstrained: nobody above would give it a new budget. An error is a client that left.
    let sent = tokio::task::unconstrained(lines.send(line));
    let _ = futures::executor::block_on(sent);
}

/// The whole build, on a blocking thread.
fn work(
    state: AppState,
    request: Request,
    mut body: BodyReader,
    lines: &mpsc::Sender<Bytes>,
    gone: CancellationToken,
) -> Result<(), Failure> {
    let quiet = request.quiet.then(|| Arc::new(Mutex::new(Kept::default())));
    let (sender, kept) = (lines.clone(), quiet.clone());
    let say = move |said: Said| {
        let line = match said {
            Said::Text(text) => json!({ "stream": text }),
            Said::Progress(line) => line,
            Said::Image(id) => json!({ "aux": { "ID": id.to_string() } }),
        };
        match &kept {
            Some(kept) => {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push(encode(&line));
            }
            // A client that has gone is noticed elsewhere.
            None => tell(&sender, encode(&line)),
        }
    };
    let built = told(state, request, &mut body, gone, say);
    match (quiet, built) {
        (None, built) => built.map(drop),
        (Some(_), Ok(image)) => {
            tell(lines, encode(&json!({ "stream": format!("{image}\n") })));
            Ok(())
        }
        // What it was about to be quiet of is wanted now.
        (Some(kept), Err(error)) => {
            let kept = std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner));
            for line in kept.lines {
                tell(lines, line);
            }
            Err(error)
        }
    }
}

/// The last lines of a quiet build.
#[derive(Default)]
struct Kept {
    lines: VecDeque<Bytes>,
    bytes: usize,
}

impl Kept {
    fn push(&mut self, line: Bytes) {
        self.bytes = self.bytes.saturating_add(line.len());
        self.lines.push_back(line);
        while self.bytes > MAX_KEPT_BYTES
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes = self.bytes.saturating_sub(oldest.len());
        }
    }
}

/// A build that says what it does.
fn told(
    state: AppState,
    request: Request,
    body: &mut BodyReader,
    gone: CancellationToken,
    say: impl Fn(Said) + Send + Sync + 'static,
) -> Result<ImageId, Failure> {
    let tags = request.tags;
    let host = BuildHost::new(state, request.settings, gone, say);
    let context = context(&host, request.remote.as_deref(), &request.dockerfile, body)?;
    let options = Options {
        dockerfile: context.dockerfile,
        context: Arc::new(context.tree),
        arguments: request.arguments,
        labels: request.labels,
        target: request.target,
        platform: request.platform,
        no_cache: request.no_cache,
        times: request.times,
        cache_from: request.cache_from,
        remove: request.remove,
        force_remove: request.force_remove,
        secrets: request.secrets,
        parallel: stages_at_a_time(),
    };
    let built = bulkhead_build::build(&host, &options)?;
    host.say(&format!("Successfully built {}\n", built.image.short()));
    for tag in &tags {
        host.tag(&built.image, tag)?;
        host.say(&format!("Successfully tagged {}\n", tag.familiar()));
    }
    Ok(built.image)
}

/// As many stages as there are processors, and two on a single one, since they wait as much as
/// they compute; more than a few would only take memory, above all where each command has a
/// machine of its own.
fn stages_at_a_time() -> usize {
    const LEAST: usize = 2;
    const MOST: usize = 4;
    std::thread::available_parallelism().map_or(LEAST, |count| count.get().clamp(LEAST, MOST))
}

struct Context {
    tree: ContextTree,
    dockerfile: Vec<u8>,
}

/// Reads the context and finds the Dockerfile in it.
fn context(
    host: &BuildHost,
    remote: Option<&str>,
    name: &str,
    body: &mut BodyReader,
) -> Result<Context, Failure> {
    let spool = || {
        host.temporary().map_err(|source| BuildError::Files {
            what: "keep the build context".to_owned(),
            source,
        })
    };
    let limits = ContextLimits::default();
    let mut tree = match remote {
        None => ContextTree::read(body, spool()?, limits).map_err(context_error)?,
        Some(url) => {
            let prefix = format!("error downloading remote context {url}: ");
            let fetched = host.remote(url).map_err(|error| {
                let error = api_error(&error);
                ApiError::new(error.status, prefix.clone() + &error.message)
            })?;
            let mut content = fetched.content;
            let mut head = Vec::new();
            (&mut content)
                .take(LOOKED_AT)
                .read_to_end(&mut head)
                .map_err(|source| BuildError::Files {
                    what: url.to_owned(),
                    source,
                })?;
            let kind = fetched.content_type.unwrap_or_default();
            let is_text = is_dockerfile(&kind, &head)
                .map_err(|why| ApiError::bad_request(format!("{prefix}{why}")))?;
            let mut content = head.as_slice().chain(content);
            if is_text {
                let mut text = Vec::new();
                let limit = MAX_DOCKERFILE_BYTES as u64 + 1;
                (&mut content)
                    .take(limit)
                    .read_to_end(&mut text)
                    .map_err(|source| BuildError::Files {
                        what: url.to_owned(),
                        source,
                    })?;
                let tree = ContextTree::of_file(None, 0, Mtime::default(), spool()?)
                    .map_err(context_error)?;
                return Ok(Context {
                    tree,
                    dockerfile: text,
                });
            }
            ContextTree::read(&mut content, spool()?, limits).map_err(context_error)?
        }
    };
    if tree::leaves(Path::new(name)) {
        let why = format!("forbidden path outside the build context: {name} ()");
        return Err(BuildError::Invalid(why).into());
    }
    let small = |tree: &ContextTree, path: &str, limit: u64| {
        tree.read_small(Path::new(path), limit)
            .map_err(|source| BuildError::Files {
                what: path.to_owned(),
                source,
            })
    };
    let limit = MAX_DOCKERFILE_BYTES as u64;
    let mut found = small(&tree, name, limit)?;
    if found.is_none() && name == "Dockerfile" {
        found = small(&tree, "dockerfile", limit)?;
    }
    let dockerfile = found.ok_or_else(|| {
        BuildError::Invalid(format!("Cannot locate specified Dockerfile: {name}"))
    })?;
    // The rest was left out by the client; these two it had to send.
    if let Some(ignore) = small(&tree, ".dockerignore", MAX_IGNORE_BYTES)? {
        let ignore =
            IgnoreFile::parse(&ignore).map_err(|error| BuildError::Invalid(error.to_string()))?;
        for path in [".dockerignore", name] {
            let path = tree::clean(Path::new(path));
            if ignore.excludes(&path) {
                tree.remove(&path);
            }
        }
    }
    Ok(Context { tree, dockerfile })
}

fn context_error(error: ContextError) -> BuildError {
    match error {
        ContextError::Invalid(_) => BuildError::Invalid(error.to_string()),
        ContextError::Read(source) => BuildError::Files {
            what: "read the build context".to_owned(),
            source,
        },
        ContextError::Spool(source) => BuildError::Files {
            what: "keep the build context".to_owned(),
            source,
        },
    }
}

/// Whether what an address gave is a Dockerfile and no archive, by what its server calls it. Of
/// what a server does not know, or has no better name for, the beginning is looked at.
fn is_dockerfile(kind: &str, head: &[u8]) -> Result<bool, String> {
    let name = kind.split(';').next().unwrap_or_default().trim();
    match name.to_ascii_lowercase().as_str() {
        "text/plain" => Ok(true),
        "" | "application/octet-stream" => {
            let is_text = |byte: &u8| !matches!(byte, 0..=8 | 11 | 14..=26 | 28..=31);
            // What an archive of these begins with could be text.
            let is_packed = [&b"BZh"[..], b"\x28\xb5\x2f\xfd"]
                .iter()
                .any(|magic| head.starts_with(magic));
            Ok(!is_packed && head.iter().all(is_text))
        }
        "application/tar"
        | "application/x-tar"
        | "application/gzip"
        | "application/x-gzip"
        | "application/bzip"
        | "application/x-bzip"
        | "application/bzip2"
        | "application/x-bzip2"
        | "application/xz"
        | "application/x-xz"
        | "application/zstd"
        | "application/x-zstd" => Ok(false),
        _ => Err(format!("unsupported Content-Type {kind:?}")),
    }
}

/// Why there is no image.
enum Failure {
    /// The build's.
    Build(BuildError),
    /// Something that has a status of its own.
    Refused(ApiError),
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        Self::Build(error)
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        Self::Build(error.into())
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Refused(error)
    }
}

/// What came before the first line.
fn refusal(failure: Failure) -> ApiError {
    let error = match failure {
        Failure::Build(error) => error,
        Failure::Refused(error) => return error,
    };
    let status = match error {
        BuildError::Invalid(_) | BuildError::Parse(_) => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, error.to_string())
}

/// What came later.
fn last_line(ended: &Failure) -> Value {
    let error = match ended {
        Failure::Build(error) => error,
        Failure::Refused(error) => return failure(&error.message),
    };
    let mut line = failure(&error.to_string());
    if let BuildError::Command { code, .. } = error {
        line["errorDetail"]["code"] = json!(code);
    }
    line
}

/// Of builds with an ID, which are BuildKit's: there is none to cancel. Others end with their
/// client.
async fn cancel(params: Params) -> ApiResult<()> {
    match params.get("id") {
        Some(_) => Ok(()),
        None => Err(ApiError::bad_request("build ID not provided")),
    }
}

/// `docker builder prune`: steps are forgotten, named caches of `RUN --mount` go. Images of
/// steps go with `docker image prune`. What is younger than `until` says stays; nothing here
/// has a label, so that a prune of what has one, such as `system prune` asks for, takes nothing.
async fn prune(State(state): State<AppState>, params: Params) -> ApiResult<Json<Value>> {
    // What cannot be told apart is not pruned by halves.
    let filters = params.filters()?;
    check_filters(&filters, &["id", "label", "label!", "unused-for", "until"])?;
    let mut until = None;
    for key in ["until", "unused-for"] {
        until = until.or(until_filter(&filters, key)?);
    }
    let has_label = filters
        .get("label")
        .is_some_and(|labels| !labels.is_empty());
    let ids = filters.get("id").cloned().filter(|ids| !ids.is_empty());
    let store = state.images.store();
    let caches = state.build_caches.clone();
    let pruned = tokio::task::spawn_blocking(move || -> ApiResult<(Vec<String>, u64)> {
        if has_label {
            return Ok((Vec::new(), 0));
        }
        let forget = || match until {
            None => store.forget_steps(),
            Some(until) => {
                let old = store.list()?.into_iter();
                let old = old.filter(|image| image.created < until);
                store.forget_steps_to(&old.map(|image| image.id).collect::<Vec<_>>())
            }
        };
        // Steps are known by their images, not by an ID here.
        if ids.is_none() {
            forget().map_err(|error| images::api_error(&error))?;
        }
        let seconds = until.map(|until| Duration::from_secs(u64::try_from(until).unwrap_or(0)));
        caches
            .prune(ids.as_deref(), seconds.map(|seconds| UNIX_EPOCH + seconds))
            .map_err(|error| ApiError::internal("read the build cache", &error))
    })
    .await
    .map_err(|error| ApiError::internal("prune the build cache", &error))??;
    let (names, bytes) = pruned;
    state.events.pruned("builder", bytes);
    Ok(Json(json!({
        "CachesDeleted": if names.is_empty() { Value::Null } else { json!(names) },
        "SpaceReclaimed": bytes,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_remote_context_is() {
        let tar = head_of_a_tar();
        for (kind, head, text) in [
            ("text/plain; charset=utf-8", &b"FROM x"[..], true),
            ("", b"FROM x\n\tRUN y\r\n", true),
            (
                "application/octet-stream",
                "# \u{e4}\nFROM x".as_bytes(),
                true,
            ),
            ("application/octet-stream", &tar, false),
            ("", b"\x1f\x8b\x08\x00", false),
            ("", b"BZh91AY&SY", false),
            ("", b"\x28\xb5\x2f\xfd\x64", false),
            ("application/x-tar", b"FROM x", false),
        ] {
            assert_eq!(is_dockerfile(kind, head), Ok(text), "{kind} {head:?}");
        }
        for kind in ["text/html", "application/json", "image/png"] {
            let why = is_dockerfile(kind, b"FROM x").unwrap_err();
            assert_eq!(why, format!("unsupported Content-Type \"{kind}\""));
        }
    }

    /// A member's name, and what fills its field.
    fn head_of_a_tar() -> Vec<u8> {
        let mut head = b"Dockerfile".to_vec();
        head.resize(100, 0);
        head
    }

    #[test]
    fn the_end_of_what_was_said_is_kept() {
        let mut kept = Kept::default();
        for number in 0..5 {
            kept.push(Bytes::from(vec![number; MAX_KEPT_BYTES / 3]));
        }
        let firsts: Vec<u8> = kept.lines.iter().map(|line| line[0]).collect();
        assert_eq!(firsts, [2, 3, 4]);
    }
}
