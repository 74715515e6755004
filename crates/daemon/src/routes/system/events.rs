//! `docker events`: what has happened since, and what happens until.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use tokio::sync::broadcast::error::RecvError;

use super::super::query::Params;
use crate::error::{ApiError, ApiResult};
use crate::events::{Event, EventFilter};
use crate::state::AppState;

pub(super) async fn events(State(state): State<AppState>, params: Params) -> ApiResult<Response> {
    let filters = params.filters()?;
    let filter = EventFilter::new(filters);
    let since = params.get("since").map(time).transpose()?;
    let until = params.get("until").map(time).transpose()?;
    if let (Some(since), Some(until)) = (since, until)
        && since > until
    {
        return Err(ApiError::bad_request(
            "`since` time cannot be after `until` time",
        ));
    }
    let (past, mut coming) = state.events.subscribe();
    let now = nanoseconds(Timestamp::now());
    let before: Vec<Bytes> = past
        .iter()
        // What has happened is told to who gives either time.
        .filter(|_| since.is_some() || until.is_some())
        .filter(|event| since.is_none_or(|since| event.time_nano >= since))
        .filter(|event| until.is_none_or(|until| event.time_nano <= until))
        .filter(|event| filter.matches(event))
        .map(encode)
        .collect();
    let shutdown = state.shutdown.clone();
    let follow = async_stream(move |sender| async move {
        let end = async {
            match until {
                Some(until) => {
                    let left = u64::try_from(until.saturating_sub(now)).unwrap_or(0);
                    tokio::time::sleep(Duration::from_nanos(left)).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::pin!(end);
        loop {
            let event = tokio::select! {
                event = coming.recv() => event,
                () = &mut end => return,
                () = shutdown.cancelled() => return,
                () = sender.closed() => return,
            };
            match event {
                Ok(event) if until.is_some_and(|until| event.time_nano > until) => return,
                Ok(event) if filter.matches(&event) => {
                    if sender.send(encode(&event)).await.is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(RecvError::Lagged(missed)) => {
                    tracing::debug!(missed, "a client was too slow for the events");
                }
                Err(RecvError::Closed) => return,
            }
        }
    });
    let all = futures::stream::iter(before)
        .chain(follow)
        .map(Ok::<Bytes, Infallible>);
    Ok((
        [(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )],
        Body::from_stream(all),
    )
        .into_response())
}

/// A stream of what a task sends. The task ends when nobody reads any more.
fn async_stream<F: Future<Output = ()> + Send + 'static>(
    work: impl FnOnce(tokio::sync::mpsc::Sender<Bytes>) -> F,
) -> impl futures::Stream<Item = Bytes> {
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    tokio::spawn(work(sender));
    futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|item| (item, receiver))
    })
}

fn encode(event: &Arc<Event>) -> Bytes {
    // Writing JSON of strings and numbers into memory has no way to fail.
    let mut line = serde_json::to_vec(event.as_ref()).unwrap_or_default();
    line.push(b'\n');
    Bytes::from(line)
}

fn nanoseconds(time: Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)
}

/// Nanoseconds since the epoch of `seconds[.fraction]`, as clients send it, or of RFC 3339.
fn time(text: &str) -> ApiResult<i64> {
    let bad = || ApiError::bad_request(format!("invalid time '{text}'"));
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(nanoseconds(time));
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().map_err(|_| bad())?;
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let fraction: i64 = format!("{fraction:0<9}").parse().map_err(|_| bad())?;
    seconds
        .checked_mul(1_000_000_000)
        .and_then(|nanoseconds| nanoseconds.checked_add(fraction))
        .ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_clients_send_them() {
        assert_eq!(time("12").unwrap(), 12_000_000_000);
        assert_eq!(time("12.5").unwrap(), 12_500_000_000);
        assert_eq!(time("12.000000001").unwrap(), 12_000_000_001);
        assert_eq!(time("1970-01-01T00:00:01Z").unwrap(), 1_000_000_000);
        for bad in ["", "x", "1.x", "1.0000000000", "99999999999999999999"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }
}
