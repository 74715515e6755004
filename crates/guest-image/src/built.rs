//! A kernel that was built for guests alone: a directory with an ELF vmlinux, which needs
//! no modules, its configuration, its release and what it was built from.

use std::io;
use std::path::{Path, PathBuf};

use crate::{GuestImageError, io_error};

const VMLINUX: &str = "vmlinux";
const CONFIG: &str = "config";
const RELEASE: &str = "release";
const STAMP: &str = "stamp";

/// A built kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltKernel {
    /// The kernel, an ELF file.
    pub vmlinux: PathBuf,
    /// Its configuration.
    pub config: PathBuf,
    /// What `uname -r` will print.
    pub release: String,
    /// What it was built from; another text, another kernel.
    pub stamp: String,
}

impl BuiltKernel {
    /// The kernel that was kept in this directory, if there is one.
    ///
    /// # Errors
    /// [`GuestImageError::Io`] when there is, and it cannot be read.
    pub fn find(directory: &Path) -> Result<Option<Self>, GuestImageError> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read_to_string(&path).map_err(io_error("read", &path))
        };
        if !directory.is_dir() {
            return Ok(None);
        }
        Ok(Some(Self {
            vmlinux: directory.join(VMLINUX),
            config: directory.join(CONFIG),
            release: read(RELEASE)?,
            stamp: read(STAMP)?,
        }))
    }

    /// Copies it into this directory, in place of what was there.
    ///
    /// # Errors
    /// [`GuestImageError::Io`]; what was there before is then still there, or nothing is.
    pub fn keep(&self, directory: &Path) -> Result<(), GuestImageError> {
        let parent = directory.parent().unwrap_or(Path::new("."));
        let new = tempfile::Builder::new()
            .prefix(".guest-kernel-")
            .tempdir_in(parent)
            .map_err(io_error("write in", parent))?;
        for (from, name) in [(&self.vmlinux, VMLINUX), (&self.config, CONFIG)] {
            std::fs::copy(from, new.path().join(name)).map_err(io_error("copy", from))?;
        }
        for (text, name) in [(&self.release, RELEASE), (&self.stamp, STAMP)] {
            let path = new.path().join(name);
            std::fs::write(&path, text).map_err(io_error("write", &path))?;
        }
        match std::fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("replace", directory)(error));
            }
            _ => {}
        }
        let path = new.keep();
        std::fs::rename(&path, directory).map_err(io_error("write", directory))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("kernel");
        assert_eq!(BuiltKernel::find(&place).unwrap(), None);
        for stamp in ["one", "two"] {
            let made = directory.path().join("made");
            std::fs::write(&made, stamp).unwrap();
            let kernel = BuiltKernel {
                vmlinux: made.clone(),
                config: made,
                release: "6.12-x".to_owned(),
                stamp: stamp.to_owned(),
            };
            kernel.keep(&place).unwrap();
            let found = BuiltKernel::find(&place).unwrap().unwrap();
            assert_eq!((&*found.release, &*found.stamp), ("6.12-x", stamp));
            assert_eq!(std::fs::read_to_string(&found.vmlinux).unwrap(), stamp);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
