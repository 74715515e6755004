//! Device access on hosts with unified control groups, where no controller does it: a
//! program of the kernel's, attached to the container's group, answers for every open and
//! mknod. libcontainer does this only with a C library; the program is a few dozen
//! instructions.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};
use rustix::fs::{Mode, OFlags};

/// What linux/bpf.h calls `BPF_DEVCG_ACC_*`, by the letters of a rule.
const ACCESS: [(char, i32); 3] = [('m', 1), ('r', 2), ('w', 4)];
const ALL_ACCESS: i32 = 7;
/// `BPF_DEVCG_DEV_*`.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// Type, major, minor (`None` is any), and what may be done.
type Device = (Option<i32>, Option<i64>, Option<i64>, i32);

/// Devices that every container has: making any node (opening it is another matter), null,
/// zero, full, random, urandom, tty, ptmx, console and pseudoterminals.
const DEFAULTS: [Device; 11] = [
    (Some(CHARACTER), None, None, 1),
    (Some(BLOCK), None, None, 1),
    (Some(CHARACTER), Some(1), Some(3), ALL_ACCESS),
    (Some(CHARACTER), Some(1), Some(5), ALL_ACCESS),
    (Some(CHARACTER), Some(1), Some(7), ALL_ACCESS),
    (Some(CHARACTER), Some(1), Some(8), ALL_ACCESS),
    (Some(CHARACTER), Some(1), Some(9), ALL_ACCESS),
    (Some(CHARACTER), Some(5), Some(0), ALL_ACCESS),
    (Some(CHARACTER), Some(5), Some(1), ALL_ACCESS),
    (Some(CHARACTER), Some(5), Some(2), ALL_ACCESS),
    (Some(CHARACTER), Some(136), None, ALL_ACCESS),
];

/// Confines the group at `group` to what `rules` allow, of which later ones win. What no
/// rule speaks of is refused.
pub fn confine(group: &Path, rules: &[LinuxDeviceCgroup]) -> io::Result<()> {
    let program = load(&assemble(rules)?)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let group = rustix::fs::open(group, flags, Mode::empty())?;
    attach(&group, &program)
}

/// `struct bpf_insn` of linux/bpf.h, little-endian.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Operation codes (linux/bpf_common.h and linux/bpf.h), class, size or source, and mode
/// combined.
mod code {
    pub const LOAD_WORD: u8 = 0x61;
    pub const AND: u8 = 0x57;
    pub const SHIFT_RIGHT: u8 = 0x77;
    pub const COPY: u8 = 0xbf;
    pub const SET: u8 = 0xb7;
    pub const JUMP_EQUAL: u8 = 0x15;
    pub const JUMP_UNEQUAL: u8 = 0x55;
    pub const JUMP_UNEQUAL_REGISTER: u8 = 0x5d;
    pub const EXIT: u8 = 0x95;
}

fn instruction(code: u8, to: u8, from: u8, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: to | (from << 4),
        offset: 0,
        immediate,
    }
}

fn load_word(to: u8, offset: i16) -> Instruction {
    Instruction {
        offset,
        ..instruction(code::LOAD_WORD, to, 1, 0)
    }
}

/// Registers of the program: the context at first and scratch later, then what it holds.
const SCRATCH: u8 = 1;
const TYPE: u8 = 2;
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn assemble(rules: &[LinuxDeviceCgroup]) -> io::Result<Vec<Instruction>> {
    // struct bpf_cgroup_dev_ctx: (access << 16) | type, major, minor.
    let mut program = vec![
        load_word(TYPE, 0),
        instruction(code::COPY, WANTED, TYPE, 0),
        instruction(code::AND, TYPE, 0, 0xffff),
        instruction(code::SHIFT_RIGHT, WANTED, 0, 16),
        load_word(MAJOR, 4),
        load_word(MINOR, 8),
    ];
    for (kind, major, minor, access) in DEFAULTS {
        add_rule(&mut program, true, kind, major, minor, access)?;
    }
    for rule in rules.iter().rev() {
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => None,
            LinuxDeviceType::B => Some(BLOCK),
            LinuxDeviceType::C | LinuxDeviceType::U => Some(CHARACTER),
            // A pipe is no device.
            LinuxDeviceType::P => continue,
        };
        let access = match rule.access().as_deref() {
            None | Some("") => ALL_ACCESS,
            Some(letters) => ACCESS
                .iter()
                .filter(|(letter, _)| letters.contains(*letter))
                .fold(0, |access, (_, bit)| access | bit),
        };
        let number = |number: Option<i64>| number.filter(|number| *number >= 0);
        let (major, minor) = (number(rule.major()), number(rule.minor()));
        add_rule(&mut program, rule.allow(), kind, major, minor, access)?;
        if kind.is_none() && major.is_none() && minor.is_none() && access == ALL_ACCESS {
            // It answers for everything, and the kernel refuses code that is never reached.
            return Ok(program);
        }
    }
    program.push(instruction(code::SET, 0, 0, 0));
    program.push(instruction(code::EXIT, 0, 0, 0));
    Ok(program)
}

/// Answers when the rule applies, else falls through to the next.
fn add_rule(
    program: &mut Vec<Instruction>,
    allow: bool,
    kind: Option<i32>,
    major: Option<i64>,
    minor: Option<i64>,
    access: i32,
) -> io::Result<()> {
    let mut rule = Vec::with_capacity(8);
    if let Some(kind) = kind {
        rule.push(instruction(code::JUMP_UNEQUAL, TYPE, 0, kind));
    }
    if access != ALL_ACCESS {
        rule.push(instruction(code::COPY, SCRATCH, WANTED, 0));
        rule.push(instruction(code::AND, SCRATCH, 0, access));
        // All that is wanted must be allowed; any of it may be denied.
        rule.push(if allow {
            instruction(code::JUMP_UNEQUAL_REGISTER, SCRATCH, WANTED, 0)
        } else {
            instruction(code::JUMP_EQUAL, SCRATCH, 0, 0)
        });
    }
    for (register, number) in [(MAJOR, major), (MINOR, minor)] {
        if let Some(number) = number {
            let number = i32::try_from(number).map_err(io::Error::other)?;
            rule.push(instruction(code::JUMP_UNEQUAL, register, 0, number));
        }
    }
    rule.push(instruction(code::SET, 0, 0, i32::from(allow)));
    rule.push(instruction(code::EXIT, 0, 0, 0));
    let length = rule.len();
    for (index, instruction) in rule.iter_mut().enumerate() {
        let jump = [
            code::JUMP_EQUAL,
            code::JUMP_UNEQUAL,
            code::JUMP_UNEQUAL_REGISTER,
        ];
        if jump.contains(&instruction.code) {
            // Relative to the following instruction.
            instruction.offset = i16::try_from(length - index - 1).map_err(io::Error::other)?;
        }
    }
    program.append(&mut rule);
    Ok(())
}

/// The first members of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// Those for BPF_PROG_ATTACH.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = Load {
        program_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program
            .as_ptr()
            .expose_provenance()
            .try_into()
            .map_err(io::Error::other)?,
        license: c"Apache-2.0"
            .as_ptr()
            .expose_provenance()
            .try_into()
            .map_err(io::Error::other)?,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: the attributes, and what they point to with the lengths that they tell,
    // outlive the call, which only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    let descriptor = i32::try_from(result).map_err(io::Error::other)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that the kernel has just made for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn attach(group: &OwnedFd, program: &OwnedFd) -> io::Result<()> {
    let number = |fd: &OwnedFd| u32::try_from(fd.as_raw_fd()).map_err(io::Error::other);
    let attributes = Attach {
        target: number(group)?,
        program: number(program)?,
        attach_type: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the attributes outlive the call, which only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn rule(text: &str) -> LinuxDeviceCgroup {
        serde_json::from_str(text).unwrap()
    }

    /// Any group of the unified hierarchy will do, so this works on hybrid hosts too.
    #[test]
    fn only_listed_devices_open() {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let unified = mounts
            .lines()
            .find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let Some(mount) = unified.and_then(|line| line.split(' ').nth(1)) else {
            eprintln!("no unified hierarchy is mounted here");
            return;
        };
        let group = Path::new(mount).join(format!("bulkhead-devices-{}", std::process::id()));
        std::fs::create_dir(&group).unwrap();
        let rules = [
            rule(r#"{"allow":false,"access":"rwm"}"#),
            rule(r#"{"allow":true,"type":"c","major":10,"minor":200,"access":"rw"}"#),
            rule(r#"{"allow":true,"type":"c","major":1,"minor":11,"access":"w"}"#),
        ];
        let confined = confine(&group, &rules);
        let procs = group.join("cgroup.procs");
        let script = format!(
            "echo $$ > {}; t() {{ (eval \"$1\") 2>/dev/null && echo yes || echo no; }}; \
             t ': </dev/null'; t ': >/dev/kmsg'; t ': </dev/kmsg'; t ': </dev/mem'; \
             t ': <>/dev/net/tun'",
            procs.display()
        );
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        std::fs::remove_dir(&group).unwrap();
        confined.unwrap();
        let answers = String::from_utf8(output.stdout).unwrap();
        let expected_tun = if Path::new("/dev/net/tun").exists() {
            "yes"
        } else {
            "no"
        };
        assert_eq!(answers, format!("yes\nyes\nno\nno\n{expected_tun}\n"));
    }

    #[test]
    fn nothing_follows_a_rule_for_everything() {
        let listed = rule(r#"{"allow":true,"type":"c","major":10,"minor":200,"access":"rw"}"#);
        let everything = rule(r#"{"allow":false,"access":"rwm"}"#);
        let open = assemble(std::slice::from_ref(&listed)).unwrap();
        let closed = assemble(&[everything, listed.clone()]).unwrap();
        assert_eq!(open, closed);
        // Rules that another overrides altogether are left out.
        let everything = rule(r#"{"allow":false,"access":"rwm"}"#);
        assert!(assemble(&[listed, everything]).unwrap().len() < open.len());
    }
}
