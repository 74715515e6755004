//! A volume as it is stored, and what may be asked of one.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{ApiError, ApiResult};

/// The only driver.
pub const DRIVER: &str = "local";
/// The label of a volume that nobody named.
pub const ANONYMOUS: &str = "com.docker.volume.anonymous";
/// Longest name: that of a directory.
const MAX_NAME: usize = 255;

/// A volume, as the store keeps it. Fields are only added, with defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its name; also that of its directory.
    pub name: String,
    /// When it was made.
    pub created: Timestamp,
    /// Its labels; `None` where none were given.
    #[serde(default)]
    pub labels: Option<BTreeMap<String, String>>,
    /// Options of the driver; `None` where none were given.
    #[serde(default)]
    pub options: Option<BTreeMap<String, String>>,
    /// Whether its removal has begun; the next start then goes on with it.
    #[serde(default)]
    pub removing: bool,
}

impl Volume {
    /// Whether nobody named it.
    pub fn is_anonymous(&self) -> bool {
        self.labels
            .as_ref()
            .is_some_and(|labels| labels.contains_key(ANONYMOUS))
    }

    /// Whether it has no options of the driver, and so is nothing but a directory of ours.
    pub fn is_plain(&self) -> bool {
        self.options.as_ref().is_none_or(BTreeMap::is_empty)
    }
}

/// What a volume is to be like.
#[derive(Debug, Clone, Default)]
pub struct VolumeRequest {
    /// `None` for a made-up name.
    pub name: Option<String>,
    /// Empty for the default.
    pub driver: String,
    /// Labels.
    pub labels: Option<BTreeMap<String, String>>,
    /// Options of the driver.
    pub options: Option<BTreeMap<String, String>>,
}

/// Checks a name.
///
/// # Errors
/// 400 with Docker's words.
pub fn check_name(name: &str) -> ApiResult<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if name.len() == 1 {
        return Err(ApiError::bad_request(
            "volume name is too short, names should be at least two alphanumeric characters",
        ));
    }
    if name.len() > MAX_NAME {
        return Err(ApiError::bad_request(format!(
            "volume name is too long: at most {MAX_NAME} characters are allowed"
        )));
    }
    let first = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    if first && name.bytes().all(plain) {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "create {name}: \"{name}\" includes invalid characters for a local volume name, only \
         \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use \
         absolute path"
    )))
}

/// Checks a driver's name, `what` being done with it.
///
/// # Errors
/// 404 with Docker's words.
pub fn check_driver(driver: &str, what: &str) -> ApiResult<()> {
    match driver {
        "" | DRIVER => Ok(()),
        other => Err(ApiError::not_found(format!(
            "{what}: error looking up volume plugin {other}: plugin \"{other}\" not found"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["ab", "a.b", "0_x-y"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["a", "", ".a", "-a", "a/b", "a b", "../x", "ä1"] {
            assert_eq!(check_name(bad).unwrap_err().status, 400, "{bad}");
        }
        assert!(check_name(&"a".repeat(256)).is_err());
        assert!(check_driver("local", "create x").is_ok());
        assert_eq!(check_driver("nfs", "create x").unwrap_err().status, 404);
    }
}
