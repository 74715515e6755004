//! What a guest does to its devices.

use std::os::unix::net::{UnixDatagram, UnixStream};

use bulkhead_virtio::balloon::Balloon;
use bulkhead_virtio::block::{Backing, Block};
use bulkhead_virtio::console::Console;
use bulkhead_virtio::entropy::Entropy;
use bulkhead_virtio::net::Net;
use bulkhead_virtio::testing::misbehave;

use crate::Target;

/// A start as drivers make it, and then each kind of deed once: what mutations start from.
fn deeds() -> Vec<Vec<u8>> {
    let mut bytes = vec![0, 6, 0, 0];
    for (deed, what, value) in [
        // A chain of two descriptors, one to read and one to write, published and kicked.
        (0x0007_u32, 0_u32, 0x0101_0010_u32),
        (0x0107, 0x800, 0x0002_0200),
        (10, 0, 0),
        (13, 0, 40),
        (0x0007, 1, 0x0000_0010),
        (10, 1, 0),
        (0x0007, 3, 0x0000_0008),
        (6, 0, 0x0001_0000),
        (10, 3, 0),
        (15, 0, 0),
        (4, 0x4002, 9),
        (2, 0, 4),
        (12, 0, 0),
        (14, 0, 0),
    ] {
        for word in [deed, what, value] {
            bytes.extend(word.to_le_bytes());
        }
    }
    vec![bytes]
}

pub(crate) const ENTROPY: Target = Target {
    name: "virtio_entropy",
    run: |bytes| misbehave(Box::new(Entropy::new()), bytes, |_| {}),
    seeds: deeds,
    tries: 600,
};

pub(crate) const BALLOON: Target = Target {
    name: "virtio_balloon",
    run: |bytes| misbehave(Box::new(Balloon::new().0), bytes, |_| {}),
    seeds: deeds,
    tries: 600,
};

pub(crate) const BLOCK: Target = Target {
    name: "virtio_block",
    run: |bytes| {
        let Ok(file) = tempfile::tempfile() else {
            return;
        };
        if file.set_len(1 << 16).is_err() {
            return;
        }
        let Ok(copy) = file.try_clone() else { return };
        let Ok(backing) = Backing::scratch(copy) else {
            return;
        };
        misbehave(Box::new(Block::new(backing, "scratch")), bytes, |_| {});
        let length = file.metadata().map(|metadata| metadata.len());
        assert_eq!(length.ok(), Some(1 << 16), "the disk has another size");
    },
    seeds: deeds,
    tries: 600,
};

pub(crate) const NET: Target = Target {
    name: "virtio_net",
    run: |bytes| {
        let Ok((wire, tap)) = UnixDatagram::pair() else {
            return;
        };
        if tap.set_nonblocking(true).is_err() || wire.set_nonblocking(true).is_err() {
            return;
        }
        let card = Net::on(tap.into(), [2, 0, 0, 0, 0, 1]);
        misbehave(Box::new(card), bytes, |number| {
            // Frames of any length come in; those that go out are taken.
            let _ = wire.send(&vec![number; 16 * usize::from(number)]);
            let _ = wire.recv(&mut [0; 64]);
        });
    },
    seeds: deeds,
    tries: 600,
};

pub(crate) const CONSOLE: Target = Target {
    name: "virtio_console",
    run: |bytes| {
        use std::io::{Read, Write};
        let Ok((mut agent, port)) = UnixStream::pair() else {
            return;
        };
        if agent.set_nonblocking(true).is_err() {
            return;
        }
        let Ok(console) = Console::new(port.into(), Some(Box::new(|_| {}))) else {
            return;
        };
        misbehave(Box::new(console), bytes, |number| {
            if number == 255 {
                let _ = agent.shutdown(std::net::Shutdown::Both);
            } else if number % 2 == 0 {
                let _ = agent.write(&vec![number; 16 * usize::from(number)]);
            } else {
                let _ = agent.read(&mut [0; 256]);
            }
        });
    },
    seeds: deeds,
    tries: 600,
};
