//! The device: its configuration space and life.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::{NetState, tap};
use crate::GuestMemory;
use crate::context::Context;
use crate::device::{Fault, Readiness, Source, VirtioDevice, read_from};
use crate::persist::{DeviceState, RestoreError};

/// VIRTIO_ID_NET
const ID: u32 = 1;
const QUEUE_SIZES: [u16; 2] = [256, 256];
pub(super) const RECEIVE: usize = 0;
pub(super) const TRANSMIT: usize = 1;

/// Feature bits, section 5.1.3.
pub(super) mod feature {
    pub(crate) const CSUM: u64 = 1;
    pub(crate) const GUEST_CSUM: u64 = 1 << 1;
    pub(crate) const MAC: u64 = 1 << 5;
    pub(crate) const GUEST_TSO4: u64 = 1 << 7;
    pub(crate) const GUEST_TSO6: u64 = 1 << 8;
    pub(crate) const GUEST_UFO: u64 = 1 << 10;
    pub(crate) const HOST_TSO4: u64 = 1 << 11;
    pub(crate) const HOST_TSO6: u64 = 1 << 12;
    pub(crate) const HOST_UFO: u64 = 1 << 14;
    pub(crate) const MRG_RXBUF: u64 = 1 << 15;
}

/// `struct virtio_net_hdr` with the number of buffers, section 5.1.6.
pub(super) const HEADER: usize = 12;
/// The largest segment with its link header, rounded up.
const MAX_FRAME: usize = 65536 + 64;

/// A network card.
#[derive(Debug)]
pub struct Net {
    pub(super) tap: OwnedFd,
    mac: [u8; 6],
    /// What the driver has accepted.
    pub(super) features: u64,
    /// A frame that came from the tap and is on its way to the guest.
    pub(super) frame: Box<[u8]>,
    /// Its length with the header; 0 when there is none.
    pub(super) frame_length: usize,
    /// Whether the guest has no room: the tap is left alone until it says that it has.
    pub(super) no_room: bool,
    /// Whether the tap has failed, as one does whose interface was deleted: it stays ready
    /// for reading from then on, so it is left alone until the driver shows life.
    pub(super) failed: bool,
    active: bool,
}

impl Net {
    /// A card on a tap device with `IFF_VNET_HDR`.
    ///
    /// # Errors
    /// That it is no such device.
    pub fn new(tap: OwnedFd, mac: [u8; 6]) -> io::Result<Self> {
        tap::set_nonblocking(&tap)?;
        tap::set_header_length(&tap, libc::c_int::try_from(HEADER).unwrap_or(0))?;
        Ok(Self::on(tap, mac))
    }

    /// A card on anything that takes and gives frames, one a call. For tests.
    #[doc(hidden)]
    pub fn on(descriptor: OwnedFd, mac: [u8; 6]) -> Self {
        Self {
            tap: descriptor,
            mac,
            features: 0,
            frame: vec![0; HEADER + MAX_FRAME].into_boxed_slice(),
            frame_length: 0,
            no_room: false,
            failed: false,
            active: false,
        }
    }

    fn tell_tap(&self) {
        let mut offloads = 0;
        for (feature, offload) in [
            (feature::GUEST_CSUM, tap::offload::CSUM),
            (feature::GUEST_TSO4, tap::offload::TSO4),
            (feature::GUEST_TSO6, tap::offload::TSO6),
            (feature::GUEST_UFO, tap::offload::UFO),
        ] {
            if self.features & feature != 0 {
                offloads |= offload;
            }
        }
        // Without sums there are no segments, which drivers know too (section 5.1.3.1).
        if offloads & tap::offload::CSUM == 0 {
            offloads = 0;
        }
        let told = tap::set_offloads(&self.tap, offloads)
            // Kernels from 6.2 on may not know fragments of UDP by this name any more.
            .or_else(|_| tap::set_offloads(&self.tap, offloads & !tap::offload::UFO));
        if let Err(error) = told {
            tracing::warn!(%error, "a tap device does not take offloads");
        }
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> u32 {
        ID
    }

    fn name(&self) -> &'static str {
        "net"
    }

    fn features(&self) -> u64 {
        feature::CSUM
            | feature::GUEST_CSUM
            | feature::MAC
            | feature::GUEST_TSO4
            | feature::GUEST_TSO6
            | feature::GUEST_UFO
            | feature::HOST_TSO4
            | feature::HOST_TSO6
            | feature::HOST_UFO
            | feature::MRG_RXBUF
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_from(&self.mac, offset, data);
    }

    fn activate(&mut self, features: u64, _memory: &GuestMemory) -> Result<(), Fault> {
        self.features = features;
        self.active = true;
        self.no_room = false;
        self.failed = false;
        self.tell_tap();
        Ok(())
    }

    fn queue_event(&mut self, context: &mut Context<'_>, queue: usize) -> Result<(), Fault> {
        match queue {
            RECEIVE => {
                self.no_room = false;
                self.failed = false;
                self.receive(context)
            }
            TRANSMIT => self.transmit(context),
            _ => Ok(()),
        }
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source {
            descriptor: self.tap.as_raw_fd(),
            readable: self.active && !self.no_room && !self.failed,
            writable: false,
        }]
    }

    fn source_event(
        &mut self,
        context: &mut Context<'_>,
        _source: usize,
        ready: Readiness,
    ) -> Result<(), Fault> {
        if ready.readable {
            self.receive(context)?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.features = 0;
        self.frame_length = 0;
        self.active = false;
        self.no_room = false;
        self.failed = false;
    }

    fn save(&self) -> DeviceState {
        // A frame on its way is lost, as frames are.
        DeviceState::Net(NetState {
            mac: self.mac,
            features: self.features,
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Net(state) = state else {
            return Err(RestoreError::Kind("net"));
        };
        // The driver has read the address and keeps it.
        self.mac = state.mac;
        Ok(())
    }
}
