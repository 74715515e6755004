//! The networks there are from the start. Others can't be made yet.

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use bulkhead_image::Digest;
use bulkhead_spec::NETWORKS;
use serde_json::{Map, Value, json};

use super::super::query::{Params, check_filters};
use crate::error::{ApiError, ApiResult};
use crate::state::AppState;

pub(super) fn router() -> Router<AppState> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/create", post(not_yet))
        .route("/networks/prune", post(prune))
        .route("/networks/{id}", get(inspect).delete(remove))
        .route("/networks/{id}/connect", post(attach))
        .route("/networks/{id}/disconnect", post(attach))
}

/// A network's ID: made from its name, so that it is the same after a restart.
fn id_of(name: &str) -> String {
    Digest::of(format!("bulkhead network {name}").as_bytes()).hex()
}

/// The network that a name, an ID or its prefix means.
fn find(reference: &str) -> ApiResult<&'static str> {
    NETWORKS
        .into_iter()
        .find(|name| *name == reference)
        .or_else(|| {
            NETWORKS
                .into_iter()
                .find(|name| !reference.is_empty() && id_of(name).starts_with(reference))
        })
        .ok_or_else(|| ApiError::not_found(format!("network {reference} not found")))
}

fn driver(name: &str) -> &str {
    if name == "none" { "null" } else { name }
}

fn describe(name: &str) -> Value {
    json!({
        "Name": name,
        "Id": id_of(name),
        "Created": "0001-01-01T00:00:00Z",
        "Scope": "local",
        "Driver": driver(name),
        "EnableIPv4": true,
        "EnableIPv6": false,
        "IPAM": { "Driver": "default", "Options": Value::Null, "Config": [] },
        "Internal": false,
        "Attachable": false,
        "Ingress": false,
        "ConfigFrom": { "Network": "" },
        "ConfigOnly": false,
        "Containers": {},
        "Options": {},
        "Labels": {},
    })
}

async fn list(params: Params) -> ApiResult<Json<Vec<Value>>> {
    let filters = params.filters()?;
    check_filters(
        &filters,
        &["dangling", "driver", "id", "label", "name", "scope", "type"],
    )?;
    let any = |key: &str, test: &dyn Fn(&str) -> bool| {
        filters
            .get(key)
            .is_none_or(|values| values.iter().any(|value| test(value)))
    };
    Ok(Json(
        NETWORKS
            .into_iter()
            .filter(|name| {
                any("name", &|value| name.contains(value))
                    && any("id", &|value| id_of(name).starts_with(value))
                    && any("driver", &|value| driver(name) == value)
                    && any("scope", &|value| value == "local")
                    && any("type", &|value| value == "builtin")
                    && any("dangling", &|value| matches!(value, "0" | "false"))
                    && any("label", &|_| false)
            })
            .map(describe)
            .collect(),
    ))
}

async fn inspect(State(state): State<AppState>, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let name = find(&id)?;
    let mut out = describe(name);
    let mut containers = Map::new();
    for handle in state.containers.all() {
        let view = handle.view();
        let joined = view.record.host_config.network_mode.as_deref() == Some(name);
        if joined && view.record.state.status.is_alive() {
            containers.insert(
                handle.id.clone(),
                json!({
                    "Name": view.record.name,
                    "EndpointID": "",
                    "MacAddress": "",
                    "IPv4Address": "",
                    "IPv6Address": "",
                }),
            );
        }
    }
    out["Containers"] = Value::Object(containers);
    Ok(Json(out))
}

async fn not_yet() -> ApiError {
    ApiError::not_implemented(
        "creating networks is not available in this version of bulkhead yet: containers have a \
         loopback network of their own",
    )
}

async fn remove(Path(id): Path<String>) -> ApiResult<()> {
    let name = find(&id)?;
    Err(ApiError::new(
        axum::http::StatusCode::FORBIDDEN,
        format!("{name} is a pre-defined network and cannot be removed"),
    ))
}

async fn attach(Path(id): Path<String>) -> ApiResult<()> {
    find(&id)?;
    Err(ApiError::not_implemented(
        "connecting containers to networks is not available in this version of bulkhead yet",
    ))
}

async fn prune() -> Json<Value> {
    Json(json!({ "NetworksDeleted": Value::Null }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_found_by_name_and_id() {
        assert_eq!(find("bridge").unwrap(), "bridge");
        assert_eq!(find(&id_of("none")[..12]).unwrap(), "none");
        let error = find("nosuch").unwrap_err();
        assert_eq!(
            (error.status.as_u16(), error.message.as_str()),
            (404, "network nosuch not found")
        );
        assert!(find("").is_err());
    }
}
