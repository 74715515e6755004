//! A resolver for one network namespace: names of containers are answered from a
//! [`Directory`], everything else is passed on, from the host's namespace.
//!
//! It listens on ports of its own and a rule in the namespace sends 127.0.0.11:53 there, so
//! that a name server in the container finds its port free. What arrives was written by a
//! container: it is bounded, and what cannot be parsed is dropped or refused.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, JoinSet};

use crate::firewall::{FirewallError, redirect_in_namespace};
use crate::namespace::within;

/// Where containers find it.
pub const RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11)), 53);
/// Questions of one namespace that are worked on at a time; more wait.
const MAX_QUESTIONS: usize = 128;
/// Connections of one namespace at a time; more wait.
const MAX_CONNECTIONS: usize = 64;
/// How long one server that a question is passed on to may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long a connection may be idle.
const IDLE: Duration = Duration::from_secs(30);
/// As long as answers about containers may be kept, seconds.
const TTL: u32 = 600;
/// As large as a message can be.
const MESSAGE: usize = 65_535;
/// Plain DNS over UDP, without an extension that says otherwise (RFC 1035, section 4.2.1).
const PLAIN_MESSAGE: usize = 512;

/// What a resolver answers from.
pub trait Directory: Send + Sync + 'static {
    /// The addresses of a name, lower case and without the last dot; `None`: not known here.
    fn addresses(&self, name: &str) -> Option<Vec<IpAddr>>;
    /// The name of an address.
    fn name_of(&self, address: IpAddr) -> Option<String>;
    /// The servers that other questions are passed on to; none: they are refused.
    fn servers(&self) -> Vec<IpAddr>;
}

/// Why a resolver did not start.
#[derive(Debug, thiserror::Error)]
pub enum ResolverError {
    /// Its sockets.
    #[error("cannot listen in the network namespace")]
    Listen(#[source] io::Error),
    /// Its rule.
    #[error("cannot redirect the resolver's port")]
    Redirect(#[from] FirewallError),
}

/// A resolver that answers until this is dropped.
#[derive(Debug)]
pub struct Resolver {
    tasks: [AbortHandle; 2],
}

impl Drop for Resolver {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Starts a resolver in the namespace at `netns`. Blocks for some milliseconds; needs a tokio
/// runtime.
///
/// # Errors
/// [`ResolverError`]; nothing is left in the namespace then but an empty table at most.
pub fn start(netns: &Path, directory: Arc<dyn Directory>) -> Result<Resolver, ResolverError> {
    let (udp, tcp) = within(netns, || {
        let any = SocketAddr::new(RESOLVER.ip(), 0);
        let udp = std::net::UdpSocket::bind(any)?;
        let tcp = std::net::TcpListener::bind(any)?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok((udp, tcp))
    })
    .map_err(ResolverError::Listen)?;
    let addresses = udp
        .local_addr()
        .and_then(|one| Ok((one, tcp.local_addr()?)));
    let (udp_at, tcp_at) = addresses.map_err(ResolverError::Listen)?;
    let udp = UdpSocket::from_std(udp).map_err(ResolverError::Listen)?;
    let tcp = TcpListener::from_std(tcp).map_err(ResolverError::Listen)?;
    redirect_in_namespace(netns, RESOLVER, udp_at, tcp_at)?;
    let questions = Arc::new(Semaphore::new(MAX_QUESTIONS));
    Ok(Resolver {
        tasks: [
            tokio::spawn(serve_udp(
                udp,
                Arc::clone(&directory),
                Arc::clone(&questions),
            ))
            .abort_handle(),
            tokio::spawn(serve_tcp(tcp, directory)).abort_handle(),
        ],
    })
}

async fn serve_udp(socket: UdpSocket, directory: Arc<dyn Directory>, questions: Arc<Semaphore>) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; MESSAGE];
    let mut open = JoinSet::new();
    loop {
        while open.try_join_next().is_some() {}
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let Ok(permit) = Arc::clone(&questions).acquire_owned().await else {
            return;
        };
        let question = buffer[..length].to_vec();
        let (socket, directory) = (Arc::clone(&socket), Arc::clone(&directory));
        open.spawn(async move {
            let _permit: OwnedSemaphorePermit = permit;
            if let Some(answer) = answer(&question, &*directory, false).await {
                let _ = socket.send_to(&answer, client).await;
            }
        });
    }
}

async fn serve_tcp(listener: TcpListener, directory: Arc<dyn Directory>) {
    let mut open = JoinSet::new();
    loop {
        while open.try_join_next().is_some() {}
        if open.len() >= MAX_CONNECTIONS {
            open.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                let directory = Arc::clone(&directory);
                open.spawn(async move {
                    let _ = converse(stream, &*directory).await;
                });
            }
            // Out of descriptors: those who hold them need a moment.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn converse(mut stream: TcpStream, directory: &dyn Directory) -> io::Result<()> {
    while let Ok(question) = tokio::time::timeout(IDLE, read_message(&mut stream)).await {
        if let Some(answer) = answer(&question?, directory, true).await {
            write_message(&mut stream, &answer).await?;
        }
    }
    Ok(())
}

/// A message over TCP has its length before it (RFC 1035, section 4.2.2).
async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length =
        u16::try_from(message.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let mut whole = length.to_be_bytes().to_vec();
    whole.extend_from_slice(message);
    stream.write_all(&whole).await
}

/// The answer to a question; none to what is no question.
async fn answer(bytes: &[u8], directory: &dyn Directory, tcp: bool) -> Option<Vec<u8>> {
    let question = Message::from_vec(bytes).ok()?;
    if question.metadata.message_type != MessageType::Query {
        return None;
    }
    let refuse = |code| refusal(&question, code);
    if question.metadata.op_code != OpCode::Query {
        return refuse(ResponseCode::NotImp);
    }
    let [query] = question.queries.as_slice() else {
        return refuse(ResponseCode::FormErr);
    };
    if let Some(records) = look_up(query, directory) {
        return own_answer(&question, query, records, tcp);
    }
    let servers = directory.servers();
    for server in servers {
        let server = SocketAddr::new(server, 53);
        match tokio::time::timeout(PATIENCE, pass_on(bytes, server, tcp)).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => tracing::debug!(%server, %error, "name server"),
            Err(_) => tracing::debug!(%server, "name server does not answer"),
        }
    }
    refuse(ResponseCode::ServFail)
}

/// What the directory knows; `None`: nothing, not even the name.
fn look_up(query: &Query, directory: &dyn Directory) -> Option<Vec<RData>> {
    if query.query_class() != DNSClass::IN {
        return None;
    }
    if query.query_type() == RecordType::PTR {
        let address = query.name().parse_arpa_name().ok()?;
        if address.prefix_len() != address.max_prefix_len() {
            return None;
        }
        let name = directory.name_of(address.addr())?;
        return Some(vec![RData::PTR(PTR(Name::from_ascii(name).ok()?))]);
    }
    let name = query.name().to_ascii().to_ascii_lowercase();
    let addresses = directory.addresses(name.trim_end_matches('.'))?;
    Some(
        addresses
            .into_iter()
            .filter_map(|address| match (query.query_type(), address) {
                (RecordType::A, IpAddr::V4(v4)) => Some(RData::A(A(v4))),
                (RecordType::AAAA, IpAddr::V6(v6)) => Some(RData::AAAA(AAAA(v6))),
                _ => None,
            })
            .collect(),
    )
}

fn own_answer(
    question: &Message,
    query: &Query,
    mut records: Vec<RData>,
    tcp: bool,
) -> Option<Vec<u8>> {
    // Who shares a name shares the questions.
    if records.len() > 1 {
        let first = rand::random_range(0..records.len());
        records.rotate_left(first);
    }
    let mut out = Message::response(question.metadata.id, OpCode::Query);
    out.metadata.recursion_desired = question.metadata.recursion_desired;
    out.metadata.recursion_available = true;
    out.add_query(query.clone());
    for data in records {
        out.add_answer(Record::from_rdata(query.name().clone(), TTL, data));
    }
    let limit = match &question.edns {
        _ if tcp => MESSAGE,
        Some(edns) => usize::from(edns.max_payload()).max(PLAIN_MESSAGE),
        None => PLAIN_MESSAGE,
    };
    let bytes = out.to_vec().ok()?;
    match bytes.len() <= limit {
        true => Some(bytes),
        false => out.truncate().to_vec().ok(),
    }
}

fn refusal(question: &Message, code: ResponseCode) -> Option<Vec<u8>> {
    let mut out = Message::error_msg(question.metadata.id, question.metadata.op_code, code);
    out.metadata.recursion_desired = question.metadata.recursion_desired;
    out.metadata.recursion_available = true;
    out.add_queries(question.queries.iter().cloned());
    out.to_vec().ok()
}

/// Asks another server; the answer is passed back as it is.
async fn pass_on(question: &[u8], server: SocketAddr, tcp: bool) -> io::Result<Vec<u8>> {
    if tcp {
        let mut stream = TcpStream::connect(server).await?;
        write_message(&mut stream, question).await?;
        return read_message(&mut stream).await;
    }
    let any = match server {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    };
    // A port of its own for every question: a forged answer has to guess it.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; MESSAGE];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if length >= 12 && buffer[..2] == question[..2] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Directory for Fixed {
        fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
            (name == "my_web").then(|| vec!["10.0.0.2".parse().unwrap()])
        }

        fn name_of(&self, address: IpAddr) -> Option<String> {
            (address.to_string() == "10.0.0.2").then(|| "my_web.net".to_owned())
        }

        fn servers(&self) -> Vec<IpAddr> {
            Vec::new()
        }
    }

    async fn ask(name: &str, kind: RecordType) -> Message {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        let bytes = question.to_vec().unwrap();
        let answer = answer(&bytes, &Fixed, false).await.unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.metadata.id, question.metadata.id);
        answer
    }

    #[tokio::test]
    async fn names_are_answered() {
        let found = ask("My_Web.", RecordType::A).await;
        assert_eq!(found.answers.len(), 1);
        assert_eq!(found.answers[0].data.to_string(), "10.0.0.2");
        // The name is there, though not with an address of that family.
        let other = ask("my_web.", RecordType::AAAA).await;
        assert_eq!(other.metadata.response_code, ResponseCode::NoError);
        assert!(other.answers.is_empty());
        let back = ask("2.0.0.10.in-addr.arpa.", RecordType::PTR).await;
        assert_eq!(back.answers[0].data.to_string(), "my_web.net.");
        let unknown = ask("elsewhere.", RecordType::A).await;
        assert_eq!(unknown.metadata.response_code, ResponseCode::ServFail);
    }

    #[tokio::test]
    async fn garbage_is_not_answered() {
        for bytes in [&b""[..], &[0; 3], &[0xff; 600], &[0; 12]] {
            let reply = answer(bytes, &Fixed, false).await;
            if let Some(reply) = reply {
                let reply = Message::from_vec(&reply).unwrap();
                assert_ne!(reply.metadata.response_code, ResponseCode::NoError);
            }
        }
    }
}
