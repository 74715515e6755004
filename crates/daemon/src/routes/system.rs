//! Routes of the system: ping, version, info, events, df, the volumes there are,
//! and clear answers for what is not there.

mod check;
mod elsewhere;
mod events;
mod info;
mod usage;
mod volumes;

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use axum::routing::{get, post};

use crate::state::AppState;

/// The routes.
pub fn router() -> Router<AppState> {
    Router::new()
        .route("/_ping", get(ping))
        .route("/version", get(info::version))
        .route("/info", get(info::info))
        .route("/events", get(events::events))
        .route("/system/df", get(usage::usage))
        .route("/system/check", post(check::check))
        .merge(volumes::router())
        .merge(elsewhere::router())
}

/// Answers GET and HEAD alike.
async fn ping() -> impl IntoResponse {
    (
        [
            (
                header::CONTENT_TYPE,
                HeaderValue::from_static("text/plain; charset=utf-8"),
            ),
            (
                header::CACHE_CONTROL,
                HeaderValue::from_static("no-cache, no-store, must-revalidate"),
            ),
            (header::PRAGMA, HeaderValue::from_static("no-cache")),
            (
                header::HeaderName::from_static("builder-version"),
                HeaderValue::from_static("1"),
            ),
            (
                header::HeaderName::from_static("swarm"),
                HeaderValue::from_static("inactive"),
            ),
        ],
        "OK",
    )
}
