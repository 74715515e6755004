//! The kernel: from a distribution's bzImage to an ELF vmlinux that starts by PVH, and the
//! cache of what was taken from a package.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::elf::{Elf, ElfError};
use crate::modules::Module;
use crate::{
    BuiltKernel, FORMAT, GuestImageError, KernelSource, Request, files, io_error, package, replace,
};

/// The modules that a guest needs, the most urgent first: what the disks and the port to the
/// host hang on, then what only mounting needs.
const WANTED: [&str; 7] = [
    "virtio_mmio",
    "virtio_blk",
    "virtio_rng",
    "virtio_net",
    "virtio_balloon",
    "erofs",
    "overlay",
];
/// The largest vmlinux taken, bytes; Debian's cloud flavour has 58 MB.
const MAX_VMLINUX: u64 = 512 << 20;
/// XEN_ELFNOTE_PHYS32_ENTRY, `xen/interface/elfnote.h`: where PVH starts the kernel.
const PVH_NOTE: u32 = 18;

/// A bzImage is not usable.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It has no x86 boot header of protocol 2.08 or newer, or is cut short.
    #[error("it is not a Linux bzImage")]
    NotBzImage,
    /// Its payload is compressed in a way that is not supported.
    #[error("its payload is compressed with {0}, which is not supported; xz, zstd and gzip are")]
    Compression(&'static str),
    /// Its payload does not decompress.
    #[error("its payload does not decompress")]
    Damaged(#[source] io::Error),
    /// What was in it is not a kernel.
    #[error("its payload is not a vmlinux")]
    Elf(#[from] ElfError),
    /// It was built without CONFIG_PVH.
    #[error("it has no PVH entry (CONFIG_PVH is off)")]
    NoPvh,
}

/// Takes the ELF vmlinux out of a bzImage.
///
/// The payload's place is in the setup header (`Documentation/arch/x86/boot.rst`, fields
/// `setup_sects`, `payload_offset`, `payload_length`).
///
/// # Errors
/// See [`KernelError`].
pub fn extract_vmlinux(image: &[u8]) -> Result<Vec<u8>, KernelError> {
    let payload = payload(image).ok_or(KernelError::NotBzImage)?;
    let vmlinux = decompress(payload)?;
    check_vmlinux(&vmlinux)?;
    Ok(vmlinux)
}

fn check_vmlinux(vmlinux: &[u8]) -> Result<(), KernelError> {
    if Elf::new(vmlinux)?.has_note(b"Xen\0", PVH_NOTE) {
        Ok(())
    } else {
        Err(KernelError::NoPvh)
    }
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let u32_at = |at: usize| -> Option<usize> {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let protocol = u16::from_le_bytes(image.get(0x206..0x208)?.try_into().ok()?);
    if image.get(0x202..0x206)? != b"HdrS" || protocol < 0x208 {
        return None;
    }
    let setup_sectors = match image.get(0x1f1)? {
        // "For backwards compatibility" 0 means 4.
        0 => 4,
        sectors => usize::from(*sectors),
    };
    let start = (setup_sectors + 1) * 512;
    let start = start.checked_add(u32_at(0x248)?)?;
    image.get(start..start.checked_add(u32_at(0x24c)?)?)
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>, KernelError> {
    // The kernel's build appends the uncompressed length to all but gzip's own.
    let bare = payload
        .get(..payload.len().saturating_sub(4))
        .unwrap_or(&[]);
    let mut vmlinux = Vec::new();
    let read = match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd::stream::read::Decoder::with_buffer(bare)
            .and_then(|decoder| read_bounded(decoder, &mut vmlinux)),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            read_bounded(liblzma::read::XzDecoder::new(bare), &mut vmlinux)
        }
        [0x1f, 0x8b, ..] => read_bounded(flate2::read::GzDecoder::new(payload), &mut vmlinux),
        [0x02, 0x21, 0x4c, 0x18, ..] => return Err(KernelError::Compression("lz4")),
        [0x89, b'L', b'Z', b'O', ..] => return Err(KernelError::Compression("lzo")),
        [b'B', b'Z', b'h', ..] => return Err(KernelError::Compression("bzip2")),
        _ => return Err(KernelError::Compression("something unknown")),
    };
    read.map_err(KernelError::Damaged)?;
    Ok(vmlinux)
}

fn read_bounded(reader: impl Read, into: &mut Vec<u8>) -> io::Result<()> {
    reader.take(MAX_VMLINUX + 1).read_to_end(into)?;
    if u64::try_from(into.len()).is_ok_and(|length| length <= MAX_VMLINUX) {
        Ok(())
    } else {
        Err(io::Error::other("it is larger than 512 MiB"))
    }
}

/// What was taken from a kernel package; `cache/kernel.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kernel {
    pub(crate) release: String,
    pub(crate) hz: Option<u32>,
    pub(crate) source: String,
    pub(crate) modules: Vec<String>,
    /// Changes when the source does: sizes and times, or a package's name, which has its
    /// version.
    stamp: String,
    format: u32,
}

impl Kernel {
    fn read(out: &Path) -> Option<Self> {
        let bytes = std::fs::read(out.join(files::CACHE).join("kernel.json")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// The modules' bytes, in the order of insertion.
    pub(crate) fn read_modules(&self, out: &Path) -> Result<Vec<Module>, GuestImageError> {
        self.modules
            .iter()
            .map(|name| {
                let path = out.join(files::CACHE).join(name);
                let bytes = std::fs::read(&path).map_err(io_error("read", &path))?;
                Ok(Module {
                    file: name.clone(),
                    bytes,
                })
            })
            .collect()
    }
}

/// Sees to it that `vmlinux` and the modules in the cache are those of the wanted kernel.
pub(crate) fn prepare(
    request: &Request,
    progress: &mut dyn FnMut(&str),
) -> Result<Kernel, GuestImageError> {
    let out = &request.out;
    let cached = Kernel::read(out).filter(|kernel| {
        kernel.format == FORMAT
            && out.join(files::KERNEL).is_file()
            && kernel
                .modules
                .iter()
                .all(|name| out.join(files::CACHE).join(name).is_file())
    });
    let is_cached = |stamp: &str| cached.clone().filter(|kernel| kernel.stamp == stamp);
    match &request.kernel {
        KernelSource::Root(root) => {
            let (image, release) = find_image(root)?;
            let stamp = stamp(&image)?;
            if let Some(kernel) = is_cached(&stamp) {
                return Ok(kernel);
            }
            take(
                out,
                root,
                &image,
                release,
                root.display().to_string(),
                stamp,
                progress,
            )
        }
        KernelSource::Deb(deb) => {
            let stamp = stamp(deb)?;
            if let Some(kernel) = is_cached(&stamp) {
                return Ok(kernel);
            }
            take_deb(out, deb, stamp, progress)
        }
        KernelSource::Built(built) => {
            let stamp = stamp(&built.vmlinux)?;
            if let Some(kernel) = is_cached(&stamp) {
                return Ok(kernel);
            }
            take_built(out, built, stamp, progress)
        }
        KernelSource::Apt => {
            // Which is the newest is looked up once; later runs take what is there.
            if let Some(kernel) = cached.filter(|kernel| kernel.stamp.starts_with("apt:")) {
                return Ok(kernel);
            }
            let directory = tempfile::tempdir_in(out).map_err(io_error("make a file in", out))?;
            let deb = package::download(package::GUEST_KERNEL, directory.path(), progress)?;
            let stamp = format!("apt:{}", file_name(&deb));
            take_deb(out, &deb, stamp, progress)
        }
    }
}

fn take_deb(
    out: &Path,
    deb: &Path,
    stamp: String,
    progress: &mut dyn FnMut(&str),
) -> Result<Kernel, GuestImageError> {
    let unpacked = tempfile::tempdir_in(out).map_err(io_error("make a file in", out))?;
    progress(&format!("unpacking {}", file_name(deb)));
    package::unpack(deb, unpacked.path())?;
    let (image, release) = find_image(unpacked.path())?;
    take(
        out,
        unpacked.path(),
        &image,
        release,
        file_name(deb),
        stamp,
        progress,
    )
}

fn take(
    out: &Path,
    root: &Path,
    image: &Path,
    release: String,
    source: String,
    stamp: String,
    progress: &mut dyn FnMut(&str),
) -> Result<Kernel, GuestImageError> {
    progress(&format!("taking the kernel {release} apart"));
    let bytes = std::fs::read(image).map_err(io_error("read", image))?;
    let vmlinux = extract_vmlinux(&bytes).map_err(|source| GuestImageError::Kernel {
        path: image.to_owned(),
        source,
    })?;
    let modules = crate::modules::collect(&root.join("lib/modules").join(&release), &WANTED)?;
    let cache = out.join(files::CACHE);
    std::fs::create_dir_all(&cache).map_err(io_error("make", &cache))?;
    for module in &modules {
        replace(&cache.join(&module.file), &module.bytes)?;
    }
    replace(&out.join(files::KERNEL), &vmlinux)?;
    let kernel = Kernel {
        hz: ticks(&root.join("boot").join(format!("config-{release}"))),
        release,
        source,
        modules: modules.into_iter().map(|module| module.file).collect(),
        stamp,
        format: FORMAT,
    };
    remember(&cache, kernel)
}

/// A kernel that is an ELF file already and has everything in it.
fn take_built(
    out: &Path,
    built: &BuiltKernel,
    stamp: String,
    progress: &mut dyn FnMut(&str),
) -> Result<Kernel, GuestImageError> {
    progress(&format!("taking the kernel {}", built.release));
    let path = &built.vmlinux;
    let vmlinux = std::fs::read(path).map_err(io_error("read", path))?;
    check_vmlinux(&vmlinux).map_err(|source| GuestImageError::Kernel {
        path: path.clone(),
        source,
    })?;
    let cache = out.join(files::CACHE);
    std::fs::create_dir_all(&cache).map_err(io_error("make", &cache))?;
    replace(&out.join(files::KERNEL), &vmlinux)?;
    let kernel = Kernel {
        hz: ticks(&built.config),
        release: built.release.clone(),
        source: path.display().to_string(),
        modules: Vec::new(),
        stamp,
        format: FORMAT,
    };
    remember(&cache, kernel)
}

fn remember(cache: &Path, kernel: Kernel) -> Result<Kernel, GuestImageError> {
    let path = cache.join("kernel.json");
    let json = serde_json::to_vec_pretty(&kernel)
        .map_err(|error| io_error("write", &path)(error.into()))?;
    replace(&path, &json)?;
    Ok(kernel)
}

/// `CONFIG_HZ` of a kernel's configuration.
fn ticks(config: &Path) -> Option<u32> {
    let config = std::fs::read_to_string(config).ok()?;
    let value = config
        .lines()
        .find_map(|line| line.strip_prefix("CONFIG_HZ="))?;
    value.parse().ok().filter(|hz| *hz > 0)
}

/// The bzImage of an unpacked package and its release; the newest name if there are many.
fn find_image(root: &Path) -> Result<(PathBuf, String), GuestImageError> {
    let boot = root.join("boot");
    let entries = std::fs::read_dir(&boot).map_err(io_error("read", &boot))?;
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name();
            let release = name.to_str()?.strip_prefix("vmlinuz-")?.to_owned();
            Some((entry.path(), release))
        })
        .max_by_key(|(_, release)| package::version_key(release))
        .ok_or_else(|| io_error("find a vmlinuz in", &boot)(io::ErrorKind::NotFound.into()))
}

/// Changes when the file does.
fn stamp(path: &Path) -> Result<String, GuestImageError> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).map_err(io_error("read", path))?;
    Ok(format!(
        "file:{}:{}:{}.{}",
        path.display(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec()
    ))
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_files_are_refused() {
        for other in [
            &b""[..],
            &[0; 0x300],
            &std::fs::read("/proc/self/exe").unwrap(),
        ] {
            assert!(matches!(
                extract_vmlinux(other),
                Err(KernelError::NotBzImage)
            ));
        }
    }

    #[test]
    fn a_payload_is_found_and_checked() {
        let mut image = vec![0; 0x400];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x1f1] = 1;
        let content = zstd::encode_all(&b"not a kernel"[..], 1).unwrap();
        image[0x24c..0x250]
            .copy_from_slice(&u32::try_from(content.len() + 4).unwrap().to_le_bytes());
        image.extend(&content);
        image.extend([0; 4]);
        assert!(matches!(
            extract_vmlinux(&image),
            Err(KernelError::Elf(ElfError::NotElf))
        ));
        image[0x24c..0x250].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(
            extract_vmlinux(&image),
            Err(KernelError::NotBzImage)
        ));
    }
}
