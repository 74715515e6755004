//! HTTP to the daemon: one connection per request, over a UNIX socket or plain TCP.
//!
//! Knows nothing of what the requests mean. Answers that are errors become
//! [`ClientError::Api`] with the daemon's message; bodies of answers are bounded unless they
//! are streamed.

mod endpoint;
mod frames;
mod hijack;
mod request;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use endpoint::Endpoint;
pub use frames::{FrameDecoder, StreamKind};
pub use hijack::Hijacked;
pub use request::Request;

use request::Body;

/// The longest answer that is read into memory, in bytes. Lists of tens of thousands of
/// containers fit; a confused or hostile server does not exhaust memory.
const MAX_ANSWER: usize = 512 << 20;

/// The longest error message that is read, in bytes.
const MAX_ERROR: usize = 1 << 20;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error(
        "Cannot connect to the {} daemon at {endpoint}. Is the {} daemon running?",
        crate::command::PROGRAM,
        crate::command::PROGRAM
    )]
    Unreachable {
        /// The address that was tried.
        endpoint: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The socket is there and may not be used.
    #[error(
        "permission denied while trying to connect to the {} daemon socket at {endpoint}: {source}",
        crate::command::PROGRAM
    )]
    Denied {
        /// The address that was tried.
        endpoint: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The daemon refused the request.
    #[error("Error response from daemon: {message}")]
    Api {
        /// The HTTP status.
        status: u16,
        /// Its explanation.
        message: String,
    },
    /// The connection broke or what came over it was no HTTP.
    #[error("error during connect: {context}: {source}")]
    Http {
        /// The request.
        context: String,
        /// What went wrong.
        source: hyper::Error,
    },
    /// The body of an answer broke off.
    #[error("unexpected end of the daemon's answer: {0}")]
    Body(String),
    /// The answer was no JSON, or not of the expected form.
    #[error("the daemon's answer to {context} cannot be understood: {source}")]
    Decode {
        /// The request.
        context: String,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// The daemon did not hand over the connection.
    #[error("unable to upgrade to tcp, received {0}")]
    NotUpgraded(u16),
    /// The request could not be built: a name holds characters that no URL can carry.
    #[error("invalid request: {0}")]
    Invalid(#[from] hyper::http::Error),
}

impl ClientError {
    /// True if the daemon could not be reached at all.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Denied { .. })
    }
}

/// The daemon, as a client sees it.
pub struct Client {
    endpoint: Endpoint,
    /// `/v1.43`, or empty for the daemon's newest.
    prefix: String,
}

impl Client {
    /// A client of the daemon at `endpoint`; `version` pins the API's version.
    pub fn new(endpoint: Endpoint, version: Option<String>) -> Self {
        let prefix = version
            .map(|v| format!("/v{}", v.trim_start_matches('v')))
            .unwrap_or_default();
        Self { endpoint, prefix }
    }

    /// Sends a request and returns the answer once its head is there, whatever its status.
    async fn exchange(&self, request: Request) -> Result<Response<Incoming>, ClientError> {
        let connection = self.endpoint.connect().await?;
        let context = request.describe();
        let http = |source| ClientError::Http {
            context: context.clone(),
            source,
        };
        let (mut sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(connection))
            .await
            .map_err(http)?;
        // Ends when the answer's body has been read or dropped.
        tokio::spawn(driver.with_upgrades());
        let request = request.build(&self.prefix)?;
        sender.send_request(request).await.map_err(http)
    }

    /// Sends a request; an answer that is an error is read and becomes one.
    pub async fn send(&self, request: Request) -> Result<Response<Incoming>, ClientError> {
        let response = self.exchange(request).await?;
        let status = response.status();
        if status.is_success() || status.is_informational() || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        Err(api_error(response).await)
    }

    /// Sends a request and reads the whole answer.
    pub async fn bytes(&self, request: Request) -> Result<Bytes, ClientError> {
        let response = self.send(request).await?;
        let body = Limited::new(response.into_body(), MAX_ANSWER);
        let collected = body
            .collect()
            .await
            .map_err(|e| ClientError::Body(e.to_string()))?;
        Ok(collected.to_bytes())
    }

    /// Sends a request and decodes the JSON that answers it.
    pub async fn json<T: DeserializeOwned>(&self, request: Request) -> Result<T, ClientError> {
        let context = request.describe();
        let bytes = self.bytes(request).await?;
        serde_json::from_slice(&bytes).map_err(|source| ClientError::Decode { context, source })
    }

    /// Sends a request whose answer has no content worth reading.
    pub async fn done(&self, request: Request) -> Result<(), ClientError> {
        self.bytes(request).await.map(drop)
    }

    /// Sends a request and takes over its connection.
    pub async fn hijack(&self, request: Request) -> Result<Hijacked, ClientError> {
        let context = request.describe();
        let request = request
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "tcp");
        let response = self.send(request).await?;
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return Err(ClientError::NotUpgraded(status.as_u16()));
        }
        let upgraded = hyper::upgrade::on(response)
            .await
            .map_err(|source| ClientError::Http { context, source })?;
        Ok(Hijacked::new(upgraded))
    }

    /// Sends a request and gives the JSON values of its answer as they come.
    pub async fn stream(&self, request: Request) -> Result<JsonStream, ClientError> {
        Ok(JsonStream::new(self.send(request).await?))
    }

    /// Details of a container.
    pub async fn inspect_container(&self, name: &str) -> Result<Value, ClientError> {
        self.json(Request::get(&["containers", name, "json"])).await
    }
}

async fn api_error(response: Response<Incoming>) -> ClientError {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ERROR)
        .collect()
        .await;
    let bytes = body.map(|b| b.to_bytes()).unwrap_or_default();
    let message = serde_json::from_slice::<Value>(&bytes)
        .ok()
        .and_then(|v| v.get("message").and_then(Value::as_str).map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(&bytes).into_owned());
    let message = match message.trim() {
        // An engine leads to the path without what is empty.
        "" if status.is_redirection() => "a name or ID is empty, or a part of it is".to_owned(),
        "" => status
            .canonical_reason()
            .unwrap_or("no explanation")
            .to_owned(),
        text => text.to_owned(),
    };
    ClientError::Api {
        status: status.as_u16(),
        message,
    }
}

/// Reads an answer's body piece by piece.
pub struct BodyStream(http_body_util::BodyDataStream<Incoming>);

impl BodyStream {
    /// The body of `response`.
    pub fn new(response: Response<Incoming>) -> Self {
        Self(response.into_body().into_data_stream())
    }

    /// The next piece; none at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        match self.0.next().await {
            Some(Ok(bytes)) => Ok(Some(bytes)),
            Some(Err(error)) => Err(ClientError::Body(error.to_string())),
            None => Ok(None),
        }
    }
}

/// The longest single JSON value in a stream, in bytes.
const MAX_VALUE: usize = 16 << 20;

/// A stream of JSON values, whitespace between them.
pub struct JsonStream {
    body: BodyStream,
    pending: Vec<u8>,
    context: String,
}

impl JsonStream {
    /// The values in the body of `response`.
    pub fn new(response: Response<Incoming>) -> Self {
        Self {
            body: BodyStream::new(response),
            pending: Vec::new(),
            context: "a stream".to_owned(),
        }
    }

    /// The next value; none at the end of the stream.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            let mut values = serde_json::Deserializer::from_slice(&self.pending).into_iter();
            match values.next() {
                Some(Ok(value)) => {
                    let used = values.byte_offset();
                    self.pending.drain(..used);
                    return Ok(Some(value));
                }
                Some(Err(error)) if !error.is_eof() => {
                    return Err(ClientError::Decode {
                        context: self.context.clone(),
                        source: error,
                    });
                }
                _ => {}
            }
            if self.pending.len() > MAX_VALUE {
                return Err(ClientError::Body(format!(
                    "a value longer than {MAX_VALUE} bytes"
                )));
            }
            match self.body.next().await? {
                Some(bytes) => self.pending.extend_from_slice(&bytes),
                None if self.pending.iter().all(u8::is_ascii_whitespace) => return Ok(None),
                None => return Err(ClientError::Body("unexpected EOF".to_owned())),
            }
        }
    }
}

impl Request {
    /// A GET of the path made of `segments`.
    pub fn get(segments: &[&str]) -> Self {
        Self::new(Method::GET, segments)
    }

    /// A POST to the path made of `segments`.
    pub fn post(segments: &[&str]) -> Self {
        Self::new(Method::POST, segments)
    }

    /// A PUT to the path made of `segments`.
    pub fn put(segments: &[&str]) -> Self {
        Self::new(Method::PUT, segments)
    }

    /// A HEAD of the path made of `segments`.
    pub fn head(segments: &[&str]) -> Self {
        Self::new(Method::HEAD, segments)
    }

    /// A DELETE of the path made of `segments`.
    pub fn delete(segments: &[&str]) -> Self {
        Self::new(Method::DELETE, segments)
    }

    /// With a JSON body.
    pub fn json(self, value: &Value) -> Self {
        let bytes = Bytes::from(value.to_string());
        self.header(header::CONTENT_TYPE, "application/json")
            .body(Body::Bytes(bytes))
    }

    /// With a tar (or other raw) body of bytes that are read as they are sent.
    pub fn upload(self, source: impl tokio::io::AsyncRead + Send + Unpin + 'static) -> Self {
        self.header(header::CONTENT_TYPE, "application/x-tar")
            .body(Body::reader(source))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{UnixListener, UnixStream};

    use super::*;

    /// A socket on which one connection is served by `serve`, and a client for it.
    struct Server {
        path: PathBuf,
        client: Client,
    }

    impl Server {
        fn new<F>(name: &str, serve: impl FnOnce(UnixStream) -> F + Send + 'static) -> Self
        where
            F: Future<Output = ()> + Send,
        {
            let file = format!("bulkhead-cli-{}-{name}.sock", std::process::id());
            let path = std::env::temp_dir().join(file);
            let listener = UnixListener::bind(&path).unwrap();
            tokio::spawn(async move {
                let (stream, _) = listener.accept().await.unwrap();
                serve(stream).await;
            });
            let endpoint = Endpoint::Unix(path.to_string_lossy().into_owned());
            Self {
                path,
                client: Client::new(endpoint, None),
            }
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    async fn head(stream: &mut UnixStream) -> String {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            text.push(stream.read_u8().await.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn a_refusal_in_the_middle_of_an_upload_is_heard() {
        let server = Server::new("refusal", |mut stream| async move {
            head(&mut stream).await;
            let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 23\r\n\r\n{\"message\":\"no thanks\"}";
            stream.write_all(answer).await.unwrap();
        });
        let upload = Request::post(&["images", "load"]).upload(tokio::io::repeat(0).take(64 << 20));
        let error = server.client.done(upload).await.unwrap_err();
        assert!(
            matches!(&error, ClientError::Api { status: 400, .. }),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_hijacked_connection_is_closed_by_halves() {
        let server = Server::new("hijack", |mut stream| async move {
            assert!(head(&mut stream).await.contains("upgrade: tcp"));
            let answer =
                b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nfirst ";
            stream.write_all(answer).await.unwrap();
            let mut got = String::new();
            stream.read_to_string(&mut got).await.unwrap();
            stream
                .write_all(got.to_uppercase().as_bytes())
                .await
                .unwrap();
        });
        let request = Request::post(&["containers", "c", "attach"]);
        let Hijacked {
            mut reader,
            mut writer,
        } = server.client.hijack(request).await.unwrap();
        writer.write_all(b"second").await.unwrap();
        writer.shutdown().await.unwrap();
        let mut got = String::new();
        reader.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "first SECOND");
    }

    #[tokio::test]
    async fn values_that_are_split_and_cut_off() {
        let server = Server::new("stream", |mut stream| async move {
            head(&mut stream).await;
            let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n4\r\n1}\n{\r\n0\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        });
        let mut values = server
            .client
            .stream(Request::get(&["events"]))
            .await
            .unwrap();
        assert_eq!(values.next::<Value>().await.unwrap().unwrap()["a"], 1);
        assert!(values.next::<Value>().await.is_err());
    }

    #[tokio::test]
    async fn nobody_listens() {
        let endpoint = Endpoint::Unix("/nonexistent/bulkhead.sock".to_owned());
        let error = Client::new(endpoint, None)
            .done(Request::get(&["_ping"]))
            .await
            .unwrap_err();
        assert!(error.is_unreachable());
        assert_eq!(
            error.to_string(),
            "Cannot connect to the bulkhead daemon at unix:///nonexistent/bulkhead.sock. \
             Is the bulkhead daemon running?"
        );
    }
}
