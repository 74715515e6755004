//! The guest's name queries, asked again from the container's network namespace, where
//! whoever made the namespace answers them at Docker's usual address. A guest that floods us
//! loses queries, as on any network; nothing else of what it says matters.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_agent_protocol::{DnsMessage, MAX_DNS_MESSAGE, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};

/// Where a container finds its resolver.
pub const RESOLVER: SocketAddr =
    SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53));

/// Queries on their way at a time; those beyond are lost.
const IN_FLIGHT: usize = 64;
/// Longer than any client waits for one query.
const PATIENCE: Duration = Duration::from_secs(15);

/// Serves until the stream ends, in a thread that is in the namespace.
pub async fn serve(stream: Stream) {
    let (mut queries, mut answers) = tokio::io::split(stream);
    let (sender, mut queue) = mpsc::channel::<DnsMessage>(IN_FLIGHT);
    let writing = tokio::spawn(async move {
        while let Some(answer) = queue.recv().await {
            if answer.write(&mut answers).await.is_err() {
                break;
            }
        }
    });
    let slots = Arc::new(Semaphore::new(IN_FLIGHT));
    // An error is the machine's end.
    while let Ok(query) = DnsMessage::read(&mut queries).await {
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            continue;
        };
        let sender = sender.clone();
        tokio::spawn(async move {
            let (tcp, number) = (query.tcp, query.number);
            match tokio::time::timeout(PATIENCE, ask(query)).await {
                Ok(Ok(bytes)) => {
                    let answer = DnsMessage { tcp, number, bytes };
                    // Nobody is left to be answered when that fails.
                    let _ = sender.send(answer).await;
                }
                Ok(Err(error)) => tracing::debug!(%error, "a name query has no answer"),
                Err(_) => tracing::debug!("a name query has no answer in time"),
            }
            drop(slot);
        });
    }
    writing.abort();
}

async fn ask(query: DnsMessage) -> io::Result<Vec<u8>> {
    if query.tcp {
        let length = u16::try_from(query.bytes.len()).map_err(io::Error::other)?;
        let mut socket = TcpStream::connect(RESOLVER).await?;
        socket.write_u16(length).await?;
        socket.write_all(&query.bytes).await?;
        let mut bytes = vec![0; usize::from(socket.read_u16().await?)];
        socket.read_exact(&mut bytes).await?;
        Ok(bytes)
    } else {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        socket.connect(RESOLVER).await?;
        socket.send(&query.bytes).await?;
        let mut bytes = vec![0; MAX_DNS_MESSAGE];
        let length = socket.recv(&mut bytes).await?;
        bytes.truncate(length);
        Ok(bytes)
    }
}
