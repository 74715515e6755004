//! Binds that a runtime cannot be given as they are.
//!
//! A directory inside a volume must be looked up inside it: whoever writes to the volume could
//! lead a path out of it by a link, also while it is being walked. And the runtime leaves every
//! mount a slave of the host's, also one that is to be private or shared. So all of these are
//! mounted here first, in the supervisor's own mount namespace, and the runtime is given that
//! mount.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use bulkhead_isolation::{ErrorKind, IsolationError};
use bulkhead_task::bundle::Bundle;
use bulkhead_task::options::{IMAGE_OPTION, SHM_OF_OPTION, SUBPATH_OPTION};
use bulkhead_userns::Mappings;
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags};
use rustix::thread::UnshareFlags;

use crate::mounts;

/// Mounts what needs it and points the specification there. What is mounted goes with the
/// mount namespace.
pub fn stage(spec: &mut Spec, bundle: &Bundle) -> Result<(), IsolationError> {
    let mappings = bulkhead_isolation_process::mappings(spec);
    let Some(mounts) = spec.mounts_mut() else {
        return Ok(());
    };
    let mut any_shared = false;
    for (number, mount) in mounts.iter_mut().enumerate() {
        let place = bundle.binds().join(number.to_string());
        if is_shared(mount) {
            stage_shared(mount, &place)?;
            any_shared = true;
        } else {
            stage_one(mount, &place, mappings.as_ref())?;
        }
    }
    if any_shared && let Some(linux) = spec.linux_mut() {
        // Otherwise the runtime makes them slaves. The others become shared with nobody.
        linux.set_rootfs_propagation(Some("shared".to_owned()));
    }
    Ok(())
}

/// The binds whose own mounts the host is to see.
const SHARED: [&str; 2] = ["shared", "rshared"];

fn is_shared(mount: &Mount) -> bool {
    let mut options = mount.options().iter().flatten();
    options.any(|option| SHARED.contains(&option.as_str()))
}

/// Mounts what the host has there, as a peer of the host's mount.
fn stage_shared(mount: &mut Mount, place: &Path) -> Result<(), IsolationError> {
    let Some(source) = mount.source().clone() else {
        return Ok(());
    };
    let mut options = mount.options().clone().unwrap_or_default();
    let recursive = options.iter().any(|option| option == "rbind");
    let staged = mounts::take_from_host(&source, recursive).and_then(|tree| {
        make_place(&tree, place)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        Ok(rustix::mount::move_mount(&tree, "", CWD, place, flags)?)
    });
    staged.map_err(|error| {
        IsolationError::other(format!("cannot share {}", source.display()), error)
    })?;
    options.retain(|option| !SHARED.contains(&option.as_str()));
    mount.set_options(Some(options));
    mount.set_source(Some(place.to_owned()));
    Ok(())
}

fn stage_one(
    mount: &mut Mount,
    place: &Path,
    mappings: Option<&Mappings>,
) -> Result<(), IsolationError> {
    let mut options = mount.options().clone().unwrap_or_default();
    let has = |wanted: &str| options.iter().any(|option| option == wanted);
    let recursive = has("rbind");
    let bind = recursive || has("bind") || mount.typ().as_deref() == Some("bind");
    let private = has("private") || has("rprivate");
    let subpath = options
        .iter()
        .find_map(|option| option.strip_prefix(SUBPATH_OPTION))
        .map(str::to_owned);
    let donor = options
        .iter()
        .find_map(|option| option.strip_prefix(SHM_OF_OPTION))
        .map(str::to_owned);
    if let Some(donor) = donor {
        stage_shared_memory(&donor, place).map_err(|error| {
            IsolationError::other(format!("cannot share the memory of process {donor}"), error)
        })?;
        options.retain(|option| !option.starts_with(SHM_OF_OPTION));
        mount.set_options(Some(options));
        mount.set_source(Some(place.to_owned()));
        return Ok(());
    }
    let image = options
        .iter()
        .find_map(|option| option.strip_prefix(IMAGE_OPTION))
        .map(|list| mount_image(list, place, mappings))
        .transpose()?;
    if image.is_some() {
        options.retain(|option| !option.starts_with(IMAGE_OPTION));
        mount.set_source(image);
    }
    let (true, Some(source)) = (
        bind && (private || subpath.is_some()),
        mount.source().clone(),
    ) else {
        mount.set_options(Some(options));
        return Ok(());
    };
    let failed = |what: &str, error: io::Error| {
        let kind = match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::InvalidInput => ErrorKind::InvalidArgument,
            _ => ErrorKind::Other,
        };
        let shown = source.join(subpath.as_deref().unwrap_or_default());
        let shown = shown.display();
        IsolationError::new(kind, format!("{what} {shown}: {error}"))
    };
    let found =
        find(&source, subpath.as_deref()).map_err(|error| failed("cannot access path", error))?;
    attach(&found, place, recursive, private).map_err(|error| failed("cannot mount", error))?;
    options.retain(|option| !option.starts_with(SUBPATH_OPTION));
    mount.set_options(Some(options));
    mount.set_source(Some(place.to_owned()));
    Ok(())
}

/// Mounts what these layers make up, beside the place of a mount; where.
fn mount_image(
    list: &str,
    place: &Path,
    mappings: Option<&Mappings>,
) -> Result<PathBuf, IsolationError> {
    let layers: Vec<PathBuf> = serde_json::from_str(list)
        .map_err(|error| IsolationError::other("cannot read the layers of an image", error))?;
    let scratch = place.with_extension("image");
    let failed =
        |error: io::Error| IsolationError::other("cannot make a place for an image", error);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&scratch)
        .map_err(failed)?;
    rustix::mount::mount("tmpfs", &scratch, "tmpfs", MountFlags::empty(), None)
        .map_err(|error| failed(error.into()))?;
    let mappings = mappings.cloned();
    // Mounting changes the working directory, which threads share unless they are told not to.
    let mounted = std::thread::spawn(move || {
        // SAFETY: what is no longer shared is this thread's view of root and directory.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }
            .map_err(|error| failed(error.into()))?;
        bulkhead_isolation_process::mount_image(&layers, &scratch, mappings.as_ref())
    });
    let mounted = mounted.join();
    mounted.map_err(|_| failed(io::Error::other("the thread ended early")))?
}

/// Takes what a process has mounted at `/dev/shm` out of its mount namespace.
fn stage_shared_memory(donor: &str, place: &Path) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{donor}/ns/mnt"))?;
    let taken = mounts::take(namespace, "/dev/shm".into(), false)?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(place)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(&taken, "", CWD, place, flags)?)
}

fn find(source: &Path, subpath: Option<&str>) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, source, flags, Mode::empty())?;
    let Some(subpath) = subpath else {
        return Ok(root);
    };
    // A link that leads out is refused and not followed to something else inside.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(&root, subpath, flags, Mode::empty(), resolve) {
        Err(Errno::XDEV) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "path concatenation escapes the base directory",
        )),
        found => Ok(found?),
    }
}

/// An empty directory or file, as what is found is one.
fn make_place(found: &OwnedFd, place: &Path) -> io::Result<()> {
    if let Some(parent) = place.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(parent)?;
    }
    let stat = rustix::fs::fstat(found)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        fs::create_dir(place)?;
    } else {
        File::create_new(place)?;
    }
    Ok(())
}

fn attach(found: &OwnedFd, place: &Path, recursive: bool, private: bool) -> io::Result<()> {
    make_place(found, place)?;
    let from = format!("/proc/self/fd/{}", found.as_raw_fd());
    if recursive {
        rustix::mount::mount_bind_recursive(from, place)?;
    } else {
        rustix::mount::mount_bind(from, place)?;
    }
    if private {
        let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change(place, flags)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_a_volume_stays_in_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("sub/deep")).unwrap();
        fs::write(dir.path().join("sub/file"), "mine").unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("out")).unwrap();
        std::os::unix::fs::symlink("../sub", dir.path().join("sub/up")).unwrap();
        std::os::unix::fs::symlink("../../../../sub", dir.path().join("sub/away")).unwrap();
        assert!(find(dir.path(), Some("sub/deep")).is_ok());
        let up = find(dir.path(), Some("sub/up/file")).unwrap();
        assert_eq!(rustix::fs::fstat(&up).unwrap().st_size, 4);
        for bad in ["out", "out/passwd", "sub/away", "sub/file/x", "missing"] {
            assert!(find(dir.path(), Some(bad)).is_err(), "{bad}");
        }
    }
}
