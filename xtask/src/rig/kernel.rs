//! The rig's kernel: Debian's, as a machine would have it installed, with all its modules,
//! and the initramfs that finds the host's files.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use bulkhead_guest_image::{Archive, collect_modules, download_package, unpack_package};

/// Debian 12's own, which most hosts of this kind run. It cannot mount EROFS from files.
const PACKAGE: &str = r"^linux-image-6\.1\.[0-9]+-[0-9]+-amd64$";
/// What is needed to mount the host's files; the rest is loaded from there.
const MODULES: [&str; 5] = [
    "virtio_pci",
    "9p",
    "9pnet_virtio",
    "overlay",
    "virtio_console",
];
const INIT: &[u8] = include_bytes!("init.sh");
const BUSYBOX: &str = "/usr/bin/busybox";

/// A kernel in the cache.
pub struct Kernel {
    root: PathBuf,
    release: String,
}

impl Kernel {
    /// Takes it from the cache below `target`, or from Debian.
    pub fn prepare(target: &Path, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Self> {
        let root = target.join("kernel");
        if !root.is_dir() {
            let work = tempfile::Builder::new()
                .prefix("kernel-")
                .tempdir_in(target)
                .context("making a directory for the kernel")?;
            let deb = download_package(PACKAGE, work.path(), progress)?;
            progress("unpacking the kernel");
            let unpacked = work.path().join("root");
            unpack_package(&deb, &unpacked)?;
            let release = release(&unpacked)?;
            let status = Command::new("depmod")
                .arg("-b")
                .arg(&unpacked)
                .arg(&release)
                .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
                .status()
                .context("running depmod, of the package kmod")?;
            if !status.success() {
                bail!("depmod failed");
            }
            std::fs::rename(&unpacked, &root).context("keeping the kernel")?;
        }
        let release = release(&root)?;
        let kernel = Self { root, release };
        let archive = kernel.archive().context("making the rig's initramfs")?;
        if std::fs::read(kernel.initramfs()).ok().as_ref() != Some(&archive) {
            let file = tempfile::NamedTempFile::new_in(target)?;
            std::fs::write(file.path(), &archive)?;
            file.persist(kernel.initramfs())?;
        }
        Ok(kernel)
    }

    /// The bzImage.
    pub fn image(&self) -> PathBuf {
        self.root.join(format!("boot/vmlinuz-{}", self.release))
    }

    /// What it finds its root with.
    pub fn initramfs(&self) -> PathBuf {
        self.root.join("initramfs.cpio")
    }

    /// Belongs at `/lib/modules`.
    pub fn modules(&self) -> PathBuf {
        self.root.join("lib/modules")
    }

    fn archive(&self) -> anyhow::Result<Vec<u8>> {
        let modules = collect_modules(&self.modules().join(&self.release), &MODULES)?;
        let busybox = std::fs::read(BUSYBOX)
            .with_context(|| format!("reading {BUSYBOX} (busybox-static)"))?;
        let mut archive = Archive::default();
        for directory in ["bin", "modules"] {
            archive.directory(directory)?;
        }
        archive.executable("bin/busybox", &busybox)?;
        archive.executable("init", INIT)?;
        archive.modules(&modules)?;
        Ok(archive.finish()?)
    }
}

fn release(root: &Path) -> anyhow::Result<String> {
    let modules = root.join("lib/modules");
    let entry = std::fs::read_dir(&modules)
        .with_context(|| format!("reading {}", modules.display()))?
        .next()
        .with_context(|| format!("{} is empty", modules.display()))??;
    entry
        .file_name()
        .into_string()
        .ok()
        .context("a kernel's release is not UTF-8")
}
