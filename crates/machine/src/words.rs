//! What a guest's kernel is told on its command line whatever runs it, and what it said last.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{ExitReason, MachineExit};

/// What spares a kernel work that a guest has no use for: waiting for grace periods, testing
/// its ciphers, the certificates that would vouch for modules (the initramfs is as trustworthy
/// as the kernel), a random source beside the CPU's and virtio's; interfaces that nobody asked
/// for, in every network namespace, where their drivers are built in; zeroes in pages that are
/// about to be overwritten or given back, as Debian's kernel writes them; and a bus that no
/// machine here has, for which the kernel asks a hundred ports.
pub const QUICK_WORDS: [&str; 7] = [
    "rcupdate.rcu_expedited=1",
    "cryptomgr.notests",
    "initcall_blacklist=load_system_certificate_list,jent_mod_init",
    "dummy.numdummies=0",
    "fb_tunnels=none",
    "init_on_alloc=0",
    "pci=off",
];

/// Has a panic reset the machine at once, and a machine that resets has ended.
pub const RESET_ON_PANIC: &str = "panic=-1";

/// For a quiet guest: until the virtio console is there, what the kernel has to say goes to a
/// serial port, so that a panic on the way has words too. The port's real driver is spared.
pub const QUIET_WORDS: [&str; 4] = [
    "quiet",
    "earlyprintk=serial,ttyS0,115200",
    "8250.nr_uarts=0",
    "console=hvc0",
];

/// For a guest that tells everything.
pub const TALKATIVE_WORD: &str = "console=ttyS0";

/// Bytes kept of what a guest says.
const KEPT: usize = 16 * 1024;
/// Most characters of a foreign message that go into a text of ours.
const QUOTED: usize = 600;

/// The last bytes of what somebody says. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Tail {
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Tail {
    /// Adds to it; what does not fit is forgotten from the beginning.
    pub fn push(&self, bytes: &[u8]) {
        // Whoever panicked with it held left bytes behind, whichever.
        let mut kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
    }

    /// What is kept, as text without control characters.
    pub fn text(&self) -> String {
        let kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept)
            .chars()
            .filter(|c| *c == '\n' || *c == '\t' || !c.is_control())
            .collect()
    }
}

/// The last lines of what was said, in one line.
pub fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let joined = lines.join("; ");
    let surplus = joined.chars().count().saturating_sub(QUOTED);
    joined.chars().skip(surplus).collect()
}

/// The end of a machine whose guest reset itself, having said this on its console.
pub fn guest_reset(console: &str) -> MachineExit {
    let detail = match panic_message(console) {
        Some(message) => {
            tracing::warn!(console, "the guest's kernel panicked");
            let message: String = message.chars().take(QUOTED).collect();
            let cause = panic_cause(console);
            format!("the guest's kernel panicked: {message}{cause}")
        }
        None => match last_lines(console) {
            words if words.is_empty() => {
                "the guest's kernel reset itself without a word".to_owned()
            }
            words => format!("the guest's kernel reset itself; its last words: {words}"),
        },
    };
    MachineExit::new(ExitReason::GuestPanic, detail)
}

/// What the guest's kernel said when it panicked.
fn panic_message(console: &str) -> Option<&str> {
    console
        .lines()
        .filter_map(|line| line.split_once("Kernel panic - ").map(|(_, rest)| rest))
        .next_back()
        .map(str::trim)
}

/// What led to a panic that was no decision of the kernel's: the fault and where it was.
fn panic_cause(console: &str) -> String {
    /// Words with which the kernel begins to report a fault, `arch/x86/kernel/traps.c` and
    /// `arch/x86/mm/fault.c`, and the place that it tells after.
    const SIGNS: [&str; 5] = [
        "BUG: ",
        "Oops: ",
        "general protection fault",
        "kernel BUG",
        "RIP: ",
    ];
    let facts: Vec<&str> = console
        .lines()
        .filter_map(|line| {
            let at = SIGNS.iter().filter_map(|sign| line.find(sign)).min()?;
            line.get(at..).map(str::trim)
        })
        .take(SIGNS.len())
        .collect();
    if facts.is_empty() {
        return String::new();
    }
    let facts: String = facts.join("; ").chars().take(QUOTED).collect();
    format!(" ({facts})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_is_kept() {
        let tail = Tail::default();
        tail.push(&vec![b'a'; KEPT]);
        tail.push(b"\x1b[31mend\n");
        let text = tail.text();
        assert!(text.ends_with("a[31mend\n"));
        assert!(text.len() < KEPT);
    }

    #[test]
    fn the_cause_is_quoted_too() {
        let console = "[ 0.5] BUG: unable to handle page fault for address: ffffffff\n\
                       [ 0.5] Code: 90\n[ 0.5] RIP: 0010:here+0x1/0x2\n\
                       [ 0.6] Kernel panic - not syncing: Fatal exception in interrupt\n";
        assert_eq!(
            guest_reset(console).detail,
            "the guest's kernel panicked: not syncing: Fatal exception in interrupt (BUG: \
             unable to handle page fault for address: ffffffff; RIP: 0010:here+0x1/0x2)"
        );
    }

    #[test]
    fn the_panic_is_quoted() {
        let console = "[ 1.0] x\n[ 2.0] Kernel panic - not syncing: Attempted to kill init!\n";
        assert_eq!(
            guest_reset(console).detail,
            "the guest's kernel panicked: not syncing: Attempted to kill init!"
        );
    }

    #[test]
    fn a_reset_has_last_words() {
        let exit = guest_reset("a\n\n b \n");
        assert_eq!(exit.reason, ExitReason::GuestPanic);
        assert!(exit.detail.ends_with("last words: a; b"), "{exit:?}");
    }
}
