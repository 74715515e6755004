//! Where the worker's binary is.

use std::path::{Path, PathBuf};

use bulkhead_isolation::{ErrorKind, IsolationError};

const NAME: &str = "vmwp";

/// Beside our own executable, else in PATH.
///
/// # Errors
/// [`ErrorKind::Unavailable`] when it is nowhere.
pub fn find() -> Result<PathBuf, IsolationError> {
    let own = std::env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent).map(Path::to_owned);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places: Vec<PathBuf> = beside
        .into_iter()
        .chain(std::env::split_paths(&path))
        .collect();
    places
        .iter()
        .map(|place| place.join(NAME))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            IsolationError::new(
                ErrorKind::Unavailable,
                format!(
                    "the VM worker '{NAME}' was found neither beside this executable nor in PATH; \
                     install it there"
                ),
            )
        })
}
