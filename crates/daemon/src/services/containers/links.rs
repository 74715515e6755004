//! Links of the default bridge: whom a container knows by another name, and the variables
//! that Docker has told it of them since before networks had names.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use bollard_stubs::models::ContainerConfig;

use super::actor::Actor;
use super::model::Record;
use super::{Containers, Handle, Shared};
use crate::error::{ApiError, ApiResult};
use crate::services::networks::publish::parse_port;

/// A container that another one is linked with.
#[derive(Debug)]
pub(super) struct Link {
    /// What the other one calls it.
    pub(super) alias: String,
    /// Where it is.
    pub(super) address: IpAddr,
    /// What it is.
    record: Record,
}

impl Link {
    /// Its names in the other's `hosts`, without repetition.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names = vec![self.alias.clone()];
        for name in [self.record.hostname(), &self.record.name] {
            if !names.iter().any(|other| other == name) {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// The variables that tell of it.
    fn variables(&self, owner: &Record) -> Vec<String> {
        let prefix = self.alias.replace('-', "_").to_uppercase();
        let mut out = Vec::new();
        let mut ports: Vec<_> = self
            .record
            .config
            .exposed_ports
            .iter()
            .flatten()
            .filter_map(|text| parse_port(text).ok())
            .collect();
        ports.sort_by_key(|(number, protocol)| (protocol.to_string() != "tcp", *number));
        for (index, (number, protocol)) in ports.iter().enumerate() {
            let at = format!("{protocol}://{}:{number}", self.address);
            if index == 0 {
                out.push(format!("{prefix}_PORT={at}"));
            }
            let port = format!(
                "{prefix}_PORT_{number}_{}",
                protocol.to_string().to_uppercase()
            );
            out.push(format!("{port}={at}"));
            out.push(format!("{port}_ADDR={}", self.address));
            out.push(format!("{port}_PORT={number}"));
            out.push(format!("{port}_PROTO={protocol}"));
        }
        out.push(format!("{prefix}_NAME=/{}/{}", owner.name, self.alias));
        for variable in self.record.config.env.iter().flatten() {
            let Some((name, value)) = variable.split_once('=') else {
                continue;
            };
            // What every image has says nothing about this one.
            if !matches!(name, "HOME" | "PATH") {
                out.push(format!("{prefix}_ENV_{name}={value}"));
            }
        }
        out
    }
}

/// Whom a link names, and what it is to be called.
fn parts(link: &str) -> (&str, &str) {
    let (name, alias) = link.split_once(':').unwrap_or((link, link));
    (name, alias.rsplit('/').next().unwrap_or_default())
}

/// The links of a container on the default bridge. Elsewhere they are aliases of a network.
fn own(record: &Record) -> impl Iterator<Item = (&str, &str)> {
    let on_bridge = record.host_config.network_mode.as_deref() == Some("bridge");
    let links = record.host_config.links.iter().flatten();
    links.filter(move |_| on_bridge).map(|link| parts(link))
}

impl Containers {
    /// The links of a container as `inspect` shows them, `/child:/parent/alias`.
    pub fn links(&self, record: &Record) -> Vec<String> {
        own(record)
            .filter_map(|(name, alias)| {
                let child = self.find_own(name).ok()?;
                let child = child.view();
                Some(format!("/{}:/{}/{alias}", child.record.name, record.name))
            })
            .collect()
    }

    /// The names, `/parent/alias`, that containers have from links, by their IDs.
    pub fn link_names(&self) -> HashMap<String, Vec<String>> {
        let mut out = HashMap::<String, Vec<String>>::new();
        for parent in self.all() {
            let parent = parent.view();
            for (name, alias) in own(&parent.record) {
                if let Ok(child) = self.find_own(name) {
                    let names = out.entry(child.id.clone()).or_default();
                    names.push(format!("/{}/{alias}", parent.record.name));
                }
            }
        }
        out
    }

    /// The container that another one is linked with under a name.
    ///
    /// # Errors
    /// 404.
    pub fn linked(&self, parent: &str, alias: &str) -> ApiResult<Arc<Handle>> {
        let missing = || ApiError::not_found(format!("No such container: {parent}/{alias}"));
        let view = self.find_own(parent).map_err(|_| missing())?.view();
        let mut links = own(&view.record);
        let (name, _) = links.find(|(_, own)| *own == alias).ok_or_else(missing)?;
        self.find_own(name).map_err(|_| missing())
    }
}

impl Actor {
    /// Forgets a link, also in the files of the container.
    pub(super) async fn unlink(&mut self, alias: &str) -> ApiResult<()> {
        if let Some(links) = &mut self.record.host_config.links {
            links.retain(|link| parts(link).1 != alias);
        }
        self.commit().await?;
        if self.task.is_some()
            && let Err(error) = self.networks_changed().await
        {
            tracing::warn!(id = %self.record.id, %error, "lost link not passed on");
        }
        Ok(())
    }
}

/// Those that a container on the default bridge is linked with; they have to run.
///
/// # Errors
/// 404 for one that there is not, 409 for one that does not run.
pub(super) fn of(shared: &Arc<Shared>, record: &Record) -> ApiResult<Vec<Link>> {
    let bridge = record
        .networks
        .attachments
        .iter()
        .find(|attachment| attachment.network == "bridge");
    let Some(bridge) = bridge else {
        return Ok(Vec::new());
    };
    let containers = Containers {
        shared: Arc::clone(shared),
    };
    let mut out = Vec::new();
    for link in record.host_config.links.iter().flatten() {
        let (name, alias) = parts(link);
        let view = containers.find_own(name)?.view();
        let mut endpoints = view
            .record
            .networks
            .sandbox
            .iter()
            .flat_map(|one| &one.endpoints);
        let endpoint = endpoints.find(|endpoint| {
            // Before its first start, a container knows its networks by name alone.
            bridge.network_id.is_empty() || endpoint.network_id == bridge.network_id
        });
        let Some(address) = endpoint.and_then(|endpoint| endpoint.ipv4) else {
            return Err(ApiError::conflict(format!(
                "Cannot link to a non running container: /{} AS /{}/{alias}",
                view.record.name, record.name
            )));
        };
        out.push(Link {
            alias: alias.to_owned(),
            address: IpAddr::V4(address.addr()),
            record: view.record.clone(),
        });
    }
    Ok(out)
}

/// The configuration with the variables of its links, which its own replace.
///
/// # Errors
/// As [`of`].
pub(super) fn with_variables(shared: &Arc<Shared>, record: &Record) -> ApiResult<ContainerConfig> {
    let mut config = record.config.clone();
    let own = config.env.take().unwrap_or_default();
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let mut all: Vec<String> = of(shared, record)?
        .iter()
        .flat_map(|link| link.variables(record))
        .filter(|variable| !own.iter().any(|other| name(other) == name(variable)))
        .collect();
    all.extend(own);
    config.env = Some(all);
    Ok(config)
}
