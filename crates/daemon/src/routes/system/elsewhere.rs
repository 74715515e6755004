//! Clear answers for what this version has not, so that no client hangs or guesses.

use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::{any, delete, get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::state::AppState;

pub(super) fn router() -> Router<AppState> {
    let mut router = Router::new()
        .route("/session", post(session))
        .route("/grpc", post(session))
        .route("/plugins", get(nothing))
        .route("/plugins/privileges", get(plugins))
        .route("/plugins/pull", post(plugins))
        .route("/plugins/create", post(plugins))
        .route("/plugins/{name}", delete(plugin))
        .route("/plugins/{name}/{*rest}", any(plugin_and_more));
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

async fn plugins() -> ApiError {
    ApiError::not_implemented(
        "bulkhead has no managed plugins: volumes and networks are of its own drivers",
    )
}

/// No plugin is ever installed, so none is found by any name.
async fn plugin(Path(name): Path<String>) -> ApiError {
    ApiError::not_found(format!("plugin \"{name}\" not found"))
}

async fn plugin_and_more(Path((name, _)): Path<(String, String)>) -> ApiError {
    plugin(Path(name)).await
}

async fn swarm() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "This node is not a swarm manager. bulkhead has no swarm mode.",
    )
}
