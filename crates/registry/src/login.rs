//! `docker login`, and what a registry says of an image without its being pulled.

use reqwest::header::AUTHORIZATION;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::Registry;
use crate::auth::{Authorizer, Challenge, Credentials};
use crate::document::{MAX_CONFIG, Parsed};
use crate::endpoint::Endpoint;
use crate::error::{RegistryError, Result};
use crate::http;
use crate::repository::Repository;
use crate::settings::DEFAULT_DOMAIN;
use bulkhead_image::Reference;

/// What a login is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// To be kept instead of the password; empty if the registry has no such thing.
    pub identity_token: String,
}

impl Registry {
    /// Tries credentials at the registry that they name.
    ///
    /// # Errors
    /// [`RegistryError::LoginFailed`] where the registry does not take them.
    pub async fn login(&self, credentials: &Credentials) -> Result<Login> {
        let domain = server_name(&credentials.serveraddress);
        let work = |endpoint: Endpoint| async move {
            let server = endpoint.server;
            let url = server.url("/v2/")?;
            let method = Method::GET;
            let ping = server.send(server.request(method.clone(), url.clone()), &method, &url);
            let Some(challenge) = Challenge::of(&ping.await?) else {
                // A registry for everybody.
                return Ok(Login {
                    identity_token: String::new(),
                });
            };
            let authorizer = Authorizer::new(Some(credentials.clone()));
            let token =
                authorizer
                    .login(&server, &challenge)
                    .await
                    .map_err(|error| match error {
                        RegistryError::Refused(refusal) => RegistryError::LoginFailed {
                            why: format!("Get \"{url}\": {refusal}"),
                        },
                        other => other,
                    })?;
            let request = server
                .request(method.clone(), url.clone())
                .header(AUTHORIZATION, token.value);
            let response = server.send(request, &method, &url).await?;
            match response.status() {
                StatusCode::OK => Ok(Login {
                    identity_token: token.refresh,
                }),
                status => Err(RegistryError::LoginFailed {
                    why: format!(
                        "login attempt to {url} failed with status: {}",
                        http::status_words(status)
                    ),
                }),
            }
        };
        self.endpoints.each(&domain, None, false, work).await
    }

    /// What `docker manifest` and compose ask for: an image's descriptor and platforms.
    ///
    /// # Errors
    /// As a pull's.
    pub async fn describe(
        &self,
        reference: &Reference,
        credentials: Option<&Credentials>,
    ) -> Result<Value> {
        let work = |endpoint: Endpoint| async move {
            let repository = Repository::new(endpoint, reference.path(), "pull");
            describe(&repository, reference)
                .await
                .map_err(|error| match error {
                    // Not a pull's: these come with a status of their own.
                    RegistryError::Refused(refusal)
                        if matches!(refusal.status, 401 | 403 | 429) =>
                    {
                        RegistryError::Refused(refusal)
                    }
                    error => error.for_pull(reference),
                })
        };
        self.endpoints
            .each(reference.domain(), credentials, true, work)
            .await
    }
}

async fn describe(repository: &Repository, reference: &Reference) -> Result<Value> {
    let wanted = match reference.digest() {
        Some(digest) => digest.to_string(),
        None => reference.tag().unwrap_or("latest").to_owned(),
    };
    let document = repository.manifest(&wanted).await?;
    let platforms: Vec<Value> = match document.parse_any()? {
        Parsed::Index(index) => index
            .manifests
            .iter()
            .filter_map(|entry| serde_json::to_value(entry.platform.as_ref()?).ok())
            .collect(),
        Parsed::Manifest(manifest) => {
            // What is no image has a config that says nothing of this, if it has any.
            let config = repository
                .small_blob(&manifest.config.digest, MAX_CONFIG, "image config")
                .await;
            config
                .ok()
                .and_then(|bytes| platform(&bytes))
                .into_iter()
                .collect()
        }
    };
    Ok(json!({
        "Descriptor": {
            "mediaType": document.kind()?,
            "digest": document.digest.to_string(),
            "size": document.bytes.len(),
        },
        "Platforms": platforms,
    }))
}

/// The platform of an image's config.
fn platform(config: &[u8]) -> Option<Value> {
    let config: Value = serde_json::from_slice(config).ok()?;
    let text = |name: &str| {
        let text = config.get(name).and_then(Value::as_str);
        text.unwrap_or_default()
    };
    if text("os").is_empty() && text("architecture").is_empty() {
        return None;
    }
    let mut platform = json!({ "architecture": text("architecture"), "os": text("os") });
    if !text("variant").is_empty() {
        platform["variant"] = json!(text("variant"));
    }
    Some(platform)
}

/// The registry of a server's address as clients write it: a URL, or a host.
pub fn server_name(address: &str) -> String {
    let address = address
        .strip_prefix("https://")
        .or_else(|| address.strip_prefix("http://"))
        .unwrap_or(address);
    let host = address.split('/').next().unwrap_or_default();
    match host {
        "" | "index.docker.io" | "docker.io" | "registry-1.docker.io" => DEFAULT_DOMAIN.to_owned(),
        host => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_of_configs() {
        let image = br#"{"os":"linux","architecture":"arm64","variant":"v8","rootfs":{}}"#;
        let expected = json!({ "os": "linux", "architecture": "arm64", "variant": "v8" });
        assert_eq!(platform(image), Some(expected));
        for none in ["", "{}", "[]", "\"x\"", r#"{"os":5}"#] {
            assert_eq!(platform(none.as_bytes()), None, "{none}");
        }
    }

    #[test]
    fn server_addresses() {
        for (address, domain) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("", "docker.io"),
            ("localhost:5000", "localhost:5000"),
            ("https://reg.example/v2/", "reg.example"),
            ("http://reg.example:80", "reg.example:80"),
            ("reg.example/v1/", "reg.example"),
        ] {
            assert_eq!(server_name(address), domain);
        }
    }
}
