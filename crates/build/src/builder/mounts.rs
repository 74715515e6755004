//! `RUN --mount`: what a command is given besides its image's files.
//!
//! A bind is a copy in a directory of its own: contexts are never unpacked otherwise, an
//! image's files may not be changed, and what a command writes there is to be forgotten.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::Digest as _;

use super::copy::hash_file;
use super::stage::Stage;
use crate::dockerfile::{Mount, MountKind, RunOptions};
use crate::seam::{
    BuildError, CacheDirectory, CacheRequest, RunMount, RunMountKind, SecretFile, SecretRequest,
};
use crate::tree::{Kind, MountedTree, Node, SourceTree, clean, resolve};

/// A mount whose source has been found.
pub(super) struct Found<'m> {
    mount: &'m Mount,
    target: String,
    /// Of a bind.
    source: Option<Source>,
}

/// The mounts of a command, and what has to live as long as it runs.
pub(super) struct Placed {
    pub(super) mounts: Vec<RunMount>,
    #[expect(dead_code, reason = "held")]
    caches: BTreeMap<String, CacheDirectory>,
    #[expect(dead_code, reason = "held")]
    secrets: Vec<SecretFile>,
}

struct Source {
    tree: Arc<dyn SourceTree>,
    path: PathBuf,
    node: Node,
}

impl Stage<'_, '_> {
    /// Finds what is to be mounted, and feeds into `key` all that a cached step depends on.
    pub(super) fn find_mounts<'m>(
        &mut self,
        options: &'m RunOptions,
        key: &mut Vec<u8>,
    ) -> Result<Vec<Found<'m>>, BuildError> {
        let mut found = Vec::new();
        for mount in &options.mounts {
            let target = self.expand(&mount.target)?;
            let target = super::join(&self.config.working_dir, &target);
            let source = match mount.kind {
                MountKind::Bind => {
                    let source = self.bind_source(mount)?;
                    key.extend(digest(&source)?);
                    Some(source)
                }
                MountKind::Cache if mount.from.is_some() || !mount.source.is_empty() => {
                    return Err(BuildError::Invalid(
                        "RUN --mount=type=cache with from or source is not supported".to_owned(),
                    ));
                }
                MountKind::Secret if self.secret(mount, &target).is_some() => None,
                MountKind::Secret if mount.required => {
                    return Err(BuildError::Invalid(format!(
                        "secret {}: not found: give it with bulkhead build --secret (the docker \
                         command's classic builder sends none)",
                        secret_id(mount, &target)
                    )));
                }
                // One that may be missing is missing.
                MountKind::Secret => continue,
                MountKind::Cache | MountKind::Tmpfs => None,
            };
            found.push(Found {
                mount,
                target,
                source,
            });
        }
        Ok(found)
    }

    fn bind_source(&mut self, mount: &Mount) -> Result<Source, BuildError> {
        let tree: Arc<dyn SourceTree> = match &mount.from {
            Some(from) => {
                let from = self.expand(from)?;
                let image = self.build.source_image(&from, self.index)?;
                Arc::new(MountedTree::new(self.build.host.mount(&image)?))
            }
            None => Arc::clone(&self.build.options.context) as Arc<dyn SourceTree>,
        };
        let text = self.expand(&mount.source)?;
        let failed = |error| BuildError::files(format!("mount {text}"))(error);
        let path = resolve(&*tree, &clean(Path::new(&text))).map_err(failed)?;
        let node = tree.node(&path).map_err(failed)?;
        let node = match node {
            Some(node) => node,
            None if path.as_os_str().is_empty() => {
                Node::directory(0o755, 0, 0, crate::tree::Mtime::default())
            }
            None => {
                return Err(BuildError::Invalid(format!(
                    "RUN --mount=type=bind: {text:?} does not exist"
                )));
            }
        };
        Ok(Source { tree, path, node })
    }

    /// Puts in place what was found.
    pub(super) fn place_mounts(&self, found: &[Found<'_>]) -> Result<Placed, BuildError> {
        let host = self.build.host;
        let caches = self.caches(found)?;
        let mut secrets = Vec::new();
        let mut mounts = Vec::new();
        for Found {
            mount,
            target,
            source,
        } in found
        {
            let kind = match (mount.kind, source) {
                (MountKind::Tmpfs, _) => RunMountKind::Tmpfs(mount.size),
                (_, Some(source)) => {
                    let place = || -> io::Result<PathBuf> {
                        let place = host.directory()?.join("files");
                        copy(source, &place)?;
                        Ok(place)
                    };
                    let failed = BuildError::files(format!("mount at {target}"));
                    RunMountKind::Bind(place().map_err(failed)?)
                }
                (MountKind::Secret, _) => {
                    let content = self.secret(mount, target).unwrap_or_default();
                    let request = SecretRequest {
                        content,
                        mode: mount.mode.unwrap_or(0o400),
                        owner: (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0)),
                    };
                    let failed = BuildError::files(format!("mount at {target}"));
                    let secret = host.secret(&request).map_err(failed)?;
                    let path = secret.path.clone();
                    secrets.push(secret);
                    RunMountKind::Bind(path)
                }
                (_, None) => match caches.get(cache_id(mount, target)) {
                    Some(cache) => RunMountKind::Bind(cache.path.clone()),
                    None => continue,
                },
            };
            mounts.push(RunMount {
                target: target.clone(),
                read_only: mount.read_only,
                kind,
            });
        }
        Ok(Placed {
            mounts,
            caches,
            secrets,
        })
    }

    /// Where something is mounted that the image has nothing at: what is made there for that is
    /// no part of the layer.
    pub(super) fn made_mount_points(
        &mut self,
        mounts: &[RunMount],
    ) -> Result<Vec<String>, BuildError> {
        if mounts.is_empty() {
            return Ok(Vec::new());
        }
        let tree = self.tree()?;
        let mut made = Vec::new();
        for mount in mounts {
            let find = || -> io::Result<Option<PathBuf>> {
                let path = resolve(&*tree, &clean(Path::new(&mount.target)))?;
                Ok(tree.node(&path)?.is_none().then_some(path))
            };
            let found = find().map_err(BuildError::files(format!("mount at {}", mount.target)))?;
            made.extend(found.and_then(|path| path.into_os_string().into_string().ok()));
        }
        Ok(made)
    }

    fn secret(&self, mount: &Mount, target: &str) -> Option<&[u8]> {
        let secrets = &self.build.options.secrets.0;
        secrets.get(secret_id(mount, target)).map(Vec::as_slice)
    }

    /// The caches of a step by their names: each once, and all steps in the same order, so
    /// that no two wait for each other.
    fn caches(&self, found: &[Found<'_>]) -> Result<BTreeMap<String, CacheDirectory>, BuildError> {
        let mut requests: BTreeMap<&str, CacheRequest> = BTreeMap::new();
        for Found { mount, target, .. } in found {
            if mount.kind != MountKind::Cache {
                continue;
            }
            let id = cache_id(mount, target);
            requests.entry(id).or_insert_with(|| CacheRequest {
                id: id.to_owned(),
                sharing: mount.sharing,
                mode: mount.mode.unwrap_or(0o755),
                owner: (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0)),
            });
        }
        let mut caches = BTreeMap::new();
        for request in requests.into_values() {
            let directory = self.build.host.cache_directory(&request)?;
            caches.insert(request.id, directory);
        }
        Ok(caches)
    }
}

/// What a secret is called: the last name of its file, unless it has one of its own.
fn secret_id<'f>(mount: &'f Mount, target: &'f str) -> &'f str {
    let file = target.rsplit('/').next().unwrap_or_default();
    mount.id.as_deref().unwrap_or(file)
}

fn cache_id<'f>(mount: &'f Mount, target: &'f str) -> &'f str {
    mount.id.as_deref().unwrap_or(target)
}

/// All paths of a source in order, parents first, each relative to the source.
fn walk(
    source: &Source,
    mut visit: impl FnMut(&Path, &Path, &Node) -> io::Result<()>,
) -> io::Result<()> {
    visit(Path::new(""), &source.path, &source.node)?;
    if !source.node.is_directory() {
        return Ok(());
    }
    let mut pending = vec![PathBuf::new()];
    while let Some(directory) = pending.pop() {
        for name in source.tree.children(&source.path.join(&directory))? {
            let shown = directory.join(name);
            let path = source.path.join(&shown);
            let Some(node) = source.tree.node(&path)? else {
                continue;
            };
            visit(&shown, &path, &node)?;
            if node.is_directory() {
                pending.push(shown);
            }
        }
    }
    Ok(())
}

fn digest(source: &Source) -> Result<[u8; 32], BuildError> {
    let mut hasher = sha2::Sha256::new();
    walk(source, |shown, path, node| {
        hash_file(&mut hasher, shown, node, &*source.tree, path).map_err(io::Error::other)
    })
    .map_err(BuildError::files(source.path.display().to_string()))?;
    Ok(hasher.finalize().into())
}

/// Copies a source to a place that nobody else writes to. Directories get their bits in the
/// end: they need not let anybody write.
fn copy(source: &Source, place: &Path) -> io::Result<()> {
    let mut directories = Vec::new();
    walk(source, |shown, path, node| {
        // An empty join would end with a slash, which names no file.
        let to = if shown.as_os_str().is_empty() {
            place.to_owned()
        } else {
            place.join(shown)
        };
        match &node.kind {
            Kind::Directory => {
                fs::create_dir(&to)?;
                directories.push((to, node.clone()));
            }
            Kind::File { .. } => {
                let mut file = File::create_new(&to)?;
                io::copy(&mut source.tree.open(path)?, &mut file)?;
                chown(&to, Some(node.uid), Some(node.gid))?;
                file.set_permissions(fs::Permissions::from_mode(node.mode))?;
                let seconds = u64::try_from(node.mtime.seconds).unwrap_or(0);
                let since = std::time::Duration::new(seconds, node.mtime.nanoseconds);
                // A time beyond what this host knows is left as it is.
                if let Some(time) = std::time::UNIX_EPOCH.checked_add(since) {
                    file.set_modified(time)?;
                }
            }
            Kind::Symlink(target) => {
                symlink(target, &to)?;
                lchown(&to, Some(node.uid), Some(node.gid))?;
            }
            // Strangers' devices are not made on the host; pipes are of no use in a copy.
            Kind::Fifo | Kind::CharacterDevice(..) | Kind::BlockDevice(..) => {}
        }
        Ok(())
    })?;
    for (path, node) in directories {
        chown(&path, Some(node.uid), Some(node.gid))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(node.mode))?;
    }
    Ok(())
}
