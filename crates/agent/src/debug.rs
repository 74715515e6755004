//! The agent's log, on the kernel's console, where the host asks for it.

use std::fs::File;
use std::sync::Mutex;

/// The word on the kernel's command line that asks for it.
const WORD: &str = "bulkhead.debug";

/// Starts logging if the command line says so. A log that cannot be written is none.
pub fn start_if_asked() {
    let words = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if !words.split_ascii_whitespace().any(|word| word == WORD) {
        return;
    }
    // The kernel numbers the lines with its time, and takes them from several processes.
    if let Ok(kmsg) = File::options().write(true).open("/dev/kmsg") {
        let unlimited = std::fs::write("/proc/sys/kernel/printk_devkmsg", "on\n");
        tracing_subscriber::fmt()
            .with_writer(Mutex::new(kmsg))
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .without_time()
            .init();
        tracing::debug!(?unlimited, "the agent logs");
    }
}
