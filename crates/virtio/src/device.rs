//! What a device is to its transport.

use std::os::fd::RawFd;

use crate::persist::{DeviceState, RestoreError};
use crate::{Context, GuestMemory};

/// A guest did what no driver does. The device is broken from then on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub(crate) String);

impl Fault {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// What a descriptor is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The descriptor; the device holds it open for as long as it exists.
    pub descriptor: RawFd,
    /// Whether it is of interest that it can be read.
    pub readable: bool,
    /// Whether it is of interest that it can be written.
    pub writable: bool,
}

/// What a descriptor is ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// It can be read, or has ended.
    pub readable: bool,
    /// It can be written, or has ended.
    pub writable: bool,
}

/// A device behind a transport. Its queues belong to the transport, which lends them with
/// each event: a device that is not active gets none.
pub trait VirtioDevice: Send {
    /// The device type, section 5.
    fn id(&self) -> u32;

    /// For logs and faults.
    fn name(&self) -> &'static str;

    /// Feature bits of its type; the transport adds those of every device.
    fn features(&self) -> u64;

    /// The most entries of each of its queues, powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Reads its configuration space; what lies beyond it stays as it is, zeroes.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes its configuration space; most devices have nothing to write there.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver has accepted these features and is about to use the queues.
    ///
    /// # Errors
    /// That it cannot work so.
    fn activate(&mut self, features: u64, memory: &GuestMemory) -> Result<(), Fault>;

    /// The driver has put something into a queue, or may have.
    ///
    /// # Errors
    /// See [`Fault`].
    fn queue_event(&mut self, context: &mut Context<'_>, queue: usize) -> Result<(), Fault>;

    /// Descriptors of its own, in a fixed order, with what they are of interest for now.
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    /// One of them is ready.
    ///
    /// # Errors
    /// See [`Fault`].
    fn source_event(
        &mut self,
        _context: &mut Context<'_>,
        _source: usize,
        _ready: Readiness,
    ) -> Result<(), Fault> {
        Ok(())
    }

    /// Forgets what the driver had told it.
    fn reset(&mut self);

    /// What it would have to be told to go on where it is. Its files are not part of it.
    fn save(&self) -> DeviceState;

    /// Goes on from there. Called before it is active.
    ///
    /// # Errors
    /// That the state is another device's.
    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError>;
}

/// Reads from a configuration space that is laid out in these bytes.
pub(crate) fn read_from(space: &[u8], offset: u64, data: &mut [u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    for (place, byte) in data.iter_mut().zip(space.get(start..).unwrap_or_default()) {
        *place = *byte;
    }
}
