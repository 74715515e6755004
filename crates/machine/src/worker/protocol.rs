//! What the supervisor and the worker say to each other, on one UNIX stream socket. First
//! comes a head of fixed size with every descriptor of the machine, then a [`Handover`] that
//! tells which is which and what to boot, then lines of JSON: requests go one way, replies
//! and the exit the other. When the supervisor's end closes, the worker kills its machine and
//! ends: a machine never outlives whoever asked for it.
//!
//! The worker is started as `vmwp --id <id>` with that socket as descriptor 0 and a pipe for
//! its last words as descriptor 2.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::{FileRole, MachineConfig, MachineExit, MachineFiles};

/// Longest line, bytes. A configuration with the most layers and the longest paths fits.
pub const MAX_LINE: usize = 1 << 20;

/// Most descriptors in one message (`SCM_MAX_FD`, unix(7)); a machine has fewer.
const MAX_DESCRIPTORS: usize = 253;

/// Supervisor to worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Comes back in the reply.
    pub sequence: u64,
    /// What to do.
    pub verb: Verb,
}

/// What a worker can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// Stop the CPUs.
    Pause,
    /// Let them run on.
    Resume,
    /// Have the guest give up so much memory, bytes.
    Balloon(u64),
    /// Pull the plug; the reply is the exit.
    Kill,
}

/// Worker to supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The worker is in its jail; comes first.
    Confined {
        /// What of the jail this host does not allow, each with the reason.
        missing: Vec<String>,
    },
    /// The machine's CPUs run.
    Running,
    /// A request was carried out, or not.
    Reply {
        /// Which request.
        sequence: u64,
        /// What went wrong, if something did.
        error: Option<String>,
    },
    /// The machine has ended; the last line.
    Exited(MachineExit),
}

/// The first thing that a worker is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// What the descriptors are, in the order in which they were sent.
    pub files: Vec<FileRole>,
    /// What to boot.
    pub config: MachineConfig,
}

/// Bytes of the head: the length of the [`Handover`].
const HEAD: usize = 4;

/// Sends the head with the descriptors; returns what has to be sent after it. To be called on
/// a fresh socket, whose buffer takes the head without a wait.
///
/// # Errors
/// What the system says; [`io::ErrorKind::InvalidInput`] for more descriptors than one message
/// takes, or too long a configuration.
pub fn send_files(
    socket: impl AsFd,
    config: &MachineConfig,
    files: MachineFiles,
) -> io::Result<Vec<u8>> {
    let parts = files.into_parts();
    let handover = Handover {
        files: parts.iter().map(|(role, _)| *role).collect(),
        config: config.clone(),
    };
    let body = serde_json::to_vec(&handover)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= MAX_LINE && parts.len() <= MAX_DESCRIPTORS)
        .ok_or(io::ErrorKind::InvalidInput)?;
    let borrowed: Vec<BorrowedFd<'_>> = parts.iter().map(|(_, one)| one.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let head = length.to_le_bytes();
    let sent = rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&head)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    if sent == HEAD {
        Ok(body)
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// Receives the head, the descriptors and the configuration. Waits for them on a blocking
/// socket, and reads nothing that comes after.
///
/// # Errors
/// What the system says; [`io::ErrorKind::UnexpectedEof`] when nothing was sent,
/// [`io::ErrorKind::InvalidData`] when it makes no sense.
pub fn receive_files(socket: impl AsFd) -> io::Result<(MachineConfig, MachineFiles)> {
    let invalid = |error: Box<dyn std::error::Error + Send + Sync>| {
        io::Error::new(io::ErrorKind::InvalidData, error)
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut head = [0; HEAD];
    let message = rustix::net::recvmsg(
        &socket,
        &mut [IoSliceMut::new(&mut head)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            descriptors.extend(received);
        }
    }
    match message.bytes {
        0 => return Err(io::ErrorKind::UnexpectedEof.into()),
        HEAD => {}
        // The sender's one call put it into an empty buffer.
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }
    let length = usize::try_from(u32::from_le_bytes(head))
        .ok()
        .filter(|length| *length <= MAX_LINE)
        .ok_or(io::ErrorKind::InvalidData)?;
    let mut body = vec![0; length];
    let mut filled = 0;
    while let Some(rest) = body.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::io::read(&socket, rest)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => filled += read,
        }
    }
    let handover: Handover = serde_json::from_slice(&body)?;
    if handover.files.len() != descriptors.len() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let parts = handover.files.into_iter().zip(descriptors);
    let files =
        MachineFiles::from_parts(&handover.config, parts).map_err(|error| invalid(error.into()))?;
    Ok((handover.config, files))
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::{Accelerator, Console, Disk, EngineKind, LayerFile, MAX_LAYERS, MAX_NICS, Nic};

    /// The largest machine that there is.
    fn config(directory: &std::path::Path) -> MachineConfig {
        let file = directory.join("file");
        std::fs::write(&file, [0; 512]).unwrap();
        let layer = LayerFile {
            path: file.clone(),
            bytes: 512,
        };
        MachineConfig {
            id: "x".to_owned(),
            engine: EngineKind::Qemu,
            accelerator: Accelerator::Tcg,
            kernel: file.clone(),
            kernel_hz: None,
            initramfs: file.clone(),
            cmdline_extra: Vec::new(),
            memory_bytes: 1,
            balloon_bytes: 0,
            vcpus: 1,
            placement: crate::Placement::default(),
            disks: vec![
                Disk::Layers {
                    files: vec![layer; MAX_LAYERS],
                },
                Disk::Scratch { path: file },
            ],
            nics: vec![Nic { mac: [2; 6] }; MAX_NICS],
            runtime_dir: directory.to_owned(),
            console: Console::File {
                path: directory.join("console"),
            },
        }
    }

    fn files(config: &MachineConfig) -> MachineFiles {
        let (transport, _) = UnixStream::pair().unwrap();
        let taps = std::iter::repeat_with(|| tempfile::tempfile().unwrap().into());
        let taps: Vec<OwnedFd> = taps.take(MAX_NICS).collect();
        MachineFiles::open(config, transport.into(), taps).unwrap()
    }

    #[test]
    fn the_largest_machine_arrives_whole_and_nothing_behind_it_is_read() {
        use std::io::{Read, Write};
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let sent = files(&config);
        let inodes = |files: MachineFiles| -> Vec<(FileRole, u64)> {
            let parts = files.into_parts().into_iter();
            parts
                .map(|(role, one)| (role, rustix::fs::fstat(one).unwrap().st_ino))
                .collect()
        };
        let taps = sent.taps.iter();
        let taps: Vec<u64> = taps
            .map(|tap| rustix::fs::fstat(tap).unwrap().st_ino)
            .collect();
        let body = send_files(&ours, &config, sent).unwrap();
        ours.write_all(&body).unwrap();
        ours.write_all(b"next").unwrap();
        let (received, files) = receive_files(&theirs).unwrap();
        assert_eq!(received, config);
        let files = inodes(files);
        assert_eq!(files.len(), 1 + 2 + MAX_LAYERS + 1 + 1 + MAX_NICS);
        let received: Vec<u64> = files
            .iter()
            .filter(|(role, _)| *role == FileRole::Tap)
            .map(|(_, inode)| *inode)
            .collect();
        assert_eq!(received, taps);
        let mut next = [0; 4];
        theirs.read_exact(&mut next).unwrap();
        assert_eq!(&next, b"next");
    }

    #[test]
    fn what_is_cut_off_or_makes_no_sense_is_refused() {
        use std::io::Write;
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        let kind = |send: &dyn Fn(&mut UnixStream)| {
            let (mut ours, theirs) = UnixStream::pair().unwrap();
            send(&mut ours);
            drop(ours);
            receive_files(&theirs).unwrap_err().kind()
        };
        assert_eq!(kind(&|_| {}), io::ErrorKind::UnexpectedEof);
        let cut = kind(&|socket| {
            let body = send_files(&*socket, &config, files(&config)).unwrap();
            socket.write_all(&body[..100]).unwrap();
        });
        assert_eq!(cut, io::ErrorKind::UnexpectedEof);
        let none = kind(&|socket| {
            let (other, _keep) = UnixStream::pair().unwrap();
            let body = send_files(&other, &config, files(&config)).unwrap();
            let length = u32::try_from(body.len()).unwrap();
            socket.write_all(&length.to_le_bytes()).unwrap();
            socket.write_all(&body).unwrap();
        });
        assert_eq!(none, io::ErrorKind::InvalidData);
        let huge = kind(&|socket| socket.write_all(&u32::MAX.to_le_bytes()).unwrap());
        assert_eq!(huge, io::ErrorKind::InvalidData);
        assert_eq!(
            kind(&|socket| socket.write_all(b"ab").unwrap()),
            io::ErrorKind::InvalidData
        );
    }
}
