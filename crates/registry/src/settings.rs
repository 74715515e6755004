//! Which registries are reached how: mirrors, insecure ones, certificates, proxies.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{RegistryError, Result};

/// The registry of names without one.
pub(crate) const DEFAULT_DOMAIN: &str = "docker.io";
/// The host that serves it.
pub(crate) const DEFAULT_HOST: &str = "registry-1.docker.io";

/// How registries are reached; dockerd's flags.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Asked before Docker Hub: `https://mirror.example`.
    pub mirrors: Vec<String>,
    /// Registries that may do without TLS or a good certificate: `host[:port]` or a CIDR.
    pub insecure: Vec<String>,
    /// Whether the loopback networks are among them, as with dockerd.
    pub loopback_is_insecure: bool,
    /// `<dir>/<host[:port]>/` holds `*.crt` (authorities), and `*.cert` with `*.key` (ours).
    pub certificates: PathBuf,
    /// For `http://` registries; by default `HTTP_PROXY`.
    pub http_proxy: Option<String>,
    /// For `https://` registries; by default `HTTPS_PROXY`.
    pub https_proxy: Option<String>,
    /// Hosts that are reached directly; by default `NO_PROXY`.
    pub no_proxy: Option<String>,
    /// How many layers are fetched at a time, of all pulls.
    pub downloads: usize,
    /// How many layers are sent at a time, of all pushes.
    pub uploads: usize,
    /// How often a download that breaks off is tried.
    pub attempts: u32,
    /// How long a server may send nothing.
    pub patience: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mirrors: Vec::new(),
            insecure: Vec::new(),
            loopback_is_insecure: true,
            certificates: PathBuf::from("/etc/docker/certs.d"),
            http_proxy: None,
            https_proxy: None,
            no_proxy: None,
            downloads: 3,
            uploads: 5,
            attempts: 5,
            patience: Duration::from_secs(30),
        }
    }
}

/// The networks that need no TLS unless settings say otherwise.
pub const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];

impl Settings {
    /// Checks a mirror's address and brings it into one form.
    ///
    /// # Errors
    /// [`RegistryError::InvalidArgument`] in docker's words.
    pub fn mirror(text: &str) -> Result<String> {
        let bad =
            |why: &str| RegistryError::InvalidArgument(format!("invalid mirror: {why}: {text:?}"));
        let url = reqwest::Url::parse(text).map_err(|_| bad("not a URL"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad("unsupported scheme"));
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(bad("path, query, or fragment at end of the URI"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("username and password are not allowed"));
        }
        Ok(format!("{}/", text.trim_end_matches('/')))
    }

    /// Checks the name of an insecure registry.
    ///
    /// # Errors
    /// [`RegistryError::InvalidArgument`] in docker's words.
    pub fn insecure_registry(text: &str) -> Result<String> {
        let lower = text.to_ascii_lowercase();
        let text = lower
            .strip_prefix("http://")
            .or_else(|| lower.strip_prefix("https://"))
            .unwrap_or(&lower)
            .trim_end_matches('/');
        if Network::parse(text).is_some() {
            return Ok(text.to_owned());
        }
        let valid = !text.is_empty()
            && !text.starts_with('-')
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte));
        if !valid {
            return Err(RegistryError::InvalidArgument(format!(
                "insecure registry {text} is not valid"
            )));
        }
        Ok(text.to_owned())
    }

    /// Whether a registry may do without TLS.
    pub async fn is_insecure(&self, domain: &str) -> bool {
        if self.insecure.iter().any(|name| name == domain) {
            return true;
        }
        let mut networks: Vec<Network> = self
            .insecure
            .iter()
            .filter_map(|name| Network::parse(name))
            .collect();
        if self.loopback_is_insecure {
            networks.extend(LOOPBACK.iter().filter_map(|text| Network::parse(text)));
        }
        if networks.is_empty() {
            return false;
        }
        let host = host_of(domain);
        let addresses: Vec<IpAddr> = match host.parse() {
            Ok(address) => vec![address],
            Err(_) => tokio::net::lookup_host((host, 443))
                .await
                .map(|found| found.map(|socket| socket.ip()).collect())
                .unwrap_or_default(),
        };
        addresses
            .iter()
            .any(|address| networks.iter().any(|network| network.contains(*address)))
    }
}

/// The host of `host[:port]`, without the brackets of an IPv6 address.
pub(crate) fn host_of(domain: &str) -> &str {
    if let Some(rest) = domain.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    domain.split(':').next().unwrap_or(domain)
}

/// A network in CIDR notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= most).then_some(Self { address, prefix })
    }

    fn contains(self, other: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => (u128::from(address.to_bits()), 32_u8),
            IpAddr::V6(address) => (address.to_bits(), 128),
        };
        let other = match other {
            IpAddr::V6(six) if self.address.is_ipv4() => {
                six.to_ipv4_mapped().map_or(other, IpAddr::V4)
            }
            other => other,
        };
        let ((network, width), (host, other_width)) = (bits(self.address), bits(other));
        if width != other_width {
            return false;
        }
        let free = u32::from(width - self.prefix);
        network.checked_shr(free).unwrap_or(0) == host.checked_shr(free).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        let contains = |network: &str, address: &str| {
            Network::parse(network)
                .unwrap()
                .contains(address.parse().unwrap())
        };
        assert!(contains("127.0.0.0/8", "127.1.2.3"));
        assert!(contains("127.0.0.0/8", "::ffff:127.0.0.1"));
        assert!(contains("0.0.0.0/0", "10.0.0.1") && contains("::/0", "fe80::1"));
        assert!(!contains("10.1.0.0/16", "10.2.0.1") && !contains("10.0.0.0/8", "::1"));
        assert!(Network::parse("10.0.0.0/33").is_none() && Network::parse("x/8").is_none());
    }

    #[test]
    fn flags_are_checked() {
        assert_eq!(
            Settings::mirror("https://m.example").unwrap(),
            "https://m.example/"
        );
        for bad in ["m.example", "ftp://x/", "https://x/path", "https://u:p@x/"] {
            assert!(Settings::mirror(bad).is_err(), "{bad}");
        }
        assert_eq!(
            Settings::insecure_registry("HTTP://Reg:5000/").unwrap(),
            "reg:5000"
        );
        for bad in ["", "-x", "a/b", "a b"] {
            assert!(Settings::insecure_registry(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn loopback_needs_no_tls() {
        let settings = Settings {
            insecure: vec!["reg.example:5000".to_owned(), "10.0.0.0/8".to_owned()],
            ..Settings::default()
        };
        for domain in [
            "127.0.0.1:5000",
            "[::1]:5000",
            "reg.example:5000",
            "10.1.2.3",
        ] {
            assert!(settings.is_insecure(domain).await, "{domain}");
        }
        assert!(!settings.is_insecure("192.0.2.1:5000").await);
        let strict = Settings {
            loopback_is_insecure: false,
            ..Settings::default()
        };
        assert!(!strict.is_insecure("127.0.0.1").await);
    }
}
