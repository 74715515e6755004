//! Networks: which there are, who is on them, and what the host has of them.
//!
//! One lock is held over all of it ([`Networks::with`]): what it does to the host takes
//! milliseconds, and runs on a thread that may block. This service knows containers by ID
//! and name only; what a container wants and has of networks is kept in its own record.

mod create;
mod endpoint;
mod host;
pub mod model;
mod names;
pub mod publish;
mod remove;
mod sandbox;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bulkhead_network::addresses::AddressPool;
use bulkhead_network::dns::Resolver;
use jiff::Timestamp;

pub use create::CreateRequest;
pub use endpoint::check_wishes;
pub use model::{Attachment, Driver, Endpoint, Network, NetworkSettings, Sandbox};
pub use remove::Pruned;
pub use sandbox::{Member, Placement};

use crate::config::Config;
use crate::error::{ApiError, ApiResult};
use crate::events::EventBus;
use crate::store::Store;
use host::Host;
use publish::Publication;

/// The service; clones share it.
#[derive(Debug, Clone)]
pub struct Networks {
    state: Arc<Mutex<State>>,
    store: Store,
    events: EventBus,
    /// Held over a change of which networks there are, from the check to the store.
    changes: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct State {
    host: Host,
    networks: BTreeMap<String, Active>,
    sandboxes: HashMap<String, Live>,
    names: Arc<names::Names>,
}

/// A network and who is on it.
#[derive(Debug)]
struct Active {
    record: Network,
    pools: Vec<AddressPool>,
    /// Whether its interface is there.
    up: bool,
    /// By the ID of the container.
    members: BTreeMap<String, Joined>,
}

/// A container on a network, as others see it.
#[derive(Debug, Clone)]
struct Joined {
    name: String,
    endpoint: Endpoint,
}

/// What only a running daemon has of a container's namespace.
#[derive(Debug)]
struct Live {
    publications: Vec<Publication>,
    resolver: Option<Resolver>,
}

/// A network as it is shown.
#[derive(Debug, Clone)]
pub struct NetworkView {
    /// The record.
    pub record: Network,
    /// Who is on it: ID, name and place.
    pub members: Vec<(String, String, Endpoint)>,
}

impl Active {
    fn new(record: Network) -> Self {
        let pools = record
            .pools
            .iter()
            .map(|pool| {
                let mut addresses = AddressPool::new(pool.subnet, pool.range);
                for address in pool.gateway.iter().chain(pool.reserved.values()) {
                    // Twice the same address is refused when the network is made.
                    let _ = addresses.take(Some(*address));
                }
                addresses
            })
            .collect();
        Self {
            record,
            pools,
            up: false,
            members: BTreeMap::new(),
        }
    }

    fn view(&self) -> NetworkView {
        NetworkView {
            record: self.record.clone(),
            members: self
                .members
                .iter()
                .map(|(id, joined)| (id.clone(), joined.name.clone(), joined.endpoint.clone()))
                .collect(),
        }
    }
}

impl State {
    /// The network that an ID, a name or the unique beginning of an ID means.
    fn find(&self, reference: &str) -> ApiResult<&Active> {
        let missing = || ApiError::not_found(format!("network {reference} not found"));
        if reference.is_empty() {
            return Err(missing());
        }
        if let Some(active) = self.networks.get(reference) {
            return Ok(active);
        }
        let mut all = self.networks.values();
        if let Some(active) = all.find(|active| active.record.name == reference) {
            return Ok(active);
        }
        let mut matches = self
            .networks
            .range(reference.to_owned()..)
            .take_while(|(id, _)| id.starts_with(reference));
        match (matches.next(), matches.next()) {
            (Some((_, only)), None) => Ok(only),
            (Some(_), Some(_)) => Err(ApiError::bad_request(format!(
                "network {reference} is ambiguous ({} matches found based on ID prefix)",
                2 + matches.count()
            ))),
            (None, _) => Err(missing()),
        }
    }
}

impl Networks {
    /// Brings in the networks of the store, and those there are from the start.
    ///
    /// # Errors
    /// That the store can't be read or written.
    pub async fn open(config: &Config, store: Store, events: EventBus) -> ApiResult<Self> {
        let rows = store
            .networks()
            .await
            .map_err(|error| ApiError::internal("read networks", &error))?;
        let mut networks = BTreeMap::new();
        for (id, text) in rows {
            match serde_json::from_str::<Network>(&text) {
                Ok(record) => {
                    networks.insert(id, Active::new(record));
                }
                Err(error) => tracing::error!(%id, %error, "record of a network is damaged"),
            }
        }
        let service = Self {
            state: Arc::new(Mutex::new(State {
                host: Host::new(config),
                networks,
                sandboxes: HashMap::new(),
                names: Arc::default(),
            })),
            store,
            events,
            changes: Arc::default(),
        };
        for (name, driver) in [
            ("bridge", Driver::Bridge),
            ("host", Driver::Host),
            ("none", Driver::Null),
        ] {
            if !service.with(move |state| state.find(name).is_ok()).await? {
                service.add_predefined(name, driver).await?;
            }
        }
        Ok(service)
    }

    /// Works on all of it, alone, on a thread that may block.
    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> ApiResult<T> {
        let state = Arc::clone(&self.state);
        tokio::task::spawn_blocking(move || {
            work(&mut state.lock().unwrap_or_else(PoisonError::into_inner))
        })
        .await
        .map_err(|error| ApiError::internal("networks", &error))
    }

    /// Every network.
    ///
    /// # Errors
    /// That the daemon is ending.
    pub async fn all(&self) -> ApiResult<Vec<NetworkView>> {
        self.with(|state| state.networks.values().map(Active::view).collect())
            .await
    }

    /// The network that an ID, a name or the unique beginning of an ID means.
    ///
    /// # Errors
    /// 404; 400 when several IDs begin like that.
    pub async fn find(&self, reference: &str) -> ApiResult<NetworkView> {
        let reference = reference.to_owned();
        self.with(move |state| state.find(&reference).map(Active::view))
            .await?
    }

    /// What `host-gateway` stands for: the host's address on the default bridge.
    ///
    /// # Errors
    /// That the daemon is ending.
    pub async fn host_gateway(&self) -> ApiResult<Option<IpAddr>> {
        self.with(|state| state.find("bridge").ok()?.record.pools.first()?.gateway)
            .await
    }

    async fn save(&self, record: &Network) -> ApiResult<()> {
        let text = serde_json::to_string(record)
            .map_err(|error| ApiError::internal("encode network", &error))?;
        self.store
            .put_network(record.id.clone(), record.name.clone(), text)
            .await
            .map_err(|error| ApiError::internal("save network", &error))
    }

    fn event(&self, record: &Network, action: &str, container: Option<&str>) {
        let mut attributes = BTreeMap::from([
            ("name".to_owned(), record.name.clone()),
            ("type".to_owned(), record.driver.as_str().to_owned()),
        ]);
        if let Some(container) = container {
            attributes.insert("container".to_owned(), container.to_owned());
        }
        self.events
            .publish("network", action, &record.id, attributes);
    }

    async fn add_predefined(&self, name: &str, driver: Driver) -> ApiResult<()> {
        let record = Network {
            id: super::containers::new_id(),
            name: name.to_owned(),
            created: Timestamp::now(),
            driver,
            ipv4: true,
            ipv6: false,
            internal: false,
            attachable: false,
            labels: BTreeMap::new(),
            options: BTreeMap::new(),
            ipam_options: None,
            pools: Vec::new(),
            idle_pools: Vec::new(),
            bridge: String::new(),
            config_only: false,
            config_from: String::new(),
        };
        let record = match driver {
            Driver::Bridge => {
                self.with(move |state| state.default_bridge(record))
                    .await??
            }
            _ => record,
        };
        self.save(&record).await?;
        self.with(move |state| {
            state
                .networks
                .insert(record.id.clone(), Active::new(record))
        })
        .await?;
        Ok(())
    }
}
