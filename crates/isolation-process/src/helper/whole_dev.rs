//! A directory of the host as a container's whole `/dev`.
//!
//! libcontainer makes nodes and links in `/dev` after all the mounts. In a directory that is
//! the host's it fails at the first name that is there already, and whatever is not there it
//! would give to the host. So such a mount waits beside, in a `/dev` of the container's own,
//! and covers that one when everything has been made. Terminals stay the container's own, as
//! libcontainer opens no others for an exec.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use bulkhead_isolation::{IsolationError, Result, dev};
use oci_spec::OciSpecError;
use oci_spec::runtime::{Mount, MountBuilder, Spec};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use rustix::thread::LinkNameSpaceType;

const DEV: &str = "/dev";
const PTS: &str = "/dev/pts";
const PTMX: &str = "/dev/ptmx";
/// Where the mount waits.
const BESIDE: &str = "/dev/.bulkhead-dev";

/// A mount that waits to cover `/dev`.
#[derive(Debug, PartialEq, Eq)]
pub struct Aside {
    /// Whether the container's terminals are to be in it.
    terminals: bool,
}

/// Has a mount over `/dev` made beside it, with what comes below it, if there is one.
///
/// # Errors
/// When the specification cannot be changed.
pub fn set_aside(spec: &mut Spec) -> Result<Option<Aside>> {
    let mounts = spec.mounts().clone().unwrap_or_default();
    let covers = |mount: &Mount| is_bind(mount) && mount.destination() == Path::new(DEV);
    let Some(at) = mounts.iter().rposition(covers) else {
        return Ok(None);
    };
    let taken = |mount: &Mount| {
        let path = mount.destination();
        path == Path::new(PTS) || path == Path::new(PTMX)
    };
    let terminals = !mounts[at..].iter().any(taken);
    let changed = move_aside(mounts, at)
        .map_err(|error| IsolationError::other("set a mount over /dev aside", error))?;
    spec.set_mounts(Some(changed));
    Ok(Some(Aside { terminals }))
}

fn is_bind(mount: &Mount) -> bool {
    let mut options = mount.options().iter().flatten();
    mount.typ().as_deref() == Some("bind")
        || options.any(|option| option == "bind" || option == "rbind")
}

fn move_aside(mut mounts: Vec<Mount>, at: usize) -> std::result::Result<Vec<Mount>, OciSpecError> {
    for mount in &mut mounts[at..] {
        if let Ok(below) = mount.destination().strip_prefix(DEV) {
            let mut moved = PathBuf::from(BESIDE);
            moved.extend(below);
            mount.set_destination(moved);
        }
    }
    let has = |path: &str| {
        let mut before = mounts[..at].iter();
        before.any(|mount| mount.destination() == Path::new(path))
    };
    // What libcontainer needs there: room for its nodes, and terminals.
    let mut own = Vec::new();
    if !has(DEV) {
        own.push(mount(DEV, "tmpfs", &dev::TMPFS_OPTIONS)?);
    }
    if !has(PTS) {
        own.push(mount(PTS, "devpts", &dev::DEVPTS_OPTIONS)?);
    }
    mounts.splice(at..at, own);
    Ok(mounts)
}

fn mount(path: &str, kind: &str, options: &[&str]) -> std::result::Result<Mount, OciSpecError> {
    MountBuilder::default()
        .typ(kind)
        .source(kind)
        .destination(path)
        .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        .build()
}

/// Covers `/dev` with what waits beside it, in the container of the process `pid`, which has
/// its root and has not begun. For a process with a single thread.
///
/// # Errors
/// What the kernel says.
pub fn cover(pid: i32, aside: &Aside) -> Result<()> {
    let open = |path: &str| {
        File::open(path).map_err(|error| IsolationError::other(format!("open {path}"), error))
    };
    let ours = open("/proc/self/ns/mnt")?;
    let theirs = open(&format!("/proc/{pid}/ns/mnt"))?;
    enter(&theirs)?;
    let covered = move_over(aside);
    enter(&ours)?;
    covered.map_err(|error| IsolationError::other("mount over /dev", error))
}

fn enter(namespace: &File) -> Result<()> {
    let kind = Some(LinkNameSpaceType::Mount);
    rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)
        .map_err(|error| IsolationError::other("enter a mount namespace", error))
}

fn move_over(aside: &Aside) -> rustix::io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let tree = rustix::mount::open_tree(CWD, BESIDE, flags)?;
    let copy = flags | OpenTreeFlags::OPEN_TREE_CLONE;
    let pts = rustix::mount::open_tree(CWD, PTS, copy)?;
    let ptmx = rustix::mount::open_tree(CWD, "/dev/pts/ptmx", copy)?;
    let attach = |tree: &OwnedFd, to: &str| {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(tree, "", CWD, to, flags)
    };
    attach(&tree, DEV)?;
    if !aside.terminals {
        return Ok(());
    }
    let kind = |path| fs::symlink_metadata(path).map(|found| found.file_type());
    if kind(PTS).is_ok_and(|kind| kind.is_dir()) {
        attach(&pts, PTS)?;
    }
    // Where it is a link, it leads there.
    if kind(PTMX).is_ok_and(|kind| kind.is_char_device()) {
        attach(&ptmx, PTMX)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_aside_in(mounts: &str) -> (Option<Aside>, Vec<String>) {
        let text = format!(r#"{{"ociVersion":"1.1.0","mounts":[{mounts}]}}"#);
        let mut spec: Spec = serde_json::from_str(&text).unwrap();
        let aside = set_aside(&mut spec).unwrap();
        let mounts = spec.mounts().iter().flatten();
        let paths = mounts.map(|mount| mount.destination().display().to_string());
        (aside, paths.collect())
    }

    #[test]
    fn a_mount_over_dev_waits_with_what_is_below_it() {
        let (aside, paths) = set_aside_in(
            r#"{"destination":"/proc","type":"proc"},
               {"destination":"/dev","type":"bind","source":"/dev","options":["rbind"]},
               {"destination":"/dev/shm","type":"tmpfs"},
               {"destination":"/device","type":"bind","source":"/x","options":["rbind"]}"#,
        );
        assert_eq!(aside, Some(Aside { terminals: true }));
        assert_eq!(
            paths,
            [
                "/proc",
                "/dev",
                "/dev/pts",
                "/dev/.bulkhead-dev",
                "/dev/.bulkhead-dev/shm",
                "/device"
            ]
        );
    }

    #[test]
    fn what_is_there_before_it_serves() {
        let (aside, paths) = set_aside_in(
            r#"{"destination":"/dev","type":"tmpfs"},
               {"destination":"/dev/pts","type":"devpts"},
               {"destination":"/dev","type":"bind","source":"/dev","options":["rbind","ro"]},
               {"destination":"/dev/pts","type":"bind","source":"/dev/pts"}"#,
        );
        assert_eq!(aside, Some(Aside { terminals: false }));
        assert_eq!(
            paths,
            [
                "/dev",
                "/dev/pts",
                "/dev/.bulkhead-dev",
                "/dev/.bulkhead-dev/pts"
            ]
        );
    }

    #[test]
    fn a_dev_of_its_own_stays() {
        let mounts = r#"{"destination":"/dev","type":"tmpfs"},
            {"destination":"/dev/fuse","type":"bind","source":"/dev/fuse","options":["bind"]}"#;
        assert_eq!(
            set_aside_in(mounts),
            (None, vec!["/dev".to_owned(), "/dev/fuse".to_owned()])
        );
    }
}
