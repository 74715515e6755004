//! A stage in progress: the image so far, its configuration, and how a step becomes an image.

use std::io::{self, Read};
use std::sync::Arc;

use bulkhead_image::{ContainerConfig, Digest, HistoryEntry, ImageConfig, Platform, RootFs};
use sha2::Digest as _;

use super::Build;
use super::arguments::Arguments;
use super::voice::Voice;
use crate::seam::{Base, BuildError, NewStep};
use crate::tree::{MountedTree, SourceTree};
use crate::words;

/// Where commands are looked for in images that do not say.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// See the module's documentation.
pub(super) struct Stage<'b, 'a> {
    pub(super) build: &'b Build<'a>,
    /// Its place among the stages.
    pub(super) index: usize,
    pub(super) voice: Voice<'b>,
    pub(super) arguments: Arguments,
    pub(super) base: Option<Base>,
    pub(super) config: ContainerConfig,
    pub(super) author: Option<String>,
    /// Whether this stage set `CMD`.
    pub(super) command_set: bool,
    tree: Option<(Option<Digest>, Arc<dyn SourceTree>)>,
}

/// A step that is to become an image, unless the cache has it.
pub(super) struct Outcome {
    /// What the history says.
    pub(super) created_by: String,
    /// Whether it makes a layer.
    pub(super) has_layer: bool,
    /// What decides whether two such steps are the same, besides the above.
    pub(super) key: Vec<u8>,
}

/// A layer as a stream.
pub(super) type Layer = Box<dyn Read + Send>;

impl<'b, 'a> Stage<'b, 'a> {
    pub(super) fn new(
        build: &'b Build<'a>,
        index: usize,
        voice: Voice<'b>,
        base: Option<Base>,
    ) -> Self {
        let mut config = base
            .as_ref()
            .map(|base| base.document.config.clone())
            .unwrap_or_default();
        if !config.env.iter().any(|entry| entry.starts_with("PATH=")) {
            config.env.push(DEFAULT_PATH.to_owned());
        }
        let author = base.as_ref().and_then(|base| base.document.author.clone());
        Self {
            build,
            index,
            voice,
            arguments: build.arguments.clone(),
            base,
            config,
            author,
            command_set: false,
            tree: None,
        }
    }

    pub(super) fn into_base(self) -> Option<Base> {
        self.base
    }

    pub(super) fn take_triggers(&mut self) -> Vec<String> {
        self.config.on_build.take().unwrap_or_default()
    }

    /// The line behind each step.
    pub(super) fn say_image(&self) {
        let id = self.base.as_ref().map(|base| base.id.short());
        self.voice
            .say(&format!(" ---> {}\n", id.unwrap_or_default()));
    }

    /// The shell of shell forms.
    pub(super) fn shell(&self) -> Vec<String> {
        match &self.config.shell {
            Some(shell) if !shell.is_empty() => shell.clone(),
            _ => vec!["/bin/sh".to_owned(), "-c".to_owned()],
        }
    }

    /// What substitution sees: the environment, then arguments that it does not set.
    pub(super) fn variables(&self) -> Vec<String> {
        let (recorded, _) = self.arguments.for_commands(&self.config.env);
        // The last one counts.
        let mut variables = recorded;
        variables.extend(self.config.env.iter().cloned());
        variables
    }

    /// Substitutes in a text.
    pub(super) fn expand(&self, text: &str) -> Result<String, BuildError> {
        words::expand(text, self.build.file.escape, &self.variables()).map_err(|why| {
            BuildError::Invalid(format!(
                "failed to process {}: {why}",
                super::go::quote(text)
            ))
        })
    }

    /// The files of the image so far.
    pub(super) fn tree(&mut self) -> Result<Arc<dyn SourceTree>, BuildError> {
        let id = self.base.as_ref().map(|base| base.id.0);
        if let Some((of, tree)) = &self.tree
            && *of == id
        {
            return Ok(Arc::clone(tree));
        }
        let tree: Arc<dyn SourceTree> = match &self.base {
            Some(base) if !base.document.rootfs.diff_ids.is_empty() => {
                Arc::new(MountedTree::new(self.build.host.mount(&base.id)?))
            }
            _ => Arc::new(Nothing),
        };
        self.tree = Some((id, Arc::clone(&tree)));
        Ok(tree)
    }

    /// A step that only changes the configuration.
    pub(super) fn metadata(&mut self, text: &str) -> Result<bool, BuildError> {
        let shell = self.shell().join(" ");
        let outcome = Outcome {
            created_by: format!("{shell} #(nop)  {text}"),
            has_layer: false,
            key: Vec::new(),
        };
        self.finish(outcome, |_| Ok(None))
    }

    /// Takes a step from the cache, or makes it. Says whether it was in the cache.
    pub(super) fn finish(
        &mut self,
        outcome: Outcome,
        make: impl FnOnce(&mut Self) -> Result<Option<Layer>, BuildError>,
    ) -> Result<bool, BuildError> {
        let key = self.cache_key(&outcome)?;
        if self.take_cached(&outcome, &key)? {
            return Ok(true);
        }
        let layer = make(self)?;
        self.store(&outcome, key, layer)?;
        Ok(false)
    }

    fn cache_key(&self, outcome: &Outcome) -> Result<Digest, BuildError> {
        let config = serde_json::to_vec(&self.config)
            .map_err(|error| BuildError::Invalid(error.to_string()))?;
        let mut hasher = sha2::Sha256::new();
        let mut field = |bytes: &[u8]| {
            hasher.update((bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        let parent = self.base.as_ref().map(|base| base.id.to_string());
        field(parent.as_deref().unwrap_or("scratch").as_bytes());
        field(outcome.created_by.as_bytes());
        field(&[u8::from(outcome.has_layer)]);
        field(&outcome.key);
        field(&config);
        field(self.author.as_deref().unwrap_or_default().as_bytes());
        field(
            self.build
                .epoch
                .map(|epoch| epoch.to_string())
                .unwrap_or_default()
                .as_bytes(),
        );
        Ok(Digest::from_bytes(hasher.finalize().into()))
    }

    /// Looks the step up; if it is there, it is done.
    fn take_cached(&mut self, outcome: &Outcome, key: &Digest) -> Result<bool, BuildError> {
        if self.build.options.no_cache {
            return Ok(false);
        }
        let Some(found) = self.find_cached(outcome, key)? else {
            return Ok(false);
        };
        self.voice.say(" ---> Using cache\n");
        self.base = Some(found);
        Ok(true)
    }

    /// The step in the cache. With `--cache-from`, that is what those images are made of, and
    /// nothing else: whoever names them wants what they have.
    fn find_cached(&self, outcome: &Outcome, key: &Digest) -> Result<Option<Base>, BuildError> {
        let host = self.build.host;
        if self.build.options.cache_from.is_empty() {
            return Ok(host.cached(key)?);
        }
        let Some(document) = self.found_in_cache_sources(outcome) else {
            return Ok(None);
        };
        let known = host.cached(key)?;
        if known
            .as_ref()
            .is_some_and(|known| known.document == document)
        {
            return Ok(known);
        }
        Ok(Some(host.store(NewStep {
            document,
            parent: self.base.as_ref().map(|base| base.id),
            layer: None,
            cache_key: *key,
        })?))
    }

    /// The step as an image of `--cache-from` has it: one whose history goes on like this.
    fn found_in_cache_sources(&self, outcome: &Outcome) -> Option<ImageConfig> {
        let so_far = self.document();
        let (steps, layers) = (so_far.history.len(), so_far.rootfs.diff_ids.len());
        for source in &self.build.cache_sources {
            let other = &source.document;
            let Some(next) = other.history.get(steps) else {
                continue;
            };
            let goes_on = other.history[..steps] == so_far.history[..]
                && other.rootfs.diff_ids.get(..layers) == Some(&so_far.rootfs.diff_ids[..])
                && next.created_by.as_deref() == Some(&outcome.created_by)
                && (next.empty_layer || outcome.has_layer);
            if !goes_on {
                continue;
            }
            let mut document = so_far.clone();
            if !next.empty_layer {
                document
                    .rootfs
                    .diff_ids
                    .push(*other.rootfs.diff_ids.get(layers)?);
            }
            document.created.clone_from(&next.created);
            document.history.push(next.clone());
            return Some(document);
        }
        None
    }

    /// The config document of the image so far, with this stage's configuration.
    fn document(&self) -> ImageConfig {
        let platform = Platform::host();
        let mut document = match &self.base {
            Some(base) => base.document.clone(),
            None => ImageConfig {
                architecture: platform.architecture,
                os: platform.os,
                rootfs: RootFs {
                    kind: "layers".to_owned(),
                    diff_ids: Vec::new(),
                },
                ..ImageConfig::default()
            },
        };
        document.config = self.config.clone();
        document.author.clone_from(&self.author);
        document.comment = None;
        // What tells of the container that the base was made in.
        document.extra.clear();
        document
    }

    fn store(
        &mut self,
        outcome: &Outcome,
        cache_key: Digest,
        layer: Option<Layer>,
    ) -> Result<(), BuildError> {
        let created = match self.build.epoch {
            Some(epoch) => jiff::Timestamp::from_second(epoch)
                .map_err(|error| BuildError::Invalid(error.to_string()))?,
            None => jiff::Timestamp::now(),
        };
        let created = Some(created.to_string());
        let mut document = self.document();
        document.created.clone_from(&created);
        document.history.push(HistoryEntry {
            created,
            created_by: Some(outcome.created_by.clone()),
            author: self.author.clone(),
            comment: None,
            empty_layer: layer.is_none(),
        });
        let mut layer = layer;
        let base = self.build.host.store(NewStep {
            document,
            parent: self.base.as_ref().map(|base| base.id),
            layer: layer
                .as_mut()
                .map(|layer| &mut **layer as &mut (dyn Read + Send)),
            cache_key,
        })?;
        self.base = Some(base);
        Ok(())
    }
}

/// The tree of an image without layers.
struct Nothing;

impl SourceTree for Nothing {
    fn node(&self, _: &std::path::Path) -> io::Result<Option<crate::tree::Node>> {
        Ok(None)
    }

    fn children(&self, _: &std::path::Path) -> io::Result<Vec<std::ffi::OsString>> {
        Ok(Vec::new())
    }

    fn open(&self, _: &std::path::Path) -> io::Result<Box<dyn Read + Send>> {
        Err(io::ErrorKind::NotFound.into())
    }
}
