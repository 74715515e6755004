//! The client's configuration file, `config.json`, shared with the Docker CLI: detach keys,
//! default formats, registry credentials.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

/// What the client reads of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigFile {
    /// The key sequence that detaches from a container.
    pub detach_keys: String,
    /// The default of `ps --format`.
    pub ps_format: String,
    /// The default of `images --format`.
    pub images_format: String,
    /// The default of `stats --format`.
    pub stats_format: String,
    /// Credentials by registry.
    pub auths: BTreeMap<String, AuthEntry>,
    /// The program suffix that keeps credentials (`docker-credential-<store>`).
    pub creds_store: String,
    /// The same, for single registries.
    pub cred_helpers: BTreeMap<String, String>,
}

/// One registry's credentials in the file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase", default)]
pub struct AuthEntry {
    /// `user:password` in base64.
    pub auth: String,
    /// A token instead of a password.
    pub identitytoken: String,
}

/// The directory of the configuration file: `--config`, `DOCKER_CONFIG`, or `~/.docker`.
pub fn directory(option: Option<&str>) -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty());
    match option {
        Some(dir) => PathBuf::from(dir),
        None => match set("DOCKER_CONFIG") {
            Some(dir) => PathBuf::from(dir),
            None => PathBuf::from(set("HOME").unwrap_or_else(|| "/".into())).join(".docker"),
        },
    }
}

impl ConfigFile {
    /// Reads the file; a missing one is empty, and so is one that is not readable, with a
    /// warning.
    pub fn load(dir: &Path) -> Self {
        let path = dir.join("config.json");
        match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(config) => config,
                Err(error) => {
                    crate::output::complain(format!(
                        "WARNING: Error parsing config file ({}): {error}",
                        path.display()
                    ));
                    Self::default()
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                crate::output::complain(format!(
                    "WARNING: Error loading config file: {}: {error}",
                    path.display()
                ));
                Self::default()
            }
        }
    }
}

/// Rewrites the file with `edit` applied to its content, keeping what it does not know.
/// The new file replaces the old one in one step and is readable by its owner only.
pub fn rewrite(
    dir: &Path,
    edit: impl FnOnce(&mut serde_json::Map<String, Value>),
) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    let path = dir.join("config.json");
    let mut content: serde_json::Map<String, Value> = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => serde_json::Map::new(),
        Err(error) => return Err(error),
    };
    edit(&mut content);
    std::fs::create_dir_all(dir)?;
    let temporary = dir.join(format!("config.json.{}", std::process::id()));
    let written = (|| {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec_pretty(&content)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}
