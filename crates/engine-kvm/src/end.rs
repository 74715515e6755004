//! How a machine comes to its end: the first reason counts, whoever has it.

use bulkhead_machine::{ExitReason, MachineExit};
use tokio::sync::watch;

/// Why there is no machine any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The guest switched itself off.
    PoweredOff,
    /// The guest reset itself; a kernel that panicked does.
    Reset,
    /// A CPU could not even report its fault.
    TripleFault,
    /// Somebody here wanted it.
    Killed,
    /// A device was given what no driver gives it.
    Device(String),
    /// KVM gave up, or a thread of ours did.
    Engine(String),
}

impl Cause {
    /// What is told about it, with what the guest has said until then.
    pub(crate) fn into_exit(self, console: &str) -> MachineExit {
        match self {
            Self::PoweredOff => {
                MachineExit::new(ExitReason::PoweredOff, "the guest powered itself off")
            }
            Self::Reset => bulkhead_machine::guest_reset(console),
            Self::TripleFault => {
                let said = bulkhead_machine::last_lines(console);
                let mut detail = "a CPU of the guest triple-faulted".to_owned();
                if !said.is_empty() {
                    detail = format!("{detail}; the guest's last words: {said}");
                }
                MachineExit::new(ExitReason::GuestPanic, detail)
            }
            Self::Killed => MachineExit::new(ExitReason::Killed, "the VM was killed"),
            Self::Device(reason) => MachineExit::new(ExitReason::EngineFailed, reason),
            Self::Engine(reason) => MachineExit::new(ExitReason::EngineFailed, reason),
        }
    }
}

/// Where the reason is noted. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Ending {
    cause: watch::Sender<Option<Cause>>,
}

impl Ending {
    pub(crate) fn new() -> Self {
        Self {
            cause: watch::Sender::new(None),
        }
    }

    /// Ends the machine, unless it has ended already. From any thread.
    pub(crate) fn end(&self, cause: Cause) {
        self.cause.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                *first = Some(cause);
            }
            is_first
        });
    }

    /// Waits for the end.
    pub(crate) async fn ended(&self) -> Cause {
        let mut cause = self.cause.subscribe();
        let seen = cause.wait_for(Option::is_some).await;
        // `self` holds the sender.
        seen.ok()
            .and_then(|cause| cause.clone())
            .unwrap_or(Cause::Killed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_cause_counts() {
        let ending = Ending::new();
        ending.end(Cause::PoweredOff);
        ending.end(Cause::Killed);
        assert_eq!(ending.ended().await, Cause::PoweredOff);
    }

    #[test]
    fn a_fault_quotes_what_was_said() {
        let exit = Cause::TripleFault.into_exit("a\nb\n");
        assert_eq!(exit.reason, ExitReason::GuestPanic);
        assert!(exit.detail.ends_with("last words: a; b"), "{exit:?}");
    }
}
