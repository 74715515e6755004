//! A container's files: in a mount namespace of our own, the container's root with what is
//! mounted over it becomes the root of this process. Nothing in the container, however it
//! swaps names meanwhile, then leads anywhere else. Devices don't open there.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use bulkhead_files::protocol::Bind;
use bulkhead_files::{FilesError, FilesErrorKind, Scene, View};
use bulkhead_isolation::{IsolationError, Result};
use bulkhead_userns::Identity;
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree,
};
use rustix::process::Resource;
use rustix::thread::UnshareFlags;

use super::remap::Remap;
use super::{rootfs, set_attributes, user};
use crate::layout::Layout;
use crate::wire::{FilesOrder, LowerOrder, MountOrder, StackOrder};

/// Mounts a container's root where its run would; it stays.
pub fn mount(order: &MountOrder) -> Result<()> {
    let layout = Layout::new(&order.bundle);
    let remap = order.mappings.as_ref().map(Remap::fresh).transpose()?;
    rootfs::mount(&layout, &order.layers, &order.writable, remap.as_ref())?.keep();
    Ok(())
}

/// Serves one conversation.
pub fn serve(order: &FilesOrder, streams: Vec<OwnedFd>) -> Result<()> {
    let client = streams.into_iter().next();
    let client = client.ok_or_else(|| IsolationError::other("serve files", "no client came"))?;
    // Modes are those of archives.
    rustix::process::umask(Mode::empty());
    let limit = rustix::process::getrlimit(Resource::Nofile);
    // A deep tree has many directories open.
    let _ = rustix::process::setrlimit(
        Resource::Nofile,
        rustix::process::Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
    let lookup = |root: &OwnedFd, name: &str| {
        let identity = user::resolve(root.as_fd(), name).map_err(|error| error.message)?;
        Ok((identity.uid, identity.gid))
    };
    let served =
        bulkhead_files::serve(UnixStream::from(client), |view| enter(order, view), &lookup);
    // The client has gone, which is its right.
    if let Err(error) = served {
        tracing::debug!(%error, "a conversation about files was cut short");
    }
    Ok(())
}

fn failed(what: impl std::fmt::Display) -> impl FnOnce(Errno) -> FilesError {
    move |error| FilesError::new(FilesErrorKind::Other, format!("{what}: {error}"))
}

fn enter(order: &FilesOrder, view: View) -> std::result::Result<Scene, FilesError> {
    // SAFETY: this process has one thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
        .map_err(failed("make a mount namespace"))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(failed("make mounts private"))?;
    match view {
        View::Layers => {
            let stack = order.stack.as_ref().ok_or_else(|| {
                FilesError::new(
                    FilesErrorKind::Unsupported,
                    "what changed in this container cannot be told: its root was mounted by \
                     somebody else",
                )
            })?;
            layers(stack)
        }
        View::Root => root(order, &[]),
        View::Mounted => root(order, &order.binds),
    }
}

/// A copy of a mount that is in no namespace, without what could be done by way of it.
fn copy(path: &Path, recursive: bool, read_only: bool) -> std::result::Result<OwnedFd, FilesError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let mount = open_tree(CWD, path, flags).map_err(|error| {
        let kind = match error {
            Errno::NOENT => FilesErrorKind::Invalid,
            _ => FilesErrorKind::Other,
        };
        FilesError::new(kind, format!("mount {}: {error}", path.display()))
    })?;
    let mut set = libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    if read_only {
        set |= libc::MOUNT_ATTR_RDONLY;
    }
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        propagation: u64::from(MountPropagationFlags::PRIVATE.bits()),
        userns_fd: 0,
    };
    set_attributes(&mount, &attributes, recursive).map_err(failed(format_args!(
        "confine the mount of {}",
        path.display()
    )))?;
    Ok(mount)
}

fn root(order: &FilesOrder, binds: &[Bind]) -> std::result::Result<Scene, FilesError> {
    let in_namespace =
        |error: IsolationError| FilesError::new(FilesErrorKind::Other, error.message);
    let remap = order.mappings.as_ref().map(Remap::fresh);
    let remap = remap.transpose().map_err(in_namespace)?;
    let root = copy(&order.root, false, order.read_only)?;
    // While their sources can be seen.
    let binds: Vec<(&Path, OwnedFd)> = binds
        .iter()
        .map(|bind| {
            let mount = copy(&bind.source, bind.recursive, bind.read_only)?;
            Ok((bind.destination.as_path(), mount))
        })
        .collect::<std::result::Result<_, FilesError>>()?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&root, "", CWD, &order.root, flags).map_err(failed("mount the root"))?;
    rustix::process::fchdir(&root).map_err(failed("enter the root"))?;
    // The old root then lies over the new one.
    rustix::process::pivot_root(".", ".").map_err(failed("change the root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("leave the old root"))?;
    rustix::process::chdir("/").map_err(failed("enter the new root"))?;
    let scope = remap.as_ref().map(Remap::as_root);
    let scope = scope.transpose().map_err(in_namespace)?;
    for (destination, mount) in binds {
        attach(destination, &mount)?;
    }
    drop(scope);
    // Opened again: with what is mounted over it.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", flags, Mode::empty()).map_err(failed("open the root"))?;
    if let Some(remap) = &remap {
        // Owners are then what they are in the container, and what is made is its root's.
        bulkhead_userns::enter(remap.namespace(), &Identity::default()).map_err(|error| {
            FilesError::new(
                FilesErrorKind::Other,
                format!("enter the container's user namespace: {error}"),
            )
        })?;
    }
    Ok(Scene::Root(root))
}

/// Mounts something in the container, making its place if there is none, as Docker does.
fn attach(destination: &Path, mount: &OwnedFd) -> std::result::Result<(), FilesError> {
    let failed_at = |error: &dyn std::fmt::Display| {
        FilesError::new(
            FilesErrorKind::Other,
            format!("mount at {}: {error}", destination.display()),
        )
    };
    let stat = rustix::fs::fstat(mount).map_err(|error| failed_at(&error))?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let open = || rustix::fs::open(destination, flags, Mode::empty());
    let point = match open() {
        Err(Errno::NOENT) => {
            make_place(destination, FileType::from_raw_mode(stat.st_mode).is_dir())
                .map_err(|error| failed_at(&error))?;
            open()
        }
        other => other,
    };
    let point = point.map_err(|error| failed_at(&error))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", &point, "", flags).map_err(|error| failed_at(&error))
}

fn make_place(destination: &Path, directory: bool) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o755);
    if directory {
        return builder.create(destination);
    }
    if let Some(parent) = destination.parent() {
        builder.create(parent)?;
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o755);
    options.open(destination).map(|_| ())
}

fn layers(stack: &StackOrder) -> std::result::Result<Scene, FilesError> {
    let upper = copy(&stack.upper, false, true)?;
    let base = base(&stack.lower)
        .map_err(|error| FilesError::new(FilesErrorKind::Other, error.message))?;
    Ok(Scene::Layers { upper, base })
}

/// All layers below the writable one as one directory.
fn base(lower: &LowerOrder) -> Result<Option<OwnedFd>> {
    let names = match lower {
        LowerOrder::Blobs { blobs, points } => rootfs::mount_layers(blobs, points, None)?,
        LowerOrder::Directories(paths) => {
            let parent = paths.first().and_then(|path| path.parent());
            if let Some(parent) = parent {
                std::env::set_current_dir(parent).map_err(|error| {
                    IsolationError::other(format!("enter {}", parent.display()), error)
                })?;
            }
            let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.to_owned());
            paths.iter().filter_map(name).collect()
        }
    };
    let point = match names.as_slice() {
        [] => return Ok(None),
        [only] => PathBuf::from(only),
        _ => {
            let point = PathBuf::from("base");
            rootfs::mount_stack(&names, &point)?;
            point
        }
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let name = CString::new(point.as_os_str().as_encoded_bytes())
        .map_err(|error| IsolationError::other("name the layers", error))?;
    rustix::fs::open(&name, flags, Mode::empty())
        .map(Some)
        .map_err(|error| IsolationError::other("open the layers", error))
}
