//! What the supervisor and the worker say to each other: lines of JSON on one UNIX stream
//! socket. First comes one byte, the number of the machine's network cards, with as many
//! descriptors of tap devices; then a line, the [`crate::MachineConfig`]; then requests go one way,
//! replies and the exit the other. When the supervisor's end closes, the worker kills its
//! machine and ends: a machine never outlives whoever asked for it.
//!
//! The worker is started as `vmwp --id <id>` with that socket as descriptor 0, the
//! transport to the agent as descriptor 1 and a pipe for its last words as descriptor 2.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::{MAX_NICS, MachineExit};

/// Longest line, bytes. A configuration with the most layers and the longest paths fits.
pub const MAX_LINE: usize = 1 << 20;

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
    /// Pull the plug; the reply is the exit.
    Kill,
}

/// Worker to supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
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

/// Sends the first byte with the descriptors. To be called on a fresh socket, whose buffer
/// takes it without a wait.
///
/// # Errors
/// What the system says; [`io::ErrorKind::InvalidInput`] for more than [`MAX_NICS`].
pub fn send_taps(socket: impl AsFd, taps: &[OwnedFd]) -> io::Result<()> {
    let count = u8::try_from(taps.len())
        .ok()
        .filter(|_| taps.len() <= MAX_NICS)
        .ok_or(io::ErrorKind::InvalidInput)?;
    let borrowed: Vec<BorrowedFd<'_>> = taps.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_NICS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let bytes = [count];
    let sent = rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    if sent == 1 {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

/// Receives what [`send_taps`] sent. Waits for it on a blocking socket.
///
/// # Errors
/// What the system says; [`io::ErrorKind::UnexpectedEof`] when nothing was sent,
/// [`io::ErrorKind::InvalidData`] when descriptors are missing.
pub fn receive_taps(socket: impl AsFd) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_NICS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let message = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut taps = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            taps.extend(descriptors);
        }
    }
    if taps.len() == usize::from(byte[0]) {
        Ok(taps)
    } else {
        Err(io::ErrorKind::InvalidData.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn descriptors_arrive_in_their_order() {
        use rustix::fs::fstat;
        let (ours, theirs) = UnixStream::pair().unwrap();
        let files: Vec<OwnedFd> = (0..MAX_NICS)
            .map(|_| tempfile::tempfile().unwrap().into())
            .collect();
        send_taps(&ours, &files).unwrap();
        send_taps(&ours, &[]).unwrap();
        let received = receive_taps(&theirs).unwrap();
        let inodes = |files: &[OwnedFd]| -> Vec<u64> {
            files
                .iter()
                .map(|file| fstat(file).unwrap().st_ino)
                .collect()
        };
        assert_eq!(inodes(&received), inodes(&files));
        assert!(receive_taps(&theirs).unwrap().is_empty());
        drop(ours);
        let error = receive_taps(&theirs).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
