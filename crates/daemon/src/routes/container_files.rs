//! Routes of a container's files: archive, changes, export, commit.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bollard_stubs::models::ContainerConfig;
use bulkhead_files::{ChangeKind, PathStat};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::body::OptionalJson;
use super::query::Params;
use crate::error::{ApiError, ApiResult};
use crate::services::containers::{CommitRequest, WriteArchive};
use crate::services::images::{self, BodyReader};
use crate::state::AppState;

/// The header with what a path is.
const STAT: HeaderName = HeaderName::from_static("x-docker-container-path-stat");
/// Bytes that tell a compression.
const PREFIX: usize = 6;
/// Most bytes of decompressed archive that are held at a time.
const PIECE: usize = 256 << 10;

/// The routes.
pub fn router() -> Router<AppState> {
    Router::new()
        .route("/containers/{id}/archive", get(read).put(write).head(stat))
        .route("/containers/{id}/changes", get(changes))
        .route("/containers/{id}/export", get(export))
        .route("/commit", post(commit))
}

fn path(params: &Params) -> ApiResult<&str> {
    params
        .get("path")
        .ok_or_else(|| ApiError::bad_request("bad parameter: 'path' cannot be empty"))
}

fn stat_header(stat: &PathStat) -> ApiResult<(HeaderName, HeaderValue)> {
    let nanoseconds = i32::try_from(stat.mtime_nanoseconds).unwrap_or(0);
    let mtime = jiff::Timestamp::new(stat.mtime, nanoseconds).unwrap_or_default();
    let text = json!({
        "name": stat.name,
        "size": stat.size,
        "mode": stat.mode,
        "mtime": mtime.to_string(),
        "linkTarget": stat.link_target,
    });
    let value = HeaderValue::try_from(STANDARD.encode(text.to_string()))
        .map_err(|error| ApiError::internal("encode what a path is", &error))?;
    Ok((STAT, value))
}

/// Answers with an archive once there is something of it: what fails at once, as where the
/// payload has just moved a file away, is an error of its own and not an answer that breaks off.
async fn archive(
    stream: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
) -> ApiResult<Response> {
    let mut stream = Box::pin(stream);
    let first = stream.next().await.transpose();
    let first = first.map_err(|error| ApiError::internal("read the container's files", &error))?;
    let whole = futures::stream::iter(first.map(Ok)).chain(stream);
    let kind = HeaderValue::from_static("application/x-tar");
    Ok(([(header::CONTENT_TYPE, kind)], Body::from_stream(whole)).into_response())
}

async fn stat(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult<Response> {
    let container = state.containers.find(&id)?;
    let stat = container.stat_path(path(&params)?).await?;
    Ok(([stat_header(&stat)?], ()).into_response())
}

async fn read(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult<Response> {
    let container = state.containers.find(&id)?;
    let (stat, stream) = container.read_archive(path(&params)?).await?;
    let mut response = archive(stream.into_stream()).await?;
    let (name, value) = stat_header(&stat)?;
    response.headers_mut().insert(name, value);
    Ok(response)
}

async fn write(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
    body: Body,
) -> ApiResult<StatusCode> {
    let found = state
        .containers
        .find(&id)
        .and_then(|container| Ok((container, path(&params)?.to_owned())));
    let (container, path) = match found {
        Ok(found) => found,
        Err(error) => {
            // Clients look at the answer only when they have written everything.
            let mut rest = body.into_data_stream();
            while let Some(Ok(_)) = rest.next().await {}
            return Err(error);
        }
    };
    let wanted = WriteArchive {
        path,
        no_overwrite_dir_non_dir: params.flag("noOverwriteDirNonDir"),
        copy_owner: params.flag("copyUIDGID"),
    };
    let mut body = Box::pin(
        body.into_data_stream()
            .map(|piece| piece.map_err(std::io::Error::other)),
    );
    let mut first: Vec<std::io::Result<Bytes>> = Vec::new();
    let mut prefix = Vec::new();
    while prefix.len() < PREFIX
        && let Some(piece) = body.next().await
    {
        if let Ok(piece) = &piece {
            prefix.extend_from_slice(&piece[..piece.len().min(PREFIX)]);
        }
        let broken = piece.is_err();
        first.push(piece);
        if broken {
            break;
        }
    }
    let whole = futures::stream::iter(first).chain(body);
    if bulkhead_image::is_compressed(&prefix) {
        container.write_archive(wanted, decompressed(whole)).await?;
    } else {
        container.write_archive(wanted, whole).await?;
    }
    Ok(StatusCode::OK)
}

/// Undoes a compression beside the runtime, a few pieces at a time.
fn decompressed(
    body: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send {
    let (frames, reader) = BodyReader::new();
    tokio::spawn(async move {
        let mut body = std::pin::pin!(body);
        while let Some(piece) = body.next().await {
            if frames.send(piece).await.is_err() {
                return;
            }
        }
    });
    let (sender, receiver) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        use std::io::Read;
        let mut reader = match bulkhead_image::decompressed(reader) {
            Ok(reader) => reader,
            Err(error) => {
                let _ = sender.blocking_send(Err(error));
                return;
            }
        };
        loop {
            let mut bytes = vec![0; PIECE];
            let piece = match reader.read(&mut bytes) {
                Ok(0) => return,
                Ok(read) => {
                    bytes.truncate(read);
                    Ok(Bytes::from(bytes))
                }
                Err(error) => Err(error),
            };
            let broken = piece.is_err();
            if sender.blocking_send(piece).is_err() || broken {
                return;
            }
        }
    });
    futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    })
}

async fn changes(State(state): State<AppState>, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let changes = state.containers.find(&id)?.changes().await?;
    if changes.is_empty() {
        return Ok(Json(Value::Null));
    }
    let changes = changes.into_iter().map(|change| {
        let kind = match change.kind {
            ChangeKind::Modified => 0,
            ChangeKind::Added => 1,
            ChangeKind::Deleted => 2,
        };
        json!({ "Path": change.path, "Kind": kind })
    });
    Ok(Json(changes.collect()))
}

async fn export(State(state): State<AppState>, Path(id): Path<String>) -> ApiResult<Response> {
    let stream = state.containers.find(&id)?.export().await?;
    archive(stream.into_stream()).await
}

async fn commit(
    State(state): State<AppState>,
    params: Params,
    OptionalJson(config): OptionalJson<Value>,
) -> ApiResult<Response> {
    let config = config
        .map(|mut config| {
            super::body::as_go_reads(&mut config);
            ContainerConfig::deserialize(config)
        })
        .transpose()
        .map_err(|error| ApiError::bad_request(format!("invalid JSON: {error}")))?;
    let container = params
        .get("container")
        .ok_or_else(|| ApiError::bad_request("bad parameter: 'container' cannot be empty"))?;
    let container = state.containers.find(container)?;
    let reference = params
        .get("repo")
        .map(|repository| images::reference(repository, params.get("tag")))
        .transpose()?;
    if reference
        .as_ref()
        .is_some_and(|reference| reference.digest().is_some())
    {
        return Err(ApiError::bad_request("cannot commit to digest reference"));
    }
    let text = |key: &str| params.get(key).unwrap_or_default().to_owned();
    let request = CommitRequest {
        reference,
        author: text("author"),
        comment: text("comment"),
        changes: params.all("changes").map(str::to_owned).collect(),
        config,
        pause: params.flag_or("pause", true),
    };
    let id = state.containers.commit(&container, request).await?;
    Ok((StatusCode::CREATED, Json(json!({ "Id": id.to_string() }))).into_response())
}
