//! Routes of networks.

use std::collections::HashMap;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use bollard_stubs::models::EndpointSettings;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::JsonBody;
use super::network_shapes;
use super::query::{Params, check_filters, is_like, labels_match, until};
use crate::error::{ApiError, ApiResult};
use crate::services::networks::CreateRequest;
use crate::services::networks::NetworkView;
use crate::state::AppState;

/// What Go reads as a flag.
const FLAGS: [&str; 12] = [
    "1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False",
];

/// The routes.
pub fn router() -> Router<AppState> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/create", post(create))
        .route("/networks/prune", post(prune))
        .route("/networks/{id}", get(inspect).delete(remove))
        .route("/networks/{id}/connect", post(connect))
        .route("/networks/{id}/disconnect", post(disconnect))
}

async fn list(State(state): State<AppState>, params: Params) -> ApiResult<Json<Vec<Value>>> {
    let filters = params.filters()?;
    check_filters(
        &filters,
        &["dangling", "driver", "id", "label", "name", "scope", "type"],
    )?;
    for kind in filters.get("type").into_iter().flatten() {
        if !matches!(kind.as_str(), "custom" | "builtin") {
            return Err(ApiError::bad_request(format!(
                "invalid filter: 'type'='{kind}'"
            )));
        }
    }
    match filters.get("dangling").map(Vec::as_slice) {
        None | Some([]) => {}
        Some([value]) if matches!(value.as_str(), "true" | "1" | "false" | "0") => {}
        Some([_]) => {
            return Err(ApiError::bad_request(
                "invalid value for filter 'dangling', must be \"true\" (or \"1\"), or \"false\" \
                 (or \"0\")",
            ));
        }
        Some(_) => {
            return Err(ApiError::bad_request(
                "got more than one value for filter key \"dangling\"",
            ));
        }
    }
    let mut views = state.networks.all().await?;
    views.retain(|view| passes(view, &filters));
    views.sort_by(|one, other| one.record.name.cmp(&other.record.name));
    Ok(Json(
        views
            .iter()
            .map(|view| network_shapes::network(view, false))
            .collect(),
    ))
}

fn passes(view: &NetworkView, filters: &HashMap<String, Vec<String>>) -> bool {
    let record = &view.record;
    let any = |key: &str, test: &dyn Fn(&str) -> bool| {
        filters
            .get(key)
            .is_none_or(|values| values.is_empty() || values.iter().any(|value| test(value)))
    };
    let dangling = !record.is_predefined() && view.members.is_empty();
    any("name", &|value| is_like(&record.name, value))
        && any("id", &|value| is_like(&record.id, value))
        && any("driver", &|value| record.driver.as_str() == value)
        && any("scope", &|value| value == "local")
        && any("type", &|value| {
            (value == "builtin") == record.is_predefined()
        })
        && any("dangling", &|value| {
            matches!(value, "1" | "true") == dangling
        })
        && labels_match(Some(&labels(view)), filters)
}

fn labels(view: &NetworkView) -> HashMap<String, String> {
    view.record.labels.clone().into_iter().collect()
}

async fn inspect(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult<Json<Value>> {
    match params.get("scope") {
        None | Some("local") => {}
        Some(_) => return Err(ApiError::not_found(format!("network {id} not found"))),
    }
    // There is no more to say here, but what is no flag is refused.
    if let Some(verbose) = params.get("verbose")
        && !FLAGS.contains(&verbose)
    {
        return Err(ApiError::bad_request(format!(
            "invalid value for verbose: {verbose}: strconv.ParseBool: parsing \"{verbose}\": \
             invalid syntax"
        )));
    }
    let view = state.networks.find(&id).await?;
    Ok(Json(network_shapes::network(&view, true)))
}

async fn create(
    State(state): State<AppState>,
    JsonBody(request): JsonBody<CreateRequest>,
) -> ApiResult<(StatusCode, Json<Value>)> {
    let id = state.networks.create(request).await?;
    Ok((
        StatusCode::CREATED,
        Json(json!({ "Id": id, "Warning": "" })),
    ))
}

async fn remove(State(state): State<AppState>, Path(id): Path<String>) -> ApiResult<StatusCode> {
    state.networks.remove(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn prune(State(state): State<AppState>, params: Params) -> ApiResult<Json<Value>> {
    let filters = params.filters()?;
    check_filters(&filters, &["label", "label!", "until"])?;
    let until = until(&filters)?;
    let removed = state
        .networks
        .prune(|view| {
            let old = |until: Timestamp| view.record.created < until;
            until.is_none_or(old) && labels_match(Some(&labels(view)), &filters)
        })
        .await?;
    state.events.pruned("network", 0);
    Ok(Json(match removed.is_empty() {
        true => json!({ "NetworksDeleted": Value::Null }),
        false => json!({ "NetworksDeleted": removed }),
    }))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ConnectRequest {
    #[serde(default)]
    container: String,
    #[serde(default)]
    endpoint_config: Option<EndpointSettings>,
}

async fn connect(
    State(state): State<AppState>,
    Path(id): Path<String>,
    JsonBody(request): JsonBody<ConnectRequest>,
) -> ApiResult<()> {
    let container = state.containers.find(&request.container)?;
    container
        .connect(&id, request.endpoint_config.unwrap_or_default())
        .await
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DisconnectRequest {
    #[serde(default)]
    container: String,
    #[serde(default)]
    force: bool,
}

async fn disconnect(
    State(state): State<AppState>,
    Path(id): Path<String>,
    JsonBody(request): JsonBody<DisconnectRequest>,
) -> ApiResult<()> {
    let container = state.containers.find(&request.container)?;
    container.disconnect(&id, request.force).await
}
