//! A guest that takes a device away while the device is at work: one CPU resets and starts
//! it, another writes over its rings, descriptors and buffers, and the loop serves it
//! meanwhile on its own thread, as in a machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_virtio::testing::{BUFFERS, Driver, INDIRECT, NEXT, QUEUES, WRITE};
use bulkhead_virtio::{GuestMemory, MmioDevice, QUEUE_NOTIFY};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use vm_memory::{Bytes, GuestAddress};

use crate::event_loop::{Running, until};
use crate::every::Case;

const ROUNDS: u32 = 400;
/// When it ends, however far it has come.
const LONGEST: Duration = Duration::from_millis(2000);

/// Descriptors that mostly lead to buffers, and chains of them.
fn fill(driver: &mut Driver, random: &mut StdRng) {
    for queue in 0..driver.device.notifiers().len() {
        let base = Driver::base(queue);
        // What the device that is looked for first takes: a request of a disk, a control
        // message, a frame.
        driver.put(BUFFERS, &[random.random_range(0..16), 0, 0, 0, 3, 0, 1, 0]);
        driver.put(BUFFERS + 8, &[0; 64]);
        driver.put(BUFFERS + 8, &[random.random_range(0..64), 8]);
        let mut writable = 0;
        for index in 0..16 {
            let last = index % 4 == 3;
            if index % 4 == 0 {
                writable = if random.random() { WRITE } else { 0 };
            }
            let (flags, length) = match index % 4 {
                0 => (0, 16),
                1 => (writable, 512 << random.random_range(0..12)),
                2 if random.random() => (writable, random.random_range(0..600)),
                2 => (writable, 512),
                _ => (WRITE, random.random_range(1..3)),
            };
            let address = BUFFERS + u64::from(index % 4) * random.random_range(0..0x1_0000);
            let next = if last { 0 } else { NEXT };
            driver.describe(base, index, address, length, flags | next, index + 1);
        }
        for head in [0, 4, 8, 12] {
            driver.publish(queue, head);
        }
        if random.random_range(0..8) == 0 {
            // The end of a chain that is given away already.
            driver.publish(queue, 3);
        }
        driver.write(QUEUE_NOTIFY, u32::try_from(queue).unwrap());
    }
}

/// Writes where the device reads, until it is told to end.
fn scribble(memory: &GuestMemory, device: &MmioDevice, seed: u64, end: &AtomicBool) {
    let mut random = StdRng::seed_from_u64(seed);
    let queues = u64::try_from(device.notifiers().len()).unwrap();
    let put = |address: u64, bytes: &[u8]| {
        memory.write_slice(bytes, GuestAddress(address)).unwrap();
    };
    while !end.load(Ordering::SeqCst) {
        let base = QUEUES + 0x1_0000 * random.random_range(0..queues);
        let value: u64 = random.random();
        match random.random_range(0..10) {
            // The available ring: its flags, its position, one of its entries.
            0 => put(base + 0x4002, &value.to_le_bytes()[..2]),
            1 => put(base + 0x4000, &value.to_le_bytes()[..2]),
            2 => put(base + 0x4004 + value % 32, &[random.random_range(0..20)]),
            // The used ring.
            3 => put(base + 0x8000 + value % 140, &value.to_le_bytes()),
            // A descriptor's address, length, flags, successor.
            4 => put(base + 16 * (value % 16), &value.to_le_bytes()),
            5 => put(
                base + 16 * (value % 16) + 8,
                &random.random_range(0..0x40_0000u32).to_le_bytes(),
            ),
            6 => put(
                base + 16 * (value % 16) + 12,
                &[random.random_range(0..=u8::try_from(NEXT | WRITE | INDIRECT).unwrap())],
            ),
            7 => put(base + 16 * (value % 16) + 14, &[random.random_range(0..18)]),
            // What is in a buffer.
            8 => put(BUFFERS + value % 64, &value.to_le_bytes()),
            _ => device.write(
                QUEUE_NOTIFY,
                &u32::try_from(value % queues).unwrap().to_le_bytes(),
            ),
        }
        // The others have two processors together.
        if value.is_multiple_of(64) {
            thread::yield_now();
        }
    }
}

#[test]
fn devices_that_are_reset_at_work_do_not_harm_the_loop() {
    let mut cases = Case::all();
    let drivers: Vec<_> = cases.iter().map(|case| &case.driver).collect();
    let mut running = Running::new(&drivers);
    let end = Arc::new(AtomicBool::new(false));
    let scribblers: Vec<_> = (0..)
        .zip(&cases)
        .map(|(seed, case)| {
            let (memory, device) = (case.driver.memory.clone(), Arc::clone(&case.driver.device));
            let end = Arc::clone(&end);
            thread::spawn(move || scribble(&memory, &device, seed, &end))
        })
        .collect();

    let mut random = StdRng::seed_from_u64(0x0072_6573_6574);
    let since = Instant::now();
    let mut served = [0u64; 5];
    let mut rounds = 0;
    while rounds < ROUNDS && since.elapsed() < LONGEST {
        rounds += 1;
        running.check();
        for (case, served) in cases.iter_mut().zip(&mut served) {
            // Without some of the features that every device has, at times.
            let without = u64::from(random.random_range(0..4u8)) << 28;
            case.driver.bring_up(without, 16);
            fill(&mut case.driver, &mut random);
            case.outside.stir(&vec![1; random.random_range(0..3000)]);
            if random.random() {
                // It is at work by now, or not yet.
                thread::sleep(Duration::from_micros(random.random_range(0..300)));
            }
            *served += case.driver.interrupts();
            match random.random_range(0..8) {
                0 => case.driver.write(0x70, 0x80),
                1 => {
                    running.serving.pause();
                    case.driver.write(0x70, 0);
                    running.serving.resume();
                }
                2 => {
                    let word: u32 = random.random();
                    case.driver.write(random.random_range(0..0x110), word);
                }
                _ => case.driver.write(0x70, 0),
            }
        }
    }
    end.store(true, Ordering::SeqCst);
    for thread in scribblers {
        thread.join().unwrap();
    }

    for (case, served) in cases.iter_mut().zip(served) {
        assert!(served > 0, "the {} was never at work", case.name);
        // By one round in four or more; a machine that is busy may not come to many.
        assert!(
            rounds < 50 || !case.driver.faults().is_empty(),
            "the {} was never broken",
            case.name
        );
        case.driver.bring_up(0, 16);
        case.ask();
        until(case.name, || case.is_answered());
        assert_eq!(case.driver.read(0x70), 15, "{}", case.name);
    }
    // What panicked on its thread does so here.
    running.stop();
}
