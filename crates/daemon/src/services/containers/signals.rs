//! Signals by name and number.

use crate::error::ApiError;

/// `SIGTERM`.
pub const TERM: u32 = 15;
/// `SIGKILL`.
pub const KILL: u32 = 9;

/// Highest signal number (`SIGRTMAX`).
const MAX: u32 = 64;
/// glibc's first real-time signal for programs.
const RTMIN: u32 = 34;

const NAMES: [(&str, u32); 35] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("RTMIN", RTMIN),
];

/// Reads `9`, `KILL`, `SIGKILL`, `sigkill`, `RTMIN+3`, `RTMAX-1`.
///
/// # Errors
/// 400 with Docker's words.
pub fn parse(text: &str) -> Result<u32, ApiError> {
    lookup(text).ok_or_else(|| ApiError::bad_request(format!("invalid signal: {text}")))
}

fn lookup(text: &str) -> Option<u32> {
    if let Ok(number) = text.parse::<u32>() {
        return (1..=MAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    if name == "RTMAX" {
        return Some(MAX);
    }
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        let number = RTMIN.checked_add(offset.parse().ok()?)?;
        return (number <= MAX).then_some(number);
    }
    let offset: u32 = name.strip_prefix("RTMAX-")?.parse().ok()?;
    MAX.checked_sub(offset).filter(|number| *number >= RTMIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("9", 9),
            ("kill", 9),
            ("SIGTERM", 15),
            ("RTMIN+3", 37),
            ("sigrtmax-1", 63),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for text in ["0", "65", "SIG", "NOPE", "RTMIN+31", "RTMAX-60", ""] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
