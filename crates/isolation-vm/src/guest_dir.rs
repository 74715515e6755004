//! The guest directory: kernel, initramfs and scratch template that every VM is made of.

use std::path::{Path, PathBuf};

/// The environment variable that names the directory.
const VARIABLE: &str = "BULKHEAD_GUEST_DIR";

const KERNEL: &str = "vmlinux";
const INITRAMFS: &str = "initramfs.cpio";
const SCRATCH: &str = "scratch.ext4";
const DESCRIPTION: &str = "guest.json";

/// There is no guest that could be booted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GuestDirError {
    /// None of the places has one.
    #[error(
        "no guest kernel was found: looked for a directory with {KERNEL} in {}; build one by \
         `cargo xtask guest`, or name it by --guest-dir or {VARIABLE}", list(.0)
    )]
    NotFound(Vec<PathBuf>),
    /// The directory lacks a file.
    #[error(
        "the guest directory '{}' has no {file}; build it again by `cargo xtask guest`",
        .directory.display()
    )]
    Incomplete {
        /// The directory.
        directory: PathBuf,
        /// What it lacks.
        file: &'static str,
    },
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(", ")
}

/// A directory with everything that is needed to boot a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDir {
    directory: PathBuf,
}

impl GuestDir {
    /// The directory that was named, else the first of the usual places that has a kernel.
    ///
    /// # Errors
    /// See [`GuestDirError`].
    pub fn find(named: Option<&Path>) -> Result<Self, GuestDirError> {
        if let Some(named) = named {
            return Self::open(named);
        }
        if let Some(named) = std::env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
            return Self::open(Path::new(&named));
        }
        let places = places(std::env::current_exe().ok().as_deref());
        match places.iter().find(|place| place.join(KERNEL).is_file()) {
            Some(place) => Self::open(place),
            None => Err(GuestDirError::NotFound(places)),
        }
    }

    fn open(directory: &Path) -> Result<Self, GuestDirError> {
        for file in [KERNEL, INITRAMFS, SCRATCH] {
            if !directory.join(file).is_file() {
                return Err(GuestDirError::Incomplete {
                    directory: directory.to_owned(),
                    file,
                });
            }
        }
        // Workers have other working directories.
        let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
        Ok(Self { directory })
    }

    /// The kernel, an ELF file.
    pub fn kernel(&self) -> PathBuf {
        self.directory.join(KERNEL)
    }

    /// The initramfs.
    pub fn initramfs(&self) -> PathBuf {
        self.directory.join(INITRAMFS)
    }

    /// The formatted, empty disk that every writable layer starts out from.
    pub fn scratch_template(&self) -> PathBuf {
        self.directory.join(SCRATCH)
    }

    /// The kernel's release, where the directory says it.
    pub fn kernel_release(&self) -> Option<String> {
        Some(self.description()?.kernel_release)
    }

    /// The kernel's timer ticks a second, where the directory says it.
    pub fn kernel_hz(&self) -> Option<u32> {
        self.description()?.kernel_hz
    }

    fn description(&self) -> Option<Description> {
        let text = std::fs::read(self.directory.join(DESCRIPTION)).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// What is used of the description.
#[derive(serde::Deserialize)]
struct Description {
    kernel_release: String,
    #[serde(default)]
    kernel_hz: Option<u32>,
}

/// Beside the executable, above it (a cargo target directory), and where packages go.
fn places(executable: Option<&Path>) -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some(directory) = executable.and_then(Path::parent) {
        places.push(directory.join("guest"));
        if let Some(up) = directory.parent() {
            if let Some(up) = up.parent() {
                places.push(up.join("guest"));
            }
            places.push(up.join("lib/bulkhead/guest"));
        }
    }
    places.push("/usr/lib/bulkhead/guest".into());
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_places() {
        let places = places(Some(Path::new("/w/target/release/shim")));
        assert_eq!(places[0], Path::new("/w/target/release/guest"));
        assert_eq!(places[1], Path::new("/w/guest"));
        assert_eq!(places[2], Path::new("/w/target/lib/bulkhead/guest"));
        assert_eq!(places[3], Path::new("/usr/lib/bulkhead/guest"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(KERNEL), "").unwrap();
        let error = GuestDir::find(Some(directory.path())).unwrap_err();
        assert!(
            error.to_string().contains("has no initramfs.cpio"),
            "{error}"
        );
        for file in [INITRAMFS, SCRATCH] {
            std::fs::write(directory.path().join(file), "").unwrap();
        }
        std::fs::write(
            directory.path().join(DESCRIPTION),
            r#"{"kernel_release":"6.12"}"#,
        )
        .unwrap();
        let guest = GuestDir::find(Some(directory.path())).unwrap();
        assert_eq!(guest.kernel_release().as_deref(), Some("6.12"));
    }
}
