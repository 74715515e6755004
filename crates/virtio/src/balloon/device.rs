//! The device: its configuration space and life.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{BalloonState, PAGE};
use crate::GuestMemory;
use crate::context::Context;
use crate::device::{Fault, VirtioDevice, read_from};
use crate::persist::{DeviceState, RestoreError};

/// VIRTIO_ID_BALLOON
const ID: u32 = 5;
/// VIRTIO_BALLOON_F_PAGE_REPORTING
const REPORTING: u64 = 1 << 5;

/// The queues. Those of features that are not offered are not counted.
pub(super) mod queue {
    pub(crate) const INFLATE: usize = 0;
    pub(crate) const DEFLATE: usize = 1;
    pub(crate) const REPORTING: usize = 2;
}
const QUEUE_SIZES: [u16; 3] = [128, 128, 32];

/// Where the driver writes how many pages it has given up, section 5.5.4.
const ACTUAL: u64 = 4;

#[derive(Debug, Default)]
struct Numbers {
    target: AtomicU32,
    actual: AtomicU32,
    returned: AtomicU64,
}

/// The balloon, for whoever owns the machine.
#[derive(Debug, Clone)]
pub struct BalloonHandle {
    numbers: Arc<Numbers>,
}

impl BalloonHandle {
    /// Sets how much the guest is to give up, bytes. The device's
    /// [`crate::MmioDevice::notify_configuration`] has to follow.
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        self.numbers.target.store(pages, Ordering::SeqCst);
    }

    /// How much it says that it has given up, bytes.
    pub fn actual(&self) -> u64 {
        u64::from(self.numbers.actual.load(Ordering::SeqCst)) * PAGE
    }

    /// Memory that went back to the host since the start, bytes, by either way. The same
    /// memory can count more than once.
    pub fn returned(&self) -> u64 {
        self.numbers.returned.load(Ordering::SeqCst)
    }
}

/// The device.
#[derive(Debug, Default)]
pub struct Balloon {
    numbers: Arc<Numbers>,
}

impl Balloon {
    /// An empty balloon, and what moves it.
    pub fn new() -> (Self, BalloonHandle) {
        let balloon = Self::default();
        let handle = BalloonHandle {
            numbers: Arc::clone(&balloon.numbers),
        };
        (balloon, handle)
    }

    pub(super) fn count(&self, bytes: u64) {
        self.numbers.returned.fetch_add(bytes, Ordering::SeqCst);
    }
}

impl VirtioDevice for Balloon {
    fn id(&self) -> u32 {
        ID
    }

    fn name(&self) -> &'static str {
        "balloon"
    }

    fn features(&self) -> u64 {
        // Not that a guest in need takes its memory back (DEFLATE_ON_OOM): with it the balloon
        // would be no part of what the guest shows and keeps to as its size.
        REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let target = self.numbers.target.load(Ordering::SeqCst).to_le_bytes();
        let actual = self.numbers.actual.load(Ordering::SeqCst).to_le_bytes();
        read_from(&[target, actual].concat(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if offset == ACTUAL
            && let Ok(bytes) = <[u8; 4]>::try_from(data)
        {
            let pages = u32::from_le_bytes(bytes);
            self.numbers.actual.store(pages, Ordering::SeqCst);
        }
    }

    fn activate(&mut self, _features: u64, _memory: &GuestMemory) -> Result<(), Fault> {
        Ok(())
    }

    fn queue_event(&mut self, context: &mut Context<'_>, queue: usize) -> Result<(), Fault> {
        match queue {
            queue::INFLATE => self.inflate(context),
            queue::DEFLATE => self.deflate(context),
            queue::REPORTING => self.reported(context),
            _ => Ok(()),
        }
    }

    fn reset(&mut self) {
        self.numbers.actual.store(0, Ordering::SeqCst);
    }

    fn save(&self) -> DeviceState {
        DeviceState::Balloon(BalloonState {
            target: self.numbers.target.load(Ordering::SeqCst),
            actual: self.numbers.actual.load(Ordering::SeqCst),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Balloon(state) = state else {
            return Err(RestoreError::Kind("balloon"));
        };
        self.numbers.target.store(state.target, Ordering::SeqCst);
        self.numbers.actual.store(state.actual, Ordering::SeqCst);
        Ok(())
    }
}
