//! A blob's way into a registry: not at all where it is there already, by a mount where
//! another repository has it, or else sent, and resumed where a connection breaks off.

use std::fs::File;
use std::io::SeekFrom;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bulkhead_image::Digest;
use futures::StreamExt as _;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Body, Method, Response, StatusCode, Url};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::error::{RegistryError, Result};
use crate::http;
use crate::repository::{Repository, pause};

/// How long a registry may take no byte of an upload, or think after the last one.
const STALL: Duration = Duration::from_secs(120);
const CHUNK: usize = 256 << 10;
const ATTEMPTS: u32 = 5;

/// What came of asking for a mount.
pub(crate) enum Mount {
    Done,
    /// Not mounted; here it may be sent.
    Session(Url),
}

impl Repository {
    /// The size of a blob that the repository has.
    pub(crate) async fn has_blob(&self, digest: &Digest) -> Result<Option<u64>> {
        let url = self.url(&format!("blobs/{digest}"))?;
        let response = self
            .send(Method::HEAD, url.clone(), HeaderMap::new())
            .await?;
        match response.status() {
            status if status.is_success() => {
                // The length of what is not sent: reqwest does not read it for HEAD.
                let length = http::header(response.headers(), "content-length");
                Ok(Some(length.parse().unwrap_or(0)))
            }
            StatusCode::NOT_FOUND => Ok(None),
            // Some answer this to those who may not read; sending will show whether we may.
            StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED => Ok(None),
            _ => {
                let refusal = self.endpoint.server.refusal(response).await;
                Err(RegistryError::Refused(refusal))
            }
        }
    }

    /// Asks for a blob of another repository of the same registry.
    pub(crate) async fn mount(&self, digest: &Digest, from: &str) -> Result<Mount> {
        let reader = self.reading_too(from);
        let mut url = self.url("blobs/uploads/")?;
        url.query_pairs_mut()
            .append_pair("mount", &digest.to_string())
            .append_pair("from", from);
        let response = reader.send(Method::POST, url, HeaderMap::new()).await?;
        match response.status() {
            StatusCode::CREATED => Ok(Mount::Done),
            StatusCode::ACCEPTED => Ok(Mount::Session(http::location(&response)?)),
            _ => Err(RegistryError::Refused(
                self.endpoint.server.refusal(response).await,
            )),
        }
    }

    async fn begin(&self) -> Result<Url> {
        let url = self.url("blobs/uploads/")?;
        let response = self.ask(Method::POST, url, HeaderMap::new()).await?;
        http::location(&response)
    }

    /// Sends a blob of a known digest.
    pub(crate) async fn upload(
        &self,
        file: &File,
        digest: &Digest,
        size: u64,
        session: Option<Url>,
        progress: Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<()> {
        let mut session = session;
        let mut attempt = 0;
        let mut offset = 0;
        loop {
            let url = match session.take() {
                Some(url) => url,
                None => {
                    offset = 0;
                    self.begin().await?
                }
            };
            let error = match self
                .send_rest(file, digest, size, offset, &url, &progress)
                .await
            {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            attempt += 1;
            // An upload can outlive its token: that is like a break.
            let expired = matches!(&error, RegistryError::Refused(refusal) if refusal.status == 401)
                && attempt == 1;
            if !(error.is_transient() || expired) || attempt >= ATTEMPTS {
                return Err(error);
            }
            tracing::debug!(%digest, %error, attempt, "resuming an upload");
            tokio::time::sleep(pause(attempt)).await;
            if let Some((url, received)) = self.state_of(&url).await {
                offset = received.min(size);
                session = Some(url);
            }
        }
    }

    /// How far an upload got.
    async fn state_of(&self, url: &Url) -> Option<(Url, u64)> {
        let response = self
            .send(Method::GET, url.clone(), HeaderMap::new())
            .await
            .ok()?;
        if response.status() != StatusCode::NO_CONTENT {
            return None;
        }
        // `0-99`: the last byte's position; `0-0` is also said of nothing, so that is sent anew.
        let range = http::header(response.headers(), "range");
        let last: u64 = range.rsplit('-').next()?.parse().ok()?;
        let next = http::location(&response).unwrap_or_else(|_| url.clone());
        Some((next, if last == 0 { 0 } else { last + 1 }))
    }

    async fn send_rest(
        &self,
        file: &File,
        digest: &Digest,
        size: u64,
        offset: u64,
        url: &Url,
        progress: &Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<()> {
        let mut url = url.clone();
        if offset < size || size == 0 {
            let response = self.patch(file, size, offset, &url, progress).await?;
            if !response.status().is_success() {
                if response.status() == StatusCode::UNAUTHORIZED {
                    self.endpoint.authorizer.forget().await;
                }
                return Err(RegistryError::Refused(
                    self.endpoint.server.refusal(response).await,
                ));
            }
            url = http::location(&response)?;
        }
        url.query_pairs_mut()
            .append_pair("digest", &digest.to_string());
        let response = self.send(Method::PUT, url, HeaderMap::new()).await?;
        if response.status().is_success() {
            return Ok(());
        }
        Err(RegistryError::Refused(
            self.endpoint.server.refusal(response).await,
        ))
    }

    /// Sends the file from `offset` on in one request, for as long as bytes are taken.
    async fn patch(
        &self,
        file: &File,
        size: u64,
        offset: u64,
        url: &Url,
        progress: &Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<Response> {
        let method = Method::PATCH;
        let local = |source| RegistryError::Store(read_failed(source));
        let file = file.try_clone().map_err(local)?;
        let mut file = tokio::fs::File::from_std(file);
        file.seek(SeekFrom::Start(offset)).await.map_err(local)?;
        let rest = size - offset;
        let sent = Arc::new(AtomicU64::new(0));
        let (count, report) = (Arc::clone(&sent), Arc::clone(progress));
        let stream = ReaderStream::with_capacity(file.take(rest), CHUNK).inspect(move |part| {
            if let Ok(part) = part {
                let length = part.len() as u64;
                let now = count.fetch_add(length, Ordering::Relaxed) + length;
                report(offset + now);
            }
        });
        let mut request = self
            .endpoint
            .server
            .request(method.clone(), url.clone())
            .header(
                CONTENT_TYPE,
                HeaderValue::from_static("application/octet-stream"),
            )
            .header(CONTENT_LENGTH, HeaderValue::from(rest))
            .body(Body::wrap_stream(stream));
        if offset > 0 {
            let range = format!("{offset}-{}", size - 1);
            request = request.header("Content-Range", range);
        }
        if self.is_ours(url)
            && let Some(value) = self.authorization(&method, url).await?
        {
            request = request.header(AUTHORIZATION, value);
        }
        let answer = request.send();
        tokio::pin!(answer);
        let mut seen = 0;
        loop {
            match tokio::time::timeout(STALL, &mut answer).await {
                Ok(answer) => {
                    return answer.map_err(|error| http::transport(&method, url, &error));
                }
                Err(_) => {
                    let now = sent.load(Ordering::Relaxed);
                    if now == seen {
                        return Err(RegistryError::Transport {
                            request: http::request_line(&method, url),
                            why: "the upload stalled".to_owned(),
                            transient: true,
                        });
                    }
                    seen = now;
                }
            }
        }
    }

    /// Puts a manifest under a tag or digest.
    pub(crate) async fn put_manifest(
        &self,
        reference: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<()> {
        let url = self.url(&format!("manifests/{reference}"))?;
        let method = Method::PUT;
        let response = self
            .send_with(&method, &url, || {
                self.endpoint
                    .server
                    .request(Method::PUT, url.clone())
                    .header(CONTENT_TYPE, media_type)
                    .body(bytes.to_vec())
            })
            .await?;
        if response.status().is_success() {
            return Ok(());
        }
        Err(RegistryError::Refused(
            self.endpoint.server.refusal(response).await,
        ))
    }
}

pub(crate) fn read_failed(source: std::io::Error) -> bulkhead_image::ImageError {
    bulkhead_image::ImageError::Storage {
        what: "read a layer".to_owned(),
        source,
    }
}
