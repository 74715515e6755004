//! What passes between this process and its helpers: one sequenced-packet socket pair per
//! helper. An order goes as a memory file with its JSON, beside the descriptors of the
//! payload's streams, so that its size has no limit; reports come back as one JSON packet
//! each. The container's process inherits the helper's end and waits on it for the word
//! to go; the descriptor closes on exec, so end-of-file says that the payload runs.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use bulkhead_files::protocol::Bind;
use bulkhead_isolation::{InjectedFile, IsolationError};
use bulkhead_userns::Mappings;
use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sockopt,
};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

/// Longest report, bytes; senders cut their messages to fit.
const MAX_REPORT: usize = 64 * 1024;
/// Longest error message in a report, bytes.
const MAX_MESSAGE: usize = 8 * 1024;
/// Descriptors that may come with one packet.
const MAX_DESCRIPTORS: usize = 4;

/// What a helper is to do.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    Create(CreateOrder),
    Exec(ExecOrder),
    Mount(MountOrder),
    Files(FilesOrder),
}

/// Make a container and its init.
#[derive(Debug, Serialize, Deserialize)]
pub struct CreateOrder {
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: RootfsOrder,
    pub injected_files: Vec<InjectedFile>,
    /// Our own executable, to be the init inside; `None` for no such init.
    pub init: Option<PathBuf>,
    /// Where to send a terminal's master; the payload's streams come as descriptors without.
    pub console_socket: Option<PathBuf>,
    pub spec: oci_spec::runtime::Spec,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum RootfsOrder {
    Layers {
        layers: Vec<PathBuf>,
        writable: PathBuf,
    },
    Mounted(PathBuf),
}

/// Mount a container's root from its layers, for its files.
#[derive(Debug, Serialize, Deserialize)]
pub struct MountOrder {
    pub bundle: PathBuf,
    pub layers: Vec<PathBuf>,
    pub writable: PathBuf,
    /// The container's IDs, where they are mapped.
    pub mappings: Option<Mappings>,
}

/// Serve a conversation about a container's files; the client comes as a descriptor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FilesOrder {
    /// Where its root is mounted.
    pub root: PathBuf,
    /// Whether nothing may be written to the root.
    pub read_only: bool,
    /// What is mounted over it.
    pub binds: Vec<Bind>,
    /// Where it is known, what the root is made of.
    pub stack: Option<StackOrder>,
    /// The container's IDs, where they are mapped.
    pub mappings: Option<Mappings>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StackOrder {
    /// The writable layer.
    pub upper: PathBuf,
    pub lower: LowerOrder,
}

/// The layers below, the lowest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum LowerOrder {
    /// EROFS images, and a directory for their mount points.
    Blobs {
        blobs: Vec<PathBuf>,
        points: PathBuf,
    },
    /// Directories in one directory.
    Directories(Vec<PathBuf>),
}

/// Make a further process in a container.
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecOrder {
    pub id: String,
    /// For libcontainer's files; the caller removes it.
    pub directory: PathBuf,
    pub init_pid: i32,
    pub console_socket: Option<PathBuf>,
    /// The container's specification with the process in place of its own.
    pub spec: oci_spec::runtime::Spec,
}

/// What a helper, or the process it made, has to say.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// From the container's process itself: it waits for the word to go. The kernel says
    /// which PID sent it.
    Ready,
    /// From the helper: the container exists, this is its init.
    Created { pid: i32 },
    /// From the helper: what was asked for is done.
    Done,
    /// It came to nothing; the sender exits.
    Failed(IsolationError),
}

/// The word to go.
const GO: &[u8] = b"go";

/// A pair of connected sockets: ours, and the helper's.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // Reports then tell the PID of their sender.
    sockopt::set_socket_passcred(&ours, true)?;
    Ok((ours, theirs))
}

/// Sends an order and the descriptors that belong to it.
pub fn send_order(socket: BorrowedFd<'_>, order: &Order, streams: &[OwnedFd]) -> io::Result<()> {
    let memory = rustix::fs::memfd_create("order", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(memory);
    serde_json::to_writer(io::BufWriter::new(&file), order)?;
    file.flush()?;
    file.rewind()?;
    let mut descriptors = vec![file.as_fd()];
    descriptors.extend(streams.iter().map(AsFd::as_fd));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("too many descriptors with an order"));
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(b"o")],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// The helper's half of [`send_order`]; blocks.
pub fn receive_order(socket: BorrowedFd<'_>) -> io::Result<(Order, Vec<OwnedFd>)> {
    let mut byte = [0];
    let (_, _, mut descriptors) = receive(socket, &mut byte)?;
    if descriptors.is_empty() {
        return Err(io::Error::other("no order came"));
    }
    let mut text = Vec::new();
    File::from(descriptors.remove(0)).read_to_end(&mut text)?;
    Ok((serde_json::from_slice(&text)?, descriptors))
}

/// Sends a report; blocks. An orphaned sender gets an error and ends by itself.
pub fn send_report(socket: BorrowedFd<'_>, mut report: Report) -> io::Result<()> {
    if let Report::Failed(error) = &mut report
        && error.message.len() > MAX_MESSAGE
    {
        let end = error.message.floor_char_boundary(MAX_MESSAGE);
        error.message.truncate(end);
    }
    rustix::net::send(socket, &serde_json::to_vec(&report)?, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Blocks until the word to go comes; `false` when the other side has gone instead.
pub fn wait_for_go(socket: BorrowedFd<'_>) -> bool {
    let mut buffer = [0; 2];
    loop {
        match rustix::net::recv(socket, &mut buffer, RecvFlags::empty()) {
            Ok((_, count)) => return count == GO.len(),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// One packet: its length, the sender's PID if it is told, the descriptors.
fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> rustix::io::Result<(usize, Option<Pid>, Vec<OwnedFd>)> {
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS), ScmCredentials(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut sender = None;
    let mut descriptors = Vec::new();
    for item in control.drain() {
        match item {
            RecvAncillaryMessage::ScmRights(received) => descriptors.extend(received),
            RecvAncillaryMessage::ScmCredentials(credentials) => sender = Some(credentials.pid),
            _ => {}
        }
    }
    Ok((message.bytes, sender, descriptors))
}

/// Receives one descriptor over a connected socket (a terminal's master); does not block.
pub fn receive_descriptor(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut buffer = [0; 64];
    let (_, _, mut descriptors) = receive(socket, &mut buffer)?;
    match descriptors.pop() {
        Some(descriptor) => Ok(descriptor),
        None => Err(io::Error::other("the terminal did not come")),
    }
}

/// Our end, for the rest of its life.
#[derive(Debug)]
pub struct Control {
    socket: AsyncFd<OwnedFd>,
}

impl Control {
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        // SAFETY: an owned descriptor, which nothing replaces, and stays in its `AsyncFd`.
        let socket = unsafe { AsyncFd::register(socket)? };
        Ok(Self { socket })
    }

    /// The next report and the PID of its sender; `None` once every process that held the
    /// other end has exec'ed or exited.
    pub async fn report(&self) -> io::Result<Option<(Report, Option<Pid>)>> {
        let mut buffer = vec![0; MAX_REPORT];
        loop {
            let mut ready = self.socket.readable().await?;
            let received = ready.try_io(|socket| {
                receive(socket.get_ref().as_fd(), &mut buffer).map_err(io::Error::from)
            });
            match received {
                Ok(Ok((0, ..))) => return Ok(None),
                Ok(Ok((length, sender, _))) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    return Ok(Some((serde_json::from_slice(bytes)?, sender)));
                }
                // The other end died with bytes of ours unread.
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Ok(None);
                }
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
    }

    /// Gives the word to go. The socket's buffer is empty, so this does not block.
    pub fn go(&self) -> io::Result<()> {
        rustix::net::send(self.socket.get_ref(), GO, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}
