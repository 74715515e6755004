//! A container's control group, in whichever hierarchies this kernel has mounted: the
//! unified one (v2), or one per controller (v1), of which "hybrid" is a variant.
//!
//! Of a process container libcontainer makes the group and puts the first processes in; of a
//! virtual machine's worker that is done here too. So is everything after that: counters,
//! limits, freezing, killing, removing.

mod kill;
mod limits;
mod make;
mod stats;

use std::io;
use std::path::{Path, PathBuf};

use bulkhead_isolation::IsolationError;

/// The groups of one container, one per hierarchy in which they exist.
#[derive(Debug, Clone)]
pub struct Cgroup {
    /// The name, as in `linux.cgroupsPath`: absolute within every hierarchy.
    name: PathBuf,
    hierarchies: Vec<Hierarchy>,
}

#[derive(Debug, Clone)]
struct Hierarchy {
    /// v1 controllers (or `name=…`); empty for the unified hierarchy.
    controllers: Vec<String>,
    unified: bool,
    /// The group's directory.
    path: PathBuf,
}

/// A v1 controller or its successor in v2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Cpu,
    CpuAcct,
    Cpuset,
    Memory,
    Pids,
    Blkio,
    Freezer,
}

impl Controller {
    fn v1(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::CpuAcct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Blkio => "blkio",
            Self::Freezer => "freezer",
        }
    }
}

/// The directory of a controller, and the dialect of its files.
#[derive(Debug, Clone, Copy)]
enum Directory<'a> {
    V1(&'a Path),
    V2(&'a Path),
}

/// Whether the host's resource controllers are in the unified hierarchy: the root of
/// `/sys/fs/cgroup` then is of that type.
pub fn host_is_unified() -> bool {
    /// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
    const UNIFIED: i64 = 0x6367_7270;
    rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|filesystem| filesystem.f_type == UNIFIED)
}

impl Cgroup {
    /// Finds the group of this name wherever it exists; one that exists nowhere is fine.
    pub fn find(name: &Path) -> io::Result<Self> {
        let relative = name.strip_prefix("/").unwrap_or(name);
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        // An empty name would be the root group itself.
        let components: Vec<_> = relative.components().collect();
        let sound = !components.is_empty()
            && components
                .iter()
                .all(|part| matches!(part, std::path::Component::Normal(_)));
        if !sound {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("not the name of a control group: {}", name.display()),
            ));
        }
        for (controllers, unified, mount) in
            mounts(&std::fs::read_to_string("/proc/self/mountinfo")?)
        {
            let path = mount.join(relative);
            // One hierarchy may be mounted in two places.
            let known = hierarchies
                .iter()
                .any(|other| other.unified == unified && other.controllers == controllers);
            if !known && path.is_dir() {
                hierarchies.push(Hierarchy {
                    controllers,
                    unified,
                    path,
                });
            }
        }
        Ok(Self {
            name: name.to_owned(),
            hierarchies,
        })
    }

    fn directory(&self, controller: Controller) -> Option<Directory<'_>> {
        let v1 = self.hierarchies.iter().find(|hierarchy| {
            let mut names = hierarchy.controllers.iter();
            names.any(|name| name == controller.v1())
        });
        match v1 {
            Some(hierarchy) => Some(Directory::V1(&hierarchy.path)),
            None => self.unified().map(Directory::V2),
        }
    }

    /// The group's directory in the unified hierarchy.
    pub fn unified(&self) -> Option<&Path> {
        let mut all = self.hierarchies.iter();
        all.find(|hierarchy| hierarchy.unified)
            .map(|hierarchy| hierarchy.path.as_path())
    }

    /// Its directories, one for each hierarchy.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.hierarchies
            .iter()
            .map(|hierarchy| hierarchy.path.as_path())
    }

    /// Every process in the group and in groups below it.
    pub fn pids(&self) -> io::Result<Vec<i32>> {
        let directory = self
            .directory(Controller::Pids)
            .or_else(|| self.directory(Controller::Memory));
        let root = match (directory, self.hierarchies.first()) {
            (Some(Directory::V1(path) | Directory::V2(path)), _) => path,
            (None, Some(hierarchy)) => &hierarchy.path,
            (None, None) => return Ok(Vec::new()),
        };
        let mut pids = Vec::new();
        for group in subtree(root)? {
            match std::fs::read_to_string(group.join("cgroup.procs")) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
                // The group went away, or is a threaded one, whose processes are listed above.
                Err(error) if is_gone(&error) => {}
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Whether the OOM killer has ended a process of this group.
    pub fn oom_killed(&self) -> bool {
        let file = match self.directory(Controller::Memory) {
            Some(Directory::V1(path)) => path.join("memory.oom_control"),
            Some(Directory::V2(path)) => path.join("memory.events"),
            None => return false,
        };
        std::fs::read_to_string(file)
            .is_ok_and(|text| field(&text, "oom_kill").is_some_and(|count| count > 0))
    }

    /// Stops or continues every process of the group; returns once they all are.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        match self.directory(Controller::Freezer) {
            None => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel has no freezer for control groups",
            )),
            Some(Directory::V1(path)) => kill::freeze_v1(path, frozen),
            Some(Directory::V2(path)) => kill::freeze_v2(path, frozen),
        }
    }

    /// Whether the group is frozen, or is being frozen.
    pub fn frozen(&self) -> bool {
        match self.directory(Controller::Freezer) {
            None => false,
            Some(Directory::V1(path)) => std::fs::read_to_string(path.join("freezer.state"))
                .is_ok_and(|state| state.trim() != "THAWED"),
            Some(Directory::V2(path)) => std::fs::read_to_string(path.join("cgroup.freeze"))
                .is_ok_and(|state| state.trim() == "1"),
        }
    }

    /// The OOM counter and others are gone with the group; until then it can be asked.
    pub fn name(&self) -> &Path {
        &self.name
    }
}

/// Keeps groups' parents from being removed while a group is made below them. The lock is
/// on the directory of the hierarchies, held by makers together and by a remover alone.
pub fn lock_parents(exclusive: bool) -> rustix::io::Result<Option<std::os::fd::OwnedFd>> {
    use rustix::fs::{FlockOperation, Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open("/sys/fs/cgroup", flags, Mode::empty())?;
    let operation = if exclusive {
        FlockOperation::NonBlockingLockExclusive
    } else {
        FlockOperation::LockShared
    };
    match rustix::fs::flock(&directory, operation) {
        Ok(()) => Ok(Some(directory)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `(controllers, unified, mount point)` of every mounted hierarchy.
pub fn mounts(mountinfo: &str) -> Vec<(Vec<String>, bool, PathBuf)> {
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        // id parent major:minor root mount-point options [optional…] - type source options
        let Some((head, tail)) = line.split_once(" - ") else {
            continue;
        };
        let mut head = head.split(' ').skip(3);
        let (Some("/"), Some(mount)) = (head.next(), head.next()) else {
            continue;
        };
        let mut tail = tail.split(' ');
        let (kind, options) = (tail.next(), tail.nth(1).unwrap_or_default());
        match kind {
            Some("cgroup2") => found.push((Vec::new(), true, PathBuf::from(mount))),
            Some("cgroup") => {
                let general = ["rw", "ro", "xattr", "clone_children", "noprefix"];
                let controllers = options
                    .split(',')
                    .filter(|option| !general.contains(option))
                    .map(str::to_owned)
                    .collect();
                found.push((controllers, false, PathBuf::from(mount)));
            }
            _ => {}
        }
    }
    found
}

/// A group and all below it, each before those it contains.
fn subtree(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut groups = vec![root.to_owned()];
    let mut next = 0;
    while let Some(group) = groups.get(next).cloned() {
        next += 1;
        let entries = match std::fs::read_dir(&group) {
            Ok(entries) => entries,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                groups.push(entry.path());
            }
        }
    }
    Ok(groups)
}

/// Whether the error says that a group has been removed.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// The number after `key` in a flat-keyed file.
fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        (name == key).then(|| value.trim().parse().ok()).flatten()
    })
}

/// The number that is all of a file; `max` is none.
fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn write(path: &Path, value: &str) -> Result<(), IsolationError> {
    std::fs::write(path, value).map_err(|error| {
        IsolationError::other(format!("write {value} to {}", path.display()), error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_in_mountinfo() {
        let text = "\
25 20 0:22 / /sys/fs/cgroup rw,nosuid - tmpfs tmpfs rw\n\
26 25 0:23 / /sys/fs/cgroup/unified rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n\
30 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
31 25 0:28 /docker/x /elsewhere rw - cgroup cgroup rw,memory\n";
        let found = mounts(text);
        assert_eq!(
            found,
            [
                (vec![], true, PathBuf::from("/sys/fs/cgroup/unified")),
                (
                    vec!["cpu".to_owned(), "cpuacct".to_owned()],
                    false,
                    PathBuf::from("/sys/fs/cgroup/cpu,cpuacct")
                ),
            ]
        );
    }

    #[test]
    fn names_that_reach_elsewhere_are_refused() {
        for name in ["/", "", "/bulkhead/../..", "../x"] {
            assert!(Cgroup::find(Path::new(name)).is_err(), "{name}");
        }
        assert!(Cgroup::find(Path::new("/no-such-group-here")).is_ok());
    }

    #[test]
    fn flat_keyed_fields() {
        assert_eq!(field("oom 3\noom_kill 12\n", "oom_kill"), Some(12));
        assert_eq!(field("oom_kill_disable 0\n", "oom_kill"), None);
    }
}
