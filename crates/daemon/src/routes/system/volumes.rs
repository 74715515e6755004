//! Routes of volumes.

use std::collections::BTreeMap;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::body::JsonBody;
use super::super::query::{Params, check_filters, is_like, labels_match};
use crate::connection::ApiVersion;
use crate::error::{ApiError, ApiResult};
use crate::services::volumes::{DRIVER, Volume, VolumeRequest, Volumes};
use crate::state::AppState;

pub(super) fn router() -> Router<AppState> {
    Router::new()
        .route("/volumes", get(list))
        .route("/volumes/create", post(create))
        .route("/volumes/prune", post(prune))
        .route("/volumes/{name}", get(inspect).delete(remove).put(update))
}

/// A volume as the API prints it.
pub(super) fn shape(volumes: &Volumes, volume: &Volume) -> Value {
    json!({
        "CreatedAt": volume.created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        "Driver": DRIVER,
        "Labels": volume.labels,
        "Mountpoint": volumes.mountpoint(&volume.name),
        "Name": volume.name,
        "Options": volume.options,
        "Scope": "local",
    })
}

async fn list(State(state): State<AppState>, params: Params) -> ApiResult<Json<Value>> {
    let filters = params.filters()?;
    check_filters(&filters, &["dangling", "name", "driver", "label"])?;
    let values = |key: &str| filters.get(key).map(Vec::as_slice).unwrap_or_default();
    let mut dangling = None;
    for value in values("dangling") {
        dangling = Some(match value.as_str() {
            "true" | "1" => true,
            "false" | "0" => false,
            other => {
                return Err(ApiError::bad_request(format!(
                    "invalid filter 'dangling=[{other}]'"
                )));
            }
        });
    }
    let volumes: Vec<Value> = state
        .volumes
        .all()
        .iter()
        .filter(|(volume, users)| {
            let name = |wanted: &String| is_like(&volume.name, wanted);
            dangling.is_none_or(|dangling| dangling == (*users == 0))
                && (values("name").is_empty() || values("name").iter().any(name))
                && (values("driver").is_empty() || values("driver").iter().any(|d| d == DRIVER))
                && labels_match(volume.labels.as_ref(), &filters)
        })
        .map(|(volume, _)| shape(&state.volumes, volume))
        .collect();
    Ok(Json(json!({ "Volumes": volumes, "Warnings": Value::Null })))
}

/// The body of `POST /volumes/create`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct CreateBody {
    name: Option<String>,
    driver: Option<String>,
    driver_opts: Option<BTreeMap<String, String>>,
    labels: Option<BTreeMap<String, String>>,
    cluster_volume_spec: Option<Value>,
}

async fn create(
    State(state): State<AppState>,
    JsonBody(body): JsonBody<CreateBody>,
) -> ApiResult<Response> {
    if body.cluster_volume_spec.is_some_and(|spec| !spec.is_null()) {
        return Err(ApiError::bad_request(
            "cluster volumes need a swarm, which bulkhead does not have",
        ));
    }
    let mut labels = body.labels;
    let name = body.name.filter(|name| !name.is_empty());
    if name.is_none() {
        labels.get_or_insert_default().insert(
            crate::services::volumes::ANONYMOUS.to_owned(),
            String::new(),
        );
    }
    let volume = state
        .volumes
        .create(VolumeRequest {
            name,
            driver: body.driver.unwrap_or_default(),
            labels,
            options: body.driver_opts,
        })
        .await?;
    Ok((StatusCode::CREATED, Json(shape(&state.volumes, &volume))).into_response())
}

async fn inspect(
    State(state): State<AppState>,
    Path(name): Path<String>,
) -> ApiResult<Json<Value>> {
    let volume = state.volumes.get(&name)?;
    Ok(Json(shape(&state.volumes, &volume)))
}

async fn update(State(state): State<AppState>, Path(name): Path<String>) -> ApiResult<StatusCode> {
    state.volumes.get(&name)?;
    Err(ApiError::bad_request(
        "only cluster volumes can be updated, and bulkhead has no swarm",
    ))
}

async fn remove(
    State(state): State<AppState>,
    Path(name): Path<String>,
    params: Params,
) -> ApiResult<StatusCode> {
    match state.volumes.remove(&name).await {
        Err(error) if error.status == StatusCode::NOT_FOUND && params.flag("force") => {}
        outcome => outcome?,
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Since 1.42 only volumes that nobody named go, unless all are asked for. Those with options
/// of the driver stay: how they are mounted could not be told again.
async fn prune(
    State(state): State<AppState>,
    params: Params,
    axum::Extension(version): axum::Extension<ApiVersion>,
) -> ApiResult<Json<Value>> {
    let mut filters = params.filters()?;
    check_filters(&filters, &["label", "label!", "all"])?;
    let mut all = version < ApiVersion(1, 42);
    for value in filters.remove("all").unwrap_or_default() {
        all = match value.as_str() {
            "true" | "1" => true,
            "false" | "0" => false,
            other => {
                return Err(ApiError::bad_request(format!(
                    "invalid filter 'all=[{other}]'"
                )));
            }
        };
    }
    let (removed, bytes) = state
        .volumes
        .prune(|volume| {
            (all || volume.is_anonymous())
                && volume.is_plain()
                && labels_match(volume.labels.as_ref(), &filters)
        })
        .await;
    state.events.pruned("volume", bytes);
    // A list even of none, unlike what other prunings answer.
    Ok(Json(
        json!({ "VolumesDeleted": removed, "SpaceReclaimed": bytes }),
    ))
}
