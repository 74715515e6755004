//! The machine's disks: the layer blobs, the writable layer, and the root made of them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bulkhead_agent_protocol::LayerExtent;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use crate::uevent::Uevents;

/// More than Docker allows in an image, and within what overlayfs takes (500).
const MAX_LAYERS: usize = 255;

const LAYERS: &str = "/run/bulkhead/layers";
const SCRATCH: &str = "/run/bulkhead/scratch";
/// Where the container's root is.
pub const ROOT: &str = "/run/bulkhead/root";

/// Where the layers of the container's root are, the lowest first.
pub fn layers(count: usize) -> Vec<PathBuf> {
    let directory = Path::new(LAYERS);
    (1..=count)
        .map(|number| directory.join(number.to_string()))
        .collect()
}

/// Where the writable layer is.
pub fn upper() -> PathBuf {
    Path::new(SCRATCH).join("upper")
}

/// A disk could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The host asks for what cannot be.
    #[error("{0}")]
    Invalid(String),
    /// A mount failed.
    #[error("cannot mount {what}: {source}{}", describe(.log))]
    Mount {
        /// What.
        what: String,
        /// What the system said.
        source: io::Error,
        /// What the filesystem said about it.
        log: String,
    },
    /// Something else failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

fn describe(log: &str) -> String {
    if log.is_empty() {
        String::new()
    } else {
        format!(" ({log})")
    }
}

fn failed<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> DiskError {
    let what = what.into();
    move |source| DiskError::Io {
        what,
        source: source.into(),
    }
}

/// Mounts the layers and the scratch disk and makes the root of them. Blocks.
///
/// # Errors
/// See [`DiskError`].
pub fn mount_root(layers: &[LayerExtent]) -> Result<(), DiskError> {
    if layers.is_empty() || layers.len() > MAX_LAYERS {
        let count = layers.len();
        return Err(DiskError::Invalid(format!(
            "a container has 1 to {MAX_LAYERS} layers, not {count}"
        )));
    }
    let uevents = Uevents::subscribe().map_err(failed("listen for devices"))?;
    let lower = mount_layers(&uevents, layers)?;
    mount_scratch(&uevents)?;
    mount_overlay(&lower)
}

/// The device of the disk with this serial, as soon as there is one.
fn disk(uevents: &Uevents, serial: &str) -> Result<PathBuf, DiskError> {
    uevents
        .wait_for(|| {
            for entry in std::fs::read_dir("/sys/block")? {
                let entry = entry?;
                let found = std::fs::read_to_string(entry.path().join("serial"));
                let device = Path::new("/dev").join(entry.file_name());
                if found.is_ok_and(|found| found.trim_end() == serial) && device.exists() {
                    return Ok(Some(device));
                }
            }
            Ok(None)
        })
        .map_err(failed(format!("find the disk '{serial}'")))
}

/// Mounts each layer; the lowest first, as they came.
fn mount_layers(uevents: &Uevents, layers: &[LayerExtent]) -> Result<Vec<PathBuf>, DiskError> {
    let device = disk(uevents, "layers")?;
    let opened = File::open(&device).map_err(failed("open the layers disk"))?;
    let mut mounted = Vec::with_capacity(layers.len());
    for (index, layer) in layers.iter().enumerate() {
        let number = index + 1;
        add_partition(&opened, number, layer)
            .map_err(failed(format!("find layer {number} on the disk")))?;
        // A whole disk's name that ends in a letter has its partitions' numbers appended.
        let partition = PathBuf::from(format!("{}{number}", device.display()));
        let target = Path::new(LAYERS).join(number.to_string());
        std::fs::create_dir_all(&target).map_err(failed("create a mount point"))?;
        let filesystem = Filesystem::open("erofs", format!("layer {number}"))?;
        filesystem.set("source", &partition)?;
        filesystem.flag("ro")?;
        // Blobs carry no device files that anybody may use before the container's own rules.
        filesystem.mount(&target, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        mounted.push(target);
    }
    Ok(mounted)
}

/// `struct blkpg_partition` of `linux/blkpg.h`.
#[repr(C)]
struct BlkpgPartition {
    start: libc::c_longlong,
    length: libc::c_longlong,
    number: libc::c_int,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct BlkpgArgument {
    operation: libc::c_int,
    flags: libc::c_int,
    length: libc::c_int,
    data: *const BlkpgPartition,
}

/// `_IO(0x12, 105)`
const BLKPG: libc::c_ulong = 0x1269;
const BLKPG_ADD_PARTITION: libc::c_int = 1;

fn add_partition(disk: &File, number: usize, layer: &LayerExtent) -> io::Result<()> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
    let partition = BlkpgPartition {
        start: layer.offset.try_into().map_err(invalid)?,
        length: layer.length.try_into().map_err(invalid)?,
        number: number.try_into().map_err(invalid)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let argument = BlkpgArgument {
        operation: BLKPG_ADD_PARTITION,
        flags: 0,
        length: size_of::<BlkpgPartition>().try_into().map_err(invalid)?,
        data: &raw const partition,
    };
    // SAFETY: BLKPG reads the argument and the partition that it points to; both are laid
    // out as the kernel declares them and live through the call.
    if unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, &raw const argument) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn mount_scratch(uevents: &Uevents) -> Result<(), DiskError> {
    let device = disk(uevents, "scratch")?;
    std::fs::create_dir_all(SCRATCH).map_err(failed("create a mount point"))?;
    let filesystem = Filesystem::open("ext4", "the writable layer".to_owned())?;
    filesystem.set("source", &device)?;
    // What is deleted becomes a hole in the host's file.
    filesystem.flag("discard")?;
    filesystem.mount(Path::new(SCRATCH), MountAttrFlags::MOUNT_ATTR_NOATIME)
}

fn mount_overlay(lower: &[PathBuf]) -> Result<(), DiskError> {
    let upper = Path::new(SCRATCH).join("upper");
    let work = Path::new(SCRATCH).join("work");
    // The root directory's owner and mode are the upper's: they come from the topmost layer
    // the first time, and stay as the container left them after that.
    if !upper.exists() {
        let top = lower.last().map_or(Path::new(ROOT), PathBuf::as_path);
        let like = std::fs::metadata(top).map_err(failed("look at the topmost layer"))?;
        let made = Path::new(SCRATCH).join("upper.new");
        match std::fs::create_dir(&made) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed("create the writable layer")(error)),
        }
        std::os::unix::fs::chown(&made, Some(like.uid()), Some(like.gid()))
            .map_err(failed("set the owner of the root"))?;
        let mode = std::fs::Permissions::from_mode(like.mode() & 0o7777);
        std::fs::set_permissions(&made, mode).map_err(failed("set the mode of the root"))?;
        std::fs::rename(&made, &upper).map_err(failed("create the writable layer"))?;
    }
    std::fs::create_dir_all(&work).map_err(failed("create the writable layer"))?;
    std::fs::create_dir_all(ROOT).map_err(failed("create a mount point"))?;
    let filesystem = Filesystem::open("overlay", "the root filesystem".to_owned())?;
    filesystem.set("source", Path::new("overlay"))?;
    // The topmost comes first. One key each: no page limits how many there can be.
    for layer in lower.iter().rev() {
        filesystem.set("lowerdir+", layer)?;
    }
    filesystem.set("upperdir", &upper)?;
    filesystem.set("workdir", &work)?;
    // As Docker mounts it: a copy of the disk must not be told from the original.
    filesystem.set("index", Path::new("off"))?;
    // Whole files and directories: the writable layer is read by itself for a commit.
    filesystem.set("metacopy", Path::new("off"))?;
    filesystem.set("redirect_dir", Path::new("off"))?;
    filesystem.mount(Path::new(ROOT), MountAttrFlags::empty())
}

/// Unmounts the root and the writable layer, which then has everything. Blocks.
///
/// # Errors
/// See [`DiskError`]; what was written is on the disk also then.
pub fn unmount_root() -> Result<(), DiskError> {
    let root = release(ROOT);
    // An unmount writes back only what is mounted nowhere else. A helper that showed files may
    // be on its way out still, with all of it in a namespace of its own, or somebody may hold
    // a file; the journal makes up for an unmount that is missing.
    let written = write_back(SCRATCH);
    let scratch = release(SCRATCH);
    root.and(written).and(scratch)
}

fn write_back(target: &str) -> Result<(), DiskError> {
    let what = || failed(format!("write back {target}"));
    let directory = match rustix::fs::open(
        target,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(directory) => directory,
        // The setup failed before it was made.
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(error) => return Err(what()(error)),
    };
    rustix::fs::syncfs(directory).map_err(what())
}

fn release(target: &str) -> Result<(), DiskError> {
    match unmount(target, UnmountFlags::empty()) {
        // Not mounted, or never made: the setup failed before.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(failed(format!("unmount {target}"))(error)),
    }
}

/// A filesystem that is being put together.
struct Filesystem {
    context: OwnedFd,
    what: String,
}

impl Filesystem {
    fn open(name: &str, what: String) -> Result<Self, DiskError> {
        let context =
            fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| DiskError::Mount {
                what: what.clone(),
                source: error.into(),
                log: format!("the guest kernel has no {name}"),
            })?;
        Ok(Self { context, what })
    }

    fn set(&self, key: &str, value: &Path) -> Result<(), DiskError> {
        fsconfig_set_string(self.context.as_fd(), key, value).map_err(|error| self.error(error))
    }

    fn flag(&self, key: &str) -> Result<(), DiskError> {
        fsconfig_set_flag(self.context.as_fd(), key).map_err(|error| self.error(error))
    }

    fn mount(&self, target: &Path, attributes: MountAttrFlags) -> Result<(), DiskError> {
        let mounted = fsconfig_create(self.context.as_fd())
            .and_then(|()| {
                fsmount(
                    self.context.as_fd(),
                    FsMountFlags::FSMOUNT_CLOEXEC,
                    attributes,
                )
            })
            .and_then(|mounted| {
                move_mount(
                    mounted,
                    "",
                    CWD,
                    target,
                    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
                )
            });
        mounted.map_err(|error| self.error(error))
    }

    fn error(&self, error: rustix::io::Errno) -> DiskError {
        // The context keeps what the filesystem had to say, one message a read.
        let mut log = [0; 512];
        let log = match rustix::io::read(&self.context, &mut log) {
            Ok(read) => String::from_utf8_lossy(log.get(..read).unwrap_or_default()).into_owned(),
            Err(_) => String::new(),
        };
        DiskError::Mount {
            what: self.what.clone(),
            source: error.into(),
            log: log.trim().to_owned(),
        }
    }
}
