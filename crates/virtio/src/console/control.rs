//! Control messages, section 5.3.6.2.

use super::AGENT_PORT;

/// Bytes of a message without a name.
pub(super) const MESSAGE: usize = 8;

/// `VIRTIO_CONSOLE_*`
mod event {
    pub(super) const DEVICE_READY: u16 = 0;
    pub(super) const PORT_ADD: u16 = 1;
    pub(super) const PORT_READY: u16 = 3;
    pub(super) const CONSOLE_PORT: u16 = 4;
    pub(super) const PORT_OPEN: u16 = 6;
    pub(super) const PORT_NAME: u16 = 7;
}

/// What a driver tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// It wants to know which ports there are.
    DeviceReady,
    /// It has a port.
    PortReady(u32),
    /// Somebody has opened a port, or closed it.
    PortOpen(u32, bool),
    /// It has failed, or says what nobody asked for.
    Other,
}

pub(super) fn parse(message: [u8; MESSAGE]) -> Told {
    let [a, b, c, d, e, f, g, h] = message;
    let port = u32::from_le_bytes([a, b, c, d]);
    match (u16::from_le_bytes([e, f]), u16::from_le_bytes([g, h])) {
        (event::DEVICE_READY, 1) => Told::DeviceReady,
        (event::PORT_READY, 1) => Told::PortReady(port),
        (event::PORT_OPEN, open) => Told::PortOpen(port, open != 0),
        _ => Told::Other,
    }
}

fn message(port: u32, event: u16, value: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(MESSAGE);
    bytes.extend(port.to_le_bytes());
    bytes.extend(event.to_le_bytes());
    bytes.extend(value.to_le_bytes());
    bytes
}

pub(super) fn add(port: u32) -> Vec<u8> {
    message(port, event::PORT_ADD, 1)
}

pub(super) fn is_console(port: u32) -> Vec<u8> {
    message(port, event::CONSOLE_PORT, 1)
}

pub(super) fn open(port: u32, open: bool) -> Vec<u8> {
    message(port, event::PORT_OPEN, u16::from(open))
}

pub(super) fn name(port: u32) -> Vec<u8> {
    let mut bytes = message(port, event::PORT_NAME, 1);
    bytes.extend(AGENT_PORT.as_bytes());
    // Linux counts the end of the string too.
    bytes.push(0);
    bytes
}
