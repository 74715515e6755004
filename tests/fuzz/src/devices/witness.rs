//! What became of an input: a device that is another one and remembers.

use std::sync::{Arc, Mutex, PoisonError};

use bulkhead_virtio::testing::misbehave;
use bulkhead_virtio::{
    Context, DeviceState, Fault, GuestMemory, Readiness, RestoreError, Source, VirtioDevice,
};

/// What a run has left.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The guest's memory, if the device ever was active.
    pub(super) memory: Option<GuestMemory>,
    /// What the guest was found to have done.
    pub(super) faults: Vec<Fault>,
    /// What has left the machine; see each target.
    pub(super) out: Vec<u8>,
}

/// The device, and what is remembered of it.
struct Witness {
    device: Box<dyn VirtioDevice>,
    seen: Arc<Mutex<Outcome>>,
    /// There was a fault, and no reset since.
    broken: bool,
}

/// Feeds a device with a guest's deeds.
pub(super) fn feed(
    device: impl VirtioDevice + 'static,
    bytes: &[u8],
    outside: impl FnMut(u8),
) -> Outcome {
    let seen = Arc::<Mutex<Outcome>>::default();
    let witness = Witness {
        device: Box::new(device),
        seen: Arc::clone(&seen),
        broken: false,
    };
    misbehave(Box::new(witness), bytes, outside);
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    std::mem::take(&mut *seen)
}

impl Witness {
    /// Lets the device do something, which a broken one is not asked to.
    fn ask(
        &mut self,
        ask: impl FnOnce(&mut dyn VirtioDevice) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        assert!(!self.broken, "a broken device is used");
        let done = ask(&mut *self.device);
        if let Err(fault) = &done {
            self.broken = true;
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.faults.push(fault.clone());
        }
        done
    }
}

impl VirtioDevice for Witness {
    fn id(&self) -> u32 {
        self.device.id()
    }

    fn name(&self) -> &'static str {
        self.device.name()
    }

    fn features(&self) -> u64 {
        self.device.features()
    }

    fn queue_sizes(&self) -> &[u16] {
        self.device.queue_sizes()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.device.read_config(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    fn activate(&mut self, features: u64, memory: &GuestMemory) -> Result<(), Fault> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.memory = Some(memory.clone());
        drop(seen);
        self.ask(|device| device.activate(features, memory))
    }

    fn queue_event(&mut self, context: &mut Context<'_>, queue: usize) -> Result<(), Fault> {
        self.ask(|device| device.queue_event(context, queue))
    }

    fn sources(&self) -> Vec<Source> {
        self.device.sources()
    }

    fn source_event(
        &mut self,
        context: &mut Context<'_>,
        source: usize,
        ready: Readiness,
    ) -> Result<(), Fault> {
        self.ask(|device| device.source_event(context, source, ready))
    }

    fn reset(&mut self) {
        self.broken = false;
        self.device.reset();
    }

    fn save(&self) -> DeviceState {
        self.device.save()
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), RestoreError> {
        self.device.restore(state)
    }
}
