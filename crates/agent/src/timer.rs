//! Whether the kernel knows how fast its timer runs.
//!
//! Where there is no TSC deadline timer, Linux counts at its start how far the local APIC's
//! timer gets in a tenth of a second of the TSC (`calibrate_APIC_clock` in
//! `arch/x86/kernel/apic/apic.c`). A host that stops the CPU for as long between two readings
//! makes it believe in a timer that hardly moves, which it then does without, so that nothing
//! that waits for a time ever wakes up; or in one that is too fast, and every wait takes too
//! long. How fast it really runs is no question: QEMU and KVM count nanoseconds.

/// The kernel's table of its timers.
const TABLE: &str = "/proc/timer_list";
/// Ticks a second of the emulated local APIC, behind the divider by 16 that Linux sets.
const RATE: f64 = 1e9 / 16.0;
/// How slow the kernel may think it is, in parts of [`RATE`]: it then wakes up too early, and
/// waits again.
const SLOWEST: f64 = 0.5;
/// How fast: every wait of the container's takes as much longer.
const FASTEST: f64 = 1.1;

/// Whether the timer can be used. What cannot be found out is taken to be so.
pub fn is_sound() -> bool {
    let Ok(table) = std::fs::read_to_string(TABLE) else {
        return true;
    };
    let ratio = rate(&table).map(|rate| rate / RATE);
    tracing::debug!(ratio, "the timer, as the kernel has measured it");
    ratio.is_none_or(|ratio| (SLOWEST..=FASTEST).contains(&ratio))
}

/// Ticks a second that the kernel takes the local APIC's timer to make; `None` where it uses
/// another one, or its deadline mode.
fn rate(table: &str) -> Option<f64> {
    let mut lines = table
        .lines()
        .skip_while(|line| line.trim_end() != "Clock Event Device: lapic")
        .skip(1)
        .take_while(|line| line.starts_with(' '));
    let mut value = |name: &str| {
        let line = lines.find(|line| line.trim_start().starts_with(name))?;
        line.split_once(':')?.1.trim().parse::<u32>().ok()
    };
    // In the order in which the kernel prints them: ticks = nanoseconds * mult >> shift.
    let multiplier = value("mult:")?;
    let shift = value("shift:")?;
    let scale = 2f64.powi(i32::try_from(shift.min(64)).ok()?);
    Some(f64::from(multiplier) / scale * 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(device: &str, multiplier: u32) -> String {
        format!(
            "Timer List Version: v0.10\nTick Device: mode:     1\nPer CPU device: 0\n\
             Clock Event Device: {device}\n max_delta_ns:   286333417129015\n \
             min_delta_ns:   2000016\n mult:           {multiplier}\n shift:          32\n \
             mode:           1\n\nPer CPU device: 1\n"
        )
    }

    #[test]
    fn a_timer_that_was_measured_well_is_told_from_one_that_was_not() {
        let sound = |multiplier| {
            let rate = rate(&table("lapic", multiplier)).map(|rate| rate / RATE);
            rate.map(|ratio| (SLOWEST..=FASTEST).contains(&ratio))
        };
        assert_eq!(sound(268_435_456), Some(true));
        assert_eq!(sound(266_000_000), Some(true));
        // Seen on a host at load 25.
        assert_eq!(sound(32_212), Some(false));
        assert_eq!(sound(400_000_000), Some(false));
    }

    #[test]
    fn other_timers_are_not_judged() {
        assert_eq!(rate(&table("lapic-deadline", 1000)), None);
        assert_eq!(rate(&table("pit", 1000)), None);
        assert_eq!(rate(""), None);
        assert_eq!(rate("Clock Event Device: lapic\n mult: x\n"), None);
        assert_eq!(rate("Clock Event Device: lapic\n shift: 3\n"), None);
    }
}
