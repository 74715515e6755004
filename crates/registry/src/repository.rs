//! One repository at one endpoint: the distribution specification's reading requests.

use std::time::Duration;

use bulkhead_image::Digest;
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use crate::document::{ACCEPTED, MAX_MANIFEST};
use crate::endpoint::Endpoint;
use crate::error::{RegistryError, Result};
use crate::http;

/// Most tags of a repository, and bytes of one page of them.
const MAX_TAGS: usize = 100_000;
const MAX_TAG_PAGE: usize = 4 << 20;
/// How often a request that fails for the moment is sent again.
const TRIES: u32 = 4;

/// A manifest or index as it came.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    pub(crate) bytes: Vec<u8>,
    pub(crate) digest: Digest,
    /// Of its `Content-Type`.
    pub(crate) media_type: String,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(crate) struct Repository {
    pub(crate) endpoint: Endpoint,
    /// `library/busybox`.
    pub(crate) path: String,
    /// `pull`, `pull,push`.
    scope: String,
}

/// Waits longer with each try.
pub(crate) fn pause(attempt: u32) -> Duration {
    Duration::from_millis(250_u64 << attempt.min(5))
}

impl Repository {
    pub(crate) fn new(endpoint: Endpoint, path: &str, actions: &str) -> Self {
        Self {
            endpoint,
            scope: format!("repository:{path}:{actions}"),
            path: path.to_owned(),
        }
    }

    /// The same, also allowed to read another repository: to mount its blobs.
    pub(crate) fn reading_too(&self, other: &str) -> Self {
        Self {
            scope: format!("{} repository:{other}:pull", self.scope),
            ..self.clone()
        }
    }

    pub(crate) fn url(&self, rest: &str) -> Result<Url> {
        self.endpoint
            .server
            .url(&format!("/v2/{}/{rest}", self.path))
    }

    /// The `Authorization` for a request; none where none is wanted.
    pub(crate) async fn authorization(
        &self,
        method: &Method,
        url: &Url,
    ) -> Result<Option<HeaderValue>> {
        let Endpoint {
            authorizer, server, ..
        } = &self.endpoint;
        authorizer
            .header(server, &self.scope, || http::request_line(method, url))
            .await
    }

    /// Sends a request without a body, once more where only the token was too old.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
    ) -> Result<Response> {
        let build = || {
            self.endpoint
                .server
                .request(method.clone(), url.clone())
                .headers(headers.clone())
        };
        self.send_with(&method, &url, build).await
    }

    /// The same for any request that can be built twice.
    pub(crate) async fn send_with(
        &self,
        method: &Method,
        url: &Url,
        build: impl Fn() -> RequestBuilder,
    ) -> Result<Response> {
        let mut fresh = false;
        loop {
            let mut request = build();
            // A session's address may lead to another host, which is not to see our token.
            if self.is_ours(url)
                && let Some(value) = self.authorization(method, url).await?
            {
                request = request.header(AUTHORIZATION, value);
            }
            let response = self.endpoint.server.send(request, method, url).await?;
            if response.status() != StatusCode::UNAUTHORIZED || fresh {
                return Ok(response);
            }
            fresh = true;
            self.endpoint
                .authorizer
                .challenged(&response, &self.scope)
                .await;
        }
    }

    pub(crate) fn is_ours(&self, url: &Url) -> bool {
        Url::parse(&self.endpoint.server.base).is_ok_and(|base| base.origin() == url.origin())
    }

    /// The same, again and again while it fails for the moment, and with a refusal as an
    /// error.
    pub(crate) async fn ask(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
    ) -> Result<Response> {
        let mut attempt = 0;
        loop {
            let result = match self
                .send(method.clone(), url.clone(), headers.clone())
                .await
            {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => Err(RegistryError::Refused(
                    self.endpoint.server.refusal(response).await,
                )),
                Err(error) => Err(error),
            };
            attempt += 1;
            match result {
                Err(error) if error.is_transient() && attempt < TRIES => {
                    tracing::debug!(%url, %error, attempt, "asking again");
                    tokio::time::sleep(pause(attempt)).await;
                }
                other => return other,
            }
        }
    }

    /// A manifest or index by tag or digest.
    ///
    /// # Errors
    /// Also if its bytes do not have the digest that was asked for.
    pub(crate) async fn manifest(&self, reference: &str) -> Result<Document> {
        let mut headers = HeaderMap::new();
        for media_type in ACCEPTED {
            headers.append(ACCEPT, HeaderValue::from_static(media_type));
        }
        let url = self.url(&format!("manifests/{reference}"))?;
        let response = self.ask(Method::GET, url, headers).await?;
        let media_type = http::media_type(response.headers());
        let bytes = self
            .endpoint
            .server
            .read_body(response, MAX_MANIFEST, "manifest")
            .await?;
        let digest = Digest::of(&bytes);
        if let Ok(expected) = reference.parse::<Digest>()
            && expected != digest
        {
            return Err(RegistryError::InvalidAnswer(format!(
                "manifest verification failed for digest {expected}"
            )));
        }
        Ok(Document {
            bytes,
            digest,
            media_type,
        })
    }

    /// A small blob, whole and checked.
    pub(crate) async fn small_blob(
        &self,
        digest: &Digest,
        limit: usize,
        what: &str,
    ) -> Result<Vec<u8>> {
        let url = self.url(&format!("blobs/{digest}"))?;
        let response = self.ask(Method::GET, url, HeaderMap::new()).await?;
        let bytes = self
            .endpoint
            .server
            .read_body(response, limit, what)
            .await?;
        if Digest::of(&bytes) != *digest {
            return Err(RegistryError::InvalidAnswer(format!(
                "{what} verification failed for digest {digest}"
            )));
        }
        Ok(bytes)
    }

    /// Begins to read a blob from `offset`. Whether the answer does begin there is for the
    /// caller to see in its status.
    pub(crate) async fn open_blob(&self, digest: &Digest, offset: u64) -> Result<Response> {
        let url = self.url(&format!("blobs/{digest}"))?;
        let mut headers = HeaderMap::new();
        if offset > 0
            && let Ok(value) = HeaderValue::from_str(&format!("bytes={offset}-"))
        {
            headers.insert(RANGE, value);
        }
        let response = self.send(Method::GET, url, headers).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(RegistryError::Refused(
            self.endpoint.server.refusal(response).await,
        ))
    }

    /// All tags, sorted as the registry does.
    pub(crate) async fn tags(&self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            tags: Option<Vec<String>>,
        }
        let mut found: Vec<String> = Vec::new();
        let mut next = Some(self.url("tags/list")?);
        while let Some(url) = next.take() {
            let response = self.ask(Method::GET, url.clone(), HeaderMap::new()).await?;
            // RFC 8288: `</v2/…?last=x&n=100>; rel="next"`.
            let link = http::header(response.headers(), "link");
            let target = link
                .split_once('<')
                .and_then(|(_, rest)| rest.split_once('>'))
                .map(|(target, _)| target);
            next = target
                .and_then(|target| url.join(target).ok())
                .filter(|next| self.is_ours(next) && *next != url);
            let body = self
                .endpoint
                .server
                .read_body(response, MAX_TAG_PAGE, "list of tags")
                .await?;
            let page: Page = serde_json::from_slice(&body).map_err(|error| {
                RegistryError::InvalidAnswer(format!("list of tags of {}: {error}", self.path))
            })?;
            let tags = page.tags.unwrap_or_default();
            if tags.is_empty() {
                break;
            }
            found.extend(tags);
            if found.len() > MAX_TAGS {
                return Err(RegistryError::InvalidAnswer(format!(
                    "{} has more than {MAX_TAGS} tags",
                    self.path
                )));
            }
        }
        Ok(found)
    }
}
