//! `cargo xtask guest-kernel`: the kernel that guests boot faster than Debian's, from
//! Debian's source and the configuration in `crates/guest-image/kernel/guest.config`. Built
//! once for each version of both; `cargo xtask guest` takes it where it is there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use bulkhead_guest_image::BuiltKernel;

/// Arguments of `cargo xtask guest-kernel`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Compilers that run at a time [default: one for each processor]
    #[arg(long, short)]
    jobs: Option<usize>,
}

/// Debian's package of the source, and what is in it.
const PACKAGE: &str = "linux-source-6.12";
const SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";
const FRAGMENT: &str = "crates/guest-image/kernel/guest.config";
/// The build says when, where and by whom it was made, unless told.
const REPRODUCIBLE: [(&str, &str); 3] = [
    ("KBUILD_BUILD_TIMESTAMP", "1970-01-01"),
    ("KBUILD_BUILD_USER", "bulkhead"),
    ("KBUILD_BUILD_HOST", "bulkhead"),
];

/// Where the kernel is, in a checkout.
pub fn directory(root: &Path) -> PathBuf {
    root.join("target/guest-kernel")
}

/// The kernel, if it was built.
pub fn built(root: &Path) -> anyhow::Result<Option<BuiltKernel>> {
    BuiltKernel::find(&directory(root)).context("reading the kernel that was built")
}

/// Runs the chore.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let started = Instant::now();
    let root = super::guest::workspace_root()?;
    let fragment = root.join(FRAGMENT);
    let version = version()?;
    let stamp = format!(
        "{PACKAGE} {version}\n{}",
        std::fs::read_to_string(&fragment).with_context(|| format!("reading {FRAGMENT}"))?
    );
    let out = directory(&root);
    if BuiltKernel::find(&out)?.is_some_and(|kernel| kernel.stamp == stamp) {
        return Ok(());
    }
    let work = tempfile::Builder::new()
        .prefix("guest-kernel-")
        .tempdir_in(root.join("target"))
        .context("making a directory for the build")?;
    println!("guest-kernel: unpacking {PACKAGE} {version}");
    run_tool(
        Command::new("tar")
            .args(["-xf", SOURCE, "--strip-components=1", "-C"])
            .arg(work.path()),
    )?;
    configure(work.path(), &fragment)?;
    let jobs = arguments
        .jobs
        .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
        .unwrap_or(1);
    println!("guest-kernel: building with {jobs} jobs; some minutes");
    run_tool(make(work.path()).arg(format!("-j{jobs}")).arg("vmlinux"))?;
    let release = std::fs::read_to_string(work.path().join("include/config/kernel.release"))
        .context("reading the release")?;
    let kernel = BuiltKernel {
        vmlinux: work.path().join("vmlinux"),
        config: work.path().join(".config"),
        release: release.trim().to_owned(),
        stamp,
    };
    kernel.keep(&out).context("keeping the kernel")?;
    println!(
        "guest-kernel: Linux {} in {} ({:.0} s)",
        kernel.release,
        out.display(),
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The version of the installed source.
fn version() -> anyhow::Result<String> {
    let output = Command::new("dpkg-query")
        .args(["-W", "-f", "${Version}", PACKAGE])
        .output()
        .context("running dpkg-query")?;
    if !output.status.success() || !Path::new(SOURCE).is_file() {
        bail!("{PACKAGE} is not installed: scripts/setup.sh kernel");
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The smallest configuration and ours on top; nothing of ours may have been dropped.
fn configure(source: &Path, fragment: &Path) -> anyhow::Result<()> {
    run_tool(make(source).arg("tinyconfig"))?;
    run_tool(
        Command::new("scripts/kconfig/merge_config.sh")
            .args(["-m", ".config"])
            .arg(fragment)
            .current_dir(source),
    )?;
    run_tool(make(source).arg("olddefconfig"))?;
    let wanted = options(&std::fs::read_to_string(fragment)?);
    let have = options(&std::fs::read_to_string(source.join(".config"))?);
    let dropped: Vec<&str> = wanted
        .iter()
        .filter(|(name, value)| have.get(*name).map_or("n", String::as_str) != value.as_str())
        .map(|(name, _)| name.as_str())
        .collect();
    if !dropped.is_empty() {
        bail!(
            "the kernel's configuration does not take {}: what they depend on is missing",
            dropped.join(", ")
        );
    }
    Ok(())
}

/// Options and their values; `n` for what is not set.
fn options(config: &str) -> BTreeMap<String, String> {
    let option = |line: &str| {
        if let Some((name, value)) = line.split_once('=') {
            return name
                .starts_with("CONFIG_")
                .then(|| (name.to_owned(), value.to_owned()));
        }
        let name = line.strip_prefix("# ")?.strip_suffix(" is not set")?;
        Some((name.to_owned(), "n".to_owned()))
    };
    config.lines().filter_map(option).collect()
}

fn make(source: &Path) -> Command {
    let mut command = Command::new("make");
    command.arg("-s").current_dir(source).envs(REPRODUCIBLE);
    command
}

/// Runs a tool; what it says is shown only when it fails.
fn run_tool(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .output()
        .with_context(|| format!("running {:?}", command.get_program()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = said.lines().collect();
    bail!(
        "{:?} failed:\n{}",
        command.get_program(),
        lines[lines.len().saturating_sub(20)..].join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_in_both_forms() {
        let options = options("# a comment\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x=y\"\n");
        let value = |name: &str| options.get(name).map(String::as_str);
        assert_eq!(value("CONFIG_A"), Some("y"));
        assert_eq!(value("CONFIG_B"), Some("n"));
        assert_eq!(value("CONFIG_C"), Some("\"x=y\""));
        assert_eq!(options.len(), 3);
    }
}
