//! Where process isolation keeps its files in a container's bundle. All of it goes away
//! with the container.

use std::path::{Path, PathBuf};

/// The files of one container.
#[derive(Debug, Clone)]
pub struct Layout {
    bundle: PathBuf,
}

impl Layout {
    pub fn new(bundle: &Path) -> Self {
        Self {
            bundle: bundle.to_owned(),
        }
    }

    /// Where the root filesystem is mounted when it is made of layers.
    pub fn rootfs(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    /// Everything else of ours.
    pub fn runtime(&self) -> PathBuf {
        self.bundle.join("runtime")
    }

    /// Mount points of the layer blobs; short names, since the old mount API takes all of
    /// them in one page.
    pub fn layers(&self) -> PathBuf {
        self.runtime().join("l")
    }

    /// libcontainer's bundle: its `config.json` is derived from the caller's specification.
    pub fn oci_bundle(&self) -> PathBuf {
        self.runtime().join("oci")
    }

    /// libcontainer's state.
    pub fn state(&self) -> PathBuf {
        self.runtime().join("state")
    }

    /// A directory for the life of one exec's start-up.
    pub fn exec(&self, number: u64) -> PathBuf {
        self.runtime().join(format!("exec-{number}"))
    }

    /// The name of the container's cgroup, for a sweep.
    pub fn cgroup(&self) -> PathBuf {
        self.runtime().join("cgroup")
    }
}
