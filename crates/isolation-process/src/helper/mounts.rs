//! Mounts that cannot be made: found before anything is, and told in words that Docker's users
//! know.

use std::fs;
use std::os::fd::BorrowedFd;
use std::path::{Component, Path};

use bulkhead_isolation::{ErrorKind, IsolationError, Result};
use oci_spec::runtime::Mount;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

/// What may be mounted below `/proc`: files that lxcfs has its own of (runc's `checkProcMount`).
const ALLOWED_IN_PROC: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];
/// What dockerd says of it, and its users search for.
const KINDS_DIFFER: &str = "not a directory: Are you trying to mount a directory onto a file (or \
                            vice-versa)? Check if the specified host path exists and is the \
                            expected type";

/// Whether a mount shows a file; `None` where that is not for us to say, or its source is not
/// in sight, which is missed later.
pub fn shows_file(mount: &Mount) -> Option<bool> {
    match (mount.typ().as_deref(), mount.source()) {
        (Some("tmpfs"), _) => Some(false),
        (Some("bind"), Some(source)) => fs::metadata(source).ok().map(|found| !found.is_dir()),
        _ => None,
    }
}

/// Refuses mounts that would hide what the kernel says of processes, directories on files and
/// files on directories.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], with the destination.
pub fn check(root: BorrowedFd<'_>, mounts: &[Mount]) -> Result<()> {
    for (at, mount) in mounts.iter().enumerate() {
        let destination = mount.destination();
        check_proc(mount).map_err(|reason| refused(destination, &reason))?;
        let covers_another = mounts[..at]
            .iter()
            .any(|other| destination.starts_with(other.destination()));
        // What is there then is not the root's.
        let plain = !destination
            .components()
            .any(|part| part == Component::ParentDir);
        if covers_another || !plain {
            continue;
        }
        let is_file = is_file(root, destination);
        if let (Some(shown), Some(found)) = (shows_file(mount), is_file)
            && shown != found
        {
            return Err(refused(destination, KINDS_DIFFER));
        }
    }
    Ok(())
}

fn refused(destination: &Path, reason: &str) -> IsolationError {
    IsolationError::new(
        ErrorKind::InvalidArgument,
        format!(
            "error mounting to rootfs at \"{}\": {reason}",
            destination.display()
        ),
    )
}

fn check_proc(mount: &Mount) -> std::result::Result<(), String> {
    let destination = mount.destination();
    let Ok(below) = destination.strip_prefix("/proc") else {
        return Ok(());
    };
    let path = destination.display();
    if below.as_os_str().is_empty() {
        let source = mount
            .source()
            .as_ref()
            .filter(|_| mount.typ().as_deref() == Some("bind"));
        let is_proc = mount.typ().as_deref() == Some("proc")
            || source
                .and_then(|source| rustix::fs::statfs(source).ok())
                .is_some_and(|found| found.f_type == rustix::fs::PROC_SUPER_MAGIC);
        return is_proc
            .then_some(())
            .ok_or_else(|| format!("\"{path}\" cannot be mounted because it is not of type proc"));
    }
    if ALLOWED_IN_PROC
        .iter()
        .any(|allowed| destination == Path::new(allowed))
    {
        return Ok(());
    }
    Err(format!(
        "\"{path}\" cannot be mounted because it is inside /proc"
    ))
}

/// Whether something other than a directory is there; `None` when nothing is.
fn is_file(root: BorrowedFd<'_>, path: &Path) -> Option<bool> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).ok()?;
    let stat = rustix::fs::fstat(&found).ok()?;
    Some(FileType::from_raw_mode(stat.st_mode) != FileType::Directory)
}

/// libcontainer's error of a mount without what only it needs to know, for whatever is not
/// found before.
pub fn in_plain_words(message: &str) -> String {
    const BEFORE: &str = "failed to mount Mount { destination: ";
    // The end of a Mount's last field.
    const AFTER: &str = " }: ";
    let plain = message.split_once(BEFORE).and_then(|(_, rest)| {
        let (mount, reason) = rest.split_once(AFTER)?;
        let (destination, _) = mount.split_once(", typ: ")?;
        Some(format!(
            "error mounting to rootfs at {destination}: {reason}"
        ))
    });
    plain.unwrap_or_else(|| message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::MountBuilder;
    use std::os::fd::AsFd;

    fn mount(typ: &str, source: &Path, destination: &str) -> Mount {
        MountBuilder::default()
            .typ(typ)
            .source(source)
            .destination(destination)
            .build()
            .unwrap()
    }

    #[test]
    fn what_cannot_be_mounted_is_named() {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir_all(place.path().join("etc")).unwrap();
        let file = place.path().join("etc/passwd");
        fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", place.path().join("link")).unwrap();
        let root = super::super::create::open_root(place.path()).unwrap();
        let directory = Path::new("/usr");
        let check = |mounts: &[Mount]| match check(root.as_fd(), mounts) {
            Ok(()) => String::new(),
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::InvalidArgument);
                error.message
            }
        };
        for fine in [
            mount("bind", &file, "/etc/passwd"),
            mount("bind", directory, "/etc"),
            mount("bind", directory, "/new"),
            mount("bind", &file, "/new"),
            mount("bind", Path::new("/nowhere"), "/etc/passwd"),
            mount("tmpfs", Path::new("tmpfs"), "/etc"),
            mount("proc", Path::new("proc"), "/proc"),
            mount("bind", Path::new("/proc"), "/proc"),
            mount("bind", &file, "/proc/meminfo"),
            mount("sysfs", Path::new("sysfs"), "/etc/passwd"),
        ] {
            assert_eq!(check(std::slice::from_ref(&fine)), "", "{fine:?}");
        }
        for (wrong, words) in [
            (
                mount("bind", directory, "/etc/passwd"),
                "not a directory: Are",
            ),
            (mount("bind", directory, "/link"), "not a directory: Are"),
            (mount("bind", &file, "/etc"), "not a directory: Are"),
            (
                mount("tmpfs", Path::new("tmpfs"), "/link"),
                "not a directory: Are",
            ),
            (mount("bind", directory, "/proc"), "is not of type proc"),
            (
                mount("tmpfs", Path::new("tmpfs"), "/proc/acpi"),
                "is inside /proc",
            ),
            (
                mount("bind", &file, "/proc/sysrq-trigger"),
                "is inside /proc",
            ),
        ] {
            let said = check(std::slice::from_ref(&wrong));
            let destination = wrong.destination().display();
            let start = format!("error mounting to rootfs at \"{destination}\": ");
            assert!(said.starts_with(&start) && said.contains(words), "{said}");
        }
        // What an earlier one covers is not the root's file.
        let covered = mount("bind", directory, "/etc");
        assert_eq!(
            check(&[covered, mount("bind", directory, "/etc/passwd")]),
            ""
        );
    }

    #[test]
    fn words_of_the_runtime() {
        let one = mount("bind", Path::new("/s"), "/sys/x");
        let said = format!("failed to prepare rootfs: failed to mount {one:?}: read-only");
        assert_eq!(
            in_plain_words(&said),
            "error mounting to rootfs at \"/sys/x\": read-only"
        );
        assert_eq!(in_plain_words("something else"), "something else");
    }
}
