//! `docker system df`.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use super::super::images::names;
use super::super::query::Params;
use crate::error::{ApiError, ApiResult};
use crate::state::AppState;

pub(super) async fn usage(State(state): State<AppState>, params: Params) -> ApiResult<Json<Value>> {
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
                json!({
                    "Id": image.id.to_string(),
                    "ParentId": image.parent.as_ref().map_or_else(String::new, ToString::to_string),
                    "RepoTags": names(&image.tags),
                    "RepoDigests": names(&image.digests),
                    "Created": image.created,
                    "Size": image.size,
                    "SharedSize": shared.get(&image.id).copied().unwrap_or(0),
                    "Labels": image.config.labels,
                    "Containers": uses.iter().filter(|used| used.image == image.id).count(),
                })
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
    if wanted("build-cache") {
        out["BuildCache"] = json!([]);
    }
    Ok(Json(out))
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
    tokio::task::spawn_blocking(move || {
        views
            .iter()
            .map(|(view, writable)| {
                let record = &view.record;
                let command: Vec<&str> = std::iter::once(record.path.as_str())
                    .chain(record.args.iter().map(String::as_str))
                    .collect();
                let written = disk_usage(writable, 0);
                let image = image_sizes.get(&record.image_id).copied().unwrap_or(0);
                json!({
                    "Id": record.id,
                    "Names": [format!("/{}", record.name)],
                    "Image": record.image,
                    "ImageID": record.image_id,
                    "Command": command.join(" "),
                    "Created": record.created.as_second(),
                    "Ports": [],
                    "SizeRw": written,
                    "SizeRootFs": image.saturating_add(written),
                    "Labels": record.config.labels,
                    "State": record.state.status.as_str(),
                    "Status": record.state.status.as_str(),
                    "HostConfig": { "NetworkMode": record.host_config.network_mode },
                    "NetworkSettings": { "Networks": {} },
                    "Mounts": [],
                })
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
