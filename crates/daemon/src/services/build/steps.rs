//! The containers of builds that go on: noted on disk before they are made, so that a daemon
//! that was killed leaves none behind. Those that a build leaves on purpose are not noted any
//! more when it has ended.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::services::containers::Containers;

/// A container's note. It goes when this does.
pub(super) struct Note {
    name: String,
    path: PathBuf,
}

impl Note {
    /// Chooses a name for a container, and notes it.
    pub(super) fn new(data_root: &Path) -> io::Result<Self> {
        let root = directory(data_root);
        fs::create_dir_all(&root)?;
        loop {
            let name = format!("build-step-{:016x}", rand::random::<u64>());
            let path = root.join(&name);
            match File::create_new(&path) {
                Ok(_) => return Ok(Self { name, path }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Leaves the container to the next daemon.
    pub(super) fn keep(self) {
        std::mem::forget(self);
    }

    /// The container's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a step's note stays");
        }
    }
}

fn directory(data_root: &Path) -> PathBuf {
    data_root.join("build/steps")
}

/// Removes the containers of builds that ended with an earlier daemon.
pub(super) async fn sweep(data_root: &Path, containers: &Containers) {
    let entries = fs::read_dir(directory(data_root)).into_iter().flatten();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Ok(container) = containers.find(&name)
            && let Err(error) = container.remove(true, true).await
        {
            tracing::warn!(%name, %error, "an ended build's container stays");
            continue;
        }
        if let Err(error) = fs::remove_file(entry.path()) {
            tracing::warn!(%name, %error, "a step's note stays");
        }
    }
}
