//! What a new daemon does about the volumes of an earlier one.

use std::path::Path;

use super::{Entry, Volume, Volumes, erase, local};
use crate::error::{ApiError, ApiResult};

/// How the directories begin that only wait for their deletion. No volume has such a name.
pub(super) const GONE: &str = ".gone-";
/// How the directories begin that are being filled from an image.
pub(super) const FRESH: &str = ".fresh-";

impl Volumes {
    /// Brings in every volume of the store, goes on with removals that had begun, and takes
    /// away what nobody knows. Call once, before the first request.
    ///
    /// # Errors
    /// That the store can't be read.
    pub async fn recover(&self) -> ApiResult<()> {
        crate::lifetime::make_private_dir(&self.shared.root)
            .map_err(|error| ApiError::internal("volumes", &error))?;
        let rows = self
            .shared
            .store
            .volumes()
            .await
            .map_err(|error| ApiError::internal("read volumes", &error))?;
        for (name, text) in rows {
            match serde_json::from_str::<Volume>(&text) {
                Ok(volume) if volume.removing => match self.take_away(&name).await {
                    Ok(gone) => erase(gone).await,
                    Err(error) => tracing::error!(%name, %error, "removal of a volume"),
                },
                Ok(volume) => {
                    // A data root that was copied without its empty directories.
                    let _ = std::fs::create_dir_all(self.mountpoint(&name));
                    self.index().insert(name, Entry::new(volume));
                }
                Err(error) => tracing::error!(%name, %error, "record of a volume is damaged"),
            }
        }
        let Ok(entries) = std::fs::read_dir(&self.shared.root) else {
            return Ok(());
        };
        for entry in entries.flatten() {
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            if name.starts_with(GONE) || name.starts_with(FRESH) {
                erase(entry.path()).await;
            } else if !self.index().contains_key(&name) {
                forget_unfinished(&entry.path());
            }
        }
        Ok(())
    }

    /// A container of an earlier daemon uses these volumes.
    pub fn adopt<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
        container: &str,
        running: bool,
    ) {
        let mut index = self.index();
        for name in names {
            if let Some(entry) = index.get_mut(name) {
                entry.users.insert(container.to_owned());
                if running {
                    entry.running.insert(container.to_owned());
                }
            }
        }
    }

    /// Unmounts what no container that runs uses; call when all of them are adopted.
    pub fn unmount_idle(&self) {
        for (name, entry) in self.index().iter() {
            if entry.running.is_empty()
                && let Err(error) = local::unmount(&self.mountpoint(name))
            {
                tracing::error!(%name, %error, "volume stays mounted");
            }
        }
    }
}

/// A directory without a row was being made when the daemon was killed, and is empty. Anything
/// more is somebody's data, and stays.
fn forget_unfinished(path: &Path) {
    let _ = std::fs::remove_dir(path.join("_data"));
    if let Err(error) = std::fs::remove_dir(path) {
        tracing::warn!(path = %path.display(), %error, "not a volume of ours, left alone");
    }
}
