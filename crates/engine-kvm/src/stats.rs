//! KVM's own counters (`Documentation/virt/kvm/api.rst`, KVM_GET_STATS_FD).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;

vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, kvm_bindings::KVMIO, 0xce);

/// Bytes of the header, `struct kvm_stats_header`.
const HEADER: usize = 24;
/// Bytes of a descriptor without its name, `struct kvm_stats_desc`.
const DESCRIPTOR: usize = 16;
/// Most of what is believed about names and their number.
const MAX_NAME: usize = 256;
const MAX_DESCRIPTORS: usize = 1024;

/// The counters of one CPU.
pub(crate) struct Counters(File);

impl Counters {
    pub(crate) fn open(fd: &VcpuFd) -> io::Result<Self> {
        // SAFETY: the call takes no argument and makes a descriptor.
        let descriptor = unsafe { ioctl(fd, KVM_GET_STATS_FD()) };
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it is new, so nobody else has it.
        Ok(Self(unsafe { File::from_raw_fd(descriptor) }))
    }

    /// A counter by its name, `exits` for one.
    pub(crate) fn read(&self, name: &str) -> io::Result<u64> {
        let mut header = [0; HEADER];
        self.0.read_exact_at(&mut header, 0)?;
        let name_size = field(&header, 4)?;
        let count = field(&header, 8)?;
        let descriptors = field(&header, 16)?;
        let data = field(&header, 20)?;
        if name_size > MAX_NAME || count > MAX_DESCRIPTORS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut descriptor = vec![0; DESCRIPTOR + name_size];
        for index in 0..count {
            let at = descriptors + index * descriptor.len();
            self.0.read_exact_at(&mut descriptor, offset(at)?)?;
            let text = descriptor.get(DESCRIPTOR..).unwrap_or_default();
            let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
            if text == name.as_bytes() {
                let mut value = [0; 8];
                let at = data + field(&descriptor, 8)?;
                self.0.read_exact_at(&mut value, offset(at)?)?;
                return Ok(u64::from_ne_bytes(value));
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }
}

fn field(bytes: &[u8], at: usize) -> io::Result<usize> {
    let word = bytes
        .get(at..at + 4)
        .and_then(|word| word.try_into().ok())
        .map(u32::from_ne_bytes)
        .ok_or(io::ErrorKind::InvalidData)?;
    usize::try_from(word).map_err(io::Error::other)
}

fn offset(at: usize) -> io::Result<u64> {
    u64::try_from(at).map_err(io::Error::other)
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_tuple("Counters")
            .field(&self.0.as_raw_fd())
            .finish()
    }
}
