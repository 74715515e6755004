//! Routes that look at containers: list, inspect, top, stats.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{Json, Response};
use axum::routing::get;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::query::{Params, check_filters};
use super::shapes;
use crate::error::{ApiError, ApiResult};
use crate::services::containers::{Handle, Status, View, top};
use crate::services::networks::model::PublishedPort;
use crate::state::AppState;

/// The routes.
pub fn router() -> Router<AppState> {
    Router::new()
        .route("/containers/json", get(list))
        .route("/containers/{id}/json", get(inspect))
        .route("/containers/{id}/top", get(processes))
        .route("/containers/{id}/stats", get(stats))
}

async fn inspect(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult<Json<Value>> {
    let view = state.containers.find(&id)?.view();
    let size = match params.flag("size") {
        true => Some(state.containers.writable_size(&view.record).await),
        false => None,
    };
    Ok(Json(shapes::inspect(&state.containers, &view, size)))
}

async fn processes(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult<Json<Value>> {
    let container = state.containers.find(&id)?;
    let view = container.view();
    let task = match view.record.state.status {
        Status::Restarting => {
            return Err(ApiError::conflict(format!(
                "container {} is restarting, wait until the container is running",
                container.id
            )));
        }
        _ => view.task.clone().ok_or_else(|| {
            ApiError::conflict(format!("container {} is not running", container.id))
        })?,
    };
    let args = params.get("ps_args").unwrap_or("-ef");
    let table = top::table(args, task.processes().await?)?;
    container.announce("top", Vec::new()).await;
    Ok(Json(
        json!({ "Titles": table.titles, "Processes": table.rows }),
    ))
}

async fn stats(
    State(state): State<AppState>,
    Path(id): Path<String>,
    params: Params,
) -> ApiResult<Response> {
    let container = state.containers.find(&id)?;
    let stream = params.flag_or("stream", true);
    super::stats::answer(state, container, stream, params.flag("one-shot")).await
}

const FILTERS: [&str; 17] = [
    "ancestor",
    "before",
    "expose",
    "exited",
    "health",
    "id",
    "isolation",
    "is-task",
    "label",
    "label!",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
    "desired-state",
];

async fn list(State(state): State<AppState>, params: Params) -> ApiResult<Json<Value>> {
    let mut filters = params.filters()?;
    check_filters(&filters, &FILTERS)?;
    // Older clients have these outside the filters.
    for key in ["before", "since"] {
        if let Some(value) = params.get(key) {
            filters
                .entry(key.to_owned())
                .or_default()
                .push(value.to_owned());
        }
    }
    let limit: i64 = params.number("limit")?.unwrap_or(0);
    let limit = usize::try_from(limit).ok().filter(|limit| *limit > 0);
    let all = params.flag("all")
        || limit.is_some()
        || ["status", "exited", "before", "since"]
            .iter()
            .any(|key| filters.contains_key(*key));
    let chosen = Chosen::new(&state, &filters).await?;
    let mut views: Vec<Arc<View>> = state
        .containers
        .all()
        .iter()
        .map(|handle| handle.view())
        .filter(|view| !view.removed)
        .filter(|view| {
            let status = view.record.state.status;
            all || status.is_alive() || status == Status::Restarting
        })
        .filter(|view| chosen.passes(view))
        .collect();
    views.sort_by_key(|view| std::cmp::Reverse(view.record.created));
    if let Some(limit) = limit {
        views.truncate(limit);
    }
    let now = Timestamp::now();
    let mut out = Vec::with_capacity(views.len());
    for view in views {
        let size = match params.flag("size") {
            true => Some(state.containers.writable_size(&view.record).await),
            false => None,
        };
        out.push(shapes::summary(&view, size, now));
    }
    Ok(Json(Value::Array(out)))
}

/// Filters of the list, resolved.
struct Chosen<'a> {
    filters: &'a HashMap<String, Vec<String>>,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    exited: Vec<u32>,
    ancestors: Vec<String>,
}

impl<'a> Chosen<'a> {
    async fn new(
        state: &AppState,
        filters: &'a HashMap<String, Vec<String>>,
    ) -> ApiResult<Chosen<'a>> {
        let values = |key: &str| filters.get(key).map(Vec::as_slice).unwrap_or_default();
        let created = |handle: Arc<Handle>| handle.view().record.created;
        let (mut before, mut since) = (None::<Timestamp>, None::<Timestamp>);
        for reference in values("before") {
            let at = created(state.containers.find(reference)?);
            before = Some(before.map_or(at, |other| other.min(at)));
        }
        for reference in values("since") {
            let at = created(state.containers.find(reference)?);
            since = Some(since.map_or(at, |other| other.max(at)));
        }
        for status in values("status") {
            let known = [
                "created",
                "running",
                "paused",
                "restarting",
                "removing",
                "exited",
                "dead",
            ];
            if !known.contains(&status.as_str()) {
                return Err(ApiError::bad_request(format!(
                    "invalid filter 'status={status}'"
                )));
            }
        }
        for health in values("health") {
            if !["none", "starting", "healthy", "unhealthy"].contains(&health.as_str()) {
                return Err(ApiError::bad_request(format!(
                    "invalid filter 'health={health}'"
                )));
            }
        }
        let exited = values("exited")
            .iter()
            .map(|code| {
                code.parse()
                    .map_err(|_| ApiError::bad_request(format!("invalid filter 'exited={code}'")))
            })
            .collect::<ApiResult<_>>()?;
        let mut ancestors = Vec::new();
        for ancestor in values("ancestor") {
            // An image that doesn't exist is nobody's ancestor.
            if let Ok(id) = state.images.resolve(ancestor).await {
                ancestors.push(id.to_string());
            }
        }
        Ok(Self {
            filters,
            before,
            since,
            exited,
            ancestors,
        })
    }

    /// Whether any of a key's values is `wanted`; without the key everything is.
    fn any(&self, key: &str, wanted: impl Fn(&str) -> bool) -> bool {
        self.filters
            .get(key)
            .is_none_or(|values| values.iter().any(|value| wanted(value)))
    }

    fn passes(&self, view: &View) -> bool {
        let record = &view.record;
        let state = &record.state;
        self.before.is_none_or(|before| record.created < before)
            && self.since.is_none_or(|since| record.created > since)
            && (self.exited.is_empty()
                || (state.status == Status::Exited && self.exited.contains(&state.exit_code)))
            && (!self.filters.contains_key("ancestor")
                || self.ancestors.contains(&record.image_id)
                || self.any("ancestor", |value| value == record.image))
            && self.any("id", |value| record.id.starts_with(value))
            && self.any("name", |value| name_matches(&record.name, value))
            && self.any("status", |value| value == state.status.as_str())
            && self.any("health", |value| {
                let health = state.health.as_ref().map(|health| health.status.as_str());
                value == health.unwrap_or("none")
            })
            && self.any("is-task", |value| matches!(value, "false" | "0"))
            && self.any("isolation", |value| value == record.isolation.as_str())
            && self.any("network", |value| {
                record.networks.attachments.iter().any(|one| {
                    one.network == value
                        || (!one.network_id.is_empty() && one.network_id.starts_with(value))
                })
            })
            && self.any("expose", |value| {
                record
                    .config
                    .exposed_ports
                    .iter()
                    .flatten()
                    .any(|port| port == value || port.strip_suffix("/tcp") == Some(value))
            })
            && self.any("publish", |value| {
                record
                    .networks
                    .sandbox
                    .iter()
                    .any(|sandbox| sandbox.ports.iter().any(|port| publishes(port, value)))
            })
            && self.any("volume", |value| has_volume(view, value))
            && super::query::labels_match(record.config.labels.as_ref(), self.filters)
    }
}

/// Whether a filter's `port`, `port/protocol` or range of ports means this one.
fn publishes(port: &PublishedPort, value: &str) -> bool {
    let (numbers, protocol) = value.split_once('/').unwrap_or((value, "tcp"));
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) => {
            protocol == port.protocol.as_str() && (first..=last).contains(&port.container_port)
        }
        _ => false,
    }
}

/// Docker finds a volume by its name or its path in the container, and a bind by either path.
fn has_volume(view: &View, value: &str) -> bool {
    let clean = value.trim_end_matches('/');
    view.record.mounts.iter().any(|mount| {
        mount.destination == clean || *mount.volume.as_ref().unwrap_or(&mount.source) == value
    })
}

/// Docker matches names by regular expression, with and without the slash.
fn name_matches(name: &str, pattern: &str) -> bool {
    match regex::Regex::new(pattern) {
        Ok(regex) => regex.is_match(name) || regex.is_match(&format!("/{name}")),
        Err(_) => name == pattern.trim_start_matches('/'),
    }
}

#[cfg(test)]
mod tests {
    use super::name_matches;

    #[test]
    fn names_match_by_expression() {
        assert!(name_matches("web_1", "web"));
        assert!(name_matches("web_1", "^/web_1$"));
        assert!(name_matches("web_1", "^web_"));
        assert!(!name_matches("web_1", "^eb"));
        assert!(!name_matches("web_1", "["));
    }
}
