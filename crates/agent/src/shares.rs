//! The host's files and sockets: what the kernel asks by way of `/dev/fuse` goes to the host
//! over a stream, and so do connections to sockets that stand for the host's.
//!
//! The agent only carries. It must never itself wait for a share: whoever looks into one is
//! a process of the container, or a thread of the agent that may block. One such thread for
//! each share makes the kernel see what the host changes, if it does; what that one asks the
//! agent answers itself.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use bulkhead_agent_protocol::{
    ListenShare, MAX_SHARE_MESSAGE, MAX_SHARES, Stream, share_path, socket_path,
};
use bulkhead_share::{Carried, Event, Replay};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Shortest reply of the host: a header.
const SHORTEST: usize = 16;
/// Copied at a time to and from a connection.
const BUFFER: usize = 16 << 10;
/// Events that wait to be seen; further ones are lost.
const MAX_EVENTS: usize = 4096;
/// The stack of the thread that makes them seen.
const STACK: usize = 256 << 10;

/// A share could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The host asks for what cannot be.
    #[error("there is no share {0}")]
    Unknown(u32),
    /// The system said no.
    #[error("cannot {what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> ShareError {
    move |source| ShareError::Io {
        what,
        source: source.into(),
    }
}

/// What is shared with this machine.
#[derive(Debug, Default)]
pub struct Shares {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    mounted: Vec<PathBuf>,
    sockets: HashMap<u32, Arc<UnixListener>>,
}

impl Shares {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Whoever panicked with it held only looked up or inserted something.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mounts a share. Nobody answers before [`Device::carry`] runs.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub fn mount(&self, share: u32) -> Result<Device, ShareError> {
        if share >= MAX_SHARES {
            return Err(ShareError::Unknown(share));
        }
        let path = share_path(share);
        std::fs::create_dir_all(&path).map_err(failed("make the place of a share"))?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let device = rustix::fs::open("/dev/fuse", flags, Mode::empty())
            .map_err(failed("open /dev/fuse"))?;
        let data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
            device.as_raw_fd()
        );
        let data = std::ffi::CString::new(data).map_err(failed("name a share"))?;
        rustix::mount::mount("share", &path, "fuse", MountFlags::empty(), &*data)
            .map_err(failed("mount a share"))?;
        self.table().mounted.push(path.clone());
        // SAFETY: an OwnedFd keeps its descriptor open, under the same number, for as long
        // as it lives, and nothing takes it out.
        let device = unsafe { AsyncFd::register(device) }.map_err(failed("watch a share"))?;
        Ok(Device {
            device,
            path,
            replay: Arc::default(),
        })
    }

    /// Makes a socket that stands for one of the host's.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub fn listen(&self, request: ListenShare) -> Result<(), ShareError> {
        let share = request.share;
        if share >= MAX_SHARES || self.table().sockets.contains_key(&share) {
            return Err(ShareError::Unknown(share));
        }
        let path = socket_path(share);
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(failed("make the place of a socket"))?;
        }
        let listener = UnixListener::bind(&path).map_err(failed("listen at a socket"))?;
        let mode = std::fs::Permissions::from_mode(request.mode & 0o777);
        std::fs::set_permissions(&path, mode).map_err(failed("set the mode of a socket"))?;
        std::os::unix::fs::chown(&path, Some(request.uid), Some(request.gid))
            .map_err(failed("set the owner of a socket"))?;
        self.table().sockets.insert(share, Arc::new(listener));
        Ok(())
    }

    /// Waits for somebody to connect to such a socket.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub async fn accept(&self, share: u32) -> Result<UnixStream, ShareError> {
        let listener = self.table().sockets.get(&share).map(Arc::clone);
        let listener = listener.ok_or(ShareError::Unknown(share))?;
        let (connection, _address) = listener
            .accept()
            .await
            .map_err(failed("accept a connection"))?;
        Ok(connection)
    }

    /// Writes everything back and unmounts. Blocks; the streams must still be served.
    pub fn release(&self) {
        let mounted = std::mem::take(&mut self.table().mounted);
        for path in mounted {
            // Detached when somebody still uses it: writing back is then over all the same,
            // for files are written when they are closed.
            let unmounted = rustix::mount::unmount(&path, UnmountFlags::empty())
                .or_else(|_| rustix::mount::unmount(&path, UnmountFlags::DETACH));
            if let Err(error) = unmounted {
                tracing::warn!(%error, path = %path.display(), "a share stays mounted");
            }
        }
    }
}

/// The kernel's end of a share. When it is dropped, whoever uses the share gets an error.
#[derive(Debug)]
pub struct Device {
    device: AsyncFd<OwnedFd>,
    /// Where the share is mounted.
    path: PathBuf,
    replay: Arc<Replay>,
}

impl Device {
    /// Carries messages until either side ends.
    pub async fn carry(self, stream: &mut Stream) {
        let (reader, writer) = tokio::io::split(stream);
        let ended = tokio::select! {
            ended = self.carry_requests(writer) => ended,
            ended = self.carry_replies(reader) => ended,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a share ends");
        }
    }

    async fn carry_requests(&self, mut host: impl AsyncWrite + Unpin) -> io::Result<()> {
        let mut buffer = vec![0; MAX_SHARE_MESSAGE];
        loop {
            let mut ready = self.device.readable().await?;
            let read = ready
                .try_io(|device| Ok(rustix::io::read(device.get_ref(), buffer.as_mut_slice())?));
            let length = match read {
                // Whoever asked has gone in the meantime.
                Ok(Err(error)) if interrupted(&error) => continue,
                // It was unmounted.
                Ok(Err(error)) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => {
                    return Ok(());
                }
                Ok(Err(error)) => return Err(error),
                Ok(Ok(length)) => length,
                Err(_would_block) => {
                    host.flush().await?;
                    continue;
                }
            };
            let request = buffer.get(..length).unwrap_or_default();
            match self.replay.request(request) {
                Carried::On => host.write_all(request).await?,
                Carried::Instead(request) => host.write_all(&request).await?,
                Carried::Back(reply) => {
                    if !self.reply(&reply) {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn carry_replies(&self, mut host: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut message = Vec::new();
        let mut events = None;
        loop {
            let mut prefix = [0; 4];
            host.read_exact(&mut prefix).await?;
            let length = usize::try_from(u32::from_ne_bytes(prefix)).unwrap_or(usize::MAX);
            if !(SHORTEST..=MAX_SHARE_MESSAGE).contains(&length) {
                return Err(io::Error::other("the host's reply has no sensible length"));
            }
            message.clear();
            message.resize(length, 0);
            let (head, rest) = message.split_at_mut(prefix.len());
            head.copy_from_slice(&prefix);
            host.read_exact(rest).await?;
            if Event::is_unasked(&message) {
                if let Some(event) = Event::decode(&message) {
                    let events = match &events {
                        Some(events) => events,
                        None => events.insert(self.start_replay()?),
                    };
                    // Without room for it, it is lost.
                    let _ = events.try_send(event);
                }
            } else if !self.reply(&message) {
                return Ok(());
            }
        }
    }

    /// Gives the kernel an answer. `false` when the share was unmounted.
    fn reply(&self, message: &[u8]) -> bool {
        match rustix::io::write(self.device.get_ref(), message) {
            Ok(_) => true,
            Err(Errno::NODEV) => false,
            // Nobody waits for it any more, or the kernel does not like it.
            Err(error) => {
                tracing::debug!(%error, "a reply is not taken");
                true
            }
        }
    }

    /// Starts the thread that makes the kernel see events; it ends when the sender is
    /// dropped.
    fn start_replay(&self) -> io::Result<mpsc::SyncSender<Event>> {
        let (sender, events) = mpsc::sync_channel(MAX_EVENTS);
        let (replay, path) = (Arc::clone(&self.replay), self.path.clone());
        std::thread::Builder::new()
            .name("events".to_owned())
            .stack_size(STACK)
            .spawn(move || replay.run(&path, &events))?;
        Ok(sender)
    }
}

fn interrupted(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    errno == Some(Errno::NOENT.raw_os_error()) || errno == Some(Errno::INTR.raw_os_error())
}

/// Carries the bytes of a connection until both sides have ended.
pub async fn carry_connection(mut connection: UnixStream, stream: &mut Stream) {
    // Either side's going away is its right.
    let _ = tokio::io::copy_bidirectional_with_sizes(&mut connection, stream, BUFFER, BUFFER).await;
    let _ = stream.shutdown().await;
}
