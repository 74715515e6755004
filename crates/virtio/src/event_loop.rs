//! The loop that drives devices: waits for notifications and for the devices' own
//! descriptors, and handles them one after the other.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

use crate::device::{Readiness, Source};
use crate::mmio::MmioDevice;

/// The number under which the loop itself is woken.
const WAKE: u64 = u64::MAX;
/// Numbers of events: the device's index, then this bit for its own descriptors, then the
/// queue's or descriptor's index.
const DEVICE_SHIFT: u32 = 16;
const SOURCE: u64 = 1 << 15;

/// The loop does not run.
#[derive(Debug, thiserror::Error)]
#[error("the device loop failed")]
pub struct LoopError(#[from] Errno);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Run,
    Stand,
    Stop,
}

struct State {
    wanted: Wanted,
    /// Whether the loop handles nothing at the moment and will not before it is told to.
    stands: bool,
}

/// Drives devices on the thread that calls [`DeviceLoop::run`].
pub struct DeviceLoop {
    epoll: OwnedFd,
    wake: EventFd,
    devices: Vec<Arc<MmioDevice>>,
    state: Mutex<State>,
    changed: Condvar,
    running: AtomicBool,
    /// Whether it is to stand or to stop, for devices to look at while they are at work.
    interrupted: AtomicBool,
}

/// What is watched of one device.
type Watched = Vec<Source>;

impl DeviceLoop {
    /// A loop for these devices.
    ///
    /// # Errors
    /// That the system has no descriptors left.
    pub fn new(devices: Vec<Arc<MmioDevice>>) -> Result<Self, LoopError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::MFILE))?;
        add(&epoll, raw(&wake), WAKE, EventFlags::IN)?;
        for (index, device) in (0u64..).zip(&devices) {
            for (queue, notifier) in (0u64..).zip(device.notifiers()) {
                let number = index << DEVICE_SHIFT | queue;
                add(&epoll, raw(notifier), number, EventFlags::IN)?;
            }
        }
        Ok(Self {
            epoll,
            wake,
            devices,
            state: Mutex::new(State {
                wanted: Wanted::Run,
                stands: true,
            }),
            changed: Condvar::new(),
            running: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
        })
    }

    /// Handles events until [`DeviceLoop::stop`].
    ///
    /// # Errors
    /// That the system does not let it wait.
    pub fn run(&self) -> Result<(), LoopError> {
        self.running.store(true, Ordering::SeqCst);
        // Also where a device panics: who waits for the loop to stand must not do so for ever.
        let _ended = Ended(self);
        self.serve()
    }

    fn serve(&self) -> Result<(), LoopError> {
        let mut watched: Vec<Watched> = self.devices.iter().map(|_| Watched::new()).collect();
        for index in 0..self.devices.len() {
            self.watch(index, &mut watched)?;
        }
        let mut events = Vec::with_capacity(64);
        loop {
            if !self.may_go_on() {
                return Ok(());
            }
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                None,
            ) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                // What is left out is still there when it goes on.
                if self.interrupted.load(Ordering::Relaxed) {
                    break;
                }
                self.handle(event.data.u64(), event.flags);
            }
            let mut last = None;
            for event in &events {
                let index = device_index(event.data.u64());
                // Events of one device mostly come together.
                if last != index
                    && let Some(index) = index
                {
                    self.watch(index, &mut watched)?;
                }
                last = index;
            }
        }
    }

    fn handle(&self, number: u64, flags: EventFlags) {
        if number == WAKE {
            // Another thread's wish is in the state.
            let _ = self.wake.read();
            return;
        }
        let Some(device) = device_index(number).and_then(|index| self.devices.get(index)) else {
            return;
        };
        let part = usize::try_from(number & (SOURCE - 1)).unwrap_or(usize::MAX);
        if number & SOURCE == 0 {
            if let Some(notifier) = device.notifiers().get(part) {
                // Empty when a CPU's thread was faster, which is as good.
                let _ = notifier.read();
                device.queue_event(part, &self.interrupted);
            }
        } else {
            let ended = flags.intersects(EventFlags::HUP | EventFlags::ERR);
            let ready = Readiness {
                readable: ended || flags.intersects(EventFlags::IN),
                writable: ended || flags.intersects(EventFlags::OUT),
            };
            device.source_event(part, ready, &self.interrupted);
        }
    }

    /// Watches what the device wants to be watched now.
    fn watch(&self, index: usize, watched: &mut [Watched]) -> Result<(), LoopError> {
        let (Some(device), Some(watched)) = (self.devices.get(index), watched.get_mut(index))
        else {
            return Ok(());
        };
        let wanted = device.sources();
        if wanted == *watched {
            return Ok(());
        }
        let first = u64::try_from(index).unwrap_or(u64::MAX) << DEVICE_SHIFT | SOURCE;
        for (part, source) in (0u64..).zip(&wanted) {
            let before = usize::try_from(part)
                .ok()
                .and_then(|part| watched.get(part));
            if before == Some(source) {
                continue;
            }
            let was = before.is_some_and(|source| source.readable || source.writable);
            let mut flags = EventFlags::empty();
            flags.set(EventFlags::IN, source.readable);
            flags.set(EventFlags::OUT, source.writable);
            let data = EventData::new_u64(first | part);
            // SAFETY: the device holds its descriptors open for as long as it exists, and
            // the loop holds the device.
            let descriptor = unsafe { BorrowedFd::borrow_raw(source.descriptor) };
            // One of no interest is taken out: its end could not be masked.
            match (was, flags.is_empty()) {
                (false, true) => {}
                (false, false) => epoll::add(&self.epoll, descriptor, data, flags)?,
                (true, false) => epoll::modify(&self.epoll, descriptor, data, flags)?,
                (true, true) => epoll::delete(&self.epoll, descriptor)?,
            }
        }
        *watched = wanted;
        Ok(())
    }

    /// Waits while it is to stand; false when it is to stop.
    fn may_go_on(&self) -> bool {
        let mut state = self.lock();
        loop {
            match state.wanted {
                Wanted::Run => {
                    state.stands = false;
                    return true;
                }
                Wanted::Stop => return false,
                Wanted::Stand => {
                    state.stands = true;
                    self.changed.notify_all();
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Has the loop stand, and returns when no device touches guest memory any more. What
    /// comes in meanwhile waits. Standing twice is no error.
    pub fn pause(&self) {
        self.want(Wanted::Stand);
        let mut state = self.lock();
        while state.wanted == Wanted::Stand && !state.stands && self.running.load(Ordering::SeqCst)
        {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.want(Wanted::Run);
    }

    /// Ends [`DeviceLoop::run`], now or when it is called.
    pub fn stop(&self) {
        self.want(Wanted::Stop);
    }

    fn want(&self, wanted: Wanted) {
        let mut state = self.lock();
        if state.wanted != Wanted::Stop {
            state.wanted = wanted;
            self.interrupted
                .store(wanted != Wanted::Run, Ordering::Relaxed);
        }
        drop(state);
        self.changed.notify_all();
        // Fails only when it has been written 2^64 times and never read.
        let _ = self.wake.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is computed with it held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says that the loop does not run any more.
struct Ended<'a>(&'a DeviceLoop);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.stands = true;
        self.0.running.store(false, Ordering::SeqCst);
        self.0.changed.notify_all();
    }
}

fn device_index(number: u64) -> Option<usize> {
    if number == WAKE {
        return None;
    }
    usize::try_from(number >> DEVICE_SHIFT).ok()
}

fn raw(event: &EventFd) -> RawFd {
    std::os::fd::AsRawFd::as_raw_fd(event)
}

fn add(epoll: &OwnedFd, descriptor: RawFd, number: u64, flags: EventFlags) -> Result<(), Errno> {
    // SAFETY: the caller holds the descriptor open for as long as the loop exists.
    let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
    epoll::add(epoll, descriptor, EventData::new_u64(number), flags)
}
