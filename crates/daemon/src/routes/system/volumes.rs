//! Volumes: there are none yet.

use axum::extract::Path;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::state::AppState;

pub(super) fn router() -> Router<AppState> {
    Router::new()
        .route("/volumes", get(list))
        .route("/volumes/create", post(create))
        .route("/volumes/prune", post(prune))
        .route("/volumes/{name}", get(missing).delete(missing))
}

async fn list() -> Json<Value> {
    Json(json!({ "Volumes": [], "Warnings": Value::Null }))
}

async fn prune() -> Json<Value> {
    Json(json!({ "VolumesDeleted": Value::Null, "SpaceReclaimed": 0 }))
}

async fn create() -> ApiError {
    ApiError::not_implemented("creating volumes is not available in this version of bulkhead yet")
}

async fn missing(Path(name): Path<String>) -> ApiError {
    ApiError::not_found(format!("get {name}: no such volume"))
}
