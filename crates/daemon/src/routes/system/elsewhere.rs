//! Clear answers for what this version has not, so that no client hangs or guesses.

use axum::http::StatusCode;
use axum::routing::{any, get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::state::AppState;

pub(super) fn router() -> Router<AppState> {
    let mut router = Router::new()
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
