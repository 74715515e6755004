//! Counts a stream's bytes for a progress display.

use std::io::{self, Read};

/// A report at most every so many bytes.
const STEP: u64 = 512 << 10;

/// Passes a stream through and reports how much of it was read.
pub(crate) struct CountedReader<R, F> {
    source: R,
    report: F,
    count: u64,
    reported: u64,
}

impl<R: Read, F: FnMut(u64)> CountedReader<R, F> {
    pub(crate) fn new(source: R, report: F) -> Self {
        Self {
            source,
            report,
            count: 0,
            reported: 0,
        }
    }
}

impl<R: Read, F: FnMut(u64)> Read for CountedReader<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        self.count += length as u64;
        let at_end = length == 0 && !buffer.is_empty();
        if self.count - self.reported >= STEP || (at_end && self.count > self.reported) {
            self.reported = self.count;
            (self.report)(self.count);
        }
        Ok(length)
    }
}
