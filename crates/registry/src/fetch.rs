//! A file by its URL, with the TLS and the proxies of registries.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, LAST_MODIFIED};
use reqwest::{Method, Response, Url};

use crate::Registry;
use crate::error::{RegistryError, Result};
use crate::http::{Server, cause, header, request_line};

/// Most bytes that a server may have to say instead of a file.
const MAX_REFUSAL: usize = 64 << 10;

/// A file that is being fetched.
#[derive(Debug)]
pub struct FetchedFile {
    response: Response,
    line: String,
    /// Longest silence.
    patience: Duration,
    /// `Last-Modified`, seconds since the epoch.
    pub modified: Option<i64>,
    /// `Content-Type`.
    pub content_type: Option<String>,
}

impl Registry {
    /// Asks for a file.
    ///
    /// # Errors
    /// A URL that is none; a server that cannot be reached or refuses.
    pub async fn fetch(&self, url: &str) -> Result<FetchedFile> {
        let url = Url::parse(url)
            .map_err(|error| RegistryError::InvalidArgument(format!("{url}: {error}")))?;
        let host = url.host_str().unwrap_or_default().to_owned();
        let server = Server::new(self.settings(), url.scheme(), &host, true)?;
        let method = Method::GET;
        let request = server.request(method.clone(), url.clone());
        let response = server.send(request, &method, &url).await?;
        let line = request_line(&method, &url);
        if !response.status().is_success() {
            let status = response.status();
            let body = server.read_body(response, MAX_REFUSAL, "answer").await;
            let body = body.unwrap_or_else(|_| b"error reading body".to_vec());
            return Err(RegistryError::NoFile {
                url: url.to_string(),
                status,
                body: String::from_utf8_lossy(&body).trim().to_owned(),
            });
        }
        let text = |name: reqwest::header::HeaderName| {
            let value = header(response.headers(), name.as_str()).to_owned();
            Some(value).filter(|value| !value.is_empty())
        };
        Ok(Self::fetched(
            text(LAST_MODIFIED),
            text(CONTENT_TYPE),
            line,
            server.patience,
            response,
        ))
    }

    fn fetched(
        modified: Option<String>,
        content_type: Option<String>,
        line: String,
        patience: Duration,
        response: Response,
    ) -> FetchedFile {
        let modified = modified.and_then(|text| {
            jiff::fmt::rfc2822::parse(&text)
                .ok()
                .map(|time| time.timestamp().as_second())
        });
        FetchedFile {
            response,
            line,
            patience,
            modified,
            content_type,
        }
    }
}

impl FetchedFile {
    /// The next part; `None` at the end.
    ///
    /// # Errors
    /// That it broke off, or nothing came for too long.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let failed = |why: String| RegistryError::Transport {
            request: self.line.clone(),
            why,
            transient: true,
        };
        let patience = self.patience;
        match tokio::time::timeout(patience, self.response.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| failed(cause(&error))),
            Err(_) => Err(failed(format!(
                "nothing came for {} seconds",
                patience.as_secs()
            ))),
        }
    }
}
