//! Every device with a driver, and what a good driver asks of it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixDatagram, UnixStream};

use bulkhead_virtio::balloon::Balloon;
use bulkhead_virtio::block::{Backing, Block};
use bulkhead_virtio::console::Console;
use bulkhead_virtio::entropy::Entropy;
use bulkhead_virtio::net::Net;
use bulkhead_virtio::testing::{BUFFERS, Driver, NEXT, WRITE};
use bulkhead_virtio::{QUEUE_NOTIFY, VirtioDevice};

/// Bytes of the disk.
const DISK: u64 = 1 << 20;
const CONTROL_IN: usize = 2;
/// A frame with its header.
const FRAME: [u8; 60] = [7; 60];

/// The other side of a device.
pub enum Outside {
    Nothing,
    /// The disk's file.
    File(File),
    /// What the card's frames go to.
    Wire(UnixDatagram),
    /// What the agent's bytes go to.
    Agent(UnixStream),
}

impl Outside {
    /// Something comes in, and what has gone out is taken away.
    pub fn stir(&mut self, bytes: &[u8]) {
        match self {
            Self::Wire(wire) => {
                while wire.recv(&mut [0; 64]).is_ok() {}
                let _ = wire.send(bytes);
            }
            Self::Agent(agent) => {
                while agent.read(&mut [0; 4096]).is_ok_and(|length| length > 0) {}
                let _ = agent.write(bytes);
            }
            Self::Nothing | Self::File(_) => {}
        }
    }
}

type Parts = (Box<dyn VirtioDevice>, usize, Outside);

/// Every device, with the queue that its driver talks on first.
pub fn devices() -> Vec<Parts> {
    let (agent, port) = UnixStream::pair().unwrap();
    agent.set_nonblocking(true).unwrap();
    let (wire, tap) = UnixDatagram::pair().unwrap();
    wire.set_nonblocking(true).unwrap();
    tap.set_nonblocking(true).unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(DISK).unwrap();
    let scratch = Backing::scratch(file.try_clone().unwrap()).unwrap();
    let console = Console::new(port.into(), Some(Box::new(|_| {}))).unwrap();
    vec![
        (Box::new(Entropy::new()), 0, Outside::Nothing),
        (Box::new(Balloon::new().0), 0, Outside::Nothing),
        (
            Box::new(Block::new(scratch, "scratch")),
            0,
            Outside::File(file),
        ),
        (
            Box::new(Net::on(tap.into(), [2; 6])),
            1,
            Outside::Wire(wire),
        ),
        (Box::new(console), 3, Outside::Agent(agent)),
    ]
}

/// A device with its driver.
pub struct Case {
    pub name: &'static str,
    pub driver: Driver,
    /// The queue that its driver talks on first.
    pub queue: usize,
    pub outside: Outside,
    answers: Vec<(u32, u32)>,
    /// How many faults were looked at.
    told: usize,
}

impl Case {
    /// Every device, plugged in and not started.
    pub fn all() -> Vec<Self> {
        let cases = devices().into_iter();
        cases
            .map(|(device, queue, outside)| Self {
                name: device.name(),
                driver: Driver::new(device),
                queue,
                outside,
                answers: Vec::new(),
                told: 0,
            })
            .collect()
    }

    /// Why the device is broken, if it is. It was told once, and the driver sees it.
    pub fn why_broken(&mut self) -> Option<String> {
        let broken = self.driver.read(0x70) & 64 != 0;
        let mut faults = self.driver.faults().split_off(self.told);
        self.told += faults.len();
        assert_eq!(faults.len(), usize::from(broken), "{faults:?}");
        faults.pop()
    }

    /// Starts the device anew and has it serve a request, to which it is driven from here.
    pub fn serves_again(&mut self) {
        self.driver.start(0, 16);
        self.serves();
    }

    /// Has the device, as it is, serve a request.
    pub fn serves(&mut self) {
        self.ask();
        self.driver.pump();
        let answered = self.is_answered();
        assert!(answered, "{}: {:?}", self.name, self.answers);
        assert_eq!(self.driver.read(0x70), 15, "{}", self.name);
    }

    /// Asks for something, as a good driver does.
    pub fn ask(&mut self) {
        let (driver, queue) = (&mut self.driver, self.queue);
        self.answers.clear();
        let waits_on = if self.name == "console" {
            CONTROL_IN
        } else {
            queue
        };
        driver.used(waits_on);
        let at = BUFFERS + 0x4_0000;
        let pieces: &[(u64, u32, u16)] = match (self.name, &mut self.outside) {
            ("entropy", _) => &[(at, 64, WRITE)],
            ("balloon", _) => {
                driver.put(at, &page_number().to_le_bytes());
                driver.put(u64::from(page_number()) * 4096, &[7; 4096]);
                &[(at, 4, 0)]
            }
            ("block", Outside::File(file)) => {
                file.write_all_at(&[0x5a; 512], 3 * 512).unwrap();
                driver.put(at, &crate::block::header(0, 3));
                driver.put(at + 0x1000, &[0; 512]);
                driver.put(at + 0x2000, &[9]);
                &[
                    (at, 16, 0),
                    (at + 0x1000, 512, WRITE),
                    (at + 0x2000, 1, WRITE),
                ]
            }
            ("net", Outside::Wire(wire)) => {
                while wire.recv(&mut [0; 64]).is_ok() {}
                driver.put(at, &FRAME);
                &[(at, 20, 0), (at + 20, 40, 0)]
            }
            _ => {
                driver.describe(Driver::base(CONTROL_IN), 0, at + 0x1000, 64, WRITE, 0);
                driver.publish(CONTROL_IN, 0);
                driver.write(QUEUE_NOTIFY, u32::try_from(CONTROL_IN).unwrap());
                // Of port 1, that it is ready.
                driver.put(at, &[1, 0, 0, 0, 3, 0, 1, 0]);
                &[(at, 8, 0)]
            }
        };
        for (index, (address, length, flags)) in (0u16..).zip(pieces) {
            let next = if usize::from(index) + 1 == pieces.len() {
                0
            } else {
                NEXT
            };
            let table = Driver::base(queue);
            driver.describe(table, index, *address, *length, flags | next, index + 1);
        }
        driver.publish(queue, 0);
        driver.write(QUEUE_NOTIFY, u32::try_from(queue).unwrap());
    }

    /// Whether what was asked for last is there by now, as it has to be.
    pub fn is_answered(&mut self) -> bool {
        let at = BUFFERS + 0x4_0000;
        let driver = &mut self.driver;
        let queue = if self.name == "console" {
            CONTROL_IN
        } else {
            self.queue
        };
        self.answers.extend(driver.used(queue));
        match (self.name, &self.outside) {
            ("entropy", _) => self.answers == [(0, 64)],
            ("balloon", _) => {
                self.answers == [(0, 0)] && driver.get(u64::from(page_number()) * 4096, 1) == [0]
            }
            ("block", _) => {
                self.answers == [(0, 513)]
                    && driver.get(at + 0x1000, 512) == [0x5a; 512]
                    && driver.get(at + 0x2000, 1) == [0]
            }
            ("net", Outside::Wire(wire)) => {
                let mut found = [0; 100];
                self.answers == [(0, 0)]
                    && wire
                        .recv(&mut found)
                        .is_ok_and(|length| found[..length] == FRAME)
            }
            _ => self.answers.len() == 1 && self.answers[0].1 >= 8,
        }
    }
}

/// One that nothing else is in.
fn page_number() -> u32 {
    u32::try_from(BUFFERS / 4096).unwrap() + 0x80
}
