//! User namespaces of containers: made, found again by the network namespace that they own,
//! and what is done with them on the host.
//!
//! IDs are mapped by mounts: what is on disk belongs to whom the image says, and a mount shows
//! it as the host's IDs that the container's stand for ([`map_mount`]). A process that makes
//! files by way of such a mount has to have an ID that is mapped ([`AsContainerRoot`]).
//!
//! This crate knows neither containers nor where mappings come from.

mod host;
mod process;

use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;
use rustix::thread::{Gid, LinkNameSpaceType, Uid};
use serde::{Deserialize, Serialize};

pub use host::AsContainerRoot;
pub use process::{Owner, create, network};

/// A run of IDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first one in the container.
    pub container: u32,
    /// What that is on the host.
    pub host: u32,
    /// How many there are.
    pub size: u32,
}

/// Which IDs of the host those of a container are. Each list maps 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mappings {
    /// Users.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
}

impl Mappings {
    /// The user of the host that one of the container's is.
    #[must_use]
    pub fn host_uid(&self, id: u32) -> Option<u32> {
        host_id(&self.uids, id)
    }

    /// The group of the host that one of the container's is.
    #[must_use]
    pub fn host_gid(&self, id: u32) -> Option<u32> {
        host_id(&self.gids, id)
    }

    /// User and group of the host that the container's root is.
    ///
    /// # Errors
    /// That root is not mapped.
    pub fn root(&self) -> io::Result<(u32, u32)> {
        match (self.host_uid(0), self.host_gid(0)) {
            (Some(uid), Some(gid)) => Ok((uid, gid)),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the mapping of IDs leaves out the container's root",
            )),
        }
    }
}

fn host_id(ranges: &[IdRange], id: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let distance = id.checked_sub(range.container)?;
        (distance < range.size)
            .then(|| range.host.checked_add(distance))
            .flatten()
    })
}

/// As `/proc/<pid>/uid_map` takes it (`user_namespaces(7)`).
fn table(ranges: &[IdRange]) -> String {
    let mut text = String::new();
    for range in ranges {
        // Into a string.
        let _ = writeln!(text, "{} {} {}", range.container, range.host, range.size);
    }
    text
}

/// The user namespace that owns a network namespace (or another one that is open).
///
/// # Errors
/// What the kernel says: EPERM for one that is outside of our own user namespace.
pub fn owner_of(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// linux/nsfs.h
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    // SAFETY: this ioctl takes no argument.
    let descriptor = unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_USERNS) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Whether a user namespace is the one that this process is in.
///
/// # Errors
/// What the kernel says.
pub fn is_ours(user_namespace: BorrowedFd<'_>) -> io::Result<bool> {
    let ours = rustix::fs::stat("/proc/self/ns/user")?;
    let other = rustix::fs::fstat(user_namespace)?;
    Ok((ours.st_dev, ours.st_ino) == (other.st_dev, other.st_ino))
}

/// Has a mount that is in no namespace yet show what is in it with the IDs of the host that a
/// user namespace's IDs stand for.
///
/// # Errors
/// EINVAL for a file system that does not know of it, or a mount that is in use.
pub fn map_mount(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    let descriptor = u64::try_from(user_namespace.as_raw_fd()).map_err(io::Error::other)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: descriptor,
    };
    // SAFETY: `attributes` outlives the call and is as large as it says; the path is an
    // empty C string, which with AT_EMPTY_PATH names the descriptor itself.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(&attributes),
            size_of_val(&attributes),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A mapped copy of the mount at a path, in no namespace yet.
///
/// # Errors
/// What the kernel says.
pub fn mapped_copy(path: &Path, user_namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let copy = rustix::mount::open_tree(CWD, path, flags)?;
    map_mount(copy.as_fd(), user_namespace)?;
    Ok(copy)
}

/// Who to be in a user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Identity {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

/// Becomes somebody in a user namespace, with all rights there, whoever that is, and none
/// outside of it. For a process with a single thread.
///
/// # Errors
/// What the kernel says.
pub fn enter(user_namespace: BorrowedFd<'_>, identity: &Identity) -> io::Result<()> {
    rustix::thread::move_into_link_name_space(user_namespace, Some(LinkNameSpaceType::User))?;
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&groups)?;
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    // Rights are lost by who was root, and who we were is nobody there.
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Whether this kernel can do all this for files that are in `directory`.
///
/// # Errors
/// A sentence for a person.
pub fn check(mappings: &Mappings, directory: &Path) -> Result<(), String> {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    let mut number = || numbers.next().and_then(|text| text.parse::<u32>().ok());
    // Since then layers of an overlay may be mapped, and EROFS is.
    if (number(), number()) < (Some(5), Some(19)) {
        return Err(format!(
            "Linux 5.19 or later is needed to map IDs of an overlay's layers, and this is {release}"
        ));
    }
    let namespace =
        create(mappings).map_err(|error| format!("cannot make a user namespace: {error}"))?;
    mapped_copy(directory, namespace.as_fd())
        .map(drop)
        .map_err(|error| {
            format!(
                "the file system of {} cannot be mounted with mapped IDs: {error}",
                directory.display()
            )
        })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn mappings() -> Mappings {
        let range = |host| IdRange {
            container: 0,
            host,
            size: 65536,
        };
        Mappings {
            uids: vec![range(300_000)],
            gids: vec![range(400_000)],
        }
    }

    #[test]
    fn ids_are_looked_up() {
        let range = |container, host, size| IdRange {
            container,
            host,
            size,
        };
        let ranges = [range(0, 1000, 10), range(10, 5000, 5)];
        assert_eq!(host_id(&ranges, 0), Some(1000));
        assert_eq!(host_id(&ranges, 12), Some(5002));
        assert_eq!(host_id(&ranges, 15), None);
        assert_eq!(table(&ranges), "0 1000 10\n10 5000 5\n");
        assert_eq!(mappings().root().unwrap(), (300_000, 400_000));
        assert_eq!(mappings().host_uid(65536), None);
    }

    #[test]
    fn a_network_namespace_knows_its_owner() {
        let network = network(Owner::New(&mappings())).unwrap();
        let owner = owner_of(network.as_fd()).unwrap();
        assert!(!is_ours(owner.as_fd()).unwrap());
        let joined = super::network(Owner::Existing(owner.as_fd())).unwrap();
        let same = owner_of(joined.as_fd()).unwrap();
        let number = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(number(&owner), number(&same));
        assert_ne!(number(&network), number(&joined));
    }

    #[test]
    fn a_mapped_mount_shows_the_hosts_ids() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "x").unwrap();
        check(&mappings(), directory.path()).unwrap();
        let namespace = create(&mappings()).unwrap();
        let mount = mapped_copy(directory.path(), namespace.as_fd()).unwrap();
        let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
        let seen = std::fs::metadata(format!("{path}/file")).unwrap();
        assert_eq!((seen.uid(), seen.gid()), (300_000, 400_000));
        // Our own IDs mean nothing there.
        assert!(std::fs::write(format!("{path}/new"), "x").is_err());
        std::thread::spawn(move || {
            let scope = AsContainerRoot::of(&mappings()).unwrap();
            std::fs::write(format!("{path}/new"), "x").unwrap();
            drop(scope);
            assert!(std::fs::write(format!("{path}/newer"), "x").is_err());
        })
        .join()
        .unwrap();
        let made = std::fs::metadata(directory.path().join("new")).unwrap();
        assert_eq!((made.uid(), made.gid()), (0, 0));
    }
}
