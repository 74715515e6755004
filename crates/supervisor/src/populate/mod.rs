//! `populate`: copying directories out of an image into volumes, before anything runs.
//!
//! The layers are mounted in a mount namespace that ends with this process, on a tmpfs of its
//! own, so that nothing of them is seen or left on the host. What the image says is looked up
//! inside its root only.

mod copy;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use bulkhead_isolation::{ErrorKind, IsolationError};
use bulkhead_task::populate::{CopyOrder, CopyOutcome, PopulateOrder};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::mounts;

/// Longest order; a container has a handful of volumes.
const MAX_ORDER: u64 = 4 << 20;

/// Runs `populate`.
pub fn run() -> Result<(), IsolationError> {
    let failed = |what: &'static str| move |error: io::Error| IsolationError::other(what, error);
    let mut text = Vec::new();
    io::stdin()
        .take(MAX_ORDER)
        .read_to_end(&mut text)
        .map_err(failed("read the order"))?;
    let order: PopulateOrder = serde_json::from_slice(&text).map_err(|error| {
        IsolationError::new(ErrorKind::InvalidArgument, format!("the order: {error}"))
    })?;
    // A deep tree takes a descriptor or two for each level.
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
    rustix::process::umask(Mode::empty());

    mounts::isolate().map_err(failed("make a mount namespace"))?;
    rustix::mount::mount("tmpfs", &order.scratch, "tmpfs", MountFlags::empty(), None)
        .map_err(|error| failed("mount a tmpfs")(error.into()))?;
    let root = bulkhead_isolation_process::mount_image(
        &order.layers,
        &order.scratch,
        order.mappings.as_ref(),
    )?;
    let root = rustix::fs::open(
        &root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| failed("open the image")(error.into()))?;

    let mut outcomes = Vec::new();
    for order in &order.copies {
        let outcome = carry_out(root.as_fd(), order).map_err(|error| {
            let what = format!(
                "copy {} of the image to {}",
                order.from.display(),
                order.to.display()
            );
            IsolationError::other(what, error)
        });
        if outcome.is_err()
            && let Some(fresh) = &order.fresh
        {
            let _ = std::fs::remove_dir_all(fresh);
        }
        outcomes.push(outcome?);
    }
    let text = serde_json::to_vec(&outcomes)
        .map_err(|error| IsolationError::other("encode the answer", error))?;
    io::stdout().write_all(&text).map_err(failed("answer"))
}

fn carry_out(root: BorrowedFd<'_>, order: &CopyOrder) -> io::Result<CopyOutcome> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let from = match rustix::fs::openat2(root, &order.from, flags, Mode::empty(), resolve) {
        Ok(from) => from,
        Err(Errno::NOENT | Errno::LOOP) => return Ok(CopyOutcome::Missing),
        Err(Errno::NOTDIR) => return not_a_directory(root, &order.from),
        Err(error) => return Err(error.into()),
    };
    if !is_empty(&order.to)? {
        return Ok(CopyOutcome::NotEmpty);
    }
    let target = order.fresh.as_ref().unwrap_or(&order.to);
    if order.fresh.is_some() {
        rustix::fs::mkdir(target, Mode::from_raw_mode(0o700))?;
    }
    copy::tree(from.as_fd(), open_directory(target)?.as_fd())?;
    if let Some(fresh) = &order.fresh {
        match rustix::fs::rename(fresh, &order.to) {
            // Somebody was faster.
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                std::fs::remove_dir_all(fresh)?;
                return Ok(CopyOutcome::NotEmpty);
            }
            renamed => renamed?,
        }
    }
    Ok(CopyOutcome::Copied)
}

/// A path through a file does not exist; one that ends at a file does.
fn not_a_directory(root: BorrowedFd<'_>, path: &Path) -> io::Result<CopyOutcome> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(_) => Ok(CopyOutcome::NotADirectory),
        Err(Errno::NOTDIR | Errno::NOENT) => Ok(CopyOutcome::Missing),
        Err(error) => Err(error.into()),
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

fn is_empty(path: &Path) -> io::Result<bool> {
    Ok(std::fs::read_dir(path)?.next().is_none())
}
