//! Request bodies: JSON with a bound, declared as such.
//!
//! Bodies are read and decoded before anything that a path names is looked up, as dockerd
//! does: a malformed request is malformed whatever it is about.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use bollard_stubs::models::{ContainerConfig, HostConfig, NetworkingConfig};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

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

    async fn from_request(request: Request, _state: &S) -> ApiResult<Self> {
        let bytes = checked(request).await?;
        match bytes.trim_ascii() {
            b"" => Err(ApiError::bad_request(
                "invalid JSON: got EOF while reading request body",
            )),
            // An object in which nothing is set.
            b"null" => decode(b"{}").map(Self),
            _ => decode(&bytes).map(Self),
        }
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _state: &S) -> ApiResult<Self> {
        let bytes = checked(request).await?;
        match bytes.trim_ascii() {
            b"" | b"null" => Ok(Self(None)),
            _ => decode(&bytes).map(Some).map(Self),
        }
    }
}

/// The whole body, if it may be JSON.
async fn checked(request: Request) -> ApiResult<Bytes> {
    let (parts, body) = request.into_parts();
    let bytes = read(body).await?;
    check_type(&parts.headers, bytes.is_empty())?;
    Ok(bytes)
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

/// Of the body of a creation, what is beside the container's configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[expect(dead_code, reason = "it is there for the names in it")]
struct BesideConfig {
    host_config: Option<HostConfig>,
    networking_config: Option<NetworkingConfig>,
}

/// Makes of a container's configuration what Go's decoder would: names are what they are
/// whatever their case, a member that is `null` is empty, and one text stands for a list of it
/// where Docker has it so.
pub fn as_go_reads(config: &mut Value) {
    name_members(config);
    complete(config);
    // What was of a wrong type until now has members, too.
    name_members(config);
}

fn name_members(config: &mut Value) {
    super::go_names::name_members::<ContainerConfig>(config);
    super::go_names::name_members::<BesideConfig>(config);
}

fn complete(config: &mut Value) {
    for place in [
        "/Cmd",
        "/Entrypoint",
        "/Shell",
        "/HostConfig/CapAdd",
        "/HostConfig/CapDrop",
    ] {
        if let Some(value) = config.pointer_mut(place)
            && value.is_string()
        {
            *value = Value::Array(vec![value.take()]);
        }
    }
    let object = || Value::Object(serde_json::Map::default());
    let text = || Value::from("");
    for (place, empty) in [
        ("/Cmd", text()),
        ("/Entrypoint", text()),
        ("/Shell", text()),
        ("/Env", text()),
        ("/OnBuild", text()),
        ("/Labels", text()),
        ("/ExposedPorts", object()),
        ("/Volumes", object()),
        ("/HostConfig/Tmpfs", text()),
        ("/HostConfig/Sysctls", text()),
        ("/HostConfig/Annotations", text()),
        ("/HostConfig/LogConfig/Config", text()),
    ] {
        let members: Vec<&mut Value> = match config.pointer_mut(place) {
            Some(Value::Object(members)) => members.values_mut().collect(),
            Some(Value::Array(members)) => members.iter_mut().collect(),
            _ => continue,
        };
        for member in members.into_iter().filter(|member| member.is_null()) {
            *member = empty.clone();
        }
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> ApiResult<T> {
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(ApiError::bad_request(
            "invalid JSON: an object is expected, not a list",
        ));
    }
    let invalid = |error| ApiError::bad_request(format!("invalid JSON: {error}"));
    let mut decoder = serde_json::Deserializer::from_slice(bytes);
    let mut document = Value::deserialize(&mut decoder).map_err(invalid)?;
    decoder
        .end()
        .map_err(|_| ApiError::bad_request("unexpected content after JSON"))?;
    super::go_names::read(&mut document).map_err(|error| {
        // From the text itself, it says where.
        let with_place = serde_json::from_slice::<T>(bytes).err();
        invalid(with_place.unwrap_or(error))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    async fn body_of(kind: Option<&str>, text: &'static str) -> ApiResult<Value> {
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
        let body = OptionalJson::<Value>::from_request(request, &()).await;
        assert_eq!(body.unwrap().0, None);
        let json = Some("application/json");
        assert_eq!(body_of(json, "null").await.unwrap(), json!({}));
    }

    #[test]
    fn configurations_as_go_reads_them() {
        let mut config = json!({
            "cmd": "true", "Entrypoint": ["a", null], "volumes": { "/v": null },
            "hostConfig": { "capadd": "ALL", "mounts": [{ "type": "bind" }] },
        });
        as_go_reads(&mut config);
        let read = json!({
            "Cmd": ["true"], "Entrypoint": ["a", ""], "Volumes": { "/v": {} },
            "HostConfig": { "CapAdd": ["ALL"], "Mounts": [{ "Type": "bind" }] },
        });
        assert_eq!(config, read);
    }

    #[tokio::test]
    async fn json_is_declared_and_alone() {
        let json = Some("application/json; charset=utf-8");
        assert_eq!(body_of(json, " {} ").await.unwrap(), json!({}));
        for (kind, text, why) in [
            (
                Some("text/plain"),
                "{}",
                "unsupported Content-Type header (text/plain)",
            ),
            (None, "{}", "unsupported Content-Type header ()"),
            (json, "{x", "invalid JSON"),
            (json, "[]", "an object is expected"),
            (json, "{} trailing", "unexpected content after JSON"),
            (json, "", "invalid JSON: got EOF while reading request body"),
            (None, "", "invalid JSON: got EOF while reading request body"),
        ] {
            let error = body_of(kind, text).await.unwrap_err();
            assert_eq!(error.status, axum::http::StatusCode::BAD_REQUEST);
            assert!(
                error.message.contains(why),
                "{:?} lacks {why:?}",
                error.message
            );
        }
    }
}
