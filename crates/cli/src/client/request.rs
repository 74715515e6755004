//! What a request is before it is sent: method, path, query, headers, body.

use std::fmt::Write;

use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{HOST, HeaderName, USER_AGENT};
use hyper::{Method, http};
use tokio::io::AsyncRead;
use tokio_util::io::ReaderStream;

/// Bytes of an upload that are read at once.
const UPLOAD_CHUNK: usize = 64 << 10;

type SendBody = BoxBody<Bytes, std::io::Error>;

/// A request's body.
pub(super) enum Body {
    None,
    Bytes(Bytes),
    Stream(SendBody),
}

impl Body {
    pub(super) fn reader(source: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let pieces = ReaderStream::with_capacity(source, UPLOAD_CHUNK).map_ok(Frame::data);
        Self::Stream(BodyExt::boxed(StreamBody::new(SyncStream(
            std::sync::Mutex::new(pieces),
        ))))
    }
}

/// A stream that is only ever polled through `&mut`, made `Sync` for the boxed body.
struct SyncStream<S>(std::sync::Mutex<S>);

impl<S: futures::Stream + Unpin> futures::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        let stream = match self.0.get_mut() {
            Ok(stream) => stream,
            Err(poisoned) => poisoned.into_inner(),
        };
        std::pin::Pin::new(stream).poll_next(cx)
    }
}

/// A request.
pub struct Request {
    method: Method,
    path: String,
    query: Query,
    headers: Vec<(HeaderName, String)>,
    body: Body,
}

/// The query part of a request.
#[derive(Default, Clone)]
pub struct Query(String);

impl Query {
    /// Adds `key=value`.
    pub fn set(&mut self, key: &str, value: &str) {
        if !self.0.is_empty() {
            self.0.push('&');
        }
        escape(&mut self.0, key);
        self.0.push('=');
        escape(&mut self.0, value);
    }
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn escape(out: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

impl Request {
    pub(super) fn new(method: Method, segments: &[&str]) -> Self {
        let mut path = String::new();
        for segment in segments {
            path.push('/');
            // References keep their slashes and colons, as routes with a rest part expect.
            // What `inspect` shows of a name begins with one that is no part of it.
            let segment = segment.trim_start_matches('/');
            for (index, piece) in segment.split('/').enumerate() {
                if index > 0 {
                    path.push('/');
                }
                for (index, part) in piece.split(':').enumerate() {
                    if index > 0 {
                        path.push(':');
                    }
                    escape(&mut path, part);
                }
            }
        }
        Self {
            method,
            path,
            query: Query::default(),
            headers: Vec::new(),
            body: Body::None,
        }
    }

    /// With `key=value` in the query.
    pub fn query(mut self, key: &str, value: impl AsRef<str>) -> Self {
        self.query.set(key, value.as_ref());
        self
    }

    /// With `key=1` in the query if `on`.
    pub fn query_if(self, key: &str, on: bool) -> Self {
        if on { self.query(key, "1") } else { self }
    }

    /// With `key=value` in the query if there is a value.
    pub fn query_some(self, key: &str, value: Option<impl AsRef<str>>) -> Self {
        match value {
            Some(value) => self.query(key, value),
            None => self,
        }
    }

    /// With a header.
    pub fn header(mut self, name: HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    /// What messages call this request.
    pub(super) fn describe(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    pub(super) fn build(self, prefix: &str) -> Result<http::Request<SendBody>, http::Error> {
        let mut target = format!("{prefix}{}", self.path);
        if !self.query.0.is_empty() {
            target.push('?');
            target.push_str(&self.query.0);
        }
        let mut builder = http::Request::builder()
            .method(self.method)
            .uri(target)
            .header(HOST, "docker")
            .header(USER_AGENT, concat!("bulkhead/", env!("CARGO_PKG_VERSION")));
        for (name, value) in self.headers {
            builder = builder.header(name, value);
        }
        let never = |never: std::convert::Infallible| match never {};
        builder.body(match self.body {
            Body::None => BodyExt::boxed(Empty::new().map_err(never)),
            Body::Bytes(bytes) => BodyExt::boxed(Full::new(bytes).map_err(never)),
            Body::Stream(stream) => stream,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_queries_are_escaped() {
        let request = Request::get(&["images", "/a/b:c d?", "json"]).query("f", "{\"a\":1}&");
        let built = request.build("/v1.41").unwrap();
        assert_eq!(
            built.uri().to_string(),
            "/v1.41/images/a/b:c%20d%3F/json?f=%7B%22a%22%3A1%7D%26"
        );
    }
}
