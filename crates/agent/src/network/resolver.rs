//! The container's resolver: name queries that arrive at its address go to the host, which
//! knows the container's network; the answers come back the same way.
//!
//! It listens at a port of the kernel's choice, and the kernel leads there what is sent to
//! port 53, which so is free for a payload that is a name server itself.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_agent_protocol::{DnsMessage, MAX_DNS_MESSAGE, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::redirect;

/// Queries that wait for an answer; the oldest of more are forgotten.
const WAITING: u32 = 256;
/// Connections at a time.
const CONNECTIONS: usize = 32;
/// How long a connection may say nothing, or wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Ports tried until one is free for both transports.
const ATTEMPTS: usize = 16;

/// The sockets, and what leads to them.
pub struct GuestResolver {
    datagrams: UdpSocket,
    connections: TcpListener,
}

impl GuestResolver {
    /// Listens in place of this address. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// What the system says.
    pub async fn listen(address: SocketAddr) -> io::Result<Self> {
        let SocketAddr::V4(address) = address else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let (datagrams, connections) = bind(*address.ip()).await?;
        let port = datagrams.local_addr()?.port();
        redirect::install(address, SocketAddrV4::new(*address.ip(), port))?;
        Ok(Self {
            datagrams,
            connections,
        })
    }

    /// Carries queries and answers until the stream ends.
    pub async fn serve(self, stream: &mut Stream) {
        let (mut from_host, mut to_host) = tokio::io::split(stream);
        let (answered, answers) = mpsc::channel::<DnsMessage>(16);
        let reading = async {
            while let Ok(answer) = DnsMessage::read(&mut from_host).await {
                if answered.send(answer).await.is_err() {
                    break;
                }
            }
        };
        let (asked, questions) = mpsc::channel(16);
        let accepting = tokio::spawn(accept(self.connections, asked));
        tokio::select! {
            () = reading => {}
            () = carry(&self.datagrams, questions, answers, &mut to_host) => {}
        }
        accepting.abort();
    }
}

/// Carries queries to the host, and its answers to those who asked.
async fn carry(
    datagrams: &UdpSocket,
    mut questions: mpsc::Receiver<Question>,
    mut answers: mpsc::Receiver<DnsMessage>,
    to_host: &mut (impl tokio::io::AsyncWrite + Unpin),
) {
    let mut waiting = Waiting::default();
    let mut buffer = vec![0; MAX_DNS_MESSAGE];
    loop {
        let query = tokio::select! {
            received = datagrams.recv_from(&mut buffer) => match received {
                Ok((length, from)) => {
                    let number = waiting.add(Asker::Datagram(from));
                    let bytes = buffer[..length].to_vec();
                    DnsMessage { tcp: false, number, bytes }
                }
                // Somebody who was answered is gone (ICMP).
                Err(_) => continue,
            },
            Some((bytes, asker)) = questions.recv() => {
                let number = waiting.add(Asker::Connection(asker));
                DnsMessage { tcp: true, number, bytes }
            }
            answer = answers.recv() => {
                let Some(answer) = answer else { return };
                match waiting.remove(answer.number) {
                    Some(Asker::Datagram(to)) => {
                        // Lost answers are asked for again.
                        let _ = datagrams.send_to(&answer.bytes, to).await;
                    }
                    Some(Asker::Connection(asker)) => drop(asker.send(answer.bytes)),
                    None => {}
                }
                continue;
            }
        };
        if query.write(to_host).await.is_err() {
            return;
        }
    }
}

/// Both transports at one port.
async fn bind(address: Ipv4Addr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..ATTEMPTS {
        let datagrams = UdpSocket::bind((address, 0)).await?;
        match TcpListener::bind(datagrams.local_addr()?).await {
            Ok(connections) => return Ok((datagrams, connections)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Who waits for an answer.
enum Asker {
    Datagram(SocketAddr),
    Connection(oneshot::Sender<Vec<u8>>),
}

#[derive(Default)]
struct Waiting {
    next: u32,
    askers: HashMap<u32, Asker>,
}

impl Waiting {
    fn add(&mut self, asker: Asker) -> u32 {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.askers.remove(&number.wrapping_sub(WAITING));
        self.askers.insert(number, asker);
        number
    }

    fn remove(&mut self, number: u32) -> Option<Asker> {
        self.askers.remove(&number)
    }
}

type Question = (Vec<u8>, oneshot::Sender<Vec<u8>>);

async fn accept(listener: TcpListener, asked: mpsc::Sender<Question>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let Ok((connection, _)) = listener.accept().await else {
            // Out of memory or descriptors for the moment.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let asked = asked.clone();
        tokio::spawn(async move {
            // However it ends, the connection is closed.
            let _ = converse(connection, &asked).await;
            drop(slot);
        });
    }
}

/// Questions on one connection, one after the other (RFC 7766 allows more, and obliges
/// nobody).
async fn converse(mut connection: TcpStream, asked: &mpsc::Sender<Question>) -> io::Result<()> {
    loop {
        let question = tokio::time::timeout(PATIENCE, async {
            let length = connection.read_u16().await?;
            let mut bytes = vec![0; usize::from(length)];
            connection.read_exact(&mut bytes).await?;
            Ok::<_, io::Error>(bytes)
        });
        let bytes = question.await??;
        let (asker, answer) = oneshot::channel();
        if asked.send((bytes, asker)).await.is_err() {
            return Ok(());
        }
        let answer = tokio::time::timeout(PATIENCE, answer)
            .await?
            .map_err(io::Error::other)?;
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        connection.write_u16(length).await?;
        connection.write_all(&answer).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_questions_are_forgotten() {
        let mut waiting = Waiting {
            next: u32::MAX - 2,
            ..Waiting::default()
        };
        let from = SocketAddr::from(([127, 0, 0, 1], 1));
        let first = waiting.add(Asker::Datagram(from));
        for _ in 0..WAITING - 1 {
            waiting.add(Asker::Datagram(from));
        }
        assert_eq!(waiting.askers.len(), 256);
        let last = waiting.add(Asker::Datagram(from));
        assert_eq!(waiting.askers.len(), 256);
        assert!(waiting.remove(first).is_none());
        assert!(waiting.remove(last).is_some());
    }
}
