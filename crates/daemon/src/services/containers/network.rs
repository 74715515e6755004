//! A container's side of networking: what its user wants, read and checked; joining and
//! leaving networks while it runs; what its files say about it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use axum::http::StatusCode;
use bollard_stubs::models::{EndpointSettings, HostConfig, NetworkingConfig};
use bulkhead_task::options::IsolationKind;
use serde::Deserialize;
use serde_json::Value;

use super::actor::Actor;
use super::model::Record;
use super::{Containers, Shared};
use crate::error::{ApiError, ApiResult};
use crate::services::networks::model::parse_mac;
use crate::services::networks::{Attachment, Member, Placement, check_wishes, publish};

/// Whose network namespace a container is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Namespace<'a> {
    /// One of its own.
    Own,
    /// The host's.
    Host,
    /// Another container's.
    Of(&'a str),
}

/// What a mode means.
pub(super) fn namespace(host_config: &HostConfig) -> Namespace<'_> {
    match host_config.network_mode.as_deref().unwrap_or_default() {
        "host" => Namespace::Host,
        mode => match mode.strip_prefix("container:") {
            Some(other) => Namespace::Of(other),
            None => Namespace::Own,
        },
    }
}

/// What of the body of a creation is about networks.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Wishes {
    #[serde(default)]
    networking_config: Option<NetworkingConfig>,
    /// Of older clients: the hardware address of the first interface.
    #[serde(default)]
    mac_address: Option<String>,
}

/// The networks that a new container is to be on, that of its mode first.
pub(super) fn attachments(body: &Value, host_config: &HostConfig) -> ApiResult<Vec<Attachment>> {
    let decode = |error| ApiError::bad_request(format!("invalid JSON: {error}"));
    let wishes = Wishes::deserialize(body).map_err(decode)?;
    let mut configured: Vec<(String, EndpointSettings)> = wishes
        .networking_config
        .and_then(|config| config.endpoints_config)
        .into_iter()
        .flatten()
        .collect();
    // The order of the interfaces must not be left to chance.
    configured.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mode = host_config.network_mode.as_deref().unwrap_or("bridge");
    let own = namespace(host_config) == Namespace::Own;
    for server in host_config.dns.iter().flatten() {
        if server.parse::<IpAddr>().is_err() {
            return Err(ApiError::bad_request(format!(
                "{server} is not an ip address"
            )));
        }
    }
    if !own && host_config.links.iter().flatten().next().is_some() {
        return Err(ApiError::bad_request(format!(
            "conflicting options: {} type networking can't be used with links. This would result in undefined behavior",
            if mode == "host" { "host" } else { "container" }
        )));
    }
    if let Namespace::Of(other) = namespace(host_config) {
        if other.is_empty() {
            return Err(ApiError::bad_request(
                "Invalid network mode: invalid container format container:<name|id>",
            ));
        }
        return Ok(Vec::new());
    }
    let mut first = Attachment {
        network: mode.to_owned(),
        ..Attachment::default()
    };
    let mut rest = Vec::new();
    for (network, settings) in configured {
        let same = network == mode || (network == "default" && mode == "bridge");
        let attachment = attachment(&network, &settings)?;
        if same {
            first = Attachment {
                network: mode.to_owned(),
                ..attachment
            };
        } else {
            rest.push(attachment);
        }
    }
    if !rest.is_empty() && matches!(mode, "host" | "none") {
        return Err(ApiError::bad_request(
            "conflicting options: cannot attach both user-defined and non-user-defined network-modes",
        ));
    }
    let wide = wishes.mac_address.filter(|mac| !mac.is_empty());
    match (&first.mac, wide) {
        (Some(own), Some(wide)) if *own != wide => {
            return Err(ApiError::bad_request(
                "the container-wide MAC address must match the endpoint-specific MAC address for \
                 the main network, or be left empty",
            ));
        }
        (None, wide) => first.mac = wide,
        _ => {}
    }
    if let Some(mac) = &first.mac {
        check_mac(mac)?;
    }
    if !matches!(mode, "bridge" | "default" | "host" | "none") {
        first
            .links
            .extend(host_config.links.iter().flatten().cloned());
    }
    let mut out = vec![first];
    out.extend(rest);
    Ok(out)
}

fn check_mac(text: &str) -> ApiResult<()> {
    match parse_mac(text) {
        Some(_) => Ok(()),
        None => Err(ApiError::bad_request(format!(
            "invalid MAC address: {text}"
        ))),
    }
}

/// What a user wants of one network.
pub(super) fn attachment(network: &str, settings: &EndpointSettings) -> ApiResult<Attachment> {
    let ipam = settings.ipam_config.clone().unwrap_or_default();
    let ipv4 = match ipam.ipv4_address.as_deref() {
        None | Some("") => None,
        Some(text) => Some(
            text.parse()
                .map_err(|_| ApiError::bad_request(format!("invalid IPv4 address: {text}")))?,
        ),
    };
    let ipv6 = match ipam.ipv6_address.as_deref() {
        None | Some("") => None,
        Some(text) => Some(
            text.parse()
                .map_err(|_| ApiError::bad_request(format!("invalid IPv6 address: {text}")))?,
        ),
    };
    let mac = settings.mac_address.clone().filter(|mac| !mac.is_empty());
    if let Some(mac) = &mac {
        check_mac(mac)?;
    }
    Ok(Attachment {
        network: network.to_owned(),
        network_id: String::new(),
        ipv4,
        ipv6,
        link_local: ipam.link_local_ips.unwrap_or_default(),
        mac,
        aliases: settings.aliases.clone().unwrap_or_default(),
        links: settings.links.clone().unwrap_or_default(),
        driver_opts: settings.driver_opts.clone(),
        gateway_priority: settings.gw_priority.unwrap_or(0),
    })
}

/// A container as networks know it.
pub(super) fn member(shared: &Shared, record: &Record) -> ApiResult<Member> {
    Ok(Member {
        id: record.id.clone(),
        name: record.name.clone(),
        netns: shared.netns_path(&record.id),
        hostname: record.hostname().to_owned(),
        ports: publish::requests(&record.config, &record.host_config)?,
        servers: record
            .host_config
            .dns
            .iter()
            .flatten()
            .filter_map(|server| server.parse().ok())
            .collect(),
        mac: None,
    })
}

/// The container whose namespace another one joins; it runs, on the host's kernel.
pub(super) fn joined(shared: &Arc<Shared>, reference: &str) -> ApiResult<Record> {
    let containers = Containers {
        shared: Arc::clone(shared),
    };
    let view = containers.find(reference)?.view();
    if !view.record.state.status.is_alive() {
        return Err(ApiError::conflict(format!(
            "cannot join network of a non running container: {}",
            view.record.id
        )));
    }
    if view.record.isolation != IsolationKind::Process {
        return Err(ApiError::conflict(format!(
            "cannot join the network of container {}: it has its own kernel, and its network \
             stack is in there",
            view.record.id
        )));
    }
    Ok(view.record.clone())
}

/// The file of the namespace that a container's processes are in; none for the host's.
pub(super) fn namespace_path(shared: &Arc<Shared>, record: &Record) -> ApiResult<Option<PathBuf>> {
    Ok(match namespace(&record.host_config) {
        Namespace::Own => Some(shared.netns_path(&record.id)),
        Namespace::Host => None,
        Namespace::Of(other) => {
            let other = joined(shared, other)?;
            namespace_path_of_running(shared, &other)
        }
    })
}

fn namespace_path_of_running(shared: &Arc<Shared>, record: &Record) -> Option<PathBuf> {
    match namespace(&record.host_config) {
        Namespace::Own => Some(shared.netns_path(&record.id)),
        Namespace::Host => None,
        // It joined a third one, whose namespace may have another file by now.
        Namespace::Of(_) => Some(PathBuf::from(format!("/proc/{}/ns/net", record.state.pid))),
    }
}

/// What the files of a container say about its networks.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    /// What `host-gateway` stands for.
    pub(super) host_gateway: Option<IpAddr>,
    /// Linked containers: address and names.
    pub(super) links: Vec<(IpAddr, Vec<String>)>,
}

impl Actor {
    /// Puts the container on one more network: at once when it runs, else when it starts.
    pub(super) async fn connect(
        &mut self,
        network: &str,
        settings: &EndpointSettings,
    ) -> ApiResult<()> {
        if namespace(&self.record.host_config) != Namespace::Own {
            return Err(ApiError::bad_request(
                "container sharing network namespace with another container or host cannot be \
                 connected to any other network",
            ));
        }
        let found = self.shared.networks.find(network).await?;
        let name = found.record.name.clone();
        let private = |name: &str| matches!(name, "none");
        if name == "host" {
            return Err(ApiError::bad_request(
                "container cannot be disconnected from host network or connected to host network",
            ));
        }
        let current = &self.record.networks.attachments;
        let has_private = current.iter().any(|one| private(&one.network));
        if (private(&name) && !current.is_empty()) || (has_private && !private(&name)) {
            return Err(ApiError::bad_request(
                "container cannot be connected to multiple networks with one of the networks in \
                 private (none) mode",
            ));
        }
        let mut attachment = attachment(&name, settings)?;
        attachment.network_id.clone_from(&found.record.id);
        check_wishes(&found.record, &attachment)?;
        let present = current.iter().any(|one| {
            one.network_id == found.record.id || (one.network_id.is_empty() && one.network == name)
        });
        if present {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                format!(
                    "endpoint with name {} already exists in network {name}",
                    self.record.name
                ),
            ));
        }
        if self.task.is_none() {
            self.record.networks.attachments.push(attachment);
            return self.commit().await;
        }
        let before = self.record.networks.clone();
        let member = member(&self.shared, &self.record)?;
        let placement = self
            .shared
            .networks
            .connect(member, before, attachment)
            .await?;
        self.place(placement);
        if let Err(error) = self.networks_changed().await {
            let undone = self.leave_network(&found.record.id).await;
            if let Err(error) = undone {
                tracing::error!(id = %self.record.id, %error, "connect not undone");
            }
            if let Err(error) = self.networks_changed().await {
                tracing::warn!(id = %self.record.id, %error, "undone connect not passed on");
            }
            self.commit().await?;
            return Err(error);
        }
        self.commit().await
    }

    /// Takes the container off a network.
    pub(super) async fn disconnect(&mut self, network: &str, force: bool) -> ApiResult<()> {
        if namespace(&self.record.host_config) == Namespace::Host {
            return Err(ApiError::bad_request(
                "container cannot be disconnected from host network or connected to host network",
            ));
        }
        let found = self.shared.networks.find(network).await;
        let attachments = &self.record.networks.attachments;
        let position = attachments.iter().position(|one| match &found {
            Ok(view) => {
                one.network_id == view.record.id
                    || (one.network_id.is_empty() && one.network == view.record.name)
            }
            // A network that is gone can be left, if one insists.
            Err(_) => force && (one.network == network || one.network_id == network),
        });
        let Some(position) = position else {
            let view = found?;
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                format!(
                    "container {} is not connected to network {}",
                    self.record.id, view.record.name
                ),
            ));
        };
        let id = self.record.networks.attachments[position]
            .network_id
            .clone();
        if self.task.is_none() {
            self.record.networks.attachments.remove(position);
            return self.commit().await;
        }
        self.leave_network(&id).await?;
        if let Err(error) = self.networks_changed().await {
            tracing::warn!(id = %self.record.id, %error, "network change not passed on");
        }
        self.commit().await
    }

    async fn leave_network(&mut self, id: &str) -> ApiResult<()> {
        let member = member(&self.shared, &self.record)?;
        let before = self.record.networks.clone();
        let placement = self
            .shared
            .networks
            .disconnect(member, before, id.to_owned())
            .await?;
        self.place(placement);
        Ok(())
    }

    fn place(&mut self, placement: Placement) {
        self.record.networks.attachments = placement.attachments;
        self.record.networks.sandbox = Some(placement.sandbox);
    }

    /// Has the container's files say what is so now, and its supervisor look.
    pub(super) async fn networks_changed(&mut self) -> ApiResult<()> {
        let containers = Containers {
            shared: Arc::clone(&self.shared),
        };
        let files = containers.files(&self.record);
        let names = names(&self.shared, &self.record).await?;
        super::files::generate(&self.record, &files, &names)
            .map(drop)
            .map_err(|error| ApiError::internal("write files of the container", &error))?;
        match &self.task {
            Some(task) => Ok(task.network_changed().await?),
            None => Ok(()),
        }
    }
}

/// What the files of a container are to say.
pub(super) async fn names(shared: &Arc<Shared>, record: &Record) -> ApiResult<Names> {
    // The host's address on the container's own way out, which is there as long as it is.
    let own = record.networks.gateway_endpoint();
    let host_gateway = match own.and_then(|endpoint| endpoint.gateway) {
        Some(address) => Some(IpAddr::V4(address)),
        None => shared.networks.host_gateway().await?,
    };
    Ok(Names {
        host_gateway,
        links: super::links::of(shared, record)?
            .iter()
            .map(|link| (link.address, link.names()))
            .collect(),
    })
}
