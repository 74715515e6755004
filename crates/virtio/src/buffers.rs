//! Scattered pieces of guest memory as one run of bytes.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use vm_memory::VolatileSlice;

/// The most pieces of one chain: what one system call takes (UIO_MAXIOV).
pub const MAX_SEGMENTS: usize = 1024;

/// The most bytes that one system call moves. A chain may have 4 GiB, and nothing else is
/// looked at during a call; what drivers ask for at once (1280 KiB for a disk of Linux's, up
/// to 4 MiB in its later versions) still takes one.
const PIECE: usize = 4 << 20;

/// Pieces of guest memory, one after the other. That they are memory was checked; what is
/// in them can change at any time.
#[derive(Debug, Default)]
pub struct Buffers<'a> {
    pieces: Vec<VolatileSlice<'a>>,
}

impl<'a> Buffers<'a> {
    pub(crate) fn push(&mut self, piece: VolatileSlice<'a>) {
        if !piece.is_empty() {
            self.pieces.push(piece);
        }
    }

    /// The pieces.
    pub fn pieces(&self) -> &[VolatileSlice<'a>] {
        &self.pieces
    }

    /// Bytes in all: less than 4 GiB, as a chain's.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(VolatileSlice::len).sum()
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Takes bytes off the front; `None`, and nothing is taken, when there are fewer.
    pub fn take_front(&mut self, count: usize) -> Option<Self> {
        let rest = self.len().checked_sub(count)?;
        let mut front = Self::default();
        let mut wanted = count;
        let mut back = Self::default();
        for piece in self.pieces.drain(..) {
            let here = wanted.min(piece.len());
            wanted -= here;
            // Both parts lie within the piece.
            if let Ok((first, second)) = piece.split_at(here) {
                front.push(first);
                back.push(second);
            }
        }
        self.pieces = back.pieces;
        debug_assert_eq!(self.len(), rest);
        Some(front)
    }

    /// Takes bytes off the back; `None`, and nothing is taken, when there are fewer.
    pub fn take_back(&mut self, count: usize) -> Option<Self> {
        let front = self.len().checked_sub(count)?;
        let front = self.take_front(front)?;
        Some(std::mem::replace(self, front))
    }

    /// Keeps the first bytes at most.
    pub fn truncate(&mut self, count: usize) {
        if let Some(front) = self.take_front(count) {
            *self = front;
        }
    }

    /// Copies the first bytes out; how many there were.
    pub fn copy_to(&self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in &self.pieces {
            let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) else {
                break;
            };
            done += piece.copy_to(rest);
        }
        done
    }

    /// Copies bytes in at the front; how many there was room for.
    pub fn copy_from(&self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for piece in &self.pieces {
            let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) else {
                break;
            };
            let here = rest.len().min(piece.len());
            piece.copy_from(rest.get(..here).unwrap_or_default());
            done += here;
        }
        done
    }

    /// Reads a file from an offset into them: one system call, which may read less and does
    /// where they are long.
    ///
    /// # Errors
    /// What the system says.
    pub fn read_at(&self, file: impl AsFd, offset: u64) -> io::Result<usize> {
        let descriptor = file.as_fd().as_raw_fd();
        let offset = signed(offset)?;
        self.transfer(|pieces, count| {
            // SAFETY: see `transfer`; the descriptor is borrowed for the call.
            unsafe { libc::preadv(descriptor, pieces, count, offset) }
        })
    }

    /// Writes them to a file at an offset: one system call, which may write less and does
    /// where they are long.
    ///
    /// # Errors
    /// What the system says.
    pub fn write_at(&self, file: impl AsFd, offset: u64) -> io::Result<usize> {
        let descriptor = file.as_fd().as_raw_fd();
        let offset = signed(offset)?;
        self.transfer(|pieces, count| {
            // SAFETY: see `transfer`; the descriptor is borrowed for the call.
            unsafe { libc::pwritev(descriptor, pieces, count, offset) }
        })
    }

    /// Reads a stream or a frame into them.
    ///
    /// # Errors
    /// What the system says.
    pub fn read_from(&self, stream: impl AsFd) -> io::Result<usize> {
        let descriptor = stream.as_fd().as_raw_fd();
        self.transfer(|pieces, count| {
            // SAFETY: see `transfer`; the descriptor is borrowed for the call.
            unsafe { libc::readv(descriptor, pieces, count) }
        })
    }

    /// Writes them to a stream, or as a frame.
    ///
    /// # Errors
    /// What the system says.
    pub fn write_to(&self, stream: impl AsFd) -> io::Result<usize> {
        let descriptor = stream.as_fd().as_raw_fd();
        self.transfer(|pieces, count| {
            // SAFETY: see `transfer`; the descriptor is borrowed for the call.
            unsafe { libc::writev(descriptor, pieces, count) }
        })
    }

    /// Has a system call read or write the pieces. Its caller may rely on this: the vectors
    /// are valid for the call and each lies in memory that is mapped for as long as `self`
    /// borrows it; nothing in this process takes references to that memory, so that what
    /// the kernel or the guest writes there is nobody's surprise.
    fn transfer(
        &self,
        call: impl Fn(*const libc::iovec, libc::c_int) -> libc::ssize_t,
    ) -> io::Result<usize> {
        let guards: Vec<_> = self
            .pieces
            .iter()
            .map(VolatileSlice::ptr_guard_mut)
            .collect();
        let mut left = PIECE;
        let vectors: Vec<libc::iovec> = guards
            .iter()
            .take(MAX_SEGMENTS)
            .map_while(|guard| {
                let here = guard.len().min(left);
                left -= here;
                (here > 0).then(|| libc::iovec {
                    iov_base: guard.as_ptr().cast(),
                    iov_len: here,
                })
            })
            .collect();
        let count = libc::c_int::try_from(vectors.len())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        loop {
            let done = call(vectors.as_ptr(), count);
            if let Ok(done) = usize::try_from(done) {
                return Ok(done);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

fn signed(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers(memory: &mut [u8], sizes: &[usize]) -> Buffers<'static> {
        let mut buffers = Buffers::default();
        let mut at = 0;
        for size in sizes {
            let piece = memory.get_mut(at..at + size).unwrap();
            // SAFETY: tests keep the memory past the buffers.
            buffers.push(unsafe { VolatileSlice::new(piece.as_mut_ptr(), *size) });
            at += size;
        }
        buffers
    }

    #[test]
    fn bytes_run_through_the_pieces() {
        let mut memory = vec![0; 16];
        let mut all = buffers(&mut memory, &[3, 0, 5, 8]);
        assert_eq!(all.len(), 16);
        assert_eq!(all.copy_from(b"0123456789abcdefXX"), 16);
        let head = all.take_front(4).unwrap();
        let tail = all.take_back(1).unwrap();
        let mut text = [0; 16];
        assert_eq!(head.copy_to(&mut text), 4);
        assert_eq!(&text[..4], b"0123");
        assert_eq!(tail.copy_to(&mut text), 1);
        assert_eq!(&text[..1], b"f");
        assert_eq!(all.copy_to(&mut text), 11);
        assert_eq!(&text[..11], b"456789abcde");
        assert!(all.take_front(12).is_none());
        assert_eq!(all.len(), 11);
    }

    #[test]
    fn files_are_read_and_written_in_place() {
        let mut memory = vec![7; 10];
        let all = buffers(&mut memory, &[4, 6]);
        let file = tempfile::tempfile().unwrap();
        assert_eq!(all.write_at(&file, 5).unwrap(), 10);
        assert_eq!(file.metadata().unwrap().len(), 15);
        assert_eq!(all.read_at(&file, 0).unwrap(), 10);
        let mut text = [9; 10];
        all.copy_to(&mut text);
        assert_eq!(text, [0, 0, 0, 0, 0, 7, 7, 7, 7, 7]);
        assert!(all.read_at(&file, u64::MAX).is_err());
    }
}
