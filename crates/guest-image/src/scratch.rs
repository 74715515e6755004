//! The template of a scratch disk: an empty ext4 in a sparse file. Each VM gets a copy, so
//! what counts is how little of it is allocated.

use std::path::Path;
use std::process::Command;

use crate::{GuestImageError, files, io_error, persist};

/// Capacity, bytes.
const CAPACITY: u64 = 20 << 30;

/// How the file system is made. Without the blocks that are reserved for growing beyond the
/// device (`resize_inode`) 328 KiB of 20 GiB are allocated instead of 4.4 MiB, and a copy
/// takes 2 ms. The journal stays: a VM may be killed at any instant, and its disk is mounted
/// again when the container is started again.
const FEATURES: &str = "^resize_inode";
/// The file is known to be zeros, so neither mkfs nor the guest's kernel needs to write
/// inode tables; older e2fsprogs (before 1.47) leave that to the guest.
const EXTENDED: [&str; 2] = [
    "assume_storage_prezeroed=1,nodiscard",
    "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
];

/// Makes the template if it is not there; its capacity.
pub(crate) fn prepare(out: &Path, progress: &mut dyn FnMut(&str)) -> Result<u64, GuestImageError> {
    let path = out.join(files::SCRATCH);
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == CAPACITY) {
        return Ok(CAPACITY);
    }
    progress("making the scratch disk's template");
    let mut complaint = String::new();
    for extended in EXTENDED {
        let file = tempfile::NamedTempFile::new_in(out).map_err(io_error("write in", out))?;
        file.as_file()
            .set_len(CAPACITY)
            .map_err(io_error("write", &path))?;
        let output = mkfs(file.path(), extended)?;
        if output.status.success() {
            persist(file, &path)?;
            return Ok(CAPACITY);
        }
        complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    }
    Err(GuestImageError::Tool {
        tool: "mkfs.ext4",
        message: complaint,
    })
}

fn mkfs(path: &Path, extended: &str) -> Result<std::process::Output, GuestImageError> {
    // Root's PATH may lack /sbin under sudo and su.
    let tool = ["/sbin/mkfs.ext4", "/usr/sbin/mkfs.ext4"]
        .into_iter()
        .find(|tool| Path::new(tool).exists())
        .unwrap_or("mkfs.ext4");
    Command::new(tool)
        .args(["-q", "-F", "-m", "0", "-L", "scratch", "-O", FEATURES, "-E"])
        .arg(extended)
        .arg(path)
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|source| GuestImageError::Tool {
            tool: "mkfs.ext4",
            message: format!("cannot run it ({source}); install e2fsprogs"),
        })
}
