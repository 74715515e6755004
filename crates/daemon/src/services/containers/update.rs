//! `docker update`: which limits change, in the record and in the running container.

use axum::http::StatusCode;
use bollard_stubs::models::{HostConfig, RestartPolicy, RestartPolicyNameEnum};
use bulkhead_isolation::Resources;
use serde::Deserialize;

use super::model::Record;
use crate::error::{ApiError, ApiResult};

/// The body of `POST /containers/{id}/update`. As with dockerd, 0, empty and missing mean
/// that a limit stays as it is.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UpdateRequest {
    cpu_shares: Option<i64>,
    memory: Option<i64>,
    memory_swap: Option<i64>,
    memory_reservation: Option<i64>,
    cpu_period: Option<i64>,
    cpu_quota: Option<i64>,
    nano_cpus: Option<i64>,
    cpuset_cpus: Option<String>,
    cpuset_mems: Option<String>,
    pids_limit: Option<i64>,
    blkio_weight: Option<u16>,
    restart_policy: Option<RestartPolicy>,
}

fn given(value: Option<i64>) -> Option<i64> {
    value.filter(|value| *value != 0)
}

fn named(value: &Option<String>) -> Option<String> {
    value.clone().filter(|text| !text.is_empty())
}

impl UpdateRequest {
    /// Takes the body of a request apart.
    ///
    /// # Errors
    /// 400 for wrong types and for a restart policy that there is not.
    pub fn read(body: &serde_json::Value) -> ApiResult<Self> {
        super::create::check_policy_name(&body["RestartPolicy"])?;
        let wrong = |error| ApiError::bad_request(format!("invalid JSON: {error}"));
        // What cannot be changed has types, too.
        bollard_stubs::models::Resources::deserialize(body).map_err(wrong)?;
        Self::deserialize(body).map_err(wrong)
    }

    /// What this means from a client before 1.40, when there was no `PidsLimit` here.
    #[must_use]
    pub fn without_pids_limit(self) -> Self {
        Self {
            pids_limit: None,
            ..self
        }
    }

    /// The host configuration as it is to be.
    ///
    /// # Errors
    /// 400 for limits that contradict each other, 409 for those that contradict what is set.
    pub(super) fn apply(&self, record: &Record) -> ApiResult<HostConfig> {
        let cannot = |why: &str| {
            ApiError::bad_request(format!("Cannot update container {}: {why}", record.id))
        };
        let mut new = record.host_config.clone();
        let nano = ("Nano CPUs", "NanoCPUs", self.nano_cpus, new.nano_cpus);
        let period = ("CPU Period", "CPU Period", self.cpu_period, new.cpu_period);
        let quota = ("CPU Quota", "CPU Quota", self.cpu_quota, new.cpu_quota);
        // Both in one request contradict each other already without the container.
        let pairs = [(nano, period), (nano, quota), (period, nano), (quota, nano)];
        for ((what, _, asked, _), (_, other, also, has)) in pairs {
            if given(asked).is_some() && given(has).is_some() && given(also).is_none() {
                let conflict = format!(
                    "Conflicting options: {what} cannot be updated as {other} has already been set"
                );
                return Err(ApiError {
                    status: StatusCode::CONFLICT,
                    ..cannot(&conflict)
                });
            }
        }
        let memory = given(self.memory);
        let swap = given(self.memory_swap);
        if let Some(memory) = memory {
            let current_swap = given(new.memory_swap);
            if swap.is_none() && current_swap.is_some_and(|current| current > 0 && memory > current)
            {
                return Err(cannot(
                    "Memory limit should be smaller than already set memoryswap limit, update the \
                     memoryswap at the same time",
                ));
            }
        }
        let keep = |target: &mut Option<i64>, value: Option<i64>| {
            if value.is_some() {
                *target = value;
            }
        };
        keep(&mut new.cpu_shares, given(self.cpu_shares));
        keep(&mut new.memory, memory);
        keep(&mut new.memory_swap, swap);
        keep(&mut new.memory_reservation, given(self.memory_reservation));
        keep(&mut new.cpu_period, given(self.cpu_period));
        keep(&mut new.cpu_quota, given(self.cpu_quota));
        keep(&mut new.nano_cpus, given(self.nano_cpus));
        // Here 0 means unlimited, and so does what is less.
        keep(
            &mut new.pids_limit,
            self.pids_limit.map(|limit| limit.max(0)),
        );
        if let Some(cpus) = named(&self.cpuset_cpus) {
            new.cpuset_cpus = Some(cpus);
        }
        if let Some(mems) = named(&self.cpuset_mems) {
            new.cpuset_mems = Some(mems);
        }
        if let Some(weight) = self.blkio_weight.filter(|weight| *weight != 0) {
            new.blkio_weight = Some(weight);
        }
        if let Some(policy) = &self.restart_policy
            && policy
                .name
                .is_some_and(|name| name != RestartPolicyNameEnum::EMPTY)
        {
            // That it is not started again is so already.
            if record.auto_remove() && policy.name != Some(RestartPolicyNameEnum::NO) {
                return Err(ApiError::conflict(format!(
                    "Cannot update container {}: Restart policy cannot be updated because \
                     AutoRemove is enabled for the container",
                    record.id
                )));
            }
            new.restart_policy = Some(policy.clone());
            bulkhead_spec::check_restart(&new).map_err(|error| cannot(&error.to_string()))?;
        }
        Ok(new)
    }

    /// What the running container is told; `None` when no limit changes.
    pub(super) fn resources(&self, record: &Record, new: &HostConfig) -> Option<Resources> {
        let old = &record.host_config;
        let changed = |old: &Option<i64>, new: &Option<i64>| {
            (given(*old) != given(*new)).then(|| given(*new)).flatten()
        };
        let (mut cpu_quota, mut cpu_period) = (
            changed(&old.cpu_quota, &new.cpu_quota),
            changed(&old.cpu_period, &new.cpu_period),
        );
        if let Some(nano) = changed(&old.nano_cpus, &new.nano_cpus) {
            // 1e9 nano CPUs are a whole period of 100 ms.
            cpu_period = Some(100_000);
            // Less than a microsecond of them is no limit, as with runc.
            let quota = nano.saturating_mul(100_000) / 1_000_000_000;
            cpu_quota = Some(if quota > 0 { quota } else { -1 });
        }
        let resources = Resources {
            memory: changed(&old.memory, &new.memory),
            memory_swap: changed(&old.memory_swap, &new.memory_swap),
            memory_reservation: changed(&old.memory_reservation, &new.memory_reservation),
            cpu_quota,
            cpu_period: cpu_period.and_then(|period| u64::try_from(period).ok()),
            cpu_shares: changed(&old.cpu_shares, &new.cpu_shares)
                .and_then(|shares| u64::try_from(shares).ok()),
            cpuset_cpus: (old.cpuset_cpus != new.cpuset_cpus)
                .then(|| new.cpuset_cpus.clone())
                .flatten(),
            cpuset_mems: (old.cpuset_mems != new.cpuset_mems)
                .then(|| new.cpuset_mems.clone())
                .flatten(),
            pids_limit: (old.pids_limit != new.pids_limit)
                .then_some(new.pids_limit)
                .flatten()
                .map(|limit| if limit == 0 { -1 } else { limit }),
            blkio_weight: (old.blkio_weight != new.blkio_weight)
                .then_some(new.blkio_weight)
                .flatten(),
        };
        (resources != Resources::default()).then_some(resources)
    }
}
