//! Pages that go back to the host.

use std::io;

use rustix::fs::FallocateFlags;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use super::PAGE;
use super::device::{Balloon, queue};
use crate::context::{Context, Progress};
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
        context.process(queue::INFLATE, |chain| {
            self.give_up(memory, chain.readable)?;
            Ok(Progress::Done(0))
        })
    }

    /// Pages that the guest takes back: they are there when it touches them.
    pub(super) fn deflate(&self, context: &mut Context<'_>) -> Result<(), Fault> {
        context.process(queue::DEFLATE, |_| Ok(Progress::Done(0)))
    }

    /// Free pages, as the buffers themselves.
    pub(super) fn reported(&self, context: &mut Context<'_>) -> Result<(), Fault> {
        let memory = context.memory();
        context.process_places(queue::REPORTING, |places| {
            for (address, length) in places {
                self.discard(memory, address, length);
            }
            Ok(Progress::Done(0))
        })
    }

    fn give_up(&self, memory: &GuestMemory, mut numbers: Buffers<'_>) -> Result<(), Fault> {
        if numbers.len() > MAX_NUMBERS * NUMBER {
            return Err(Fault::new("the balloon's driver gives up too much at once"));
        }
        // Neighbours are given back together: first page and how many.
        let mut run: Option<(u64, u64)> = None;
        while !numbers.is_empty() {
            let mut bytes = [0; NUMBERS * NUMBER];
            let here = numbers.len().min(bytes.len());
            let Some(part) = numbers.take_front(here) else {
                break;
            };
            let length = part.copy_to(&mut bytes);
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
                            self.discard(memory, first * PAGE, count * PAGE);
                        }
                        Some((page, 1))
                    }
                };
            }
        }
        if let Some((first, count)) = run {
            self.discard(memory, first * PAGE, count * PAGE);
        }
        Ok(())
    }

    /// Gives whole pages in a range back to the host. What is no memory is nobody's loss.
    fn discard(&self, memory: &GuestMemory, address: u64, length: u64) {
        let range = address.checked_next_multiple_of(PAGE).and_then(|start| {
            let end = address.saturating_add(length) / PAGE * PAGE;
            Some((start, end.checked_sub(start).filter(|length| *length > 0)?))
        });
        let Some((start, length)) = range else { return };
        match release(memory, start, length) {
            Ok(()) => self.count(length),
            Err(error) => tracing::debug!(%error, start, length, "memory stays with a guest"),
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
    if let Some(file) = region.file_offset()
        && region.flags() & libc::MAP_SHARED != 0
    {
        let offset = file.start().checked_add(inside).ok_or_else(nowhere)?;
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        return Ok(rustix::fs::fallocate(file.file(), hole, offset, length)?);
    }
    // A private mapping, of a template's file or of none: its own pages go, and those of
    // the file come back when they are read, which no guest may rely on to be zeroes.
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
