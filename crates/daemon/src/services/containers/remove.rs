//! Erasing a container that has no payload.

use std::sync::Arc;

use bulkhead_task::options::IsolationKind;

use super::model::Record;
use super::{Containers, Shared};
use crate::error::{ApiError, ApiResult};

/// Erases a container: row first, so that a crash leaves a directory that the next start
/// sweeps and no container without one.
///
/// With `volumes`, those volumes go too that nobody named and nobody else uses.
pub(super) async fn erase(shared: &Arc<Shared>, record: &Record, volumes: bool) -> ApiResult<()> {
    let forgotten = shared.store.delete_container(record.id.clone()).await;
    forgotten.map_err(|error| ApiError::internal("forget container", &error))?;
    let dir = shared.config.container_dir(&record.id);
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(dir)).await;
    match removed {
        Ok(Err(error)) if error.kind() != std::io::ErrorKind::NotFound => {
            // The container is gone for its user; the directory is swept at the next start.
            tracing::error!(id = %record.id, %error, "container directory not removed");
        }
        Err(error) => tracing::error!(id = %record.id, %error, "container directory not removed"),
        Ok(_) => {}
    }
    shared.store.keep_reserve().await;
    shared.forget_execs_of(&record.id);
    super::mounts::forget(shared, record, volumes).await;
    release_layers(shared, record).await;
    let mut index = shared.index();
    index.by_id.remove(&record.id);
    index.names.remove(&record.name);
    Ok(())
}

/// Lets the layers go that the container alone had, of images that were removed by force.
pub(super) async fn release_layers(shared: &Arc<Shared>, record: &Record) {
    let images = Arc::clone(&shared.images);
    let layers = record.all_layers();
    let released = tokio::task::spawn_blocking(move || images.release_layers(&layers)).await;
    if let Err(error) = released {
        tracing::error!(id = %record.id, %error, "layers not released");
    }
}

impl Containers {
    /// Bytes in a container's writable layer: what its files hold, and of a machine's disk,
    /// which is mostly holes, what it takes.
    pub async fn writable_size(&self, record: &Record) -> u64 {
        let writable = self.files(record).writable;
        let size: fn(&std::path::Path) -> u64 = match record.isolation {
            IsolationKind::Process => written,
            IsolationKind::Hyperv => allocated,
        };
        tokio::task::spawn_blocking(move || size(&writable))
            .await
            .unwrap_or(0)
    }
}

/// Bytes that a container wrote: all of its writable layer but the link that each is given.
fn written(writable: &std::path::Path) -> u64 {
    let link = writable.join("upper").join(bulkhead_files::MTAB);
    // The container may have put a link above it, and what that leads to is none of ours.
    let above = link.parent().map(std::fs::symlink_metadata);
    let given = match above {
        Some(Ok(found)) if found.is_dir() => std::fs::read_link(&link).ok(),
        _ => None,
    };
    let given = given.filter(|target| target.as_os_str() == bulkhead_files::MTAB_TARGET);
    let given = given.map_or(0, |target| target.as_os_str().len());
    crate::disk_usage::apparent_size(writable)
        .saturating_sub(u64::try_from(given).unwrap_or(u64::MAX))
}

/// Bytes that files below a directory take on disk.
fn allocated(dir: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some(if metadata.is_dir() {
                allocated(&entry.path())
            } else if metadata.is_file() {
                metadata.blocks() * 512
            } else {
                0
            })
        })
        .sum()
}
