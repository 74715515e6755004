//! Finding a command, with the answers that Docker's users know.

use std::path::{Path, PathBuf};

use bulkhead_isolation::{ErrorKind, IsolationError, Result};
use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;

/// The file to execute for `command`, as this process, with this `PATH`, would find it.
pub fn find(command: &str, path: Option<&str>) -> Result<PathBuf> {
    if command.contains('/') {
        return match executable(Path::new(command)) {
            Ok(()) => Ok(PathBuf::from(command)),
            Err(Errno::NOENT | Errno::NOTDIR) if !Path::new(command).exists() => Err(not_found(
                format!("exec: \"{command}\": stat {command}: no such file or directory"),
            )),
            Err(Errno::ISDIR) => Err(not_executable(format!(
                "exec: \"{command}\": is a directory"
            ))),
            Err(Errno::ACCESS) => Err(not_executable(format!(
                "exec: \"{command}\": permission denied"
            ))),
            Err(error) => Err(not_executable(format!("exec: \"{command}\": {error}"))),
        };
    }
    let directories = path.unwrap_or_default().split(':');
    directories
        .map(|directory| match directory {
            "" => Path::new(".").join(command),
            directory => Path::new(directory).join(command),
        })
        .find(|file| !command.is_empty() && executable(file).is_ok())
        .ok_or_else(|| {
            not_found(format!(
                "exec: \"{command}\": executable file not found in $PATH"
            ))
        })
}

fn executable(file: &Path) -> std::result::Result<(), Errno> {
    let stat = rustix::fs::stat(file)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Err(Errno::ISDIR);
    }
    match rustix::fs::accessat(CWD, file, Access::EXEC_OK, AtFlags::EACCESS) {
        // No faccessat2(2) before 5.8, or a filter that does not know it: the mode tells.
        Err(Errno::NOSYS | Errno::PERM) if stat.st_mode & 0o111 != 0 => Ok(()),
        Err(Errno::NOSYS | Errno::PERM) => Err(Errno::ACCESS),
        other => other,
    }
}

fn not_found(message: String) -> IsolationError {
    IsolationError::new(ErrorKind::CommandNotFound, message)
}

fn not_executable(message: String) -> IsolationError {
    IsolationError::new(ErrorKind::CommandNotExecutable, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(command: &str) -> (ErrorKind, String) {
        let error = find(command, Some("/usr/bin:/bin")).unwrap_err();
        (error.kind, error.message)
    }

    #[test]
    fn as_docker_says_it() {
        assert!(find("sh", Some("/nowhere:/usr/bin:/bin")).is_ok());
        assert_eq!(find("/bin/sh", None).unwrap(), Path::new("/bin/sh"));
        assert_eq!(
            refused("nope"),
            (
                ErrorKind::CommandNotFound,
                "exec: \"nope\": executable file not found in $PATH".into()
            )
        );
        assert_eq!(
            refused("/nope"),
            (
                ErrorKind::CommandNotFound,
                "exec: \"/nope\": stat /nope: no such file or directory".into()
            )
        );
        assert_eq!(
            refused("/etc"),
            (
                ErrorKind::CommandNotExecutable,
                "exec: \"/etc\": is a directory".into()
            )
        );
        assert_eq!(
            refused("/etc/passwd"),
            (
                ErrorKind::CommandNotExecutable,
                "exec: \"/etc/passwd\": permission denied".into()
            )
        );
        assert_eq!(refused("").0, ErrorKind::CommandNotFound);
    }
}
