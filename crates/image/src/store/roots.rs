//! The files of images to look at: their layers, mounted read-only in a mount namespace that
//! nobody else sees and that goes with its thread, whatever happens to this process.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use super::ImageStore;
use crate::digest::ImageId;
use crate::error::{ImageError, Result};

/// Opens the root filesystems of images that have most of their layers in common, as those of
/// a build's steps do: a layer is mounted once, and stays mounted until this is dropped.
#[derive(Debug, Default)]
pub struct ImageRoots {
    mounter: Mutex<Option<Mounter>>,
}

impl ImageRoots {
    /// The root filesystem of an image, read-only. It stays while the directory is open; the
    /// caller keeps the image from being removed until this returns.
    ///
    /// # Errors
    /// [`ImageError::NotFound`]; what the kernel says to the mounts. Needs CAP_SYS_ADMIN.
    pub fn open(&self, store: &ImageStore, image: &ImageId) -> Result<OwnedFd> {
        let layers = store.layer_paths(image)?;
        let failed = |source| ImageError::Storage {
            what: format!("mount image {image}"),
            source,
        };
        let mut mounter = self.mounter.lock().unwrap_or_else(PoisonError::into_inner);
        let mounter = match &mut *mounter {
            Some(mounter) => mounter,
            none => {
                none.insert(Mounter::start(store.files.temporary_directory()?).map_err(failed)?)
            }
        };
        mounter.open(layers).map_err(failed)
    }
}

/// What the thread is asked.
struct Request {
    layers: Vec<PathBuf>,
    answer: mpsc::Sender<io::Result<OwnedFd>>,
}

/// The thread that has the mount namespace.
#[derive(Debug)]
struct Mounter {
    /// `None` when the thread is to end.
    requests: Option<mpsc::Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    /// Where it mounts; empty for all others, and removed when the mounts are gone.
    _point: tempfile::TempDir,
}

impl Mounter {
    fn start(point: tempfile::TempDir) -> io::Result<Self> {
        let (requests, receiver) = mpsc::channel();
        let path = point.path().to_owned();
        let thread = std::thread::Builder::new()
            .name("image-roots".to_owned())
            .spawn(move || serve(path, &receiver))?;
        Ok(Self {
            requests: Some(requests),
            thread: Some(thread),
            _point: point,
        })
    }

    fn open(&self, layers: Vec<PathBuf>) -> io::Result<OwnedFd> {
        let (answer, opened) = mpsc::channel();
        if let Some(requests) = &self.requests {
            // A thread that has panicked drops the answer too.
            let _ = requests.send(Request { layers, answer });
        }
        opened
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that mounts has ended")))
    }
}

impl Drop for Mounter {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // It said why when it panicked.
            let _ = thread.join();
        }
    }
}

fn serve(point: PathBuf, requests: &mpsc::Receiver<Request>) {
    let mut mounts = enter(&point).map(|()| Mounts {
        point,
        layers: HashMap::new(),
    });
    for request in requests {
        let opened = match &mut mounts {
            Ok(mounts) => mounts.open(&request.layers),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        // Who asked waits for it.
        let _ = request.answer.send(opened);
    }
}

/// Leaves the others' mount namespace, and makes a place for mounts in one of its own.
fn enter(point: &Path) -> io::Result<()> {
    // SAFETY: only this thread's mount namespace and file system state change, and nothing
    // else ever runs on it.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    let mode = c"mode=0700";
    rustix::mount::mount("tmpfs", point, "tmpfs", MountFlags::empty(), mode)?;
    // An overlay wants two lower directories at least.
    for name in ["none", "root"] {
        std::fs::create_dir(point.join(name))?;
    }
    // The names of up to 127 layers must fit in one page: they are relative.
    Ok(rustix::process::chdir(point)?)
}

/// The mounts of the namespace.
struct Mounts {
    point: PathBuf,
    /// The name of each layer's directory.
    layers: HashMap<PathBuf, String>,
}

impl Mounts {
    fn open(&mut self, layers: &[PathBuf]) -> io::Result<OwnedFd> {
        let mut names = Vec::with_capacity(layers.len() + 1);
        for layer in layers {
            names.push(self.layer(layer)?);
        }
        names.reverse();
        names.push("none".to_owned());
        let options = CString::new(format!("lowerdir={}", names.join(":")))?;
        let root = self.point.join("root");
        rustix::mount::mount("overlay", &root, "overlay", MountFlags::RDONLY, &*options)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, &root, flags, Mode::empty());
        // It stays for whoever has it open.
        rustix::mount::unmount(&root, UnmountFlags::DETACH)?;
        Ok(opened?)
    }

    fn layer(&mut self, layer: &Path) -> io::Result<String> {
        if let Some(name) = self.layers.get(layer) {
            return Ok(name.clone());
        }
        let name = self.layers.len().to_string();
        let point = self.point.join(&name);
        match std::fs::create_dir(&point) {
            // The last attempt to mount it failed.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        mount_layer(layer, &point)?;
        self.layers.insert(layer.to_owned(), name.clone());
        Ok(name)
    }
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
