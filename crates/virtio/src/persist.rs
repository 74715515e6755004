//! A device's state as data.
//!
//! What is saved is what the driver has told the device and how far both are. Files,
//! sockets and memory are not part of it: whoever restores a device brings them.

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT};

use crate::{balloon, block, console, entropy, net};

/// A queue, as the driver has set it up and as far as the device has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Entries.
    pub size: u16,
    /// Whether the driver has enabled it.
    pub ready: bool,
    /// Guest-physical address of the descriptors.
    pub descriptors: u64,
    /// Guest-physical address of the driver's ring.
    pub driver: u64,
    /// Guest-physical address of the device's ring.
    pub device: u64,
    /// Position in the driver's ring.
    pub next_avail: u16,
    /// Position in the device's ring.
    pub next_used: u16,
}

impl QueueState {
    pub(crate) fn unconfigured(max: u16) -> Self {
        Self {
            size: max,
            ready: false,
            descriptors: 0,
            driver: 0,
            device: 0,
            next_avail: 0,
            next_used: 0,
        }
    }

    /// The queue, for a device that offers at most `max` entries.
    pub(crate) fn queue(&self, max: u16, event_idx: bool) -> Result<Queue, virtio_queue::Error> {
        virtio_queue::QueueState {
            max_size: max,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: event_idx,
            size: self.size,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.driver,
            used_ring: self.device,
        }
        .try_into()
    }

    /// Takes over how far the queue has come.
    pub(crate) fn follow(&mut self, queue: &Queue) {
        self.next_avail = queue.next_avail();
        self.next_used = queue.next_used();
    }
}

/// What a device adds to its transport's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "device", rename_all = "snake_case")]
pub enum DeviceState {
    /// [`block::Block`]
    Block(block::BlockState),
    /// [`net::Net`]
    Net(net::NetState),
    /// [`entropy::Entropy`]
    Entropy(entropy::EntropyState),
    /// [`console::Console`]
    Console(console::ConsoleState),
    /// [`balloon::Balloon`]
    Balloon(balloon::BalloonState),
}

/// A transport with its device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// [`TransportState::VERSION`].
    pub version: u32,
    /// The device status register.
    pub status: u32,
    /// InterruptStatus.
    pub interrupt: u32,
    /// What the driver has accepted.
    pub driver_features: u64,
    /// The selection registers: device features, driver features, queue.
    pub selected: [u32; 3],
    /// ConfigGeneration.
    pub generation: u32,
    /// Its queues.
    pub queues: Vec<QueueState>,
    /// The device.
    pub device: DeviceState,
}

impl TransportState {
    /// Changes with the layout of the state.
    pub const VERSION: u32 = 1;
}

/// A state is not one of this device.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It was saved in another layout.
    #[error("the state of a device has version {0}, not {expected}", expected = TransportState::VERSION)]
    Version(u32),
    /// It is another device's.
    #[error("the state is not one of a {0} device")]
    Kind(&'static str),
    /// It cannot be: a queue that is none, features that were never offered.
    #[error("the state of the {device} device cannot be: {why}")]
    Impossible {
        /// Whose.
        device: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The system said no.
    #[error("cannot make the device's events")]
    Io(#[from] std::io::Error),
}
