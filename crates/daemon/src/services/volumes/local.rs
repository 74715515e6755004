//! The driver `local`: what its options mean, and the mounts of volumes that need one.
//!
//! A volume is a directory of ours, a directory of the host (`type=none`, `o=bind`), or a
//! tmpfs (`type=tmpfs`). Only the last is mounted by the daemon, where every container that
//! uses it finds it, for as long as one does.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::error::{ApiError, ApiResult};

/// What is behind a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// The volume's own directory.
    Directory,
    /// A directory of the host, with options of the bind.
    Bind {
        /// Which.
        device: PathBuf,
        /// Such as `ro`.
        options: Vec<String>,
    },
    /// Memory, with options of the mount.
    Tmpfs {
        /// Such as `size=10m`.
        options: Vec<String>,
    },
}

const FLAGS: [(&str, MountFlags); 9] = [
    ("ro", MountFlags::RDONLY),
    ("nosuid", MountFlags::NOSUID),
    ("nodev", MountFlags::NODEV),
    ("noexec", MountFlags::NOEXEC),
    ("noatime", MountFlags::NOATIME),
    ("nodiratime", MountFlags::NODIRATIME),
    ("relatime", MountFlags::RELATIME),
    ("strictatime", MountFlags::STRICTATIME),
    ("sync", MountFlags::SYNCHRONOUS),
];
/// Options that only undo what is not set.
const DEFAULTS: [&str; 6] = ["rw", "suid", "dev", "exec", "defaults", "async"];
/// Options of a tmpfs with a value (`tmpfs(5)`).
const TMPFS_VALUES: [&str; 6] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks"];

/// What the options of a volume (`--opt`) mean.
///
/// # Errors
/// 400 for what makes no sense or is not done here.
pub fn backing(name: &str, options: Option<&BTreeMap<String, String>>) -> ApiResult<Backing> {
    let refused = |why: String| ApiError::bad_request(format!("create {name}: {why}"));
    let empty = BTreeMap::new();
    let options = options.unwrap_or(&empty);
    if options.is_empty() {
        return Ok(Backing::Directory);
    }
    for key in options.keys() {
        match key.as_str() {
            "type" | "device" | "o" => {}
            "size" => {
                return Err(refused(
                    "quota size requested but no quota support".to_owned(),
                ));
            }
            other => return Err(refused(format!("invalid option: \"{other}\""))),
        }
    }
    for (key, needed) in [("device", "type"), ("type", "device"), ("o", "device")] {
        if options.contains_key(key) && !options.contains_key(needed) {
            return Err(refused(format!("missing required option: \"{needed}\"")));
        }
    }
    let text = |key: &str| options.get(key).map(String::as_str).unwrap_or_default();
    let kind = text("type");
    // Given, as scripts do whose variables are empty, but for nothing that is to be mounted.
    if kind.is_empty() && text("device").is_empty() {
        return Ok(Backing::Directory);
    }
    let given: Vec<String> = text("o")
        .split(',')
        .filter(|option| !option.is_empty())
        .map(str::to_owned)
        .collect();
    let is_flag =
        |option: &str| FLAGS.iter().any(|(flag, _)| *flag == option) || DEFAULTS.contains(&option);
    if let Some((rest, recursive)) = without_bind(&given) {
        let device = text("device");
        if !device.starts_with('/') {
            return Err(refused(format!(
                "device \"{device}\" of a bind must be an absolute path"
            )));
        }
        let mut options = vec![if recursive { "rbind" } else { "bind" }.to_owned()];
        for option in rest {
            if !is_flag(&option) {
                return Err(refused(format!("invalid option of a bind: \"{option}\"")));
            }
            options.push(option);
        }
        return Ok(Backing::Bind {
            device: PathBuf::from(device),
            options,
        });
    }
    if kind == "tmpfs" {
        for option in &given {
            let known = match option.split_once('=') {
                Some((key, value)) => {
                    let plain = value
                        .bytes()
                        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'%');
                    TMPFS_VALUES.contains(&key) && !value.is_empty() && plain
                }
                None => is_flag(option),
            };
            if !known {
                return Err(refused(format!("invalid option of a tmpfs: \"{option}\"")));
            }
        }
        return Ok(Backing::Tmpfs { options: given });
    }
    Err(refused(format!(
        "type \"{kind}\" is not available: the local driver makes volumes of type tmpfs, and of \
         type none with o=bind; mount the file system on the host and bind it"
    )))
}

/// The options without `bind`, and whether it was `rbind`; `None` without one.
fn without_bind(options: &[String]) -> Option<(Vec<String>, bool)> {
    let is_bind = |option: &&String| matches!(option.as_str(), "bind" | "rbind");
    let recursive = options.iter().find(is_bind)? == "rbind";
    let rest = options.iter().filter(|option| !is_bind(option));
    Some((rest.cloned().collect(), recursive))
}

/// Mounts a tmpfs unless it is mounted.
pub fn mount_tmpfs(at: &Path, options: &[String]) -> io::Result<()> {
    if is_mounted(at)? {
        return Ok(());
    }
    let mut flags = MountFlags::empty();
    let mut data = Vec::new();
    for option in options {
        match FLAGS.iter().find(|(name, _)| name == option) {
            Some((_, flag)) => flags |= *flag,
            None if option.contains('=') => data.push(option.as_str()),
            None => {}
        }
    }
    let data = CString::new(data.join(",")).map_err(io::Error::other)?;
    rustix::mount::mount("tmpfs", at, "tmpfs", flags, &*data)?;
    Ok(())
}

/// Unmounts what is mounted there, if anything is.
pub fn unmount(at: &Path) -> io::Result<()> {
    if !is_mounted(at)? {
        return Ok(());
    }
    match rustix::mount::unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether a directory is the root of a mount: its file system is another than its parent's.
fn is_mounted(at: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let Some(parent) = at.parent() else {
        return Ok(false);
    };
    let own = match std::fs::symlink_metadata(at) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    Ok(own.dev() != std::fs::symlink_metadata(parent)?.dev())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> ApiResult<Backing> {
        let options = pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        backing("v1", Some(&options))
    }

    #[test]
    fn what_options_mean() {
        assert_eq!(backing("v1", None).unwrap(), Backing::Directory);
        assert_eq!(of(&[]).unwrap(), Backing::Directory);
        let empty = [("type", ""), ("device", ""), ("o", "")];
        assert_eq!(of(&empty).unwrap(), Backing::Directory);
        let tmpfs = of(&[
            ("type", "tmpfs"),
            ("device", "tmpfs"),
            ("o", "size=1m,uid=5,noexec"),
        ]);
        assert!(matches!(tmpfs.unwrap(), Backing::Tmpfs { options } if options.len() == 3));
        let bind = of(&[("type", "none"), ("device", "/srv"), ("o", "ro,bind")]);
        assert_eq!(
            bind.unwrap(),
            Backing::Bind {
                device: "/srv".into(),
                options: vec!["bind".to_owned(), "ro".to_owned()],
            }
        );
    }

    #[test]
    fn what_is_refused() {
        for (pairs, words) in [
            (&[("nope", "1")][..], "create v1: invalid option: \"nope\""),
            (&[("type", "tmpfs")], "missing required option: \"device\""),
            (&[("device", "/x")], "missing required option: \"type\""),
            (&[("size", "1m")], "no quota support"),
            (
                &[("type", "nfs"), ("device", ":/x"), ("o", "addr=1.2.3.4")],
                "type \"nfs\" is not available",
            ),
            (
                &[("type", "tmpfs"), ("device", "tmpfs"), ("o", "lowerdir=/")],
                "invalid option of a tmpfs",
            ),
            (
                &[("type", "none"), ("device", "rel"), ("o", "bind")],
                "absolute path",
            ),
        ] {
            let error = of(pairs).unwrap_err();
            assert_eq!(error.status, 400);
            assert!(error.message.contains(words), "{}", error.message);
        }
    }
}
