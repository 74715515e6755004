//! The jail of QEMU's process.
//!
//! A guest that gets the better of QEMU is in a process without capabilities, as a user that
//! owns nothing, in namespaces of its own. Its root directory holds, read-only, what the
//! dynamic loader and QEMU open while it starts up: libraries, firmware, the kernel and the
//! initramfs. What it writes it has as descriptors. QEMU's own sandbox keeps it from starting
//! programs.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bulkhead_jail::filter::Filter;
use bulkhead_jail::{Identity, Limits, ReadOnlyRoot};
use bulkhead_machine::{BootError, Console, DiskFiles, MachineConfig, MachineFiles};

use crate::{QemuEngine, filter};

/// Under these names QEMU finds the guest's kernel and initramfs, which it takes by name only.
pub(crate) const KERNEL: &str = "/kernel";
pub(crate) const INITRAMFS: &str = "/initramfs";
/// And this one where there is hardware virtualization.
const DEV_KVM: &str = "/dev/kvm";

/// By this one it finds out whether locks belong to an open file, as they should: those that
/// belong to a process are lost with any of its descriptors.
const DEV_NULL: &str = "/dev/null";

/// Where libraries and firmware are. What does not exist is left out.
const HOST: [&str; 7] = [
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/share/qemu",
    "/usr/share/seabios",
    "/etc/ld.so.cache",
];
/// The same for a QEMU that was not installed in `/usr`, below the parent of its directory.
const PREFIX: [&str; 3] = ["lib", "lib64", "share/qemu"];

/// Open descriptors: with the most layers it has them twice while it starts up.
const DESCRIPTORS: u64 = 1024;
/// Address space beyond the guest's memory, bytes: a gigabyte for translated code, libraries,
/// stacks and arenas of its threads.
const ADDRESS_SPACE: u64 = 8 << 30;
/// Threads beside one for each vCPU; its pool for files grows to 64.
const THREADS: u64 = 128;

/// What a QEMU process is put into, between fork and exec.
#[derive(Debug)]
pub(crate) struct QemuJail {
    binary: PathBuf,
    root: ReadOnlyRoot,
    limits: Limits,
    identity: Identity,
    filter: Filter,
}

impl QemuJail {
    /// Puts it together while the host's files are in sight.
    pub(crate) fn new(
        engine: &QemuEngine,
        config: &MachineConfig,
        files: &MachineFiles,
    ) -> Result<Self, BootError> {
        let failed = |what: String| {
            move |source| BootError::Io {
                context: format!("cannot show {what} to QEMU"),
                source,
            }
        };
        let binary = &engine.binary;
        let binary =
            std::fs::canonicalize(binary).map_err(failed(format!("'{}'", binary.display())))?;
        let mut root = ReadOnlyRoot::new();
        for path in host_paths(&binary) {
            root.show_if_exists(&path)
                .map_err(failed(format!("'{}'", path.display())))?;
        }
        for (place, file, path) in [
            (KERNEL, &files.kernel, &config.kernel),
            (INITRAMFS, &files.initramfs, &config.initramfs),
        ] {
            let what = format!("'{}'", path.display());
            readable_by_others(file).map_err(failed(what.clone()))?;
            root.show_file(Path::new(place), file, false)
                .map_err(failed(what))?;
        }
        let null = std::fs::File::open(DEV_NULL).map_err(failed(format!("'{DEV_NULL}'")))?;
        root.show_file(Path::new(DEV_NULL), &null, true)
            .map_err(failed(format!("'{DEV_NULL}'")))?;
        let mut identity = engine.identity.clone();
        if let Some(kvm) = &files.kvm {
            let what = || format!("'{DEV_KVM}'");
            // QEMU 7 opens it by name, and the group is who may.
            let group = kvm.metadata().map_err(failed(what()))?.gid();
            identity.groups.push(group);
            root.show_file(Path::new(DEV_KVM), kvm, true)
                .map_err(failed(what()))?;
        }
        Ok(Self {
            binary,
            root,
            limits: limits(config, files),
            identity,
            filter: filter::qemu().map_err(|error| BootError::Io {
                context: "cannot restrict QEMU's system calls".to_owned(),
                source: io::Error::other(error),
            })?,
        })
    }

    /// The program, by its name inside.
    pub(crate) fn binary(&self) -> &Path {
        &self.binary
    }

    /// Enters it, in the child.
    pub(crate) fn enter(&self) -> io::Result<()> {
        let failed = bulkhead_jail::JailError::into_source;
        self.root.enter().map_err(failed)?;
        self.limits.set().map_err(failed)?;
        // The worker has told of what is missing, if something is.
        bulkhead_jail::give_up_all(&self.identity).map_err(failed)?;
        self.filter.set().map_err(io::Error::other)
    }
}

/// What of the host QEMU sees, each once.
fn host_paths(binary: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = HOST.iter().map(PathBuf::from).collect();
    let prefix = binary.parent().and_then(Path::parent);
    if let Some(prefix) = prefix.filter(|prefix| *prefix != Path::new("/usr")) {
        let own = PREFIX.iter().map(|name| prefix.join(name));
        paths.extend(own.filter(|path| !path.starts_with("/lib")));
    }
    if !paths.iter().any(|path| binary.starts_with(path)) {
        paths.push(binary.to_owned());
    }
    paths
}

/// QEMU opens them as a user who is nobody here.
fn readable_by_others(file: &std::fs::File) -> io::Result<()> {
    if file.metadata()?.mode() & 0o004 == 0 {
        let advice = "everybody must be allowed to read it (chmod o+r)";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, advice));
    }
    Ok(())
}

fn limits(config: &MachineConfig, files: &MachineFiles) -> Limits {
    let scratch = files.disks.iter().filter_map(|disk| match disk {
        DiskFiles::Scratch(file) => file.metadata().ok().map(|metadata| metadata.len()),
        DiskFiles::Layers(_) => None,
    });
    let file_size = match config.console {
        Console::Quiet => Some(scratch.max().unwrap_or(0)),
        Console::File { .. } => None,
    };
    Limits {
        descriptors: Some(DESCRIPTORS),
        address_space: Some(config.memory_bytes.saturating_add(ADDRESS_SPACE)),
        file_size,
        threads: Some(u64::from(config.vcpus) + THREADS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qemu_elsewhere_brings_its_files_along() {
        let usual = host_paths(Path::new("/usr/bin/qemu-system-x86_64"));
        assert_eq!(usual.len(), HOST.len() + 1);
        let own = host_paths(Path::new("/opt/qemu/bin/qemu-system-x86_64"));
        for path in [
            "/opt/qemu/lib",
            "/opt/qemu/share/qemu",
            "/opt/qemu/bin/qemu-system-x86_64",
        ] {
            assert!(own.contains(&PathBuf::from(path)), "{own:?}");
        }
        let root = host_paths(Path::new("/bin/qemu-system-x86_64"));
        assert_eq!(root.iter().filter(|path| path.ends_with("lib")).count(), 2);
    }
}
