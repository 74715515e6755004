//! The device: its configuration space and life.

use super::{Backing, BlockState, SECTOR};
use crate::GuestMemory;
use crate::context::Context;
use crate::device::{Fault, VirtioDevice, read_from};
use crate::persist::{DeviceState, RestoreError};

/// VIRTIO_ID_BLOCK
const ID: u32 = 2;
const QUEUE_SIZES: [u16; 1] = [256];

/// Feature bits, section 5.2.3.
pub(super) mod feature {
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const RO: u64 = 1 << 5;
    pub(super) const BLK_SIZE: u64 = 1 << 6;
    pub(crate) const FLUSH: u64 = 1 << 9;
    pub(crate) const DISCARD: u64 = 1 << 13;
    pub(crate) const WRITE_ZEROES: u64 = 1 << 14;
}

/// Pieces of data in a request: a queue's entries without header and status.
const MAX_SEGMENTS: u32 = 254;
/// Sectors in a request to discard or to zero, and ranges in it.
pub(super) const MAX_RANGE: u32 = 1 << 22;
pub(super) const MAX_RANGES: u32 = 16;
/// What a hole is made of, in sectors: a page.
const HOLE_ALIGNMENT: u32 = 8;

/// Offsets in the configuration space, section 5.2.4.
mod config {
    pub(super) const SIZE: usize = 60;
    pub(super) const CAPACITY: usize = 0;
    pub(super) const SEG_MAX: usize = 12;
    pub(super) const BLK_SIZE: usize = 20;
    pub(super) const MAX_DISCARD_SECTORS: usize = 36;
    pub(super) const MAX_DISCARD_SEG: usize = 40;
    pub(super) const DISCARD_ALIGNMENT: usize = 44;
    pub(super) const MAX_WRITE_ZEROES_SECTORS: usize = 48;
    pub(super) const MAX_WRITE_ZEROES_SEG: usize = 52;
    pub(super) const WRITE_ZEROES_MAY_UNMAP: usize = 56;
}

/// A disk.
#[derive(Debug)]
pub struct Block {
    pub(super) backing: Backing,
    pub(super) serial: String,
    pub(super) sectors: u64,
    /// What the driver has accepted.
    pub(super) features: u64,
}

impl Block {
    /// A disk with this serial, of which the guest sees the first 20 bytes.
    pub fn new(backing: Backing, serial: impl Into<String>) -> Self {
        Self {
            sectors: backing.sectors(),
            backing,
            serial: serial.into(),
            features: 0,
        }
    }

    fn config(&self) -> [u8; config::SIZE] {
        let mut space = [0; config::SIZE];
        let mut put = |at: usize, bytes: &[u8]| {
            for (place, byte) in space.iter_mut().skip(at).zip(bytes) {
                *place = *byte;
            }
        };
        put(config::CAPACITY, &self.sectors.to_le_bytes());
        put(config::SEG_MAX, &MAX_SEGMENTS.to_le_bytes());
        put(config::BLK_SIZE, &512u32.to_le_bytes());
        if !self.backing.is_read_only() {
            put(config::MAX_DISCARD_SECTORS, &MAX_RANGE.to_le_bytes());
            put(config::MAX_DISCARD_SEG, &MAX_RANGES.to_le_bytes());
            put(config::DISCARD_ALIGNMENT, &HOLE_ALIGNMENT.to_le_bytes());
            put(config::MAX_WRITE_ZEROES_SECTORS, &MAX_RANGE.to_le_bytes());
            put(config::MAX_WRITE_ZEROES_SEG, &MAX_RANGES.to_le_bytes());
            put(config::WRITE_ZEROES_MAY_UNMAP, &[1]);
        }
        space
    }
}

impl VirtioDevice for Block {
    fn id(&self) -> u32 {
        ID
    }

    fn name(&self) -> &'static str {
        "block"
    }

    fn features(&self) -> u64 {
        let all = feature::SEG_MAX | feature::BLK_SIZE | feature::FLUSH;
        if self.backing.is_read_only() {
            all | feature::RO
        } else {
            all | feature::DISCARD | feature::WRITE_ZEROES
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.config(), offset, data);
    }

    fn activate(&mut self, features: u64, _memory: &GuestMemory) -> Result<(), Fault> {
        self.features = features;
        Ok(())
    }

    fn queue_event(&mut self, context: &mut Context<'_>, queue: usize) -> Result<(), Fault> {
        context.process(queue, |chain, turn| self.request(chain, turn))
    }

    fn reset(&mut self) {
        self.features = 0;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Block(BlockState {
            capacity: self.sectors * SECTOR,
            read_only: self.backing.is_read_only(),
            serial: self.serial.clone(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Block(state) = state else {
            return Err(RestoreError::Kind("block"));
        };
        let own = (self.sectors * SECTOR, self.backing.is_read_only());
        if own != (state.capacity, state.read_only) || self.serial != state.serial {
            return Err(RestoreError::Impossible {
                device: "block",
                why: format!(
                    "the disk '{}' of {} bytes is to go on as '{}' of {}",
                    self.serial, own.0, state.serial, state.capacity
                ),
            });
        }
        Ok(())
    }
}
