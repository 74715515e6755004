//! Secrets of builds: how they come, and the files that commands see. They are neither kept in
//! the data root nor written to a log.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use axum::http::HeaderMap;
use bulkhead_build::{SecretFile, SecretRequest, Secrets};

use crate::error::{ApiError, ApiResult};

/// The header of `POST /build` that has them: base64url of a JSON object, whose values are the
/// secrets in base64 by their names. Never written anywhere.
pub const HEADER: &str = "x-bulkhead-build-secrets";
/// Most bytes of all secrets of a build; more would not fit into a header either.
const MAX_BYTES: usize = 128 << 10;

/// The secrets of a request.
///
/// # Errors
/// The header does not say what it should. The answer does not say what it says.
pub fn from_headers(headers: &HeaderMap) -> ApiResult<Secrets> {
    let Some(value) = headers.get(HEADER) else {
        return Ok(Secrets::default());
    };
    let refuse = || ApiError::bad_request(format!("invalid header {HEADER}"));
    let decode = |text: &str| bulkhead_registry::decode_base64(text).ok_or_else(refuse);
    let json = decode(value.to_str().map_err(|_| refuse())?)?;
    let texts: BTreeMap<String, String> = serde_json::from_slice(&json).map_err(|_| refuse())?;
    let mut secrets = BTreeMap::new();
    let mut bytes = 0;
    for (id, text) in texts {
        let secret = decode(&text)?;
        bytes += secret.len();
        if id.is_empty() {
            return Err(ApiError::bad_request("a secret has no id"));
        }
        secrets.insert(id, secret);
    }
    if bytes > MAX_BYTES {
        return Err(ApiError::bad_request(format!(
            "the secrets have {bytes} bytes: {MAX_BYTES} are the most"
        )));
    }
    Ok(Secrets(secrets))
}

/// Where the files are: below the exec root, which is memory on most hosts.
pub(super) fn directory(exec_root: &Path) -> PathBuf {
    exec_root.join("build")
}

/// Puts a secret into a file of its own.
pub(super) fn place(exec_root: &Path, request: &SecretRequest<'_>) -> io::Result<SecretFile> {
    let root = directory(exec_root);
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&root)?;
    let held = tempfile::tempdir_in(root)?;
    let path = held.path().join("secret");
    let mut file = File::create_new(&path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(request.content)?;
    let (uid, gid) = request.owner;
    chown(&path, Some(uid), Some(gid))?;
    file.set_permissions(fs::Permissions::from_mode(request.mode))?;
    Ok(SecretFile {
        path,
        held: Box::new(held),
    })
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    fn parse(header: &str) -> ApiResult<Secrets> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, header.parse().unwrap());
        from_headers(&headers)
    }

    fn encode(json: &str) -> String {
        base64::engine::general_purpose::URL_SAFE.encode(json)
    }

    #[test]
    fn the_header() {
        let secrets = parse(&encode(r#"{"one": "AP8=", "two": ""}"#)).unwrap();
        assert_eq!(secrets.0["one"], [0, 255]);
        assert!(secrets.0["two"].is_empty());
        assert_eq!(format!("{secrets:?}"), r#"{"one", "two"}"#);
        assert!(from_headers(&HeaderMap::new()).unwrap().0.is_empty());
        let long = base64::engine::general_purpose::STANDARD.encode(vec![7; MAX_BYTES + 1]);
        for wrong in [
            "hidden".to_owned(),
            encode("hidden"),
            encode(r#"["hidden"]"#),
            encode(r#"{"a": "hidden!"}"#),
            encode(r#"{"": ""}"#),
            encode(&format!(r#"{{"a": "{long}"}}"#)),
        ] {
            let error = parse(&wrong).unwrap_err();
            assert!(!error.message.contains("hidden"), "{}", error.message);
        }
    }

    #[test]
    fn a_file_goes_with_its_step() {
        let root = tempfile::tempdir().unwrap();
        let request = SecretRequest {
            content: b"x",
            mode: 0o440,
            owner: (
                rustix::process::getuid().as_raw(),
                rustix::process::getgid().as_raw(),
            ),
        };
        let secret = place(root.path(), &request).unwrap();
        assert_eq!(fs::read(&secret.path).unwrap(), b"x");
        let mode = fs::metadata(&secret.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o440);
        let path = secret.path.clone();
        drop(secret);
        assert!(!path.exists());
    }
}
