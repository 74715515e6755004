//! Who answers when the guest touches a port or an address that is not memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bulkhead_virtio::MmioDevice;

use crate::end::Cause;
use crate::serial::Serial;
use crate::{acpi, layout};

/// ACPI's sleep control register: SLP_EN, and where SLP_TYP is.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;

/// The keyboard controller's command and status port, by which kernels reset PCs that have
/// no ACPI, and the command.
const KEYBOARD_COMMAND: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;

/// How many accesses to nothing are logged.
const LOGGED: u32 = 32;

/// Everything that answers.
pub(crate) struct Bus {
    pub(crate) serial: Serial,
    pub(crate) devices: Vec<Arc<MmioDevice>>,
    unclaimed: AtomicU32,
}

impl Bus {
    pub(crate) fn new(serial: Serial, devices: Vec<Arc<MmioDevice>>) -> Self {
        Self {
            serial,
            devices,
            unclaimed: AtomicU32::new(0),
        }
    }

    pub(crate) fn read_port(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(offset) = serial_register(port) {
            data.fill_with(|| self.serial.read(offset));
        } else if matches!(port, layout::SLEEP_STATUS | KEYBOARD_COMMAND) {
            data.fill(0);
        } else {
            self.note("read of port", u64::from(port), data.len());
        }
    }

    /// What the guest wants by a write, if that is its end.
    pub(crate) fn write_port(&self, port: u16, data: &[u8]) -> Option<Cause> {
        if let Some(offset) = serial_register(port) {
            self.serial.write(offset, data);
            return None;
        }
        let value = data.first().copied()?;
        match port {
            layout::SLEEP_CONTROL
                if value == acpi::POWER_OFF << SLEEP_TYPE_SHIFT | SLEEP_ENABLE =>
            {
                Some(Cause::PoweredOff)
            }
            layout::RESET if value == acpi::RESET => Some(Cause::Reset),
            KEYBOARD_COMMAND if value == PULSE_RESET => Some(Cause::Reset),
            _ => {
                self.note("write to port", u64::from(port), data.len());
                None
            }
        }
    }

    pub(crate) fn read_memory(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        match self.device(address) {
            Some((device, offset)) => device.read(offset, data),
            None => self.note("read of address", address, data.len()),
        }
    }

    pub(crate) fn write_memory(&self, address: u64, data: &[u8]) {
        match self.device(address) {
            Some((device, offset)) => device.write(offset, data),
            None => self.note("write to address", address, data.len()),
        }
    }

    fn device(&self, address: u64) -> Option<(&MmioDevice, u64)> {
        let (index, offset) = layout::device_at(address)?;
        Some((self.devices.get(index)?, offset))
    }

    /// Kernels look for hardware that is not there; that is no fault, and too much to tell.
    fn note(&self, what: &str, address: u64, length: usize) {
        if self.unclaimed.load(Ordering::Relaxed) < LOGGED {
            self.unclaimed.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(
                address = format_args!("{address:#x}"),
                length,
                "{what} of nobody"
            );
        }
    }
}

fn serial_register(port: u16) -> Option<u8> {
    let offset = port.checked_sub(layout::SERIAL_PORT)?;
    u8::try_from(offset).ok().filter(|offset| *offset < 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bus() -> Bus {
        let interrupt = vmm_sys_util::eventfd::EventFd::new(libc::EFD_NONBLOCK).unwrap();
        Bus::new(Serial::new(Box::new(|_| {}), interrupt), Vec::new())
    }

    #[test]
    fn what_is_not_there_reads_as_ones_and_takes_anything() {
        let bus = bus();
        let mut data = [0; 8];
        bus.read_port(0x70, &mut data);
        assert_eq!(data, [0xff; 8]);
        data = [0; 8];
        bus.read_memory(0xd000_0000, &mut data);
        assert_eq!(data, [0xff; 8]);
        for port in 0..=u16::MAX {
            bus.read_port(port, &mut data);
            assert_eq!(bus.write_port(port, &[0; 8]), None);
            assert_eq!(bus.write_port(port, &[]), None);
        }
        bus.write_memory(u64::MAX, &[0; 8]);
    }

    #[test]
    fn a_guest_ends_itself() {
        let bus = bus();
        assert_eq!(
            bus.write_port(layout::SLEEP_CONTROL, &[0x34]),
            Some(Cause::PoweredOff)
        );
        assert_eq!(bus.write_port(layout::SLEEP_CONTROL, &[0x20]), None);
        assert_eq!(bus.write_port(layout::RESET, &[1]), Some(Cause::Reset));
        assert_eq!(bus.write_port(0x64, &[0xfe]), Some(Cause::Reset));
    }
}
