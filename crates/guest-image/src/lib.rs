//! Builds the guest directory, which is what a VM boots: `vmlinux`, `initramfs.cpio`,
//! `scratch.ext4` and the `guest.json` that describes them.
//!
//! Owns the formats of those files and where a kernel comes from. Knows no engine and does
//! not run anything in a VM. Everything is made under a temporary name and renamed, each
//! file only when what it is made from has changed.

mod built;
mod elf;
mod initramfs;
mod kernel;
mod modules;
mod package;
mod scratch;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use built::BuiltKernel;
pub use elf::ElfError;
pub use initramfs::Archive;
pub use kernel::{KernelError, extract_vmlinux};
pub use modules::{Module, ModuleError, collect as collect_modules};
pub use package::{PackageError, download as download_package, find_deb, unpack as unpack_package};

/// Raised when the same inputs give different files than before.
const FORMAT: u32 = 11;

/// The files of a guest directory.
pub mod files {
    /// The kernel, an ELF image with a PVH note.
    pub const KERNEL: &str = "vmlinux";
    /// The initramfs.
    pub const INITRAMFS: &str = "initramfs.cpio";
    /// The template of a scratch disk: a sparse ext4 image.
    pub const SCRATCH: &str = "scratch.ext4";
    /// The description, a [`super::GuestInfo`].
    pub const INFO: &str = "guest.json";
    /// What the kernel's part was made from, with its modules; only needed to build.
    pub(crate) const CACHE: &str = "cache";
}

/// Where the kernel comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KernelSource {
    /// A Debian kernel package.
    Deb(PathBuf),
    /// An unpacked one: a directory with `boot/vmlinuz-*` and `lib/modules/*`.
    Root(PathBuf),
    /// One that was built for guests.
    Built(BuiltKernel),
    /// The newest suitable package that apt knows; downloaded once.
    Apt,
}

/// What to build.
#[derive(Debug, Clone)]
pub struct Request {
    /// The kernel.
    pub kernel: KernelSource,
    /// The agent, a static executable, which becomes `/init`.
    pub agent: PathBuf,
    /// The guest directory; made if missing.
    pub out: PathBuf,
}

/// `guest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestInfo {
    /// What `uname -r` prints in the guest.
    pub kernel_release: String,
    /// Timer ticks a second that it was built with, where its configuration says it.
    pub kernel_hz: Option<u32>,
    /// What the kernel was made from: a package's file name, or a path.
    pub kernel_source: String,
    /// SHA-256 of the agent, hexadecimal.
    pub agent_sha256: String,
    /// Modules in the initramfs, in the order of insertion.
    pub modules: Vec<String>,
    /// Capacity of the scratch disk's template, bytes.
    pub scratch_bytes: u64,
    /// Format of the directory; for the builder.
    pub format: u32,
}

impl GuestInfo {
    /// Reads the description of a guest directory.
    ///
    /// # Errors
    /// [`GuestImageError::Io`] when it cannot be read, [`GuestImageError::Info`] when it is
    /// not one.
    pub fn read(directory: &Path) -> Result<Self, GuestImageError> {
        let path = directory.join(files::INFO);
        let bytes = std::fs::read(&path).map_err(io_error("read", &path))?;
        serde_json::from_slice(&bytes).map_err(|source| GuestImageError::Info { path, source })
    }
}

/// A guest directory could not be built or read.
#[derive(Debug, thiserror::Error)]
pub enum GuestImageError {
    /// The system said no.
    #[error("cannot {verb} '{}'", .path.display())]
    Io {
        /// What was being done.
        verb: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `guest.json` is damaged.
    #[error("'{}' is not the description of a guest", .path.display())]
    Info {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// There is no kernel to be had.
    #[error("cannot get a guest kernel")]
    Package(#[from] PackageError),
    /// The kernel is not usable.
    #[error("cannot use the kernel '{}'", .path.display())]
    Kernel {
        /// The bzImage.
        path: PathBuf,
        /// Why.
        source: KernelError,
    },
    /// Its modules are not.
    #[error("cannot use the kernel's modules")]
    Module(#[from] ModuleError),
    /// The agent is not a static executable.
    #[error("'{}' cannot be the guest's init", .path.display())]
    Agent {
        /// The agent.
        path: PathBuf,
        /// Why.
        source: ElfError,
    },
    /// A tool that is needed failed.
    #[error("{tool} failed: {message}")]
    Tool {
        /// Which.
        tool: &'static str,
        /// What it said.
        message: String,
    },
}

pub(crate) fn io_error<'a>(
    verb: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> GuestImageError + 'a {
    move |source| GuestImageError::Io {
        verb,
        path: path.to_owned(),
        source,
    }
}

/// Builds or refreshes a guest directory. `progress` is told about every step that takes
/// time; a run that finds everything in place tells nothing.
///
/// # Errors
/// See [`GuestImageError`]. What was there before is still there.
pub fn build(
    request: &Request,
    progress: &mut dyn FnMut(&str),
) -> Result<GuestInfo, GuestImageError> {
    let out = &request.out;
    std::fs::create_dir_all(out).map_err(io_error("make", out))?;
    let kernel = kernel::prepare(request, progress)?;
    let agent =
        std::fs::read(&request.agent).map_err(io_error("read the agent", &request.agent))?;
    elf::check_static(&agent).map_err(|source| GuestImageError::Agent {
        path: request.agent.clone(),
        source,
    })?;
    let scratch_bytes = scratch::prepare(out, progress)?;
    let info = GuestInfo {
        kernel_release: kernel.release.clone(),
        kernel_hz: kernel.hz,
        kernel_source: kernel.source.clone(),
        agent_sha256: hex(&Sha256::digest(&agent)),
        modules: kernel.modules.clone(),
        scratch_bytes,
        format: FORMAT,
    };
    let initramfs = out.join(files::INITRAMFS);
    if GuestInfo::read(out).ok().as_ref() != Some(&info) || !initramfs.is_file() {
        progress("packing the initramfs");
        let modules = kernel.read_modules(out)?;
        let archive = initramfs::archive(&agent, &modules).map_err(io_error("pack", &initramfs))?;
        replace(&initramfs, &archive)?;
        let json = serde_json::to_vec_pretty(&info).map_err(|source| GuestImageError::Info {
            path: out.join(files::INFO),
            source,
        })?;
        replace(&out.join(files::INFO), &json)?;
    }
    Ok(info)
}

/// Writes a file under a temporary name and renames it into place.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), GuestImageError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file =
        tempfile::NamedTempFile::new_in(directory).map_err(io_error("write in", directory))?;
    io::Write::write_all(&mut file, bytes).map_err(io_error("write", path))?;
    persist(file, path)
}

/// Renames a finished temporary file into place, readable by all.
pub(crate) fn persist(file: tempfile::NamedTempFile, path: &Path) -> Result<(), GuestImageError> {
    use std::os::unix::fs::PermissionsExt;
    file.as_file()
        .set_permissions(std::fs::Permissions::from_mode(0o644))
        .map_err(io_error("write", path))?;
    file.persist(path)
        .map_err(|error| io_error("write", path)(error.error))?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String has no way to fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
