//! The guest's memory: as large as the guest was promised, and it takes as much of the host
//! as the guest has touched (docs/adr/0049).

use std::io;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::layout;

/// The guest's memory. Clones share it.
pub(crate) type GuestMemory = GuestMemoryMmap<()>;

/// The guest has no such memory.
#[derive(Debug, thiserror::Error)]
#[error("cannot map {mib} MiB of memory")]
pub(crate) struct MemoryError {
    mib: u64,
    pub(crate) source: io::Error,
}

/// What an entry of a page directory maps (Intel SDM volume 3, 5.5.4).
const LARGE_PAGE: usize = 2 << 20;

/// Makes `bytes` of memory.
pub(crate) fn make(bytes: u64) -> Result<GuestMemory, MemoryError> {
    let failed = |source| MemoryError {
        mib: bytes >> 20,
        source,
    };
    let mut regions = Vec::new();
    for range in layout::memory(bytes) {
        let size =
            usize::try_from(range.bytes).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
        let gap = AlignedGap::make(size).map_err(failed)?;
        let region = MmapRegionBuilder::new(size)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .build()
            .map_err(|error| failed(io::Error::other(error)))?;
        drop(gap);
        // A host whose pages are all small refuses, and nothing is lost by that.
        // SAFETY: it is a mapping of this length, and what is in it stays what it is.
        let _ = unsafe { libc::madvise(region.as_ptr().cast(), size, libc::MADV_HUGEPAGE) };
        let region = GuestRegionMmap::new(region, GuestAddress(range.start))
            .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        regions.push(region);
    }
    GuestMemory::from_regions(regions).map_err(|error| failed(io::Error::other(error)))
}

/// A gap in the address space that begins where a large page may, for the next mapping of
/// that size. Linux gives the highest gap that is large enough, so this is kept free between
/// two mappings which are there until then. Should another thread map something meanwhile,
/// or a gap be higher up that fits, the pages are small ones.
struct AlignedGap {
    walls: [(usize, usize); 2],
}

impl AlignedGap {
    fn make(size: usize) -> io::Result<Self> {
        let whole = size
            .checked_add(LARGE_PAGE)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: the kernel chooses where, so that nothing else is replaced.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = start.addr();
        let gap = first.next_multiple_of(LARGE_PAGE);
        let after = gap + size;
        unmap(gap, size);
        Ok(Self {
            walls: [(first, gap - first), (after, first + whole - after)],
        })
    }
}

impl Drop for AlignedGap {
    fn drop(&mut self) {
        for (start, length) in self.walls {
            unmap(start, length);
        }
    }
}

/// Unmaps a part of an [`AlignedGap`]'s own mapping.
fn unmap(start: usize, length: usize) {
    if length > 0 {
        // SAFETY: nobody can have a reference to what cannot be accessed. It fails for what is
        // no range of pages, and whole pages are all that is cut off here.
        unsafe { libc::munmap(std::ptr::without_provenance_mut(start), length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

    #[test]
    fn memory_has_its_gap_and_room_for_large_pages() {
        let memory = make(5 << 30).unwrap();
        assert_eq!(memory.num_regions(), 2);
        memory.write_obj(7_u8, GuestAddress((1 << 32) + 5)).unwrap();
        assert!(memory.write_obj(7_u8, GuestAddress(0xd000_0000)).is_err());
        for region in memory.iter() {
            let address = region.get_host_address(MemoryRegionAddress(0)).unwrap();
            assert_eq!(address.addr() % LARGE_PAGE, 0, "{address:?}");
        }
    }
}
