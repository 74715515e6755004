//! Query strings as Docker's clients write them.

use std::collections::{BTreeMap, HashMap};

use axum::body::{Body, Bytes};
use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use jiff::Timestamp;
use serde::Deserialize;

use crate::error::{ApiError, ApiResult};

/// A decoded query string, and in front of it what a form in the body says. Of a key given
/// twice the first value counts, unless [`Params::all`] is asked.
#[derive(Debug, Clone, Default)]
pub struct Params {
    pairs: Vec<(String, String)>,
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> ApiResult<Self> {
        let query = axum::extract::Query::<Vec<(String, String)>>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::bad_request(format!("invalid query: {error}")))?;
        let form = parts.extensions.get::<Form>();
        let mut pairs = form.map(|form| form.0.clone()).unwrap_or_default();
        pairs.extend(query.0);
        Ok(Self { pairs })
    }
}

/// The pairs of a request's form.
#[derive(Debug, Clone)]
struct Form(Vec<(String, String)>);

/// Most bytes of a form. What is declared as one and is longer is an archive that curl was
/// not told the type of.
const MAX_FORM: usize = 1 << 20;

/// Reads a form in the body, as `curl -d` sends it: its pairs count like the query's and
/// before them. The body stays where it is for who reads it in another way.
pub async fn read_form(request: Request, next: Next) -> Response {
    let kind = request.headers().get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !matches!(*request.method(), Method::POST | Method::PUT)
        || !kind.eq_ignore_ascii_case("application/x-www-form-urlencoded")
    {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    let mut rest = body.into_data_stream().fuse();
    let mut read = Vec::new();
    while read.len() <= MAX_FORM {
        match rest.next().await {
            Some(Ok(bytes)) => read.extend_from_slice(&bytes),
            Some(Err(error)) => {
                return ApiError::bad_request(format!("cannot read the request body: {error}"))
                    .into_response();
            }
            None => break,
        }
    }
    if read.len() <= MAX_FORM {
        parts.extensions.insert(Form(pairs(&read)));
    }
    let read = futures::stream::once(async move { Ok(Bytes::from(read)) });
    let request = Request::from_parts(parts, Body::from_stream(read.chain(rest)));
    next.run(request).await
}

/// `name=value&…`, percent-encoded and with `+` for blanks.
fn pairs(form: &[u8]) -> Vec<(String, String)> {
    let decode = |text: &[u8]| {
        let blanks: Vec<u8> = text
            .iter()
            .map(|byte| if *byte == b'+' { b' ' } else { *byte })
            .collect();
        let decoded = percent_encoding::percent_decode(&blanks);
        decoded.decode_utf8_lossy().into_owned()
    };
    form.trim_ascii()
        .split(|byte| *byte == b'&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let end = pair.iter().position(|byte| *byte == b'=');
            let (name, value) = pair.split_at(end.unwrap_or(pair.len()));
            (decode(name), decode(value.get(1..).unwrap_or_default()))
        })
        .collect()
}

impl Params {
    /// The value of a key; `None` also for an empty one.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs
            .iter()
            // As Go reads a query: the first one counts.
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// Every value of a key.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs
            .iter()
            .filter(move |(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// A flag. As dockerd reads them: missing, empty, `0`, `no`, `false` and `none` are false.
    pub fn flag(&self, key: &str) -> bool {
        self.flag_or(key, false)
    }

    /// A flag with a value for when it is missing.
    pub fn flag_or(&self, key: &str, default: bool) -> bool {
        match self.get(key) {
            None => default,
            Some(value) => !matches!(
                value.trim().to_ascii_lowercase().as_str(),
                "0" | "no" | "false" | "none"
            ),
        }
    }

    /// A number.
    ///
    /// # Errors
    /// 400 when it is not one.
    pub fn number<T: std::str::FromStr>(&self, key: &str) -> ApiResult<Option<T>> {
        self.get(key)
            .map(|value| {
                value.parse().map_err(|_| {
                    ApiError::bad_request(format!(
                        "invalid value '{value}' for '{key}': not a number"
                    ))
                })
            })
            .transpose()
    }

    /// The `filters`.
    ///
    /// # Errors
    /// As [`filters`].
    pub fn filters(&self) -> ApiResult<HashMap<String, Vec<String>>> {
        filters(self.get("filters"))
    }
}

/// Decodes `filters`: `{"key": {"value": true}}`, or of older clients `{"key": ["value"]}`.
///
/// # Errors
/// 400 for anything else.
pub fn filters(text: Option<&str>) -> ApiResult<HashMap<String, Vec<String>>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Values {
        Set(BTreeMap<String, bool>),
        List(Vec<String>),
    }
    let Some(text) = text else {
        return Ok(HashMap::new());
    };
    let decoded: Option<HashMap<String, Option<Values>>> = serde_json::from_str(text)
        .map_err(|_| ApiError::bad_request(format!("invalid filter: '{text}'")))?;
    Ok(decoded
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(key, values)| Some((key, values?)))
        .map(|(key, values)| {
            let values = match values {
                // As with dockerd the keys are the set, whatever they are set to.
                Values::Set(set) => set.into_keys().collect(),
                Values::List(list) => list,
            };
            (key, values)
        })
        .collect())
}

/// The one time in the filter `until`.
///
/// # Errors
/// 400 for several and for what is no time.
pub fn until(filters: &HashMap<String, Vec<String>>) -> ApiResult<Option<Timestamp>> {
    match filters.get("until").map(Vec::as_slice) {
        None | Some([]) => Ok(None),
        Some([one]) => timestamp(one).map(Some),
        Some(_) => Err(ApiError::bad_request(
            "more than one until filter specified",
        )),
    }
}

/// Refuses keys that a route doesn't know.
///
/// # Errors
/// 400 with Docker's words.
pub fn check_filters(filters: &HashMap<String, Vec<String>>, known: &[&str]) -> ApiResult<()> {
    match filters.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(ApiError::bad_request(format!("invalid filter '{key}'"))),
    }
}

/// Whether labels pass the filters `label` (all of them) and `label!` (none of them).
pub fn labels_match<'a>(
    labels: Option<impl IntoIterator<Item = (&'a String, &'a String)>>,
    filters: &HashMap<String, Vec<String>>,
) -> bool {
    let labels: HashMap<&str, &str> = labels
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let has = |wanted: &String| match wanted.split_once('=') {
        Some((name, value)) => labels.get(name).is_some_and(|have| *have == value),
        None => labels.contains_key(wanted.as_str()),
    };
    let values = |key: &str| filters.get(key).map(Vec::as_slice).unwrap_or_default();
    values("label").iter().all(has) && !values("label!").iter().any(has)
}

/// Whether a name or an ID is what a filter's value says: exactly, or as a regular expression
/// that matches anywhere. What is no expression matches nothing else.
pub fn is_like(text: &str, pattern: &str) -> bool {
    text == pattern || regex::Regex::new(pattern).is_ok_and(|regex| regex.is_match(text))
}

/// Reads a time: seconds since the epoch with or without a fraction, RFC 3339, or an age
/// such as `10m` or `1h30m`.
///
/// # Errors
/// 400 for anything else.
pub fn timestamp(text: &str) -> ApiResult<Timestamp> {
    let parsed = match text.split_once('.') {
        _ if text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-'))
            && text.matches('-').count() <= usize::from(text.starts_with('-')) =>
        {
            let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
            let mut digits = fraction.to_owned();
            digits.truncate(9);
            while digits.len() < 9 {
                digits.push('0');
            }
            match (seconds.parse(), digits.parse()) {
                (Ok(seconds), Ok(nanos)) => Timestamp::new(seconds, nanos).ok(),
                _ => None,
            }
        }
        _ => text.parse::<Timestamp>().ok().or_else(|| {
            // A date and time without a zone is in the daemon's.
            let zone = jiff::tz::TimeZone::system();
            let local = text
                .parse::<jiff::civil::DateTime>()
                .ok()
                .and_then(|at| at.to_zoned(zone).ok())
                .map(|at| at.timestamp());
            local.or_else(|| age(text))
        }),
    };
    parsed.ok_or_else(|| ApiError::bad_request(format!("invalid time: '{text}'")))
}

/// The time that was this long ago, in Go's notation.
fn age(text: &str) -> Option<Timestamp> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let number: f64 = rest[..end].parse().ok()?;
        let tail = &rest[end..];
        let (unit, length) = [("ms", 0.001), ("h", 3600.0), ("m", 60.0), ("s", 1.0)]
            .into_iter()
            .find(|(unit, _)| tail.starts_with(unit))?;
        total += number * length;
        rest = &tail[unit.len()..];
    }
    let age = std::time::Duration::try_from_secs_f64(total).ok()?;
    Timestamp::now().checked_sub(age).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_of_filters() {
        let new = filters(Some(r#"{"status":{"exited":true,"dead":false}}"#)).unwrap();
        assert_eq!(new["status"], ["dead", "exited"]);
        for nothing in ["null", r#"{"status":null}"#] {
            assert!(filters(Some(nothing)).unwrap().is_empty());
        }
        let old = filters(Some(r#"{"status":["exited"]}"#)).unwrap();
        assert_eq!(old["status"], ["exited"]);
        assert!(filters(Some("[")).is_err());
        assert!(check_filters(&new, &["name"]).is_err());
    }

    #[tokio::test]
    async fn forms_come_before_the_query() {
        use tower::ServiceExt;
        async fn answer(params: Params, body: Bytes) -> String {
            let signals: Vec<_> = params.all("signal").collect();
            let all = (signals.join(","), params.get("t").unwrap_or_default());
            format!("{} {} {}", all.0, all.1, body.len())
        }
        let router = || {
            axum::Router::new()
                .route("/x", axum::routing::post(answer))
                .layer(axum::middleware::from_fn(read_form))
        };
        let long = "x".repeat(MAX_FORM + 1);
        let form = "application/x-www-form-urlencoded; charset=utf-8";
        for (kind, body, says) in [
            (form, "signal=SIG%41+B&t=1", "SIGA B,HUP 1 19"),
            ("application/x-tar", "signal=A", "HUP  8"),
            (form, long.as_str(), "HUP  1048577"),
            (form, "", "HUP  0"),
        ] {
            let request = Request::post("/x?signal=HUP")
                .header(header::CONTENT_TYPE, kind)
                .body(Body::from(body.to_owned()))
                .unwrap();
            let response = router().oneshot(request).await.unwrap();
            let said = axum::body::to_bytes(response.into_body(), 1000).await;
            assert_eq!(said.unwrap(), says);
        }
        assert_eq!(pairs(b"a&&b=c=d\n").len(), 2);
    }

    #[test]
    fn times() {
        assert_eq!(timestamp("12").unwrap(), Timestamp::new(12, 0).unwrap());
        assert_eq!(
            timestamp("12.5").unwrap(),
            Timestamp::new(12, 500_000_000).unwrap()
        );
        assert_eq!(
            timestamp("12.000000001").unwrap(),
            Timestamp::new(12, 1).unwrap()
        );
        assert_eq!(
            timestamp("1970-01-01T00:00:12Z").unwrap(),
            Timestamp::new(12, 0).unwrap()
        );
        assert!(timestamp("2020-01-01T00:00:00").is_ok());
        assert!(timestamp("2020-01-01").is_ok());
        assert!(timestamp("1h30m").unwrap() < Timestamp::now());
        for bad in ["x", "1x", "-", "1h30"] {
            assert!(timestamp(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn flags() {
        let params = Params {
            pairs: vec![
                ("a".to_owned(), "1".to_owned()),
                ("b".to_owned(), "False".to_owned()),
                ("c".to_owned(), String::new()),
            ],
        };
        assert!(params.flag("a"));
        assert!(!params.flag("b"));
        assert!(!params.flag("c"));
        assert!(params.flag_or("d", true));
    }
}
