//! Room for removals on a full disk: a file that is given up so that the database can note
//! what goes, and made again when something has gone.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Enough for what one removal writes into the database's log.
const RESERVE: usize = 512 << 10;

/// The file's directory, while something is removed from it.
pub(crate) struct Room(PathBuf);

impl Room {
    /// Makes the file, unless it is there or does not fit.
    pub(crate) fn keep(root: &Path) {
        let path = path(root);
        if path.exists() {
            return;
        }
        let made = File::create(&path).and_then(|mut file| {
            file.write_all(&[0; RESERVE])?;
            file.sync_data()
        });
        if made.is_err() {
            let _ = fs::remove_file(&path);
        }
    }

    /// Gives the file up if there is little room. It is made again when this goes.
    pub(crate) fn make(root: &Path) -> Self {
        let has_little = rustix::fs::statvfs(root)
            .is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < RESERVE as u64);
        if has_little {
            let _ = fs::remove_file(path(root));
        }
        Self(root.to_owned())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        Self::keep(&self.0);
    }
}

fn path(root: &Path) -> PathBuf {
    root.join("reserve")
}
