//! Making a container: its root, its user, and with libcontainer everything else.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use bulkhead_isolation::{ErrorKind, GROUP_ADD_ANNOTATION, InjectedFile, IsolationError, Result};
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::notify_socket::{NOTIFY_FILE, NotifySocket};
use libcontainer::syscall::syscall::SyscallType;
use oci_spec::runtime::{Mount, MountBuilder, RootBuilder, Spec};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::payload::Payload;
use super::remap::Remap;
use super::{
    INIT_PATH, devices, limits, mounts, rootfs, scaffold, user, way, whole_dev, with_causes,
};
use crate::layout::Layout;
use crate::wire::{CreateOrder, RootfsOrder};
use bulkhead_cgroup::{self as cgroup, Cgroup, lock_parents};

/// Makes the container; the PID of its init, which waits for the word to go.
pub fn run(order: CreateOrder, streams: Vec<OwnedFd>, control: BorrowedFd<'_>) -> Result<i32> {
    let layout = Layout::new(&order.bundle);
    let remap = Remap::of(&order.spec)?;
    let (root, mounted) = match &order.rootfs {
        RootfsOrder::Layers { layers, writable } => {
            let mounted = rootfs::mount(&layout, layers, writable, remap.as_ref())?;
            (layout.rootfs(), Some(mounted))
        }
        RootfsOrder::Mounted(path) => (path.clone(), None),
    };
    let pid = create(order, &layout, &root, remap, streams, control)?;
    if let Some(mounted) = mounted {
        mounted.keep();
    }
    Ok(pid)
}

fn create(
    order: CreateOrder,
    layout: &Layout,
    root: &Path,
    mut remap: Option<Remap>,
    streams: Vec<OwnedFd>,
    control: BorrowedFd<'_>,
) -> Result<i32> {
    let mut spec = order.spec;
    let scope = remap.as_ref().map(Remap::as_root).transpose()?;
    adapt(
        &mut spec,
        root,
        &order.injected_files,
        order.init.as_deref(),
    )?;
    drop(scope);
    let aside = whole_dev::set_aside(&mut spec)?;
    if let Some(remap) = &mut remap {
        let prepared = remap.prepare(&mut spec, root, &order.bundle, &streams)?;
        set_root(&mut spec, &prepared)?;
    }
    let payload = Payload::take(&mut spec, control)?;
    write_spec(&spec, &layout.oci_bundle())?;
    make_directory(&layout.state())?;

    let failed = |error: libcontainer::error::LibcontainerError| {
        let message = mounts::in_plain_words(&with_causes(&error));
        IsolationError::new(ErrorKind::Other, message)
    };
    let mut builder = ContainerBuilder::new(order.id.clone(), SyscallType::default())
        .with_root_path(layout.state())
        .map_err(failed)?
        .with_executor(payload)
        .with_console_socket(order.console_socket);
    let mut streams = streams.into_iter();
    if let (Some(stdin), Some(stdout), Some(stderr)) =
        (streams.next(), streams.next(), streams.next())
    {
        builder = builder
            .with_stdin(stdin)
            .with_stdout(stdout)
            .with_stderr(stderr);
    }
    let lock = lock_parents(false)
        .map_err(|error| IsolationError::other("lock the control groups", error))?;
    let mut container = builder
        .as_init(layout.oci_bundle())
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(failed)?;
    drop(lock);
    if let Err(error) = confine_devices(&spec) {
        // Nothing runs in it yet.
        let _ = container.delete(true);
        return Err(error);
    }
    let pid = container
        .pid()
        .ok_or_else(|| IsolationError::new(ErrorKind::Other, "libcontainer made no process"))?;
    if let Some(aside) = aside
        && let Err(error) = whole_dev::cover(pid.as_raw(), &aside)
    {
        let _ = container.delete(true);
        return Err(error);
    }
    // libcontainer's own gate opens at once; the payload waits for our word.
    NotifySocket::new(layout.state().join(&order.id).join(NOTIFY_FILE))
        .notify_container_start()
        .map_err(|error| IsolationError::new(ErrorKind::Other, with_causes(&error)))?;
    Ok(pid.as_raw())
}

/// Where libcontainer had no controller for devices to give the rules to.
fn confine_devices(spec: &Spec) -> Result<()> {
    let linux = spec.linux().as_ref();
    let rules = linux.and_then(|linux| linux.resources().as_ref()?.devices().clone());
    let (Some(rules), Some(name)) = (rules, linux.and_then(|linux| linux.cgroups_path().clone()))
    else {
        return Ok(());
    };
    if !cgroup::host_is_unified() {
        return Ok(());
    }
    let confined = Cgroup::find(&name).and_then(|group| match group.unified() {
        Some(path) => devices::confine(path, &rules),
        None => Err(std::io::Error::other("the container has no control group")),
    });
    confined.map_err(|error| IsolationError::other("confine the container to its devices", error))
}

/// Writes a specification where libcontainer reads it.
pub fn write_spec(spec: &Spec, bundle: &Path) -> Result<()> {
    let failed = |error: std::io::Error| IsolationError::other("write the OCI bundle", error);
    make_directory(bundle)?;
    let text = serde_json::to_vec(spec).map_err(|error| failed(error.into()))?;
    fs::write(bundle.join("config.json"), text).map_err(failed)
}

fn make_directory(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(|error| IsolationError::other(format!("create {}", path.display()), error))
}

fn set_root(spec: &mut Spec, root: &Path) -> Result<()> {
    let read_only = spec.root().as_ref().and_then(|root| root.readonly());
    let built = RootBuilder::default()
        .path(root)
        .readonly(read_only.unwrap_or(false))
        .build()
        .map_err(|error| IsolationError::other("set the root", error))?;
    spec.set_root(Some(built));
    Ok(())
}

/// Fills in what depends on the root filesystem and on this host.
fn adapt(
    spec: &mut Spec,
    root: &Path,
    injected: &[InjectedFile],
    init: Option<&Path>,
) -> Result<()> {
    set_root(spec, root)?;
    let directory = open_root(root)?;
    scaffold::make(directory.as_fd(), injected)?;
    identify(spec, directory.as_fd())?;
    let read_only = spec.root().as_ref().and_then(|root| root.readonly());
    if let Some(process) = spec.process_mut() {
        limits::clamp(process);
        let cwd = process.cwd().clone();
        make_working_directory(directory.as_fd(), &cwd)?;
        if init.is_some() {
            let payload = process.args().iter().flatten().cloned();
            let arguments = [INIT_PATH.to_owned(), "--".to_owned()]
                .into_iter()
                .chain(payload);
            let arguments = arguments.collect();
            process.set_args(Some(arguments));
        }
    }

    let mut mounts: Vec<Mount> = spec.mounts().clone().unwrap_or_default();
    scaffold::keep_modes(&mut mounts, directory.as_fd());
    // They are part of the root for whoever is in it.
    let mode = if read_only == Some(true) { "ro" } else { "rw" };
    for file in injected {
        if mounts
            .iter()
            .any(|mount| *mount.destination() == file.destination)
        {
            continue;
        }
        mounts.push(bind(&file.source, &file.destination, mode)?);
    }
    if let Some(executable) = init {
        mounts.push(bind(executable, Path::new(INIT_PATH), "ro")?);
    }
    mounts::check(directory.as_fd(), &mounts)?;
    make_ways(directory.as_fd(), &mounts)?;
    spec.set_mounts(Some(mounts));
    super::cgroup_mounts::make_read_only(spec)
}

/// Makes what links of the image at the destinations of mounts lead to.
fn make_ways(root: BorrowedFd<'_>, all: &[Mount]) -> Result<()> {
    for mount in all {
        let Some(file) = mounts::shows_file(mount) else {
            continue;
        };
        let destination = mount.destination();
        way::make(root, destination, file).map_err(|error| {
            let path = destination.display();
            IsolationError::other(format!("make what {path} leads to"), error)
        })?;
    }
    Ok(())
}

fn bind(source: &Path, destination: &Path, mode: &str) -> Result<Mount> {
    MountBuilder::default()
        .typ("bind")
        .source(source)
        .destination(destination)
        .options(["bind", "rprivate", mode].map(str::to_owned))
        .build()
        .map_err(|error| IsolationError::other(format!("bind {}", source.display()), error))
}

/// A container's root, to look things up in.
pub fn open_root(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| IsolationError::other(format!("open root {}", path.display()), error))
}

/// Replaces the name of the user by its numbers, and provides HOME.
pub fn identify(spec: &mut Spec, root: BorrowedFd<'_>) -> Result<()> {
    let named = spec
        .annotations()
        .as_ref()
        .and_then(|annotations| annotations.get(GROUP_ADD_ANNOTATION))
        .map_or_else(|| Ok(Vec::new()), |names| user::group_numbers(root, names))?;
    let Some(process) = spec.process_mut() else {
        return Ok(());
    };
    let mut user = process.user().clone();
    let home = match user.username().clone() {
        Some(name) => {
            let identity = user::resolve(root, &name)?;
            let mut groups = identity.groups;
            for group in user.additional_gids().iter().flatten().chain(&named) {
                if !groups.contains(group) {
                    groups.push(*group);
                }
            }
            user.set_uid(identity.uid)
                .set_gid(identity.gid)
                .set_additional_gids(Some(groups).filter(|groups| !groups.is_empty()))
                .set_username(None);
            identity.home
        }
        None => user::home(root, user.uid())?,
    };
    process.set_user(user);
    let mut environment = process.env().clone().unwrap_or_default();
    // An empty one would make libcontainer ask the name service switch.
    environment.retain(|entry| entry != "HOME=" && entry != "HOME");
    if !environment.iter().any(|entry| entry.starts_with("HOME=")) {
        environment.push(format!("HOME={home}"));
    }
    process.set_env(Some(environment));
    Ok(())
}

/// Makes the working directory if it is missing, as Docker does.
fn make_working_directory(root: BorrowedFd<'_>, cwd: &PathBuf) -> Result<()> {
    if !cwd.is_absolute() {
        return Err(IsolationError::new(
            ErrorKind::InvalidArgument,
            format!(
                "the working directory '{}' is invalid, it needs to be an absolute path",
                cwd.display()
            ),
        ));
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let wrong = |error: &dyn std::fmt::Display| {
        IsolationError::new(
            ErrorKind::InvalidArgument,
            format!(
                "cannot make the working directory {}: {error}",
                cwd.display()
            ),
        )
    };
    match rustix::fs::openat2(root, cwd, flags | OFlags::DIRECTORY, Mode::empty(), resolve) {
        Ok(_) => Ok(()),
        Err(Errno::NOTDIR) => Err(wrong(&"not a directory")),
        Err(Errno::NOENT) => {
            way::make(root, cwd, false).map_err(|error| wrong(&error))?;
            let root = pathrs::RootRef::from_fd(root);
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            root.mkdir_all(cwd, &mode)
                .map(|_| ())
                .map_err(|error| wrong(&error))
        }
        Err(error) => Err(wrong(&error)),
    }
}
