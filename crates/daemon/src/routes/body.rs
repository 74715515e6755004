//! Request bodies: JSON with a bound, declared as such.
//!
//! Bodies are read and decoded before anything that a path names is looked up, as dockerd
//! does: a malformed request is malformed whatever it is about.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;

use crate::error::{ApiError, ApiResult};

/// Largest JSON body that is read, bytes. dockerd has no bound; `docker create` with every
/// option is a few KiB.
pub const MAX_JSON: usize = 4 << 20;

/// A body that has to be there.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

/// A body that may be empty.
#[derive(Debug)]
pub struct OptionalJson<T>(pub Option<T>);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> ApiResult<Self> {
        match OptionalJson::from_request(request, state).await?.0 {
            Some(value) => Ok(Self(value)),
            None => Err(ApiError::bad_request("invalid JSON: EOF")),
        }
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> ApiResult<Self> {
        let (parts, body) = request.into_parts();
        let bytes = read(body).await?;
        check_type(&parts.headers, bytes.is_empty())?;
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self(None));
        }
        // `null` is nothing too.
        decode(&bytes).map(Self)
    }
}

/// Reads a whole body of at most [`MAX_JSON`] bytes.
async fn read(body: Body) -> ApiResult<Bytes> {
    axum::body::to_bytes(body, MAX_JSON)
        .await
        .map_err(|error| ApiError::bad_request(format!("cannot read the request body: {error}")))
}

/// What is sent as something else is not taken for JSON: that is what keeps a web page's
/// forms out of a daemon that listens where a browser can reach it.
fn check_type(headers: &HeaderMap, empty: bool) -> ApiResult<()> {
    let declared = headers.get(header::CONTENT_TYPE);
    let text = declared.map_or("".into(), |value| String::from_utf8_lossy(value.as_bytes()));
    let kind = text.split(';').next().unwrap_or_default().trim();
    // An empty body is nothing, whatever it is declared to be.
    if empty || kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "unsupported Content-Type header ({text}): must be 'application/json'"
    )))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> ApiResult<T> {
    let mut decoder = serde_json::Deserializer::from_slice(bytes);
    let value = T::deserialize(&mut decoder)
        .map_err(|error| ApiError::bad_request(format!("invalid JSON: {error}")))?;
    decoder
        .end()
        .map_err(|_| ApiError::bad_request("unexpected content after JSON"))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    async fn body(kind: Option<&str>, text: &'static str) -> ApiResult<Value> {
        let mut request = Request::builder();
        if let Some(kind) = kind {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let request = request.body(Body::from(text)).unwrap();
        JsonBody::from_request(request, &())
            .await
            .map(|body| body.0)
    }

    #[tokio::test]
    async fn null_is_nothing() {
        let request = Request::builder()
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from("null"))
            .unwrap();
        let body = OptionalJson::<Vec<u8>>::from_request(request, &()).await;
        assert_eq!(body.unwrap().0, None);
    }

    #[tokio::test]
    async fn json_is_declared_and_alone() {
        let json = Some("application/json; charset=utf-8");
        assert_eq!(body(json, " {} ").await.unwrap(), serde_json::json!({}));
        for (kind, text, why) in [
            (
                Some("text/plain"),
                "{}",
                "unsupported Content-Type header (text/plain)",
            ),
            (None, "{}", "unsupported Content-Type header ()"),
            (json, "{x", "invalid JSON"),
            (json, "{} trailing", "unexpected content after JSON"),
            (json, "", "invalid JSON: EOF"),
            (None, "", "invalid JSON: EOF"),
        ] {
            let error = body(kind, text).await.unwrap_err();
            assert_eq!(error.status, axum::http::StatusCode::BAD_REQUEST);
            assert!(
                error.message.contains(why),
                "{:?} lacks {why:?}",
                error.message
            );
        }
    }
}
