//! Leads what is sent to one local address and port to another port, for every process: by
//! three small programs at the hooks that the kernel has for the addresses of sockets
//! (`bpf(2)`, `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`). Not by packet filter rules: those need
//! modules, and are the container's own affair.

use std::fs::File;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// The group that every process is in or below.
const ROOT_GROUP: &str = "/sys/fs/cgroup";

// `linux/bpf.h`.
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
const BPF_CGROUP_UDP4_SENDMSG: u32 = 14;
const BPF_CGROUP_UDP4_RECVMSG: u32 = 19;
const BPF_CGROUP_INET4_GETPEERNAME: u32 = 29;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// Where a `struct bpf_sock_addr` has the address and the port, both in network order.
const USER_IP4: i16 = 4;
const USER_PORT: i16 = 24;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// What `BPF_PROG_LOAD` takes of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// What `BPF_PROG_ATTACH` takes of it.
#[repr(C)]
#[derive(Default)]
struct AttachAttributes {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Leads from one to the other, which have one address, until the machine's end.
///
/// # Errors
/// What the system says.
pub fn install(from: SocketAddrV4, to: SocketAddrV4) -> io::Result<()> {
    let group = File::open(ROOT_GROUP)?;
    let there = program(from, to.port());
    // Who asked at the one port must not see answers come from the other.
    let back = program(to, from.port());
    for (hook, program) in [
        (BPF_CGROUP_INET4_CONNECT, &there),
        (BPF_CGROUP_UDP4_SENDMSG, &there),
        (BPF_CGROUP_UDP4_RECVMSG, &back),
        (BPF_CGROUP_INET4_GETPEERNAME, &back),
    ] {
        let loaded = load(program, hook)?;
        attach(&loaded, &group, hook)?;
    }
    Ok(())
}

/// Replaces the port where address and port are these.
fn program(at: SocketAddrV4, port: u16) -> [Instruction; 8] {
    let ip = i32::from_ne_bytes(at.ip().octets());
    let network_order = |port: u16| i32::from(u16::from_ne_bytes(port.to_be_bytes()));
    // BPF_LDX|MEM|W, BPF_JMP32|JNE|K, BPF_ALU64|MOV|K, BPF_STX|MEM|W, BPF_JMP|EXIT
    let load = |offset| Instruction {
        code: 0x61,
        registers: 0x12,
        offset,
        immediate: 0,
    };
    let unless = |immediate, offset| Instruction {
        code: 0x56,
        registers: 2,
        offset,
        immediate,
    };
    let set = |register, immediate| Instruction {
        code: 0xb7,
        registers: register,
        offset: 0,
        immediate,
    };
    let store = |offset| Instruction {
        code: 0x63,
        registers: 0x21,
        offset,
        immediate: 0,
    };
    let exit = Instruction {
        code: 0x95,
        registers: 0,
        offset: 0,
        immediate: 0,
    };
    [
        load(USER_IP4),
        unless(ip, 4),
        load(USER_PORT),
        unless(network_order(at.port()), 2),
        set(2, network_order(port)),
        store(USER_PORT),
        // Allowed, and what came before holds.
        set(0, 1),
        exit,
    ]
}

fn load(program: &[Instruction], hook: u32) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let attributes = LoadAttributes {
        prog_type: BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        insn_cnt: u32::try_from(program.len()).map_err(io::Error::other)?,
        insns: address(program.as_ptr()),
        license: address(license.as_ptr()),
        expected_attach_type: hook,
        ..LoadAttributes::default()
    };
    let descriptor = bpf(BPF_PROG_LOAD, &attributes)?;
    // SAFETY: the call made a descriptor, which is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn attach(program: &OwnedFd, group: &File, hook: u32) -> io::Result<()> {
    let number = |descriptor: RawFd| u32::try_from(descriptor).map_err(io::Error::other);
    let attributes = AttachAttributes {
        target_fd: number(group.as_raw_fd())?,
        attach_bpf_fd: number(program.as_raw_fd())?,
        attach_type: hook,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attributes).map(drop)
}

fn address<T>(pointer: *const T) -> u64 {
    // The guest's addresses have 64 bits.
    u64::try_from(pointer.addr()).unwrap_or(u64::MAX)
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<RawFd> {
    // SAFETY: the attributes are whole and live through the call, as do the program and the
    // texts that they point to; the kernel reads as many bytes as it is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_have_the_kernels_layout() {
        assert_eq!(size_of::<Instruction>(), 8);
        assert_eq!(std::mem::offset_of!(LoadAttributes, prog_name), 48);
        assert_eq!(
            std::mem::offset_of!(LoadAttributes, expected_attach_type),
            68
        );
    }

    #[test]
    fn ports_are_in_network_order() {
        let at = SocketAddrV4::new([127, 0, 0, 11].into(), 53);
        let program = program(at, 0x1234);
        assert_eq!(program[1].immediate.to_ne_bytes(), [127, 0, 0, 11]);
        assert_eq!(program[3].immediate.to_ne_bytes()[..2], [0, 53]);
        assert_eq!(program[4].immediate.to_ne_bytes()[..2], [0x12, 0x34]);
    }
}
