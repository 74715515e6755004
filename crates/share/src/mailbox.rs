//! FUSE messages over a socket, answered by a few threads.
//!
//! Memory is bounded: so many requests wait, each no longer than a write with its headers,
//! and whoever sends more waits in the socket. One more thread tells the guest what others
//! change; it sleeps until somebody does.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::abi::{IN_HEADER, MAX_REQUEST};
use crate::server::Server;

/// Requests that are answered at the same time.
const WORKERS: usize = 4;
/// Requests that wait to be.
const WAITING: usize = 16;
const BUFFER: usize = 64 << 10;
/// How long changes are left to pile up: the kernel makes one of those that are alike, and
/// a guest that writes, whose own changes are among them, is not slowed down by a thread
/// that wakes up for each.
const PILE: Duration = Duration::from_millis(10);

/// Answers messages until the other side closes the socket. `confine` runs when all threads
/// exist and before the first message is read.
///
/// # Errors
/// `InvalidData` when the other side does not speak FUSE; what the system says.
pub fn serve(
    socket: UnixStream,
    server: Arc<Server>,
    confine: impl FnOnce(&UnixStream) -> io::Result<()>,
) -> io::Result<()> {
    let (queue, requests) = mpsc::sync_channel::<Vec<u8>>(WAITING);
    let requests = Arc::new(Mutex::new(requests));
    let replies = Arc::new(Mutex::new(socket.try_clone()?));
    let mut workers = Vec::with_capacity(WORKERS);
    for _ in 0..WORKERS {
        let requests = Arc::clone(&requests);
        let replies = Arc::clone(&replies);
        let server = Arc::clone(&server);
        workers.push(std::thread::Builder::new().spawn(move || {
            work(&server, &requests, &replies);
        })?);
    }
    if server.events_from().is_some() {
        let (server, replies) = (Arc::clone(&server), Arc::clone(&replies));
        let socket = socket.try_clone()?;
        workers.push(std::thread::Builder::new().spawn(move || {
            tell(&server, &socket, &replies);
        })?);
    }
    confine(&socket)?;
    let mut reader = BufReader::with_capacity(BUFFER, &socket);
    let ended = loop {
        match read_message(&mut reader) {
            Ok(Some(message)) => {
                if queue.send(message).is_err() {
                    break Ok(());
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    drop(queue);
    // Replies that nobody reads any more must not keep a worker.
    let _ = socket.shutdown(std::net::Shutdown::Both);
    for worker in workers {
        // The process's panic hook has ended everything when one panicked.
        let _ = worker.join();
    }
    ended
}

fn work(server: &Server, requests: &Mutex<mpsc::Receiver<Vec<u8>>>, replies: &Mutex<UnixStream>) {
    loop {
        let next = {
            let requests = requests.lock().unwrap_or_else(PoisonError::into_inner);
            requests.recv()
        };
        let Ok(message) = next else { return };
        let Some(reply) = server.answer(&message) else {
            continue;
        };
        let mut socket = replies.lock().unwrap_or_else(PoisonError::into_inner);
        if socket.write_all(&reply).is_err() {
            return;
        }
    }
}

/// Tells the guest of events until the socket is shut down.
fn tell(server: &Server, socket: &UnixStream, replies: &Mutex<UnixStream>) {
    let Some(events) = server.events_from() else {
        return;
    };
    let mut buffer = vec![0; BUFFER];
    loop {
        // Of the socket only its end is of interest, which comes unasked.
        let mut ready = [
            PollFd::new(&events, PollFlags::IN),
            PollFd::new(socket, PollFlags::empty()),
        ];
        match rustix::event::poll(&mut ready, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return,
        }
        let [_, ended] = ready;
        if !ended.revents().is_empty() {
            return;
        }
        std::thread::sleep(PILE);
        loop {
            let read = match rustix::io::read(events, buffer.as_mut_slice()) {
                Ok(read) if read > 0 => read,
                Err(Errno::INTR) => continue,
                _ => break,
            };
            let messages = server.events(buffer.get(..read).unwrap_or_default());
            if messages.is_empty() {
                continue;
            }
            let mut socket = replies.lock().unwrap_or_else(PoisonError::into_inner);
            if socket.write_all(&messages).is_err() {
                return;
            }
        }
    }
}

/// The next message; `None` at the end.
fn read_message(reader: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut prefix = [0; 4];
    match reader.read_exact(&mut prefix) {
        Ok(()) => {}
        Err(error) if is_end(&error) => return Ok(None),
        Err(error) => return Err(error),
    }
    let length = usize::try_from(u32::from_ne_bytes(prefix)).unwrap_or(usize::MAX);
    if !(IN_HEADER..=MAX_REQUEST).contains(&length) {
        let message = format!("the guest sends a message of {length} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let mut message = vec![0; length];
    let (head, rest) = message.split_at_mut(4);
    head.copy_from_slice(&prefix);
    match reader.read_exact(rest) {
        Ok(()) => Ok(Some(message)),
        Err(error) if is_end(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the other side has closed the socket. It is reset where events were left unread
/// (`unix_release_sock` in net/unix/af_unix.c).
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
    )
}
