//! The device: its configuration space and life.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::ConsoleState;
use super::control;
use crate::GuestMemory;
use crate::context::Context;
use crate::device::{Fault, Readiness, Source, VirtioDevice, read_from};
use crate::persist::{DeviceState, RestoreError};

/// VIRTIO_ID_CONSOLE
const ID: u32 = 3;
/// VIRTIO_CONSOLE_F_MULTIPORT
const MULTIPORT: u64 = 1 << 1;

/// Numbers of the ports.
pub(super) const CONSOLE_PORT: u32 = 0;
pub(super) const AGENT_PORT: u32 = 1;
const PORTS: u32 = 2;

/// The queues, section 5.3.2: two for port 0, two for control, two for each further port.
pub(super) mod queue {
    pub(crate) const CONSOLE_OUT: usize = 1;
    pub(crate) const CONTROL_IN: usize = 2;
    pub(crate) const CONTROL_OUT: usize = 3;
    pub(crate) const AGENT_IN: usize = 4;
    pub(crate) const AGENT_OUT: usize = 5;
}
const QUEUE_SIZES: [u16; 6] = [16, 64, 32, 32, 128, 128];

/// Control messages that may wait: a driver asks for six or so and takes them at once.
pub(super) const MAX_WAITING: usize = 64;

/// Who keeps what a guest's kernel says.
pub type Words = Box<dyn FnMut(&[u8]) + Send>;

/// The device.
pub struct Console {
    pub(super) agent: OwnedFd,
    pub(super) words: Option<Words>,
    /// Control messages for the driver, which gives buffers for them as it likes.
    pub(super) waiting: VecDeque<Vec<u8>>,
    /// Whether somebody in the guest has the agent's port open.
    pub(super) guest_open: bool,
    /// Whether the socket's other end is closed.
    pub(super) hung_up: bool,
    /// Whether the guest has no room for what comes from the socket.
    pub(super) no_room: bool,
    /// Whether the socket has no room for what comes from the guest.
    pub(super) full: bool,
    /// How many bytes of the chain that is next were sent already.
    pub(super) sent: usize,
    active: bool,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("guest_open", &self.guest_open)
            .field("hung_up", &self.hung_up)
            .finish_non_exhaustive()
    }
}

impl Console {
    /// A device whose agent's port is this stream socket. The console is there only where
    /// somebody keeps its words.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(agent: OwnedFd, words: Option<Words>) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&agent)?;
        rustix::fs::fcntl_setfl(&agent, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(Self {
            agent,
            words,
            waiting: VecDeque::new(),
            guest_open: false,
            hung_up: false,
            no_room: false,
            full: false,
            sent: 0,
            active: false,
        })
    }
}

impl VirtioDevice for Console {
    fn id(&self) -> u32 {
        ID
    }

    fn name(&self) -> &'static str {
        "console"
    }

    fn features(&self) -> u64 {
        MULTIPORT
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // Columns and rows, which are not offered; then how many ports there can be.
        let mut space = [0; 8];
        let [.., a, b, c, d] = &mut space;
        [*a, *b, *c, *d] = PORTS.to_le_bytes();
        read_from(&space, offset, data);
    }

    fn activate(&mut self, features: u64, _memory: &GuestMemory) -> Result<(), Fault> {
        if features & MULTIPORT == 0 {
            return Err(Fault::new("the driver of the console knows no ports"));
        }
        self.active = true;
        Ok(())
    }

    fn queue_event(&mut self, context: &mut Context<'_>, queue: usize) -> Result<(), Fault> {
        match queue {
            queue::CONSOLE_OUT => self.console_output(context),
            queue::CONTROL_IN => self.send_control(context),
            queue::CONTROL_OUT => self.receive_control(context),
            queue::AGENT_IN => {
                self.no_room = false;
                self.deliver(context)
            }
            queue::AGENT_OUT => self.collect(context),
            // Nobody types on the console.
            _ => Ok(()),
        }
    }

    fn sources(&self) -> Vec<Source> {
        let usable = self.active && !self.hung_up;
        vec![Source {
            descriptor: self.agent.as_raw_fd(),
            readable: usable && self.guest_open && !self.no_room,
            writable: usable && self.full,
        }]
    }

    fn source_event(
        &mut self,
        context: &mut Context<'_>,
        _source: usize,
        ready: Readiness,
    ) -> Result<(), Fault> {
        if ready.writable && self.full {
            self.collect(context)?;
        }
        if ready.readable {
            self.deliver(context)?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.waiting.clear();
        self.guest_open = false;
        self.no_room = false;
        self.full = false;
        self.sent = 0;
        self.active = false;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Console(ConsoleState {
            console: self.words.is_some(),
            guest_open: self.guest_open,
            hung_up: self.hung_up,
            sent: u32::try_from(self.sent).unwrap_or(0),
            waiting: self.waiting.iter().cloned().collect(),
        })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Console(state) = state else {
            return Err(RestoreError::Kind("console"));
        };
        if state.console != self.words.is_some() {
            return Err(RestoreError::Impossible {
                device: "console",
                why: "its console came or went".to_owned(),
            });
        }
        if state.waiting.len() > MAX_WAITING {
            return Err(RestoreError::Impossible {
                device: "console",
                why: format!("{} messages wait for its driver", state.waiting.len()),
            });
        }
        self.guest_open = state.guest_open;
        self.sent = usize::try_from(state.sent).unwrap_or(0);
        self.waiting = state.waiting.iter().cloned().collect();
        if state.hung_up {
            // There is somebody again, at the other end of the socket that was brought.
            self.waiting.push_back(control::open(AGENT_PORT, true));
        }
        Ok(())
    }
}
