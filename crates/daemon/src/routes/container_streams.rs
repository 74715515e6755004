//! Routes that carry a container's streams: attach, logs, exec, resize.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use base64::Engine;
use bulkhead_isolation::TerminalSize;
use bulkhead_task::attach::AttachRequest;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::body::{JsonBody, OptionalJson};
use super::query::Params;
use super::streams::{self, DetachKeys, Ended, Framing, MULTIPLEXED, RAW};
use crate::connection::ApiVersion;
use crate::error::{ApiError, ApiResult};
use crate::frames::frame_head;
use crate::hijack::{Hijack, RawConnection};
use crate::services::containers::logs::{self, LogQuery};
use crate::services::containers::{AttachTarget, Exec, ExecRequest, ExecState, Handle, Status};
use crate::state::AppState;
use crate::websocket;

/// The routes.
pub fn router() -> Router<AppState> {
    Router::new()
        .route("/containers/{id}/attach", post(attach))
        .route("/containers/{id}/attach/ws", get(attach_websocket))
        .route("/containers/{id}/logs", get(read_logs))
        .route("/containers/{id}/resize", post(resize))
        .route("/containers/{id}/exec", post(exec_create))
        .route("/exec/{id}/start", post(exec_start))
        .route("/exec/{id}/resize", post(exec_resize))
        .route("/exec/{id}/json", get(exec_inspect))
}

/// What a stream's content is called: clients before 1.42 know one name only.
fn content_type(tty: bool, version: ApiVersion) -> &'static str {
    if tty || version < ApiVersion(1, 42) {
        RAW
    } else {
        MULTIPLEXED
    }
}

/// The bytes that the attach, the log and the exec of one request carry.
struct Attachment {
    state: AppState,
    container: Arc<Handle>,
    request: AttachRequest,
    stream: bool,
    logs: bool,
    detach: Option<DetachKeys>,
}

async fn attach(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
    axum::Extension(version): axum::Extension<ApiVersion>,
    hijack: Hijack,
) -> ApiResult<Response> {
    let (attachment, target) = attachment(state, &id, &params).await?;
    let tty = attachment.container.view().record.tty();
    let (response, raw) = hijack.take(content_type(tty, version));
    tokio::spawn(async move {
        if let Ok(raw) = raw.await {
            converse(attachment, target, raw).await;
        }
    });
    Ok(response)
}

/// As [`attach`], over a WebSocket, which carries plain bytes.
async fn attach_websocket(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    hijack: Hijack,
) -> ApiResult<Response> {
    let accept = websocket::accept(&headers)?;
    let (attachment, target) = attachment(state, &id, &params).await?;
    let framed = !attachment.container.view().record.tty();
    let (mut response, raw) = hijack.take(RAW);
    let head = response.headers_mut();
    head.remove(header::CONTENT_TYPE);
    head.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    tokio::spawn(async move {
        let Ok(raw) = raw.await else { return };
        match websocket::unwrap(raw, framed) {
            Ok(raw) => converse(attachment, target, raw).await,
            Err(error) => tracing::warn!(%error, "attach by websocket"),
        }
    });
    Ok(response)
}

async fn attachment(
    state: AppState,
    id: &str,
    params: &Params,
) -> ApiResult<(Attachment, Option<AttachTarget>)> {
    let container = state.containers.find(id)?;
    let detach = DetachKeys::parse(params.get("detachKeys"))?;
    let view = container.view();
    match view.record.state.status {
        Status::Paused => {
            return Err(ApiError::conflict(format!(
                "container {id} is paused, unpause the container before attach"
            )));
        }
        Status::Restarting => {
            return Err(ApiError::conflict(format!(
                "container {id} is restarting, wait until the container is running"
            )));
        }
        _ => {}
    }
    let tty = view.record.tty();
    let stdin = params.flag("stdin") && view.record.config.open_stdin.unwrap_or(false);
    let request = AttachRequest {
        exec_id: String::new(),
        stdin,
        stdout: params.flag("stdout"),
        stderr: params.flag("stderr"),
        files: false,
    };
    let carries = request.stdin || request.stdout || request.stderr;
    let attachment = Attachment {
        // Of nothing there is nothing to wait for.
        stream: params.flag("stream") && carries,
        logs: params.flag("logs"),
        detach: (tty && stdin).then_some(detach),
        request,
        container,
        state,
    };
    // Registered before the head of the answer goes out: a client that has seen it may
    // start the container and misses nothing.
    let target = match attachment.stream {
        true => Some(
            attachment
                .container
                .attach(attachment.request.clone())
                .await?,
        ),
        false => None,
    };
    attachment.container.announce("attach", Vec::new()).await;
    Ok((attachment, target))
}

async fn converse(attachment: Attachment, target: Option<AttachTarget>, mut raw: RawConnection) {
    let record = attachment.container.view().record.clone();
    if attachment.logs
        && let Some(path) = attachment.state.containers.files(&record).log
    {
        let query = LogQuery {
            stdout: attachment.request.stdout,
            stderr: attachment.request.stderr,
            framed: !record.tty(),
            ..LogQuery::default()
        };
        let mut past = logs::read(path, query, attachment.container.watch());
        while let Some(Ok(bytes)) = past.recv().await {
            if raw.socket.write_all(&bytes).await.is_err() {
                return;
            }
        }
    }
    let process = match target {
        None => return,
        Some(AttachTarget::Now(task)) => match task.attach(&attachment.request).await {
            Ok((process, _)) => process,
            Err(error) => {
                tracing::debug!(%error, "attach");
                return;
            }
        },
        Some(AttachTarget::Later(start)) => tokio::select! {
            started = start => match started {
                Ok(process) => process,
                // It did not start, or was removed.
                Err(_) => return,
            },
            () = streams::left(&raw.socket) => return,
        },
    };
    let stdin = attachment.request.stdin;
    let ended = streams::pump(
        raw,
        process,
        stdin,
        attachment.detach,
        Framing::AsIs,
        async {},
    )
    .await;
    if ended == Ended::Detached {
        attachment.container.announce("detach", Vec::new()).await;
    }
}

async fn read_logs(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
    axum::Extension(version): axum::Extension<ApiVersion>,
) -> ApiResult<Response> {
    let container = state.containers.find(&id)?;
    let (stdout, stderr) = (params.flag("stdout"), params.flag("stderr"));
    if !stdout && !stderr {
        return Err(ApiError::bad_request(
            "Bad parameters: you must choose at least one stream",
        ));
    }
    let view = container.view();
    let Some(path) = state.containers.files(&view.record).log else {
        return Err(ApiError::not_implemented(
            "configured logging driver does not support reading",
        ));
    };
    // 0 is no bound, as dockerd has it.
    let time = |key: &str| -> ApiResult<_> {
        match params.get(key) {
            None | Some("0") => Ok(None),
            Some(text) => super::query::timestamp(text).map(Some),
        }
    };
    let query = LogQuery {
        stdout,
        stderr,
        since: time("since")?,
        until: time("until")?,
        timestamps: params.flag("timestamps"),
        // As dockerd: what is not a number means all.
        tail: params.get("tail").and_then(|tail| tail.parse().ok()),
        follow: params.flag("follow"),
        details: params.flag("details"),
        framed: !view.record.tty(),
    };
    if !query.follow {
        logs::first_words(&path, container.watch()).await;
    }
    let pieces = logs::read(path, query, container.watch());
    let stream = futures::stream::unfold(pieces, |mut pieces| async move {
        let piece = pieces.recv().await?;
        Some((piece, pieces))
    });
    let shutdown = state.shutdown.clone();
    let stream = futures::StreamExt::take_until(stream, shutdown.cancelled_owned());
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(content_type(view.record.tty(), version)),
    );
    Ok(response)
}

fn size(params: &Params) -> ApiResult<TerminalSize> {
    let side = |key: &str, what: &str| {
        let text = params.get(key).unwrap_or_default();
        // 32 bits are what the API has; no terminal has more than 16.
        let number = text.parse::<i64>().map_err(|_| "invalid syntax");
        number
            .and_then(|number| u32::try_from(number).map_err(|_| "value out of range"))
            .map(|number| u16::try_from(number).unwrap_or(u16::MAX))
            .map_err(|why| ApiError::bad_request(format!("invalid resize {what} {text:?}: {why}")))
    };
    Ok(TerminalSize {
        height: side("h", "height")?,
        width: side("w", "width")?,
    })
}

async fn resize(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult<StatusCode> {
    let size = size(&params)?;
    let container = state.containers.find(&id)?;
    let task =
        container.view().task.clone().ok_or_else(|| {
            ApiError::conflict(format!("container {} is not running", container.id))
        })?;
    if let Err(error) = task.resize("", size.width, size.height).await {
        return Err(container.explain(error.into()).await);
    }
    container
        .announce(
            "resize",
            vec![
                ("height", size.height.to_string()),
                ("width", size.width.to_string()),
            ],
        )
        .await;
    Ok(StatusCode::OK)
}

async fn exec_create(
    State(state): State<AppState>,
    Path(id): Path<String>,
    JsonBody(request): JsonBody<ExecRequest>,
) -> ApiResult<Response> {
    let container = state.containers.find(&id)?;
    DetachKeys::parse(
        request
            .detach_keys
            .as_deref()
            .filter(|keys| !keys.is_empty()),
    )?;
    let id = state.containers.exec_create(&container, request)?;
    Ok((StatusCode::CREATED, Json(json!({ "Id": id }))).into_response())
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ExecStart {
    detach: Option<bool>,
    tty: Option<bool>,
    console_size: Option<Vec<u16>>,
}

async fn exec_start(
    State(state): State<AppState>,
    Path(id): Path<String>,
    axum::Extension(version): axum::Extension<ApiVersion>,
    hijack: Hijack,
    OptionalJson(options): OptionalJson<ExecStart>,
) -> ApiResult<Response> {
    let options = options.unwrap_or_default();
    let exec = state.containers.exec_find(&id)?;
    let detach_keys = exec.request.detach_keys.as_deref();
    let keys = DetachKeys::parse(detach_keys.filter(|keys| !keys.is_empty()))?;
    state.containers.exec_claim(&exec)?;
    if let Some([height, width]) = options.console_size.as_deref()
        && *height > 0
        && *width > 0
    {
        let size = TerminalSize {
            width: *width,
            height: *height,
        };
        state.containers.exec_resize(&exec, size).await?;
    }
    if options.detach.unwrap_or(false) {
        state.containers.exec_start(&exec, true).await?;
        return Ok(StatusCode::OK.into_response());
    }
    // How the client reads is what it says here, whatever the process was made with.
    let terminal = (exec.request.tty(), options.tty.unwrap_or(false));
    let framing = match terminal {
        (true, false) => Framing::AsStdout,
        (false, true) => Framing::Plain,
        _ => Framing::AsIs,
    };
    // Without an upgrade Docker declares a raw stream, whatever follows.
    let declared = match hijack.upgrades() {
        true => content_type(terminal.1, version),
        false => RAW,
    };
    let (response, raw) = hijack.take(declared);
    tokio::spawn(async move {
        match raw.await {
            Ok(raw) => exec_converse(state, exec, keys, framing, raw).await,
            // The client has gone; it was promised nothing.
            Err(_) => state.containers.exec_abandon(&exec),
        }
    });
    Ok(response)
}

async fn exec_converse(
    state: AppState,
    exec: Arc<Exec>,
    keys: DetachKeys,
    framing: Framing,
    mut raw: RawConnection,
) {
    let tty = exec.request.tty();
    let stdin = exec.request.attach_stdin.unwrap_or(false);
    match state.containers.exec_start(&exec, false).await {
        Ok(started) => {
            let Some(process) = started.stream else {
                return;
            };
            let detach = (tty && stdin).then_some(keys);
            // A client that has seen the end asks for the exit code.
            let ended = streams::pump(raw, process, stdin, detach, framing, exec.ended()).await;
            if ended == Ended::Detached {
                state.containers.exec_detached(&exec);
            }
        }
        Err(error) => {
            // The head is out: the reason goes where output would, as with dockerd.
            let text = format!("{}\r\n", error.message);
            let mut bytes = Vec::new();
            if framing == Framing::AsStdout || (!tty && framing == Framing::AsIs) {
                bytes.extend_from_slice(&frame_head(text.len()));
            }
            bytes.extend_from_slice(text.as_bytes());
            let _ = raw.socket.write_all(&bytes).await;
            let _ = raw.socket.shutdown().await;
        }
    }
}

async fn exec_resize(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult<StatusCode> {
    let size = size(&params)?;
    let exec = state.containers.exec_find(&id)?;
    state.containers.exec_resize(&exec, size).await?;
    Ok(StatusCode::OK)
}

async fn exec_inspect(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> ApiResult<Json<Value>> {
    let exec = state.containers.exec_find(&id)?;
    let request = &exec.request;
    let (running, code, pid) = match exec.state() {
        ExecState::Created | ExecState::Starting => (false, None, 0),
        ExecState::Running { pid } => (true, None, pid),
        ExecState::Exited { code, pid } => (false, Some(code), pid),
    };
    let command = request.cmd.as_deref().unwrap_or_default();
    let (entrypoint, arguments) = command
        .split_first()
        .map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let mut process = json!({
        "tty": request.tty(),
        "entrypoint": entrypoint,
        "arguments": arguments,
        "privileged": request.privileged.unwrap_or(false),
    });
    if let Some(user) = request.user.as_deref().filter(|user| !user.is_empty()) {
        process["user"] = json!(user);
    }
    let keys = request.detach_keys.as_deref();
    let keys = keys.filter(|keys| !keys.is_empty());
    let keys = keys.map(|keys| DetachKeys::parse(Some(keys))).transpose()?;
    let keys = keys.map(|keys| base64::engine::general_purpose::STANDARD.encode(keys.bytes()));
    Ok(Json(json!({
        "ID": exec.id,
        "Running": running,
        "ExitCode": code,
        "ProcessConfig": process,
        "OpenStdin": request.attach_stdin.unwrap_or(false),
        "OpenStderr": request.attach_stderr.unwrap_or(false),
        "OpenStdout": request.attach_stdout.unwrap_or(false),
        "CanRemove": code.is_some(),
        "ContainerID": exec.container.id,
        // Go's way with bytes.
        "DetachKeys": keys.unwrap_or_default(),
        "Pid": pid,
    })))
}
