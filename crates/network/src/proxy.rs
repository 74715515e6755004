//! Carries what reaches a claimed port to a container. The kernel does that itself where it
//! can ([`crate::firewall`]); what is left is IPv6's loopback, a host address of one family
//! for a container of the other, and kernels that don't route 127.0.0.0/8.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{AbortHandle, JoinSet};

use crate::ports::Claim;

/// A flow of datagrams is forgotten after this long without an answer.
const UDP_IDLE: Duration = Duration::from_secs(90);
/// Flows of one port at a time; datagrams of more senders are dropped.
const MAX_UDP_FLOWS: usize = 1024;
/// Connections of one port at a time; more wait.
const MAX_CONNECTIONS: usize = 4096;
/// As large as a datagram can be.
const DATAGRAM: usize = 65_536;

/// A proxy that works until this is dropped; the port is free then.
#[derive(Debug)]
pub struct Proxy {
    /// `None`: nothing to carry, only the claim to hold.
    work: Option<AbortHandle>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(work) = &self.work {
            work.abort();
        }
    }
}

/// Starts carrying what reaches `claim` to `target`. Needs a tokio runtime.
///
/// # Errors
/// That the runtime refuses the socket.
pub fn start(claim: Claim, target: SocketAddr) -> io::Result<Proxy> {
    let work = match claim {
        Claim::Tcp(listener) => {
            let listener = TcpListener::from_std(listener)?;
            Some(tokio::spawn(connections(listener, target)).abort_handle())
        }
        Claim::Udp(socket) => {
            let socket = UdpSocket::from_std(socket)?;
            Some(tokio::spawn(datagrams(socket, target)).abort_handle())
        }
        Claim::Sctp(_) => None,
    };
    Ok(Proxy { work })
}

async fn connections(listener: TcpListener, target: SocketAddr) {
    // Ends with this task, and its connections with it.
    let mut open = JoinSet::new();
    loop {
        while open.try_join_next().is_some() {}
        if open.len() >= MAX_CONNECTIONS {
            open.join_next().await;
        }
        match listener.accept().await {
            Ok((client, _)) => {
                open.spawn(carry(client, target));
            }
            Err(error) => {
                tracing::debug!(%error, "accept on a published port");
                // Out of descriptors: those who hold them need a moment.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn carry(mut client: TcpStream, target: SocketAddr) {
    match TcpStream::connect(target).await {
        Ok(mut server) => {
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
        Err(error) => tracing::debug!(%target, %error, "connect to a container"),
    }
}

struct Flow {
    socket: Arc<UdpSocket>,
    answers: AbortHandle,
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

async fn datagrams(socket: UdpSocket, target: SocketAddr) {
    let socket = Arc::new(socket);
    let mut flows: HashMap<SocketAddr, Flow> = HashMap::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            // An ICMP error of an earlier answer.
            continue;
        };
        flows.retain(|_, flow| !flow.answers.is_finished());
        if !flows.contains_key(&client) {
            if flows.len() >= MAX_UDP_FLOWS {
                continue;
            }
            match flow(Arc::clone(&socket), client, target).await {
                Ok(flow) => {
                    flows.insert(client, flow);
                }
                Err(error) => {
                    tracing::debug!(%target, %error, "datagrams to a container");
                    continue;
                }
            }
        }
        if let Some(flow) = flows.get(&client) {
            let _ = flow.socket.send(&buffer[..length]).await;
        }
    }
}

async fn flow(socket: Arc<UdpSocket>, client: SocketAddr, target: SocketAddr) -> io::Result<Flow> {
    let any = match target {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    };
    let upstream = UdpSocket::bind(any).await?;
    upstream.connect(target).await?;
    let upstream = Arc::new(upstream);
    let reader = Arc::clone(&upstream);
    let answers = tokio::spawn(async move {
        let mut buffer = vec![0; DATAGRAM];
        while let Ok(Ok(length)) = tokio::time::timeout(UDP_IDLE, reader.recv(&mut buffer)).await {
            if socket.send_to(&buffer[..length], client).await.is_err() {
                break;
            }
        }
    });
    Ok(Flow {
        socket: upstream,
        answers: answers.abort_handle(),
    })
}
