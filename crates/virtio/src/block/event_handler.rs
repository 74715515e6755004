//! Requests, section 5.2.6.

use std::io;

use super::SECTOR;
use super::device::{Block, MAX_RANGE, MAX_RANGES, feature};
use crate::Buffers;
use crate::context::{Chain, Progress, Turn};
use crate::device::Fault;

/// Types of requests.
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// The status byte.
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// type, reserved, sector
const HEADER: usize = 16;
/// sector, number of sectors, flags
const RANGE: usize = 16;
/// VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP
const UNMAP: u32 = 1;
const SERIAL: usize = 20;

/// How far a request has come.
enum Outcome {
    /// It is done, and so many bytes of its chain are written.
    Done(usize),
    /// The turn was over: so many bytes were moved, or ranges worked on, in all turns.
    Part(usize),
}

/// Why a request is not carried out.
enum Refusal {
    /// It asks for what this disk does not have or do.
    Unsupported,
    /// It was tried, or cannot be tried.
    Failed(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

fn beyond() -> Refusal {
    Refusal::Failed(io::Error::new(
        io::ErrorKind::InvalidInput,
        "it lies beyond the disk",
    ))
}

impl Block {
    /// Carries out one request, or a part of it.
    pub(super) fn request(
        &self,
        mut chain: Chain<'_>,
        turn: &mut Turn<'_>,
    ) -> Result<Progress, Fault> {
        let mut header = [0; HEADER];
        let head = chain.readable.take_front(HEADER);
        let status = chain.writable.take_back(1);
        let (Some(head), Some(status)) = (head, status) else {
            return Err(Fault::new(
                "a request of the disk has no header or no room for its status",
            ));
        };
        head.copy_to(&mut header);
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let kind = u32::from_le_bytes([a, b, c, d]);
        let sector = u64::from_le_bytes(sector);
        let room = chain.writable.len();
        let (answer, written) = match self.carry_out(kind, sector, chain, turn) {
            Ok(Outcome::Done(written)) => (OK, written),
            Ok(Outcome::Part(done)) => return Ok(Progress::Part(done)),
            Err(Refusal::Unsupported) => (UNSUPP, 0),
            Err(Refusal::Failed(error)) => {
                tracing::warn!(serial = self.serial, kind, sector, %error, "a disk request failed");
                (IOERR, 0)
            }
        };
        status.copy_from(&[answer]);
        debug_assert!(written <= room);
        Ok(Progress::Done(
            u32::try_from(written).unwrap_or(u32::MAX).saturating_add(1),
        ))
    }

    fn carry_out(
        &self,
        kind: u32,
        sector: u64,
        mut chain: Chain<'_>,
        turn: &mut Turn<'_>,
    ) -> Result<Outcome, Refusal> {
        match kind {
            kind::IN => {
                let bytes = chain.writable.len();
                let (begun, offset) = self.rest(sector, &mut chain.writable, chain.begun)?;
                let done = begun + self.backing.read(chain.writable, offset, turn)?;
                Ok(if done < bytes {
                    Outcome::Part(done)
                } else {
                    Outcome::Done(bytes)
                })
            }
            kind::OUT => {
                let bytes = chain.readable.len();
                let (begun, offset) = self.rest(sector, &mut chain.readable, chain.begun)?;
                let done = begun + self.backing.write(chain.readable, offset, turn)?;
                if done < bytes {
                    return Ok(Outcome::Part(done));
                }
                self.written(turn)?;
                Ok(Outcome::Done(0))
            }
            kind::FLUSH => {
                self.flush(turn)?;
                Ok(Outcome::Done(0))
            }
            kind::GET_ID => {
                let mut serial = [0; SERIAL];
                for (place, byte) in serial.iter_mut().zip(self.serial.bytes()) {
                    *place = byte;
                }
                Ok(Outcome::Done(chain.writable.copy_from(&serial)))
            }
            kind::DISCARD if self.has(feature::DISCARD) => {
                self.ranges(kind, &chain.readable, chain.begun, turn)
            }
            kind::WRITE_ZEROES if self.has(feature::WRITE_ZEROES) => {
                self.ranges(kind, &chain.readable, chain.begun, turn)
            }
            _ => Err(Refusal::Unsupported),
        }
    }

    /// Whether the driver has accepted a feature, which it can only where it is offered.
    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Something was written: a driver that cannot have it put on stable storage finds it
    /// there, section 5.2.6.2.
    fn written(&self, turn: &mut Turn<'_>) -> io::Result<()> {
        if self.has(feature::FLUSH) {
            return Ok(());
        }
        self.flush(turn)
    }

    fn flush(&self, turn: &mut Turn<'_>) -> io::Result<()> {
        turn.end();
        self.backing.flush()
    }

    /// Takes off a transfer what of it is done; how many bytes those are, and where the rest
    /// lies.
    fn rest(
        &self,
        sector: u64,
        buffers: &mut Buffers<'_>,
        begun: usize,
    ) -> Result<(usize, u64), Refusal> {
        let start = self.place(sector, buffers.len())?;
        let begun = begun.min(buffers.len());
        if begun > 0 {
            buffers.take_front(begun);
        }
        Ok((begun, start + u64::try_from(begun).unwrap_or(0)))
    }

    /// Where a transfer lies in bytes; it has to be whole sectors on the disk.
    fn place(&self, sector: u64, bytes: usize) -> Result<u64, Refusal> {
        let bytes = u64::try_from(bytes).map_err(|_| beyond())?;
        let end = sector.checked_add(bytes.div_ceil(SECTOR));
        match end {
            Some(end) if end <= self.sectors && bytes.is_multiple_of(SECTOR) => Ok(sector * SECTOR),
            _ => Err(beyond()),
        }
    }

    /// Discards ranges, or zeroes them.
    fn ranges(
        &self,
        kind: u32,
        described: &Buffers<'_>,
        begun: usize,
        turn: &mut Turn<'_>,
    ) -> Result<Outcome, Refusal> {
        let most = usize::try_from(MAX_RANGES).unwrap_or(0) * RANGE;
        let length = described.len();
        if length == 0 || length > most || !length.is_multiple_of(RANGE) {
            return Err(beyond());
        }
        let mut bytes = vec![0; length];
        described.copy_to(&mut bytes);
        // All are looked at before the first is carried out.
        let mut ranges = Vec::new();
        for range in bytes.as_chunks::<RANGE>().0 {
            let [a, b, c, d, e, f, g, h, i, j, k, l, flags @ ..] = *range;
            let sector = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
            let count = u32::from_le_bytes([i, j, k, l]);
            let flags = u32::from_le_bytes(flags);
            let known = if kind == kind::WRITE_ZEROES { UNMAP } else { 0 };
            if flags & !known != 0 {
                return Err(Refusal::Unsupported);
            }
            let end = sector.checked_add(u64::from(count));
            if count > MAX_RANGE || end.is_none_or(|end| end > self.sectors) {
                return Err(beyond());
            }
            ranges.push((
                sector * SECTOR,
                u64::from(count) * SECTOR,
                flags & UNMAP != 0,
            ));
        }
        for (done, (offset, bytes, unmap)) in ranges.into_iter().enumerate().skip(begun) {
            if bytes == 0 {
                continue;
            }
            if turn.is_over() {
                return Ok(Outcome::Part(done));
            }
            if kind == kind::DISCARD {
                self.backing.discard(offset, bytes)?;
            } else {
                self.backing.zero(offset, bytes, unmap)?;
            }
            turn.released(bytes);
        }
        if kind == kind::WRITE_ZEROES {
            self.written(turn)?;
        }
        Ok(Outcome::Done(0))
    }
}
