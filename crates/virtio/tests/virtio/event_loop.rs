//! The loop that drives devices, on a thread of its own as in a machine.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bulkhead_virtio::console::Console;
use bulkhead_virtio::entropy::Entropy;
use bulkhead_virtio::testing::{BUFFERS, Driver, WRITE};
use bulkhead_virtio::{DeviceLoop, QUEUE_NOTIFY};

const CONTROL_OUT: usize = 3;
const AGENT_IN: usize = 4;

/// A loop on a thread, which a test that fails does not leave running.
pub struct Running {
    pub serving: Arc<DeviceLoop>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub fn new(drivers: &[&Driver]) -> Self {
        let devices = drivers.iter().map(|driver| Arc::clone(&driver.device));
        let serving = Arc::new(DeviceLoop::new(devices.collect()).unwrap());
        let thread = {
            let serving = Arc::clone(&serving);
            thread::spawn(move || serving.run().unwrap())
        };
        Self {
            serving,
            thread: Some(thread),
        }
    }

    /// Panics where the loop has.
    pub fn check(&mut self) {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            self.stop();
        }
    }

    pub fn stop(&mut self) {
        self.serving.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.serving.stop();
    }
}

/// Waits for what another thread does.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..6000 {
        if done() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}

pub fn ask(driver: &mut Driver) {
    driver.describe(Driver::base(0), 0, BUFFERS, 64, WRITE, 0);
    driver.publish(0, 0);
    driver.write(QUEUE_NOTIFY, 0);
}

#[test]
fn devices_are_driven_by_their_queues_and_their_own_descriptors() {
    let mut entropy = Driver::new(Box::new(Entropy::new()));
    entropy.start(0, 16);
    let (mut agent, port) = UnixStream::pair().unwrap();
    let mut console = Driver::new(Box::new(Console::new(port.into(), None).unwrap()));
    console.start(0, 16);
    let mut running = Running::new(&[&entropy, &console]);

    ask(&mut entropy);
    until("random bytes", || !entropy.used(0).is_empty());

    // Room for the agent, and only then an open port: the socket is watched from then on.
    let base = Driver::base(AGENT_IN);
    for index in 0..2 {
        let address = BUFFERS + 0x1000 * u64::from(index);
        console.describe(base, index, address, 64, WRITE, 0);
        console.publish(AGENT_IN, index);
    }
    console.put(BUFFERS + 0x8000, &[1, 0, 0, 0, 6, 0, 1, 0]);
    console.describe(Driver::base(CONTROL_OUT), 0, BUFFERS + 0x8000, 8, 0, 0);
    console.publish(CONTROL_OUT, 0);
    console.write(QUEUE_NOTIFY, 3);
    until("an open port", || !console.used(CONTROL_OUT).is_empty());
    for (index, text) in [(0, b"one"), (1, b"two")] {
        agent.write_all(text).unwrap();
        let mut used = Vec::new();
        until("the agent's bytes", || {
            used.extend(console.used(AGENT_IN));
            !used.is_empty()
        });
        assert_eq!(used, [(index, 3)]);
    }
    running.stop();
}

#[test]
fn a_loop_that_stands_touches_nothing_and_forgets_nothing() {
    let mut driver = Driver::new(Box::new(Entropy::new()));
    driver.start(0, 16);
    let mut running = Running::new(&[&driver]);
    for _ in 0..5 {
        running.serving.pause();
        running.serving.pause();
        ask(&mut driver);
        thread::sleep(Duration::from_millis(5));
        assert!(driver.used(0).is_empty(), "it does not stand");
        running.serving.resume();
        until("what came in meanwhile", || !driver.used(0).is_empty());
    }
    // Standing is no hindrance to an end.
    running.serving.pause();
    running.stop();
}

#[test]
fn a_loop_that_was_stopped_before_it_ran_ends_at_once() {
    let driver = Driver::new(Box::new(Entropy::new()));
    let serving = DeviceLoop::new(vec![Arc::clone(&driver.device)]).unwrap();
    serving.pause();
    serving.stop();
    serving.run().unwrap();
    serving.resume();
    serving.run().unwrap();
}
