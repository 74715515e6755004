//! Kernel parameters of the container that belong to the guest's kernel.
//!
//! libcontainer sets parameters of namespaces only, and the container has no network namespace
//! of its own here: its network is the guest's. What belongs to an IPC or UTS namespace stays
//! in the specification, for the container's own.

use std::path::PathBuf;

use bulkhead_isolation::{ErrorKind, IsolationError, Result};
use oci_spec::runtime::Spec;

/// Sets them, and takes them out of the specification.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for one that this kernel has not, or refuses.
pub fn apply(spec: &mut Spec) -> Result<()> {
    let Some(linux) = spec.linux_mut() else {
        return Ok(());
    };
    let Some(all) = linux.sysctl().clone() else {
        return Ok(());
    };
    let (of_namespaces, of_kernel) = all
        .into_iter()
        .partition(|(name, _)| is_of_a_namespace(name));
    linux.set_sysctl(Some(of_namespaces));
    for (name, value) in &of_kernel {
        let failed = |error: std::io::Error| {
            IsolationError::new(
                ErrorKind::InvalidArgument,
                format!("cannot set the kernel parameter {name}={value}: {error}"),
            )
        };
        let path = path(name).ok_or_else(|| failed(std::io::ErrorKind::InvalidInput.into()))?;
        std::fs::write(path, value).map_err(failed)?;
    }
    Ok(())
}

fn is_of_a_namespace(name: &str) -> bool {
    let name = name.replace('/', ".");
    name.starts_with("fs.mqueue.")
        || matches!(
            name.as_str(),
            "kernel.domainname"
                | "kernel.msgmax"
                | "kernel.msgmnb"
                | "kernel.msgmni"
                | "kernel.sem"
                | "kernel.shmall"
                | "kernel.shmmax"
                | "kernel.shmmni"
                | "kernel.shm_rmid_forced"
        )
}

/// Where a parameter is. A slash in its name means that dots in it are meant (`sysctl(8)`).
fn path(name: &str) -> Option<PathBuf> {
    let parts: Vec<&str> = if name.contains('/') {
        name.split('/').collect()
    } else {
        name.split('.').collect()
    };
    let plain = parts
        .iter()
        .all(|part| !part.is_empty() && *part != "." && *part != ".." && !part.contains('\0'));
    plain.then(|| {
        let mut path = PathBuf::from("/proc/sys");
        path.extend(parts);
        path
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_files() {
        assert_eq!(
            path("net.ipv4.ping_group_range"),
            Some(PathBuf::from("/proc/sys/net/ipv4/ping_group_range"))
        );
        assert_eq!(
            path("net/ipv4/conf/eth0.1/forwarding"),
            Some(PathBuf::from("/proc/sys/net/ipv4/conf/eth0.1/forwarding"))
        );
        for bad in ["", "net..x", "../x", "a/../b", "/etc/passwd"] {
            assert_eq!(path(bad), None, "{bad}");
        }
    }

    #[test]
    fn those_of_namespaces_stay() {
        let text = r#"{"ociVersion":"1.1.0","linux":{"sysctl":{"kernel.shmmax":"1"}}}"#;
        let mut spec: Spec = serde_json::from_str(text).unwrap();
        apply(&mut spec).unwrap();
        let left = spec.linux().as_ref().unwrap().sysctl().clone().unwrap();
        assert_eq!(left.len(), 1);
    }
}
