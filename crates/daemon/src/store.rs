//! What survives the daemon: one SQLite database (`state.db` in the data root, WAL,
//! `synchronous=FULL`: a commit is on disk when the call returns) with one row per container,
//! network and volume.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bulkhead_image::reserve::{self, Reserve};
use rusqlite::{Connection, params};

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database couldn't be opened.
    #[error("open database {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rusqlite::Error,
    },
    /// A statement failed.
    #[error("database")]
    Statement(#[from] rusqlite::Error),
    /// A database of a later version.
    #[error(
        "database {path} has schema {found}, this daemon knows up to {SCHEMA}: use a newer bulkhead"
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
    },
    /// The thread that works on the database died.
    #[error("database thread ended")]
    Lost,
}

/// Version of the schema.
const SCHEMA: i64 = 1;

/// The database; clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    database: Arc<Mutex<Database>>,
}

#[derive(Debug)]
struct Database {
    connection: Connection,
    reserve: Reserve,
}

impl Store {
    /// Opens or makes the database.
    ///
    /// # Errors
    /// That it is damaged, of a later version, or not accessible.
    pub fn open(data_root: &Path) -> Result<Self, StoreError> {
        let path = data_root.join("state.db");
        let open = |source| StoreError::Open {
            path: path.clone(),
            source,
        };
        let connection = Connection::open(&path).map_err(open)?;
        connection
            .execute_batch("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;")
            .map_err(open)?;
        let found: i64 = connection
            .query_row("PRAGMA user_version", [], |row| row.get(0))
            .map_err(open)?;
        if found > SCHEMA {
            return Err(StoreError::TooNew { path, found });
        }
        connection
            .execute_batch(&format!(
                "CREATE TABLE IF NOT EXISTS containers (
                     id TEXT PRIMARY KEY,
                     name TEXT NOT NULL UNIQUE,
                     record TEXT NOT NULL
                 ) WITHOUT ROWID;
                 CREATE TABLE IF NOT EXISTS networks (
                     id TEXT PRIMARY KEY,
                     name TEXT NOT NULL UNIQUE,
                     record TEXT NOT NULL
                 ) WITHOUT ROWID;
                 CREATE TABLE IF NOT EXISTS volumes (
                     name TEXT PRIMARY KEY,
                     record TEXT NOT NULL
                 ) WITHOUT ROWID;
                 PRAGMA user_version={SCHEMA};"
            ))
            .map_err(open)?;
        Ok(Self {
            database: Arc::new(Mutex::new(Database {
                connection,
                reserve: reserve::beside(&path),
            })),
        })
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.on_database(|database| {
            database.reserve.keep();
            work(&database.connection)
        })
        .await
    }

    /// Deletes the row that has this key, even on a full disk: a deletion is a write, too.
    async fn delete(&self, statement: &'static str, key: String) -> Result<(), StoreError> {
        self.on_database(move |database| {
            let Database {
                connection,
                reserve,
            } = database;
            reserve.removing(connection, |transaction| {
                transaction.prepare_cached(statement)?.execute([&key])
            })
        })
        .await
        .map(|_| ())
    }

    /// Takes room for deletions again, after what a deletion stood for is gone, too.
    pub async fn keep_reserve(&self) {
        let kept = self.on_database(|database| {
            database.reserve.keep();
            Ok(())
        });
        // It cannot fail but for the thread, which the next call will tell.
        let _ = kept.await;
    }

    async fn on_database<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Database) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = Arc::clone(&self.database);
        tokio::task::spawn_blocking(move || {
            let mut database = database.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut database)
        })
        .await
        .map_err(|_| StoreError::Lost)?
        .map_err(StoreError::from)
    }

    /// Every container: ID and record.
    ///
    /// # Errors
    /// What the database says.
    pub async fn containers(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.with(|connection| {
            connection
                .prepare("SELECT id, record FROM containers")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
        .await
    }

    /// Writes a container's record, the old one is replaced.
    ///
    /// # Errors
    /// What the database says.
    pub async fn put_container(
        &self,
        id: String,
        name: String,
        record: String,
    ) -> Result<(), StoreError> {
        self.with(move |connection| {
            connection
                .prepare_cached(
                    "INSERT INTO containers (id, name, record) VALUES (?1, ?2, ?3)
                     ON CONFLICT (id) DO UPDATE SET name = ?2, record = ?3",
                )?
                .execute(params![id, name, record])
                .map(|_| ())
        })
        .await
    }

    /// Forgets a container.
    ///
    /// # Errors
    /// What the database says.
    pub async fn delete_container(&self, id: String) -> Result<(), StoreError> {
        self.delete("DELETE FROM containers WHERE id = ?1", id)
            .await
    }

    /// Every volume: name and record.
    ///
    /// # Errors
    /// What the database says.
    pub async fn volumes(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.with(|connection| {
            connection
                .prepare("SELECT name, record FROM volumes")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
        .await
    }

    /// Writes a volume's record, the old one is replaced.
    ///
    /// # Errors
    /// What the database says.
    pub async fn put_volume(&self, name: String, record: String) -> Result<(), StoreError> {
        self.with(move |connection| {
            connection
                .prepare_cached(
                    "INSERT INTO volumes (name, record) VALUES (?1, ?2)
                     ON CONFLICT (name) DO UPDATE SET record = ?2",
                )?
                .execute(params![name, record])
                .map(|_| ())
        })
        .await
    }

    /// Forgets a volume.
    ///
    /// # Errors
    /// What the database says.
    pub async fn delete_volume(&self, name: String) -> Result<(), StoreError> {
        self.delete("DELETE FROM volumes WHERE name = ?1", name)
            .await
    }

    /// Every network: ID and record.
    ///
    /// # Errors
    /// What the database says.
    pub async fn networks(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.with(|connection| {
            connection
                .prepare("SELECT id, record FROM networks")?
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
        .await
    }

    /// Writes a network's record, the old one is replaced.
    ///
    /// # Errors
    /// What the database says.
    pub async fn put_network(
        &self,
        id: String,
        name: String,
        record: String,
    ) -> Result<(), StoreError> {
        self.with(move |connection| {
            connection
                .prepare_cached(
                    "INSERT INTO networks (id, name, record) VALUES (?1, ?2, ?3)
                     ON CONFLICT (id) DO UPDATE SET name = ?2, record = ?3",
                )?
                .execute(params![id, name, record])
                .map(|_| ())
        })
        .await
    }

    /// Forgets a network.
    ///
    /// # Errors
    /// What the database says.
    pub async fn delete_network(&self, id: String) -> Result<(), StoreError> {
        self.delete("DELETE FROM networks WHERE id = ?1", id).await
    }
}
