//! As much of a 16550 as a kernel needs to say something: what it sends goes to a sink at
//! once, and nothing ever arrives.

use std::sync::{Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// Registers, by their offset.
mod register {
    /// Transmit and receive buffer; the divisor's low byte.
    pub(super) const DATA: u8 = 0;
    /// Interrupt enable; the divisor's high byte.
    pub(super) const INTERRUPT_ENABLE: u8 = 1;
    /// Interrupt identification when read.
    pub(super) const INTERRUPT_IDENTIFICATION: u8 = 2;
    pub(super) const LINE_CONTROL: u8 = 3;
    pub(super) const MODEM_CONTROL: u8 = 4;
    pub(super) const LINE_STATUS: u8 = 5;
    pub(super) const MODEM_STATUS: u8 = 6;
    pub(super) const SCRATCH: u8 = 7;
}

/// Interrupt enable: when the transmitter is empty.
const ENABLE_TRANSMITTER_EMPTY: u8 = 1 << 1;
/// Interrupt identification: none is pending.
const NO_INTERRUPT: u8 = 1;
/// Interrupt identification: the transmitter is empty.
const TRANSMITTER_EMPTY: u8 = 1 << 1;
/// Line control: the first two registers are the divisor.
const DIVISOR_LATCH: u8 = 1 << 7;
/// Line status: the transmitter takes more, and has sent everything.
const READY: u8 = 1 << 5 | 1 << 6;
/// Modem control: what is sent comes back.
const LOOPBACK: u8 = 1 << 4;
/// Modem status: carrier, ready, clear to send.
const CONNECTED: u8 = 1 << 7 | 1 << 5 | 1 << 4;

/// Who gets what the guest says.
pub(crate) type Sink = Box<dyn FnMut(&[u8]) + Send>;

/// A serial port. Locked by itself.
pub(crate) struct Serial {
    port: Mutex<Port>,
}

struct Port {
    sink: Sink,
    interrupt: EventFd,
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    empty_is_pending: bool,
}

impl Serial {
    pub(crate) fn new(sink: Sink, interrupt: EventFd) -> Self {
        Self {
            port: Mutex::new(Port {
                sink,
                interrupt,
                interrupt_enable: 0,
                line_control: 0,
                modem_control: 0,
                scratch: 0,
                divisor: [0; 2],
                empty_is_pending: false,
            }),
        }
    }

    pub(crate) fn read(&self, offset: u8) -> u8 {
        self.port
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(offset)
    }

    /// Writes one register; several bytes come from a string instruction.
    pub(crate) fn write(&self, offset: u8, bytes: &[u8]) {
        self.port
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(offset, bytes);
    }
}

impl Port {
    fn latched(&self) -> bool {
        self.line_control & DIVISOR_LATCH != 0
    }

    fn read(&mut self, offset: u8) -> u8 {
        match offset {
            register::DATA if self.latched() => self.divisor[0],
            register::INTERRUPT_ENABLE if self.latched() => self.divisor[1],
            register::DATA => 0,
            register::INTERRUPT_ENABLE => self.interrupt_enable,
            register::INTERRUPT_IDENTIFICATION if self.empty_is_pending => {
                self.empty_is_pending = false;
                TRANSMITTER_EMPTY
            }
            register::INTERRUPT_IDENTIFICATION => NO_INTERRUPT,
            register::LINE_CONTROL => self.line_control,
            register::MODEM_CONTROL => self.modem_control,
            register::LINE_STATUS => READY,
            // Looped back, the outputs are the inputs: the driver's test for a port.
            register::MODEM_STATUS if self.modem_control & LOOPBACK != 0 => {
                let control = self.modem_control;
                (control & 1) << 5 | (control & 2) << 3 | (control & 4) << 4 | (control & 8) << 4
            }
            register::MODEM_STATUS => CONNECTED,
            register::SCRATCH => self.scratch,
            _ => 0xff,
        }
    }

    fn write(&mut self, offset: u8, bytes: &[u8]) {
        let Some(&last) = bytes.last() else { return };
        match offset {
            register::DATA if self.latched() => self.divisor[0] = last,
            register::INTERRUPT_ENABLE if self.latched() => self.divisor[1] = last,
            register::DATA => {
                if self.modem_control & LOOPBACK == 0 {
                    (self.sink)(bytes);
                }
                self.transmitted();
            }
            register::INTERRUPT_ENABLE => {
                let newly = last & !self.interrupt_enable;
                self.interrupt_enable = last & 0xf;
                if newly & ENABLE_TRANSMITTER_EMPTY != 0 {
                    self.transmitted();
                }
            }
            register::LINE_CONTROL => self.line_control = last,
            register::MODEM_CONTROL => self.modem_control = last,
            register::SCRATCH => self.scratch = last,
            _ => {}
        }
    }

    fn transmitted(&mut self) {
        if self.interrupt_enable & ENABLE_TRANSMITTER_EMPTY != 0 {
            self.empty_is_pending = true;
            // Only a counter at its end refuses, which has raised the interrupt long since.
            let _ = self.interrupt.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn port() -> (Serial, Arc<Mutex<Vec<u8>>>, EventFd) {
        let said = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&said);
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let serial = Serial::new(
            Box::new(move |bytes| sink.lock().unwrap().extend_from_slice(bytes)),
            interrupt.try_clone().unwrap(),
        );
        (serial, said, interrupt)
    }

    #[test]
    fn what_is_sent_arrives_and_the_divisor_does_not() {
        let (serial, said, interrupt) = port();
        serial.write(3, &[DIVISOR_LATCH | 3]);
        serial.write(0, &[1]);
        serial.write(3, &[3]);
        serial.write(0, b"a");
        serial.write(0, b"bc");
        assert_eq!(*said.lock().unwrap(), b"abc");
        assert_eq!(serial.read(5) & READY, READY);
        assert!(interrupt.read().is_err(), "nobody asked for interrupts");
    }

    #[test]
    fn an_empty_transmitter_interrupts_who_asked() {
        let (serial, _said, interrupt) = port();
        serial.write(1, &[ENABLE_TRANSMITTER_EMPTY]);
        assert_eq!(interrupt.read().unwrap(), 1);
        assert_eq!(serial.read(2), TRANSMITTER_EMPTY);
        assert_eq!(serial.read(2), NO_INTERRUPT);
        serial.write(0, b"x");
        assert_eq!(interrupt.read().unwrap(), 1);
    }

    #[test]
    fn any_register_takes_anything() {
        let (serial, _said, _interrupt) = port();
        for offset in 0..=u8::MAX {
            for value in 0..=u8::MAX {
                serial.write(offset, &[value]);
                serial.read(offset);
            }
            serial.write(offset, &[]);
        }
    }
}
