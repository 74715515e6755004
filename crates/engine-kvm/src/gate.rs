//! Whether CPUs run, stand or leave, and how they are told while they run the guest.
//!
//! A CPU's thread is inside KVM_RUN most of the time, so whoever wants something of it sends
//! it a signal. One that comes just before KVM_RUN must not get lost: its handler, which runs
//! on that thread, sets `immediate_exit`, with which KVM_RUN returns at once.

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use kvm_bindings::kvm_run;
use tokio::sync::watch;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// What CPUs are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Run the guest.
    Run,
    /// Wait until that changes.
    Stand,
    /// End their threads.
    Leave,
}

/// See the module. One for all CPUs of a machine.
#[derive(Debug)]
pub(crate) struct Gate {
    wanted: Mutex<Wanted>,
    changed: Condvar,
    /// How many CPUs stand.
    standing: watch::Sender<usize>,
}

impl Gate {
    pub(crate) fn new(wanted: Wanted) -> Self {
        Self {
            wanted: Mutex::new(wanted),
            changed: Condvar::new(),
            standing: watch::Sender::new(0),
        }
    }

    /// Changes what CPUs are to do, unless they are to leave. Those that run must be
    /// signalled afterwards.
    pub(crate) fn want(&self, wanted: Wanted) {
        let mut current = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != Wanted::Leave {
            *current = wanted;
        }
        self.changed.notify_all();
    }

    pub(crate) fn wanted(&self) -> Wanted {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stands until something else is wanted.
    pub(crate) fn stand(&self) {
        let current = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        self.standing.send_modify(|count| *count += 1);
        let current = self
            .changed
            .wait_while(current, |wanted| *wanted == Wanted::Stand)
            .unwrap_or_else(PoisonError::into_inner);
        self.standing.send_modify(|count| *count -= 1);
        drop(current);
    }

    /// Waits until so many CPUs stand.
    pub(crate) async fn all_stand(&self, cpus: usize) {
        // The sender is here, so this ends by what is waited for.
        let _ = self
            .standing
            .subscribe()
            .wait_for(|standing| *standing == cpus)
            .await;
    }
}

thread_local! {
    /// The `immediate_exit` of the CPU whose thread this is.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(std::ptr::null_mut()) };
}

/// The signal.
pub(crate) fn signal() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the signal's handler, once for the process.
pub(crate) fn install_handler() -> std::io::Result<()> {
    register_signal_handler(signal(), handle)
        .map_err(|error| std::io::Error::from_raw_os_error(error.errno()))
}

extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let immediate_exit = IMMEDIATE_EXIT.get();
    if !immediate_exit.is_null() {
        // SAFETY: it points into the page that KVM shares with this thread's CPU, which is
        // mapped as long as the `Registration` lives that has put it there; only this thread
        // and KVM on behalf of it access that byte.
        unsafe { AtomicU8::from_ptr(immediate_exit) }.store(1, Ordering::Relaxed);
    }
}

/// Lets signals to this thread reach this CPU, until it is dropped.
pub(crate) struct Registration {
    /// It belongs to the thread.
    not_send: std::marker::PhantomData<*mut u8>,
}

impl Registration {
    /// `run` must stay where it is until the registration is dropped.
    pub(crate) fn new(run: &mut kvm_run) -> Self {
        IMMEDIATE_EXIT.set(&raw mut run.immediate_exit);
        Self {
            not_send: std::marker::PhantomData,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use vmm_sys_util::signal::Killable;

    #[tokio::test]
    async fn cpus_stand_until_they_leave() {
        let gate = Arc::new(Gate::new(Wanted::Stand));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let gate = Arc::clone(&gate);
                std::thread::spawn(move || gate.stand())
            })
            .collect();
        gate.all_stand(3).await;
        gate.want(Wanted::Leave);
        gate.want(Wanted::Run);
        assert_eq!(gate.wanted(), Wanted::Leave, "nobody comes back");
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_signal_before_the_run_ends_the_run() {
        install_handler().unwrap();
        let (told, ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let mut run = Box::new(kvm_run::default());
            let _registration = Registration::new(&mut run);
            told.send(()).unwrap();
            let flag = &raw mut run.immediate_exit;
            // SAFETY: the box outlives the loop.
            while unsafe { AtomicU8::from_ptr(flag) }.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
        });
        ready.recv().unwrap();
        thread.kill(signal()).unwrap();
        thread.join().unwrap();
    }
}
