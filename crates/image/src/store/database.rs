//! The metadata file: which images there are, what they are called, which layers they have.
//! Knows SQL, no files but its own.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::digest::{Digest, ImageId};
use crate::error::{ImageError, Result};
use crate::reference::Reference;

const SCHEMA: &str = "
CREATE TABLE images (
    id TEXT PRIMARY KEY,
    parent TEXT,
    last_tagged TEXT
) STRICT;
CREATE TABLE layers (
    diff_id TEXT PRIMARY KEY,
    tar_bytes INTEGER NOT NULL,
    content_bytes INTEGER NOT NULL,
    image_bytes INTEGER NOT NULL,
    -- The compressed blob as received; NULL: a compressed copy of the tar that we made.
    blob TEXT
) STRICT;
CREATE TABLE image_layers (
    image TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    diff_id TEXT NOT NULL REFERENCES layers(diff_id),
    PRIMARY KEY (image, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX image_layers_by_layer ON image_layers(diff_id);
-- Documents other than the config that an image keeps: its manifest.
CREATE TABLE image_documents (
    image TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE,
    digest TEXT NOT NULL,
    PRIMARY KEY (image, digest)
) STRICT, WITHOUT ROWID;
-- Full references: name:tag and name@digest.
CREATE TABLE names (
    name TEXT PRIMARY KEY,
    image TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX names_by_image ON names(image);
PRAGMA user_version = 1;
";

/// Which blob a layer is in a registry's repository: learnt by pulls and pushes, so that a push
/// can ask for it instead of sending it. Only ever a hint.
const LAYER_SOURCES: &str = "
CREATE TABLE IF NOT EXISTS layer_sources (
    diff_id TEXT NOT NULL REFERENCES layers(diff_id) ON DELETE CASCADE,
    blob TEXT NOT NULL,
    size INTEGER NOT NULL,
    -- Registry and path: docker.io/library/busybox.
    repository TEXT NOT NULL,
    PRIMARY KEY (diff_id, repository)
) STRICT, WITHOUT ROWID;
";
/// Layers whose files were found to be wrong and could not be made again: they are as good as
/// not there until they come again.
const DAMAGED_LAYERS: &str = "
CREATE TABLE IF NOT EXISTS damaged_layers (
    diff_id TEXT PRIMARY KEY REFERENCES layers(diff_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
";
/// Most of them for one layer; docker keeps as many.
const MAX_SOURCES: i64 = 50;

/// A layer as stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerRow {
    pub(crate) diff_id: Digest,
    pub(crate) tar_bytes: u64,
    pub(crate) content_bytes: u64,
    pub(crate) image_bytes: u64,
    pub(crate) blob: Option<Digest>,
}

/// An image as stored; its config is a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageRow {
    pub(crate) id: ImageId,
    pub(crate) parent: Option<ImageId>,
    pub(crate) last_tagged: Option<String>,
}

/// Opens the file, or makes it.
pub(crate) fn open(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)?;
    // WAL with FULL syncs each commit: what is acknowledged survives a crash.
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match version {
        0 => connection.execute_batch(&format!("BEGIN; {SCHEMA} COMMIT;"))?,
        1 => {}
        newer => {
            return Err(ImageError::Damaged(format!(
                "metadata version {newer} is of a newer program"
            )));
        }
    }
    connection.execute_batch(LAYER_SOURCES)?;
    connection.execute_batch(super::steps::BUILD_STEPS)?;
    connection.execute_batch(DAMAGED_LAYERS)?;
    Ok(connection)
}

fn digest(text: &str) -> Result<Digest> {
    text.parse()
        .map_err(|_| ImageError::Damaged(format!("digest {text:?} in the metadata")))
}

fn reference(text: &str) -> Result<Reference> {
    Reference::parse(text)
        .map_err(|_| ImageError::Damaged(format!("reference {text:?} in the metadata")))
}

fn count(value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_| ImageError::Damaged("negative size".to_owned()))
}

fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Runs a query whose rows are single texts.
fn texts(connection: &Connection, sql: &str, parameter: Option<&str>) -> Result<Vec<String>> {
    let mut statement = connection.prepare_cached(sql)?;
    let rows = match parameter {
        Some(parameter) => statement
            .query_map([parameter], |row| row.get(0))?
            .collect(),
        None => statement
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>(),
    };
    Ok(rows?)
}

pub(crate) fn image_ids(connection: &Connection) -> Result<Vec<ImageId>> {
    let ids = texts(connection, "SELECT id FROM images ORDER BY id", None)?;
    ids.iter().map(|id| Ok(ImageId(digest(id)?))).collect()
}

/// IDs that start with these hex digits, at most two of them.
pub(crate) fn ids_with_prefix(connection: &Connection, prefix: &str) -> Result<Vec<ImageId>> {
    let sql = "SELECT id FROM images WHERE id >= ?1 AND id < ?1 || 'g' LIMIT 2";
    let ids = texts(connection, sql, Some(&format!("sha256:{prefix}")))?;
    ids.iter().map(|id| Ok(ImageId(digest(id)?))).collect()
}

pub(crate) fn image(connection: &Connection, id: &ImageId) -> Result<Option<ImageRow>> {
    let row: Option<(Option<String>, Option<String>)> = connection
        .prepare_cached("SELECT parent, last_tagged FROM images WHERE id = ?1")?
        .query_row([id.to_string()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    row.map(|(parent, last_tagged)| {
        let parent = parent
            .map(|parent| digest(&parent))
            .transpose()?
            .map(ImageId);
        Ok(ImageRow {
            id: *id,
            parent,
            last_tagged,
        })
    })
    .transpose()
}

pub(crate) fn has_children(connection: &Connection, id: &ImageId) -> Result<bool> {
    let sql = "SELECT id FROM images WHERE parent = ?1 LIMIT 1";
    Ok(!texts(connection, sql, Some(&id.to_string()))?.is_empty())
}

pub(crate) fn named(connection: &Connection, name: &str) -> Result<Option<ImageId>> {
    let ids = texts(
        connection,
        "SELECT image FROM names WHERE name = ?1",
        Some(name),
    )?;
    ids.first().map(|id| Ok(ImageId(digest(id)?))).transpose()
}

/// An image's names, sorted.
pub(crate) fn names(connection: &Connection, id: &ImageId) -> Result<Vec<Reference>> {
    let sql = "SELECT name FROM names WHERE image = ?1 ORDER BY name";
    texts(connection, sql, Some(&id.to_string()))?
        .iter()
        .map(|name| reference(name))
        .collect()
}

const LAYER_COLUMNS: &str = "diff_id, tar_bytes, content_bytes, image_bytes, blob";

type RawLayer = (String, i64, i64, i64, Option<String>);

fn layer_rows(
    connection: &Connection,
    sql: &str,
    parameter: Option<&str>,
) -> Result<Vec<LayerRow>> {
    let mut statement = connection.prepare_cached(sql)?;
    let raw = |row: &rusqlite::Row<'_>| {
        Ok((
            row.get(0)?,
            row.get(1)?,
            row.get(2)?,
            row.get(3)?,
            row.get(4)?,
        ))
    };
    let rows: rusqlite::Result<Vec<RawLayer>> = match parameter {
        Some(parameter) => statement.query_map([parameter], raw)?.collect(),
        None => statement.query_map([], raw)?.collect(),
    };
    rows?
        .into_iter()
        .map(|(diff_id, tar, content, image, blob)| {
            Ok(LayerRow {
                diff_id: digest(&diff_id)?,
                tar_bytes: count(tar)?,
                content_bytes: count(content)?,
                image_bytes: count(image)?,
                blob: blob.map(|blob| digest(&blob)).transpose()?,
            })
        })
        .collect()
}

/// An image's layers, the lowest first.
pub(crate) fn image_layers(connection: &Connection, id: &ImageId) -> Result<Vec<LayerRow>> {
    let sql = format!(
        "SELECT {LAYER_COLUMNS} FROM image_layers JOIN layers USING (diff_id) \
         WHERE image = ?1 ORDER BY position"
    );
    layer_rows(connection, &sql, Some(&id.to_string()))
}

pub(crate) fn layer(connection: &Connection, diff_id: &Digest) -> Result<Option<LayerRow>> {
    let sql = format!("SELECT {LAYER_COLUMNS} FROM layers WHERE diff_id = ?1");
    Ok(layer_rows(connection, &sql, Some(&diff_id.to_string()))?.pop())
}

pub(crate) fn layers(connection: &Connection) -> Result<Vec<LayerRow>> {
    layer_rows(
        connection,
        &format!("SELECT {LAYER_COLUMNS} FROM layers"),
        None,
    )
}

/// Layers that no image has.
pub(crate) fn unused_layers(connection: &Connection) -> Result<Vec<LayerRow>> {
    let sql = format!(
        "SELECT {LAYER_COLUMNS} FROM layers \
         WHERE diff_id NOT IN (SELECT diff_id FROM image_layers)"
    );
    layer_rows(connection, &sql, None)
}

/// Whether any image or layer needs the blob.
pub(crate) fn is_blob_used(connection: &Connection, blob: &Digest) -> Result<bool> {
    let sql = "SELECT id FROM images WHERE id = ?1 \
               UNION ALL SELECT digest FROM image_documents WHERE digest = ?1 \
               UNION ALL SELECT blob FROM layers WHERE blob = ?1 LIMIT 1";
    Ok(!texts(connection, sql, Some(&blob.to_string()))?.is_empty())
}

/// An image's documents other than its config.
pub(crate) fn documents(connection: &Connection, id: &ImageId) -> Result<Vec<Digest>> {
    let sql = "SELECT digest FROM image_documents WHERE image = ?1";
    texts(connection, sql, Some(&id.to_string()))?
        .iter()
        .map(|text| digest(text))
        .collect()
}

pub(crate) fn insert_layer(transaction: &Transaction<'_>, layer: &LayerRow) -> Result<()> {
    transaction
        .prepare_cached("INSERT OR IGNORE INTO layers VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            layer.diff_id.to_string(),
            integer(layer.tar_bytes),
            integer(layer.content_bytes),
            integer(layer.image_bytes),
            layer.blob.map(|blob| blob.to_string()),
        ])?;
    Ok(())
}

/// Adds an image, or only its documents if it is there.
pub(crate) fn insert_image(
    transaction: &Transaction<'_>,
    id: &ImageId,
    parent: Option<&ImageId>,
    layers: &[Digest],
    documents: &[Digest],
) -> Result<()> {
    let id = id.to_string();
    let added = transaction
        .prepare_cached("INSERT OR IGNORE INTO images(id, parent) VALUES (?1, ?2)")?
        .execute(params![id, parent.map(|parent| parent.to_string())])?;
    if added == 1 {
        let mut statement =
            transaction.prepare_cached("INSERT INTO image_layers VALUES (?1, ?2, ?3)")?;
        for (position, diff_id) in layers.iter().enumerate() {
            let position = integer(position as u64);
            statement.execute(params![id, position, diff_id.to_string()])?;
        }
    }
    let mut statement =
        transaction.prepare_cached("INSERT OR IGNORE INTO image_documents VALUES (?1, ?2)")?;
    for document in documents {
        statement.execute(params![id, document.to_string()])?;
    }
    Ok(())
}

/// Sets a name; returns the other image that had it.
pub(crate) fn set_name(
    transaction: &Transaction<'_>,
    name: &Reference,
    id: &ImageId,
    now: &str,
) -> Result<Option<ImageId>> {
    let previous = named(transaction, &name.to_string())?;
    transaction
        .prepare_cached("INSERT OR REPLACE INTO names VALUES (?1, ?2)")?
        .execute(params![name.to_string(), id.to_string()])?;
    transaction
        .prepare_cached("UPDATE images SET last_tagged = ?2 WHERE id = ?1")?
        .execute(params![id.to_string(), now])?;
    Ok(previous.filter(|previous| previous != id))
}

pub(crate) fn remove_name(transaction: &Transaction<'_>, name: &Reference) -> Result<()> {
    transaction
        .prepare_cached("DELETE FROM names WHERE name = ?1")?
        .execute([name.to_string()])?;
    Ok(())
}

pub(crate) fn remove_image(transaction: &Transaction<'_>, id: &ImageId) -> Result<()> {
    transaction
        .prepare_cached("DELETE FROM images WHERE id = ?1")?
        .execute([id.to_string()])?;
    Ok(())
}

pub(crate) fn remove_layer(transaction: &Transaction<'_>, diff_id: &Digest) -> Result<()> {
    transaction
        .prepare_cached("DELETE FROM layers WHERE diff_id = ?1")?
        .execute([diff_id.to_string()])?;
    Ok(())
}

/// Whether a layer is there and good.
pub(crate) fn is_sound(connection: &Connection, diff_id: &Digest) -> Result<bool> {
    let sql = "SELECT diff_id FROM layers WHERE diff_id = ?1 \
               AND diff_id NOT IN (SELECT diff_id FROM damaged_layers)";
    Ok(!texts(connection, sql, Some(&diff_id.to_string()))?.is_empty())
}

/// Marks a layer as damaged, or as good again.
pub(crate) fn set_damaged(connection: &Connection, diff_id: &Digest, damaged: bool) -> Result<()> {
    let sql = if damaged {
        "INSERT OR IGNORE INTO damaged_layers VALUES (?1)"
    } else {
        "DELETE FROM damaged_layers WHERE diff_id = ?1"
    };
    connection
        .prepare_cached(sql)?
        .execute([diff_id.to_string()])?;
    Ok(())
}

/// Puts a layer's row in the place of the one it has.
pub(crate) fn replace_layer(transaction: &Transaction<'_>, layer: &LayerRow) -> Result<()> {
    transaction
        .prepare_cached(
            "UPDATE layers SET tar_bytes = ?2, content_bytes = ?3, image_bytes = ?4, blob = ?5 \
             WHERE diff_id = ?1",
        )?
        .execute(params![
            layer.diff_id.to_string(),
            integer(layer.tar_bytes),
            integer(layer.content_bytes),
            integer(layer.image_bytes),
            layer.blob.map(|blob| blob.to_string()),
        ])?;
    set_damaged(transaction, &layer.diff_id, false)
}

/// For each image the bytes of those of its layers that other images have too.
pub(crate) fn shared_sizes(connection: &Connection) -> Result<Vec<(ImageId, u64)>> {
    let sql = "SELECT image, sum(content_bytes) FROM image_layers JOIN layers USING (diff_id) \
               WHERE diff_id IN (SELECT diff_id FROM image_layers GROUP BY diff_id \
               HAVING count(DISTINCT image) > 1) GROUP BY image";
    let mut statement = connection.prepare_cached(sql)?;
    let rows: rusqlite::Result<Vec<(String, i64)>> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect();
    rows?
        .into_iter()
        .map(|(id, size)| Ok((ImageId(digest(&id)?), count(size)?)))
        .collect()
}

/// The images that have a layer.
pub(crate) fn images_of_layer(connection: &Connection, diff_id: &Digest) -> Result<Vec<ImageId>> {
    let sql = "SELECT DISTINCT image FROM image_layers WHERE diff_id = ?1 ORDER BY image";
    let ids = texts(connection, sql, Some(&diff_id.to_string()))?;
    ids.iter().map(|id| Ok(ImageId(digest(id)?))).collect()
}

/// Forgets a document of an image.
pub(crate) fn remove_document(
    connection: &Connection,
    image: &ImageId,
    document: &Digest,
) -> Result<()> {
    connection
        .prepare_cached("DELETE FROM image_documents WHERE image = ?1 AND digest = ?2")?
        .execute([image.to_string(), document.to_string()])?;
    Ok(())
}

/// A layer's blob in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSource {
    /// Digest of the bytes as the registry has them.
    pub blob: Digest,
    /// How many they are.
    pub size: u64,
    /// Registry and path: `docker.io/library/busybox`.
    pub repository: String,
}

/// Remembers a source of a layer, if the layer is there.
pub(crate) fn insert_source(
    connection: &Connection,
    diff_id: &Digest,
    source: &LayerSource,
) -> Result<()> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO layer_sources SELECT ?1, ?2, ?3, ?4 \
             WHERE EXISTS (SELECT 1 FROM layers WHERE diff_id = ?1) \
             AND (SELECT count(*) FROM layer_sources WHERE diff_id = ?1) < ?5",
        )?
        .execute(params![
            diff_id.to_string(),
            source.blob.to_string(),
            integer(source.size),
            source.repository,
            MAX_SOURCES,
        ])?;
    Ok(())
}

pub(crate) fn sources(connection: &Connection, diff_id: &Digest) -> Result<Vec<LayerSource>> {
    let mut statement = connection.prepare_cached(
        "SELECT blob, size, repository FROM layer_sources WHERE diff_id = ?1 ORDER BY repository",
    )?;
    let rows: rusqlite::Result<Vec<(String, i64, String)>> = statement
        .query_map([diff_id.to_string()], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })?
        .collect();
    rows?
        .into_iter()
        .map(|(blob, size, repository)| {
            Ok(LayerSource {
                blob: digest(&blob)?,
                size: count(size)?,
                repository,
            })
        })
        .collect()
}
