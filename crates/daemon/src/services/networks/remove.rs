//! Removing networks.

use axum::http::StatusCode;

use super::{NetworkView, Networks, State};
use crate::error::{ApiError, ApiResult};

/// What a prune removed: names.
pub type Pruned = Vec<String>;

impl Networks {
    /// Removes a network that nobody is on.
    ///
    /// # Errors
    /// 404; 403 when it was there from the start or somebody is on it.
    pub async fn remove(&self, reference: &str) -> ApiResult<()> {
        let _changes = self.changes.lock().await;
        self.remove_one(reference).await
    }

    /// Removes every network that passes `filter` and nobody is on; gives their names.
    ///
    /// # Errors
    /// What the store says.
    pub async fn prune(&self, filter: impl Fn(&NetworkView) -> bool) -> ApiResult<Pruned> {
        let _changes = self.changes.lock().await;
        let mut removed = Vec::new();
        for view in self.all().await? {
            let candidate =
                !view.record.is_predefined() && !view.record.config_only && view.members.is_empty();
            // One that somebody joined in between stays.
            if candidate && filter(&view) && self.remove_one(&view.record.id).await.is_ok() {
                removed.push(view.record.name);
            }
        }
        Ok(removed)
    }

    async fn remove_one(&self, reference: &str) -> ApiResult<()> {
        let name = reference.to_owned();
        let active = self.with(move |state| state.take_out(&name)).await??;
        let record = active.record.clone();
        // A crash right here brings it back with the next start: nobody was told otherwise.
        if let Err(error) = self.store.delete_network(record.id.clone()).await {
            let id = record.id.clone();
            self.with(move |state| state.networks.insert(id, active))
                .await?;
            return Err(ApiError::internal("forget network", &error));
        }
        self.event(&record, "destroy", None);
        Ok(())
    }
}

impl State {
    fn take_out(&mut self, reference: &str) -> ApiResult<super::Active> {
        let active = self.find(reference)?;
        let (id, name) = (active.record.id.clone(), active.record.name.clone());
        let forbidden = |message| Err(ApiError::new(StatusCode::FORBIDDEN, message));
        if active.record.is_predefined() {
            return forbidden(format!(
                "{name} is a pre-defined network and cannot be removed"
            ));
        }
        if !active.members.is_empty() {
            return forbidden(format!(
                "error while removing network: network {name} id {id} has active endpoints"
            ));
        }
        let is_source = active.record.config_only
            && self
                .networks
                .values()
                .any(|other| other.record.config_from == name);
        if is_source {
            return forbidden(format!(
                "error while removing network: configuration network \"{name}\" is in use"
            ));
        }
        self.take_down(&id)?;
        self.apply_rules()?;
        self.networks
            .remove(&id)
            .ok_or_else(|| ApiError::not_found(format!("network {reference} not found")))
    }
}
