//! `docker system df`.

use std::collections::{HashMap, HashSet};

use axum::Json;
use axum::extract::State;
use bulkhead_image::ImageSummary;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::container_views::ImageNames;
use super::super::images::WITHOUT_VIRTUAL_SIZE;
use super::super::images::names;
use super::super::query::Params;
use super::super::shapes;
use crate::connection::ApiVersion;
use crate::error::{ApiError, ApiResult};
use crate::services::build::CacheView;
use crate::state::AppState;

/// Without the size of the builder's cache as a whole.
const WITHOUT_BUILDER_SIZE: ApiVersion = ApiVersion(1, 42);

pub(super) async fn usage(
    State(state): State<AppState>,
    axum::Extension(version): axum::Extension<ApiVersion>,
    params: Params,
) -> ApiResult<Json<Value>> {
    let types: Vec<&str> = params.all("type").collect();
    let wanted = |kind: &str| types.is_empty() || types.contains(&kind);
    let images = state.images.list().await?;
    let uses = state.containers.image_uses();
    let mut out = json!({
        "LayersSize": state.images.disk_usage().await?.layers_size,
        "Images": Value::Null,
        "Containers": Value::Null,
        "Volumes": Value::Null,
        "BuildCache": Value::Null,
    });
    if wanted("image") {
        let shared = state.images.shared_sizes().await?;
        // What a build made on the way, and gave no name, is no image of a user's.
        let parents: HashSet<_> = images.iter().filter_map(|image| image.parent).collect();
        let is_step = |image: &&ImageSummary| {
            image.tags.is_empty() && image.digests.is_empty() && parents.contains(&image.id)
        };
        out["Images"] = images
            .iter()
            .filter(|image| !is_step(image))
            .map(|image| {
                let mut line = json!({
                    "Id": image.id.to_string(),
                    "ParentId": image.parent.as_ref().map_or_else(String::new, ToString::to_string),
                    "RepoTags": names(&image.tags),
                    "RepoDigests": names(&image.digests),
                    "Created": image.created,
                    "Size": image.size,
                    "SharedSize": shared.get(&image.id).copied().unwrap_or(0),
                    "Labels": image.config.labels,
                    "Containers": uses.iter().filter(|used| used.image == image.id).count(),
                });
                if version < WITHOUT_VIRTUAL_SIZE {
                    line["VirtualSize"] = json!(image.size);
                }
                line
            })
            .collect();
    }
    if wanted("container") {
        let sizes: HashMap<String, u64> = images
            .iter()
            .map(|image| (image.id.to_string(), image.size))
            .collect();
        out["Containers"] = containers(&state, sizes).await?;
    }
    if wanted("volume") {
        let mut volumes = Vec::new();
        // What has options of the driver is elsewhere, as Docker sees it, and not counted.
        let all = state.volumes.all().into_iter();
        for (volume, users) in all.filter(|(volume, _)| volume.is_plain()) {
            let size = state.volumes.size(&volume).await;
            let mut shape = super::volumes::shape(&state.volumes, &volume);
            shape["UsageData"] = json!({ "RefCount": users, "Size": size });
            volumes.push(shape);
        }
        out["Volumes"] = Value::Array(volumes);
    }
    if wanted("build-cache") || version < WITHOUT_BUILDER_SIZE {
        let caches = caches(&state).await?;
        if version < WITHOUT_BUILDER_SIZE {
            let sizes = caches.iter().map(|cache| cache.size);
            out["BuilderSize"] = json!(sizes.sum::<u64>());
        }
        if wanted("build-cache") {
            out["BuildCache"] = caches.iter().map(cache).collect();
        }
    }
    Ok(Json(out))
}

/// The caches of `RUN --mount`. What steps have made are images, and counted there.
async fn caches(state: &AppState) -> ApiResult<Vec<CacheView>> {
    let caches = state.build_caches.clone();
    tokio::task::spawn_blocking(move || caches.list())
        .await
        .map_err(|error| ApiError::internal("disk usage", &error))?
        .map_err(|error| ApiError::internal("read the build cache", &error))
}

fn cache(view: &CacheView) -> Value {
    let time = |time| Timestamp::try_from(time).unwrap_or_default().to_string();
    json!({
        "ID": view.name,
        "Parents": Value::Null,
        "Type": "exec.cachemount",
        "Description": "cached mount",
        "InUse": view.is_used,
        "Shared": false,
        "Size": view.size,
        "CreatedAt": time(view.created),
        "LastUsedAt": time(view.last_used),
    })
}

async fn containers(state: &AppState, image_sizes: HashMap<String, u64>) -> ApiResult<Value> {
    let more_names = state.containers.link_names();
    let now = Timestamp::now();
    let mut lines = Vec::new();
    let views: Vec<_> = state
        .containers
        .all()
        .into_iter()
        .map(|handle| handle.view())
        .collect();
    let images = ImageNames::of(state, &views).await?;
    for view in views {
        let record = &view.record;
        // The number that `docker ps -s` shows.
        let written = state.containers.writable_size(record).await;
        let image = image_sizes.get(&record.image_id).copied().unwrap_or(0);
        let size = (written, image.saturating_add(written));
        let more_names = more_names.get(&record.id);
        let more_names = more_names.map(Vec::as_slice).unwrap_or_default();
        lines.push(shapes::summary(
            &view,
            images.shown(&view),
            more_names,
            Some(size),
            now,
            ApiVersion::NEWEST,
        ));
    }
    Ok(Value::Array(lines))
}
