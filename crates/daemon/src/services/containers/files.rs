//! Generated files of a container (`hostname`, `hosts`, `resolv.conf`), and the options of
//! its log.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use bulkhead_isolation::InjectedFile;
use bulkhead_task::options::LogOptions;

use super::Files;
use super::model::Record;
use super::network::{Names, Namespace, namespace};

/// Makes a directory and its parents for root alone.
pub(super) fn make_private_dirs(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Writes the generated files and says where they go in the container.
pub(super) fn generate(
    record: &Record,
    files: &Files,
    names: &Names,
) -> io::Result<Vec<InjectedFile>> {
    let hostname = record.hostname();
    let domain = record.config.domainname.as_deref().unwrap_or_default();
    std::fs::write(&files.hostname, format!("{hostname}\n"))?;
    let hosts = match namespace(&record.host_config) {
        Namespace::Host => hosts_of_host(record, names),
        _ => hosts(record, hostname, domain, names),
    };
    std::fs::write(&files.hosts, hosts)?;
    std::fs::write(&files.resolv_conf, resolv_conf(record))?;
    if let Some((uid, gid)) = files.owner {
        for path in [&files.hostname, &files.hosts, &files.resolv_conf] {
            std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
        }
    }
    Ok(shared_with(files))
}

/// Where generated files go in a container: its own, or those of one whose network it is in.
pub(super) fn shared_with(files: &Files) -> Vec<InjectedFile> {
    [
        (&files.resolv_conf, "/etc/resolv.conf"),
        (&files.hostname, "/etc/hostname"),
        (&files.hosts, "/etc/hosts"),
    ]
    .into_iter()
    .map(|(source, destination)| InjectedFile {
        source: source.clone(),
        destination: PathBuf::from(destination),
    })
    .collect()
}

/// What every file of hosts begins with.
const LOCAL_HOSTS: &str = "127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::\tip6-localnet\n\
    ff00::\tip6-mcastprefix\n\
    ff02::1\tip6-allnodes\n\
    ff02::2\tip6-allrouters\n";

/// In the host's network: the host's file, or what the user says in its place. Who looks a
/// name up takes the first line that has it, so that an addition could not change one.
fn hosts_of_host(record: &Record, names: &Names) -> String {
    if record
        .host_config
        .extra_hosts
        .iter()
        .flatten()
        .next()
        .is_none()
    {
        return std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    }
    let mut text = LOCAL_HOSTS.to_owned();
    add_extra_hosts(&mut text, record, names);
    text
}

fn add_extra_hosts(text: &mut String, record: &Record, names: &Names) {
    for extra in record.host_config.extra_hosts.iter().flatten() {
        // Checked when the container was made.
        if let Ok((name, address)) = bulkhead_spec::extra_host(extra) {
            let address = match (address, names.host_gateway) {
                ("host-gateway", Some(gateway)) => gateway.to_string(),
                (address, _) => address.to_owned(),
            };
            text.push_str(&format!("{address}\t{name}\n"));
        }
    }
}

fn hosts(record: &Record, hostname: &str, domain: &str, names: &Names) -> String {
    let mut text = LOCAL_HOSTS.to_owned();
    add_extra_hosts(&mut text, record, names);
    for (address, names) in &names.links {
        text.push_str(&format!("{address}\t{}\n", names.join(" ")));
    }
    let mut full = match domain.is_empty() {
        true => hostname.to_owned(),
        false => format!("{hostname}.{domain}"),
    };
    if let Some((short, _)) = full.split_once('.') {
        full = format!("{full} {short}");
    }
    let endpoints = record
        .networks
        .sandbox
        .iter()
        .flat_map(|one| &one.endpoints);
    let mut alone = true;
    for endpoint in endpoints {
        let v4 = endpoint.ipv4.map(|net| net.addr().to_string());
        let v6 = endpoint.ipv6.map(|net| net.addr().to_string());
        for address in v4.into_iter().chain(v6) {
            text.push_str(&format!("{address}\t{full}\n"));
            alone = false;
        }
    }
    if alone {
        text.push_str(&format!("127.0.0.1\t{full}\n"));
    }
    text
}

/// What a container without a reachable server of the host's is given, as Docker does.
const PUBLIC_SERVERS: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// The user's choices over the host's file. On a network with names the resolver in the
/// container's own namespace comes before all.
fn resolv_conf(record: &Record) -> String {
    let host_config = &record.host_config;
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let given = |list: &Option<Vec<String>>| list.clone().filter(|list| !list.is_empty());
    let from_host = |keyword: &str| -> Vec<String> {
        host.lines()
            .filter_map(|line| line.strip_prefix(keyword)?.strip_prefix([' ', '\t']))
            .flat_map(str::split_whitespace)
            .map(str::to_owned)
            .collect()
    };
    let (dns, search, options) = (
        given(&host_config.dns),
        given(&host_config.dns_search),
        given(&host_config.dns_options),
    );
    let resolver = record
        .networks
        .sandbox
        .as_ref()
        .is_some_and(|sandbox| sandbox.resolver);
    // The host's loopback is not the container's.
    let local = |server: &str| server.starts_with("127.") || server == "::1";
    let unreachable = namespace(host_config) != Namespace::Host
        && from_host("nameserver").iter().any(|server| local(server));
    let chosen = dns.is_some() || search.is_some() || options.is_some();
    if !chosen && !resolver && !unreachable {
        return host;
    }
    let servers = match (resolver, dns) {
        (true, _) => vec![bulkhead_network::dns::RESOLVER.ip().to_string()],
        (false, Some(dns)) => dns,
        (false, None) => {
            let mut servers = from_host("nameserver");
            servers.retain(|server| !unreachable || !local(server));
            if servers.is_empty() {
                servers = PUBLIC_SERVERS.map(str::to_owned).to_vec();
            }
            servers
        }
    };
    let mut text = String::new();
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    let search = search.unwrap_or_else(|| from_host("search"));
    if !search.is_empty() && search != ["."] {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    let mut options = options.unwrap_or_else(|| from_host("options"));
    // Names of containers have no dot: they are asked for as they are.
    if resolver && !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0".to_owned());
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

/// The log options of a task; `None` for the driver `none`.
pub(super) fn log_options(record: &Record, files: &Files) -> Option<LogOptions> {
    let path = files.log.clone()?;
    let empty = HashMap::new();
    let options = record
        .host_config
        .log_config
        .as_ref()
        .and_then(|log| log.config.as_ref())
        .unwrap_or(&empty);
    // Checked when the container was made.
    let (max_size, max_files) = log_limits(record.log_driver(), options).unwrap_or((None, 1));
    Some(LogOptions {
        path,
        max_size,
        max_files,
        attributes: super::log_attributes::of(record, options).unwrap_or_default(),
    })
}

/// Refuses a way of delivery that there is not. Ours is the same for all that there are.
pub(super) fn check_log_mode(options: &HashMap<String, String>) -> Result<(), String> {
    let mode = options.get("mode").map(String::as_str).unwrap_or_default();
    if !matches!(mode, "" | "blocking" | "non-blocking") {
        return Err(format!("logger: logging mode not supported: {mode}"));
    }
    match options.get("max-buffer-size") {
        None => Ok(()),
        Some(_) if mode != "non-blocking" => Err(
            "logger: max-buffer-size option is only supported with 'mode=non-blocking'".to_owned(),
        ),
        Some(size) if parse_size(size).is_none() => Err(format!(
            "error parsing option max-buffer-size: invalid size: '{size}'"
        )),
        Some(_) => Ok(()),
    }
}

/// Reads `max-size` and `max-file`. The error is for a person.
pub(super) fn log_limits(
    driver: &str,
    options: &HashMap<String, String>,
) -> Result<(Option<u64>, u32), String> {
    let local = driver == "local";
    for key in options.keys() {
        let known = matches!(
            key.as_str(),
            "max-size"
                | "max-file"
                | "compress"
                | "labels"
                | "labels-regex"
                | "env"
                | "env-regex"
                | "tag"
                | "mode"
                | "max-buffer-size"
        );
        if !known {
            return Err(format!("unknown log opt '{key}' for {driver} log driver"));
        }
    }
    let max_size = match options.get("max-size").map(String::as_str) {
        None | Some("") => local.then_some(20 << 20),
        Some("-1") => None,
        Some(text) => Some(
            parse_size(text)
                .filter(|size| *size > 0)
                .ok_or_else(|| format!("invalid value for max-size: {text}"))?,
        ),
    };
    let max_files = match options.get("max-file").map(String::as_str) {
        None | Some("") => {
            if local {
                5
            } else {
                1
            }
        }
        Some(text) => text
            .parse()
            .ok()
            .filter(|count| *count >= 1)
            .ok_or_else(|| "max-file cannot be less than 1".to_owned())?,
    };
    Ok((max_size, max_files))
}

/// Reads `10`, `10k`, `10m`, `1g`, `1kb`, `2MiB`; a kilobyte is 1024 bytes.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let shift = match unit.trim().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_of_logs() {
        let check = |options: &[(&str, &str)]| {
            let options = options.iter();
            let options = options.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            check_log_mode(&options.collect())
        };
        let (mode, size) = ("mode", "max-buffer-size");
        assert!(check(&[]).is_ok() && check(&[(mode, "blocking")]).is_ok());
        assert!(check(&[(mode, "non-blocking"), (size, "4m")]).is_ok());
        for (options, words) in [
            (&[(mode, "bogus")][..], "not supported: bogus"),
            (&[(size, "4m")], "only supported with"),
            (&[(mode, "blocking"), (size, "4m")], "only supported with"),
            (&[(mode, "non-blocking"), (size, "x")], "invalid size: 'x'"),
        ] {
            let error = check(options).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_size("10"), Some(10));
        assert_eq!(parse_size("10k"), Some(10240));
        assert_eq!(parse_size("1MiB"), Some(1 << 20));
        assert_eq!(parse_size("2gb"), Some(2 << 30));
        assert_eq!(parse_size("x"), None);
        assert_eq!(parse_size("1x"), None);
    }

    #[test]
    fn limits() {
        let options = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect::<HashMap<_, _>>()
        };
        assert_eq!(log_limits("json-file", &options(&[])), Ok((None, 1)));
        assert_eq!(
            log_limits(
                "json-file",
                &options(&[("max-size", "1k"), ("max-file", "3")])
            ),
            Ok((Some(1024), 3))
        );
        assert_eq!(log_limits("local", &options(&[])), Ok((Some(20 << 20), 5)));
        assert!(log_limits("json-file", &options(&[("nope", "1")])).is_err());
        assert!(log_limits("json-file", &options(&[("max-file", "0")])).is_err());
    }
}
