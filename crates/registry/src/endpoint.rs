//! Where a registry's repositories are: its mirrors, its host, with TLS or without.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};

use crate::auth::{Authorizer, Challenge, Credentials};
use crate::error::{RegistryError, Result};
use crate::http::Server;
use crate::settings::{DEFAULT_DOMAIN, DEFAULT_HOST, Settings};

/// How long connections to a server are kept for the next pull.
const KEEP: Duration = Duration::from_secs(90);

/// A server that was reached, and who we are there.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) server: Server,
    pub(crate) authorizer: Arc<Authorizer>,
}

/// A server that may be asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Candidate {
    scheme: &'static str,
    host: String,
    verify: bool,
    is_mirror: bool,
}

/// Finds endpoints; keeps their connections for a while.
#[derive(Debug)]
pub(crate) struct Endpoints {
    pub(crate) settings: Settings,
    servers: Mutex<HashMap<Candidate, (Server, Instant)>>,
}

impl Endpoints {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            servers: Mutex::default(),
        }
    }

    /// Calls `work` with one endpoint after another until one serves. Mirrors are asked
    /// first, for reading only, and never shown credentials.
    pub(crate) async fn each<T, F>(
        &self,
        domain: &str,
        credentials: Option<&Credentials>,
        reads: bool,
        mut work: impl FnMut(Endpoint) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut last = None;
        let mut reached = false;
        for candidate in self.candidates(domain, reads).await? {
            // A host that spoke TLS is not asked without.
            if reached && !candidate.is_mirror {
                break;
            }
            let is_mirror = candidate.is_mirror;
            let error = match self.reach(&candidate, credentials).await {
                Ok(endpoint) => match work(endpoint).await {
                    Ok(done) => return Ok(done),
                    Err(error @ RegistryError::Cancelled) => return Err(error),
                    Err(error) if is_mirror => error,
                    Err(error) => {
                        reached = true;
                        error
                    }
                },
                Err(error) => error,
            };
            tracing::debug!(host = candidate.host, %error, "a registry did not serve");
            last = Some(error);
        }
        Err(last.unwrap_or_else(|| {
            RegistryError::InvalidArgument(format!("no registry serves {domain}"))
        }))
    }

    async fn candidates(&self, domain: &str, reads: bool) -> Result<Vec<Candidate>> {
        let mut found = Vec::new();
        if domain == DEFAULT_DOMAIN && reads {
            for mirror in &self.settings.mirrors {
                let url = reqwest::Url::parse(mirror).map_err(|error| {
                    RegistryError::Configuration(format!("mirror {mirror}: {error}"))
                })?;
                let host = url.host_str().unwrap_or_default();
                let host = match url.port() {
                    Some(port) => format!("{host}:{port}"),
                    None => host.to_owned(),
                };
                let scheme = if url.scheme() == "http" {
                    "http"
                } else {
                    "https"
                };
                found.push(Candidate {
                    scheme,
                    verify: !self.settings.is_insecure(&host).await,
                    host,
                    is_mirror: true,
                });
            }
        }
        let (host, insecure) = if domain == DEFAULT_DOMAIN {
            (DEFAULT_HOST, false)
        } else {
            (domain, self.settings.is_insecure(domain).await)
        };
        let https = Candidate {
            scheme: "https",
            host: host.to_owned(),
            verify: !insecure,
            is_mirror: false,
        };
        found.push(https.clone());
        if insecure {
            found.push(Candidate {
                scheme: "http",
                ..https
            });
        }
        Ok(found)
    }

    /// Asks whether a server speaks the protocol, and what it wants to see.
    async fn reach(
        &self,
        candidate: &Candidate,
        credentials: Option<&Credentials>,
    ) -> Result<Endpoint> {
        let server = self.server(candidate)?;
        let url = server.url("/v2/")?;
        let response = server
            .send(server.request(Method::GET, url.clone()), &Method::GET, &url)
            .await?;
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(RegistryError::Refused(server.refusal(response).await));
        }
        let credentials = credentials.filter(|_| !candidate.is_mirror).cloned();
        let authorizer = Authorizer::new(credentials);
        if status == StatusCode::UNAUTHORIZED {
            if Challenge::of(&response).is_none() {
                return Err(RegistryError::InvalidAnswer(format!(
                    "{url} wants to know who asks, but not in a way that is known here"
                )));
            }
            authorizer.challenged(&response, "").await;
        }
        Ok(Endpoint {
            server,
            authorizer: Arc::new(authorizer),
        })
    }

    fn server(&self, candidate: &Candidate) -> Result<Server> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        // Certificates may have changed since; so connections don't live for ever.
        servers.retain(|_, (_, made)| made.elapsed() < KEEP);
        if let Some((server, _)) = servers.get(candidate) {
            return Ok(server.clone());
        }
        let server = Server::new(
            &self.settings,
            candidate.scheme,
            &candidate.host,
            candidate.verify,
        )?;
        servers.insert(candidate.clone(), (server.clone(), Instant::now()));
        Ok(server)
    }
}
