//! `cargo xtask rig -- COMMAND…`: runs a command in a machine that has what this one may
//! lack: KVM on a processor with SVM, and cgroup v2 alone. QEMU emulates it in software; its
//! root is this machine's, written to in memory only.
//!
//! Output comes as it is written, the command's exit status is that of the chore, and the
//! messages of the machine are left in `target/rig/last`. Interrupted or killed, it leaves
//! neither a process nor a directory.

mod kernel;
mod machine;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use kernel::Kernel;
use machine::{End, Machine};

/// Arguments of `cargo xtask rig`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Memory of the machine, MiB
    #[arg(long, default_value_t = 4096)]
    memory: u32,
    /// Processors of the machine
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Seconds until the machine is ended, whatever it does
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// What goes to the kernel's command line too
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// The command, with the paths of this machine, in this directory
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Variables that the command gets from here, beside those that begin with `BULKHEAD_` or
/// `RUST_`.
const ENVIRONMENT: [&str; 4] = ["PATH", "HOME", "LANG", "TERM"];

/// Runs the chore.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let root = super::guest::workspace_root()?;
    let target = root.join("target/rig");
    std::fs::create_dir_all(&target).context("making target/rig")?;
    let kernel = Kernel::prepare(&target, &mut |step| eprintln!("rig: {step}"))?;
    let mut again = true;
    loop {
        let run = boot(arguments, &root, &target, &kernel)?;
        eprintln!("rig: {:.1} s in all", started.elapsed().as_secs_f64());
        match (run.end, run.status) {
            (End::Interrupted(signal), _) => {
                return Ok(ExitCode::from(u8::try_from(128 + signal)?));
            }
            (_, Some(status)) => return Ok(ExitCode::from(status)),
            (End::TimeLimit(state), None) => bail!(
                "the machine was ended after {} s; {state}",
                arguments.timeout
            ),
            // The emulation's fault, not of what runs in it: no program can stop a kernel.
            (End::Stalled(state), None) if again => {
                again = false;
                eprintln!("rig: the machine stood still and is started again; {state}");
            }
            (End::Stalled(state), None) => bail!("the machine stood still; {state}"),
            (End::Off, None) => {
                bail!(
                    "the machine ended without a status; it said\n{}",
                    run.console
                )
            }
        }
    }
}

/// What is left of a machine.
struct Run {
    end: End,
    /// The command's.
    status: Option<u8>,
    /// The end of the console's words.
    console: String,
}

/// Boots a machine and runs the command in it.
fn boot(arguments: &Arguments, root: &Path, target: &Path, kernel: &Kernel) -> anyhow::Result<Run> {
    let share = tempfile::Builder::new()
        .prefix("run-")
        .tempdir_in(target)
        .context("making a directory for the run")?;
    std::fs::write(share.path().join("command"), script(&arguments.command)?)?;
    std::fs::write(
        share.path().join("modules"),
        kernel.modules().display().to_string(),
    )?;
    sparse_files(root, share.path())?;
    let machine = Machine {
        kernel,
        share: share.path(),
        memory: arguments.memory,
        cpus: arguments.cpus,
        append: &arguments.append,
    };
    let end = machine.run(Duration::from_secs(arguments.timeout))?;
    let status = std::fs::read_to_string(share.path().join("status")).ok();
    let status = status.and_then(|status| status.trim().parse::<u8>().ok());
    let console = keep(share, &target.join("last"))?;
    Ok(Run {
        end,
        status,
        console,
    })
}

/// Archives the template of scratch disks, 20 GiB of which 9p would hand over every one.
fn sparse_files(root: &Path, share: &Path) -> anyhow::Result<()> {
    let file = root.join("target/guest/scratch.ext4");
    if !file.is_file() {
        return Ok(());
    }
    let file = file.strip_prefix("/").unwrap_or(&file);
    let status = Command::new("tar")
        .args(["--sparse", "-C", "/", "-cf"])
        .arg(share.join("sparse.tar"))
        .arg(file)
        .status()
        .context("running tar")?;
    if !status.success() {
        bail!("tar failed");
    }
    Ok(())
}

/// The shell script that the machine runs.
fn script(command: &[String]) -> anyhow::Result<String> {
    let directory = std::env::current_dir().context("the current directory")?;
    let directory = directory.to_str().context("the directory is not UTF-8")?;
    let mut script = String::from("export BULKHEAD_RIG=1\n");
    for (name, value) in std::env::vars_os() {
        let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else {
            continue;
        };
        let named = ENVIRONMENT.contains(&name);
        if named || name.starts_with("BULKHEAD_") || name.starts_with("RUST_") {
            script.push_str(&format!("export {name}={}\n", shell_words::quote(value)));
        }
    }
    script.push_str(&format!(
        "cd {} && {}\n",
        shell_words::quote(directory),
        shell_words::join(command)
    ));
    Ok(script)
}

/// Puts what is left of the run where it can be looked at; the end of the console's words.
fn keep(share: tempfile::TempDir, last: &Path) -> anyhow::Result<String> {
    let console = std::fs::read(share.path().join("console")).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let lines: Vec<&str> = console.lines().collect();
    let end = lines[lines.len().saturating_sub(25)..].join("\n");
    match std::fs::remove_dir_all(last) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("removing what the last run left");
        }
        _ => {}
    }
    let path: PathBuf = share.keep();
    drop(std::fs::remove_file(path.join("sparse.tar")));
    std::fs::rename(&path, last).context("keeping what the run left")?;
    Ok(end)
}
