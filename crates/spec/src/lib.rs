//! A container as the Docker API describes it, as an OCI runtime specification.
//!
//! Owns Docker's meaning of a container's configuration: what an image contributes
//! ([`merge_image_config`]), which defaults apply ([`apply_defaults`]), what is refused
//! ([`validate`]) and what the runtime is told ([`build`], [`exec_process`]). Refuses to know
//! how a container is run: no mount, no process, no cgroup is made here, and host facts come
//! in as data ([`HostFacts`]).
//!
//! Things that are resolved later, inside the container's root, leave here by name:
//! `process.user.username` is Docker's `user[:group]`, and groups of `GroupAdd` that are names
//! are listed in the annotation [`GROUP_ADD_ANNOTATION`].

mod capabilities;
mod devices;
mod error;
mod facts;
mod merge;
mod mount_points;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod seccomp;
mod security;
mod sysctl;
mod validate;

use std::collections::HashMap;
use std::path::Path;

use bollard_stubs::models::{ContainerConfig, HostConfig};
use oci_spec::runtime::{
    LinuxBuilder, LinuxIdMapping, LinuxIdMappingBuilder, RootBuilder, Spec, SpecBuilder,
};

pub use bulkhead_isolation::GROUP_ADD_ANNOTATION;
pub use bulkhead_task::options::IsolationKind;
use bulkhead_userns::{IdRange, Mappings};
pub use capabilities::{effective as effective_capabilities, known as known_capabilities};
pub use error::{Invalid, InvalidKind, SpecError};
pub use facts::HostFacts;
pub use merge::merge_image_config;
pub use mount_points::{
    MountOrigin, MountRequest, MountSource, VolumesFrom, requested_mounts, volumes_from,
};
pub use mounts::HostMount;
pub use process::{DEFAULT_PATH, ExecInput, command, exec_process};
pub use resources::{MINIMUM_MEMORY, MINIMUM_VM_MEMORY, check as check_limits};
pub use security::SecurityOptions;
pub use validate::{
    DEFAULT_RUNTIME, apply_defaults, check_restart, check_user_namespace, discard,
    effective_isolation, extra_host, validate,
};

/// What a specification is made from. `config` is already merged with its image's
/// ([`merge_image_config`]), `host_config` has its defaults ([`apply_defaults`]) and both have
/// passed [`validate`].
#[derive(Debug, Clone, Copy)]
pub struct SpecInput<'a> {
    /// The container's ID.
    pub id: &'a str,
    /// The isolation that was decided.
    pub isolation: IsolationKind,
    /// The name the container's kernel or UTS namespace gets.
    pub hostname: &'a str,
    /// The container's configuration.
    pub config: &'a ContainerConfig,
    /// Its host configuration.
    pub host_config: &'a HostConfig,
    /// The network namespace to join; process isolation without one gets a fresh, empty one.
    /// For hyperv its interfaces are the machine's.
    pub network_namespace: Option<&'a Path>,
    /// The PID namespace of another container to join.
    pub pid_namespace: Option<&'a Path>,
    /// The IPC namespace of another container to join.
    pub ipc_namespace: Option<&'a Path>,
    /// Its IDs, where they are others on the host. It is then in the user namespace that owns
    /// its network namespace.
    pub mappings: Option<&'a Mappings>,
    /// The cgroup, absolute within each hierarchy (`/bulkhead/<id>`).
    pub cgroups_path: &'a Path,
    /// Volumes and binds.
    pub mounts: &'a [HostMount],
    /// What the host can do.
    pub facts: &'a HostFacts,
}

/// Makes the specification of a container.
///
/// # Errors
/// [`SpecError::Invalid`] for what [`validate`] would have refused, [`SpecError::Device`] for a device of the host that cannot be examined.
pub fn build(input: &SpecInput<'_>) -> Result<Spec, SpecError> {
    let host_config = input.host_config;
    let security = SecurityOptions::parse(host_config)?;
    let mut annotations: HashMap<String, String> =
        host_config.annotations.clone().unwrap_or_default();
    let (process, group_names) = process::init(input, &security)?;
    if !group_names.is_empty() {
        annotations.insert(GROUP_ADD_ANNOTATION.to_owned(), group_names.join(","));
    }
    let devices = devices::of(input)?;
    let capabilities = capabilities_of(host_config, input.isolation, input.facts)?;
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces::of(input)?)
        .resources(resources::of(input, &devices)?)
        .cgroups_path(input.cgroups_path)
        .masked_paths(security::masked_paths(host_config))
        .readonly_paths(security::readonly_paths(host_config))
        .sysctl(sysctl::of(input));
    if !devices.nodes.is_empty() {
        linux = linux.devices(devices.nodes);
    }
    if let Some(mappings) = input.mappings {
        linux = linux
            .uid_mappings(id_mappings(&mappings.uids)?)
            .gid_mappings(id_mappings(&mappings.gids)?);
    }
    if let Some(profile) = security::seccomp_profile(host_config, &security, &capabilities)? {
        linux = linux.seccomp(profile);
    }
    let mut spec = SpecBuilder::default()
        .version("1.1.0")
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(host_config.readonly_rootfs.unwrap_or(false))
                .build()?,
        )
        .process(process)
        .mounts(mounts::of(input)?)
        .linux(linux.build()?)
        .annotations(annotations);
    if !namespaces::is_of_host(input.isolation, host_config.uts_mode.as_deref()) {
        spec = spec.hostname(input.hostname);
        if let Some(domain) = input.config.domainname.as_deref().filter(|d| !d.is_empty()) {
            spec = spec.domainname(domain);
        }
    }
    let mut spec = spec.build()?;
    if namespaces::is_of_host(input.isolation, host_config.uts_mode.as_deref()) {
        // The builder's default names a host, which a shared namespace must not be given.
        spec.set_hostname(None);
    }
    Ok(spec)
}

fn id_mappings(ranges: &[IdRange]) -> Result<Vec<LinuxIdMapping>, SpecError> {
    let mapping = |range: &IdRange| {
        LinuxIdMappingBuilder::default()
            .container_id(range.container)
            .host_id(range.host)
            .size(range.size)
            .build()
    };
    Ok(ranges.iter().map(mapping).collect::<Result<_, _>>()?)
}

/// What `ALL` stands for differs: a VM has its own kernel with every capability, a host hands
/// on what it has.
fn capabilities_of(
    host_config: &HostConfig,
    isolation: IsolationKind,
    facts: &HostFacts,
) -> Result<oci_spec::runtime::Capabilities, Invalid> {
    let available = match isolation {
        IsolationKind::Hyperv => known_capabilities(),
        IsolationKind::Process => facts.capabilities.as_slice(),
    };
    effective_capabilities(host_config, available)
}
