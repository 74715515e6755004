//! Mounting a root filesystem: EROFS layer blobs under one overlay, in the mount namespace
//! that the helper shares with the process that started it.
//!
//! An overlay keeps mounts of its own of everything that it is made of, so the layers are
//! detached again as soon as it exists: a container sees one mount, however many layers.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bulkhead_isolation::{ErrorKind, IsolationError, Result};
use bulkhead_userns::Mappings;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, UnmountFlags};

use super::remap::Remap;
use crate::layout::Layout;

/// A mounted overlay; unmounted when it is dropped before [`Mounted::keep`].
pub struct Mounted {
    path: PathBuf,
    kept: bool,
}

impl Mounted {
    /// Leaves it mounted.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if !self.kept {
            detach(&self.path);
            let _ = fs::remove_dir(&self.path);
        }
    }
}

fn detach(path: &Path) {
    if let Err(error) = rustix::mount::unmount(path, UnmountFlags::DETACH) {
        tracing::warn!(%error, path = %path.display(), "left mounted");
    }
}

/// The mount point of the writable layer where its IDs are mapped.
const WRITABLE: &str = "writable";

/// Mounts `layers`, the lowest first, under the writable layer, at the bundle's root. What is on
/// disk belongs to the container's IDs, whether they are mapped or not.
pub fn mount(
    layout: &Layout,
    layers: &[PathBuf],
    writable: &Path,
    remap: Option<&Remap>,
) -> Result<Mounted> {
    let root = layout.rootfs();
    let fail = |what: String| move |error: io::Error| IsolationError::other(what, error);
    for directory in ["upper", "work"] {
        let mut builder = fs::DirBuilder::new();
        let path = writable.join(directory);
        match builder.recursive(true).mode(0o755).create(&path) {
            Ok(()) => {}
            Err(error) => return Err(fail(format!("create {}", path.display()))(error)),
        }
    }
    make_directory(&root)?;
    make_directory(&layout.layers())?;
    std::env::set_current_dir(layout.layers())
        .map_err(fail(format!("enter {}", layout.layers().display())))?;
    let mounted = mount_all(layers, writable, &root, remap);
    // Whatever is in there now; the overlay holds on to what it uses.
    let names = (0..layers.len()).map(|index| index.to_string());
    for name in names.chain(remap.map(|_| WRITABLE.to_owned())) {
        match rustix::mount::unmount(name.as_str(), UnmountFlags::DETACH) {
            // Those after one that failed.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => tracing::warn!(%error, name, "layer left mounted"),
        }
    }
    let _ = std::env::set_current_dir("/");
    match mounted {
        Ok(()) => Ok(Mounted {
            path: root,
            kept: false,
        }),
        Err(error) => {
            let _ = fs::remove_dir(&root);
            Err(error)
        }
    }
}

/// Mounts `layers`, the lowest first, for reading only, below the directory `scratch`; gives
/// where. With `mappings`, what is in them belongs to the IDs of the host that the layers' stand
/// for. They stay until the mount namespace ends. For a process with a single thread, whose
/// working directory changes.
///
/// # Errors
/// What the kernel says.
pub fn mount_image(
    layers: &[PathBuf],
    scratch: &Path,
    mappings: Option<&Mappings>,
) -> Result<PathBuf> {
    let root = scratch.join("root");
    let remap = mappings.map(Remap::fresh).transpose()?;
    let mut names = mount_layers(layers, scratch, remap.as_ref())?;
    // Without a writable layer, an overlay wants at least two others.
    while names.len() < 2 {
        let empty = format!("none{}", names.len());
        make_directory(Path::new(&empty))?;
        names.insert(0, empty);
    }
    mount_stack(&names, &root)?;
    Ok(root)
}

/// Mounts layer blobs, the lowest first, each in a directory of its own in `points`; their
/// names. They stay mounted.
pub fn mount_layers(
    blobs: &[PathBuf],
    points: &Path,
    remap: Option<&Remap>,
) -> Result<Vec<String>> {
    std::env::set_current_dir(points)
        .map_err(|error| IsolationError::other(format!("enter {}", points.display()), error))?;
    let mut names = Vec::with_capacity(blobs.len());
    for (index, blob) in blobs.iter().enumerate() {
        let point = index.to_string();
        make_directory(Path::new(&point))?;
        mount_blob(blob, &point)?;
        if let Some(remap) = remap {
            let mapped = mapped_copy(Path::new(&point), remap)?;
            // In its place, so that there is one mount to detach.
            rustix::mount::unmount(point.as_str(), UnmountFlags::DETACH)
                .map_err(|error| IsolationError::other("detach a layer", error))?;
            attach(&mapped, &point)?;
        }
        names.push(point);
    }
    Ok(names)
}

/// Mounts the directories of these names in the current one, the lowest first, as one, read
/// only.
pub fn mount_stack(names: &[String], point: &Path) -> Result<()> {
    let lower: Vec<&str> = names.iter().rev().map(String::as_str).collect();
    let options = CString::new(format!("lowerdir={}", lower.join(":")))
        .map_err(|error| IsolationError::other("name the layers", error))?;
    make_directory(point)?;
    rustix::mount::mount("overlay", point, "overlay", MountFlags::RDONLY, &*options)
        .map_err(|error| IsolationError::other("mount the layers as one", error))
}

fn make_directory(path: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(IsolationError::other(
            format!("create {}", path.display()),
            error,
        )),
        _ => Ok(()),
    }
}

fn mapped_copy(path: &Path, remap: &Remap) -> Result<OwnedFd> {
    bulkhead_userns::mapped_copy(path, remap.namespace())
        .map_err(|error| IsolationError::other(format!("map the IDs of {}", path.display()), error))
}

fn attach(mount: &OwnedFd, point: &str) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", CWD, point, flags)
        .map_err(|error| IsolationError::other("mount with mapped IDs", error))
}

fn mount_all(
    layers: &[PathBuf],
    writable: &Path,
    root: &Path,
    remap: Option<&Remap>,
) -> Result<()> {
    let points = std::env::current_dir()
        .map_err(|error| IsolationError::other("find the layers' directory", error))?;
    mount_layers(layers, &points, remap)?;
    // Overlayfs wants at least one lower directory, and names the highest first. The names
    // are relative to the current directory, because all must fit in one page.
    let lower = if layers.is_empty() {
        make_directory(Path::new("none"))?;
        "none".to_owned()
    } else {
        let names: Vec<String> = (0..layers.len())
            .rev()
            .map(|index| index.to_string())
            .collect();
        names.join(":")
    };
    // By descriptor: a path might contain what the option syntax gives a meaning to.
    let directory = match remap {
        None => open_directory(writable)?,
        Some(remap) => {
            let mapped = mapped_copy(writable, remap)?;
            make_directory(Path::new(WRITABLE))?;
            attach(&mapped, WRITABLE)?;
            open_directory(Path::new(WRITABLE))?
        }
    };
    let writable_fd = directory.as_raw_fd();
    // Whole files and directories: the writable layer is read by itself for a commit.
    let options = format!(
        "lowerdir={lower},upperdir=/proc/self/fd/{writable_fd}/upper,\
         workdir=/proc/self/fd/{writable_fd}/work,index=off,metacopy=off,redirect_dir=off"
    );
    let options =
        CString::new(options).map_err(|error| IsolationError::other("name the layers", error))?;
    // The overlay makes files of its own with the IDs of who mounts it.
    let _scope = remap.map(Remap::as_root).transpose()?;
    rustix::mount::mount("overlay", root, "overlay", MountFlags::empty(), &*options).map_err(
        |error| match error {
            Errno::NODEV => IsolationError::new(
                ErrorKind::Unavailable,
                "this kernel has no overlayfs: load the module `overlay`",
            ),
            _ => IsolationError::other(
                format!(
                    "mount overlay of {} layers at {}",
                    layers.len(),
                    root.display()
                ),
                error,
            ),
        },
    )
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|error| IsolationError::other(format!("open {}", path.display()), error))
}

/// Mounts one blob: as the file that it is where the kernel can (6.12), else by a loop
/// device that disappears with the mount.
fn mount_blob(blob: &Path, point: &str) -> Result<()> {
    let flags = MountFlags::RDONLY;
    match rustix::mount::mount(blob, point, "erofs", flags, None) {
        Ok(()) => Ok(()),
        Err(Errno::NOTBLK) => mount_loop(blob, point, flags),
        Err(Errno::NODEV) => Err(IsolationError::new(
            ErrorKind::Unavailable,
            "this kernel has no EROFS: load the module `erofs`",
        )),
        Err(error) => Err(IsolationError::other(
            format!("mount layer {}", blob.display()),
            error,
        )),
    }
}

fn mount_loop(blob: &Path, point: &str, flags: MountFlags) -> Result<()> {
    let device = attach_loop(blob).map_err(|error| {
        IsolationError::other(format!("loop device for {}", blob.display()), error)
    })?;
    // The device stays for as long as it is mounted, once this descriptor is closed.
    rustix::mount::mount(&device.path, point, "erofs", flags, None)
        .map_err(|error| IsolationError::other(format!("mount layer {}", blob.display()), error))
}

struct LoopDevice {
    path: PathBuf,
    _open: fs::File,
}

/// linux/loop.h
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

fn attach_loop(blob: &Path) -> io::Result<LoopDevice> {
    /// Others take devices at the same time; each attempt asks for a new one.
    const ATTEMPTS: u32 = 64;
    let backing = fs::File::open(blob)?;
    let control = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS {
        // SAFETY: this ioctl takes no argument.
        let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
        if number < 0 {
            return Err(io::Error::last_os_error());
        }
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(&path)?;
        let config = LoopConfig {
            fd: u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?,
            block_size: 4096,
            info: LoopInfo {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: 0,
                size_limit: 0,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR,
                file_name: [0; 64],
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        // SAFETY: `config` is a loop_config that outlives the call.
        let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
        if result == 0 {
            return Ok(LoopDevice {
                path,
                _open: device,
            });
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(error);
        }
    }
    Err(io::Error::other("no free loop device"))
}
