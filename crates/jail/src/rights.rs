//! Users and capabilities.

use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitiesSecureBits, CapabilitySet, CapabilitySets, Gid, Uid};

use crate::error::step;
use crate::{JailError, Missing};

/// Who a process is once it has no rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Other groups, for devices that it has to open itself.
    pub groups: Vec<u32>,
}

/// Locked: user 0 is nobody special, and nothing gives capabilities back.
const ORDINARY: CapabilitiesSecureBits = CapabilitiesSecureBits::NO_ROOT
    .union(CapabilitiesSecureBits::NO_ROOT_LOCKED)
    .union(CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE)
    .union(CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED)
    .union(CapabilitiesSecureBits::KEEP_CAPS_LOCKED);

/// Becomes somebody without any capability, and without a way to one. The caller must have a
/// single thread. Returns what a caller without the right to change it could not close: ways
/// to capabilities that need a new program with privileges, which is forbidden besides.
///
/// # Errors
/// What the system says, with what was tried. The process may be halfway then and must end.
pub fn give_up_all(identity: &Identity) -> Result<Option<Missing>, JailError> {
    let closed = give_up_bounding(CapabilitySet::empty()).and_then(|()| {
        rustix::thread::set_capabilities_secure_bits(ORDINARY).map_err(step("give up privileges"))
    });
    let missing = match closed {
        Ok(()) => None,
        Err(error) if error.source_error().kind() == std::io::ErrorKind::PermissionDenied => {
            Some(Missing {
                what: "empty capability bounding set",
                source: error.into_source(),
            })
        }
        Err(error) => return Err(error),
    };
    let groups: Vec<Gid> = identity
        .groups
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    rustix::thread::set_thread_groups(&groups).map_err(step("leave all groups"))?;
    let gid = Gid::from_raw(identity.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(step("change the group"))?;
    let uid = Uid::from_raw(identity.uid);
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(step("change the user"))?;
    set(CapabilitySet::empty())?;
    rustix::thread::clear_ambient_capability_set().map_err(step("give up rights"))?;
    rustix::thread::set_no_new_privs(true).map_err(step("forbid new rights"))?;
    Ok(missing)
}

/// Keeps the user and these capabilities, gives up the others for good. Threads that exist
/// keep theirs. `secure_bits` say what a change of user does to them.
///
/// # Errors
/// What the system says, with what was tried.
pub fn give_up_all_but(
    kept: CapabilitySet,
    secure_bits: CapabilitiesSecureBits,
) -> Result<(), JailError> {
    rustix::thread::set_thread_groups(&[]).map_err(step("leave all groups"))?;
    rustix::thread::set_capabilities_secure_bits(secure_bits)
        .map_err(step("keep rights for users"))?;
    give_up_bounding(kept)?;
    let permitted = rustix::thread::capabilities(None)
        .map_err(step("look at the rights"))?
        .permitted;
    set(permitted & kept)?;
    rustix::thread::set_no_new_privs(true).map_err(step("forbid new rights"))
}

/// Keeps others from looking into this process, its memory and what `/proc` shows of it, and
/// from making a core dump of it. A change of user or a new program undoes it.
///
/// # Errors
/// What the system says.
pub fn hide_from_debuggers() -> Result<(), JailError> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(step("hide from debuggers"))
}

fn give_up_bounding(kept: CapabilitySet) -> Result<(), JailError> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if kept.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the last one that the kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(step("give up rights")(error)),
        }
    }
    Ok(())
}

fn set(rights: CapabilitySet) -> Result<(), JailError> {
    let sets = CapabilitySets {
        effective: rights,
        permitted: rights,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets).map_err(step("give up rights"))
}
