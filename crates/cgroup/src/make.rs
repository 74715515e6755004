//! Making a group, for processes that libcontainer does not start.

use std::io;
use std::path::Path;

use crate::{Cgroup, lock_parents, mounts};

/// The controllers that something here has a use for. Of version 1 not `cpuset`: a new group
/// of it has no CPUs and takes no process.
const CONTROLLERS_V1: [&str; 6] = ["cpu", "cpuacct", "memory", "pids", "blkio", "freezer"];
const CONTROLLERS_V2: [&str; 4] = ["cpu", "memory", "io", "pids"];

impl Cgroup {
    /// Makes the group of this name in every hierarchy that limits or counts; what is there
    /// already is taken as it is. On an error nothing is left that was not there before.
    ///
    /// # Errors
    /// What the system says, and [`io::ErrorKind::InvalidInput`] for what is no name.
    pub fn make(name: &Path) -> io::Result<Self> {
        // Refuses what is no name.
        Self::find(name)?;
        let relative = name.strip_prefix("/").unwrap_or(name);
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo")?;
        let lock = lock_parents(false)?;
        let made = mounts(&mountinfo)
            .into_iter()
            .filter(|(controllers, unified, _)| {
                let useful = |name: &String| CONTROLLERS_V1.contains(&name.as_str());
                *unified || controllers.iter().any(useful)
            })
            .try_for_each(|(_, unified, mount)| make_below(&mount, relative, unified));
        drop(lock);
        let group = Self::find(name)?;
        match made {
            Ok(()) => Ok(group),
            Err(error) => {
                if let Err(error) = group.remove() {
                    tracing::warn!(%error, "a control group is left");
                }
                Err(error)
            }
        }
    }

    /// Puts a process in, in every hierarchy.
    ///
    /// # Errors
    /// What the first that does not take it says; the others have been asked all the same.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        let added = self
            .directories()
            .map(|group| std::fs::write(group.join("cgroup.procs"), pid.to_string()));
        // Not at the first error: what can count it shall.
        added.fold(Ok(()), io::Result::and)
    }
}

fn make_below(mount: &Path, relative: &Path, unified: bool) -> io::Result<()> {
    let mut group = mount.to_owned();
    for part in relative.components() {
        if unified {
            delegate(&group);
        }
        group.push(part);
        match std::fs::create_dir(&group) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Has a unified group give its controllers to the groups in it, one after the other: which
/// of them it may give is known only when it is tried. One that is not given does not count
/// or limit there, which is no reason to have no group.
fn delegate(group: &Path) {
    for controller in CONTROLLERS_V2 {
        let file = group.join("cgroup.subtree_control");
        if let Err(error) = std::fs::write(&file, format!("+{controller}")) {
            tracing::debug!(%error, controller, file = %file.display(), "not delegated");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_made_filled_and_removed() {
        let name = format!("/bulkhead-test-{}/a/b", std::process::id());
        let group = match Cgroup::make(Path::new(&name)) {
            Ok(group) => group,
            Err(error) => {
                eprintln!("not run: no control groups can be made here: {error}");
                return;
            }
        };
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let added = group.add(child.id());
        let pids = group.pids();
        let again = Cgroup::make(Path::new(&name)).map(|group| group.pids().unwrap().len());
        child.kill().unwrap();
        child.wait().unwrap();
        group.remove().unwrap();
        added.unwrap();
        assert_eq!(pids.unwrap(), [i32::try_from(child.id()).unwrap()]);
        assert_eq!(again.unwrap(), 1);
        let left = Cgroup::find(Path::new(&name)).unwrap();
        assert!(left.hierarchies.is_empty(), "{left:?}");
        let parent = name.split('/').nth(1).unwrap();
        let parent = Cgroup::find(Path::new(parent)).unwrap();
        assert!(parent.hierarchies.is_empty(), "{parent:?}");
    }
}
