//! Routes that look at containers: list, inspect, top, stats.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::{Json, Response};
use axum::routing::get;
use bulkhead_image::{ImageId, ImageSummary};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::query::{Params, check_filters, is_like};
use super::{network_shapes, shapes};
use crate::connection::ApiVersion;
use crate::error::{ApiError, ApiResult};
use crate::services::containers::{Handle, Status, View, top};
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
        true => Some(sizes(&state, &view).await),
        false => None,
    };
    Ok(Json(shapes::inspect(&state.containers, &view, size)))
}

/// Bytes in the writable layer, and with those of the image below it.
async fn sizes(state: &AppState, view: &View) -> (u64, u64) {
    let written = state.containers.writable_size(&view.record).await;
    let image = state.images.inspect(&view.record.image_id).await;
    let image = image.map_or(0, |image| image.summary.size);
    (written, written.saturating_add(image))
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
    let processes = match task.processes().await {
        Ok(processes) => processes,
        Err(error) => return Err(container.explain(error.into()).await),
    };
    let table = top::table(args, processes)?;
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

async fn list(
    State(state): State<AppState>,
    axum::Extension(version): axum::Extension<ApiVersion>,
    params: Params,
) -> ApiResult<Json<Value>> {
    let mut filters = params.filters()?;
    check_filters(&filters, &FILTERS)?;
    // Older clients have these outside the filters.
    for key in ["before", "since"] {
        // They never failed for one that is not there.
        if let Some(value) = params.get(key)
            && state.containers.find(value).is_ok()
        {
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
            .any(|key| filters.get(*key).is_some_and(|values| !values.is_empty()));
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
    let more_names = state.containers.link_names();
    let images = ImageNames::of(&state, &views).await?;
    for view in views {
        let size = match params.flag("size") {
            true => Some(sizes(&state, &view).await),
            false => None,
        };
        let more_names = more_names.get(&view.record.id);
        let more_names = more_names.map(Vec::as_slice).unwrap_or_default();
        let image = images.shown(&view);
        out.push(shapes::summary(
            &view, image, more_names, size, now, version,
        ));
    }
    Ok(Json(Value::Array(out)))
}

/// What names of images mean while containers are listed.
pub(super) struct ImageNames(HashMap<String, ImageId>);

impl ImageNames {
    /// Those of some containers.
    pub(super) async fn of(state: &AppState, views: &[Arc<View>]) -> ApiResult<Self> {
        let names = views.iter().map(|view| view.record.image.clone());
        let found = state.images.resolve_all(names.collect()).await?;
        Ok(Self(found))
    }

    /// As what a container's image is shown: its name for as long as it still has that.
    pub(super) fn shown<'a>(&self, view: &'a View) -> &'a str {
        let record = &view.record;
        let meant = self.0.get(&record.image).map(ToString::to_string);
        match meant {
            Some(id) if id == record.image_id => &record.image,
            _ => &record.image_id,
        }
    }
}

/// Filters of the list, resolved.
struct Chosen<'a> {
    filters: &'a HashMap<String, Vec<String>>,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    exited: Vec<u32>,
    /// The images of `ancestor` and those that were made of them.
    ancestors: HashSet<String>,
    expose: HashSet<(u16, String)>,
    publish: HashSet<(u16, String)>,
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
        for value in values("is-task") {
            if !matches!(value.as_str(), "true" | "1" | "false" | "0") {
                return Err(ApiError::bad_request(format!(
                    "invalid filter 'is-task=[{value}]'"
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
        let mut roots = Vec::new();
        for ancestor in values("ancestor") {
            // An image that doesn't exist is nobody's ancestor.
            if let Ok(id) = state.images.resolve(ancestor).await {
                roots.push(id);
            }
        }
        let ancestors = match roots.is_empty() {
            true => HashSet::new(),
            false => with_descendants(roots, &state.images.list().await?),
        };
        Ok(Self {
            filters,
            before,
            since,
            exited,
            ancestors,
            expose: ports(filters, "expose")?,
            publish: ports(filters, "publish")?,
        })
    }

    /// Whether any of a key's values is `wanted`; without one everything is.
    fn any(&self, key: &str, wanted: impl Fn(&str) -> bool) -> bool {
        self.filters
            .get(key)
            .is_none_or(|values| values.is_empty() || values.iter().any(|value| wanted(value)))
    }

    /// Whether a port is published as one of `publish` or is one of `expose`: of those that
    /// the list shows, which are none of a container that is stopped.
    fn has_port(&self, view: &View) -> bool {
        if self.expose.is_empty() && self.publish.is_empty() {
            return true;
        }
        network_shapes::port_list(&view.record).iter().any(|port| {
            let kind = port["Type"].as_str().unwrap_or_default();
            let has = |wanted: &HashSet<(u16, String)>, key: &str| {
                let number = port[key].as_u64().and_then(|port| u16::try_from(port).ok());
                number.is_some_and(|number| wanted.contains(&(number, kind.to_owned())))
            };
            has(&self.publish, "PublicPort") || has(&self.expose, "PrivatePort")
        })
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
            && self.has_port(view)
            && self.any("volume", |value| has_volume(view, value))
            && super::query::labels_match(record.config.labels.as_ref(), self.filters)
    }
}

/// The IDs of images and of all that were committed or built from them.
fn with_descendants(roots: Vec<ImageId>, images: &[ImageSummary]) -> HashSet<String> {
    let mut children: HashMap<ImageId, Vec<ImageId>> = HashMap::new();
    for image in images {
        if let Some(parent) = image.parent {
            children.entry(parent).or_default().push(image.id);
        }
    }
    let mut out = HashSet::new();
    let mut next = roots;
    while let Some(id) = next.pop() {
        // Taken out, so that nothing is gone through twice.
        next.extend(children.remove(&id).unwrap_or_default());
        out.insert(id.to_string());
    }
    out
}

/// The ports that a filter names: `80`, `80/udp`, `80-90/tcp`.
fn ports(filters: &HashMap<String, Vec<String>>, key: &str) -> ApiResult<HashSet<(u16, String)>> {
    let mut out = HashSet::new();
    for value in filters.get(key).into_iter().flatten() {
        let bad = || ApiError::bad_request(format!("invalid filter '{key}={value}'"));
        let (range, protocol) = value.split_once('/').unwrap_or((value, "tcp"));
        if !matches!(protocol, "tcp" | "udp" | "sctp") {
            return Err(bad());
        }
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first <= last => (first, last),
            _ => return Err(bad()),
        };
        out.extend((first..=last).map(|port| (port, protocol.to_owned())));
    }
    Ok(out)
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
    is_like(name, pattern) || is_like(&format!("/{name}"), pattern)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_filters() {
        let filter = |value: &str| {
            let filters = HashMap::from([("expose".to_owned(), vec![value.to_owned()])]);
            ports(&filters, "expose")
        };
        assert!(filter("80").unwrap().contains(&(80, "tcp".to_owned())));
        assert_eq!(filter("80-82/udp").unwrap().len(), 3);
        for bad in ["x", "80/x", "9-8", "70000", ""] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_match_by_expression() {
        assert!(name_matches("web_1", "web"));
        assert!(name_matches("web_1", "^/web_1$"));
        assert!(name_matches("web_1", "^web_"));
        assert!(!name_matches("web_1", "^eb"));
        assert!(!name_matches("web_1", "["));
    }
}
