//! Request bodies: JSON with a bound, whatever the `Content-Type` says.

use axum::body::{Body, Bytes};
use serde::de::DeserializeOwned;

use crate::error::{ApiError, ApiResult};

/// Largest JSON body that is read, bytes. dockerd has no bound; `docker create` with every
/// option is a few KiB.
pub const MAX_JSON: usize = 4 << 20;

/// Reads a whole body of at most [`MAX_JSON`] bytes.
///
/// # Errors
/// 400 when it is larger or the client went away.
pub async fn read(body: Body) -> ApiResult<Bytes> {
    axum::body::to_bytes(body, MAX_JSON)
        .await
        .map_err(|error| ApiError::bad_request(format!("cannot read the request body: {error}")))
}

/// Decodes JSON.
///
/// # Errors
/// 400 when it is malformed or missing.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> ApiResult<T> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(ApiError::bad_request(
            "invalid JSON: got EOF while reading request body",
        ));
    }
    serde_json::from_slice(bytes)
        .map_err(|error| ApiError::bad_request(format!("invalid JSON: {error}")))
}

/// Reads and decodes JSON.
///
/// # Errors
/// As [`read`] and [`decode`].
pub async fn json<T: DeserializeOwned>(body: Body) -> ApiResult<T> {
    decode(&read(body).await?)
}
