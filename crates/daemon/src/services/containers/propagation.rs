//! Whether a bind can have the propagation that is asked for: mounts travel only to and from
//! where the host's mount lets them.

use std::path::{Path, PathBuf};

use crate::error::{ApiError, ApiResult};

/// The propagation of a bind. One of the data root, of what is in it or above it has to learn
/// of what is unmounted there: a container that kept a mount of ours would keep its files.
///
/// # Errors
/// 400 for one that would not learn of it.
pub(super) fn of_bind(source: &str, wanted: Option<String>, data_root: &Path) -> ApiResult<String> {
    let path = Path::new(source);
    let near = path.starts_with(data_root) || data_root.starts_with(path);
    match wanted {
        None if near => Ok("rslave".to_owned()),
        None => Ok("rprivate".to_owned()),
        Some(wanted) if near && !matches!(wanted.as_str(), "rslave" | "rshared") => {
            Err(ApiError::bad_request(format!(
                "invalid mount config: must use either propagation mode \"rslave\" or \
                 \"rshared\" when mount source is within the daemon root, daemon root: {:?}, \
                 bind mount source: {source:?}, propagation: {wanted:?}",
                data_root.display().to_string()
            )))
        }
        Some(wanted) => Ok(wanted),
    }
}

/// Refuses, in Docker's words, what the mount that the source is on does not allow.
///
/// # Errors
/// 400.
pub(super) fn check(source: &str, propagation: &str) -> ApiResult<()> {
    let (slave_does, wanted) = match propagation {
        "shared" | "rshared" => (false, "shared mount"),
        "slave" | "rslave" => (true, "shared or slave mount"),
        _ => return Ok(()),
    };
    let unreadable =
        |error: std::io::Error| ApiError::internal(format!("cannot look at {source}"), &error);
    let real = std::fs::canonicalize(source).map_err(unreadable)?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(unreadable)?;
    let on = mount_of(&table, &real);
    if on.shared || (slave_does && on.slave) {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "path {source} is mounted on {} but it is not a {wanted}",
        on.point.display()
    )))
}

/// A mount of the table.
#[derive(Debug, Default)]
struct On {
    point: PathBuf,
    shared: bool,
    slave: bool,
}

/// The mount that a path is on: of the nearest ones above it the last that was made.
fn mount_of(table: &str, path: &Path) -> On {
    let mut best = On::default();
    for line in table.lines() {
        // id parent major:minor root point options [optional…] - type source options
        let mut words = line.split(' ').skip(4);
        let Some(point) = words.next().map(unescape) else {
            continue;
        };
        let near = point.as_os_str().len() >= best.point.as_os_str().len();
        if !path.starts_with(&point) || !near {
            continue;
        }
        let optional: Vec<&str> = words.skip(1).take_while(|word| *word != "-").collect();
        best = On {
            point,
            shared: optional.iter().any(|word| word.starts_with("shared:")),
            slave: optional.iter().any(|word| word.starts_with("master:")),
        };
    }
    best
}

/// Blanks and backslashes are in octal there (proc_pid_mountinfo(5)).
fn unescape(word: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let mut out = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after
            .get(..3)
            .and_then(|text| std::str::from_utf8(text).ok());
        let escaped = digits.and_then(|text| u8::from_str_radix(text, 8).ok());
        match escaped.filter(|_| *first == b'\\') {
            Some(byte) => {
                out.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_of_the_data_root_learns_of_unmounts() {
        let root = Path::new("/var/lib/bulkhead");
        let of = |source, wanted: &str| {
            let wanted = Some(wanted.to_owned()).filter(|wanted| !wanted.is_empty());
            of_bind(source, wanted, root)
        };
        for source in [
            "/",
            "/var",
            "/var/lib/bulkhead",
            "/var/lib/bulkhead/volumes",
        ] {
            assert_eq!(of(source, "").unwrap(), "rslave");
            assert_eq!(of(source, "rshared").unwrap(), "rshared");
            for wanted in ["private", "rprivate", "slave", "shared"] {
                let error = of(source, wanted).unwrap_err();
                assert!(error.message.contains(wanted), "{}", error.message);
            }
        }
        for source in ["/var/lib/bulkhead2", "/va", "/srv"] {
            assert_eq!(of(source, "").unwrap(), "rprivate");
            assert_eq!(of(source, "slave").unwrap(), "slave");
        }
    }

    #[test]
    fn the_nearest_mount_decides_and_of_two_the_upper() {
        let table = "\
            27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
            30 27 0:30 / /a rw shared:4 - tmpfs t rw\n\
            31 27 0:31 / /a rw shared:5 master:2 - tmpfs t rw\n\
            32 31 0:32 / /a/b\\040c rw master:7 propagate_from:1 - tmpfs t rw\n";
        let of = |path: &str| {
            let on = mount_of(table, Path::new(path));
            (on.point, on.shared, on.slave)
        };
        assert_eq!(of("/ab"), ("/".into(), false, false));
        assert_eq!(of("/a/b"), ("/a".into(), true, true));
        assert_eq!(of("/a/b c/d"), ("/a/b c".into(), false, true));
    }
}
