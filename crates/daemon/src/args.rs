//! The command line of `bulkhead daemon`: dockerd's flags, as far as they mean something here.

use std::path::PathBuf;

use clap::Parser;

/// Flags of `bulkhead daemon`.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "bulkhead daemon",
    about = "Run the container engine",
    disable_version_flag = true
)]
pub struct DaemonArgs {
    /// Where to listen, unix://PATH or, with --tlsverify, tcp://HOST:PORT; may be given several
    /// times (default unix:///var/run/bulkhead.sock)
    #[arg(short = 'H', long = "host", value_name = "URL")]
    pub hosts: Vec<String>,
    /// Use TLS on TCP; --tls=false listens in plain text, to everybody who can connect
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub tls: Option<bool>,
    /// Let in clients only whose certificate --tlscacert has signed; --tlsverify=false lets in
    /// everybody who can connect
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub tlsverify: Option<bool>,
    /// Certificate authority of clients, PEM
    #[arg(long, value_name = "FILE", default_value = "/etc/bulkhead/ca.pem")]
    pub tlscacert: PathBuf,
    /// The daemon's certificate, PEM
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/bulkhead/server-cert.pem"
    )]
    pub tlscert: PathBuf,
    /// The key of the daemon's certificate, PEM
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/bulkhead/server-key.pem"
    )]
    pub tlskey: PathBuf,
    /// Directory of images and containers
    #[arg(long, value_name = "DIR", default_value = "/var/lib/bulkhead")]
    pub data_root: PathBuf,
    /// Directory of running state: sockets, bundles, network namespaces
    #[arg(long, value_name = "DIR", default_value = "/run/bulkhead")]
    pub exec_root: PathBuf,
    /// File for the daemon's PID
    #[arg(
        short = 'p',
        long,
        value_name = "FILE",
        default_value = "/var/run/bulkhead.pid"
    )]
    pub pidfile: PathBuf,
    /// Runtime option KEY=VALUE; isolation=process|hyperv sets the default isolation
    #[arg(long = "exec-opt", value_name = "KEY=VALUE")]
    pub exec_opts: Vec<String>,
    /// User whose subordinate IDs containers with process isolation run as: default for
    /// dockremap, which is made; empty for none
    #[arg(long, value_name = "USER[:GROUP]", default_value = "")]
    pub userns_remap: String,
    /// Log at debug level, keep guest consoles
    #[arg(short = 'D', long)]
    pub debug: bool,
    /// debug, info, warn, error or fatal
    #[arg(short = 'l', long, value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
    /// What runs the CPUs of virtual machines: auto, kvm or qemu
    #[arg(long, value_name = "ENGINE", default_value = "auto")]
    pub vm_engine: String,
    /// Directory with the guest kernel and initramfs
    #[arg(long, value_name = "DIR")]
    pub guest_dir: Option<PathBuf>,
    /// Group (name or number) that may use the sockets
    #[arg(short = 'G', long, value_name = "GROUP")]
    pub group: Option<String>,
    /// Parent cgroup of containers
    #[arg(long, value_name = "PATH", default_value = "/bulkhead")]
    pub cgroup_parent: String,
    /// Label KEY=VALUE of this daemon, shown by `info`
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// Default log driver: json-file, local or none
    #[arg(long, value_name = "DRIVER", default_value = "json-file")]
    pub log_driver: String,
    /// Default log option KEY=VALUE
    #[arg(long = "log-opt", value_name = "KEY=VALUE")]
    pub log_opts: Vec<String>,
    /// Registry that is asked before Docker Hub; may be given several times
    #[arg(long = "registry-mirror", value_name = "URL")]
    pub registry_mirrors: Vec<String>,
    /// Registry, HOST[:PORT] or CIDR, that may do without TLS or a good certificate; may be
    /// given several times. Loopback always may
    #[arg(long = "insecure-registry", value_name = "REGISTRY")]
    pub insecure_registries: Vec<String>,
    /// Directory with <HOST[:PORT]>/*.crt, *.cert and *.key for registries
    #[arg(
        long = "registry-certs-dir",
        value_name = "DIR",
        default_value = "/etc/docker/certs.d"
    )]
    pub registry_certs_dir: PathBuf,
    /// Layers that are fetched at a time
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    pub max_concurrent_downloads: usize,
    /// Layers that are sent at a time
    #[arg(long, value_name = "COUNT", default_value_t = 5)]
    pub max_concurrent_uploads: usize,
    /// How often the download of a layer is tried
    #[arg(long, value_name = "COUNT", default_value_t = 5)]
    pub max_download_attempts: u32,
    /// Proxy for http registries (default $HTTP_PROXY)
    #[arg(long, value_name = "URL")]
    pub http_proxy: Option<String>,
    /// Proxy for https registries (default $HTTPS_PROXY)
    #[arg(long, value_name = "URL")]
    pub https_proxy: Option<String>,
    /// Comma-separated hosts that are reached without a proxy (default $NO_PROXY)
    #[arg(long, value_name = "HOSTS")]
    pub no_proxy: Option<String>,
    /// Seconds that requests in flight get when the daemon shuts down
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    pub shutdown_timeout: u64,
}
