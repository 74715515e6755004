//! Room for removals on a full disk: a file that is given up so that a database can note what
//! goes, and made again when there is room.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, ErrorCode, Transaction};

/// Enough for what one removal writes into a database's log.
const BYTES: usize = 512 << 10;

/// The reserve of one database. Whoever changes the database calls [`Reserve::keep`] now and
/// then, since nobody tells when a full disk has room again.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// The reserve at `path`, made if it fits.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        let reserve = Self { path };
        reserve.keep();
        reserve
    }

    /// Makes the file, unless it is there or does not fit.
    pub fn keep(&self) {
        if self.path.exists() {
            return;
        }
        // Under another name until it is whole, so that a crash leaves none that is too small.
        let part = self.path.with_extension("part");
        let made = File::create(&part)
            .and_then(|mut file| {
                file.write_all(&[0; BYTES])?;
                file.sync_data()
            })
            .and_then(|()| fs::rename(&part, &self.path));
        if made.is_err() {
            let _ = fs::remove_file(&part);
        }
    }

    /// Runs `work`, which removes things, in a transaction. If the disk is full, the reserve is
    /// given up and `work` runs once more.
    ///
    /// # Errors
    /// What `work` says, and the database.
    pub fn removing<T, E: MayBeFull>(
        &self,
        connection: &mut Connection,
        work: impl Fn(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        match transact(connection, &work) {
            Err(error) if error.is_disk_full() => {
                let _ = fs::remove_file(&self.path);
                // The log's file keeps its length when it begins anew: room that needs none of
                // the disk's, if the reserve was gone already. What is not copied yet stays.
                let _ = connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(()));
                transact(connection, &work)
            }
            done => done,
        }
    }
}

/// An error that can say that the disk is full.
pub trait MayBeFull: From<rusqlite::Error> {
    /// Whether there was no room on the disk.
    fn is_disk_full(&self) -> bool;
}

impl MayBeFull for rusqlite::Error {
    fn is_disk_full(&self) -> bool {
        self.sqlite_error_code() == Some(ErrorCode::DiskFull)
    }
}

fn transact<T, E: From<rusqlite::Error>>(
    connection: &mut Connection,
    work: impl Fn(&Transaction<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let transaction = connection.transaction()?;
    let done = work(&transaction)?;
    transaction.commit()?;
    Ok(done)
}

/// The reserve beside a database.
#[must_use]
pub fn beside(database: &Path) -> Reserve {
    Reserve::new(database.with_file_name("reserve"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removal_that_meets_a_full_disk_runs_once_more_without_the_reserve() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("reserve");
        let reserve = Reserve::new(path.clone());
        assert_eq!(
            fs::metadata(&path).expect("the reserve").len(),
            BYTES as u64
        );
        let mut connection = Connection::open_in_memory().expect("a database");
        let removed: rusqlite::Result<&str> = reserve.removing(&mut connection, |_| {
            if path.exists() {
                let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
                Err(rusqlite::Error::SqliteFailure(full, None))
            } else {
                Ok("gone")
            }
        });
        assert_eq!(removed.expect("a second run"), "gone");
        reserve.keep();
        assert!(path.exists());
        let failed: rusqlite::Result<()> = reserve.removing(&mut connection, |_| {
            Err(rusqlite::Error::QueryReturnedNoRows)
        });
        assert!(
            failed.is_err() && path.exists(),
            "only a full disk costs the reserve"
        );
    }
}
