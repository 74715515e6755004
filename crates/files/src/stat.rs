//! What a path is, in the terms of Docker's API.

use rustix::fs::{FileType, Stat};
use serde::{Deserialize, Serialize};

/// The answer to a stat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStat {
    /// Last part of the path as it was asked for.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Mode as Go's `os.FileMode` has it.
    pub mode: u32,
    /// When it was changed, seconds since the epoch.
    pub mtime: i64,
    /// And nanoseconds beyond.
    pub mtime_nanoseconds: u32,
    /// Where a symbolic link leads, as an absolute path in the container; else empty.
    pub link_target: String,
}

impl PathStat {
    pub(crate) fn new(name: &str, stat: &Stat, link_target: String) -> Self {
        Self {
            name: name.to_owned(),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: go_mode(stat.st_mode),
            mtime: seconds(stat),
            mtime_nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            link_target,
        }
    }

    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.mode & GO_DIRECTORY != 0
    }
}

/// When it was changed, seconds since the epoch.
pub(crate) fn seconds(stat: &Stat) -> i64 {
    #[allow(
        clippy::useless_conversion,
        reason = "the field's type differs by architecture"
    )]
    stat.st_mtime.try_into().unwrap_or(i64::MAX)
}

const GO_DIRECTORY: u32 = 1 << 31;

/// Go's `os.FileMode`: permissions as UNIX has them, everything else by other bits.
fn go_mode(mode: u32) -> u32 {
    const DEVICE: u32 = 1 << 26;
    const CHARACTER: u32 = 1 << 21;
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => GO_DIRECTORY,
        FileType::Symlink => 1 << 27,
        FileType::BlockDevice => DEVICE,
        FileType::CharacterDevice => DEVICE | CHARACTER,
        FileType::Fifo => 1 << 25,
        FileType::Socket => 1 << 24,
        _ => 0,
    };
    let special = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];
    special
        .iter()
        .filter(|(bit, _)| mode & bit != 0)
        .fold(kind | mode & 0o777, |all, (_, go)| all | go)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_gos() {
        assert_eq!(go_mode(0o40755), 0x8000_01ed);
        assert_eq!(go_mode(0o104_755), 0x0080_01ed);
        assert_eq!(go_mode(0o120_777), 0x0800_01ff);
        assert_eq!(go_mode(0o020_666), 0x0420_01b6);
        assert_eq!(go_mode(0o041_777), 0x8010_01ff);
    }
}
