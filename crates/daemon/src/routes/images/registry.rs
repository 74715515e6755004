//! Images from and to registries: pull, push, login, search.
//!
//! An answer is a stream of JSON lines. What fails before the first line is due is answered
//! with a status, later with a line of its own. A client that goes takes its pull with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bulkhead_image::{Platform, Reference};
use bulkhead_registry::{
    Credentials, ErrorKind, Message, PullRequest, PushRequest, RegistryError, Reporter,
};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::super::body::JsonBody;
use super::super::query::{Params, check_filters};
use super::transfer::{encode, failure, stream_response};
use crate::error::{ApiError, ApiResult};
use crate::services::images;
use crate::state::AppState;

/// Lines that may wait for a slow client before progress is left out.
const MAX_WAITING: usize = 64;

/// Translates an error of the registry.
pub(crate) fn api_error(error: &RegistryError) -> ApiError {
    let status = match error.kind() {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorKind::Other => StatusCode::INTERNAL_SERVER_ERROR,
    };
    ApiError::new(status, error.full_message())
}

/// The credentials of a request; as with dockerd a header that is no such thing counts as
/// none.
pub(crate) fn credentials(headers: &HeaderMap) -> Option<Credentials> {
    let value = headers.get("x-registry-auth")?.to_str().ok()?;
    Credentials::from_header(value).ok()
}

/// `docker pull`.
pub(super) async fn pull(
    state: &AppState,
    image: &str,
    tag: Option<&str>,
    platform: Option<Platform>,
    headers: &HeaderMap,
) -> ApiResult<Response> {
    let bad = |error: &dyn std::fmt::Display| ApiError::bad_request(error.to_string());
    let parsed = Reference::parse(image).map_err(|error| bad(&error))?;
    let reference = match tag {
        Some(digest) if digest.contains(':') => {
            parsed.with_digest(digest.parse().map_err(|error| bad(&error))?)
        }
        Some(tag) => images::reference(image, Some(tag))?,
        None => parsed,
    };
    let request = PullRequest {
        all_tags: reference.tag().is_none() && reference.digest().is_none(),
        reference,
        platform,
        credentials: credentials(headers),
    };
    let daemon = Arc::clone(state);
    stream(move |reporter| async move {
        for pulled in daemon.registry.pull(&request, &reporter).await? {
            daemon
                .images
                .publish_transfer("pull", &pulled.id, &pulled.reference);
        }
        Ok(())
    })
    .await
}

/// `docker push`.
pub(super) async fn push(
    state: &AppState,
    image: &str,
    tag: Option<&str>,
    headers: &HeaderMap,
) -> ApiResult<Response> {
    let bad = |error: &dyn std::fmt::Display| ApiError::bad_request(error.to_string());
    let parsed = Reference::parse(image).map_err(|error| bad(&error))?;
    let reference = match tag {
        Some(tag) => parsed.with_tag(tag).map_err(|error| bad(&error))?,
        None => parsed,
    };
    let request = PushRequest {
        reference,
        credentials: credentials(headers),
    };
    let daemon = Arc::clone(state);
    stream(move |reporter| async move {
        for pushed in daemon.registry.push(&request, &reporter).await? {
            daemon
                .images
                .publish_transfer("push", &pushed.id, &pushed.reference);
        }
        Ok(())
    })
    .await
}

/// `docker login`.
pub(super) async fn login(
    State(state): State<AppState>,
    JsonBody(credentials): JsonBody<Credentials>,
) -> ApiResult<Json<Value>> {
    let login = state
        .registry
        .login(&credentials.normalized())
        .await
        .map_err(|error| api_error(&error))?;
    Ok(Json(json!({
        "Status": "Login Succeeded",
        "IdentityToken": login.identity_token,
    })))
}

/// What a registry says of an image: `GET /distribution/{name}/json`.
pub(super) async fn describe(
    State(state): State<AppState>,
    Path(rest): Path<String>,
    headers: HeaderMap,
) -> ApiResult<Json<Value>> {
    let name = rest
        .trim_start_matches('/')
        .strip_suffix("/json")
        .ok_or_else(|| ApiError::not_found("page not found"))?;
    let reference = Reference::parse(name)
        .map_err(|error| ApiError::bad_request(error.to_string()))?
        .with_default_tag();
    let found = state
        .registry
        .describe(&reference, credentials(&headers).as_ref())
        .await;
    found.map(Json).map_err(|error| api_error(&error))
}

/// `docker search`.
pub(super) async fn search(
    State(state): State<AppState>,
    params: Params,
    headers: HeaderMap,
) -> ApiResult<Json<Value>> {
    let filters = params.filters()?;
    check_filters(&filters, &["is-automated", "is-official", "stars"])?;
    let limit = params.number::<u32>("limit")?.unwrap_or(25);
    if !(1..=100).contains(&limit) {
        return Err(ApiError::bad_request(format!(
            "Limit {limit} is outside the range of [1, 100]"
        )));
    }
    let number = |key: &str| {
        let value = filters.get(key).and_then(|values| values.first());
        value
            .map(|text| {
                text.parse::<i64>()
                    .map_err(|_| ApiError::bad_request(format!("invalid filter '{key}={text}'")))
            })
            .transpose()
    };
    let flag = |key: &str| {
        let value = filters.get(key).and_then(|values| values.first());
        value
            .map(|text| match text.as_str() {
                "1" | "true" => Ok(true),
                "0" | "false" => Ok(false),
                _ => Err(ApiError::bad_request(format!(
                    "invalid filter '{key}={text}'"
                ))),
            })
            .transpose()
    };
    let (stars, official) = (number("stars")?, flag("is-official")?);
    let automated = flag("is-automated")?;
    let term = params.get("term").unwrap_or_default();
    let found = state
        .registry
        .search(term, limit, credentials(&headers).as_ref())
        .await
        .map_err(|error| api_error(&error))?;
    let is = |item: &Value, key: &str| item.get(key).and_then(Value::as_bool).unwrap_or(false);
    let passes = |item: &Value| {
        let count = item.get("star_count").and_then(Value::as_i64).unwrap_or(0);
        stars.is_none_or(|least| count >= least)
            && official.is_none_or(|wanted| is(item, "is_official") == wanted)
            && automated.is_none_or(|wanted| is(item, "is_automated") == wanted)
    };
    Ok(Json(found.into_iter().filter(passes).collect()))
}

/// Runs work that reports, and answers with its lines.
async fn stream<F>(work: impl FnOnce(Reporter) -> F + Send + 'static) -> ApiResult<Response>
where
    F: Future<Output = Result<(), RegistryError>> + Send + 'static,
{
    let (sender, mut lines) = mpsc::unbounded_channel::<Line>();
    let waiting = Arc::new(AtomicUsize::new(0));
    let reporter = {
        let (sender, waiting) = (sender.clone(), Arc::clone(&waiting));
        Reporter::new(move |message| {
            // What does not repeat is of a bounded number; the rest is left out for those who
            // do not read.
            let repeats = matches!(
                message,
                Message::Layer {
                    counts: Some(_),
                    ..
                }
            );
            if repeats && waiting.load(Ordering::Relaxed) > MAX_WAITING {
                return;
            }
            waiting.fetch_add(1, Ordering::Relaxed);
            let _ = sender.send(Line::Message(message));
        })
    };
    tokio::spawn(async move {
        let done = tokio::select! {
            done = work(reporter) => done,
            () = sender.closed() => return,
        };
        if let Err(error) = done {
            let _ = sender.send(Line::Failed(error));
        }
    });
    let first = match lines.recv().await {
        Some(Line::Failed(error)) => return Err(api_error(&error)),
        first => first,
    };
    let rest = futures::stream::unfold(lines, |mut lines| async move {
        lines.recv().await.map(|line| (line, lines))
    });
    let all = futures::stream::iter(first).chain(rest).map(move |line| {
        if matches!(line, Line::Message(_)) {
            waiting.fetch_sub(1, Ordering::Relaxed);
        }
        Ok::<Bytes, std::convert::Infallible>(encode(&line.json()))
    });
    Ok(stream_response(Body::from_stream(all)))
}

/// A message as clients read it.
pub(crate) fn message_json(message: Message) -> Value {
    Line::Message(message).json()
}

enum Line {
    Message(Message),
    Failed(RegistryError),
}

impl Line {
    fn json(&self) -> Value {
        match self {
            Self::Message(Message::Status { id: None, text }) => json!({ "status": text }),
            Self::Message(Message::Status { id, text }) => json!({ "status": text, "id": id }),
            Self::Message(Message::Layer {
                id,
                text,
                counts: None,
            }) => json!({ "status": text, "progressDetail": {}, "id": id }),
            Self::Message(Message::Layer {
                id,
                text,
                counts: Some((current, total)),
            }) => json!({
                "status": text,
                "progressDetail": { "current": current, "total": total },
                "progress": bar(*current, *total),
                "id": id,
            }),
            Self::Message(Message::Aux(value)) => json!({ "progressDetail": {}, "aux": value }),
            Self::Failed(error) => failure(&error.full_message()),
        }
    }
}

/// The bar that older clients show as it comes.
fn bar(current: u64, total: u64) -> String {
    let done = (current.min(total) * 50).checked_div(total).unwrap_or(0);
    let done = usize::try_from(done).unwrap_or(50);
    let (current, total) = (size(current), size(total));
    format!(
        "[{}>{}] {current:>8}/{total}",
        "=".repeat(done),
        " ".repeat(50 - done)
    )
}

/// `12.35MB`: four significant digits.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    // In thousandths, so that no float is needed.
    let (mut value, mut unit) = (u128::from(bytes) * 1000, 0);
    while value >= 1_000_000 && unit + 1 < UNITS.len() {
        value /= 1000;
        unit += 1;
    }
    let digits = match value / 1000 {
        0..10 => 3,
        10..100 => 2,
        100..1000 => 1,
        _ => 0,
    };
    let text = format!("{}.{:03}", value / 1000, value % 1000);
    let end = text.len() - (3 - digits);
    let text = text[..end].trim_end_matches('0').trim_end_matches('.');
    format!("{text}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_dockers() {
        assert_eq!(
            bar(5_000_000, 10_000_000),
            "[=========================>                         ]      5MB/10MB"
        );
        assert!(bar(0, 0).contains("0B/0B"));
        assert_eq!(size(1_234_567), "1.234MB");
        assert_eq!(size(532), "532B");
        assert_eq!(size(123_456), "123.4kB");
    }
}
