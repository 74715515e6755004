//! One client connection: HTTP/1.1, the API version in the path, and the hand-over of the
//! socket to a handler that asked for it.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::http::{Request, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::config::{API_VERSION, MIN_API_VERSION};
use crate::error::ApiError;
use crate::hijack::{HijackSlot, RawConnection};

/// The API version that a request asked for, as `(major, minor)`; an extension of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion(pub u16, pub u16);

impl ApiVersion {
    /// The newest one.
    pub const NEWEST: Self = Self(1, 50);
    /// The oldest one.
    pub const OLDEST: Self = Self(1, 24);

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

/// Serves a connection until it ends, is handed over, or `shutdown` is cancelled and the
/// request in flight is answered.
pub async fn serve(stream: UnixStream, router: Router, shutdown: CancellationToken) {
    let slot = HijackSlot::default();
    let service_slot = slot.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(service_slot.clone());
        Box::pin(answer(router.clone(), request))
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // Clients keep idle connections for long, and it is their machine.
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(stream), service);
    let mut stopping = false;
    let mut cancelled = std::pin::pin!(shutdown.cancelled());
    let served = std::future::poll_fn(|cx| {
        if !stopping && cancelled.as_mut().poll(cx).is_ready() {
            stopping = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        connection.poll_without_shutdown(cx)
    })
    .await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
        return;
    }
    if let Some(claimant) = slot.claimant() {
        let parts = connection.into_parts();
        // A claimant that has gone drops the socket, which closes it.
        let _ = claimant.send(RawConnection {
            early: parts.read_buf,
            socket: parts.io.into_inner(),
        });
    }
}

async fn answer(router: Router, mut request: Request<Incoming>) -> Result<Response, Infallible> {
    if let Some(elsewhere) = cleaned(request.uri()) {
        let moved = (
            StatusCode::MOVED_PERMANENTLY,
            [(header::LOCATION, elsewhere)],
        );
        return Ok(crate::routes::docker_headers(moved.into_response()).await);
    }
    let plain = strip_version(&mut request)
        .and_then(|()| strip_slash(&mut request))
        .and_then(|()| join_name(&mut request));
    if let Err(refused) = plain {
        return Ok(crate::routes::docker_headers(refused.into_response()).await);
    }
    let expects = request.headers().contains_key(header::EXPECT);
    let request = request.map(|body| ReadToItsEnd {
        body: Some(body),
        // Who waits for leave to send has not begun.
        begun: !expects,
    });
    router.oneshot(request).await
}

/// Bytes of a body that are still read when nobody wants them.
const UNWANTED: usize = 256 << 10;
/// How long they may take.
const UNWANTED_PATIENCE: Duration = Duration::from_secs(5);

/// A request's body of which a handler may leave the rest unread. A client that is sending has
/// to be let finish: a socket that is closed on it instead takes the answer away, too.
struct ReadToItsEnd {
    body: Option<Incoming>,
    begun: bool,
}

impl Body for ReadToItsEnd {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.begun = true;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for ReadToItsEnd {
    fn drop(&mut self) {
        let unread = self.body.take();
        let unread = unread.filter(|body| self.begun && !body.is_end_stream());
        let (Some(mut body), Ok(runtime)) = (unread, tokio::runtime::Handle::try_current()) else {
            return;
        };
        runtime.spawn(async move {
            let rest = async {
                let mut left = UNWANTED;
                while let Some(Ok(frame)) = body.frame().await {
                    let length = frame.data_ref().map_or(0, Bytes::len);
                    match left.checked_sub(length) {
                        Some(fewer) => left = fewer,
                        None => return,
                    }
                }
            };
            let _ = tokio::time::timeout(UNWANTED_PATIENCE, rest).await;
        });
    }
}

/// Takes `/vX.Y` off the path and leaves it as an extension.
fn strip_version<B>(request: &mut Request<B>) -> Result<(), ApiError> {
    let path = request.uri().path();
    let mut version = ApiVersion::NEWEST;
    let versioned = path.strip_prefix("/v").and_then(|rest| {
        let (version, _) = rest.split_once('/').unwrap_or((rest, ""));
        Some((version, ApiVersion::parse(version)?))
    });
    if let Some((text, asked)) = versioned {
        if asked > ApiVersion::NEWEST {
            return Err(ApiError::bad_request(format!(
                "client version {text} is too new. Maximum supported API version is {API_VERSION}"
            )));
        }
        if asked < ApiVersion::OLDEST {
            return Err(ApiError::bad_request(format!(
                "client version {text} is too old. Minimum supported API version is \
                 {MIN_API_VERSION}, please upgrade your client to a newer version"
            )));
        }
        version = asked;
        let rest = &path[2 + text.len()..];
        let rest = if rest.is_empty() { "/" } else { rest };
        let rest = rest.to_owned();
        set_path(request, &rest)?;
    }
    request.extensions_mut().insert(version);
    Ok(())
}

/// What cannot stand for itself in a path, as Go has it.
const ESCAPED: AsciiSet = NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b',')
    .remove(b'/')
    .remove(b':')
    .remove(b';')
    .remove(b'=')
    .remove(b'@');

/// Where a path leads that has empty steps or steps to where it is or came from, also
/// encoded ones. Docker sends clients there; nothing here is to be reached by two paths.
fn cleaned(uri: &Uri) -> Option<String> {
    let path = percent_decode_str(uri.path()).collect::<Vec<u8>>();
    // `OPTIONS *`, and `CONNECT` to a host.
    if path.first() != Some(&b'/') {
        return None;
    }
    let mut steps: Vec<&[u8]> = Vec::new();
    let mut is_clean = true;
    let mut rest = path[1..].split(|byte| *byte == b'/').peekable();
    while let Some(step) = rest.next() {
        let is_last = rest.peek().is_none();
        match step {
            // What the slash at the end leaves.
            b"" if is_last => steps.push(step),
            b"" | b"." | b".." => {
                is_clean = false;
                if step == b".." {
                    steps.pop();
                }
            }
            _ => steps.push(step),
        }
    }
    if is_clean {
        return None;
    }
    let mut out = String::new();
    for step in &steps {
        out.push('/');
        out.extend(percent_encode(step, &ESCAPED));
    }
    if out.is_empty() {
        out.push('/');
    }
    if let Some(query) = uri.query() {
        out.push('?');
        out.push_str(query);
    }
    Some(out)
}

/// The one path that is the same with a slash at its end.
fn strip_slash<B>(request: &mut Request<B>) -> Result<(), ApiError> {
    match request.uri().path() {
        "/networks/" => set_path(request, "/networks"),
        _ => Ok(()),
    }
}

/// A container has more names by links, `parent/alias`. In a path such a name is to be one
/// step: what stands before the last one, which says what is wanted.
fn join_name<B>(request: &mut Request<B>) -> Result<(), ApiError> {
    let Some(rest) = request.uri().path().strip_prefix("/containers/") else {
        return Ok(());
    };
    let steps: Vec<&str> = rest.split('/').collect();
    let wanted = if steps.ends_with(&["attach", "ws"]) {
        2
    } else {
        1
    };
    let (name, wanted) = steps.split_at(steps.len().saturating_sub(wanted));
    if name.len() < 2 {
        return Ok(());
    }
    let path = format!("/containers/{}/{}", name.join("%2F"), wanted.join("/"));
    set_path(request, &path)
}

/// Gives the request another path; its query stays.
fn set_path<B>(request: &mut Request<B>, path: &str) -> Result<(), ApiError> {
    let whole = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    *request.uri_mut() = whole
        .parse::<Uri>()
        .map_err(|error| ApiError::bad_request(format!("invalid path: {error}")))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strip(uri: &str) -> Result<(String, ApiVersion), ApiError> {
        let mut request = Request::builder().uri(uri).body(()).unwrap();
        strip_version(&mut request)?;
        let version = *request.extensions().get::<ApiVersion>().unwrap();
        Ok((request.uri().to_string(), version))
    }

    #[test]
    fn a_slash_at_the_end_is_nothing() {
        let strip = |uri: &str| {
            let mut request = Request::builder().uri(uri).body(()).unwrap();
            strip_slash(&mut request).unwrap();
            request.uri().to_string()
        };
        assert_eq!(strip("/networks/?a=b"), "/networks?a=b");
        assert_eq!(strip("/networks"), "/networks");
        assert_eq!(strip("/info/"), "/info/");
        assert_eq!(strip("/"), "/");
    }

    #[test]
    fn a_name_by_a_link_is_one_step() {
        let join = |uri: &str| {
            let mut request = Request::builder().uri(uri).body(()).unwrap();
            join_name(&mut request).unwrap();
            request.uri().to_string()
        };
        for (uri, joined) in [
            (
                "/containers/a/b/json?size=1",
                "/containers/a%2Fb/json?size=1",
            ),
            ("/containers/a/b/c/start", "/containers/a%2Fb%2Fc/start"),
            ("/containers/a/b/attach/ws", "/containers/a%2Fb/attach/ws"),
        ] {
            assert_eq!(join(uri), joined);
        }
        for uri in [
            "/containers/json",
            "/containers/a/json",
            "/containers/a/attach/ws",
            "/containers/attach/ws",
            "/containers/a%2Fb/json",
            "/images/a/b/json",
        ] {
            assert_eq!(join(uri), uri);
        }
    }

    #[test]
    fn paths_are_clean() {
        let cleaned = |uri: &str| cleaned(&uri.parse().unwrap());
        for clean in [
            "/",
            "*",
            "/info",
            "/networks/",
            "/images/a%2Fb/json",
            "/images/a..b/json?x=//",
            "/x?path=../y",
        ] {
            assert_eq!(cleaned(clean), None, "{clean}");
        }
        for (unclean, clean) in [
            ("//info", "/info"),
            ("//", "/"),
            ("/..", "/"),
            ("/containers/../../info?a=%2F", "/info?a=%2F"),
            ("/v1.41/./info/", "/v1.41/info/"),
            ("/images/%2e%2E/info", "/info"),
            ("/images/a%2F%2Fb%20c/json", "/images/a/b%20c/json"),
        ] {
            assert_eq!(cleaned(unclean).as_deref(), Some(clean), "{unclean}");
        }
    }

    #[test]
    fn versions() {
        assert_eq!(
            strip("/v1.41/containers/json?all=1").unwrap(),
            ("/containers/json?all=1".to_owned(), ApiVersion(1, 41))
        );
        assert_eq!(strip("/_ping").unwrap().0, "/_ping");
        assert_eq!(strip("/version").unwrap().0, "/version");
        assert_eq!(
            strip("/v1.99/info").unwrap_err().message,
            "client version 1.99 is too new. Maximum supported API version is 1.50"
        );
        assert_eq!(
            strip("/v1.12/info").unwrap_err().status,
            StatusCode::BAD_REQUEST
        );
    }
}
