//! `cargo xtask guest`: the guest directory of this checkout.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use bulkhead_guest_image::{KernelSource, Request};

/// The target that `.cargo/config.toml` names.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Arguments of `cargo xtask guest`.
#[derive(clap::Args)]
pub struct Arguments {
    /// A Debian kernel package to take the kernel from [default: what `guest-kernel` built,
    /// else the newest linux-image-6.12.*-cloud-amd64-unsigned that apt knows]
    #[arg(long, value_name = "FILE", conflicts_with = "kernel_root")]
    kernel_deb: Option<PathBuf>,
    /// An unpacked kernel package: a directory with boot/ and lib/modules/
    #[arg(long, value_name = "DIR")]
    kernel_root: Option<PathBuf>,
    /// Debian's kernel, even where `guest-kernel` built one
    #[arg(long, conflicts_with_all = ["kernel_deb", "kernel_root"])]
    stock_kernel: bool,
    /// The agent to use as it is [default: built in release mode if missing or older than
    /// its sources]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Where the guest goes [default: target/guest]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Runs the chore.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let started = Instant::now();
    let root = workspace_root()?;
    let kernel = match (arguments.kernel_deb, arguments.kernel_root) {
        (Some(deb), _) => KernelSource::Deb(deb),
        (None, Some(root)) => KernelSource::Root(root),
        (None, None) if arguments.stock_kernel => KernelSource::Apt,
        (None, None) => {
            super::guest_kernel::built(&root)?.map_or(KernelSource::Apt, KernelSource::Built)
        }
    };
    let agent = match arguments.agent {
        Some(agent) => agent,
        None => build_agent(&root)?,
    };
    let out = arguments.out.unwrap_or_else(|| root.join("target/guest"));
    let info = bulkhead_guest_image::build(
        &Request {
            kernel,
            agent,
            out: out.clone(),
        },
        &mut |step| eprintln!("guest: {step}"),
    )
    .context("building the guest")?;
    println!(
        "guest: {} with Linux {} and {} modules ({:.1} s)",
        out.display(),
        info.kernel_release,
        info.modules.len(),
        started.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Has cargo build the agent, which does nothing when it is up to date.
fn build_agent(root: &Path) -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--release", "--quiet", "-p", "bulkhead-agent"])
        .current_dir(root)
        .status()
        .context("running cargo")?;
    if !status.success() {
        bail!("the agent does not build");
    }
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join(TARGET).join("release/bulkhead-agent"))
}

/// The checkout that this was built from.
pub fn workspace_root() -> anyhow::Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .map(Path::to_owned)
        .context("the workspace has no directory")
}
