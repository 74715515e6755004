//! What builds need of the store: which image a step led to, and an image's files to look at.
//!
//! A step is remembered for as long as its image is there. An image's files are the layers
//! that this store wrote itself, mounted read-only in a mount namespace that nobody else sees
//! and that ends at once: what stays is one open directory, and the mounts go when it is
//! closed, whatever happens to this process.

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rusqlite::{OptionalExtension, params};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;

use super::ImageStore;
use crate::digest::{Digest, ImageId};
use crate::error::{ImageError, Result};

/// Made wherever it is missing: stores of earlier versions have none.
pub(super) const BUILD_STEPS: &str = "
CREATE TABLE IF NOT EXISTS build_steps (
    key TEXT PRIMARY KEY,
    image TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS build_steps_by_image ON build_steps(image);
";

impl ImageStore {
    /// Remembers that a step led to an image.
    pub fn remember_step(&self, key: &Digest, image: &ImageId) -> Result<()> {
        self.state()
            .connection
            .prepare_cached("INSERT OR REPLACE INTO build_steps VALUES (?1, ?2)")?
            .execute(params![key.hex(), image.to_string()])?;
        Ok(())
    }

    /// The image that a step led to.
    pub fn step(&self, key: &Digest) -> Result<Option<ImageId>> {
        let found: Option<String> = self
            .state()
            .connection
            .prepare_cached("SELECT image FROM build_steps WHERE key = ?1")?
            .query_row([key.hex()], |row| row.get(0))
            .optional()?;
        found
            .map(|id| {
                id.parse()
                    .map_err(|_| ImageError::Damaged(format!("image {id:?} of a build step")))
            })
            .transpose()
    }

    /// Forgets all steps; their images stay. Returns how many there were.
    pub fn forget_steps(&self) -> Result<usize> {
        let mut state = self.state();
        state.removing(|transaction| Ok(transaction.execute("DELETE FROM build_steps", [])?))
    }

    /// Forgets the steps that led to these images.
    pub fn forget_steps_to(&self, images: &[ImageId]) -> Result<usize> {
        let mut state = self.state();
        state.removing(|transaction| {
            let mut forgotten = 0;
            for image in images {
                forgotten += transaction
                    .prepare_cached("DELETE FROM build_steps WHERE image = ?1")?
                    .execute([image.to_string()])?;
            }
            Ok(forgotten)
        })
    }

    /// The root filesystem of an image, read-only. It stays while the directory is open; the
    /// caller keeps the image from being removed until this returns.
    ///
    /// # Errors
    /// [`ImageError::NotFound`]; what the kernel says to the mounts. Needs CAP_SYS_ADMIN.
    pub fn open_root(&self, image: &ImageId) -> Result<OwnedFd> {
        let layers = self.layer_paths(image)?;
        let point = self.files.temporary_directory()?;
        let target = point.path().to_owned();
        // A mount namespace belongs to a thread: one makes it, opens the root and ends.
        std::thread::Builder::new()
            .name("image-root".to_owned())
            .spawn(move || mount(&layers, &target))
            .and_then(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
            })
            .map_err(|source| ImageError::Storage {
                what: format!("mount image {image}"),
                source,
            })
    }
}

/// Runs on a thread of its own.
fn mount(layers: &[PathBuf], point: &Path) -> io::Result<OwnedFd> {
    // SAFETY: only this thread's mount namespace and file system state change, and the thread
    // ends right after.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    let mode = c"mode=0700";
    rustix::mount::mount("tmpfs", point, "tmpfs", MountFlags::empty(), mode)?;
    // The names of up to 127 layers must fit in one page: they are relative.
    rustix::process::chdir(point)?;
    let mut names = Vec::new();
    for (index, layer) in layers.iter().enumerate() {
        let name = index.to_string();
        std::fs::create_dir(point.join(&name))?;
        mount_layer(layer, &point.join(&name))?;
        names.push(name);
    }
    // An overlay wants two lower directories at least.
    for name in ["none", "root"] {
        std::fs::create_dir(point.join(name))?;
    }
    names.reverse();
    names.push("none".to_owned());
    let options = CString::new(format!("lowerdir={}", names.join(":")))?;
    let root = point.join("root");
    rustix::mount::mount("overlay", &root, "overlay", MountFlags::RDONLY, &*options)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, &root, flags, Mode::empty())?)
}

/// As the file that it is where the kernel can (6.12), else by a loop device.
fn mount_layer(layer: &Path, point: &Path) -> io::Result<()> {
    match rustix::mount::mount(layer, point, "erofs", MountFlags::RDONLY, None) {
        Err(Errno::NOTBLK) => {}
        other => return Ok(other?),
    }
    let status = std::process::Command::new("mount")
        .args(["-t", "erofs", "-o", "ro,loop"])
        .args([layer, point])
        .status()?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "mount -o loop of {}: {status}",
        layer.display()
    )))
}
