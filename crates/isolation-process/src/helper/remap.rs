//! A container in a user namespace: what is mounted in it and given to it, prepared with the
//! rights that the helper has on the host, since the container's root has none of them: it may
//! not even see the directories that lead to its files.

use std::fs::{DirBuilder, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use bulkhead_isolation::{ErrorKind, IsolationError, Result};
use bulkhead_userns::{AsContainerRoot, IdRange, Identity, Mappings};
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceType, LinuxIdMapping, LinuxNamespaceBuilder, LinuxNamespaceType, Mount,
    MountBuilder, Spec, User,
};
use rustix::fs::{CWD, FileType, Gid, Mode, Uid};
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags};
use rustix::thread::UnshareFlags;

/// Where what is prepared may be mounted, in a mount namespace of the helper's own: a directory
/// that everybody may enter and that nothing else here needs.
const PLACES: [&str; 5] = ["/mnt", "/media", "/srv", "/opt", "/tmp"];

/// The user namespace of a container.
#[derive(Debug)]
pub struct Remap {
    mappings: Mappings,
    namespace: OwnedFd,
    /// Namespaces that the specification names by the numbers of these descriptors.
    joined: Vec<OwnedFd>,
}

/// The IDs that a specification maps without naming a user namespace: it is that which owns the
/// network namespace that the specification names.
pub fn mappings(spec: &Spec) -> Option<Mappings> {
    let linux = spec.linux().as_ref()?;
    let named = linux
        .namespaces()
        .iter()
        .flatten()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::User);
    let uids = linux.uid_mappings().as_deref().unwrap_or_default();
    let gids = linux.gid_mappings().as_deref().unwrap_or_default();
    if named || uids.is_empty() || gids.is_empty() {
        return None;
    }
    Some(Mappings {
        uids: uids.iter().map(range).collect(),
        gids: gids.iter().map(range).collect(),
    })
}

fn range(mapping: &LinuxIdMapping) -> IdRange {
    IdRange {
        container: mapping.container_id(),
        host: mapping.host_id(),
        size: mapping.size(),
    }
}

fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> IsolationError {
    move |error| IsolationError::other(what, error)
}

impl Remap {
    /// That of a container that is to be made; `None` where no IDs are mapped.
    pub fn of(spec: &Spec) -> Result<Option<Self>> {
        let Some(mappings) = mappings(spec) else {
            return Ok(None);
        };
        let network = spec.linux().as_ref().and_then(|linux| {
            let mut namespaces = linux.namespaces().iter().flatten();
            let network =
                namespaces.find(|namespace| namespace.typ() == LinuxNamespaceType::Network)?;
            network.path().clone()
        });
        let network = network.ok_or_else(|| {
            IsolationError::new(
                ErrorKind::InvalidArgument,
                "IDs are mapped, but neither a user namespace nor a network namespace is named",
            )
        })?;
        let network = File::open(network).map_err(failed("open the network namespace"))?;
        let namespace = bulkhead_userns::owner_of(network.as_fd())
            .map_err(failed("find the owner of the network namespace"))?;
        Ok(Some(Self {
            mappings,
            namespace,
            joined: Vec::new(),
        }))
    }

    /// One with the same IDs, for looking at files.
    pub fn fresh(mappings: &Mappings) -> Result<Self> {
        let namespace =
            bulkhead_userns::create(mappings).map_err(failed("make a user namespace"))?;
        Ok(Self {
            mappings: mappings.clone(),
            namespace,
            joined: Vec::new(),
        })
    }

    /// The user namespace.
    pub fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Makes files as the container's root for as long as that lives.
    pub fn as_root(&self) -> Result<AsContainerRoot> {
        AsContainerRoot::of(&self.mappings).map_err(failed("take the container's IDs"))
    }

    /// Prepares what the container needs of the host, and has the specification name that.
    /// This process then has a mount namespace of its own.
    pub fn prepare(
        &mut self,
        spec: &mut Spec,
        root: &Path,
        bundle: &Path,
        streams: &[OwnedFd],
    ) -> Result<PathBuf> {
        let user = spec
            .process()
            .as_ref()
            .map(|process| process.user().clone());
        give_streams(&self.mappings, user.as_ref(), streams)?;
        // SAFETY: this process has one thread.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
            .map_err(failed("make a mount namespace"))?;
        let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", slave).map_err(failed("keep mounts to ourselves"))?;
        let prepared = self.stage(spec, root, bundle)?;
        self.name_namespaces(spec)?;
        Ok(prepared)
    }

    fn stage(&self, spec: &mut Spec, root: &Path, bundle: &Path) -> Result<PathBuf> {
        let place = PLACES.iter().map(Path::new);
        let place = place
            .filter(|place| place.is_dir() && !bundle.starts_with(place))
            .find(|place| !place.is_symlink());
        let place = place.ok_or_else(|| {
            let places = PLACES.join(", ");
            IsolationError::new(
                ErrorKind::Unavailable,
                format!("this host has none of the directories {places} to mount in"),
            )
        })?;
        // Before it is covered.
        let mut trees = Vec::new();
        for (number, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
            // The container's group is yet to be made, by the runtime, where everybody may go.
            let source = bind_source(mount).filter(|source| source.exists());
            if let Some(source) = source {
                let tree = copy(&source, is_recursive(mount))?;
                let point = place.join(number.to_string());
                mount.set_source(Some(point.clone()));
                trees.push((tree, point));
            }
        }
        let tree = copy(root, true)?;
        let root = place.join("root");
        trees.push((tree, root.clone()));
        rustix::mount::mount("tmpfs", place, "tmpfs", MountFlags::empty(), c"mode=755")
            .map_err(failed("mount a tmpfs"))?;
        for (tree, point) in trees {
            attach(&tree, &point)?;
        }
        self.stage_devices(spec, place)?;
        Ok(root)
    }

    /// The container may use nodes that the host's root has made, but make none.
    fn stage_devices(&self, spec: &mut Spec, place: &Path) -> Result<()> {
        let Some(linux) = spec.linux_mut() else {
            return Ok(());
        };
        let devices = linux.devices().clone().unwrap_or_default();
        linux.set_devices(None);
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        for (number, device) in devices.iter().enumerate() {
            let point = place.join(format!("device{number}"));
            self.make_device(device, &point)?;
            mounts.push(
                MountBuilder::default()
                    .typ("bind")
                    .source(&point)
                    .destination(device.path())
                    .options(["bind", "nosuid", "noexec"].map(str::to_owned))
                    .build()
                    .map_err(failed("bind a device"))?,
            );
        }
        spec.set_mounts(Some(mounts));
        Ok(())
    }

    fn make_device(&self, device: &LinuxDevice, point: &Path) -> Result<()> {
        let kind = match device.typ() {
            LinuxDeviceType::B => FileType::BlockDevice,
            LinuxDeviceType::P => FileType::Fifo,
            _ => FileType::CharacterDevice,
        };
        let number = |number: i64| u32::try_from(number).map_err(failed("number a device"));
        let numbers = rustix::fs::makedev(number(device.major())?, number(device.minor())?);
        let mode = Mode::from_raw_mode(device.file_mode().unwrap_or(0o666) & 0o7777);
        rustix::fs::mknodat(CWD, point, kind, mode, numbers).map_err(failed("make a device"))?;
        // What is not mapped is nobody's in the container.
        let uid = self.mappings.host_uid(device.uid().unwrap_or(0));
        let gid = self.mappings.host_gid(device.gid().unwrap_or(0));
        rustix::fs::chown(point, uid.map(Uid::from_raw), gid.map(Gid::from_raw))
            .and_then(|()| rustix::fs::chmod(point, mode))
            .map_err(failed("give a device away"))
    }

    /// By descriptors: as the container's root, the runtime could not open their files.
    fn name_namespaces(&mut self, spec: &mut Spec) -> Result<()> {
        let Some(linux) = spec.linux_mut() else {
            return Ok(());
        };
        let mut namespaces = linux.namespaces().clone().unwrap_or_default();
        for namespace in &mut namespaces {
            if let Some(path) = namespace.path().clone() {
                let opened = File::open(&path).map_err(|error| {
                    IsolationError::other(format!("open namespace {}", path.display()), error)
                })?;
                namespace.set_path(Some(named(&opened)));
                self.joined.push(opened.into());
            }
        }
        let own = LinuxNamespaceBuilder::default()
            .typ(LinuxNamespaceType::User)
            .path(named(&self.namespace))
            .build()
            .map_err(failed("name the user namespace"))?;
        namespaces.push(own);
        linux
            .set_namespaces(Some(namespaces))
            .set_uid_mappings(None)
            .set_gid_mappings(None);
        Ok(())
    }
}

fn named(descriptor: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_raw_fd()))
}

/// How a further process comes into its container's user namespace: at the very end, and with
/// its user, since libcontainer joins no user namespaces in an exec.
#[derive(Debug)]
pub struct Entry {
    namespace: OwnedFd,
    identity: Identity,
    host_uid: u32,
}

impl Entry {
    /// Takes the user out of the specification of an exec; `None` where no IDs are mapped.
    pub fn take(spec: &mut Spec, init: i32, streams: &[OwnedFd]) -> Result<Option<Self>> {
        let Some(mappings) = mappings(spec) else {
            return Ok(None);
        };
        let Some(process) = spec.process_mut() else {
            return Ok(None);
        };
        let mut user = process.user().clone();
        give_streams(&mappings, Some(&user), streams)?;
        let namespace = File::open(format!("/proc/{init}/ns/user"))
            .map_err(failed("open the container's user namespace"))?;
        let entry = Self {
            namespace: namespace.into(),
            identity: Identity {
                uid: user.uid(),
                gid: user.gid(),
                groups: user.additional_gids().clone().unwrap_or_default(),
            },
            host_uid: mapped("user", user.uid(), mappings.host_uid(user.uid()))?,
        };
        user.set_uid(0).set_gid(0).set_additional_gids(None);
        process.set_user(user);
        if let Some(linux) = spec.linux_mut() {
            linux.set_uid_mappings(None).set_gid_mappings(None);
        }
        Ok(Some(entry))
    }

    /// Enters it; the process is in all other namespaces of the container.
    pub fn enter(&self) -> Result<()> {
        // A terminal that was made a moment ago is the host's root's.
        for stream in [
            rustix::stdio::stdin(),
            rustix::stdio::stdout(),
            rustix::stdio::stderr(),
        ] {
            if rustix::termios::isatty(stream) {
                let _ = rustix::fs::fchown(stream, Some(Uid::from_raw(self.host_uid)), None);
            }
        }
        bulkhead_userns::enter(self.namespace.as_fd(), &self.identity)
            .map_err(failed("enter the container's user namespace"))
    }
}

/// Gives pipes to whom the payload runs as, so that it can open its own `/dev/stdout`.
fn give_streams(mappings: &Mappings, user: Option<&User>, streams: &[OwnedFd]) -> Result<()> {
    let (uid, gid) = match user {
        Some(user) => {
            for group in user.additional_gids().iter().flatten() {
                mapped("group", *group, mappings.host_gid(*group))?;
            }
            (
                mapped("user", user.uid(), mappings.host_uid(user.uid()))?,
                mapped("group", user.gid(), mappings.host_gid(user.gid()))?,
            )
        }
        None => mappings
            .root()
            .map_err(failed("find the container's root"))?,
    };
    for stream in streams {
        let stat = rustix::fs::fstat(stream).map_err(failed("look at a stream"))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
            rustix::fs::fchown(stream, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(failed("give a stream away"))?;
        }
    }
    Ok(())
}

fn mapped(what: &str, id: u32, host: Option<u32>) -> Result<u32> {
    host.ok_or_else(|| {
        IsolationError::new(
            ErrorKind::InvalidArgument,
            format!("the {what} ID {id} is not mapped in the container's user namespace"),
        )
    })
}

fn has(mount: &Mount, wanted: &str) -> bool {
    let mut options = mount.options().iter().flatten();
    options.any(|option| option == wanted)
}

fn is_recursive(mount: &Mount) -> bool {
    has(mount, "rbind")
}

fn bind_source(mount: &Mount) -> Option<PathBuf> {
    let bind = mount.typ().as_deref() == Some("bind") || has(mount, "bind") || is_recursive(mount);
    mount.source().clone().filter(|_| bind)
}

fn copy(path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(CWD, path, flags)
        .map_err(|error| IsolationError::other(format!("mount {}", path.display()), error))
}

fn attach(tree: &OwnedFd, point: &Path) -> Result<()> {
    let stat = rustix::fs::fstat(tree).map_err(failed("look at a mount"))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        DirBuilder::new()
            .mode(0o755)
            .create(point)
            .map_err(failed("make a place for a mount"))?;
    } else {
        File::create_new(point).map_err(failed("make a place for a mount"))?;
    }
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", CWD, point, flags).map_err(failed("prepare a mount"))
}
