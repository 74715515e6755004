//! Pages that go back to the host.

use std::io;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::PAGE;
use super::device::{Balloon, queue};
use crate::context::{Context, Progress, Turn};
use crate::device::Fault;
use crate::{Buffers, GuestMemory};

/// Page numbers that are looked at together.
const NUMBERS: usize = 256;
/// Bytes of a page number.
const NUMBER: usize = 4;
/// Page numbers in one chain: Linux sends 256, in one buffer.
const MAX_NUMBERS: usize = 1 << 16;

impl Balloon {
    /// Pages that the guest gives up: arrays of page numbers.
    pub(super) fn inflate(&self, context: &mut Context<'_>) -> Result<(), Fault> {
        let memory = context.memory();
        context.process(queue::INFLATE, |chain, turn| {
            self.give_up(memory, chain.readable, chain.begun, turn)
        })
    }

    /// Pages that the guest takes back: they are there when it touches them.
    pub(super) fn deflate(&self, context: &mut Context<'_>) -> Result<(), Fault> {
        context.process(queue::DEFLATE, |_, _| Ok(Progress::Done(0)))
    }

    /// Free pages, as the buffers themselves.
    pub(super) fn reported(&self, context: &mut Context<'_>) -> Result<(), Fault> {
        let memory = context.memory();
        context.process_places(queue::REPORTING, |places, begun, turn| {
            for (done, (address, length)) in places.into_iter().enumerate().skip(begun) {
                if turn.is_over() {
                    return Ok(Progress::Part(done));
                }
                self.discard(memory, address, length, turn);
            }
            Ok(Progress::Done(0))
        })
    }

    fn give_up(
        &self,
        memory: &GuestMemory,
        mut numbers: Buffers<'_>,
        begun: usize,
        turn: &mut Turn<'_>,
    ) -> Result<Progress, Fault> {
        if numbers.len() > MAX_NUMBERS * NUMBER {
            return Err(Fault::new("the balloon's driver gives up too much at once"));
        }
        let mut done = begun.min(numbers.len());
        numbers.take_front(done);
        // Neighbours are given back together: first page and how many.
        let mut run: Option<(u64, u64)> = None;
        while !numbers.is_empty() && !turn.is_over() {
            let mut bytes = [0; NUMBERS * NUMBER];
            let here = numbers.len().min(bytes.len());
            let Some(part) = numbers.take_front(here) else {
                break;
            };
            let length = part.copy_to(&mut bytes);
            done += length;
            turn.moved(length);
            let bytes = bytes.get(..length).unwrap_or_default();
            for number in bytes.as_chunks::<NUMBER>().0 {
                let page = u64::from(u32::from_le_bytes(*number));
                run = match run {
                    Some((first, count)) if page == first + count => Some((first, count + 1)),
                    Some((first, count)) if first > 0 && page == first - 1 => {
                        Some((page, count + 1))
                    }
                    before => {
                        if let Some((first, count)) = before {
                            self.discard(memory, first * PAGE, count * PAGE, turn);
                        }
                        Some((page, 1))
                    }
                };
            }
        }
        if let Some((first, count)) = run {
            self.discard(memory, first * PAGE, count * PAGE, turn);
        }
        Ok(if numbers.is_empty() {
            Progress::Done(0)
        } else {
            Progress::Part(done)
        })
    }

    /// Gives whole pages in a range back to the host. What is no memory is nobody's loss.
    fn discard(&self, memory: &GuestMemory, address: u64, length: u64, turn: &mut Turn<'_>) {
        let range = address.checked_next_multiple_of(PAGE).and_then(|start| {
            let end = address.saturating_add(length) / PAGE * PAGE;
            Some((start, end.checked_sub(start).filter(|length| *length > 0)?))
        });
        let Some((start, length)) = range else { return };
        match release(memory, start, length) {
            Ok(()) => {
                turn.released(length);
                self.count(length);
            }
            Err(error) => {
                turn.released(0);
                tracing::debug!(%error, start, length, "memory stays with a guest");
            }
        }
    }
}

/// Has the host take memory back; it reads as zeroes afterwards.
fn release(memory: &GuestMemory, start: u64, length: u64) -> io::Result<()> {
    let nowhere = || io::Error::from(io::ErrorKind::InvalidInput);
    let (region, inside) = memory
        .to_region_addr(GuestAddress(start))
        .ok_or_else(nowhere)?;
    let MemoryRegionAddress(inside) = inside;
    let fits = inside
        .checked_add(length)
        .is_some_and(|end| end <= region.len());
    if !fits {
        return Err(nowhere());
    }
    // A private mapping, of none or of a template's file: its own pages go. Those of a file
    // come back when they are read, so no guest may rely on zeroes.
    let length = usize::try_from(length).map_err(|_| nowhere())?;
    let slice = region
        .get_slice(MemoryRegionAddress(inside), length)
        .map_err(|_| nowhere())?;
    let guard = slice.ptr_guard_mut();
    // SAFETY: the range lies in one mapping of guest memory, to which nothing in this
    // process holds a reference; what is read there from now on is the guest's affair.
    let done = unsafe { libc::madvise(guard.as_ptr().cast(), guard.len(), libc::MADV_DONTNEED) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use rustix::fs::MemfdFlags;
    use vm_memory::mmap::MmapRegionBuilder;
    use vm_memory::{Bytes, FileOffset, GuestRegionMmap};

    use super::*;

    const BYTES: u64 = 16 * PAGE;
    /// Where the memory is in its file, as of a second region.
    const START: u64 = 4 * PAGE;

    fn file() -> File {
        let file = File::from(rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        file.write_all_at(&[5; 20 * 4096], 0).unwrap();
        file
    }

    fn map(file: &File) -> GuestMemory {
        let offset = FileOffset::new(file.try_clone().unwrap(), START);
        let region = MmapRegionBuilder::new(usize::try_from(BYTES).unwrap())
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .with_file_offset(offset)
            .build()
            .unwrap();
        let region = GuestRegionMmap::new(region, GuestAddress(0x10_0000)).unwrap();
        GuestMemory::from_regions(vec![region]).unwrap()
    }

    fn byte(memory: &GuestMemory, page: u64) -> u8 {
        memory
            .read_obj(GuestAddress(0x10_0000 + page * PAGE))
            .unwrap()
    }

    #[test]
    fn private_memory_is_its_files_again() {
        let file = file();
        let memory = map(&file);
        for page in 0..4 {
            let address = GuestAddress(0x10_0000 + page * PAGE);
            memory.write_slice(&[7; 4096], address).unwrap();
        }
        let before = file.metadata().unwrap().blocks();
        release(&memory, 0x10_0000 + PAGE, 2 * PAGE).unwrap();
        let bytes: Vec<u8> = (0..5).map(|page| byte(&memory, page)).collect();
        assert_eq!(bytes, [7, 5, 5, 7, 5]);
        // A template's memory stays what it is for the others.
        assert_eq!(file.metadata().unwrap().blocks(), before);
    }

    #[test]
    fn a_range_over_the_end_is_refused_whole() {
        let file = file();
        let memory = map(&file);
        for (start, length) in [
            (0x10_0000 + 15 * PAGE, 2 * PAGE),
            (0x10_0000 - PAGE, 2 * PAGE),
            (0x10_0000, u64::MAX - PAGE + 1),
        ] {
            assert!(release(&memory, start, length).is_err());
        }
        assert!((0..16).all(|page| byte(&memory, page) == 5));
    }
}
