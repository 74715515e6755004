//! `POST /build`: the classic builder. The context comes in the body, the answer is a stream
//! of JSON lines. What fails before the first line is due is answered with a status.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
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
use bulkhead_build::{BuildError, Host, Options, Secrets};
use bulkhead_image::{ImageId, Reference};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ClientGone;
use super::images::{encode, failure, feed, stream_response, until_filter};
use super::query::{Params, check_filters};
use crate::error::{ApiError, ApiResult};
use crate::services::build::{BuildHost, BuildSettings, Said, secrets};
use crate::services::images::{self, BodyReader};
use crate::state::AppState;

/// Lines that wait for a slow client.
const BACKLOG: usize = 64;
/// Largest `.dockerignore` that is read.
const MAX_IGNORE_BYTES: u64 = 1 << 20;

/// The routes.
pub fn router() -> Router<AppState> {
    Router::new()
        .route("/build", post(build))
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
            Ok(Err(error)) => Err(refusal(&error)),
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
) -> Result<(), BuildError> {
    let quiet = request.quiet;
    let sender = lines.clone();
    let say = move |said: Said| {
        let line = match said {
            Said::Text(_) | Said::Progress(_) if quiet => return,
            Said::Text(text) => json!({ "stream": text }),
            Said::Progress(line) => line,
            Said::Image(id) => json!({ "aux": { "ID": id.to_string() } }),
        };
        // A client that has gone is noticed elsewhere.
        tell(&sender, encode(&line));
    };
    let tags = request.tags;
    let host = BuildHost::new(state, request.settings, gone, say);
    let context = context(
        &host,
        request.remote.as_deref(),
        &request.dockerfile,
        &mut body,
    )?;
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
    if quiet {
        quiet_result(lines, &built.image);
    }
    Ok(())
}

/// As many stages as there are processors, and two on a single one, since they wait as much as
/// they compute; more than a few would only take memory, above all where each command has a
/// machine of its own.
fn stages_at_a_time() -> usize {
    const LEAST: usize = 2;
    const MOST: usize = 4;
    std::thread::available_parallelism().map_or(LEAST, |count| count.get().clamp(LEAST, MOST))
}

fn quiet_result(lines: &mpsc::Sender<Bytes>, image: &ImageId) {
    let _ = lines.blocking_send(encode(&json!({ "stream": format!("{image}\n") })));
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
) -> Result<Context, BuildError> {
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
            let mut fetched = host.remote(url)?;
            let is_text = fetched
                .content_type
                .as_deref()
                .is_some_and(|kind| kind.starts_with("text/plain"));
            if is_text {
                let mut text = Vec::new();
                let limit = MAX_DOCKERFILE_BYTES as u64 + 1;
                (&mut fetched.content)
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
            ContextTree::read(&mut *fetched.content, spool()?, limits).map_err(context_error)?
        }
    };
    if tree::leaves(Path::new(name)) {
        return Err(BuildError::Invalid(format!(
            "forbidden path outside the build context: {name} ()"
        )));
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

/// What came before the first line.
fn refusal(error: &BuildError) -> ApiError {
    let status = match error {
        BuildError::Invalid(_) | BuildError::Parse(_) => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, error.to_string())
}

/// What came later.
fn last_line(error: &BuildError) -> Value {
    let mut line = failure(&error.to_string());
    if let BuildError::Command { code, .. } = error {
        line["errorDetail"]["code"] = json!(code);
    }
    line
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
