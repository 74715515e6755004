//! Images in and out: load, import, save; pull begins here.
//!
//! Answers to uploads are streams of JSON lines that begin while the upload still runs. An
//! upload that fails before the first line is due is answered with a status, unless it is a
//! `load`; later the error is a line of its own, as clients know it from dockerd.

mod archive;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bulkhead_image::{ImageError, ImportOptions, LoadedImage, Progress};
use bulkhead_registry::FetchedFile;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::super::query::Params;
use crate::error::{ApiError, ApiResult, like_docker};
use crate::platform;
use crate::services::images::{self, BodyReader, api_error};
use crate::state::AppState;

/// How often progress is reported at most, and how long nothing is said at first.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// The operating system whose images can be run.
const OS: &str = "linux";

/// `docker load`.
pub(super) async fn load(
    State(state): State<AppState>,
    params: Params,
    body: Body,
) -> ApiResult<Response> {
    let quiet = params.flag("quiet");
    upload(body, move |reader, lines| {
        let loaded = state
            .images
            .load_blocking(reader, &|progress| lines.report(quiet, progress));
        // What is wrong with an archive is a line of a good answer, always: clients look there.
        Ok(match loaded {
            Ok(loaded) => loaded.iter().flat_map(loaded_lines).collect(),
            Err(error) => vec![failure(&error.full_message())],
        })
    })
    .await
}

fn loaded_lines(image: &LoadedImage) -> Vec<Value> {
    let mut out = Vec::new();
    for tagged in &image.references {
        let name = tagged.reference.familiar();
        if let Some(old) = &tagged.replaced {
            out.push(json!({ "stream": format!(
                "The image {name} already exists, renaming the old one with ID {old} to empty string\n"
            ) }));
        }
        out.push(json!({ "stream": format!("Loaded image: {name}\n") }));
    }
    if image.references.is_empty() {
        out.push(json!({ "stream": format!("Loaded image ID: {}\n", image.id) }));
    }
    out
}

/// `docker import` and `docker pull`.
pub(super) async fn create(
    State(state): State<AppState>,
    params: Params,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    if let Some(image) = params.get("fromImage") {
        let platform = params.get("platform").map(platform::parse).transpose()?;
        if let Some(platform) = platform.as_ref().filter(|wanted| wanted.os != OS) {
            return Err(ApiError::bad_request(format!(
                "operating system \"{}\" is not supported",
                platform.os
            )));
        }
        return super::registry::pull(&state, image, params.get("tag"), platform, &headers).await;
    }
    let Some(source) = params.get("fromSrc") else {
        return Err(ApiError::bad_request(
            "either fromImage or fromSrc must be given",
        ));
    };
    let options = ImportOptions {
        reference: params
            .get("repo")
            .map(|repository| images::reference(repository, params.get("tag")))
            .transpose()?,
        message: params.get("message").map(str::to_owned),
        changes: params.all("changes").map(str::to_owned).collect(),
        platform: params.get("platform").map(platform::parse).transpose()?,
    };
    let (frames, reader) = BodyReader::new();
    let mut told = None;
    if source == "-" {
        tokio::spawn(feed(body, frames));
    } else {
        let address = match source.split_once("://") {
            Some(_) => source.to_owned(),
            None => format!("http://{source}"),
        };
        let file = state.registry.fetch(&address).await;
        let file = file.map_err(|error| super::registry::api_error(&error))?;
        tokio::spawn(feed_file(file, frames));
        told = Some(json!({ "status": format!("Downloading from {address}") }));
    }
    answer(reader, move |reader, lines| {
        if let Some(line) = told {
            let _ = lines.sender.blocking_send(encode(&line));
        }
        let id = state
            .images
            .import_blocking(reader, &options, &|progress| lines.report(false, progress))?;
        Ok(vec![json!({ "status": id.to_string() })])
    })
    .await
}

/// Where lines of an answer go while the work is going on.
struct Lines {
    sender: mpsc::Sender<Bytes>,
    last: Mutex<Instant>,
}

impl Lines {
    /// Reports progress, unless it was reported a moment ago or the client is slow to read.
    fn report(&self, quiet: bool, progress: Progress) {
        let line = match progress {
            _ if quiet => return,
            Progress::Received(bytes) => json!({
                "status": "Importing",
                "progressDetail": { "current": bytes },
            }),
            Progress::Layer {
                diff_id,
                current,
                total,
            } => json!({
                "status": "Loading layer",
                "progressDetail": { "current": current, "total": total },
                "id": diff_id.to_string().trim_start_matches("sha256:").get(..12),
            }),
            Progress::LayerExists { .. } => return,
        };
        let Ok(mut last) = self.last.try_lock() else {
            return;
        };
        if last.elapsed() >= PROGRESS_INTERVAL {
            *last = Instant::now();
            let _ = self.sender.try_send(encode(&line));
        }
    }
}

/// A line as Go's encoder ends it.
pub(crate) fn encode(line: &Value) -> Bytes {
    Bytes::from(format!("{line}\r\n"))
}

/// Runs blocking work on an upload and answers with its lines.
async fn upload(
    body: Body,
    work: impl FnOnce(&mut BodyReader, &Lines) -> Result<Vec<Value>, ImageError> + Send + 'static,
) -> ApiResult<Response> {
    let (frames, reader) = BodyReader::new();
    tokio::spawn(feed(body, frames));
    answer(reader, work).await
}

/// Runs blocking work on what comes in and answers with its lines.
async fn answer(
    mut reader: BodyReader,
    work: impl FnOnce(&mut BodyReader, &Lines) -> Result<Vec<Value>, ImageError> + Send + 'static,
) -> ApiResult<Response> {
    let (sender, mut lines) = mpsc::channel(16);
    let task = tokio::task::spawn_blocking(move || {
        let lines = Lines {
            sender,
            last: Mutex::new(Instant::now()),
        };
        work(&mut reader, &lines)
    });
    let first = lines.recv().await;
    if first.is_none() {
        // It is over: what came of it decides the status.
        let done = task
            .await
            .map_err(|error| ApiError::internal("image store", &error))?
            .map_err(|error| api_error(&error))?;
        return Ok(stream_response(Body::from(joined(&done))));
    }
    let rest = futures::stream::unfold(lines, |mut lines| async move {
        lines.recv().await.map(|line| (line, lines))
    });
    let outcome = futures::stream::once(async move {
        let error = match task.await {
            Ok(Ok(done)) => return joined(&done),
            Ok(Err(error)) => error.full_message(),
            Err(error) => error.to_string(),
        };
        encode(&failure(&error))
    });
    let all = futures::stream::iter(first)
        .chain(rest)
        .chain(outcome)
        .map(Ok::<Bytes, std::convert::Infallible>);
    Ok(stream_response(Body::from_stream(all)))
}

/// The line that ends a stream of progress which came to nothing.
pub(crate) fn failure(message: &str) -> Value {
    let message = like_docker(message.to_owned());
    json!({ "errorDetail": { "message": message }, "error": message })
}

fn joined(lines: &[Value]) -> Bytes {
    lines
        .iter()
        .map(|line| encode(line).to_vec())
        .collect::<Vec<_>>()
        .concat()
        .into()
}

pub(crate) fn stream_response(body: Body) -> Response {
    (
        [(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )],
        body,
    )
        .into_response()
}

/// Passes a body's frames on. Once nobody reads any more, the rest is read and dropped, since
/// clients look at the answer only when they have written everything.
pub(crate) async fn feed(body: Body, frames: mpsc::Sender<std::io::Result<Bytes>>) {
    let mut stream = body.into_data_stream();
    while let Some(frame) = stream.next().await {
        let lost = frame.is_err();
        let _ = frames.send(frame.map_err(std::io::Error::other)).await;
        if lost {
            return;
        }
    }
}

/// Passes a file from the network on for as long as somebody reads.
async fn feed_file(mut file: FetchedFile, frames: mpsc::Sender<std::io::Result<Bytes>>) {
    loop {
        let frame = match file.chunk().await {
            Ok(Some(chunk)) => Ok(chunk),
            Ok(None) => return,
            Err(error) => Err(std::io::Error::other(error.full_message())),
        };
        let is_last = frame.is_err();
        if frames.send(frame).await.is_err() || is_last {
            return;
        }
    }
}

/// `docker save` of several images, which may be none.
pub(super) async fn save(State(state): State<AppState>, params: Params) -> ApiResult<Response> {
    let names: Vec<String> = params.all("names").map(str::to_owned).collect();
    if names.iter().any(String::is_empty) {
        return Err(ApiError::bad_request("invalid reference format"));
    }
    for name in &names {
        super::check_platform(&state, name, &params).await?;
    }
    save_names(&state, names).await
}

/// `docker save`: every name is looked up before the answer begins.
pub(super) async fn save_names(state: &AppState, names: Vec<String>) -> ApiResult<Response> {
    let store = state.images.store();
    let plan = tokio::task::spawn_blocking(move || archive::Plan::new(store, &names))
        .await
        .map_err(|error| ApiError::internal("image store", &error))?
        .map_err(|error| api_error(&error))?;
    for id in plan.images() {
        let id = id.to_string();
        state.images.announce("save", &id, &id);
    }
    let (sender, receiver) = mpsc::channel(8);
    tokio::task::spawn_blocking(move || plan.write(sender));
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|frame| (frame, receiver))
    });
    Ok((
        [(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-tar"),
        )],
        Body::from_stream(stream),
    )
        .into_response())
}
