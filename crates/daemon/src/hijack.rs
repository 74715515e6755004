//! Taking over an HTTP connection, for attach and exec.
//!
//! A handler asks for the connection with [`Hijack::take`] and answers with the response it
//! gets; when hyper has written that response, the connection's task ([`crate::connection`])
//! hands the raw socket over. Clients that sent `Upgrade: tcp` get 101; the others get 200
//! and then the raw stream, as dockerd does it.

use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use axum::response::Response;
use bytes::Bytes;
use tokio::net::UnixStream;
use tokio::sync::oneshot;

use crate::error::{ApiError, ApiResult};

/// A connection taken over.
#[derive(Debug)]
pub struct RawConnection {
    /// What the client sent behind its request already.
    pub early: Bytes,
    /// The socket.
    pub socket: UnixStream,
}

/// Where a handler leaves word that it wants the connection.
#[derive(Debug, Clone, Default)]
pub struct HijackSlot {
    wanted: Arc<Mutex<Option<oneshot::Sender<RawConnection>>>>,
}

impl HijackSlot {
    /// Who wants the connection, if anybody.
    pub(crate) fn claimant(&self) -> Option<oneshot::Sender<RawConnection>> {
        self.wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

/// A request whose connection can be taken over.
#[derive(Debug)]
pub struct Hijack {
    slot: HijackSlot,
    upgrade: Option<HeaderValue>,
}

impl<S: Sync> FromRequestParts<S> for Hijack {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> ApiResult<Self> {
        let slot = parts
            .extensions
            .get::<HijackSlot>()
            .cloned()
            .ok_or_else(|| {
                ApiError::new(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "this connection cannot be taken over",
                )
            })?;
        Ok(Self {
            slot,
            upgrade: wanted_upgrade(&parts.headers),
        })
    }
}

fn wanted_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let connection = headers.get(header::CONNECTION)?.to_str().ok()?;
    connection
        .split(',')
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
        .then(|| headers.get(header::UPGRADE).cloned())?
}

impl Hijack {
    /// Whether the client asked for another protocol on its connection.
    pub fn upgrades(&self) -> bool {
        self.upgrade.is_some()
    }

    /// The response to answer with, and the connection once that was written.
    pub fn take(self, content_type: &'static str) -> (Response, oneshot::Receiver<RawConnection>) {
        let (sender, receiver) = oneshot::channel();
        *self
            .slot
            .wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(sender);
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        match self.upgrade {
            Some(protocol) => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
                headers.insert(header::UPGRADE, protocol);
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            }
            None => {
                // A body of unknown length in a 1.0 response ends with the connection:
                // hyper then writes the head and nothing that frames what follows.
                *response.version_mut() = Version::HTTP_10;
                *response.body_mut() = Body::from_stream(futures::stream::empty::<
                    Result<Bytes, std::convert::Infallible>,
                >());
            }
        }
        (response, receiver)
    }
}
