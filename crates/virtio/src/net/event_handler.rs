//! Frames in both directions.

use std::io;

use super::device::{HEADER, Net, RECEIVE, TRANSMIT, feature};
use crate::context::{Context, Progress};
use crate::device::Fault;

/// Frames that are taken from the tap in one go, so that a flood does not keep the other
/// devices waiting.
const BURST: usize = 256;
/// Buffers that one frame may be spread over: those of the smallest that drivers use.
const MAX_BUFFERS: u16 = 64;
/// Where the number of buffers is in the header.
const BUFFERS_AT: usize = 10;

impl Net {
    /// Passes frames from the tap to the guest until there is none or no room for one.
    pub(super) fn receive(&mut self, context: &mut Context<'_>) -> Result<(), Fault> {
        for _ in 0..BURST {
            if context.turn().is_over() {
                // Also for a frame that waits, of which the tap will not tell.
                context.again(RECEIVE);
                return Ok(());
            }
            if self.frame_length == 0 {
                match rustix::io::read(&self.tap, &mut *self.frame) {
                    Ok(length) if length > HEADER => self.frame_length = length,
                    // Not a frame.
                    Ok(_) => continue,
                    Err(rustix::io::Errno::AGAIN) => return Ok(()),
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(error) => {
                        tracing::warn!(%error, "nothing can be read from a tap device");
                        self.failed = true;
                        return Ok(());
                    }
                }
            }
            context.turn().moved(self.frame_length);
            if !self.deliver(context)? {
                self.no_room = true;
                return Ok(());
            }
            self.frame_length = 0;
        }
        Ok(())
    }

    /// Copies the frame into the guest's buffers; false when they have no room for it, and
    /// then none of them is used.
    fn deliver(&mut self, context: &mut Context<'_>) -> Result<bool, Fault> {
        let mergeable = self.features & feature::MRG_RXBUF != 0;
        let frame = self.frame.get_mut(..self.frame_length).unwrap_or_default();
        let most = if mergeable { MAX_BUFFERS } else { 1 };
        let mut chains = context.take(RECEIVE, most, frame.len())?;
        let room: usize = chains.iter().map(|chain| chain.writable.len()).sum();
        if room < frame.len() {
            // What the driver gives is too small for a frame in any number: the frame is lost.
            let hopeless = chains.len() == usize::from(most);
            context.put_back(RECEIVE, chains.len());
            return Ok(hopeless);
        }
        let count = u16::try_from(chains.len()).unwrap_or(MAX_BUFFERS);
        if let Some(place) = frame.get_mut(BUFFERS_AT..HEADER) {
            place.copy_from_slice(&count.to_le_bytes());
        }
        let mut done = 0;
        for chain in chains.drain(..) {
            let written = chain
                .writable
                .copy_from(frame.get(done..).unwrap_or_default());
            done += written;
            context.give_back(RECEIVE, chain.head, u32::try_from(written).unwrap_or(0))?;
        }
        Ok(true)
    }

    /// Passes frames from the guest to the tap.
    pub(super) fn transmit(&mut self, context: &mut Context<'_>) -> Result<(), Fault> {
        let tap = &self.tap;
        let longest = self.frame.len();
        context.process(TRANSMIT, |chain, turn| {
            let length = chain.readable.len();
            if length > HEADER && length <= longest {
                // A frame that the tap does not take is lost, as on any wire: its queue is
                // full, the interface is down, or the header is not one.
                if let Err(error) = chain.readable.write_to(tap)
                    && error.kind() != io::ErrorKind::WouldBlock
                {
                    tracing::debug!(%error, length, "a tap device refused a frame");
                }
                turn.moved(length);
            }
            Ok(Progress::Done(0))
        })
    }
}
