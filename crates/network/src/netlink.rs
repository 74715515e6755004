//! A blocking netlink client: one request, one answer. What it asks for takes the kernel
//! microseconds, so nothing is gained by waiting for it in an event loop, and a socket can be
//! made in one network namespace and used from a thread of another.

use std::io;
use std::marker::PhantomData;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// As large as a datagram of a dump gets (`NLMSG_GOODSIZE`, doubled by callers that offer it).
const BUFFER: usize = 64 << 10;

/// A socket in the network namespace of the thread that opened it, for messages of one
/// protocol.
#[derive(Debug)]
pub(crate) struct Netlink<M = RouteNetlinkMessage> {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
    messages: PhantomData<M>,
}

impl Netlink {
    /// Opens one for interfaces, addresses and routes.
    pub(crate) fn open() -> io::Result<Self> {
        Self::for_protocol(NETLINK_ROUTE)
    }
}

impl<M> Netlink<M>
where
    M: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<M>>,
{
    /// Opens one for the protocol of this number, whose messages are of type `M`.
    pub(crate) fn for_protocol(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(BUFFER),
            messages: PhantomData,
        })
    }

    /// Asks for a change and waits until it is made.
    pub(crate) fn change(&mut self, message: M, flags: u16) -> io::Result<()> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags, |_| ())
    }

    /// Asks for one object.
    pub(crate) fn get(&mut self, message: M) -> io::Result<M> {
        let mut found = None;
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK, |object| {
            found.get_or_insert(object);
        })?;
        found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    /// Asks for all objects of a kind.
    pub(crate) fn dump(&mut self, message: M) -> io::Result<Vec<M>> {
        let mut all = Vec::new();
        self.dump_each(message, |object| all.push(object))?;
        Ok(all)
    }

    /// As [`Netlink::dump`], where there may be many: one after the other.
    pub(crate) fn dump_each(&mut self, message: M, each: impl FnMut(M)) -> io::Result<()> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_DUMP, each)
    }

    fn exchange(&mut self, message: M, flags: u16, mut each: impl FnMut(M)) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.sequence_number = self.sequence;
        header.flags = flags;
        let mut request = NetlinkMessage::new(header, message.into());
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            let mut rest = self.buffer.as_slice();
            while !rest.is_empty() {
                let length = NetlinkBuffer::new_checked(rest)
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?
                    .length();
                let length = usize::try_from(length)
                    .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
                let answer = NetlinkMessage::<M>::deserialize(rest);
                // Messages begin at multiples of four bytes (NLMSG_ALIGN).
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                let answer = match answer {
                    Ok(answer) => answer,
                    // An object that the parser doesn't know is none that we made.
                    Err(error) => {
                        tracing::debug!(%error, "netlink message skipped");
                        continue;
                    }
                };
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(inner) => each(inner),
                    NetlinkPayload::Done(_) => return Ok(()),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }
}
