//! Which files are watched by anybody in this machine, as the kernel says of every process's
//! descriptors.

use std::collections::HashMap;
use std::path::Path;

use rustix::fs::{Dev, major, minor};

/// What is watched on one filesystem: a file's number, and what for (`IN_…`).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Watched(HashMap<u64, u32>);

impl Watched {
    /// Looks at all processes. What ends meanwhile watches nothing.
    pub fn on(device: Dev) -> Self {
        let mut watched = Self::default();
        for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = process.file_name();
            if name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
                watched.add_process(&process.path(), device);
            }
        }
        watched
    }

    fn add_process(&mut self, process: &Path, device: Dev) {
        let descriptors = std::fs::read_dir(process.join("fd"));
        for descriptor in descriptors.into_iter().flatten().flatten() {
            let Ok(link) = std::fs::read_link(descriptor.path()) else {
                continue;
            };
            // `anon_inode:inotify`, `anon_inode:[fanotify]`.
            let link = link.as_os_str().as_encoded_bytes();
            if !link.starts_with(b"anon_inode:") || !link.windows(6).any(|part| part == b"notify") {
                continue;
            }
            let info = process.join("fdinfo").join(descriptor.file_name());
            for line in std::fs::read_to_string(info).unwrap_or_default().lines() {
                self.add_line(line, device);
            }
        }
    }

    fn add_line(&mut self, line: &str, device: Dev) {
        let mut words = line.split_ascii_whitespace();
        let what = words.next();
        let (mut inode, mut on, mut mask) = (None, None, 0);
        for word in words {
            let Some((key, value)) = word.split_once(':') else {
                continue;
            };
            let Ok(value) = u64::from_str_radix(value, 16) else {
                continue;
            };
            match key {
                "ino" => inode = Some(value),
                "sdev" => on = Some(value),
                "mask" => mask = u32::try_from(value).unwrap_or(u32::MAX),
                _ => {}
            }
        }
        // The kernel's own packing of a device's numbers.
        let device = (u64::from(major(device)) << 20) | u64::from(minor(device));
        if on != Some(device) {
            return;
        }
        // The other kind has masks of its own; all is raised for it.
        if what != Some("inotify") {
            mask = u32::MAX;
        }
        if let Some(inode) = inode {
            *self.0.entry(inode).or_default() |= mask;
        }
    }

    /// Whether one of these is awaited by whoever watches one of these files.
    pub fn awaits(&self, inodes: &[u64], mask: u32) -> bool {
        let of = |inode| self.0.get(inode).copied().unwrap_or(0);
        inodes.iter().any(|inode| of(inode) & mask != 0)
    }

    /// Whether nothing is watched.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::inotify;

    #[test]
    fn what_this_process_watches_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let stat = rustix::fs::stat(directory.path()).unwrap();
        let seen = || Watched::on(stat.st_dev);
        let create = inotify::WatchFlags::CREATE.bits();
        assert!(!seen().awaits(&[stat.st_ino], u32::MAX));
        let group = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
        inotify::add_watch(&group, directory.path(), inotify::WatchFlags::CREATE).unwrap();
        assert!(seen().awaits(&[1, stat.st_ino], create));
        assert!(!seen().awaits(&[stat.st_ino], inotify::WatchFlags::DELETE.bits()));
        assert!(!Watched::on(stat.st_dev + 1).awaits(&[stat.st_ino], u32::MAX));
        drop(group);
        assert!(!seen().awaits(&[stat.st_ino], u32::MAX));
    }
}
