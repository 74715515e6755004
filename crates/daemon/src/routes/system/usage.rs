//! `docker system df`.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde_json::{Value, json};

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
        out["Images"] = images
            .iter()
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
        for (volume, users) in state.volumes.all() {
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
    let views: Vec<_> = state
        .containers
        .all()
        .iter()
        .map(|handle| {
            let view = handle.view();
            let writable = state.containers.files(&view.record).writable;
            (view, writable)
        })
        .collect();
    let more_names = state.containers.link_names();
    let now = Timestamp::now();
    tokio::task::spawn_blocking(move || {
        views
            .iter()
            .map(|(view, writable)| {
                let record = &view.record;
                let written = disk_usage(writable, 0);
                let image = image_sizes.get(&record.image_id).copied().unwrap_or(0);
                let size = (written, image.saturating_add(written));
                let more_names = more_names.get(&record.id);
                let more_names = more_names.map(Vec::as_slice).unwrap_or_default();
                shapes::summary(view, more_names, Some(size), now)
            })
            .collect()
    })
    .await
    .map_err(|error| ApiError::internal("disk usage", &error))
}

/// How deep a writable layer is followed, against a tree made to exhaust the stack.
const MAX_DEPTH: usize = 128;

/// Bytes that a tree takes on disk; what cannot be read counts as nothing. A writable layer is
/// the container's to write: links in it are not followed.
fn disk_usage(path: &Path, depth: usize) -> u64 {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return 0;
    };
    let own = metadata.blocks().saturating_mul(512);
    if !metadata.is_dir() || depth == MAX_DEPTH {
        return own;
    }
    let Ok(entries) = std::fs::read_dir(path) else {
        return own;
    };
    entries
        .flatten()
        .map(|entry| disk_usage(&entry.path(), depth + 1))
        .fold(own, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_counted_and_links_are_not_followed() {
        let root = std::env::temp_dir().join(format!("bulkhead-du-{}", std::process::id()));
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(root.join("a/b/file"), vec![1; 8192]).unwrap();
        std::os::unix::fs::symlink("/usr", root.join("link")).unwrap();
        let counted = disk_usage(&root, 0);
        assert!((8192..1 << 20).contains(&counted), "{counted}");
        assert_eq!(disk_usage(&root.join("missing"), 0), 0);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
