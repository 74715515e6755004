//! The guest's network interfaces, as the host describes them: all of them at a time, and
//! the agent makes it so.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The most network cards of one machine.
pub const MAX_NICS: usize = 16;
/// The most addresses of one interface.
pub const MAX_ADDRESSES: usize = 64;
/// The most routes of one interface.
pub const MAX_ROUTES: usize = 256;
/// The longest message of the name service (RFC 1035, section 4.2.2).
pub const MAX_DNS_MESSAGE: usize = 65535;

/// A hardware address.
pub type Mac = [u8; 6];

/// One of the machine's network cards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The address that the card was made with, by which it is found.
    pub device: Mac,
    /// What it is now; nothing for a spare one, which the container does not see.
    pub interface: Option<Interface>,
}

/// A network interface of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its address on the link.
    pub mac: Mac,
    /// Longest packet, bytes.
    pub mtu: u32,
    /// Whether it speaks IPv6 at all.
    pub ipv6: bool,
    /// At most [`MAX_ADDRESSES`].
    pub addresses: Vec<Address>,
    /// Those that do not follow from an address, in the order in which they can be added; at
    /// most [`MAX_ROUTES`].
    pub routes: Vec<Route>,
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// The first of them, or one that has it.
    pub address: IpAddr,
    /// How many bits they have in common.
    pub length: u8,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The address, and what is on the link with it.
    pub prefix: Prefix,
    /// The other end, where it is given (a point-to-point link).
    pub peer: Option<IpAddr>,
    /// For broadcasts.
    pub broadcast: Option<Ipv4Addr>,
    /// How far it is valid (`rtnetlink(7)`, `RT_SCOPE_*`).
    pub scope: u8,
    /// IPv6: it is known to be nobody else's.
    pub no_dad: bool,
    /// No route to the prefix follows from it.
    pub no_prefix_route: bool,
}

/// A route through an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// What is reached by it.
    pub destination: Prefix,
    /// By way of whom; nobody when it is on the link.
    pub gateway: Option<IpAddr>,
    /// From which of our addresses.
    pub source: Option<IpAddr>,
    /// Metric.
    pub priority: Option<u32>,
    /// How far it goes (`rtnetlink(7)`, `RT_SCOPE_*`).
    pub scope: u8,
    /// Who has set it (`rtnetlink(7)`, `RTPROT_*`).
    pub protocol: u8,
    /// The gateway is on the link though no prefix says so.
    pub on_link: bool,
}

/// Makes the machine's network what this says. What is the same as before is left alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Every card, at most [`MAX_NICS`].
    pub nics: Vec<Nic>,
}

/// Opens the way of the guest's name queries: after the reply the stream carries
/// [`DnsMessage`]s in both directions, queries from the guest and answers from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolver {
    /// Where the guest is to listen.
    pub address: SocketAddr,
}

/// A query or an answer. On the wire: the transport, one byte; the number, four bytes,
/// big-endian; the length, two; the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsMessage {
    /// By which transport the query came.
    pub tcp: bool,
    /// The answer has the number of its query.
    pub number: u32,
    /// The message, at most [`MAX_DNS_MESSAGE`] bytes.
    pub bytes: Vec<u8>,
}

impl DnsMessage {
    /// Sends it.
    ///
    /// # Errors
    /// The stream's; one for a message that is too long, of which nothing was sent.
    pub async fn write<W>(&self, stream: &mut W) -> std::io::Result<()>
    where
        W: tokio::io::AsyncWrite + Unpin,
    {
        use tokio::io::AsyncWriteExt;
        let length = u16::try_from(self.bytes.len())
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
        let mut bytes = Vec::with_capacity(self.bytes.len() + 7);
        bytes.push(u8::from(self.tcp));
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        bytes.extend(&self.bytes);
        stream.write_all(&bytes).await?;
        stream.flush().await
    }

    /// Receives one.
    ///
    /// # Errors
    /// The stream's.
    pub async fn read<R>(stream: &mut R) -> std::io::Result<Self>
    where
        R: tokio::io::AsyncRead + Unpin,
    {
        use tokio::io::AsyncReadExt;
        let tcp = match stream.read_u8().await? {
            0 => false,
            1 => true,
            _ => return Err(std::io::ErrorKind::InvalidData.into()),
        };
        let number = stream.read_u32().await?;
        let length = stream.read_u16().await?;
        let mut bytes = vec![0; usize::from(length)];
        stream.read_exact(&mut bytes).await?;
        Ok(Self { tcp, number, bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn name_messages_survive_the_wire() {
        let (mut a, mut b) = tokio::io::duplex(1 << 17);
        for message in [
            DnsMessage {
                tcp: false,
                number: 0,
                bytes: Vec::new(),
            },
            DnsMessage {
                tcp: true,
                number: u32::MAX,
                bytes: vec![7; MAX_DNS_MESSAGE],
            },
        ] {
            message.write(&mut a).await.unwrap();
            assert_eq!(DnsMessage::read(&mut b).await.unwrap(), message);
        }
        let long = DnsMessage {
            tcp: true,
            number: 1,
            bytes: vec![0; MAX_DNS_MESSAGE + 1],
        };
        assert!(long.write(&mut a).await.is_err());
        drop(a);
        assert!(DnsMessage::read(&mut b).await.is_err());
        let (mut a, mut b) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut a, &[2; 64])
            .await
            .unwrap();
        assert!(DnsMessage::read(&mut b).await.is_err());
    }
}
