//! Making a container: name, image, configuration, record. Nothing runs yet.

use std::sync::Arc;

use bollard_stubs::models::{ContainerConfig, HostConfig, HostConfigLogConfig};
use bulkhead_image::{ImageError, ImageId, Platform, platform_words};
use bulkhead_spec::{Invalid, InvalidKind};
use bulkhead_task::options::IsolationKind;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::model::{Record, State, Status};
use super::{Containers, Handle, names};
use crate::config::LOG_DRIVERS;
use crate::error::{ApiError, ApiResult};
use crate::services::networks::NetworkSettings;

/// How many made-up names are tried before one gets a number behind it.
const NAME_TRIES: usize = 10;

/// A container that is to be made.
#[derive(Debug)]
pub struct CreateRequest<'a> {
    /// Its name; one is made up otherwise.
    pub name: Option<&'a str>,
    /// The image's platform.
    pub platform: Option<&'a str>,
    /// The body of `POST /containers/create`.
    pub body: Value,
    /// Whether read-only binds are so with what is mounted below them: clients of older
    /// versions of the API than 1.44 count on it that they are not.
    pub read_only_recursive: bool,
}

/// A container that was made.
#[derive(Debug)]
pub struct Created {
    /// Its ID.
    pub id: String,
    /// What its maker should know.
    pub warnings: Vec<String>,
}

/// What of the body is not the configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Rest {
    #[serde(default)]
    host_config: Option<HostConfig>,
}

/// What has words of its own in the API, before the body is taken apart by its types.
fn check_body(body: &Value) -> ApiResult<()> {
    let Some(fields) = body.as_object() else {
        return Err(ApiError::bad_request("invalid JSON: an object is expected"));
    };
    let parts = ["HostConfig", "NetworkingConfig"];
    if fields.keys().all(|key| parts.contains(&key.as_str())) {
        return Err(ApiError::bad_request(
            "config cannot be empty in order to create a container",
        ));
    }
    let host_config = &body["HostConfig"];
    check_policy_name(&host_config["RestartPolicy"])?;
    for mount in host_config["Mounts"].as_array().into_iter().flatten() {
        let kind = mount["Type"].as_str();
        let refused = |why: &str| {
            let kind = kind.unwrap_or_default();
            ApiError::bad_request(format!("invalid mount config for type \"{kind}\": {why}"))
        };
        let kinds = ["bind", "cluster", "image", "npipe", "tmpfs", "volume"];
        if kind.is_some_and(|kind| !kinds.contains(&kind)) {
            return Err(refused("mount type unknown"));
        }
        let ways = [
            "", "private", "rprivate", "shared", "rshared", "slave", "rslave",
        ];
        if let Some(way) = mount["BindOptions"]["Propagation"].as_str()
            && !ways.contains(&way)
        {
            return Err(refused(&format!("invalid propagation mode: {way}")));
        }
    }
    if let Some(mode) = host_config["CgroupnsMode"].as_str()
        && !["", "private", "host"].contains(&mode)
    {
        return Err(ApiError::bad_request(format!(
            "invalid cgroup namespace mode: {mode}"
        )));
    }
    if host_config["Annotations"].get("").is_some() {
        return Err(ApiError::bad_request(
            "invalid Annotations: the empty string is not permitted as an annotation key",
        ));
    }
    Ok(())
}

/// Refuses the name of a restart policy that there is not.
pub(super) fn check_policy_name(policy: &Value) -> ApiResult<()> {
    let known = ["", "no", "always", "unless-stopped", "on-failure"];
    match policy["Name"].as_str() {
        Some(unknown) if !known.contains(&unknown) => Err(ApiError::bad_request(format!(
            "invalid restart policy: unknown policy '{unknown}'; use one of 'no', 'always', \
             'on-failure', or 'unless-stopped'"
        ))),
        _ => Ok(()),
    }
}

/// What is needed of an image.
struct Image {
    id: ImageId,
    config: bollard_stubs::models::ImageConfig,
    layers: Vec<std::path::PathBuf>,
    /// What is to be said of its platform.
    foreign: Option<String>,
}

impl Containers {
    /// Makes a container.
    ///
    /// # Errors
    /// 400 for a configuration that is refused, 404 for a missing image, 409 for a name
    /// that is taken. Nothing is left then.
    pub async fn create(&self, request: CreateRequest<'_>) -> ApiResult<Created> {
        let CreateRequest {
            name,
            platform,
            body,
            read_only_recursive,
        } = request;
        let platform = platform.map(crate::platform::parse).transpose()?;
        let _creating = self.shared.creating.read().await;
        let name = name.map(names::check).transpose()?.map(str::to_owned);
        let isolation = self.requested_isolation(&body)?;
        check_body(&body)?;
        let decode = |error| ApiError::bad_request(format!("invalid JSON: {error}"));
        let mut config = ContainerConfig::deserialize(&body).map_err(decode)?;
        let Rest { host_config } = Rest::deserialize(&body).map_err(decode)?;
        let mut host_config = host_config.unwrap_or_default();
        // What is less than 1 is unlimited.
        host_config.pids_limit = host_config.pids_limit.filter(|limit| *limit > 0);
        let reference = config.image.clone().unwrap_or_default();
        if reference.is_empty() {
            return Err(ApiError::bad_request("no image specified"));
        }
        // What the image exposes comes later, and may be.
        let exposes = config.exposed_ports.as_ref();
        let exposes = exposes.is_some_and(|ports| !ports.is_empty());
        let image = self.image(&reference, platform.as_ref()).await?;
        bulkhead_spec::merge_image_config(&mut config, &image.config);
        let facts = &self.shared.facts;
        let mut warnings = bulkhead_spec::apply_defaults(&mut host_config, isolation, facts);
        warnings.extend(image.foreign.clone());
        self.apply_log_defaults(&mut host_config)?;
        warnings.extend(
            bulkhead_spec::validate(&config, &host_config, isolation, facts).map_err(invalid)?,
        );
        let joins = host_config.network_mode.as_deref().unwrap_or_default();
        if exposes && joins.starts_with("container:") {
            return Err(ApiError::bad_request(
                "conflicting options: port exposing and the container type network mode",
            ));
        }
        self.settle_joined(&mut host_config)?;
        let mappings = self.shared.mappings(isolation, &host_config);
        if mappings.is_some() {
            bulkhead_spec::check_user_namespace(&host_config).map_err(invalid)?;
        }
        let attachments = super::network::attachments(&body, &host_config)?;
        for link in host_config.links.iter().flatten() {
            let name = link.split(':').next().unwrap_or_default();
            if link.is_empty() {
                return Err(ApiError::bad_request("empty string specified for links"));
            }
            if link.matches(':').count() > 1 {
                return Err(ApiError::bad_request(format!(
                    "bad format for links: {link}"
                )));
            }
            self.find_own(name).map_err(|error| {
                ApiError::bad_request(format!(
                    "could not get container for {name}: {}",
                    error.message
                ))
            })?;
        }
        crate::services::networks::publish::requests(&config, &host_config)?;
        check_signal(&config)?;
        super::health::check(config.healthcheck.as_ref())?;
        let id = new_id();
        if config.hostname.as_deref().is_none_or(str::is_empty) {
            // Who is in the host's network is called like it.
            let modes = [&host_config.uts_mode, &host_config.network_mode];
            let of_host = modes.iter().any(|mode| mode.as_deref() == Some("host"));
            config.hostname = Some(match of_host {
                true => host_name(),
                false => id[..12].to_owned(),
            });
        }
        let command = bulkhead_spec::command(&config).map_err(invalid)?;
        let (path, args) = command
            .split_first()
            .map(|(path, args)| (path.clone(), args.to_vec()))
            .unwrap_or_default();
        let name = self.reserve(name, &id)?;
        let resolved = self
            .resolve_mounts(&id, &config, &host_config, &image.layers, mappings)
            .await;
        let mut resolved = match resolved {
            Ok(resolved) => resolved,
            Err(error) => {
                self.shared.release_name(&name);
                return Err(error);
            }
        };
        for bind in resolved
            .mounts
            .iter_mut()
            .filter(|mount| mount.kind() == "bind")
        {
            bind.read_only_recursive &= read_only_recursive;
        }
        let record = Record {
            id: id.clone(),
            name: name.clone(),
            created: Timestamp::now(),
            image: reference,
            image_id: image.id.to_string(),
            layers: image.layers,
            isolation,
            config,
            host_config,
            path,
            args,
            state: State {
                status: Status::Created,
                pid: 0,
                exit_code: 0,
                error: String::new(),
                oom_killed: false,
                started_at: None,
                finished_at: None,
                health: None,
            },
            restart_count: 0,
            manually_stopped: false,
            mounts: resolved.mounts.clone(),
            networks: NetworkSettings {
                attachments,
                sandbox: None,
            },
        };
        if let Err(error) = self.establish(record).await {
            self.undo_mounts(&id, resolved).await;
            self.shared.release_name(&name);
            let _ = std::fs::remove_dir_all(self.shared.config.container_dir(&id));
            return Err(error);
        }
        Ok(Created { id, warnings })
    }

    /// Directory, row, owner task, in this order: a crash in between leaves a directory
    /// without a row, which the next start sweeps.
    async fn establish(&self, record: Record) -> ApiResult<Arc<Handle>> {
        self.hold_layers(&record).await?;
        let saved = async {
            let writable = self.files(&record).writable;
            super::files::make_private_dirs(&writable)
                .map_err(|error| ApiError::internal("make container directory", &error))?;
            super::actor::save(&self.shared, &record).await
        };
        if let Err(error) = saved.await {
            super::remove::release_layers(&self.shared, &record).await;
            return Err(error);
        }
        self.shared.event(&record, "create", &[]);
        Ok(super::actor::spawn(&self.shared, record, None))
    }

    /// From now on the container keeps its layers, whatever becomes of the image.
    async fn hold_layers(&self, record: &Record) -> ApiResult<()> {
        let images = Arc::clone(&self.shared.images);
        let layers = record.all_layers();
        let held = tokio::task::spawn_blocking(move || images.hold_layers(&layers))
            .await
            .map_err(|error| ApiError::internal("hold layers", &error))?;
        match held.map_err(image_error)? {
            true => Ok(()),
            // Its image was removed just now.
            false => Err(ApiError::not_found(format!(
                "No such image: {}",
                record.image
            ))),
        }
    }

    /// Checks the isolation that something asks for.
    ///
    /// # Errors
    /// 400 for one that there is not.
    pub fn check_isolation(&self, requested: Option<&str>) -> ApiResult<IsolationKind> {
        bulkhead_spec::effective_isolation(requested, self.shared.config.default_isolation)
            .map_err(invalid)
    }

    fn requested_isolation(&self, body: &Value) -> ApiResult<IsolationKind> {
        let requested = match body.pointer("/HostConfig/Isolation") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.as_str()),
            Some(_) => {
                return Err(ApiError::bad_request(
                    "HostConfig.Isolation is not a string",
                ));
            }
        };
        self.check_isolation(requested)
    }

    fn reserve(&self, name: Option<String>, id: &str) -> ApiResult<String> {
        if let Some(name) = name {
            self.shared.reserve_name(&name, id)?;
            return Ok(name);
        }
        for _ in 0..NAME_TRIES {
            let name = names::random();
            if self.shared.reserve_name(&name, id).is_ok() {
                return Ok(name);
            }
        }
        let name = format!("{}_{}", names::random(), &id[..12]);
        self.shared.reserve_name(&name, id)?;
        Ok(name)
    }

    async fn image(&self, reference: &str, platform: Option<&Platform>) -> ApiResult<Image> {
        let images = Arc::clone(&self.shared.images);
        let text = reference.to_owned();
        let found = tokio::task::spawn_blocking(move || {
            let id = images.resolve(&text)?;
            let detail = images.inspect(&id)?;
            let layers = images.layer_paths(&id)?;
            Ok::<_, ImageError>((id, detail.document, layers))
        })
        .await
        .map_err(|error| ApiError::internal("look up image", &error))?;
        let (id, document, layers) = found.map_err(image_error)?;
        let foreign = match platform {
            None => foreign_warning(&document),
            Some(_) => None,
        };
        check_platform(reference, platform, &document.os, &document.architecture)?;
        // The same document, in the API's types.
        let config = serde_json::to_value(&document.config)
            .and_then(serde_json::from_value)
            .map_err(|error| ApiError::internal("configuration of the image", &error))?;
        Ok(Image {
            id,
            config,
            layers,
            foreign,
        })
    }

    fn apply_log_defaults(&self, host_config: &mut HostConfig) -> ApiResult<()> {
        let config = &self.shared.config;
        let log = host_config
            .log_config
            .get_or_insert_with(HostConfigLogConfig::default);
        let own_driver = log.typ.as_deref().is_some_and(|driver| !driver.is_empty());
        if !own_driver {
            log.typ = Some(config.log_driver.clone());
        }
        let driver = log.typ.clone().unwrap_or_default();
        if !LOG_DRIVERS.contains(&driver.as_str()) {
            return Err(ApiError::bad_request(format!(
                "logger: no log driver named '{driver}' is registered"
            )));
        }
        let options = log.config.get_or_insert_default();
        if driver == config.log_driver {
            for (key, value) in &config.log_opts {
                options.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        if driver != "none" {
            super::files::check_log_mode(options).map_err(ApiError::bad_request)?;
        }
        super::files::log_limits(&driver, options).map_err(ApiError::bad_request)?;
        super::log_attributes::check(options).map_err(ApiError::bad_request)?;
        Ok(())
    }
}

/// Refuses an image of another platform than the one asked for.
fn check_platform(
    reference: &str,
    asked: Option<&Platform>,
    os: &str,
    architecture: &str,
) -> ApiResult<()> {
    let Some(asked) = asked else { return Ok(()) };
    let fits = asked.os == os && asked.architecture == architecture;
    // An image that doesn't say is taken as it is.
    if fits || os.is_empty() || architecture.is_empty() {
        return Ok(());
    }
    Err(ApiError::not_found(format!(
        "image with reference {reference} was found but does not provide the specified platform \
         ({}/{}): it is for {os}/{architecture}",
        asked.os, asked.architecture
    )))
}

/// What is said of an image that the host's processor may not run, where nobody asked for that.
fn foreign_warning(document: &bulkhead_image::ImageConfig) -> Option<String> {
    let host = bulkhead_image::Platform::host();
    let (os, architecture) = (document.os.as_str(), document.architecture.as_str());
    let runs = architecture == host.architecture
        || matches!(
            (host.architecture.as_str(), architecture),
            ("amd64", "386") | ("arm64", "arm")
        );
    if os.is_empty() || architecture.is_empty() || (os == host.os && runs) {
        return None;
    }
    Some(format!(
        "The requested image's platform ({}) does not match the detected host platform ({}) and \
         no specific platform was requested",
        platform_words(os, architecture, document.variant.as_deref()),
        platform_words(&host.os, &host.architecture, None),
    ))
}

fn check_signal(config: &ContainerConfig) -> ApiResult<()> {
    match config.stop_signal.as_deref() {
        None | Some("") => Ok(()),
        Some(signal) => super::signals::parse(signal).map(|_| ()),
    }
}

/// An error of the image store, for HTTP.
pub(crate) fn image_error(error: ImageError) -> ApiError {
    use bulkhead_image::ErrorKind;
    let message = error.full_message();
    match error.kind() {
        ErrorKind::NotFound => ApiError::not_found(message),
        ErrorKind::Conflict => ApiError::conflict(message),
        ErrorKind::InvalidArgument => ApiError::bad_request(message),
        ErrorKind::Other => ApiError::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, message),
    }
}

/// A refused configuration, for HTTP.
pub(crate) fn invalid(error: Invalid) -> ApiError {
    let message = error.to_string();
    match error.kind() {
        InvalidKind::Parameter => ApiError::bad_request(message),
        InvalidKind::NotYet => ApiError::not_implemented(message),
    }
}

/// 64 hexadecimal digits whose first 12 are not all decimal: such a short ID would be taken
/// for a number by shells and YAML.
pub fn new_id() -> String {
    loop {
        let bytes: [u8; 32] = rand::random();
        let id: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        if id[..12].bytes().any(|digit| !digit.is_ascii_digit()) {
            return id;
        }
    }
}

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}
