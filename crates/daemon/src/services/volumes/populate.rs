//! Filling an empty volume with what an image has at its destination.
//!
//! The image's layers are mounted and read by a process of their own (the supervisor's
//! executable, `populate`), in a mount namespace that ends with it.

use std::path::PathBuf;
use std::sync::Arc;

use bulkhead_task::populate::{CopyOrder, CopyOutcome, PopulateOrder};
use bulkhead_userns::Mappings;

use super::{Backing, Volumes, local, recovery};
use crate::error::{ApiError, ApiResult};
use crate::services::supervisor;

/// A volume that is to be filled.
#[derive(Debug, Clone)]
pub struct CopyUp {
    /// Its name.
    pub volume: String,
    /// Where it is mounted in the container.
    pub destination: String,
}

/// Fills the volumes that are empty. Those that aren't, or whose destination the image does
/// not have, stay as they are.
///
/// # Errors
/// 400 where the image has a file at a destination; what the copy failed of.
pub async fn fill(
    volumes: &Volumes,
    scratch: PathBuf,
    layers: &[PathBuf],
    mappings: Option<&Mappings>,
    wanted: &[CopyUp],
) -> ApiResult<()> {
    // In the order of their names, so that two that fill the same ones never wait for each
    // other.
    let mut wanted = wanted.to_vec();
    wanted.sort_by(|a, b| a.volume.cmp(&b.volume));
    let mut held = Vec::new();
    let mut copies = Vec::new();
    let mut last = None;
    for one in wanted {
        if last.as_ref() != Some(&one.volume) {
            let filling = match volumes.index().get(&one.volume) {
                Some(entry) => Arc::clone(&entry.filling),
                None => continue,
            };
            held.push(filling.lock_owned().await);
            last = Some(one.volume.clone());
        }
        if let Some(order) = order(volumes, &one)? {
            copies.push(order);
        }
    }
    if copies.is_empty() {
        return Ok(());
    }
    let order = PopulateOrder {
        layers: layers.to_vec(),
        scratch,
        mappings: mappings.cloned(),
        copies,
    };
    let binary = supervisor::find_binary()?;
    let outcomes = supervisor::populate(&binary, &order).await?;
    for (copy, outcome) in order.copies.iter().zip(outcomes) {
        if outcome == CopyOutcome::NotADirectory {
            return Err(ApiError::bad_request(format!(
                "cannot mount volume over existing file, file exists {}",
                copy.from.display()
            )));
        }
    }
    Ok(())
}

/// What is to be copied where; `None` when there is nothing to do.
fn order(volumes: &Volumes, wanted: &CopyUp) -> ApiResult<Option<CopyOrder>> {
    let volume = volumes.get(&wanted.volume)?;
    let running = volumes
        .index()
        .get(&wanted.volume)
        .is_some_and(|entry| !entry.running.is_empty());
    let data = volumes.mountpoint(&wanted.volume);
    let (to, own) = match local::backing(&wanted.volume, volume.options.as_ref())? {
        Backing::Directory => (data, true),
        Backing::Bind { device, .. } => (device, false),
        // It is empty whenever it is mounted.
        Backing::Tmpfs { .. } => return Ok(None),
    };
    let is_empty = std::fs::read_dir(&to).is_ok_and(|mut entries| entries.next().is_none());
    if !is_empty {
        return Ok(None);
    }
    // A directory that a container has mounted cannot be replaced by a full one.
    let fresh = (own && !running).then(|| {
        let name = format!("{}{:016x}", recovery::FRESH, rand::random::<u64>());
        volumes.shared.root.join(name)
    });
    Ok(Some(CopyOrder {
        from: PathBuf::from(&wanted.destination),
        to,
        fresh,
    }))
}
