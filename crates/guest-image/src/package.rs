//! Debian's kernel packages: which one, from where, what is in it.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The kernel series that guests run, and its flavour.
pub(crate) const GUEST_KERNEL: &str = r"^linux-image-6\.12\..*-cloud-amd64-unsigned$";

/// A kernel package cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// A tool is missing or does not start.
    #[error(
        "cannot run {tool}, which is part of every Debian; give a kernel with --kernel-deb or --kernel-root elsewhere"
    )]
    Run {
        /// Which.
        tool: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A tool failed.
    #[error("{tool} failed: {message}")]
    Failed {
        /// Which.
        tool: &'static str,
        /// What it said.
        message: String,
    },
    /// The package lists have none.
    #[error(
        "apt knows no package {0}: on Debian 12 add bookworm-backports or bookworm-security to \
         its sources, or give a package with --kernel-deb"
    )]
    NoCandidate(String),
    /// apt-get said that it downloaded something, and there is nothing.
    #[error("apt-get download left no package in '{}'", .0.display())]
    NotDownloaded(PathBuf),
}

/// Downloads into `directory` the newest package whose name matches `pattern`, a regular
/// expression of apt-cache's.
///
/// # Errors
/// See [`PackageError`].
pub fn download(
    pattern: &str,
    directory: &Path,
    progress: &mut dyn FnMut(&str),
) -> Result<PathBuf, PackageError> {
    let mut package = newest(pattern)?;
    if package.is_none() {
        progress("fetching apt's package lists");
        run("apt-get", Command::new("apt-get").args(["update", "-q"]))?;
        package = newest(pattern)?;
    }
    let package = package.ok_or_else(|| PackageError::NoCandidate(pattern.to_owned()))?;
    progress(&format!("downloading {package}"));
    // Without the sandbox user, who may not be allowed to write into the directory.
    run(
        "apt-get",
        Command::new("apt-get")
            .args(["-q", "-o", "APT::Sandbox::User=root", "download"])
            .arg(&package)
            .current_dir(directory),
    )?;
    find_deb(directory).ok_or_else(|| PackageError::NotDownloaded(directory.to_owned()))
}

/// The newest kernel package file in a directory.
pub fn find_deb(directory: &Path) -> Option<PathBuf> {
    std::fs::read_dir(directory)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with("linux-image-") && name.ends_with(".deb"))
        })
        .max_by_key(|path| version_key(&path.to_string_lossy()))
}

/// Unpacks a package's files into `directory`.
///
/// # Errors
/// See [`PackageError`].
pub fn unpack(deb: &Path, directory: &Path) -> Result<(), PackageError> {
    run(
        "dpkg-deb",
        Command::new("dpkg-deb").arg("-x").arg(deb).arg(directory),
    )
    .map(drop)
}

/// The newest of those packages that apt can download.
fn newest(pattern: &str) -> Result<Option<String>, PackageError> {
    let listed = run(
        "apt-cache",
        Command::new("apt-cache").args(["search", "--names-only", pattern]),
    )?;
    let mut names: Vec<String> = String::from_utf8_lossy(&listed.stdout)
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().next())
        .map(str::to_owned)
        .collect();
    names.sort_by_key(|name| Reverse(version_key(name)));
    // apt-cache also lists what was removed from the archive since.
    for name in names {
        let policy = run(
            "apt-cache",
            Command::new("apt-cache").arg("policy").arg(&name),
        )?;
        let policy = String::from_utf8_lossy(&policy.stdout);
        let downloadable = policy
            .lines()
            .any(|line| line.contains("://") && line.trim_end().ends_with("Packages"));
        if downloadable {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn run(tool: &'static str, command: &mut Command) -> Result<Output, PackageError> {
    let output = command
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|source| PackageError::Run { tool, source })?;
    if output.status.success() {
        Ok(output)
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(PackageError::Failed {
            tool,
            message: said.trim().replace('\n', "; "),
        })
    }
}

/// Numbers compare as numbers, so that 6.12.9 is older than 6.12.10.
pub(crate) fn version_key(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_is_greater() {
        let key = |release| version_key(&format!("linux-image-{release}-cloud-amd64"));
        assert!(key("6.12.117+deb12") > key("6.12.9+deb12"));
        assert!(key("6.12.9+deb13") > key("6.12.9+deb12"));
    }
}
