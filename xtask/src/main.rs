//! Project chores.

mod bench;
mod guest;
mod guest_kernel;
mod rig;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Project chores", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Build the guest: kernel, initramfs and scratch disk template of every VM
    Guest(guest::Arguments),
    /// Build the kernel that guests start faster with than with Debian's
    GuestKernel(guest_kernel::Arguments),
    /// Measure against dockerd, OCI runtimes, mkfs.erofs and tar, in turns
    Bench(bench::Arguments),
    /// Run a command on an emulated machine with KVM and cgroup v2
    Rig(rig::Arguments),
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().chore {
        Chore::Guest(arguments) => guest::run(arguments)?,
        Chore::GuestKernel(arguments) => guest_kernel::run(&arguments)?,
        Chore::Bench(arguments) => bench::run(arguments)?,
        Chore::Rig(arguments) => return rig::run(&arguments),
    }
    Ok(ExitCode::SUCCESS)
}
