//! The device.

use rustix::rand::GetRandomFlags;

use super::EntropyState;
use crate::context::{Context, Progress};
use crate::device::{Fault, VirtioDevice};
use crate::persist::{DeviceState, RestoreError};
use crate::{Buffers, GuestMemory};

/// VIRTIO_ID_RNG
const ID: u32 = 4;
const QUEUE_SIZES: [u16; 1] = [64];
/// The most bytes that one request gets; Linux asks for no more than a cache line or two.
const MOST: usize = 4096;

/// See the module.
#[derive(Debug, Default)]
pub struct Entropy {}

impl Entropy {
    /// A device.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Entropy {
    fn id(&self) -> u32 {
        ID
    }

    fn name(&self) -> &'static str {
        "entropy"
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, _features: u64, _memory: &GuestMemory) -> Result<(), Fault> {
        Ok(())
    }

    fn queue_event(&mut self, context: &mut Context<'_>, queue: usize) -> Result<(), Fault> {
        context.process(queue, |chain, turn| {
            let written = fill(&chain.writable);
            turn.moved(MOST);
            Ok(Progress::Done(written))
        })
    }

    fn reset(&mut self) {}

    fn save(&self) -> DeviceState {
        DeviceState::Entropy(EntropyState {})
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        match state {
            DeviceState::Entropy(_) => Ok(()),
            _ => Err(RestoreError::Kind("entropy")),
        }
    }
}

/// Fills the buffers with random bytes; how many.
fn fill(buffers: &Buffers<'_>) -> u32 {
    let mut bytes = [0; MOST];
    let wanted = buffers.len().min(MOST);
    let bytes = bytes.get_mut(..wanted).unwrap_or_default();
    // Up to 256 bytes come at once, more can be cut short by a signal: less is no fault.
    match rustix::rand::getrandom(&mut *bytes, GetRandomFlags::empty()) {
        Ok(length) => {
            let random = bytes.get(..length).unwrap_or_default();
            u32::try_from(buffers.copy_from(random)).unwrap_or(0)
        }
        Err(error) => {
            tracing::warn!(%error, "no random bytes for a guest");
            0
        }
    }
}
