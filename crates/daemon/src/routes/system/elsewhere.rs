//! Clear answers for what this version has not, so that no client hangs or guesses.

use axum::body::Body;
use axum::http::StatusCode;
use axum::routing::{any, get, post};
use axum::{Json, Router};
use futures::StreamExt;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::state::AppState;

pub(super) fn router() -> Router<AppState> {
    let mut router = Router::new()
        .route("/build", post(build))
        .route("/session", post(session))
        .route("/grpc", post(session))
        .route("/plugins", get(nothing));
    for path in [
        "/swarm",
        "/nodes",
        "/services",
        "/tasks",
        "/secrets",
        "/configs",
    ] {
        router = router
            .route(path, any(swarm))
            .route(&format!("{path}/{{*rest}}"), any(swarm));
    }
    router
}

/// The whole context is read first: clients look at the answer only when they have sent it.
async fn build(body: Body) -> ApiError {
    let mut stream = body.into_data_stream();
    while let Some(Ok(_)) = stream.next().await {}
    ApiError::not_implemented(
        "building images is not available in this version of bulkhead yet: build elsewhere and \
         bring the image in with 'docker load'",
    )
}

async fn session() -> ApiError {
    ApiError::not_implemented("BuildKit is not available in this version of bulkhead yet")
}

async fn nothing() -> Json<Value> {
    Json(json!([]))
}

async fn swarm() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "This node is not a swarm manager. bulkhead has no swarm mode.",
    )
}
