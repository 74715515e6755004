//! The context of a build: which files go into the archive, and where the Dockerfile is.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use bulkhead_build::compression::is_archive;
use bulkhead_build::dockerfile::MAX_DOCKERFILE_BYTES;
use bulkhead_build::ignore::IgnoreFile;

use crate::container::files::go_error;
use crate::error::{CliError, CliResult};

/// The name under which a Dockerfile from outside the context is sent.
const OUTSIDE: &str = ".dockerfile.bulkhead";
const DOCKERFILE: &str = "Dockerfile";
/// Bytes that tell an archive, also a compressed one, from a Dockerfile.
const ARCHIVE_HEAD: u64 = 64 << 10;
const IGNORE_FILE: &str = ".dockerignore";

/// Where a build's files come from.
pub(super) enum Context {
    /// An archive on standard input, whose first bytes were read already.
    Stdin(Vec<u8>),
    /// A Dockerfile without any other file.
    Dockerfile(Vec<u8>),
    /// What the daemon fetches by itself.
    Remote(String),
    /// A directory.
    Directory(Directory),
}

/// A directory that is sent.
pub(super) struct Directory {
    root: PathBuf,
    ignore: IgnoreFile,
    dockerfile: PathBuf,
    /// The Dockerfile's content if it is not in the directory.
    outside: Option<Vec<u8>>,
}

impl Context {
    /// Finds the context and the name of the Dockerfile in it.
    pub(super) fn find(context: &str, file: Option<&str>) -> CliResult<(Self, String)> {
        if context == "-" && file == Some("-") {
            return Err(CliError::msg(
                "invalid argument: can't use stdin for both build context and dockerfile",
            ));
        }
        let is_remote = ["http://", "https://", "git://", "git@", "github.com/"]
            .iter()
            .any(|prefix| context.starts_with(prefix));
        if is_remote {
            let name = file.unwrap_or(DOCKERFILE).to_owned();
            return Ok((Self::Remote(context.to_owned()), name));
        }
        if context == "-" {
            return Self::from_stdin(file);
        }
        let missing = |path: &str, e: &io::Error| {
            CliError::msg(format!(
                "unable to prepare context: {}",
                go_error(path, "lstat", e)
            ))
        };
        let root = Path::new(context)
            .canonicalize()
            .map_err(|e| missing(context, &e))?;
        if !root.is_dir() {
            return Err(CliError::msg(format!(
                "unable to prepare context: context must be a directory: {context}"
            )));
        }
        let (name, outside) = match file {
            None => {
                let default = root.join(DOCKERFILE);
                std::fs::symlink_metadata(&default)
                    .map_err(|e| missing(&default.to_string_lossy(), &e))?;
                (DOCKERFILE.to_owned(), None)
            }
            Some("-") => {
                let mut content = Vec::new();
                read_stdin(&mut content, MAX_DOCKERFILE_BYTES as u64 + 1)?;
                (OUTSIDE.to_owned(), Some(content))
            }
            Some(given) => {
                let whole = Path::new(given)
                    .canonicalize()
                    .map_err(|e| missing(given, &e))?;
                match whole.strip_prefix(&root) {
                    Ok(inside) => (inside.to_string_lossy().into_owned(), None),
                    Err(_) => {
                        let content = std::fs::read(&whole).map_err(|e| missing(given, &e))?;
                        (OUTSIDE.to_owned(), Some(content))
                    }
                }
            }
        };
        let ignore = match std::fs::read(root.join(IGNORE_FILE)) {
            Ok(bytes) => IgnoreFile::parse(&bytes).map_err(|e| CliError::msg(e.to_string()))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => IgnoreFile::default(),
            Err(e) => return Err(CliError::io(IGNORE_FILE, e)),
        };
        let directory = Directory {
            root,
            ignore,
            dockerfile: PathBuf::from(&name),
            outside,
        };
        Ok((Self::Directory(directory), name))
    }

    /// As docker: what is no archive is a Dockerfile, whatever `-f` says.
    fn from_stdin(file: Option<&str>) -> CliResult<(Self, String)> {
        let mut head = Vec::new();
        read_stdin(&mut head, ARCHIVE_HEAD)?;
        if is_archive(&head) {
            let name = file.unwrap_or(DOCKERFILE).to_owned();
            return Ok((Self::Stdin(head), name));
        }
        read_stdin(&mut head, MAX_DOCKERFILE_BYTES as u64 + 1)?;
        Ok((Self::Dockerfile(head), DOCKERFILE.to_owned()))
    }
}

fn read_stdin(into: &mut Vec<u8>, limit: u64) -> CliResult {
    let mut stdin = io::stdin().take(limit);
    let read = stdin.read_to_end(into);
    read.map(drop)
        .map_err(|e| CliError::io("read /dev/stdin", e))
}

/// An archive that holds nothing but a Dockerfile.
pub(super) fn only_dockerfile(content: &[u8]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, DOCKERFILE, content)?;
    archive.into_inner()
}

fn append(
    archive: &mut tar::Builder<impl io::Write>,
    name: &str,
    content: &[u8],
) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(u64::try_from(content.len()).unwrap_or(u64::MAX));
    header.set_mode(0o600);
    archive.append_data(&mut header, name, content)
}

impl Directory {
    /// Writes the archive. Devices and sockets are left out: they mean nothing elsewhere.
    pub(super) fn pack(&self, target: impl io::Write) -> io::Result<()> {
        let mut archive = tar::Builder::new(target);
        archive.follow_symlinks(false);
        let mut pending = vec![PathBuf::new()];
        while let Some(directory) = pending.pop() {
            let entries = std::fs::read_dir(self.root.join(&directory))?;
            let mut entries = entries.collect::<Result<Vec<_>, _>>()?;
            entries.sort_by_key(std::fs::DirEntry::file_name);
            for entry in entries {
                let (path, kind) = (entry.path(), entry.file_type()?);
                let name = directory.join(entry.file_name());
                let excluded = self.excludes(&name);
                if kind.is_dir() {
                    if !excluded {
                        archive.append_dir(&name, &path)?;
                    }
                    if !excluded || self.may_hold(&name) {
                        pending.push(name);
                    }
                } else if !excluded && (kind.is_file() || kind.is_symlink()) {
                    archive.append_path_with_name(&path, &name)?;
                }
            }
        }
        if let Some(content) = &self.outside {
            append(&mut archive, OUTSIDE, content)?;
        }
        io::Write::flush(&mut archive.into_inner()?)
    }

    /// The Dockerfile and the patterns always go: the daemon needs them, and leaves them out of
    /// the context itself if they are excluded.
    fn excludes(&self, path: &Path) -> bool {
        path != self.dockerfile && path != Path::new(IGNORE_FILE) && self.ignore.excludes(path)
    }

    fn may_hold(&self, directory: &Path) -> bool {
        self.ignore.may_keep_below(directory) || self.dockerfile.starts_with(directory)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::*;

    fn sent(ignore: &str, file: Option<&str>, paths: &[&str]) -> BTreeSet<String> {
        let root = tempfile::tempdir().unwrap();
        for path in paths {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        fs::write(root.path().join(IGNORE_FILE), ignore).unwrap();
        let file = file.map(|file| root.path().join(file).to_string_lossy().into_owned());
        let (context, _) = Context::find(&root.path().to_string_lossy(), file.as_deref()).unwrap();
        let Context::Directory(directory) = context else {
            panic!("not a directory")
        };
        let mut bytes = Vec::new();
        directory.pack(&mut bytes).unwrap();
        let mut names = BTreeSet::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let entry = entry.unwrap();
            if entry.header().entry_type().is_file() {
                names.insert(entry.path().unwrap().display().to_string());
            }
        }
        names
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn what_is_ignored_is_not_sent() {
        let paths = [
            "Dockerfile",
            "a.log",
            "keep.log",
            "sub/b.log",
            "sub/deep/c.txt",
            "node_modules/x/y",
            "node_modules/keep/z",
        ];
        let ignore = "# all logs but one\n*.log\n!keep.log\nnode_modules/\n!node_modules/keep\n";
        assert_eq!(
            sent(ignore, None, &paths),
            set(&[
                ".dockerignore",
                "Dockerfile",
                "keep.log",
                "node_modules/keep/z",
                "sub/b.log",
                "sub/deep/c.txt",
            ])
        );
        // Like docker, which looks into a directory that is left out only if an exception
        // begins with its name.
        assert_eq!(
            sent("**\n!**/*.txt\n", None, &paths),
            set(&[".dockerignore", "Dockerfile"])
        );
        assert_eq!(
            sent("**\n!sub/deep/*.txt\n", None, &paths),
            set(&[".dockerignore", "Dockerfile", "sub/deep/c.txt"])
        );
        // The daemon needs both files, whatever is ignored.
        assert_eq!(
            sent("*\n", Some("docker/file"), &["docker/file", "docker/other"]),
            set(&[".dockerignore", "docker/file"])
        );
    }

    #[test]
    fn standard_input_is_one_thing() {
        assert!(Context::find("-", Some("-")).is_err());
        let (context, name) = Context::find("http://127.0.0.1/x.tar", Some("f")).unwrap();
        assert!(matches!(context, Context::Remote(_)));
        assert_eq!(name, "f");
    }
}
