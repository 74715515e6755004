//! The daemon's configuration: its command line, checked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bulkhead_isolation::{VmEngine, VmSettings};
use bulkhead_registry::{RegistryError, Settings as RegistrySettings};
use bulkhead_task::options::{IsolationKind, UnknownIsolation};
use bulkhead_userns::Mappings;

use crate::args::DaemonArgs;
use crate::remap::RemapError;
use crate::remote::TlsFiles;

/// Where the daemon listens when no `-H` says otherwise.
pub const DEFAULT_SOCKET: &str = "/var/run/bulkhead.sock";
/// Newest API version served.
pub const API_VERSION: &str = "1.50";
/// Oldest API version served.
pub const MIN_API_VERSION: &str = "1.24";
/// The log drivers there are.
pub const LOG_DRIVERS: [&str; 3] = ["json-file", "local", "none"];

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// Sockets to listen on.
    pub sockets: Vec<PathBuf>,
    /// TCP addresses to listen on, `host:port`.
    pub addresses: Vec<String>,
    /// Keys and certificates of TCP; `None` for plain text.
    pub tls: Option<TlsFiles>,
    /// Directory of images and containers.
    pub data_root: PathBuf,
    /// Directory of running state.
    pub exec_root: PathBuf,
    /// File with the daemon's PID.
    pub pidfile: PathBuf,
    /// The IDs of the host that those of containers with process isolation are, where they are
    /// others.
    pub userns: Option<Mappings>,
    /// What a container gets that doesn't choose.
    pub default_isolation: IsolationKind,
    /// How VMs are made.
    pub vm: VmSettings,
    /// Whether to log at debug level.
    pub debug: bool,
    /// Level of the log.
    pub log_level: String,
    /// Group that owns the sockets.
    pub group: Option<u32>,
    /// Absolute path of the parent cgroup of containers.
    pub cgroup_parent: String,
    /// Labels of the daemon, `key=value`.
    pub labels: Vec<String>,
    /// Default log driver.
    pub log_driver: String,
    /// Default log options.
    pub log_opts: BTreeMap<String, String>,
    /// How registries are reached.
    pub registries: RegistrySettings,
    /// Seconds for requests in flight at shutdown.
    pub shutdown_timeout: u64,
}

/// A command line that can't be honoured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// An address of a scheme that is not served.
    #[error(
        "cannot listen on '{0}': expected unix://PATH, such as unix://{DEFAULT_SOCKET}, or \
         tcp://HOST:PORT"
    )]
    Host(String),
    /// TCP for everybody, without saying so.
    #[error(
        "cannot listen on tcp://{0} without --tlsverify: whoever can connect would be root on this \
         host; give --tlsverify with --tlscacert, --tlscert and --tlskey, or, to listen all the \
         same, --tlsverify=false with --tls, or --tls=false"
    )]
    Insecure(String),
    /// TLS flags that contradict each other.
    #[error("--tlsverify needs TLS: it cannot be used with --tls=false")]
    VerifyWithoutTls,
    /// A `--exec-opt` that is not known.
    #[error("unknown --exec-opt '{0}': the known one is isolation=process|hyperv")]
    ExecOpt(String),
    /// An unknown isolation.
    #[error("--exec-opt isolation")]
    Isolation(#[source] UnknownIsolation),
    /// User namespaces.
    #[error("cannot use --userns-remap {value}")]
    UsernsRemap {
        /// What was given.
        value: String,
        /// Why not.
        #[source]
        source: RemapError,
    },
    /// An unknown engine.
    #[error("unknown --vm-engine '{0}': the valid ones are auto, kvm and qemu")]
    VmEngine(String),
    /// An unknown log driver.
    #[error("unknown --log-driver '{0}': the valid ones are json-file, local and none")]
    LogDriver(String),
    /// Something that should be `key=value`.
    #[error("{flag} '{value}' is not of the form KEY=VALUE")]
    KeyValue {
        /// The flag.
        flag: &'static str,
        /// What was given.
        value: String,
    },
    /// A level that doesn't exist.
    #[error("unknown --log-level '{0}': the valid ones are debug, info, warn, error and fatal")]
    LogLevel(String),
    /// A group that doesn't exist.
    #[error("group '{0}' not found in /etc/group")]
    Group(String),
    /// A mirror or an insecure registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A path that must be absolute could not be made so.
    #[error("cannot make '{path}' absolute")]
    Path {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Config {
    /// Checks a command line.
    ///
    /// # Errors
    /// What cannot be honoured, with the valid choices.
    pub fn from_args(args: &DaemonArgs) -> Result<Self, ConfigError> {
        let mut sockets = Vec::new();
        let mut addresses = Vec::new();
        let tls = tls_files(args)?;
        for host in &args.hosts {
            match host.strip_prefix("tcp://") {
                Some(address) => addresses.push(tcp_address(host, address, tls.is_some())?),
                None => sockets.push(socket_path(host)?),
            }
        }
        if sockets.is_empty() && addresses.is_empty() {
            sockets.push(PathBuf::from(DEFAULT_SOCKET));
        }
        let plain = args.tls == Some(false) || args.tlsverify == Some(false);
        let verified = tls.as_ref().is_some_and(|files| files.authority.is_some());
        if let (Some(address), false, false) = (addresses.first(), verified, plain) {
            return Err(ConfigError::Insecure(address.clone()));
        }
        let mut default_isolation = IsolationKind::Process;
        for option in &args.exec_opts {
            match option.split_once('=') {
                Some(("isolation", value)) => {
                    default_isolation = value.parse().map_err(ConfigError::Isolation)?;
                }
                _ => return Err(ConfigError::ExecOpt(option.clone())),
            }
        }
        let engine = match args.vm_engine.as_str() {
            "auto" => VmEngine::Auto,
            "kvm" => VmEngine::Kvm,
            "qemu" => VmEngine::Qemu,
            other => return Err(ConfigError::VmEngine(other.to_owned())),
        };
        if !LOG_DRIVERS.contains(&args.log_driver.as_str()) {
            return Err(ConfigError::LogDriver(args.log_driver.clone()));
        }
        let mut log_opts = BTreeMap::new();
        for option in &args.log_opts {
            let (key, value) = key_value("--log-opt", option)?;
            log_opts.insert(key, value);
        }
        for label in &args.labels {
            key_value("--label", label)?;
        }
        if !["debug", "info", "warn", "error", "fatal"].contains(&args.log_level.as_str()) {
            return Err(ConfigError::LogLevel(args.log_level.clone()));
        }
        let data_root = absolute(&args.data_root)?;
        // The last: it may make a user.
        let userns = crate::remap::resolve(&args.userns_remap, &data_root).map_err(|source| {
            ConfigError::UsernsRemap {
                value: args.userns_remap.clone(),
                source,
            }
        })?;
        let cgroup_parent = format!("/{}", args.cgroup_parent.trim_matches('/'));
        Ok(Self {
            sockets,
            addresses,
            tls,
            data_root,
            userns,
            exec_root: absolute(&args.exec_root)?,
            pidfile: absolute(&args.pidfile)?,
            default_isolation,
            vm: VmSettings {
                engine,
                guest_dir: args.guest_dir.as_deref().map(absolute).transpose()?,
                debug: args.debug,
                ..VmSettings::default()
            },
            debug: args.debug,
            log_level: if args.debug {
                "debug".to_owned()
            } else {
                args.log_level.clone()
            },
            group: args.group.as_deref().map(group_id).transpose()?,
            cgroup_parent,
            labels: args.labels.clone(),
            log_driver: args.log_driver.clone(),
            log_opts,
            registries: registries(args)?,
            shutdown_timeout: args.shutdown_timeout,
        })
    }

    /// Whom the root of containers is on the host, where it is not root.
    pub fn container_root(&self) -> Option<(u32, u32)> {
        self.userns.as_ref()?.root().ok()
    }

    /// The directory of one container in the data root.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.data_root.join("containers").join(id)
    }
}

fn registries(args: &DaemonArgs) -> Result<RegistrySettings, ConfigError> {
    let mirrors = args.registry_mirrors.iter();
    let insecure = args.insecure_registries.iter();
    Ok(RegistrySettings {
        mirrors: mirrors
            .map(|text| RegistrySettings::mirror(text))
            .collect::<Result<_, _>>()?,
        insecure: insecure
            .map(|text| RegistrySettings::insecure_registry(text))
            .collect::<Result<_, _>>()?,
        certificates: absolute(&args.registry_certs_dir)?,
        http_proxy: args.http_proxy.clone(),
        https_proxy: args.https_proxy.clone(),
        no_proxy: args.no_proxy.clone(),
        downloads: args.max_concurrent_downloads,
        uploads: args.max_concurrent_uploads,
        attempts: args.max_download_attempts,
        ..RegistrySettings::default()
    })
}

/// What TCP listens with: TLS unless it is turned off.
fn tls_files(args: &DaemonArgs) -> Result<Option<TlsFiles>, ConfigError> {
    match (args.tls, args.tlsverify) {
        (Some(false), Some(true)) => Err(ConfigError::VerifyWithoutTls),
        (Some(false), _) | (None, Some(false) | None) => Ok(None),
        (Some(true) | None, verify) => Ok(Some(TlsFiles {
            authority: match verify {
                Some(true) => Some(absolute(&args.tlscacert)?),
                _ => None,
            },
            certificate: absolute(&args.tlscert)?,
            key: absolute(&args.tlskey)?,
        })),
    }
}

/// `host:port` of a `tcp://`, with Docker's ports where there is none.
fn tcp_address(whole: &str, address: &str, tls: bool) -> Result<String, ConfigError> {
    let bad = || ConfigError::Host(whole.to_owned());
    let address = address.trim_end_matches('/');
    let default = if tls { "2376" } else { "2375" };
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (address, default),
    };
    let port = if port.is_empty() { default } else { port };
    let port: u16 = port.parse().map_err(|_| bad())?;
    if host.contains('/') {
        return Err(bad());
    }
    let host = if host.is_empty() { "127.0.0.1" } else { host };
    Ok(format!("{host}:{port}"))
}

fn socket_path(host: &str) -> Result<PathBuf, ConfigError> {
    match host.strip_prefix("unix://") {
        Some("") => Ok(PathBuf::from(DEFAULT_SOCKET)),
        Some(path) => absolute(Path::new(path)),
        None => Err(ConfigError::Host(host.to_owned())),
    }
}

fn absolute(path: impl AsRef<Path>) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path.as_ref()).map_err(|source| ConfigError::Path {
        path: path.as_ref().to_owned(),
        source,
    })
}

fn key_value(flag: &'static str, text: &str) -> Result<(String, String), ConfigError> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(ConfigError::KeyValue {
            flag,
            value: text.to_owned(),
        }),
    }
}

/// Finds a group in `/etc/group`; the binary is static, so NSS is out of reach.
fn group_id(name: &str) -> Result<u32, ConfigError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    std::fs::read_to_string("/etc/group")
        .unwrap_or_default()
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
        })
        .ok_or_else(|| ConfigError::Group(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn config(args: &[&str]) -> Result<Config, ConfigError> {
        Config::from_args(&DaemonArgs::parse_from([&["daemon"], args].concat()))
    }

    #[test]
    fn flags_are_checked() {
        for insecure in [
            &["-H", "tcp://0.0.0.0:1"][..],
            &["-H", "tcp://:1", "--tls"],
            &["-H", "unix:///a", "-H", "tcp://"],
        ] {
            assert!(matches!(config(insecure), Err(ConfigError::Insecure(_))));
        }
        assert!(matches!(
            config(&["-H", "tcp://x:y"]),
            Err(ConfigError::Host(_))
        ));
        assert!(matches!(
            config(&["-H", "tcp://", "--tls=false", "--tlsverify"]),
            Err(ConfigError::VerifyWithoutTls)
        ));
        let open = config(&["-H", "tcp://[::1]", "--tls=false"]).unwrap();
        assert_eq!(open.addresses, ["[::1]:2375"]);
        assert!(open.tls.is_none() && open.sockets.is_empty());
        let mutual = config(&["-H", "tcp://0.0.0.0", "--tlsverify", "--tlscacert", "/ca"]);
        let mutual = mutual.unwrap();
        assert_eq!(mutual.addresses, ["0.0.0.0:2376"]);
        assert_eq!(mutual.tls.unwrap().authority, Some(PathBuf::from("/ca")));
        assert!(matches!(
            config(&["--exec-opt", "isolation=vm"]),
            Err(ConfigError::Isolation(_))
        ));
        assert!(matches!(
            config(&["--vm-engine", "xen"]),
            Err(ConfigError::VmEngine(_))
        ));
        let good = config(&[
            "-H",
            "unix:///a",
            "-H",
            "unix:///b",
            "--exec-opt",
            "isolation=hyperv",
        ])
        .unwrap();
        assert_eq!(good.sockets, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(good.default_isolation, IsolationKind::Hyperv);
        assert_eq!(good.cgroup_parent, "/bulkhead");
    }
}
