//! One server over HTTP: requests with bounds on time and size, and errors in words that
//! people know from docker.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, HeaderMap, LOCATION};
use reqwest::{
    Client, Method, NoProxy, Proxy, RequestBuilder, Response, StatusCode, Url, redirect,
};
use serde::Deserialize;

use crate::error::{Refusal, RegistryError, Result};
use crate::settings::{Settings, host_of};
use crate::tls;

/// To be connected, TLS and proxy included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Most bytes of an answer that tells of an error.
const MAX_ERROR_BODY: usize = 64 << 10;
const MAX_REDIRECTS: usize = 5;

/// A server as it is reached.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    client: Client,
    /// `https://host:port`.
    pub(crate) base: String,
    /// Between two parts of an answer; its headers may take twice as long.
    pub(crate) patience: Duration,
}

impl Server {
    /// A server with its own certificates; nothing is sent yet.
    pub(crate) fn new(settings: &Settings, scheme: &str, host: &str, verify: bool) -> Result<Self> {
        // The name becomes that of a directory.
        let directory = settings.certificates.join(host.replace('/', "_"));
        let config = tls::config(&directory, verify)?;
        let no_https_downgrade = redirect::Policy::custom(|attempt| {
            let secure = attempt
                .previous()
                .first()
                .is_some_and(|first| first.scheme() == "https");
            if attempt.previous().len() > MAX_REDIRECTS {
                attempt.error("too many redirects")
            } else if secure && attempt.url().scheme() != "https" {
                attempt.error("refused a redirect from https to http")
            } else {
                attempt.follow()
            }
        });
        let mut builder = Client::builder()
            .tls_backend_preconfigured(config)
            .user_agent(concat!("bulkhead/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(4)
            .redirect(no_https_downgrade)
            .no_proxy();
        for proxy in proxies(settings)? {
            builder = builder.proxy(proxy);
        }
        let client = builder
            .build()
            .map_err(|error| RegistryError::Configuration(cause(&error)))?;
        Ok(Self {
            client,
            base: format!("{scheme}://{host}"),
            patience: settings.patience,
        })
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.base.starts_with("https://")
    }

    /// The URL of a path below the server's root.
    pub(crate) fn url(&self, path: &str) -> Result<Url> {
        Url::parse(&format!("{}{path}", self.base))
            .map_err(|error| RegistryError::InvalidArgument(format!("{}: {error}", self.base)))
    }

    pub(crate) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.client.request(method, url)
    }

    /// Sends a request whose body is small or none, and waits for the answer's headers.
    pub(crate) async fn send(
        &self,
        request: RequestBuilder,
        method: &Method,
        url: &Url,
    ) -> Result<Response> {
        let limit = self.patience * 2;
        match tokio::time::timeout(limit, request.send()).await {
            Ok(answer) => answer.map_err(|error| transport(method, url, &error)),
            Err(_) => Err(RegistryError::Transport {
                request: request_line(method, url),
                why: format!("no answer within {limit:?}"),
                transient: true,
            }),
        }
    }

    /// Reads a whole body of at most `limit` bytes.
    pub(crate) async fn read_body(
        &self,
        mut response: Response,
        limit: usize,
        what: &str,
    ) -> Result<Vec<u8>> {
        let url = response.url().clone();
        let broken = |why: String| RegistryError::Transport {
            request: request_line(&Method::GET, &url),
            why,
            transient: true,
        };
        let too_long =
            || RegistryError::InvalidAnswer(format!("{what} of {url} is over {limit} bytes"));
        if response
            .content_length()
            .is_some_and(|length| length > limit as u64)
        {
            return Err(too_long());
        }
        let mut body = Vec::new();
        let all = async {
            while let Some(part) = tokio::time::timeout(self.patience, response.chunk())
                .await
                .map_err(|_| broken("the answer stalled".to_owned()))?
                .map_err(|error| broken(cause(&error)))?
            {
                if body.len() + part.len() > limit {
                    return Err(too_long());
                }
                body.extend_from_slice(&part);
            }
            Ok(())
        };
        // A document that trickles in is not worth waiting for.
        tokio::time::timeout(self.patience * 4, all)
            .await
            .map_err(|_| broken("the answer is too slow".to_owned()))??;
        Ok(body)
    }

    /// Reads an answer that is not what was asked for.
    pub(crate) async fn refusal(&self, response: Response) -> Refusal {
        let status = response.status();
        let body = self.read_body(response, MAX_ERROR_BODY, "error").await;
        let items = body
            .ok()
            .and_then(|body| serde_json::from_slice::<ErrorBody>(&body).ok());
        let plain = || {
            let words = match status.as_u16() {
                401 => "unauthorized: authentication required".to_owned(),
                403 => "denied: requested access to the resource is denied".to_owned(),
                429 => "toomanyrequests: too many requests".to_owned(),
                _ => format!("received unexpected HTTP status: {}", status_words(status)),
            };
            (String::new(), words)
        };
        let (code, message) = match items {
            Some(body) if !body.errors.is_empty() => {
                let words = |item: &ErrorItem| {
                    let code = item.code.to_ascii_lowercase().replace('_', " ");
                    format!("{code}: {}", item.message)
                };
                let message = match &body.errors[..] {
                    [only] => words(only),
                    several => {
                        let lines: Vec<String> = several.iter().map(words).collect();
                        format!("errors:\n{}\n", lines.join("\n"))
                    }
                };
                (body.errors[0].code.to_ascii_uppercase(), message)
            }
            Some(body) => match body.details {
                Some(details) if matches!(status.as_u16(), 401 | 403) => {
                    (String::new(), format!("unauthorized: {details}"))
                }
                _ => plain(),
            },
            None => plain(),
        };
        Refusal {
            status: status.as_u16(),
            code: code.chars().take(64).collect(),
            message: printable(&message),
        }
    }
}

/// The proxies of settings and environment. Loopback is always reached directly.
fn proxies(settings: &Settings) -> Result<Vec<Proxy>> {
    let variable = |names: [&str; 2]| {
        let set = names.iter().find_map(|name| std::env::var(name).ok());
        set.filter(|value| !value.is_empty())
    };
    let none = settings
        .no_proxy
        .clone()
        .or_else(|| variable(["NO_PROXY", "no_proxy"]))
        .unwrap_or_default();
    let direct = NoProxy::from_string(&format!("{none},localhost,127.0.0.0/8,::1"));
    let http = settings
        .http_proxy
        .clone()
        .or_else(|| variable(["HTTP_PROXY", "http_proxy"]));
    let https = settings
        .https_proxy
        .clone()
        .or_else(|| variable(["HTTPS_PROXY", "https_proxy"]));
    let mut found = Vec::new();
    for (address, make) in [
        (http, Proxy::http as fn(String) -> reqwest::Result<Proxy>),
        (https, Proxy::https),
    ] {
        let Some(address) = address else { continue };
        // Go takes a bare host as an HTTP proxy.
        let address = if address.contains("://") {
            address
        } else {
            format!("http://{address}")
        };
        let proxy = make(address.clone()).map_err(|error| {
            RegistryError::Configuration(format!("proxy {address:?}: {}", cause(&error)))
        })?;
        found.push(proxy.no_proxy(direct.clone()));
    }
    Ok(found)
}

/// `Get "URL"`, as docker writes it.
pub(crate) fn request_line(method: &Method, url: &Url) -> String {
    let (first, rest) = method.as_str().split_at(1);
    let mut url = url.clone();
    // Signed addresses and session states are nobody's business.
    if url.path().contains("/blobs/") {
        url.set_query(None);
    }
    format!("{first}{} \"{url}\"", rest.to_ascii_lowercase())
}

/// An error of the transport in a few words.
pub(crate) fn transport(method: &Method, url: &Url, error: &reqwest::Error) -> RegistryError {
    let place = || {
        let host = url.host_str().unwrap_or_default();
        format!("{host}:{}", url.port_or_known_default().unwrap_or(0))
    };
    let mut refused = None;
    let mut tls = None;
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            refused = refused.or(Some(io.kind()));
        }
        tls = tls.or_else(|| tls_error(inner));
        source = inner.source();
    }
    let why = match (&tls, refused) {
        (Some(error), _) => tls_words(error, url),
        (None, Some(io::ErrorKind::ConnectionRefused)) => {
            format!("dial tcp {}: connect: connection refused", place())
        }
        (None, _) if error.is_timeout() => format!("dial tcp {}: i/o timeout", place()),
        (None, _) if error.is_connect() => {
            format!("dial tcp {}: {}", place(), cause(error))
        }
        (None, _) => cause(error),
    };
    // What cannot be connected at all is not tried again: it is a wrong name more often than
    // bad luck. What breaks off is.
    let transient = !error.is_builder() && !error.is_redirect() && !error.is_connect();
    RegistryError::Transport {
        request: request_line(method, url),
        why,
        transient,
    }
}

/// An error of TLS, or one in errors of I/O around it: those wrap it without its being their
/// cause, and may do so several times.
fn tls_error(error: &(dyn std::error::Error + 'static)) -> Option<rustls::Error> {
    match error.downcast_ref::<io::Error>() {
        Some(io) => tls_error(io.get_ref()?),
        None => error.downcast_ref::<rustls::Error>().cloned(),
    }
}

fn tls_words(error: &rustls::Error, url: &Url) -> String {
    use rustls::{CertificateError, InvalidMessage};
    let host = host_of(url.host_str().unwrap_or_default()).to_owned();
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "x509: certificate signed by unknown authority".to_owned()
        }
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => format!("x509: certificate is not valid for {host}"),
        rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "x509: certificate has expired or is not yet valid".to_owned(),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "http: server gave HTTP response to HTTPS client".to_owned()
        }
        other => format!("remote error: tls: {other}"),
    }
}

/// The innermost cause, which is the one that says something.
pub(crate) fn cause(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    text
}

/// What a registry says in an error's body.
#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    errors: Vec<ErrorItem>,
    /// Of token servers.
    #[serde(default)]
    details: Option<String>,
}

#[derive(Deserialize)]
struct ErrorItem {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The words of strangers, without what would move a terminal's cursor.
fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| *c == '\n' || !c.is_control())
        .take(2000)
        .collect()
}

pub(crate) fn status_words(status: StatusCode) -> String {
    let reason = status.canonical_reason().unwrap_or("unknown");
    format!("{} {reason}", status.as_u16())
}

/// A header's value as text; empty if there is none.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

/// The media type of an answer, without parameters.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let value = header(headers, CONTENT_TYPE.as_str());
    value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Where an answer points, resolved against the request's own address.
pub(crate) fn location(response: &Response) -> Result<Url> {
    let value = header(response.headers(), LOCATION.as_str());
    response
        .url()
        .join(value)
        .ok()
        .filter(|_| !value.is_empty())
        .ok_or_else(|| {
            RegistryError::InvalidAnswer(format!("{} answered without a location", response.url()))
        })
}
