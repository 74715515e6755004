//! Tags and removal, by docker's rules and in docker's order.

use super::database;
use super::files::StoredFile;
use super::query::{extend_chain, known, resolve};
use super::{ImageStore, State};
use crate::digest::{Digest, ImageId};
use crate::error::{ImageError, Result};
use crate::model::{ImageUse, Removal, RemovalReport};
use crate::reference::Reference;

/// Which of the images that an image was made from go with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parents {
    None,
    Unnamed,
}

impl ImageStore {
    /// Gives the image a tag (`:latest` if there is none), taking it from another image that
    /// has it. Returns that other image.
    ///
    /// # Errors
    /// [`ImageError::NotFound`]; [`ImageError::InvalidInput`] if `reference` has a digest.
    pub fn tag(&self, id: &ImageId, reference: &Reference) -> Result<Option<ImageId>> {
        if reference.digest().is_some() {
            let why = "refusing to create a tag with a digest reference";
            return Err(ImageError::InvalidInput(why.to_owned()));
        }
        let name = reference.clone().with_default_tag();
        let mut state = self.state();
        known(&state, id)?;
        let now = jiff::Timestamp::now().to_string();
        let transaction = state.connection.transaction()?;
        let replaced = database::set_name(&transaction, &name, id, &now)?;
        transaction.commit()?;
        Ok(replaced)
    }

    /// `docker rmi`: a name untags, and deletes with the last tag; an ID deletes, if at most
    /// one repository names it or `force` is given. `uses` are all containers, running or
    /// not, of which those of this image count.
    ///
    /// # Errors
    /// [`ImageError::NotFound`]; [`ImageError::DeleteConflict`] and
    /// [`ImageError::UntagConflict`] with docker's words.
    pub fn remove(&self, text: &str, force: bool, uses: &[ImageUse]) -> Result<RemovalReport> {
        self.remove_with(text, force, uses, Parents::Unnamed)
    }

    /// `docker rmi --no-prune`: as [`ImageStore::remove`], but the steps of its making stay.
    ///
    /// # Errors
    /// As [`ImageStore::remove`].
    pub fn remove_alone(
        &self,
        text: &str,
        force: bool,
        uses: &[ImageUse],
    ) -> Result<RemovalReport> {
        self.remove_with(text, force, uses, Parents::None)
    }

    fn remove_with(
        &self,
        text: &str,
        force: bool,
        uses: &[ImageUse],
        parents: Parents,
    ) -> Result<RemovalReport> {
        let mut state = self.state();
        let removed = self.remove_from(&mut state, text, force, uses, parents);
        state.reserve.keep();
        removed
    }

    fn remove_from(
        &self,
        state: &mut State,
        text: &str,
        force: bool,
        uses: &[ImageUse],
        parents: Parents,
    ) -> Result<RemovalReport> {
        let image = resolve(state, text)?;
        let all_uses = uses;
        let uses: Vec<&ImageUse> = uses.iter().filter(|usage| usage.image == image).collect();
        let mut items = Vec::new();
        let names = database::names(&state.connection, &image)?;
        let by_id = image.to_string().starts_with(text) || image.hex().starts_with(text);
        let mut untag = Vec::new();
        let mut quiet = false;
        if by_id {
            if is_single_reference(&names) {
                check_conflict(state, &image, &uses, force, false)?;
                untag = names.clone();
            }
        } else {
            if let Some(usage) = uses.first()
                && !force
                && is_single_reference(&names)
            {
                return Err(ImageError::UntagConflict {
                    reference: text.to_owned(),
                    container: usage.container.chars().take(12).collect(),
                    image,
                });
            }
            let reference = Reference::parse(text)?.with_default_tag();
            let removed = match reference.digest() {
                Some(digest) => reference.with_digest(digest),
                None => reference,
            };
            let same_repository = |name: &&Reference| name.name() == removed.name();
            let others: Vec<Reference> = names
                .iter()
                .filter(|name| **name != removed)
                .cloned()
                .collect();
            untag.push(removed.clone());
            // With a repository's last tag go its digests.
            let keeps_tag = others
                .iter()
                .filter(same_repository)
                .any(|name| name.tag().is_some());
            if removed.digest().is_none() && !keeps_tag {
                untag.extend(others.iter().filter(same_repository).cloned());
            }
            quiet = true;
        }
        let remaining: Vec<Reference> = names
            .iter()
            .filter(|name| !untag.contains(name))
            .cloned()
            .collect();
        // A manifest is kept for its digest: it goes with the last name that has it.
        let unnamed: Vec<Digest> = untag
            .iter()
            .filter_map(Reference::digest)
            .filter(|digest| !remaining.iter().any(|name| name.digest() == Some(*digest)))
            .collect();
        state.removing(|transaction| {
            for name in &untag {
                database::remove_name(transaction, name)?;
            }
            for digest in &unnamed {
                database::remove_document(transaction, &image, digest)?;
            }
            Ok(())
        })?;
        items.extend(untag.into_iter().map(Removal::Untagged));
        for digest in unnamed {
            if !database::is_blob_used(&state.connection, &digest)? {
                self.files.remove(StoredFile::Blob(digest))?;
            }
        }
        if quiet && !remaining.is_empty() {
            return Ok(RemovalReport { image, items });
        }
        if let Err(conflict) = check_conflict(state, &image, &uses, force, !remaining.is_empty()) {
            // Having untagged, docker keeps an image that something needs without a word.
            return if quiet {
                Ok(RemovalReport { image, items })
            } else {
                Err(conflict)
            };
        }
        items.extend(remaining.into_iter().map(Removal::Untagged));
        let mut parent = known(state, &image)?.parent;
        self.delete(state, &image, &mut items)?;
        // With an image go the steps of its making that nothing else needs.
        while let Some(step) = parent.filter(|_| parents == Parents::Unnamed) {
            let Some(row) = database::image(&state.connection, &step)? else {
                break;
            };
            let needed = !database::names(&state.connection, &step)?.is_empty()
                || database::has_children(&state.connection, &step)?
                || all_uses.iter().any(|usage| usage.image == step);
            if needed {
                break;
            }
            self.delete(state, &step, &mut items)?;
            parent = row.parent;
        }
        Ok(RemovalReport { image, items })
    }

    fn delete(&self, state: &mut State, image: &ImageId, items: &mut Vec<Removal>) -> Result<()> {
        let mut chain = None;
        let mut layers: Vec<(Digest, Digest)> = Vec::new();
        for row in database::image_layers(&state.connection, image)? {
            let chain_id = extend_chain(chain, row.diff_id);
            chain = Some(chain_id);
            layers.push((row.diff_id, chain_id));
        }
        let mut blobs = database::documents(&state.connection, image)?;
        blobs.push(image.0);
        state.removing(|transaction| database::remove_image(transaction, image))?;
        items.push(Removal::DeletedImage(*image));
        for blob in blobs {
            if !database::is_blob_used(&state.connection, &blob)? {
                self.files.remove(StoredFile::Blob(blob))?;
            }
        }
        let gone = self.collect_unused(state)?;
        // The topmost first. A layer may occur twice in one image.
        for (diff_id, chain_id) in layers.iter().rev() {
            if gone.contains(diff_id) {
                items.push(Removal::DeletedLayer(*chain_id));
            }
        }
        Ok(())
    }

    /// Removes the layers that no image has and no [`super::Ingest`] holds. References are
    /// counted by asking, never stored.
    pub(crate) fn collect_unused(&self, state: &mut State) -> Result<Vec<Digest>> {
        let mut rows = database::unused_layers(&state.connection)?;
        rows.retain(|row| !state.pins.contains_key(&row.diff_id));
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        state.removing(|transaction| {
            rows.iter()
                .try_for_each(|row| database::remove_layer(transaction, &row.diff_id))
        })?;
        for row in &rows {
            if !state.leased.contains_key(&row.diff_id) {
                self.files.remove(StoredFile::LayerImage(row.diff_id))?;
            }
            match row.blob {
                Some(blob) if database::is_blob_used(&state.connection, &blob)? => {}
                Some(blob) if state.leased.values().any(|row| row.blob == Some(blob)) => {}
                _ => self.files.remove(row.tar_file())?,
            }
        }
        Ok(rows.iter().map(|row| row.diff_id).collect())
    }
}

/// Whether all names are of one repository with at most one tag; false if there are none.
fn is_single_reference(names: &[Reference]) -> bool {
    let mut tags = names.iter().filter(|name| name.tag().is_some());
    let (first, second) = (tags.next(), tags.next());
    let Some(single) = first.or(names.first()) else {
        return false;
    };
    second.is_none() && names.iter().all(|name| name.name() == single.name())
}

/// Docker's order: children, running containers, names, stopped containers.
fn check_conflict(
    state: &State,
    image: &ImageId,
    uses: &[&ImageUse],
    force: bool,
    is_named: bool,
) -> Result<()> {
    let conflict = |hard, reason: String| {
        Err(ImageError::DeleteConflict {
            image: *image,
            hard,
            reason,
        })
    };
    let short = |usage: &ImageUse| usage.container.chars().take(12).collect::<String>();
    if database::has_children(&state.connection, image)? {
        return conflict(true, "image has dependent child images".to_owned());
    }
    if let Some(usage) = uses.iter().find(|usage| usage.running) {
        let container = short(usage);
        return conflict(
            true,
            format!("image is being used by running container {container}"),
        );
    }
    if force {
        return Ok(());
    }
    if is_named {
        return conflict(
            false,
            "image is referenced in multiple repositories".to_owned(),
        );
    }
    if let Some(usage) = uses.first() {
        let container = short(usage);
        return conflict(
            false,
            format!("image is being used by stopped container {container}"),
        );
    }
    Ok(())
}
