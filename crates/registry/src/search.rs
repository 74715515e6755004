//! `docker search`, which is not of the distribution protocol: Docker Hub's old index, and
//! registries that answer like it.

use reqwest::header::AUTHORIZATION;
use reqwest::{Method, Url};
use serde::Deserialize;
use serde_json::Value;

use crate::Registry;
use crate::auth::Credentials;
use crate::error::{RegistryError, Result};
use crate::http::Server;
use crate::login::server_name;

/// Largest answer, bytes.
const MAX_ANSWER: usize = 4 << 20;

impl Registry {
    /// What an index knows of a term; `registry.example/term` asks another index.
    ///
    /// # Errors
    /// What the index says, or that there is none.
    pub async fn search(
        &self,
        term: &str,
        limit: u32,
        credentials: Option<&Credentials>,
    ) -> Result<Vec<Value>> {
        #[derive(Deserialize)]
        struct Answer {
            #[serde(default)]
            results: Vec<Value>,
        }
        let (host, term) = match term.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
            _ => ("index.docker.io", term),
        };
        if term.is_empty() || term.contains("://") {
            return Err(RegistryError::InvalidArgument(format!(
                "invalid search term {term:?}"
            )));
        }
        let domain = server_name(host);
        let settings = self.settings();
        let insecure = settings.is_insecure(host).await;
        let schemes: &[&str] = if insecure {
            &["https", "http"]
        } else {
            &["https"]
        };
        let mut last = None;
        for scheme in schemes {
            let server = Server::new(settings, scheme, host, !insecure)?;
            let mut url: Url = server.url("/v1/search")?;
            url.query_pairs_mut()
                .append_pair("q", term.strip_prefix("library/").unwrap_or(term))
                .append_pair("n", &limit.to_string());
            let mut request = server.request(Method::GET, url.clone());
            // Docker Hub's credentials are not for whoever a term names.
            let own =
                credentials.filter(|credentials| server_name(&credentials.serveraddress) == domain);
            if let Some(basic) = own.and_then(Credentials::basic) {
                request = request.header(AUTHORIZATION, basic);
            }
            let response = match server.send(request, &Method::GET, &url).await {
                Ok(response) => response,
                Err(error) => {
                    last = Some(error);
                    continue;
                }
            };
            if !response.status().is_success() {
                return Err(RegistryError::Refused(server.refusal(response).await));
            }
            let body = server
                .read_body(response, MAX_ANSWER, "search result")
                .await?;
            let answer: Answer = serde_json::from_slice(&body).map_err(|error| {
                RegistryError::InvalidAnswer(format!("search result of {host}: {error}"))
            })?;
            return Ok(answer.results);
        }
        Err(last
            .unwrap_or_else(|| RegistryError::InvalidArgument(format!("no index serves {host}"))))
    }
}
