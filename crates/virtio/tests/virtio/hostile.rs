//! Chains that no driver makes, put to every device.

use std::ops::Range;

use bulkhead_virtio::testing::{BUFFERS, Driver, INDIRECT, MEMORY, NEXT, WRITE, misbehave};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::every::{Case, devices};

/// Puts a chain to every device and expects all of them to give up, for this reason.
fn breaks(why: &str, make: impl Fn(&mut Driver, usize)) {
    breaks_without(0, why, make);
}

/// The same with a driver that has not accepted all features.
fn breaks_without(without: u64, why: &str, make: impl Fn(&mut Driver, usize)) {
    for mut case in Case::all() {
        let (name, queue) = (case.name, case.queue);
        let driver = &mut case.driver;
        driver.start(without, 16);
        make(driver, queue);
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
fn tables_that_nobody_agreed_on() {
    const INDIRECT_DESC: u64 = 1 << 28;
    let table = BUFFERS + 0x1000;
    // On the queues' own, then after a descriptor that is none.
    for first in [0, 1] {
        breaks_without(INDIRECT_DESC, "has not accepted", |driver, queue| {
            let base = Driver::base(queue);
            driver.describe(table, 0, BUFFERS, 4, 0, 0);
            driver.describe(base, 1, table, 16, INDIRECT, 0);
            driver.describe(base, 0, BUFFERS, 4, NEXT, 1);
            driver.publish(queue, 1 - first);
        });
        breaks("a table in the middle", |driver, queue| {
            let base = Driver::base(queue);
            driver.describe(table, 0, BUFFERS, 4, 0, 0);
            driver.describe(base, 1, table, 16, INDIRECT | NEXT, 2);
            driver.describe(base, 2, BUFFERS, 4, 0, 0);
            driver.describe(base, 0, BUFFERS, 4, NEXT, 1);
            driver.publish(queue, 1 - first);
        });
    }
    // A table at the end of a chain is what section 2.7.5.3.2 has devices take.
    let mut driver = Driver::new(devices().swap_remove(0).0);
    driver.start(0, 16);
    let base = Driver::base(0);
    driver.describe(base, 0, BUFFERS, 8, WRITE | NEXT, 9);
    driver.describe(base, 9, table, 32, INDIRECT, 0);
    driver.describe(table, 0, BUFFERS + 8, 8, WRITE | NEXT, 1);
    driver.describe(table, 1, BUFFERS + 16, 8, WRITE, 0);
    driver.publish(0, 0);
    driver.kick(0);
    assert_eq!(driver.used(0), [(0, 24)]);
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

/// Entries of a queue in the tests below, and the parts of memory that its device may write.
const SIZE: u16 = 16;

fn used_ring(queue: usize) -> Range<u64> {
    let start = Driver::base(queue) + 0x8000;
    start..start + 4 + 8 * u64::from(SIZE) + 2
}

fn all_memory(driver: &Driver) -> Vec<u8> {
    driver.get(0, usize::try_from(MEMORY).unwrap())
}

/// Where something was written that is in none of these places.
fn written_elsewhere(before: &[u8], after: &[u8], places: &[Range<u64>]) -> Option<u64> {
    let pages = (0u64..).zip(before.chunks(4096).zip(after.chunks(4096)));
    pages
        .filter(|(_, (before, after))| before != after)
        .flat_map(|(page, (before, after))| {
            let bytes = (page * 4096..).zip(before.iter().zip(after));
            bytes.filter(|(_, (before, after))| before != after)
        })
        .map(|(at, _)| at)
        .find(|at| !places.iter().any(|place| place.contains(at)))
}

/// The pages of which these pieces of memory hold the numbers.
fn pages_in<'a>(
    memory: &[u8],
    pieces: impl Iterator<Item = &'a (u64, u32, u16)>,
) -> Vec<Range<u64>> {
    let mut numbers = Vec::new();
    for (address, length, _) in pieces {
        let start = usize::try_from(*address).unwrap();
        numbers.extend(&memory[start..start + usize::try_from(*length).unwrap()]);
    }
    let numbers = numbers.as_chunks().0.iter();
    numbers
        .map(|number| 4096 * u64::from(u32::from_le_bytes(*number)))
        .map(|address| address..address + 4096)
        .collect()
}

/// A chain of these pieces, put to a queue of every device that has it, with something for
/// the device to fill it with. Whatever the device makes of it: it says so if it is broken,
/// it writes nowhere but where the chain and the used ring are, and it works afterwards.
fn harmless(pieces: impl Fn(u64) -> Vec<(u64, u32, u16)>) {
    for mut case in Case::all() {
        for queue in 0..case.driver.device.notifiers().len() {
            case.driver.start(0, SIZE);
            if case.name == "console" {
                // The agent's port is open in the guest.
                case.driver
                    .request(3, &[&[1, 0, 0, 0, 6, 0, 1, 0]], &[])
                    .unwrap();
            }
            let base = Driver::base(queue);
            let pieces = pieces(base);
            // Where the buffers are it is a request of a disk to read, a message that asks
            // for another, and a frame.
            case.driver.put(BUFFERS, &[0; 4096]);
            case.driver.put(BUFFERS + 4, &[3, 0, 1]);
            let last = pieces.len() - 1;
            for (index, (address, length, flags)) in pieces.iter().enumerate() {
                let next = if index == last { 0 } else { NEXT };
                let index = u16::try_from(index).unwrap();
                case.driver
                    .describe(base, index, *address, *length, flags | next, index + 1);
            }
            case.driver.publish(queue, 0);
            let before = all_memory(&case.driver);
            case.outside.stir(&[0x33; 200]);
            case.driver.kick(queue);
            case.driver.pump();
            let after = all_memory(&case.driver);

            let mut places: Vec<_> = pieces
                .iter()
                .filter(|(_, _, flags)| flags & WRITE != 0)
                .map(|(address, length, _)| *address..*address + u64::from(*length))
                .collect();
            if (case.name, queue) == ("balloon", 0) {
                let given = pieces.iter().filter(|(_, _, flags)| flags & WRITE == 0);
                places.extend(pages_in(&before, given));
            }
            // It tells in each of its rings from where on it wants to be notified.
            places.extend((0..case.driver.device.notifiers().len()).map(used_ring));
            let elsewhere = written_elsewhere(&before, &after, &places);
            let what = format!("{}, queue {queue}: {pieces:x?}", case.name);
            assert_eq!(elsewhere, None, "{what}");
            if let Some(why) = case.why_broken() {
                let known = [
                    "is damaged",
                    "no header or no room",
                    "to read after",
                    "out of",
                ];
                assert!(
                    known.iter().any(|known| why.contains(known)),
                    "{why}: {what}"
                );
            }
            case.serves_again();
            case.outside.stir(&[]);
        }
    }
}

#[test]
fn overlapping_buffers_are_a_guests_own_affair() {
    let (descriptors, available, used) = (0, 0x4000, 0x8000);
    // To be written over each other, partly and wholly.
    harmless(|_| vec![(BUFFERS, 64, WRITE), (BUFFERS + 32, 64, WRITE)]);
    harmless(|_| vec![(BUFFERS, 64, WRITE); 16]);
    // What is read and what is written, and the device's answer in the question.
    harmless(|_| vec![(BUFFERS, 16, 0), (BUFFERS, 512, WRITE), (BUFFERS, 1, WRITE)]);
    harmless(|_| {
        vec![
            (BUFFERS, 64, 0),
            (BUFFERS + 2, 64, 0),
            (BUFFERS + 4, 1, WRITE),
        ]
    });
    // Over the rings and the table that the chain is in.
    for place in [descriptors, available, used] {
        harmless(|base| vec![(base + place, 64, WRITE)]);
        harmless(|base| vec![(base + place, 64, 0)]);
        harmless(|base| {
            vec![
                (BUFFERS, 16, 0),
                (base + place, 512, WRITE),
                (BUFFERS, 1, WRITE),
            ]
        });
        harmless(|base| vec![(BUFFERS, 16, 0), (base + place, 1, WRITE)]);
        harmless(|base| {
            vec![
                (BUFFERS, 16, 0),
                (base + place, 512, 0),
                (BUFFERS, 1, WRITE),
            ]
        });
    }
}

#[test]
fn buffers_without_a_byte_are_no_buffers() {
    for nowhere in [BUFFERS, 0, MEMORY - 1] {
        harmless(|_| vec![(nowhere, 0, WRITE)]);
        harmless(|_| vec![(nowhere, 0, 0)]);
        harmless(|_| vec![(nowhere, 0, 0), (nowhere, 0, WRITE)]);
        harmless(|_| {
            vec![
                (BUFFERS, 16, 0),
                (nowhere, 0, WRITE),
                (BUFFERS + 64, 1, WRITE),
            ]
        });
        harmless(|_| vec![(nowhere, 0, 0), (BUFFERS, 16, 0), (nowhere, 0, WRITE)]);
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
