//! The machine's virtio devices: which there are, where they are, and their threads.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use bulkhead_machine::{BootError, Disk, DiskFiles, MachineConfig, Tail};
use bulkhead_virtio::balloon::{Balloon, BalloonHandle};
use bulkhead_virtio::block::{Backing, Block};
use bulkhead_virtio::console::Console;
use bulkhead_virtio::entropy::Entropy;
use bulkhead_virtio::net::Net;
use bulkhead_virtio::{DeviceLoop, MmioDevice, QUEUE_NOTIFY, VirtioDevice};
use vmm_sys_util::eventfd::EventFd;

use crate::end::{Cause, Ending};
use crate::layout;
use crate::memory::GuestMemory;
use crate::vm::{Vm, VmError};

/// What devices are made of.
pub(crate) struct Parts<'a> {
    pub(crate) config: &'a MachineConfig,
    pub(crate) disks: Vec<DiskFiles>,
    pub(crate) taps: Vec<OwnedFd>,
    pub(crate) transport: OwnedFd,
    /// Who keeps what the guest says on its console.
    pub(crate) words: Tail,
    pub(crate) ending: Ending,
}

/// All devices.
pub(crate) struct Devices {
    on_bus: Vec<Arc<MmioDevice>>,
    disks: Arc<DeviceLoop>,
    others: Arc<DeviceLoop>,
    balloon: BalloonHandle,
}

impl Devices {
    pub(crate) fn new(vm: &Vm, memory: &GuestMemory, parts: Parts<'_>) -> Result<Self, BootError> {
        let mut builder = Builder {
            vm,
            memory,
            ending: parts.ending,
            on_bus: Vec::new(),
        };
        let words = parts.words;
        let console = Console::new(
            parts.transport,
            Some(Box::new(move |bytes| words.push(bytes))),
        )
        .map_err(io_error("make the console"))?;
        let mut others = vec![builder.add(Box::new(console))?];
        others.push(builder.add(Box::new(Entropy::new()))?);
        let mut disks = Vec::new();
        for (disk, files) in parts.config.disks.iter().zip(parts.disks) {
            let backing = backing(disk, files)?;
            disks.push(builder.add(Box::new(Block::new(backing, disk.serial())))?);
        }
        for (nic, tap) in parts.config.nics.iter().zip(parts.taps) {
            let net = Net::new(tap, nic.mac).map_err(io_error("make a network card"))?;
            others.push(builder.add(Box::new(net))?);
        }
        let (balloon, handle) = Balloon::new();
        // The driver finds it there when it starts.
        handle.set_target(parts.config.balloon_bytes);
        others.push(builder.add(Box::new(balloon))?);
        Ok(Self {
            on_bus: builder.on_bus,
            disks: serving(disks)?,
            others: serving(others)?,
            balloon: handle,
        })
    }

    /// In the order of their addresses.
    pub(crate) fn on_bus(&self) -> Vec<Arc<MmioDevice>> {
        self.on_bus.clone()
    }

    /// Has the guest give up so much memory, bytes.
    pub(crate) fn inflate(&self, bytes: u64) {
        self.balloon.set_target(bytes);
        // It was added last.
        if let Some(balloon) = self.on_bus.last() {
            balloon.notify_configuration();
        }
    }

    /// The loop that serves disks, for a thread to run: one that may wait for the host's.
    pub(crate) fn disks(&self) -> Arc<DeviceLoop> {
        Arc::clone(&self.disks)
    }

    /// The loop that serves all the others, which never wait.
    pub(crate) fn others(&self) -> Arc<DeviceLoop> {
        Arc::clone(&self.others)
    }
}

fn serving(devices: Vec<Arc<MmioDevice>>) -> Result<Arc<DeviceLoop>, BootError> {
    let serving = DeviceLoop::new(devices).map_err(|error| BootError::Io {
        context: "cannot watch devices".to_owned(),
        source: io::Error::other(error),
    })?;
    Ok(Arc::new(serving))
}

struct Builder<'a> {
    vm: &'a Vm,
    memory: &'a GuestMemory,
    ending: Ending,
    on_bus: Vec<Arc<MmioDevice>>,
}

impl Builder<'_> {
    fn add(&mut self, device: Box<dyn VirtioDevice>) -> Result<Arc<MmioDevice>, BootError> {
        let (address, gsi) = layout::device(self.on_bus.len()).ok_or_else(|| {
            BootError::InvalidConfig(format!("a VM has at most {} devices", layout::MAX_DEVICES))
        })?;
        // KVM turns the event into an edge at the I/O APIC.
        let line = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(io_error("make an event"))?;
        self.vm.connect_interrupt(&line, gsi).map_err(refused)?;
        let ending = self.ending.clone();
        let device = MmioDevice::new(
            device,
            self.memory.clone(),
            Arc::new(line),
            move |device, fault| {
                ending.end(Cause::Device(format!(
                    "the guest broke the protocol of its {device} device: {fault}"
                )));
            },
        )
        .map_err(io_error("make a device"))?;
        for (queue, doorbell) in (0..).zip(device.notifiers()) {
            self.vm
                .connect_doorbell(doorbell, address + QUEUE_NOTIFY, queue)
                .map_err(refused)?;
        }
        self.on_bus.push(Arc::clone(&device));
        Ok(device)
    }
}

/// Bytes of a sector.
const SECTOR: u64 = 512;

fn backing(disk: &Disk, files: DiskFiles) -> Result<Backing, BootError> {
    let invalid = |message: String| Err(BootError::InvalidConfig(message));
    match (disk, files) {
        (Disk::Layers { files: layers }, DiskFiles::Layers(files)) => {
            if let Some(odd) = layers
                .iter()
                .find(|layer| layer.bytes == 0 || layer.bytes % SECTOR != 0)
            {
                return invalid(format!(
                    "the layer '{}' has {} bytes, which is not a positive multiple of 512",
                    odd.path.display(),
                    odd.bytes
                ));
            }
            let lengths = layers.iter().map(|layer| layer.bytes);
            Backing::layers(files.into_iter().zip(lengths)).map_err(io_error("join the layers"))
        }
        (Disk::Scratch { path }, DiskFiles::Scratch(file)) => {
            lock(&file).map_err(|source| BootError::Io {
                context: format!(
                    "cannot lock the scratch disk '{}', which another machine may have open",
                    path.display()
                ),
                source,
            })?;
            Backing::scratch(file).map_err(io_error("look at the scratch disk"))
        }
        _ => invalid("a disk's files are those of another disk".to_owned()),
    }
}

/// Has nobody else use the file, as long as its descriptor is open; QEMU's locks conflict
/// with this one.
fn lock(file: &File) -> io::Result<()> {
    // SAFETY: flock is plain data for which all zeroes is a value.
    let mut request: libc::flock = unsafe { std::mem::zeroed() };
    request.l_type = libc::c_short::try_from(libc::F_WRLCK).unwrap_or_default();
    request.l_whence = libc::c_short::try_from(libc::SEEK_SET).unwrap_or_default();
    // SAFETY: the descriptor is open, and the request is initialised and lives through the
    // call. A length of 0 means all of the file.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn io_error(context: &'static str) -> impl FnOnce(io::Error) -> BootError {
    move |source| BootError::Io {
        context: format!("cannot {context}"),
        source,
    }
}

fn refused(error: VmError) -> BootError {
    BootError::Refused {
        engine: crate::machine::ENGINE,
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_disk_has_one_machine_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("scratch");
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .unwrap()
        };
        let (first, second) = (open(), open());
        lock(&first).unwrap();
        assert!(lock(&second).is_err());
        drop(first);
        lock(&second).unwrap();
    }
}
