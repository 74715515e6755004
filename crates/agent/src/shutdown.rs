//! The end of the machine.

use rustix::system::RebootCommand;

/// Ends the machine. Everything was written back before.
pub fn power_off() -> String {
    // It does not return when it succeeds.
    match rustix::system::reboot(RebootCommand::PowerOff) {
        Ok(()) => "the machine was powered off and goes on".to_owned(),
        Err(error) => format!("cannot power the machine off: {error}"),
    }
}
