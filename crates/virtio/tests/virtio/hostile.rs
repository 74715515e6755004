//! Chains that no driver makes, put to every device.

use std::os::unix::net::{UnixDatagram, UnixStream};

use bulkhead_virtio::VirtioDevice;
use bulkhead_virtio::balloon::Balloon;
use bulkhead_virtio::block::{Backing, Block};
use bulkhead_virtio::console::Console;
use bulkhead_virtio::entropy::Entropy;
use bulkhead_virtio::net::Net;
use bulkhead_virtio::testing::{BUFFERS, Driver, INDIRECT, MEMORY, NEXT, WRITE, misbehave};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

type Case = (Box<dyn VirtioDevice>, usize, Box<dyn std::any::Any>);

/// Every device, with the queue that its driver talks on first and what keeps its other
/// side open.
fn devices() -> Vec<Case> {
    let (agent, port) = UnixStream::pair().unwrap();
    agent.set_nonblocking(true).unwrap();
    let (wire, tap) = UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    let scratch = tempfile::tempfile().unwrap();
    scratch.set_len(1 << 20).unwrap();
    let console = Console::new(port.into(), Some(Box::new(|_| {}))).unwrap();
    vec![
        (Box::new(Entropy::new()), 0, Box::new(())),
        (Box::new(Balloon::new().0), 0, Box::new(())),
        (
            Box::new(Block::new(Backing::scratch(scratch).unwrap(), "scratch")),
            0,
            Box::new(()),
        ),
        (Box::new(Net::on(tap.into(), [2; 6])), 1, Box::new(wire)),
        (Box::new(console), 3, Box::new(agent)),
    ]
}

/// Puts a chain to every device and expects all of them to give up, for this reason.
fn breaks(why: &str, make: impl Fn(&mut Driver, usize)) {
    for (device, queue, _kept) in devices() {
        let name = device.name();
        let mut driver = Driver::new(device);
        driver.start(0, 16);
        make(&mut driver, queue);
        driver.kick(queue);
        let faults = driver.faults();
        assert_eq!(faults.len(), 1, "{name}: {faults:?}");
        assert!(faults[0].contains(why), "{faults:?} lacks {why:?}");
        assert_eq!(driver.read(0x70) & 64, 64, "{name} needs a reset");
        assert!(driver.used(queue).is_empty());
    }
}

#[test]
fn circles() {
    breaks("circle", |driver, queue| {
        let base = Driver::base(queue);
        driver.describe(base, 0, BUFFERS, 4, NEXT, 1);
        driver.describe(base, 1, BUFFERS, 4, NEXT, 0);
        driver.publish(queue, 0);
    });
    // Within an indirect table.
    breaks("circle", |driver, queue| {
        let base = Driver::base(queue);
        let table = BUFFERS + 0x1000;
        driver.describe(table, 0, BUFFERS, 4, NEXT, 1);
        driver.describe(table, 1, BUFFERS, 4, NEXT, 0);
        driver.describe(base, 0, table, 32, INDIRECT, 0);
        driver.publish(queue, 0);
    });
}

#[test]
fn tables_that_are_none() {
    for (table, length, flags) in [
        (BUFFERS, 15, INDIRECT),
        (BUFFERS, 0, INDIRECT),
        (u64::MAX - 15, 16, INDIRECT),
        (MEMORY, 16, INDIRECT),
        (BUFFERS, !15, INDIRECT),
    ] {
        breaks("circle or out of its table", |driver, queue| {
            driver.describe(Driver::base(queue), 0, table, length, flags, 0);
            driver.publish(queue, 0);
        });
    }
    // A table in a table.
    breaks("circle or out of its table", |driver, queue| {
        let table = BUFFERS + 0x1000;
        driver.describe(table, 0, table, 16, INDIRECT, 0);
        driver.describe(Driver::base(queue), 0, table, 16, INDIRECT, 0);
        driver.publish(queue, 0);
    });
}

#[test]
fn buffers_outside_of_memory() {
    for (address, length) in [
        (MEMORY, 1),
        (MEMORY - 4, 8),
        (u64::MAX, 1),
        (u64::MAX - 7, 16),
        (0, u32::MAX),
        (BUFFERS, u32::MAX),
    ] {
        for flags in [0, WRITE] {
            // The balloon's driver is asked for nothing that it could write to: it is the
            // same walk.
            breaks("leads out of memory", |driver, queue| {
                driver.describe(Driver::base(queue), 0, address, length, flags, 0);
                driver.publish(queue, 0);
            });
        }
    }
}

#[test]
fn more_than_4_gib_in_one_chain() {
    breaks("leads", |driver, queue| {
        let base = Driver::base(queue);
        for index in 0..15 {
            driver.describe(base, index, BUFFERS, u32::MAX, NEXT, index + 1);
        }
        driver.publish(queue, 0);
    });
}

#[test]
fn a_descriptor_that_is_not_in_the_table() {
    breaks("out of its table", |driver, queue| {
        driver.publish(queue, 16);
    });
    breaks("out of its table", |driver, queue| {
        driver.describe(Driver::base(queue), 0, BUFFERS, 4, NEXT, 500);
        driver.publish(queue, 0);
    });
}

#[test]
fn to_be_read_after_to_be_written() {
    breaks("to read after one to write", |driver, queue| {
        let base = Driver::base(queue);
        driver.describe(base, 0, BUFFERS, 64, WRITE | NEXT, 1);
        driver.describe(base, 1, BUFFERS, 64, 0, 0);
        driver.publish(queue, 0);
    });
}

#[test]
fn a_ring_that_jumps() {
    breaks("is damaged", |driver, queue| {
        driver.describe(Driver::base(queue), 0, BUFFERS, 4, 0, 0);
        // 0x4000 is where the available ring is; 17 entries of 16.
        driver.put(Driver::base(queue) + 0x4002, &17u16.to_le_bytes());
    });
}

#[test]
fn overlapping_buffers_are_a_guests_own_affair() {
    for (device, queue, _kept) in devices() {
        let name = device.name();
        if name == "block" {
            continue;
        }
        let mut driver = Driver::new(device);
        driver.start(0, 16);
        let base = Driver::base(queue);
        // Over each other, and over the rings themselves.
        for (index, address) in [
            (0, BUFFERS),
            (1, BUFFERS + 2),
            (2, base),
            (3, base + 0x8000),
        ] {
            let flags = if index == 3 { 0 } else { NEXT };
            driver.describe(base, index, address, 8, flags, index + 1);
        }
        driver.publish(queue, 0);
        driver.kick(queue);
        assert!(driver.faults().len() <= 1, "{name}");
    }
}

#[test]
fn anything_at_all() {
    let mut random = StdRng::seed_from_u64(0x0006_7565_7374);
    for _ in 0..300 {
        for (device, ..) in devices() {
            let mut bytes = vec![0; random.random_range(0..1500)];
            random.fill(&mut bytes[..]);
            misbehave(device, &bytes, |_| {});
        }
    }
}
