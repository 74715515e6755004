//! Kernel modules of the initramfs: those that every guest needs, inserted at boot, and those
//! that only some containers do.

use std::fs::File;
use std::io;
use std::path::Path;

use bulkhead_isolation::{ErrorKind, IsolationError, Result};
use oci_spec::runtime::{LinuxDeviceType, Spec};

/// Where they are, and, one file name a line, the order to insert them in.
const MODULES: &str = "/modules";
const MODULES_ORDER: &str = "/modules/order";

/// Network interfaces made by programs: the module, and its device's numbers.
const TUN: &str = "tun.ko";
const TUN_DEVICE: (i64, i64) = (10, 200);

/// Inserts what every guest needs.
///
/// # Errors
/// What could not be done, and what the kernel said.
pub fn load_all() -> std::result::Result<(), (String, io::Error)> {
    let order = match std::fs::read_to_string(MODULES_ORDER) {
        Ok(order) => order,
        // A kernel with everything built in.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err((format!("read {MODULES_ORDER}"), error)),
    };
    for name in order.lines().map(str::trim).filter(|name| !name.is_empty()) {
        load(name).map_err(|error| (format!("load the module {name}"), error))?;
    }
    Ok(())
}

/// Inserts what this container needs beyond that.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for a device that this kernel has not.
pub fn load_for(spec: &Spec) -> Result<()> {
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    let asked = linux.devices().iter().flatten().any(|device| {
        device.typ() == LinuxDeviceType::C && (device.major(), device.minor()) == TUN_DEVICE
    });
    let resources = linux.resources().as_ref();
    let rules = resources.and_then(|resources| resources.devices().as_ref());
    // Whoever may use every device expects those that a host has.
    let privileged = rules
        .and_then(|rules| rules.first())
        .is_some_and(|rule| rule.allow() && rule.major().is_none());
    if !asked && !privileged {
        return Ok(());
    }
    match load(TUN) {
        // A kernel that has it built in, or not at all.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if asked && !privileged && !Path::new("/dev/net/tun").exists() {
                return Err(IsolationError::new(
                    ErrorKind::InvalidArgument,
                    "the kernel of this VM has no device /dev/net/tun",
                ));
            }
            Ok(())
        }
        Err(error) => Err(IsolationError::other("cannot load the module tun", error)),
        Ok(()) => Ok(()),
    }
}

fn load(name: &str) -> io::Result<()> {
    let module = File::open(Path::new(MODULES).join(name))?;
    match rustix::system::finit_module(&module, c"", 0) {
        // It is built in, or loaded as another's dependency.
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
