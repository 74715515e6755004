//! Who we are for a registry: credentials, challenges, tokens.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use reqwest::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Response, Url};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::error::{RegistryError, Result};
use crate::http::Server;

/// Longest `X-Registry-Auth`, bytes.
const MAX_HEADER: usize = 64 << 10;
/// Largest answer of a token server, bytes.
const MAX_TOKEN_BODY: usize = 1 << 20;
/// How long a token lives of which the server does not say so.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
const MAX_TOKENS: usize = 1000;

/// What a client sends in `X-Registry-Auth`, for one registry.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Credentials {
    /// The user.
    pub username: String,
    /// The password.
    pub password: String,
    /// Instead of both: `user:password` in base64.
    pub auth: String,
    /// The registry they are for.
    pub serveraddress: String,
    /// A token that buys other tokens.
    pub identitytoken: String,
    /// A token to be shown as it is.
    pub registrytoken: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Credentials")
            .field("username", &self.username)
            .field("serveraddress", &self.serveraddress)
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Decodes the header's value: JSON in URL-safe base64.
    ///
    /// # Errors
    /// [`RegistryError::InvalidArgument`].
    pub fn from_header(value: &str) -> Result<Self> {
        Self::decode(value).map(Self::normalized)
    }

    /// Decodes a value that holds any JSON, such as `X-Registry-Config`.
    ///
    /// # Errors
    /// [`RegistryError::InvalidArgument`].
    pub fn decode<T: serde::de::DeserializeOwned + Default>(value: &str) -> Result<T> {
        let bad = |why: &dyn std::fmt::Display| {
            RegistryError::InvalidArgument(format!("invalid X-Registry-Auth header: {why}"))
        };
        if value.is_empty() {
            return Ok(T::default());
        }
        if value.len() > MAX_HEADER {
            return Err(bad(&"too long"));
        }
        let bytes = decode_base64(value).ok_or_else(|| bad(&"not base64"))?;
        serde_json::from_slice(&bytes).map_err(|error| bad(&error))
    }

    /// With the user and password of `auth` in their places; without a line's end.
    #[must_use]
    pub fn normalized(mut self) -> Self {
        if self.username.is_empty()
            && let Some(bytes) = decode_base64(&self.auth)
            && let Ok(text) = String::from_utf8(bytes)
            && let Some((user, password)) = text.split_once(':')
        {
            user.clone_into(&mut self.username);
            password
                .trim_end_matches('\0')
                .clone_into(&mut self.password);
        }
        self.auth.clear();
        self
    }

    pub(crate) fn basic(&self) -> Option<String> {
        if self.username.is_empty() && self.password.is_empty() {
            return None;
        }
        let pair = format!("{}:{}", self.username, self.password);
        Some(format!("Basic {}", STANDARD.encode(pair)))
    }
}

/// What clients send in headers: either alphabet, with padding or without.
#[must_use]
pub fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim();
    URL_SAFE
        .decode(text)
        .or_else(|_| STANDARD.decode(text))
        .or_else(|_| URL_SAFE_NO_PAD.decode(text))
        .or_else(|_| STANDARD_NO_PAD.decode(text))
        .ok()
}

/// What a server wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: String },
}

impl Challenge {
    /// The strongest of an answer's challenges that we can meet.
    pub(crate) fn of(response: &Response) -> Option<Self> {
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        let found: Vec<Self> = headers
            .iter()
            .take(8)
            .filter_map(|value| Self::parse(value.to_str().ok()?))
            .collect();
        let bearer = found
            .iter()
            .find(|challenge| matches!(challenge, Self::Bearer { .. }));
        bearer.or(found.first()).cloned()
    }

    fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let parameters = parameters(rest);
        Some(Self::Bearer {
            realm: parameters.get("realm")?.clone(),
            service: parameters.get("service").cloned().unwrap_or_default(),
        })
    }
}

/// `name="value", name=value` of RFC 9110, section 11.2.
fn parameters(text: &str) -> HashMap<String, String> {
    let mut found = HashMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_start_matches([',', ' ', '\t']).trim();
        let mut value = String::new();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut characters = quoted.char_indices();
            let mut end = quoted.len();
            while let Some((at, character)) = characters.next() {
                match character {
                    '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    other => value.push(other),
                }
            }
            rest = &quoted[end..];
        } else {
            let end = after.find(',').unwrap_or(after.len());
            value.push_str(after[..end].trim());
            rest = &after[end..];
        }
        found.insert(name.to_ascii_lowercase(), value);
    }
    found
}

/// Meets one server's challenges, and keeps the tokens.
#[derive(Debug)]
pub(crate) struct Authorizer {
    credentials: Credentials,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    challenge: Option<Challenge>,
    tokens: HashMap<String, (HeaderValue, Instant)>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    refresh_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

/// A token, and what a login gets besides.
pub(crate) struct Token {
    pub(crate) value: HeaderValue,
    pub(crate) refresh: String,
    life: Duration,
}

impl Authorizer {
    pub(crate) fn new(credentials: Option<Credentials>) -> Self {
        Self {
            credentials: credentials.unwrap_or_default(),
            state: Mutex::default(),
        }
    }

    /// Takes note of what the server wants.
    pub(crate) async fn challenged(&self, response: &Response, scope: &str) {
        let mut state = self.state.lock().await;
        state.tokens.remove(scope);
        if let Some(challenge) = Challenge::of(response) {
            state.challenge = Some(challenge);
        }
    }

    /// Drops all tokens: one was not good any more.
    pub(crate) async fn forget(&self) {
        self.state.lock().await.tokens.clear();
    }

    /// The `Authorization` for a scope; none if the server wants none. Several that ask at
    /// the same time wait for one token.
    pub(crate) async fn header(
        &self,
        server: &Server,
        scope: &str,
        request: impl FnOnce() -> String,
    ) -> Result<Option<HeaderValue>> {
        let mut state = self.state.lock().await;
        match state.challenge.clone() {
            None => Ok(None),
            Some(Challenge::Basic) => match self.credentials.basic() {
                Some(value) => secret(&value).map(Some),
                None => Err(RegistryError::NoCredentials { request: request() }),
            },
            Some(Challenge::Bearer { .. }) if !self.credentials.registrytoken.is_empty() => {
                secret(&format!("Bearer {}", self.credentials.registrytoken)).map(Some)
            }
            Some(Challenge::Bearer { realm, service }) => {
                if let Some((token, expires)) = state.tokens.get(scope)
                    && *expires > Instant::now()
                {
                    return Ok(Some(token.clone()));
                }
                let token = self.token(server, &realm, &service, scope, false).await?;
                if state.tokens.len() >= MAX_TOKENS {
                    state.tokens.clear();
                }
                // Used up to a little before its end.
                let expires = Instant::now() + token.life.mul_f32(0.9);
                state
                    .tokens
                    .insert(scope.to_owned(), (token.value.clone(), expires));
                Ok(Some(token.value))
            }
        }
    }

    /// What a login is answered with: shows that the credentials are good.
    pub(crate) async fn login(&self, server: &Server, challenge: &Challenge) -> Result<Token> {
        match challenge {
            Challenge::Basic => {
                let value = self.credentials.basic().unwrap_or_default();
                Ok(Token {
                    value: secret(&value)?,
                    refresh: String::new(),
                    life: TOKEN_LIFE,
                })
            }
            Challenge::Bearer { realm, service } => {
                self.token(server, realm, service, "", true).await
            }
        }
    }

    async fn token(
        &self,
        server: &Server,
        realm: &str,
        service: &str,
        scope: &str,
        login: bool,
    ) -> Result<Token> {
        let mut url = Url::parse(realm)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"))
            .ok_or_else(|| {
                RegistryError::InvalidAnswer(format!("invalid token auth challenge realm: {realm}"))
            })?;
        if server.is_secure() && url.scheme() != "https" {
            return Err(RegistryError::InvalidAnswer(format!(
                "refused to send credentials to {realm}: the registry has TLS, its token server \
                 has not"
            )));
        }
        let scopes: Vec<&str> = scope.split(' ').filter(|scope| !scope.is_empty()).collect();
        let method;
        let request = if self.credentials.identitytoken.is_empty() {
            {
                let mut query = url.query_pairs_mut();
                if !service.is_empty() {
                    query.append_pair("service", service);
                }
                for scope in scopes {
                    query.append_pair("scope", scope);
                }
                if !self.credentials.username.is_empty() {
                    query.append_pair("account", &self.credentials.username);
                }
                if login {
                    query.append_pair("client_id", "docker");
                    query.append_pair("offline_token", "true");
                }
            }
            method = Method::GET;
            let request = server.request(method.clone(), url.clone());
            match self.credentials.basic() {
                Some(value) => request.header(AUTHORIZATION, secret(&value)?),
                None => request,
            }
        } else {
            let mut form = url.clone();
            form.set_query(None);
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("refresh_token", &self.credentials.identitytoken)
                .append_pair("service", service)
                .append_pair("client_id", "docker")
                .append_pair("scope", &scopes.join(" "));
            method = Method::POST;
            server
                .request(method.clone(), url.clone())
                .header("Content-Type", "application/x-www-form-urlencoded")
                .body(form.query().unwrap_or_default().to_owned())
        };
        let response = server.send(request, &method, &url).await?;
        if !response.status().is_success() {
            return Err(RegistryError::Refused(server.refusal(response).await));
        }
        let body = server.read_body(response, MAX_TOKEN_BODY, "token").await?;
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|error| {
            RegistryError::InvalidAnswer(format!("unable to decode token response: {error}"))
        })?;
        let token = if answer.access_token.is_empty() {
            answer.token
        } else {
            answer.access_token
        };
        if token.is_empty() {
            return Err(RegistryError::InvalidAnswer(
                "authorization server did not include a token in the response".to_owned(),
            ));
        }
        let life = answer.expires_in.map_or(TOKEN_LIFE, |seconds| {
            Duration::from_secs(seconds.min(86_400))
        });
        Ok(Token {
            value: secret(&format!("Bearer {token}"))?,
            refresh: answer.refresh_token,
            life,
        })
    }
}

fn secret(text: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text).map_err(|_| {
        RegistryError::InvalidArgument("credentials hold what no header may".to_owned())
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let bearer = Challenge::parse(
            r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="a,b""#,
        );
        assert_eq!(
            bearer,
            Some(Challenge::Bearer {
                realm: "https://auth.docker.io/token".to_owned(),
                service: "registry.docker.io".to_owned(),
            })
        );
        assert_eq!(
            Challenge::parse("Basic realm=\"x\""),
            Some(Challenge::Basic)
        );
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(Challenge::parse("Bearer service=\"x\""), None);
        let odd = parameters(r#"a="q\"x", b=plain ,c="unterminated"#);
        assert_eq!(odd["a"], "q\"x");
        assert_eq!(odd["b"], "plain");
        assert_eq!(odd["c"], "unterminated");
    }

    #[test]
    fn headers_of_clients() {
        let json = r#"{"username":"u","password":"p","serveraddress":"s"}"#;
        for encoded in [
            URL_SAFE.encode(json),
            STANDARD.encode(json),
            URL_SAFE_NO_PAD.encode(json),
        ] {
            let found = Credentials::from_header(&encoded).unwrap();
            assert_eq!((&*found.username, &*found.password), ("u", "p"));
        }
        let auth = format!(r#"{{"auth":"{}"}}"#, STANDARD.encode("user:pass:word"));
        let found = Credentials::from_header(&URL_SAFE.encode(auth)).unwrap();
        assert_eq!((&*found.username, &*found.password), ("user", "pass:word"));
        assert_eq!(
            Credentials::from_header("").unwrap(),
            Credentials::default()
        );
        assert!(Credentials::from_header("!!").is_err());
        assert!(Credentials::from_header(&URL_SAFE.encode("5")).is_err());
        assert!(!format!("{found:?}").contains("pass"));
    }
}
