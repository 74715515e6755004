//! The container's network, brought to its VM.
//!
//! Whoever made the container's network namespace (our daemon, CNI) put interfaces into it
//! as for any container. Here each gets a tap device beside it, joined to it both ways; the
//! VM's network cards are the taps, and what the interfaces had (addresses, routes) the
//! guest gets. Interfaces that come later go to spare cards. Everything made here is in the
//! namespace and ends with the descriptors that the worker holds, or with the namespace.

mod interfaces;
mod namespace;
mod relay;
mod tap;
mod traffic;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use bulkhead_agent_protocol::{Interface, MAX_NICS, Mac, Nic, Prefix, Stream};
use bulkhead_isolation::{ErrorKind, IsolationError};
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::{Handle, LinkUnspec};

use interfaces::Found;
use namespace::Namespace;
pub use relay::RESOLVER;

/// Cards without an interface that a machine starts with: it can be connected to so many
/// networks more while it runs.
const SPARE_CARDS: usize = 2;

/// The network of a VM cannot be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The namespace cannot be entered.
    #[error("cannot enter the network namespace {}", .path.display())]
    Namespace {
        /// Its file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel's netlink said no.
    #[error("cannot {doing}")]
    Netlink {
        /// What was being done.
        doing: String,
        /// What it said.
        source: rtnetlink::Error,
    },
    /// The system said no.
    #[error("cannot {doing}")]
    System {
        /// What was being done.
        doing: String,
        /// What it said.
        source: io::Error,
    },
    /// More interfaces than a machine has cards.
    #[error("a VM has at most {MAX_NICS} network interfaces, and its network namespace {0}")]
    TooMany(usize),
    /// An interface that a guest would not be given.
    #[error("the interface {0} has more addresses or routes than a VM takes")]
    TooLong(String),
    /// No card is left.
    #[error(
        "no network card is left in the VM for {name}: it was started with {cards}; start it \
         again to connect it to more networks"
    )]
    NoSpare {
        /// The interface.
        name: String,
        /// How many there are.
        cards: usize,
    },
}

impl From<NetworkError> for IsolationError {
    fn from(error: NetworkError) -> Self {
        let kind = match &error {
            NetworkError::Namespace { .. }
            | NetworkError::Netlink { .. }
            | NetworkError::System { .. } => ErrorKind::Other,
            NetworkError::TooMany(_) | NetworkError::TooLong(_) => ErrorKind::InvalidArgument,
            NetworkError::NoSpare { .. } => ErrorKind::FailedPrecondition,
        };
        match std::error::Error::source(&error) {
            Some(source) => Self::new(kind, format!("{error}: {source}")),
            None => Self::new(kind, error.to_string()),
        }
    }
}

fn netlink(doing: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
    let doing = doing.into();
    move |source| NetworkError::Netlink { doing, source }
}

fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let doing = doing.into();
    move |source| NetworkError::System { doing, source }
}

/// A network card of the machine.
#[derive(Debug, Clone)]
struct Card {
    /// The address that it is made with.
    device: Mac,
    tap: Tap,
    joined: Option<Joined>,
}

#[derive(Debug, Clone)]
struct Tap {
    index: u32,
    name: String,
}

#[derive(Debug, Clone)]
struct Joined {
    index: u32,
    /// With the addresses and routes that were taken off it.
    interface: Interface,
}

/// A VM's network; without a namespace there is none.
#[derive(Debug, Default)]
pub struct VmNetwork {
    namespace: Option<Namespace>,
    cards: Vec<Card>,
}

impl VmNetwork {
    /// Makes a tap for every interface of the namespace, and the spare ones, in its order.
    /// Nothing is joined yet, and the interfaces are as they were. Without a namespace there
    /// is no network but the guest's loopback.
    ///
    /// # Errors
    /// See [`NetworkError`]; nothing is left then.
    pub async fn prepare(namespace: Option<&Path>) -> Result<(Self, Vec<OwnedFd>), NetworkError> {
        let Some(path) = namespace else {
            let none = Self {
                namespace: None,
                cards: Vec::new(),
            };
            return Ok((none, Vec::new()));
        };
        let namespace = Namespace::open(path)?;
        let made = namespace.run(|| make_cards(MAX_NICS)).await??;
        let (cards, taps) = made.into_iter().unzip();
        let network = Self {
            namespace: Some(namespace),
            cards,
        };
        Ok((network, taps))
    }

    /// The cards as the machine is made with them.
    pub fn nics(&self) -> Vec<bulkhead_machine::Nic> {
        self.cards
            .iter()
            .map(|card| bulkhead_machine::Nic { mac: card.device })
            .collect()
    }

    /// Joins interfaces that are new, parts those that are gone, and takes over addresses
    /// that were set anew. What the guest is to be told.
    ///
    /// # Errors
    /// See [`NetworkError`]. What was joined before still is.
    pub async fn refresh(&mut self) -> Result<Vec<Nic>, NetworkError> {
        let Some(namespace) = &self.namespace else {
            return Ok(Vec::new());
        };
        let cards = self.cards.clone();
        let (cards, done) = namespace.run(|| refresh_cards(cards)).await?;
        self.cards = cards;
        done?;
        Ok(self.description())
    }

    fn description(&self) -> Vec<Nic> {
        self.cards
            .iter()
            .map(|card| Nic {
                device: card.device,
                interface: card.joined.as_ref().map(|joined| joined.interface.clone()),
            })
            .collect()
    }

    /// Parts what is joined, for a machine that was not made in the end.
    pub async fn release(&mut self) {
        let Some(namespace) = &self.namespace else {
            return;
        };
        let joined: Vec<u32> = self
            .cards
            .iter_mut()
            .filter_map(|card| card.joined.take())
            .map(|joined| joined.index)
            .collect();
        if joined.is_empty() {
            return;
        }
        let parted = namespace
            .run(|| async move {
                let handle = connect()?;
                for index in joined {
                    traffic::part(&handle, index).await;
                }
                Ok::<(), NetworkError>(())
            })
            .await;
        if let Err(error) | Ok(Err(error)) = parted {
            tracing::warn!(%error, "interfaces of a failed VM stay redirected");
        }
    }

    /// Answers the guest's name queries, which come by this stream, from the namespace.
    pub fn serve_names(&self, stream: Stream) {
        let Some(namespace) = self.namespace.clone() else {
            return;
        };
        tokio::spawn(async move {
            if let Err(error) = namespace.run(|| relay::serve(stream)).await {
                tracing::warn!(%error, "the guest's names are not resolved");
            }
        });
    }
}

/// A netlink socket of the calling thread's namespace, driven by its runtime.
fn connect() -> Result<Handle, NetworkError> {
    let (connection, handle, _) =
        rtnetlink::new_connection().map_err(system("open a netlink socket"))?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn make_cards(most: usize) -> Result<Vec<(Card, OwnedFd)>, NetworkError> {
    let handle = connect()?;
    let found = interfaces::read(&handle).await?;
    let count = most.min(found.len() + SPARE_CARDS);
    let mut macs: Vec<Mac> = found.iter().map(|found| found.interface.mac).collect();
    while macs.len() < count {
        let mac = random_mac()?;
        if !macs.contains(&mac) {
            macs.push(mac);
        }
    }
    let mut cards = Vec::with_capacity(count);
    for (number, device) in macs.into_iter().enumerate() {
        let (name, descriptor) = tap::create(number)?;
        let index = index(&name)?;
        let tap = Tap { index, name };
        let card = Card {
            device,
            tap,
            joined: None,
        };
        cards.push((card, descriptor));
    }
    Ok(cards)
}

/// The number of an interface of the calling thread's namespace.
fn index(name: &str) -> Result<u32, NetworkError> {
    let failed = |source: io::Error| system(format!("find the interface {name}"))(source);
    let terminated = std::ffi::CString::new(name).map_err(|error| failed(error.into()))?;
    // SAFETY: the name is terminated and lives through the call, which only reads it.
    match unsafe { libc::if_nametoindex(terminated.as_ptr()) } {
        0 => Err(failed(io::Error::last_os_error())),
        index => Ok(index),
    }
}

/// An address of nobody's: locally administered, not a group's.
fn random_mac() -> Result<Mac, NetworkError> {
    use io::Read;
    let mut mac = Mac::default();
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut mac))
        .map_err(system("read random bytes"))?;
    mac[0] = mac[0] & 0xfc | 0x02;
    Ok(mac)
}

/// See [`VmNetwork::refresh`]; the cards as they are then come back even when it failed.
async fn refresh_cards(mut cards: Vec<Card>) -> (Vec<Card>, Result<(), NetworkError>) {
    let done = async {
        let handle = connect()?;
        let mut found = interfaces::read(&handle).await?;
        forget_replaced_defaults(&mut cards, &found);
        for card in &mut cards {
            let Some(joined) = &mut card.joined else {
                continue;
            };
            match found.iter().position(|found| found.index == joined.index) {
                Some(position) => {
                    let found = found.remove(position);
                    keep(&handle, &card.tap, joined, found).await?;
                }
                None => {
                    traffic::part(&handle, card.tap.index).await;
                    card.joined = None;
                }
            }
        }
        for found in found {
            let free = free_card(&cards, found.interface.mac).ok_or_else(|| {
                let name = found.interface.name.clone();
                NetworkError::NoSpare {
                    name,
                    cards: cards.len(),
                }
            })?;
            let card = &mut cards[free];
            add(&handle, &card.tap, &found).await?;
            card.joined = Some(Joined {
                index: found.index,
                interface: found.interface,
            });
        }
        Ok(())
    }
    .await;
    (cards, done)
}

/// A namespace has one way out of each family. Where one was set since, it is in place of
/// the one that was taken off some interface before.
fn forget_replaced_defaults(cards: &mut [Card], found: &[Found]) {
    let new: Vec<Prefix> = found
        .iter()
        .flat_map(|found| &found.interface.routes)
        .map(|route| route.destination)
        .filter(|destination| destination.length == 0)
        .collect();
    for joined in cards.iter_mut().filter_map(|card| card.joined.as_mut()) {
        let known = &mut joined.interface.routes;
        known.retain(|known| !new.contains(&known.destination));
    }
}

/// The card that was made for such an interface, else any that is free.
fn free_card(cards: &[Card], mac: Mac) -> Option<usize> {
    let free = || (0..cards.len()).filter(|index| cards[*index].joined.is_none());
    free()
        .find(|index| cards[*index].device == mac)
        .or_else(|| free().next())
}

async fn add(handle: &Handle, tap: &Tap, found: &Found) -> Result<(), NetworkError> {
    set_up(handle, tap, found.interface.mtu).await?;
    interfaces::strip(handle, found).await?;
    traffic::join(handle, found.index, tap.index).await
}

/// An interface that is joined already: only what was set since is new.
async fn keep(
    handle: &Handle,
    tap: &Tap,
    joined: &mut Joined,
    found: Found,
) -> Result<(), NetworkError> {
    let now = &found.interface;
    if !now.addresses.is_empty() || !now.routes.is_empty() {
        interfaces::strip(handle, &found).await?;
    }
    if !now.addresses.is_empty() {
        joined.interface.addresses = now.addresses.clone();
        joined.interface.routes.clear();
    }
    for route in &now.routes {
        let known = &mut joined.interface.routes;
        known.retain(|known| known.destination != route.destination);
        known.push(route.clone());
    }
    joined.interface.ipv6 = now.ipv6;
    if joined.interface.mtu != now.mtu {
        set_up(handle, tap, now.mtu).await?;
        joined.interface.mtu = now.mtu;
    }
    joined.interface.name = now.name.clone();
    joined.interface.mac = now.mac;
    Ok(())
}

/// Makes a tap ready; it has nothing to say of its own.
async fn set_up(handle: &Handle, tap: &Tap, mtu: u32) -> Result<(), NetworkError> {
    interfaces::no_ipv6(&tap.name)?;
    let message: LinkMessage = LinkUnspec::new_with_index(tap.index).mtu(mtu).up().build();
    handle
        .link()
        .set(message)
        .execute()
        .await
        .map_err(netlink(format!("set up the tap device {}", tap.name)))
}
