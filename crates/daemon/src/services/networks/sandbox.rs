//! Containers on networks: joining when they start, leaving when they end, and between.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use axum::http::StatusCode;
use bulkhead_network::dns;
use bulkhead_network::link::{self, InterfaceAddress, VethConfig, WayOut};

use super::endpoint::{addresses_of, made_up_mac, names_of, take_addresses};
use super::host::link_error;
use super::model::{Attachment, Driver, Endpoint, Network, NetworkSettings, Sandbox, parse_mac};
use super::names::Outlook;
use super::publish::{self, PortRequest, Publication};
use super::{Joined, Live, Networks, State};
use crate::error::{ApiError, ApiResult};

/// A container, as far as networks know it.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its ID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The file of its namespace.
    pub netns: PathBuf,
    /// Names beside that and its aliases.
    pub hostname: String,
    /// What it wants published.
    pub ports: Vec<PortRequest>,
    /// The name servers that its user chose.
    pub servers: Vec<IpAddr>,
    /// The hardware address of its first interface, when its user chose one.
    pub mac: Option<String>,
}

/// Where a container is now.
#[derive(Debug, Clone)]
pub struct Placement {
    /// The attachments, with the networks' names and IDs.
    pub attachments: Vec<Attachment>,
    /// What it has.
    pub sandbox: Sandbox,
}

/// What a failed step undoes, and what is to be told afterwards.
#[derive(Debug, Default)]
struct Changes {
    /// Records of networks that were changed on the way.
    networks: Vec<Network>,
}

impl Networks {
    /// Puts a container that starts on its networks: interfaces in its namespace, which is
    /// there and empty, and published ports. On an error nothing is left.
    ///
    /// # Errors
    /// 404 for a network that is gone, 403 for an address that is taken, 500 for a port that
    /// is taken: Docker's classes.
    pub async fn join(&self, member: Member, attachments: Vec<Attachment>) -> ApiResult<Placement> {
        let id = member.id.clone();
        let (placement, changes) = self
            .with(move |state| {
                let mut changes = Changes::default();
                let outcome = state.join(&member, attachments, &mut changes);
                if outcome.is_err() {
                    state.leave(&member.id);
                }
                outcome.map(|placement| (placement, changes))
            })
            .await??;
        self.tell(&id, &placement.sandbox.endpoints, "connect", changes)
            .await?;
        Ok(placement)
    }

    /// Takes a container that ended off its networks; succeeds when it is on none.
    pub async fn leave(&self, id: &str) {
        let container = id.to_owned();
        let left = self.with(move |state| state.leave(&container)).await;
        for record in left.unwrap_or_default() {
            self.event(&record, "disconnect", Some(id));
        }
    }

    /// Puts a running container on one more network.
    ///
    /// # Errors
    /// As [`Networks::join`].
    pub async fn connect(
        &self,
        member: Member,
        settings: NetworkSettings,
        attachment: Attachment,
    ) -> ApiResult<Placement> {
        let id = member.id.clone();
        let (placement, endpoint, changes) = self
            .with(move |state| {
                let mut changes = Changes::default();
                state
                    .connect(&member, settings, attachment, &mut changes)
                    .map(|(placement, endpoint)| (placement, endpoint, changes))
            })
            .await??;
        self.tell(&id, &[endpoint], "connect", changes).await?;
        Ok(placement)
    }

    /// Takes a running container off a network.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn disconnect(
        &self,
        member: Member,
        settings: NetworkSettings,
        network_id: String,
    ) -> ApiResult<Placement> {
        let id = member.id.clone();
        let network = self.find(&network_id).await.map(|view| view.record);
        let placement = self
            .with(move |state| state.disconnect(&member, settings, &network_id))
            .await??;
        if let Ok(network) = network {
            self.event(&network, "disconnect", Some(&id));
        }
        Ok(placement)
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// That the daemon is ending.
    pub async fn rename(&self, id: &str, name: &str) -> ApiResult<()> {
        let (id, name) = (id.to_owned(), name.to_owned());
        self.with(move |state| {
            for active in state.networks.values_mut() {
                if let Some(joined) = active.members.get_mut(&id) {
                    let old = std::mem::replace(&mut joined.name, name.clone());
                    joined.endpoint.names.retain(|other| *other != old);
                    state.names.update_zone(active);
                }
            }
        })
        .await
    }

    /// Takes over a container that runs since before this daemon; gives the ports that it has.
    ///
    /// # Errors
    /// That the daemon is ending.
    pub async fn adopt(&self, member: Member, settings: NetworkSettings) -> ApiResult<()> {
        self.with(move |state| state.adopt(member, settings)).await
    }

    /// Once every running container was adopted: makes the host have what is known, and
    /// nothing else of ours.
    ///
    /// # Errors
    /// What the host refuses.
    pub async fn settle(&self) -> ApiResult<()> {
        let changed = self
            .with(|state| {
                let wanted: Vec<String> = state
                    .networks
                    .values()
                    .filter(|active| !active.record.is_predefined() || !active.members.is_empty())
                    .map(|active| active.record.id.clone())
                    .collect();
                let mut changed = Vec::new();
                for id in wanted {
                    match state.ensure_up(&id) {
                        Ok(record) => changed.extend(record),
                        // Whoever wants to use it is told then.
                        Err(error) => tracing::error!(network = %id, %error, "network is down"),
                    }
                }
                state.sweep().map(|()| changed)
            })
            .await??;
        for record in changed {
            self.save(&record).await?;
        }
        Ok(())
    }

    /// Takes away what no container needs while no daemon runs.
    pub async fn close(&self) {
        let closed = self
            .with(|state| {
                let unused: Vec<String> = state
                    .networks
                    .values()
                    .filter(|active| active.members.is_empty())
                    .map(|active| active.record.id.clone())
                    .collect();
                for id in unused {
                    if let Err(error) = state.take_down(&id) {
                        tracing::error!(network = %id, %error, "bridge left behind");
                    }
                }
                // Ports stay published; their claims and proxies go with this process.
                let outcome = state.apply_rules();
                state.sandboxes.clear();
                outcome
            })
            .await;
        if let Ok(Err(error)) | Err(error) = closed {
            tracing::error!(%error, "rules left behind");
        }
    }

    async fn tell(
        &self,
        container: &str,
        endpoints: &[Endpoint],
        action: &str,
        changes: Changes,
    ) -> ApiResult<()> {
        for record in changes.networks {
            self.save(&record).await?;
        }
        for endpoint in endpoints {
            if let Ok(view) = self.find(&endpoint.network_id).await {
                self.event(&view.record, action, Some(container));
            }
        }
        Ok(())
    }
}

impl State {
    fn join(
        &mut self,
        member: &Member,
        mut attachments: Vec<Attachment>,
        changes: &mut Changes,
    ) -> ApiResult<Placement> {
        self.sandboxes.insert(
            member.id.clone(),
            Live {
                publications: Vec::new(),
                resolver: None,
            },
        );
        let mut sandbox = Sandbox {
            id: super::super::containers::new_id(),
            key: member.netns.clone(),
            endpoints: Vec::new(),
            ports: Vec::new(),
            gateway_network: None,
            gateway6_network: None,
            resolver: false,
        };
        for attachment in &mut attachments {
            self.resolve(attachment)?;
            if self.driver_of(&attachment.network_id) == Some(Driver::Bridge) {
                let mac = attachment
                    .mac
                    .as_ref()
                    .or(member.mac.as_ref().filter(|_| sandbox.endpoints.is_empty()));
                let mac = mac.cloned();
                let endpoint =
                    self.attach(member, attachment, mac.as_deref(), &sandbox, changes)?;
                sandbox.endpoints.push(endpoint);
            }
        }
        self.route(member, &attachments, &mut sandbox)?;
        self.publish(member, &mut sandbox)?;
        self.resolve_names(member, &attachments, &mut sandbox)?;
        Ok(Placement {
            attachments,
            sandbox,
        })
    }

    fn connect(
        &mut self,
        member: &Member,
        settings: NetworkSettings,
        mut attachment: Attachment,
        changes: &mut Changes,
    ) -> ApiResult<(Placement, Endpoint)> {
        let mut sandbox = settings
            .sandbox
            .ok_or_else(|| ApiError::conflict(format!("container {} is not running", member.id)))?;
        self.resolve(&mut attachment)?;
        let network_id = attachment.network_id.clone();
        let mac = attachment.mac.clone();
        let endpoint = self.attach(member, &attachment, mac.as_deref(), &sandbox, changes)?;
        sandbox.endpoints.push(endpoint.clone());
        let mut attachments = settings.attachments;
        attachments.retain(|other| other.network_id != network_id);
        attachments.push(attachment);
        let done = self
            .route(member, &attachments, &mut sandbox)
            .and_then(|()| self.publish(member, &mut sandbox))
            .and_then(|()| self.resolve_names(member, &attachments, &mut sandbox));
        if let Err(error) = done {
            self.detach(&member.id, &network_id);
            return Err(error);
        }
        Ok((
            Placement {
                attachments,
                sandbox,
            },
            endpoint,
        ))
    }

    fn disconnect(
        &mut self,
        member: &Member,
        settings: NetworkSettings,
        network_id: &str,
    ) -> ApiResult<Placement> {
        let mut sandbox = settings
            .sandbox
            .ok_or_else(|| ApiError::conflict(format!("container {} is not running", member.id)))?;
        self.detach(&member.id, network_id);
        sandbox
            .endpoints
            .retain(|endpoint| endpoint.network_id != network_id);
        let mut attachments = settings.attachments;
        attachments.retain(|attachment| attachment.network_id != network_id);
        self.route(member, &attachments, &mut sandbox)?;
        self.publish(member, &mut sandbox)?;
        self.resolve_names(member, &attachments, &mut sandbox)?;
        Ok(Placement {
            attachments,
            sandbox,
        })
    }

    fn adopt(&mut self, member: Member, settings: NetworkSettings) {
        let Some(mut sandbox) = settings.sandbox else {
            return;
        };
        for endpoint in &sandbox.endpoints {
            let Some(active) = self.networks.get_mut(&endpoint.network_id) else {
                tracing::error!(container = %member.id, "runs on a network that is gone");
                continue;
            };
            for address in addresses_of(endpoint) {
                for pool in &mut active.pools {
                    let _ = pool.take(Some(address.address));
                }
            }
            active.members.insert(
                member.id.clone(),
                Joined {
                    name: member.name.clone(),
                    endpoint: endpoint.clone(),
                },
            );
            self.names.update_zone(active);
        }
        let mut publications = Vec::new();
        let gateway = sandbox
            .endpoints
            .iter()
            .find(|endpoint| Some(&endpoint.network_id) == sandbox.gateway_network.as_ref());
        for port in gateway.iter().flat_map(|_| &sandbox.ports) {
            let Some(endpoint) = gateway else { continue };
            // The very ports that it had.
            let request = PortRequest {
                container_port: port.container_port,
                protocol: port.protocol,
                host_ip: Some(port.host_ip),
                host_ports: port.host_port..=port.host_port,
            };
            match publish::publish(&request, endpoint, None, &|_, _| false) {
                Ok(again) => publications.extend(again),
                Err(error) => tracing::error!(
                    container = %member.id,
                    reason = error.sentence(),
                    "a published port was taken while no daemon ran"
                ),
            }
        }
        self.sandboxes.insert(
            member.id.clone(),
            Live {
                publications,
                resolver: None,
            },
        );
        if let Err(error) = self.resolve_names(&member, &settings.attachments, &mut sandbox) {
            tracing::error!(container = %member.id, %error, "names are not resolved in it");
        }
    }

    /// Notes what the container sees, and has its names resolved once it is on a network
    /// that has names.
    fn resolve_names(
        &mut self,
        member: &Member,
        attachments: &[Attachment],
        sandbox: &mut Sandbox,
    ) -> ApiResult<()> {
        let named = sandbox.endpoints.iter().any(|endpoint| {
            let active = self.networks.get(&endpoint.network_id);
            active.is_some_and(|active| active.record.has_names())
        });
        sandbox.resolver |= named;
        if !sandbox.resolver {
            return Ok(());
        }
        self.names.update_resident(
            &member.id,
            attachments,
            &sandbox.endpoints,
            &member.servers,
            sandbox.gateway_network.is_some(),
        );
        let Some(live) = self.sandboxes.get_mut(&member.id) else {
            return Ok(());
        };
        if live.resolver.is_none() {
            let outlook = Outlook {
                names: Arc::clone(&self.names),
                container: member.id.clone(),
            };
            let resolver = dns::start(&member.netns, Arc::new(outlook))
                .map_err(|error| ApiError::internal("network", &error))?;
            live.resolver = Some(resolver);
        }
        Ok(())
    }

    /// Takes a container off everything; gives the networks that it was on.
    fn leave(&mut self, container: &str) -> Vec<Network> {
        let ids: Vec<String> = self
            .networks
            .values()
            .filter(|active| active.members.contains_key(container))
            .map(|active| active.record.id.clone())
            .collect();
        let mut left = Vec::new();
        self.names.forget(container);
        for id in ids {
            self.detach(container, &id);
            left.extend(self.networks.get(&id).map(|active| active.record.clone()));
        }
        if let Some(live) = self.sandboxes.remove(container)
            && !live.publications.is_empty()
            && let Err(error) = self.apply_rules()
        {
            tracing::error!(%container, %error, "rules of its ports stay for now");
        }
        left
    }

    fn driver_of(&self, network_id: &str) -> Option<Driver> {
        Some(self.networks.get(network_id)?.record.driver)
    }

    /// Finds the network that an attachment means; by the ID that it had before, first.
    fn resolve(&self, attachment: &mut Attachment) -> ApiResult<()> {
        let active = match self.networks.get(&attachment.network_id) {
            Some(active) => active,
            None => self.find(&attachment.network)?,
        };
        super::endpoint::check_joinable(&active.record)?;
        attachment.network.clone_from(&active.record.name);
        attachment.network_id.clone_from(&active.record.id);
        Ok(())
    }

    /// One more interface.
    fn attach(
        &mut self,
        member: &Member,
        attachment: &Attachment,
        mac: Option<&str>,
        sandbox: &Sandbox,
        changes: &mut Changes,
    ) -> ApiResult<Endpoint> {
        let id = &attachment.network_id;
        changes.networks.extend(self.ensure_up(id)?);
        let alias = self.host.alias().to_owned();
        let Some(active) = self.networks.get_mut(id) else {
            return Err(ApiError::not_found(format!("network {id} not found")));
        };
        let record = active.record.clone();
        let used: HashSet<&str> = sandbox
            .endpoints
            .iter()
            .map(|endpoint| endpoint.interface.as_str())
            .collect();
        let number = (0..=u8::MAX)
            .find(|number| !used.contains(format!("eth{number}").as_str()))
            .ok_or_else(|| ApiError::bad_request("too many networks"))?;
        let mut endpoint = Endpoint {
            id: super::super::containers::new_id(),
            network_id: id.clone(),
            interface: format!("eth{number}"),
            host_interface: format!("v{}{number:02x}", &member.id[..12]),
            mac: [0; 6],
            ipv4: None,
            gateway: None,
            ipv6: None,
            gateway6: None,
            names: names_of(member, attachment),
        };
        take_addresses(active, attachment, &mut endpoint)?;
        endpoint.mac = match mac {
            Some(text) => parse_mac(text)
                .ok_or_else(|| ApiError::bad_request(format!("invalid MAC address: {text}")))?,
            None => made_up_mac(endpoint.ipv4.map(|net| net.addr())),
        };
        let addresses: Vec<InterfaceAddress> = addresses_of(&endpoint).collect();
        // From here on `detach` undoes it.
        active.members.insert(
            member.id.clone(),
            Joined {
                name: member.name.clone(),
                endpoint: endpoint.clone(),
            },
        );
        self.names.update_zone(active);
        let mtu = self.host.mtu_of(&record);
        let joined = link::join_bridge(
            &member.netns,
            &VethConfig {
                host_name: &endpoint.host_interface,
                alias: &alias,
                bridge: &record.bridge,
                name: &endpoint.interface,
                mac: endpoint.mac,
                mtu,
                addresses: &addresses,
                isolated: record.is_isolated(),
            },
        );
        if let Err(error) = joined {
            self.detach(&member.id, id);
            return Err(link_error(error));
        }
        Ok(endpoint)
    }

    /// Undoes [`State::attach`].
    fn detach(&mut self, container: &str, network_id: &str) {
        let Some(active) = self.networks.get_mut(network_id) else {
            return;
        };
        let Some(joined) = active.members.remove(container) else {
            return;
        };
        for address in addresses_of(&joined.endpoint) {
            for pool in &mut active.pools {
                if pool.subnet().contains(&address.address) {
                    pool.release(address.address);
                }
            }
        }
        self.names.update_zone(active);
        if let Err(error) = link::delete(&joined.endpoint.host_interface) {
            tracing::error!(%container, %error, "interface left behind");
        }
    }

    /// Chooses the way out of the namespace, for each family its own, and sets it if it is
    /// another one than before.
    fn route(
        &self,
        member: &Member,
        attachments: &[Attachment],
        sandbox: &mut Sandbox,
    ) -> ApiResult<()> {
        let priority = |endpoint: &Endpoint| {
            attachments
                .iter()
                .find(|attachment| attachment.network_id == endpoint.network_id)
                .map_or(0, |attachment| attachment.gateway_priority)
        };
        let name = |endpoint: &Endpoint| {
            let active = self.networks.get(&endpoint.network_id);
            std::cmp::Reverse(active.map(|active| active.record.name.clone()))
        };
        // What is open keeps its way while nobody asks for a better one.
        let current =
            |endpoint: &Endpoint| Some(&endpoint.network_id) == sandbox.gateway_network.as_ref();
        let best = |leads_out: fn(&Endpoint) -> bool| {
            let able = sandbox.endpoints.iter().filter(|one| leads_out(one));
            able.max_by_key(|one| (priority(one), current(one), name(one)))
        };
        let main = best(|one| one.gateway.is_some() || one.gateway6.is_some());
        let gateway = main.and_then(|one| Some((one, IpAddr::V4(one.gateway?))));
        // One that has IPv4 alone is in nobody's way.
        let main6 = main.filter(|one| one.gateway6.is_some());
        let main6 = main6.or_else(|| best(|one| one.gateway6.is_some()));
        let gateway6 = main6.and_then(|one| Some((one, IpAddr::V6(one.gateway6?))));
        let id = |endpoint: Option<&Endpoint>| endpoint.map(|one| one.network_id.clone());
        let networks = (id(main), id(main6));
        if networks.0 == sandbox.gateway_network && networks.1 == sandbox.gateway6_network {
            return Ok(());
        }
        let ways = gateway.into_iter().chain(gateway6);
        let ways = ways.map(|(endpoint, gateway)| WayOut {
            interface: endpoint.interface.clone(),
            addresses: addresses_of(endpoint).collect(),
            gateways: vec![gateway],
        });
        link::set_ways_out(&member.netns, ways.collect()).map_err(link_error)?;
        (sandbox.gateway_network, sandbox.gateway6_network) = networks;
        Ok(())
    }

    /// Publishes a container's ports on its way out, in place of those it had.
    fn publish(&mut self, member: &Member, sandbox: &mut Sandbox) -> ApiResult<()> {
        let endpoint = sandbox
            .endpoints
            .iter()
            .find(|endpoint| Some(&endpoint.network_id) == sandbox.gateway_network.as_ref())
            .cloned();
        let Some(live) = self.sandboxes.get_mut(&member.id) else {
            return Ok(());
        };
        let mut addresses = endpoint.iter().flat_map(|endpoint| {
            let v4 = endpoint.ipv4.map(|net| IpAddr::V4(net.addr()));
            let v6 = endpoint.ipv6.map(|net| IpAddr::V6(net.addr()));
            v4.into_iter().chain(v6)
        });
        let unchanged = match live.publications.first() {
            Some(first) => addresses.any(|address| address == first.target.ip()),
            None => member.ports.is_empty() || endpoint.is_none(),
        };
        if unchanged {
            return Ok(());
        }
        live.publications.clear();
        sandbox.ports.clear();
        let mut publications: Vec<Publication> = Vec::new();
        if let Some(endpoint) = &endpoint {
            let default_ip = self
                .networks
                .get(&endpoint.network_id)
                .and_then(|active| active.record.host_binding())
                .filter(|address| !address.is_unspecified());
            for request in &member.ports {
                let taken = |protocol, at: SocketAddr| {
                    self.sandboxes
                        .values()
                        .flat_map(|live| &live.publications)
                        .chain(&publications)
                        .map(|publication| &publication.port)
                        .any(|port| {
                            port.protocol == protocol
                                && publish::collides(
                                    SocketAddr::new(port.host_ip, port.host_port),
                                    at,
                                )
                        })
                };
                let published = publish::publish(request, endpoint, default_ip, &taken)
                    .map_err(|error| unpublished(member, endpoint, &error.sentence()))?;
                publications.extend(published);
            }
        }
        sandbox.ports = publications
            .iter()
            .map(|publication| publication.port.clone())
            .collect();
        if let Some(live) = self.sandboxes.get_mut(&member.id) {
            live.publications = publications;
        }
        self.apply_rules()
    }
}

fn unpublished(member: &Member, endpoint: &Endpoint, reason: &str) -> ApiError {
    ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        format!(
            "driver failed programming external connectivity on endpoint {} ({}): {reason}",
            member.name, endpoint.id
        ),
    )
}
