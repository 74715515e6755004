//! Routes of containers: their life. Looking at them is in [`super::container_views`], their
//! streams in [`super::container_streams`].

use std::convert::Infallible;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{delete, post};
use bollard_stubs::models::HostConfig;
use serde_json::{Value, json};

use super::body::JsonBody;
use super::query::{Params, check_filters};
use crate::connection::ApiVersion;
use crate::error::{ApiError, ApiResult};
use crate::services::containers::lifecycle::WaitCondition;
use crate::services::containers::{CreateRequest, UpdateRequest, signals};
use crate::state::AppState;

/// Bytes that clients send for an empty body: `null` or `{}`, and the end of a line.
const LONGEST_NOTHING: u64 = 7;

/// The routes.
pub fn router() -> Router<AppState> {
    Router::new()
        .route("/containers/create", post(create))
        .route("/containers/prune", post(prune))
        .route("/containers/{id}/start", post(start))
        .route("/containers/{id}/stop", post(stop))
        .route("/containers/{id}/kill", post(kill))
        .route("/containers/{id}/restart", post(restart))
        .route("/containers/{id}/rename", post(rename))
        .route("/containers/{id}/pause", post(pause))
        .route("/containers/{id}/unpause", post(unpause))
        .route("/containers/{id}/wait", post(wait))
        .route("/containers/{id}/update", post(update))
        .route("/containers/{id}", delete(remove))
        .route("/containers/{id}/{alias}", delete(remove_linked))
}

async fn create(
    State(state): State<AppState>,
    axum::Extension(version): axum::Extension<ApiVersion>,
    params: Params,
    JsonBody(mut body): JsonBody<Value>,
) -> ApiResult<Response> {
    if !body.is_object() {
        return Err(ApiError::bad_request("invalid JSON: an object is expected"));
    }
    super::body::as_go_reads(&mut body);
    as_of(version, &mut body)?;
    let created = state
        .containers
        .create(CreateRequest {
            name: params.get("name"),
            platform: params.get("platform"),
            body,
            read_only_recursive: version >= ApiVersion(1, 44),
        })
        .await?;
    Ok((
        StatusCode::CREATED,
        Json(json!({ "Id": created.id, "Warnings": created.warnings })),
    )
        .into_response())
}

/// What a request says in its client's version of the API: fields that came later are not
/// there, or refused where it would be wrong to go on without, and defaults are those of then.
fn as_of(version: ApiVersion, body: &mut Value) -> ApiResult<()> {
    let before = |minor: u16| version < ApiVersion(1, minor);
    let needs = |field: &str, minor: u16| {
        Err(ApiError::bad_request(format!(
            "{field} needs API v1.{minor} or newer"
        )))
    };
    if before(44) {
        refuse_several_networks(body)?;
        put(body, "/Healthcheck/StartInterval", json!(0));
        mac_address_of_old(body)?;
    }
    if let Some(host_config) = body.get_mut("HostConfig").filter(|one| one.is_object()) {
        if before(25) {
            put(host_config, "/AutoRemove", json!(false));
        }
        let mode = host_config.get("IpcMode").and_then(Value::as_str);
        if before(40) && mode.is_none_or(str::is_empty) {
            host_config["IpcMode"] = json!("shareable");
        }
        if before(42) {
            put(host_config, "/ConsoleSize", Value::Null);
        }
        if before(43) {
            put(host_config, "/Annotations", Value::Null);
        }
    }
    let mounts = body.pointer_mut("/HostConfig/Mounts");
    for mount in mounts.and_then(Value::as_array_mut).into_iter().flatten() {
        if before(42) {
            put(mount, "/BindOptions/CreateMountpoint", json!(false));
            if mount["Type"] == "bind" {
                put(mount, "/VolumeOptions", Value::Null);
            }
        }
        let asks = |pointer: &str| {
            let value = mount.pointer(pointer);
            value.is_some_and(|value| {
                !matches!(value.as_str(), Some("")) && *value != json!(false) && !value.is_null()
            })
        };
        if before(44) && asks("/BindOptions/ReadOnlyForceRecursive") {
            return needs("BindOptions.ReadOnlyForceRecursive", 44);
        }
        if before(45) && asks("/VolumeOptions/Subpath") {
            return needs("VolumeOptions.Subpath", 45);
        }
    }
    Ok(())
}

/// Sets a field that is there.
fn put(body: &mut Value, pointer: &str, value: Value) {
    if let Some(field) = body.pointer_mut(pointer) {
        *field = value;
    }
}

/// The hardware address was the container's, and nothing of a network's.
fn mac_address_of_old(body: &mut Value) -> ApiResult<()> {
    let wanted = body.get("MacAddress").and_then(Value::as_str);
    if wanted.is_none_or(str::is_empty) {
        let endpoints = body.pointer_mut("/NetworkingConfig/EndpointsConfig");
        for (_, endpoint) in endpoints
            .and_then(Value::as_object_mut)
            .into_iter()
            .flatten()
        {
            put(endpoint, "/MacAddress", json!(""));
        }
        return Ok(());
    }
    let mode = body.pointer("/HostConfig/NetworkMode");
    let mode = mode.and_then(Value::as_str).unwrap_or_default();
    if matches!(mode, "host" | "none") || mode.starts_with("container:") {
        return Err(ApiError::bad_request(
            "conflicting options: mac-address and the network mode",
        ));
    }
    Ok(())
}

/// Clients of older versions of the API connect a container to one network when they make it.
fn refuse_several_networks(body: &Value) -> ApiResult<()> {
    let endpoints = body.pointer("/NetworkingConfig/EndpointsConfig");
    match endpoints.and_then(Value::as_object) {
        Some(endpoints) if endpoints.len() > 1 => {
            let names: Vec<&str> = endpoints.keys().map(String::as_str).collect();
            Err(ApiError::bad_request(format!(
                "Container cannot be created with multiple network endpoints: {}",
                names.join(", ")
            )))
        }
        _ => Ok(()),
    }
}

async fn start(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
) -> ApiResult<StatusCode> {
    if params.get("checkpoint").is_some() {
        return Err(ApiError::bad_request(
            "checkpoint is only supported in experimental mode",
        ));
    }
    // Once a configuration came here; whoever sends one today must not think that it counts.
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > LONGEST_NOTHING) {
        return Err(ApiError::bad_request(
            "starting container with non-empty request body was deprecated since API v1.22 and \
             removed in v1.24",
        ));
    }
    state.containers.find(&id)?.start().await?;
    Ok(StatusCode::NO_CONTENT)
}

fn stop_signal(params: &Params) -> ApiResult<Option<u32>> {
    params.get("signal").map(signals::parse).transpose()
}

async fn stop(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult<StatusCode> {
    let container = state.containers.find(&id)?;
    container
        .stop(stop_signal(&params)?, params.number("t")?)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn kill(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult<StatusCode> {
    let container = state.containers.find(&id)?;
    let signal = stop_signal(&params)?.unwrap_or(signals::KILL);
    container.kill(signal).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn restart(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult<StatusCode> {
    let container = state.containers.find(&id)?;
    container
        .restart(stop_signal(&params)?, params.number("t")?)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn rename(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult<StatusCode> {
    let container = state.containers.find(&id)?;
    let name = params
        .get("name")
        .ok_or_else(|| ApiError::bad_request("Neither old nor new names may be empty"))?;
    container.rename(name).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn pause(State(state): State<AppState>, Path(id): Path<String>) -> ApiResult<StatusCode> {
    state.containers.find(&id)?.pause().await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn unpause(State(state): State<AppState>, Path(id): Path<String>) -> ApiResult<StatusCode> {
    state.containers.find(&id)?.unpause().await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The head of the answer goes out at once, so that a client knows that its wait is
/// registered before it starts the container.
async fn wait(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
    axum::Extension(version): axum::Extension<ApiVersion>,
) -> ApiResult<Response> {
    let container = state.containers.find(&id)?;
    let condition = match params.get("condition") {
        // Conditions came with 1.30; before, a wait was for not running.
        _ if version < ApiVersion(1, 30) => WaitCondition::NotRunning,
        None | Some("not-running") => WaitCondition::NotRunning,
        Some("next-exit") => WaitCondition::NextExit,
        Some("removed") => WaitCondition::Removed,
        Some(other) => {
            return Err(ApiError::bad_request(format!(
                "invalid condition: \"{other}\""
            )));
        }
    };
    let waiting = container.wait(condition);
    let shutdown = state.shutdown.clone();
    let answer = futures::stream::once(async move {
        let waited = tokio::select! {
            waited = waiting => waited,
            () = shutdown.cancelled_owned() => return Ok::<_, Infallible>(Bytes::new()),
        };
        let mut answer = json!({ "StatusCode": waited.code });
        // Docker 20.10, whose version that is, says so when there was none; later ones do not.
        match waited.error {
            Some(message) => answer["Error"] = json!({ "Message": message }),
            None if version <= ApiVersion(1, 41) => answer["Error"] = Value::Null,
            None => {}
        }
        let mut line = answer.to_string();
        line.push('\n');
        Ok(Bytes::from(line))
    });
    let mut response = Response::new(Body::from_stream(answer));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    Ok(response)
}

async fn update(
    State(state): State<AppState>,
    Path(id): Path<String>,
    axum::Extension(version): axum::Extension<ApiVersion>,
    JsonBody(mut body): JsonBody<Value>,
) -> ApiResult<Json<Value>> {
    super::go_names::name_members::<HostConfig>(&mut body);
    let mut request = UpdateRequest::read(&body)?;
    if version < ApiVersion(1, 40) {
        request = request.without_pids_limit();
    }
    let container = state.containers.find(&id)?;
    let warnings = container.update(request).await?;
    Ok(Json(json!({
        "Warnings": if warnings.is_empty() { Value::Null } else { json!(warnings) },
    })))
}

async fn remove(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult<StatusCode> {
    let container = match id.trim_start_matches('/').split_once('/') {
        Some((parent, alias)) => return remove_by_link(&state, parent, alias, &params).await,
        None => state.containers.find(&id)?,
    };
    if params.flag("link") {
        return Err(ApiError::conflict(
            "Conflict, cannot remove the default link name of the container",
        ));
    }
    container
        .remove(params.flag("force"), params.flag("v"))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn remove_linked(
    State(state): State<AppState>,
    Path((parent, alias)): Path<(String, String)>,
    params: Params,
) -> ApiResult<StatusCode> {
    remove_by_link(&state, &parent, &alias, &params).await
}

/// Removes a link, or the container that another one knows by it.
async fn remove_by_link(
    state: &AppState,
    parent: &str,
    alias: &str,
    params: &Params,
) -> ApiResult<StatusCode> {
    let linked = state.containers.linked(parent, alias)?;
    if params.flag("link") {
        state.containers.find(parent)?.unlink(alias).await?;
    } else {
        linked
            .remove(params.flag("force"), params.flag("v"))
            .await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn prune(State(state): State<AppState>, params: Params) -> ApiResult<Json<Value>> {
    let filters = params.filters()?;
    check_filters(&filters, &["until", "label", "label!"])?;
    let until = super::query::until(&filters)?;
    let (removed, bytes) = state
        .containers
        .prune(|view| {
            let labels = view.record.config.labels.as_ref();
            until.is_none_or(|until| view.record.created < until)
                && super::query::labels_match(labels, &filters)
        })
        .await;
    state.events.pruned("container", bytes);
    Ok(Json(json!({
        "ContainersDeleted": if removed.is_empty() { Value::Null } else { json!(removed) },
        "SpaceReclaimed": bytes,
    })))
}
