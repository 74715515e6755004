//! The record of how a container ended, for a daemon that was not there.

use std::io;
use std::path::Path;

use bulkhead_isolation::ExitStatus;

/// How init ended; `exit.json` in the bundle.
pub type ExitRecord = ExitStatus;

/// Writes the record atomically: temporary name, fsync, rename.
///
/// # Errors
/// What the file system says.
pub fn write(path: &Path, record: &ExitRecord) -> io::Result<()> {
    use std::io::Write;
    let temporary = path.with_extension("json.new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

/// Reads the record; `None` when there is none.
///
/// # Errors
/// What the file system says, or that the record is damaged.
pub fn read(path: &Path) -> io::Result<Option<ExitRecord>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
