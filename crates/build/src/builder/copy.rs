//! `COPY` and `ADD`: sources to a plan of a layer, by the rules of docker's classic builder.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::Digest as _;

use super::go;
use super::join;
use super::stage::{Layer, Outcome, Stage};
use crate::compression::is_archive;
use crate::dockerfile::CopySpec;
use crate::layer::{Content, Plan, Planned, content_digest, hash_node};
use crate::seam::BuildError;
use crate::tree::{
    ContextLimits, ContextTree, Kind, Mtime, Node, SourceTree, clean, glob, is_pattern, leaves,
    resolve,
};
use crate::words;

/// Bytes of a file that tell whether it is an archive.
const ARCHIVE_HEAD: u64 = 64 << 10;

/// Something to be copied.
struct Source {
    /// What it is called when it is put into a directory.
    name: PathBuf,
    tree: Arc<dyn SourceTree>,
    /// In the tree.
    path: PathBuf,
    node: Node,
    /// Whether `ADD` may unpack it.
    unpack: bool,
}

/// How owners and bits are changed on the way.
#[derive(Clone, Copy)]
struct Marks {
    /// Owner and group; `None` keeps those of the source.
    owner: Option<(u32, u32)>,
    mode: Option<u32>,
}

impl Marks {
    fn apply(&self, node: &mut Node) {
        if let Some((uid, gid)) = self.owner {
            (node.uid, node.gid) = (uid, gid);
        }
        if let Some(mode) = self.mode
            && !matches!(node.kind, Kind::Symlink(_))
        {
            node.mode = mode;
        }
    }

    fn owner_of_new(&self) -> (u32, u32) {
        self.owner.unwrap_or((0, 0))
    }
}

impl Stage<'_, '_> {
    pub(super) fn copy(&mut self, spec: &CopySpec, keyword: &str) -> Result<bool, BuildError> {
        self.copy_unnamed(spec, keyword)
            .map_err(|error| match error {
                BuildError::Invalid(why) => BuildError::Invalid(format!("{keyword} failed: {why}")),
                other => other,
            })
    }

    fn copy_unnamed(&mut self, spec: &CopySpec, keyword: &str) -> Result<bool, BuildError> {
        if spec.parents || !spec.exclude.is_empty() {
            return Err(BuildError::Invalid(
                "the flags --parents and --exclude are not supported".to_owned(),
            ));
        }
        let target = self.expand(&spec.target)?;
        let chown = match &spec.chown {
            Some(chown) => Some(self.expand(chown)?),
            None => None,
        };
        let marks = Marks {
            owner: match &chown {
                Some(chown) => Some(self.owner(chown)?),
                None if spec.from.is_some() => None,
                None => Some((0, 0)),
            },
            mode: match &spec.chmod {
                Some(chmod) => Some(parse_mode(&self.expand(chmod)?)?),
                None => None,
            },
        };
        let sources = self.sources(spec, keyword)?;
        if sources.is_empty() {
            return Err(BuildError::Invalid(
                "no source files were specified".to_owned(),
            ));
        }
        if sources.len() > 1 && !target.ends_with('/') {
            return Err(BuildError::Invalid(format!(
                "When using {keyword} with more than one source file, the destination must be a \
                 directory and end with a /"
            )));
        }
        let mut plan = Plan::default();
        let mut hashes = Vec::new();
        for source in &sources {
            let mut hasher = sha2::Sha256::new();
            self.plan_source(&mut plan, source, &target, marks, &mut hasher)?;
            let digest = bulkhead_image::Digest::from_bytes(hasher.finalize().into()).hex();
            let kind = if source.node.is_directory() {
                "dir"
            } else {
                "file"
            };
            hashes.push(format!("{kind}:{digest}"));
        }
        let hash = match &hashes[..] {
            [one] => one.clone(),
            many => format!(
                "multi:{}",
                bulkhead_image::Digest::of(many.join(",").as_bytes()).hex()
            ),
        };
        let shell = self.shell().join(" ");
        let chown = chown
            .map(|chown| format!("--chown={chown}"))
            .unwrap_or_default();
        let outcome = Outcome {
            created_by: format!("{shell} #(nop) {keyword} {chown}{hash} in {target} "),
            has_layer: true,
            key: Vec::new(),
        };
        self.finish(outcome, |stage| stage.layer_of(plan).map(Some))
    }

    /// Writes a planned layer to a file and gives it to be read.
    pub(super) fn layer_of(&self, plan: Plan) -> Result<Layer, BuildError> {
        let write = || -> io::Result<File> {
            let mut file = self.build.host.temporary()?;
            plan.write(
                io::BufWriter::with_capacity(256 << 10, &file),
                self.build.epoch,
            )?;
            file.seek(SeekFrom::Start(0))?;
            Ok(file)
        };
        let file = write().map_err(BuildError::files("write the layer"))?;
        Ok(Box::new(file))
    }

    /// Plans a directory and those above it: existing ones as they are in the image, new ones
    /// with this owner.
    pub(super) fn plan_directories(
        &mut self,
        plan: &mut Plan,
        path: &Path,
        owner: (u32, u32),
        last_too: bool,
    ) -> Result<(), BuildError> {
        let tree = self.tree()?;
        let now = self.now();
        let mut chain: Vec<&Path> = path
            .ancestors()
            .skip(usize::from(!last_too))
            .filter(|path| !path.as_os_str().is_empty())
            .collect();
        chain.reverse();
        for directory in chain {
            if plan
                .get(directory)
                .is_some_and(|planned| planned.node.is_directory())
            {
                continue;
            }
            let existing = tree
                .node(directory)
                .map_err(BuildError::files(directory.display().to_string()))?;
            let node = match existing {
                Some(node) if node.is_directory() => node,
                Some(_) if plan.get(directory).is_none() => {
                    return Err(BuildError::Invalid(format!(
                        "cannot copy into /{}: not a directory",
                        directory.display()
                    )));
                }
                _ => Node::directory(0o755, owner.0, owner.1, now),
            };
            plan.ensure_directory(directory, node);
        }
        Ok(())
    }

    fn plan_source(
        &mut self,
        plan: &mut Plan,
        source: &Source,
        target: &str,
        marks: Marks,
        hasher: &mut sha2::Sha256,
    ) -> Result<(), BuildError> {
        let tree = self.tree()?;
        let into = join(&self.config.working_dir, target);
        let mut into =
            resolve(&*tree, &clean(Path::new(&into))).map_err(BuildError::files(into.clone()))?;
        let owner = marks.owner_of_new();
        if source.node.is_directory() {
            self.plan_directories(plan, &into, owner, true)?;
            return self.plan_tree(plan, &source.tree, &source.path, &into, marks, hasher);
        }
        if source.unpack && self.looks_like_archive(source)? {
            let unpacked = self.unpack(source)?;
            self.plan_directories(plan, &into, owner, true)?;
            // Owners are those in the archive.
            let marks = Marks {
                owner: None,
                mode: None,
            };
            return self.plan_tree(plan, &unpacked, Path::new(""), &into, marks, hasher);
        }
        let existing = match plan.get(&into) {
            Some(planned) => Some(planned.node.clone()),
            None => tree
                .node(&into)
                .map_err(BuildError::files(into.display().to_string()))?,
        };
        let is_directory =
            into.as_os_str().is_empty() || existing.is_some_and(|node| node.is_directory());
        if target.ends_with('/') || is_directory {
            into.push(&source.name);
        }
        self.plan_directories(plan, &into, owner, false)?;
        let mut node = source.node.clone();
        marks.apply(&mut node);
        hash_file(
            hasher,
            Path::new(&source.name),
            &node,
            &*source.tree,
            &source.path,
        )?;
        let content = Content::Tree(Arc::clone(&source.tree), source.path.clone());
        plan.put(into, Planned { node, content })
            .map_err(BuildError::files("plan the layer"))
    }

    /// Plans all that is below a directory.
    fn plan_tree(
        &mut self,
        plan: &mut Plan,
        from: &Arc<dyn SourceTree>,
        root: &Path,
        into: &Path,
        marks: Marks,
        hasher: &mut sha2::Sha256,
    ) -> Result<(), BuildError> {
        let tree = self.tree()?;
        let mut pending = vec![(root.to_owned(), into.to_owned())];
        while let Some((directory, into)) = pending.pop() {
            let failed = |path: &Path| {
                let path = path.display().to_string();
                move |error| BuildError::files(path)(error)
            };
            let names = from.children(&directory).map_err(failed(&directory))?;
            for name in names {
                let path = directory.join(&name);
                let mut target = into.join(&name);
                let Some(mut node) = from.node(&path).map_err(failed(&path))? else {
                    continue;
                };
                if node.is_directory() && from.is_implied(&path) {
                    // It says nothing of its own, so what is there stays, a link too.
                    target = resolve(&*tree, &target).map_err(failed(&target))?;
                    self.plan_directories(plan, &target, marks.owner_of_new(), true)?;
                    pending.push((path, target));
                    continue;
                }
                marks.apply(&mut node);
                let shown = path.strip_prefix(root).unwrap_or(&path);
                hash_file(hasher, shown, &node, &**from, &path)?;
                if node.is_directory() {
                    pending.push((path.clone(), target.clone()));
                }
                let content = Content::Tree(Arc::clone(from), path);
                plan.put(target, Planned { node, content })
                    .map_err(BuildError::files("plan the layer"))?;
            }
        }
        Ok(())
    }

    fn looks_like_archive(&self, source: &Source) -> Result<bool, BuildError> {
        if !matches!(source.node.kind, Kind::File { .. }) {
            return Ok(false);
        }
        let mut head = Vec::new();
        source
            .tree
            .open(&source.path)
            .and_then(|content| content.take(ARCHIVE_HEAD).read_to_end(&mut head))
            .map_err(BuildError::files(source.path.display().to_string()))?;
        Ok(is_archive(&head))
    }

    fn unpack(&self, source: &Source) -> Result<Arc<dyn SourceTree>, BuildError> {
        let read = || -> io::Result<ContextTree> {
            let mut content = source.tree.open(&source.path)?;
            let spool = self.build.host.temporary()?;
            ContextTree::read(&mut *content, spool, ContextLimits::default())
                .map_err(io::Error::other)
        };
        let what = format!("unpack {}", source.path.display());
        Ok(Arc::new(read().map_err(BuildError::files(what))?))
    }

    fn sources(&mut self, spec: &CopySpec, keyword: &str) -> Result<Vec<Source>, BuildError> {
        let tree: Arc<dyn SourceTree> = match &spec.from {
            Some(from) => {
                let image = self.build.source_image(from, self.index)?;
                let root = self.build.host.mount(&image)?;
                Arc::new(crate::tree::MountedTree::new(root))
            }
            None => Arc::clone(&self.build.options.context) as Arc<dyn SourceTree>,
        };
        let mut heredocs = spec.heredocs.iter();
        let mut found = Vec::new();
        for text in &spec.sources {
            let is_heredoc = text
                .trim_start_matches(|c: char| c.is_ascii_digit())
                .starts_with("<<");
            if is_heredoc && let Some(heredoc) = heredocs.next() {
                let content = if heredoc.expand {
                    words::expand_heredoc(
                        &heredoc.content,
                        self.build.file.escape,
                        &self.variables(),
                    )
                    .map_err(BuildError::Invalid)?
                } else {
                    heredoc.content.clone()
                };
                let name = clean(Path::new(&heredoc.name));
                found.push(self.file_source(&name, &mut content.as_bytes(), 0o644, self.now())?);
                continue;
            }
            let text = self.expand(text)?;
            if keyword == "ADD" && is_git(&text) {
                return Err(BuildError::Invalid(format!(
                    "{text}: git repositories are not supported: clone it, and copy from there"
                )));
            }
            if keyword == "ADD" && is_remote(&text) {
                found.push(self.remote_source(&text, spec)?);
                continue;
            }
            if spec.checksum.is_some() {
                return Err(BuildError::Invalid(
                    "checksum can't be specified for non-HTTP(S) sources".to_owned(),
                ));
            }
            let pattern = Path::new(&text);
            if leaves(pattern) && spec.from.is_none() {
                return Err(BuildError::Invalid(format!(
                    "forbidden path outside the build context: {text} ()"
                )));
            }
            let failed = |error| BuildError::files(text.clone())(error);
            let paths = if is_pattern(OsStr::from_bytes(text.as_bytes())) {
                glob(&*tree, pattern).map_err(failed)?
            } else {
                vec![clean(pattern)]
            };
            for path in paths {
                let missing = || {
                    let shown = path.display();
                    BuildError::Invalid(match &spec.from {
                        Some(_) => format!("stat {shown}: file does not exist"),
                        None => format!(
                            "file not found in build context or excluded by .dockerignore: stat \
                             {shown}: file does not exist"
                        ),
                    })
                };
                let failed = |error| BuildError::files(text.clone())(error);
                let resolved = resolve(&*tree, &path).map_err(failed)?;
                let failed = |error| BuildError::files(text.clone())(error);
                let node = tree.node(&resolved).map_err(failed)?.ok_or_else(missing)?;
                found.push(Source {
                    name: path.file_name().map(PathBuf::from).unwrap_or_default(),
                    tree: Arc::clone(&tree),
                    path: resolved,
                    node,
                    unpack: keyword == "ADD",
                });
            }
        }
        Ok(found)
    }

    /// A file that is not in a tree yet.
    fn file_source(
        &self,
        name: &Path,
        content: &mut (dyn Read + Send),
        mode: u32,
        mtime: Mtime,
    ) -> Result<Source, BuildError> {
        let mut make = || -> io::Result<Source> {
            let spool = self.build.host.temporary()?;
            let tree: Arc<dyn SourceTree> = Arc::new(
                ContextTree::of_file(Some((name, content)), mode, mtime, spool)
                    .map_err(io::Error::other)?,
            );
            let node = tree
                .node(name)?
                .ok_or_else(|| io::Error::other("a file without a name"))?;
            Ok(Source {
                name: name.to_owned(),
                tree,
                path: name.to_owned(),
                node,
                unpack: false,
            })
        };
        make().map_err(BuildError::files(name.display().to_string()))
    }

    fn remote_source(&self, url: &str, spec: &CopySpec) -> Result<Source, BuildError> {
        let path = url
            .split_once("://")
            .map_or(url, |(_, rest)| rest)
            .split(['?', '#'])
            .next()
            .unwrap_or_default();
        let name = match path.split_once('/') {
            Some((_, path)) => path.rsplit('/').next().unwrap_or_default(),
            None => "",
        };
        if name.is_empty() {
            return Err(BuildError::Invalid(format!(
                "cannot determine filename from url: {url}"
            )));
        }
        let mut fetched = self.build.host.fetch(url)?;
        let mtime = Mtime {
            seconds: fetched.modified.unwrap_or_else(|| self.now().seconds),
            nanoseconds: 0,
        };
        let source = self.file_source(Path::new(name), &mut *fetched.content, 0o600, mtime)?;
        if let Some(checksum) = &spec.checksum {
            let wanted: bulkhead_image::Digest =
                self.expand(checksum)?
                    .parse()
                    .map_err(|error: bulkhead_image::DigestError| {
                        BuildError::Invalid(error.to_string())
                    })?;
            let digest = source.tree.digest(&source.path).unwrap_or_default();
            let digest = bulkhead_image::Digest::from_bytes(digest);
            if digest != wanted {
                return Err(BuildError::Invalid(format!(
                    "digest mismatch {digest}: {wanted}"
                )));
            }
        }
        Ok(source)
    }

    /// `--chown`: numbers, or names of the image's own files.
    fn owner(&mut self, chown: &str) -> Result<(u32, u32), BuildError> {
        let mut parts = chown.split(':');
        let user = parts.next().unwrap_or_default();
        let group = parts.next();
        if parts.next().is_some() || user.is_empty() {
            return Err(BuildError::Invalid(format!(
                "invalid chown string provided: {chown}"
            )));
        }
        let group = group.filter(|group| !group.is_empty()).unwrap_or(user);
        let uid = self.look_up(user, "etc/passwd").ok_or_else(|| {
            BuildError::Invalid(format!("can't find uid for user {user}: no such user"))
        })?;
        let gid = self.look_up(group, "etc/group").ok_or_else(|| {
            BuildError::Invalid(format!("can't find gid for group {group}: no such group"))
        })?;
        Ok((uid, gid))
    }

    fn look_up(&mut self, name: &str, file: &str) -> Option<u32> {
        if let Ok(number) = name.parse() {
            return Some(number);
        }
        /// Largest file of users that is read.
        const LIMIT: u64 = 16 << 20;
        let tree = self.tree().ok()?;
        let path = resolve(&*tree, Path::new(file)).ok()?;
        let mut text = Vec::new();
        match tree.node(&path).ok()??.kind {
            Kind::File { .. } => {}
            _ => return None,
        }
        tree.open(&path)
            .ok()?
            .take(LIMIT)
            .read_to_end(&mut text)
            .ok()?;
        String::from_utf8_lossy(&text).lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
        })
    }
}

pub(super) fn hash_file(
    hasher: &mut sha2::Sha256,
    shown: &Path,
    node: &Node,
    tree: &dyn SourceTree,
    path: &Path,
) -> Result<(), BuildError> {
    let digest = match node.kind {
        Kind::File { .. } => match tree.digest(path) {
            Some(digest) => Some(digest),
            None => Some(
                tree.open(path)
                    .and_then(content_digest)
                    .map_err(BuildError::files(path.display().to_string()))?,
            ),
        },
        _ => None,
    };
    hash_node(hasher, shown, node, digest);
    Ok(())
}

/// Whether BuildKit would clone it.
fn is_git(text: &str) -> bool {
    let repository = text.split('#').next().unwrap_or_default();
    ["git://", "ssh://", "git@"]
        .iter()
        .any(|start| text.starts_with(start))
        || (is_remote(text) && repository.ends_with(".git"))
}

fn is_remote(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// Octal permission bits.
fn parse_mode(text: &str) -> Result<u32, BuildError> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| {
            BuildError::Invalid(format!(
                "invalid chmod parameter: {}: it should be octal string and between 0 and 07777",
                go::quote(text)
            ))
        })
}
