//! The store's files: their names, temporaries, durable renames, the sweep. Knows nothing of
//! what images are.
//!
//! A file gets its name only when it is whole and synced; its directory is synced before the
//! metadata refers to it. What has a temporary name, or is not referred to, is swept when the
//! store is opened.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::digest::Digest;
use crate::error::{ImageError, Result};

/// What a layer has on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum StoredFile {
    /// `blobs/sha256/<hex>`: bytes as received, named by their digest.
    Blob(Digest),
    /// `layers/<diffID hex>.erofs`.
    LayerImage(Digest),
    /// `layers/<diffID hex>.tar.zst`: the tar of a layer that came uncompressed.
    LayerTar(Digest),
}

/// The layer whose image is at this path.
pub(crate) fn layer_at(path: &Path) -> Option<Digest> {
    let name = path.file_name()?.to_str()?;
    Digest::from_hex(name.strip_suffix(".erofs")?).ok()
}

/// The directories, and the lock on them.
#[derive(Debug)]
pub(crate) struct StoreFiles {
    root: PathBuf,
    /// Held while the store is open.
    _lock: File,
}

/// An error of a file operation with what it was about.
pub(crate) fn storage(what: &str, path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let what = format!("{what} {}", path.display());
    move |source| ImageError::Storage { what, source }
}

impl StoreFiles {
    /// Makes the directories, takes the lock, removes temporaries.
    pub(crate) fn open(root: PathBuf) -> Result<Self> {
        let made = ["", "blobs", "blobs/sha256", "layers", "tmp"].map(|name| root.join(name));
        for directory in &made {
            fs::create_dir_all(directory).map_err(storage("create", directory))?;
        }
        let path = root.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(storage("open", &path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(ImageError::Locked(root.display().to_string()));
            }
            Err(error) => return Err(storage("lock", &path)(error.into())),
        }
        let files = Self { root, _lock: lock };
        let temporaries = files.root.join("tmp");
        for entry in files.entries(&temporaries)? {
            let removed = match fs::symlink_metadata(&entry) {
                Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(&entry),
                _ => fs::remove_file(&entry),
            };
            removed.map_err(storage("remove", &entry))?;
        }
        Ok(files)
    }

    pub(crate) fn database_path(&self) -> PathBuf {
        self.root.join("metadata.sqlite")
    }

    pub(crate) fn path(&self, file: StoredFile) -> PathBuf {
        match file {
            StoredFile::Blob(digest) => self.root.join("blobs/sha256").join(digest.hex()),
            StoredFile::LayerImage(digest) => self
                .root
                .join("layers")
                .join(format!("{}.erofs", digest.hex())),
            StoredFile::LayerTar(digest) => self
                .root
                .join("layers")
                .join(format!("{}.tar.zst", digest.hex())),
        }
    }

    /// A file that vanishes when it is dropped, unless [`StoreFiles::keep`] names it.
    pub(crate) fn temporary(&self) -> Result<tempfile::NamedTempFile> {
        let directory = self.root.join("tmp");
        tempfile::NamedTempFile::new_in(&directory).map_err(storage("create a file in", &directory))
    }

    /// A directory that vanishes when it is dropped.
    pub(crate) fn temporary_directory(&self) -> Result<tempfile::TempDir> {
        let directory = self.root.join("tmp");
        tempfile::TempDir::new_in(&directory).map_err(storage("create a directory in", &directory))
    }

    /// Gives a whole, synced file its name. Returns whether it is new: files of one name have
    /// the same content.
    pub(crate) fn keep(&self, temporary: tempfile::TempPath, file: StoredFile) -> Result<bool> {
        let path = self.path(file);
        if path.exists() {
            return Ok(false);
        }
        self.replace(temporary, file)?;
        Ok(true)
    }

    /// The same in the place of a file that is wrong. Who has that open or mounted keeps it.
    pub(crate) fn replace(&self, temporary: tempfile::TempPath, file: StoredFile) -> Result<()> {
        let path = self.path(file);
        // Never written again; a worker of another user may open a layer's image.
        let mode = fs::Permissions::from_mode(0o444);
        fs::set_permissions(&temporary, mode).map_err(storage("set the mode of", &path))?;
        temporary
            .persist(&path)
            .map_err(|error| storage("rename to", &path)(error.error))
    }

    /// Makes renames durable.
    pub(crate) fn sync_directories(&self) -> Result<()> {
        for name in ["blobs/sha256", "layers"] {
            let path = self.root.join(name);
            let synced = File::open(&path).and_then(|directory| directory.sync_all());
            synced.map_err(storage("sync", &path))?;
        }
        Ok(())
    }

    /// Removes a file that nothing refers to any more. One that is gone is no error.
    pub(crate) fn remove(&self, file: StoredFile) -> Result<()> {
        let path = self.path(file);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(storage("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes all that is not in `used`.
    pub(crate) fn sweep(&self, used: &HashSet<StoredFile>) -> Result<()> {
        let used: HashSet<PathBuf> = used.iter().map(|file| self.path(*file)).collect();
        for directory in ["blobs/sha256", "layers"] {
            for path in self.entries(&self.root.join(directory))? {
                if !used.contains(&path) {
                    tracing::info!(path = %path.display(), "removed what no image refers to");
                    fs::remove_file(&path).map_err(storage("remove", &path))?;
                }
            }
        }
        Ok(())
    }

    /// Bytes that a file takes on disk; 0 if it is missing.
    pub(crate) fn disk_bytes(&self, file: StoredFile) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(self.path(file)).map_or(0, |metadata| metadata.blocks() * 512)
    }

    fn entries(&self, directory: &Path) -> Result<Vec<PathBuf>> {
        let listed = fs::read_dir(directory).and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.path()))
                .collect::<io::Result<Vec<PathBuf>>>()
        });
        listed.map_err(storage("list", directory))
    }
}
