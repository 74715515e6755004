//! The guest's memory: a memory file that is as large as the guest was promised and takes
//! as much of the host as the guest has touched.

use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::layout;

/// The guest's memory. Clones share it.
pub(crate) type GuestMemory = GuestMemoryMmap<()>;

/// The guest has no such memory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    /// The system said no.
    #[error("cannot make a memory file of {mib} MiB")]
    File {
        /// How large.
        mib: u64,
        /// What the system said.
        source: io::Error,
    },
    /// It does not map.
    #[error("cannot map {mib} MiB of memory")]
    Map {
        /// How much.
        mib: u64,
        /// What the system said.
        source: io::Error,
    },
}

/// Makes `bytes` of memory.
pub(crate) fn make(bytes: u64) -> Result<GuestMemory, MemoryError> {
    let mib = bytes >> 20;
    let file_error = |source| MemoryError::File { mib, source };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL;
    let file = rustix::fs::memfd_create("guest-memory", flags)
        // Kernels before 6.3 do not know the flag.
        .or_else(|_| rustix::fs::memfd_create("guest-memory", MemfdFlags::CLOEXEC))
        .map_err(|error| file_error(error.into()))?;
    let file = File::from(file);
    file.set_len(bytes).map_err(file_error)?;
    map(file, bytes)
}

/// Maps a memory file.
fn map(file: File, bytes: u64) -> Result<GuestMemory, MemoryError> {
    let mib = bytes >> 20;
    let map_error = |source| MemoryError::Map { mib, source };
    let file = Arc::new(file);
    let mut regions = Vec::new();
    for range in layout::memory(bytes) {
        let size = usize::try_from(range.bytes)
            .map_err(|_| map_error(io::ErrorKind::OutOfMemory.into()))?;
        let region = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&file), range.offset))
            .build()
            .map_err(|error| map_error(io::Error::other(error)))?;
        // Nine exits of ten on the way up are pages that the guest touches for the first time.
        // Where the host has large pages for memory files (`shmem_enabled` is `advise`) there
        // are far fewer; elsewhere this does nothing, or is refused.
        // SAFETY: it is a mapping of this length, and what is in it stays what it is.
        let _ = unsafe { libc::madvise(region.as_ptr().cast(), size, libc::MADV_HUGEPAGE) };
        let region = GuestRegionMmap::new(region, GuestAddress(range.start))
            .ok_or_else(|| map_error(io::ErrorKind::InvalidInput.into()))?;
        regions.push(region);
    }
    GuestMemory::from_regions(regions).map_err(|error| map_error(io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    #[test]
    fn memory_is_sparse_and_has_its_gap() {
        let memory = make(5 << 30).unwrap();
        assert_eq!(memory.num_regions(), 2);
        memory.write_obj(7_u8, GuestAddress((1 << 32) + 5)).unwrap();
        assert!(memory.write_obj(7_u8, GuestAddress(0xd000_0000)).is_err());
        let region = memory.find_region(GuestAddress(0)).unwrap();
        let file = region.file_offset().unwrap().file();
        assert_eq!(file.metadata().unwrap().len(), 5 << 30);
        use std::os::unix::fs::MetadataExt;
        assert!(file.metadata().unwrap().blocks() < 1 << 12);
    }
}
