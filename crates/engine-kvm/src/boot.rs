//! From the files to a guest that is about to run its first instruction: the kernel is put
//! where it was linked for, the initramfs behind it, and the kernel is told by PVH's start
//! info (`xen/interface/hvm/start_info.h`, in Linux `arch/x86/platform/pvh`).

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use linux_loader::loader::elf::{Elf, Error as ElfError, PvhBootCapability};
use linux_loader::loader::{Error as LoaderError, KernelLoader};
use vm_memory::{Bytes, GuestAddress, ReadVolatile};

use crate::acpi::{self, Platform};
use crate::layout;
use crate::memory::GuestMemory;

/// XEN_HVM_START_MAGIC_VALUE.
const START_MAGIC: u32 = 0x336e_c578;
/// The first version with a memory map.
const START_VERSION: u32 = 1;
/// XEN_HVM_MEMMAP_TYPE_RAM and XEN_HVM_MEMMAP_TYPE_RESERVED.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

const PAGE: u64 = 4096;
/// What the kernel's boot needs besides itself and its initramfs, packed and unpacked.
const MARGIN: u64 = 16 << 20;

/// The guest cannot be put into its memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The kernel is a bzImage.
    #[error("it is a bzImage; a VM boots the vmlinux in it, which `cargo xtask guest` takes out")]
    BzImage,
    /// The kernel is no ELF file for this CPU, or a damaged one.
    #[error("it is not an uncompressed x86-64 vmlinux ({0})")]
    NotVmlinux(LoaderError),
    /// It has no PVH entry.
    #[error("it has no PVH entry (CONFIG_PVH is off)")]
    NoPvh,
    /// Its segments are cut off, or do not fit.
    #[error("it is cut off, or larger than the VM's memory ({0})")]
    Segments(LoaderError),
    /// It or the initramfs cannot be read.
    #[error("it cannot be read: {0}")]
    Read(#[source] io::Error),
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// There is no room.
    #[error(
        "{mib} MiB of memory are too little for it: the kernel ends at {kernel_mib} MiB, and \
         the initramfs has {initramfs_mib} MiB that are unpacked beside it"
    )]
    TooSmall {
        /// The VM's memory.
        mib: u64,
        /// Where the kernel ends.
        kernel_mib: u64,
        /// The initramfs.
        initramfs_mib: u64,
    },
    /// The command line does not fit.
    #[error("the kernel's command line has {0} bytes; it may have 2047")]
    CommandLine(usize),
    /// The start info does not fit, which a checked configuration rules out.
    #[error("the guest's memory has no place for it: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// What was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// The first instruction, 32-bit.
    pub(crate) entry: u64,
    /// The first byte behind it.
    pub(crate) end: u64,
}

/// Loads the kernel.
pub(crate) fn kernel(memory: &GuestMemory, file: &mut File) -> Result<Kernel, LoadError> {
    if is_bzimage(file).map_err(LoadError::Read)? {
        return Err(LoadError::BzImage);
    }
    let loaded = Elf::load(memory, None, file, Some(GuestAddress(layout::HIGH_MEMORY))).map_err(
        |error| match &error {
            LoaderError::Elf(ElfError::ReadKernelImage | ElfError::ReadProgramHeader) => {
                LoadError::Segments(error)
            }
            _ => LoadError::NotVmlinux(error),
        },
    )?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(LoadError::NoPvh);
    };
    Ok(Kernel {
        entry: entry.0,
        end: loaded.kernel_end,
    })
}

/// `HdrS` of the boot protocol, `Documentation/arch/x86/boot.rst`.
fn is_bzimage(file: &File) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut magic = [0; 4];
    match file.read_exact_at(&mut magic, 0x202) {
        Ok(()) => Ok(magic == *b"HdrS"),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Loads the initramfs as high as it may be; where it is and its length.
pub(crate) fn initramfs(
    memory: &GuestMemory,
    memory_bytes: u64,
    kernel: Kernel,
    file: &mut File,
) -> Result<(u64, u64), LoadError> {
    let bytes = file.metadata().map_err(LoadError::Read)?.len();
    if bytes == 0 {
        return Err(LoadError::Empty);
    }
    let start = layout::low_end(memory_bytes)
        .checked_sub(bytes)
        .map(|start| start / PAGE * PAGE)
        // Its files are copied to other memory before its own is given back.
        .filter(|start| *start >= kernel.end.saturating_add(bytes).saturating_add(MARGIN))
        .ok_or(LoadError::TooSmall {
            mib: memory_bytes >> 20,
            kernel_mib: kernel.end >> 20,
            initramfs_mib: bytes >> 20,
        })?;
    file.seek(SeekFrom::Start(0)).map_err(LoadError::Read)?;
    read_exact(memory, start, file, bytes)?;
    Ok((start, bytes))
}

fn read_exact(
    memory: &GuestMemory,
    start: u64,
    file: &mut impl ReadVolatile,
    bytes: u64,
) -> Result<(), LoadError> {
    let count = usize::try_from(bytes).unwrap_or(usize::MAX);
    memory.read_exact_volatile_from(GuestAddress(start), file, count)?;
    Ok(())
}

/// All of our firmware: a kernel without EFI that was told of hardware-reduced ACPI jumps to
/// the reset vector to reset the machine (Linux: `efi_reboot_required`, then BOOT_BIOS).
/// Asserts the reset register, and halts.
const RESET_CODE: [u8; 9] = {
    let [low, high] = layout::RESET.to_le_bytes();
    [
        0xba,
        low,
        high, // mov dx, RESET
        0xb0,
        acpi::RESET, // mov al, 1
        0xee,        // out dx, al
        0xf4,
        0xeb,
        0xfd, // hlt, and again
    ]
};

/// Writes everything that the kernel is told.
pub(crate) fn start_info(
    memory: &GuestMemory,
    memory_bytes: u64,
    command_line: &str,
    (initramfs, initramfs_bytes): (u64, u64),
    platform: Platform,
) -> Result<(), LoadError> {
    if command_line.len() >= layout::COMMAND_LINE_SIZE {
        return Err(LoadError::CommandLine(command_line.len()));
    }
    let mut text = command_line.as_bytes().to_vec();
    text.push(0);
    memory.write_slice(&text, GuestAddress(layout::COMMAND_LINE))?;
    memory.write_slice(&acpi::tables(platform), GuestAddress(layout::ACPI))?;
    memory.write_slice(&RESET_CODE, GuestAddress(layout::RESET_VECTOR))?;

    // hvm_modlist_entry: address, length, command line, reserved.
    let module = words(&[initramfs, initramfs_bytes, 0, 0]);
    memory.write_slice(&module, GuestAddress(layout::MODULES))?;

    // hvm_memmap_table_entry: address, length, type and reserved in one word.
    let map = layout::memory_map(memory_bytes);
    let entries: Vec<u64> = map
        .iter()
        .flat_map(|(start, bytes, is_memory)| {
            let kind = if *is_memory { RAM } else { RESERVED };
            [*start, *bytes, u64::from(kind)]
        })
        .collect();
    memory.write_slice(&words(&entries), GuestAddress(layout::MEMORY_MAP))?;

    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let count = u32::try_from(map.len()).unwrap_or(0);
    let info = words(&[
        pair(START_MAGIC, START_VERSION),
        pair(0, 1), // flags, number of modules
        layout::MODULES,
        layout::COMMAND_LINE,
        layout::ACPI,
        layout::MEMORY_MAP,
        pair(count, 0),
    ]);
    memory.write_slice(&info, GuestAddress(layout::START_INFO))?;
    Ok(())
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const PLATFORM: Platform = Platform {
        cpus: 1,
        devices: 2,
        serial: false,
    };

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn what_is_no_kernel_is_refused_by_name() {
        let memory = crate::memory::make(32 << 20).unwrap();
        let mut bzimage = vec![0; 1024];
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        assert!(matches!(
            kernel(&memory, &mut file(&bzimage)),
            Err(LoadError::BzImage)
        ));
        for scrap in [&b""[..], b"#!/bin/sh\n", b"\x7fELF\x02\x01"] {
            assert!(matches!(
                kernel(&memory, &mut file(scrap)),
                Err(LoadError::NotVmlinux(_))
            ));
        }
        // A program of the host's is no kernel: it lies below the kernel's memory, or has no
        // PVH entry.
        let mut own = File::open("/proc/self/exe").unwrap();
        assert!(kernel(&memory, &mut own).is_err());
    }

    #[test]
    fn an_initramfs_needs_its_room_twice() {
        let memory_bytes = 64 << 20;
        let memory = crate::memory::make(memory_bytes).unwrap();
        let kernel = Kernel {
            entry: 0,
            end: 40 << 20,
        };
        let placed = initramfs(&memory, memory_bytes, kernel, &mut file(&[7; 5000])).unwrap();
        assert_eq!(placed, ((64 << 20) - 8192, 5000));
        let large = file(b"");
        large.set_len(9 << 20).unwrap();
        let error = initramfs(&memory, memory_bytes, kernel, &mut { large }).unwrap_err();
        assert!(
            matches!(error, LoadError::TooSmall { mib: 64, .. }),
            "{error}"
        );
        let empty = initramfs(&memory, memory_bytes, kernel, &mut file(b""));
        assert!(matches!(empty, Err(LoadError::Empty)));
    }

    #[test]
    fn the_start_info_leads_to_everything() {
        let memory_bytes = 5 << 30;
        let memory = crate::memory::make(memory_bytes).unwrap();
        start_info(&memory, memory_bytes, "quiet", (0x1000_0000, 77), PLATFORM).unwrap();
        let word = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        let at = layout::START_INFO;
        assert_eq!(word(at) & 0xffff_ffff, u64::from(START_MAGIC));
        assert_eq!(word(word(at + 16)), 0x1000_0000);
        assert_eq!(word(word(at + 16) + 8), 77);
        let mut text = [0; 6];
        memory
            .read_slice(&mut text, GuestAddress(word(at + 24)))
            .unwrap();
        assert_eq!(&text, b"quiet\0");
        assert_eq!(&word(word(at + 32)).to_le_bytes(), b"RSD PTR ");
        assert_eq!(word(at + 48), 4);
        assert_eq!(word(word(at + 40) + 3 * 24), 1 << 32);
        let long = "x".repeat(layout::COMMAND_LINE_SIZE);
        assert!(matches!(
            start_info(&memory, memory_bytes, &long, (0, 0), PLATFORM),
            Err(LoadError::CommandLine(2048))
        ));
    }
}
