//! The control groups that a container sees, where controllers have a hierarchy each (v1).
//!
//! libcontainer mounts them writable whatever the specification says, and a container's root
//! could then lift its own limits. A read-only mount of type `cgroup` is therefore replaced by
//! what it stands for: a directory of read-only views of the container's own groups.

use std::path::Path;

use bulkhead_isolation::{IsolationError, Result};
use oci_spec::runtime::{Mount, MountBuilder, Spec};

use bulkhead_cgroup as cgroup;

/// The controllers in whose hierarchies libcontainer makes a container's group.
const CONTROLLERS: [&str; 12] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
];

/// Replaces the read-only mounts of type `cgroup`; on a unified host they are left to
/// libcontainer, which honours them there.
pub fn make_read_only(spec: &mut Spec) -> Result<()> {
    if cgroup::host_is_unified() {
        return Ok(());
    }
    let failed = |error: std::io::Error| IsolationError::other("find control groups", error);
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").map_err(failed)?;
    replace(spec, &mountinfo).map_err(|error| IsolationError::other("mount control groups", error))
}

fn replace(spec: &mut Spec, mountinfo: &str) -> std::result::Result<(), oci_spec::OciSpecError> {
    let group = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().clone());
    let Some(group) = group else {
        return Ok(());
    };
    let group = group.strip_prefix("/").unwrap_or(&group);
    let mut mounts = Vec::new();
    let mut read_only = Vec::new();
    for mount in spec.mounts().clone().unwrap_or_default() {
        let mut options = mount.options().iter().flatten();
        if mount.typ().as_deref() != Some("cgroup") || !options.any(|option| option == "ro") {
            mounts.push(mount);
            continue;
        }
        let directory = mount.destination();
        read_only.push(directory.to_string_lossy().into_owned());
        mounts.push(
            MountBuilder::default()
                .typ("tmpfs")
                .source("tmpfs")
                .destination(directory)
                .options(["nosuid", "noexec", "nodev", "mode=755"].map(str::to_owned))
                .build()?,
        );
        for (controllers, unified, hierarchy) in cgroup::mounts(mountinfo) {
            let known = controllers
                .iter()
                .all(|name| CONTROLLERS.contains(&name.as_str()));
            if unified || controllers.is_empty() || !known {
                continue;
            }
            let source = hierarchy.join(group);
            let together = controllers.join(",");
            let names = std::iter::once(&together)
                .chain(controllers.iter().filter(|name| **name != together));
            for name in names {
                mounts.push(view(&source, &directory.join(name))?);
            }
        }
    }
    spec.set_mounts(Some(mounts));
    if let Some(linux) = spec.linux_mut() {
        let mut paths = linux.readonly_paths().clone().unwrap_or_default();
        paths.extend(read_only);
        linux.set_readonly_paths(Some(paths));
    }
    Ok(())
}

fn view(source: &Path, destination: &Path) -> std::result::Result<Mount, oci_spec::OciSpecError> {
    MountBuilder::default()
        .typ("bind")
        .source(source)
        .destination(destination)
        .options(["bind", "ro", "nosuid", "noexec", "nodev"].map(str::to_owned))
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
26 25 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
30 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
31 25 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
32 25 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";

    fn replaced(options: &str) -> Spec {
        let text = format!(
            r#"{{"ociVersion":"1.1.0","mounts":[
                {{"destination":"/proc","type":"proc","source":"proc"}},
                {{"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup",
                  "options":[{options}]}}],
                "linux":{{"cgroupsPath":"/b/x","readonlyPaths":["/proc/sys"]}}}}"#
        );
        let mut spec: Spec = serde_json::from_str(&text).unwrap();
        replace(&mut spec, MOUNTINFO).unwrap();
        spec
    }

    #[test]
    fn a_read_only_mount_becomes_read_only_views() {
        let spec = replaced(r#""ro","nosuid""#);
        let mounts = spec.mounts().clone().unwrap();
        let shown: Vec<(String, String)> = mounts[2..]
            .iter()
            .map(|mount| {
                assert!(
                    mount
                        .options()
                        .iter()
                        .flatten()
                        .any(|option| option == "ro")
                );
                let source = mount.source().clone().unwrap_or_default();
                (
                    source.display().to_string(),
                    mount.destination().display().to_string(),
                )
            })
            .collect();
        let pair = |source: &str, destination: &str| {
            (
                format!("/sys/fs/cgroup/{source}/b/x"),
                format!("/sys/fs/cgroup/{destination}"),
            )
        };
        assert_eq!(
            shown,
            [
                pair("cpu,cpuacct", "cpu,cpuacct"),
                pair("cpu,cpuacct", "cpu"),
                pair("cpu,cpuacct", "cpuacct"),
                pair("memory", "memory"),
            ]
        );
        let read_only = spec.linux().as_ref().unwrap().readonly_paths().clone();
        assert_eq!(read_only.unwrap(), ["/proc/sys", "/sys/fs/cgroup"]);
    }

    #[test]
    fn a_writable_one_is_left_alone() {
        let mounts = replaced(r#""rw""#).mounts().clone().unwrap();
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[1].typ().as_deref(), Some("cgroup"));
    }
}
