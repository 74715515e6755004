//! How fast this host's time stamp counter runs.
//!
//! QEMU's software emulation hands the host's counter to the guest. A guest's kernel finds
//! out its frequency by polling an emulated timer chip, which fails when the host is busy,
//! and a microvm has nothing else to fall back on: the guest hangs for good in its first
//! second. So it is told the frequency (`tsc_early_khz=`).

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// How long the counter is watched. Each end is known to some 30 ns, so the result is good
/// to about 10 ppm, and a boot takes a hundred times as long.
const INTERVAL: Duration = Duration::from_millis(5);
/// Attempts to read both clocks without being interrupted in between.
const ATTEMPTS: usize = 32;

/// A measurement that has begun. What is done before it is ended costs no time.
#[derive(Debug)]
pub(crate) struct Measurement {
    first: Sample,
    begun: Instant,
}

impl Measurement {
    /// Begins; `None` where the counter does not run evenly, or is not x86's.
    pub(crate) fn begin() -> Option<Self> {
        if !is_constant(&std::fs::read_to_string("/proc/cpuinfo").ok()?) {
            return None;
        }
        Some(Self {
            first: sample()?,
            begun: Instant::now(),
        })
    }

    /// Waits for what is left of the interval. The frequency in kHz.
    pub(crate) fn end(self) -> Option<u64> {
        std::thread::sleep(INTERVAL.saturating_sub(self.begun.elapsed()));
        khz(self.first, sample()?)
    }
}

/// Both clocks at one instant.
#[derive(Debug, Clone, Copy)]
struct Sample {
    ticks: u64,
    nanoseconds: u64,
}

fn khz(first: Sample, second: Sample) -> Option<u64> {
    let ticks = u128::from(second.ticks.checked_sub(first.ticks)?);
    let nanoseconds = u128::from(second.nanoseconds.checked_sub(first.nanoseconds)?);
    let khz = (ticks * 1_000_000 + nanoseconds / 2).checked_div(nanoseconds)?;
    u64::try_from(khz).ok().filter(|khz| *khz > 0)
}

fn sample() -> Option<Sample> {
    (0..ATTEMPTS)
        .filter_map(|_| {
            let before = ticks();
            let now = clock_gettime(ClockId::MonotonicRaw);
            let width = ticks().checked_sub(before)?;
            let seconds = u64::try_from(now.tv_sec).ok()?;
            let sample = Sample {
                ticks: before + width / 2,
                nanoseconds: seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).ok()?,
            };
            Some((width, sample))
        })
        .min_by_key(|(width, _)| *width)
        .map(|(_, sample)| sample)
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 CPU has this instruction, and Linux leaves it to user mode.
    unsafe { core::arch::x86_64::_rdtsc() }
}

fn is_constant(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .is_some_and(|flags| {
            flags
                .split_ascii_whitespace()
                .any(|flag| flag == "constant_tsc")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequency_is_ticks_by_time() {
        let at = |ticks, nanoseconds| Sample { ticks, nanoseconds };
        assert_eq!(khz(at(7, 1_000), at(2_600_007, 1_001_000)), Some(2_600_000));
        assert_eq!(khz(at(7, 1_000), at(8, 1_000)), None);
        assert_eq!(khz(at(7, 1_000), at(6, 2_000)), None);
    }

    #[test]
    fn only_an_even_counter_counts() {
        assert!(is_constant("x: y\nflags\t: fpu constant_tsc nonstop_tsc\n"));
        assert!(!is_constant("x: y\nflags\t: fpu tsc constant_tsc_not\n"));
    }

    #[test]
    fn two_measurements_agree() {
        let measure = || Measurement::begin().and_then(Measurement::end);
        let (Some(first), Some(second)) = (measure(), measure()) else {
            return;
        };
        assert!(first.abs_diff(second) < first / 1000, "{first} {second}");
    }
}
