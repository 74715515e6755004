//! The user's terminal: whether there is one, its size, raw mode that is always undone.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::stdio::{stdin, stdout};
use rustix::termios::{self, OptionalActions, SpecialCodeIndex, Termios};

/// The settings to go back to. Global, because a panic and every way out of the process have
/// to find them.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

static HOOKED: AtomicBool = AtomicBool::new(false);

/// True if standard input is a terminal.
pub fn stdin_is_terminal() -> bool {
    termios::isatty(stdin())
}

/// True if standard output is a terminal.
pub fn stdout_is_terminal() -> bool {
    termios::isatty(stdout())
}

/// The terminal's height and width, from standard output; zeros if it is none.
pub fn size() -> (u16, u16) {
    termios::tcgetwinsize(stdout()).map_or((0, 0), |s| (s.ws_row, s.ws_col))
}

/// The width of the terminal at standard input.
pub fn stdin_width() -> Option<usize> {
    termios::tcgetwinsize(stdin())
        .ok()
        .map(|s| usize::from(s.ws_col))
        .filter(|w| *w > 0)
}

/// Puts the terminal at standard input into raw mode: every byte goes to the container.
/// [`restore`] undoes it; so does a panic.
pub fn make_raw() -> io::Result<()> {
    let saved = termios::tcgetattr(stdin())?;
    let mut raw = saved.clone();
    raw.make_raw();
    raw.special_codes[SpecialCodeIndex::VMIN] = 1;
    raw.special_codes[SpecialCodeIndex::VTIME] = 0;
    if !HOOKED.swap(true, Ordering::SeqCst) {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            report(info);
        }));
    }
    if let Ok(mut slot) = SAVED.lock() {
        slot.get_or_insert(saved);
    }
    termios::tcsetattr(stdin(), OptionalActions::Now, &raw)?;
    Ok(())
}

/// Puts the terminal back as it was before [`make_raw`]; does nothing if it was not called.
pub fn restore() {
    let saved = match SAVED.lock() {
        Ok(mut slot) => slot.take(),
        Err(poisoned) => poisoned.into_inner().take(),
    };
    if let Some(saved) = saved {
        // There is nobody to tell if the terminal has gone.
        let _ = termios::tcsetattr(stdin(), OptionalActions::Now, &saved);
    }
}

/// Restores the terminal when it goes out of scope.
pub struct RawMode(());

impl RawMode {
    /// Enters raw mode.
    pub fn enter() -> io::Result<Self> {
        make_raw()?;
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Hides what is typed until it goes out of scope.
pub struct NoEcho(());

impl NoEcho {
    /// Turns the terminal's echo off.
    pub fn enter() -> io::Result<Self> {
        let saved = termios::tcgetattr(stdin())?;
        let mut quiet = saved.clone();
        quiet.local_modes.remove(termios::LocalModes::ECHO);
        if let Ok(mut slot) = SAVED.lock() {
            slot.get_or_insert(saved);
        }
        termios::tcsetattr(stdin(), OptionalActions::Now, &quiet)?;
        Ok(Self(()))
    }
}

impl Drop for NoEcho {
    fn drop(&mut self) {
        restore();
    }
}
