//! What builds need of the store: which image a step led to. A step is remembered for as long
//! as its image is there.

use rusqlite::{OptionalExtension, params};

use super::ImageStore;
use crate::digest::{Digest, ImageId};
use crate::error::{ImageError, Result};

/// Made wherever it is missing: stores of earlier versions have none.
pub(super) const BUILD_STEPS: &str = "
CREATE TABLE IF NOT EXISTS build_steps (
    key TEXT PRIMARY KEY,
    image TEXT NOT NULL REFERENCES images(id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS build_steps_by_image ON build_steps(image);
";

impl ImageStore {
    /// Remembers that a step led to an image.
    pub fn remember_step(&self, key: &Digest, image: &ImageId) -> Result<()> {
        self.state()
            .connection
            .prepare_cached("INSERT OR REPLACE INTO build_steps VALUES (?1, ?2)")?
            .execute(params![key.hex(), image.to_string()])?;
        Ok(())
    }

    /// The image that a step led to.
    pub fn step(&self, key: &Digest) -> Result<Option<ImageId>> {
        let found: Option<String> = self
            .state()
            .connection
            .prepare_cached("SELECT image FROM build_steps WHERE key = ?1")?
            .query_row([key.hex()], |row| row.get(0))
            .optional()?;
        found
            .map(|id| {
                id.parse()
                    .map_err(|_| ImageError::Damaged(format!("image {id:?} of a build step")))
            })
            .transpose()
    }

    /// Forgets all steps; their images stay. Returns how many there were.
    pub fn forget_steps(&self) -> Result<usize> {
        let mut state = self.state();
        state.removing(|transaction| Ok(transaction.execute("DELETE FROM build_steps", [])?))
    }

    /// Forgets the steps that led to these images.
    pub fn forget_steps_to(&self, images: &[ImageId]) -> Result<usize> {
        let mut state = self.state();
        state.removing(|transaction| {
            let mut forgotten = 0;
            for image in images {
                forgotten += transaction
                    .prepare_cached("DELETE FROM build_steps WHERE image = ?1")?
                    .execute([image.to_string()])?;
            }
            Ok(forgotten)
        })
    }
}
