//! Files in and out of containers: `cp`, `export`, and `commit`.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::future::LocalBoxFuture;
use hyper::header::HeaderName;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::client::{BodyStream, ClientError, Request};
use crate::command::{Arity, Command, Ctx};
use crate::error::{CliError, CliResult};
use crate::flags::{Flag, Parsed};
use crate::format::units;
use crate::image::reference::Reference;
use crate::output::{complain, emit_line};
use crate::terminal;

const CP_FLAGS: &[Flag] = &[
    Flag::switch("archive", "Keep owners and groups").short('a'),
    Flag::switch("follow-link", "Copy what a link in SRC_PATH points to").short('L'),
    Flag::switch("quiet", "Do not report what was copied").short('q'),
];

/// The `cp` command.
pub const CP: Command = Command::new(
    "cp",
    "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|- | SRC_PATH|- CONTAINER:DEST_PATH",
    "Copy files between a container and this machine; '-' is a tar archive on the standard streams",
    Arity::Exactly(2),
    run_cp,
)
.flags(&[CP_FLAGS])
.spelled(&["bulkhead container cp", "bulkhead cp"]);

/// `CONTAINER:PATH` apart; a path with a slash or a dot before the colon is local.
fn split(text: &str) -> (Option<&str>, &str) {
    if text.starts_with(['/', '.']) {
        return (None, text);
    }
    match text.split_once(':') {
        Some((container, path)) if !container.contains('/') => (Some(container), path),
        _ => (None, text),
    }
}

/// Turns the pieces of an answer, which come on a channel, into a blocking reader.
struct Pieces {
    pieces: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(bytes) => self.current = bytes,
                None => return Ok(0),
            }
        }
        let count = self.current.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.current[..count]);
        let _ = self.current.split_to(count);
        Ok(count)
    }
}

fn run_cp(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let (source, target) = (split(&parsed.args[0]), split(&parsed.args[1]));
        match (source, target) {
            ((Some(_), _), (Some(_), _)) => {
                Err(CliError::msg("copying between containers is not supported"))
            }
            ((Some(container), path), (None, local)) => {
                copy_out(&ctx, &parsed, container, path, local).await
            }
            ((None, local), (Some(container), path)) => {
                copy_in(&ctx, &parsed, local, container, path).await
            }
            _ => Err(CliError::msg("must specify at least one container source")),
        }
    })
}

/// The header with what a path in a container is.
const STAT: HeaderName = HeaderName::from_static("x-docker-container-path-stat");

/// Go's directory bit in a file mode.
const GO_DIRECTORY: u64 = 1 << 31;
/// Go's symbolic link bit in a file mode.
const GO_LINK: u64 = 1 << 27;

struct PathStat {
    directory: bool,
    link: String,
}

fn decode_stat(header: Option<&str>) -> PathStat {
    let stat: Value = header
        .and_then(|h| STANDARD.decode(h).ok())
        .and_then(|json| serde_json::from_slice(&json).ok())
        .unwrap_or_default();
    let mode = stat.get("mode").and_then(Value::as_u64).unwrap_or(0);
    let link = stat
        .get("linkTarget")
        .and_then(Value::as_str)
        .unwrap_or_default();
    PathStat {
        directory: mode & GO_DIRECTORY != 0,
        link: if mode & GO_LINK != 0 {
            link.to_owned()
        } else {
            String::new()
        },
    }
}

async fn stat(ctx: &Ctx, container: &str, path: &str) -> Result<PathStat, ClientError> {
    let request = Request::head(&["containers", container, "archive"]).query("path", path);
    let response = ctx.client().send(request).await?;
    Ok(decode_stat(
        response.headers().get(STAT).and_then(|h| h.to_str().ok()),
    ))
}

fn base_name(path: &str) -> &str {
    path.trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or(path)
}

fn success(parsed: &Parsed, copied: u64, target: &str) {
    if !parsed.on("quiet") && terminal::stdout_is_terminal() {
        let size = units::size3(units::float_u(copied));
        complain(format!("Successfully copied {size} to {target}"));
    }
}

async fn copy_out(
    ctx: &Ctx,
    parsed: &Parsed,
    container: &str,
    path: &str,
    local: &str,
) -> CliResult {
    let mut path = path.to_owned();
    if parsed.on("follow-link")
        && let Ok(PathStat { link, .. }) = stat(ctx, container, &path).await
        && !link.is_empty()
    {
        path = link;
    }
    let request = Request::get(&["containers", container, "archive"]).query("path", &path);
    let response = ctx.client().send(request).await?;
    let found = decode_stat(response.headers().get(STAT).and_then(|h| h.to_str().ok()));
    let mut body = BodyStream::new(response);
    if local == "-" {
        let mut out = io::stdout().lock();
        while let Some(bytes) = body.next().await? {
            out.write_all(&bytes).map_err(crate::output::output_error)?;
        }
        return Ok(());
    }
    let target = PathBuf::from(local);
    let contents = path.ends_with("/.");
    // Into an existing directory under its own name, or as the target itself.
    let (into, rename) = if target.is_dir() && !contents {
        (target.clone(), None)
    } else if target.is_dir() || contents || found.directory {
        (target.clone(), Some(String::new()))
    } else {
        if local.ends_with('/') {
            return Err(CliError::msg(format!("directory {local:?} does not exist")));
        }
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        (parent, Some(base_name(local).to_owned()))
    };
    let own_name = base_name(path.trim_end_matches("/.")).to_owned();
    let owners = parsed.on("archive");
    let (sender, pieces) = mpsc::channel(8);
    let unpack = tokio::task::spawn_blocking(move || {
        unpack(
            Pieces {
                pieces,
                current: Bytes::new(),
            },
            &into,
            &own_name,
            rename.as_deref(),
            owners,
        )
    });
    while let Some(bytes) = body.next().await? {
        if sender.send(bytes).await.is_err() {
            break;
        }
    }
    drop(sender);
    let copied = unpack
        .await
        .map_err(|e| CliError::msg(e.to_string()))?
        .map_err(|e| CliError::io(local, e))?;
    success(parsed, copied, local);
    Ok(())
}

/// Unpacks an archive below `into`, which its entries cannot leave. With `rename`, the
/// archive's top entry gets that name; an empty one is `into` itself.
fn unpack(
    source: impl Read + Send,
    into: &Path,
    own_name: &str,
    rename: Option<&str>,
    owners: bool,
) -> io::Result<u64> {
    std::fs::create_dir_all(into)?;
    let Some(name) = rename else {
        return unpack_all(source, into, owners);
    };
    let (reader, writer) = io::pipe()?;
    std::thread::scope(|scope| {
        let rename = scope.spawn(move || renamed(source, writer, own_name, name));
        let copied = unpack_all(reader, into, owners);
        let renamed = rename
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("renaming failed")));
        match (copied, renamed) {
            (Ok(copied), Ok(())) => Ok(copied),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    })
}

fn unpack_all(source: impl Read, into: &Path, owners: bool) -> io::Result<u64> {
    let mut archive = tar::Archive::new(source);
    archive.set_preserve_ownerships(owners);
    archive.set_preserve_permissions(true);
    let mut copied = 0;
    for entry in archive.entries()? {
        let mut entry = entry?;
        copied += entry.size();
        entry.unpack_in(into)?;
    }
    Ok(copied)
}

/// Copies an archive with its top entry named otherwise.
fn renamed(source: impl Read, target: impl Write, old: &str, new: &str) -> io::Result<()> {
    let place = |path: &Path| -> PathBuf {
        let path = path.strip_prefix("./").unwrap_or(path);
        match path.strip_prefix(old) {
            Ok(rest) => Path::new(new).join(rest),
            Err(_) => path.to_owned(),
        }
    };
    let mut archive = tar::Archive::new(source);
    let mut builder = tar::Builder::new(target);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = place(&entry.path()?);
        if path.as_os_str().is_empty() {
            continue;
        }
        let mut header = entry.header().clone();
        header.set_size(entry.size());
        match entry.link_name()?.map(|l| l.into_owned()) {
            Some(link) if header.entry_type().is_hard_link() => {
                builder.append_link(&mut header, path, place(&link))?;
            }
            Some(link) => builder.append_link(&mut header, path, link)?,
            None => builder.append_data(&mut header, path, &mut entry)?,
        }
    }
    builder.into_inner()?.flush()
}

async fn copy_in(
    ctx: &Ctx,
    parsed: &Parsed,
    local: &str,
    container: &str,
    path: &str,
) -> CliResult {
    let put = |directory: &str| {
        Request::put(&["containers", container, "archive"])
            .query("path", directory)
            .query("noOverwriteDirNonDir", "true")
            .query_some("copyUIDGID", parsed.on("archive").then_some("true"))
    };
    let target = match stat(ctx, container, path).await {
        Ok(PathStat { link, .. }) if !link.is_empty() => stat(ctx, container, &link)
            .await
            .ok()
            .map(|s| (link, s.directory)),
        Ok(found) => Some((path.to_owned(), found.directory)),
        // A HEAD has no explanation; the request that follows gets one.
        Err(ClientError::Api { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    if local == "-" {
        return match target {
            Some((path, true)) => Ok(ctx
                .client()
                .done(put(&path).upload(tokio::io::stdin()))
                .await?),
            _ => Err(CliError::msg(format!(
                "destination \"{container}:{path}\" must be a directory"
            ))),
        };
    }
    let contents = local.ends_with("/.");
    let source = PathBuf::from(local.trim_end_matches("/."));
    let metadata = std::fs::symlink_metadata(&source)
        .map_err(|e| CliError::msg(super::files::go_error(local, "lstat", &e)))?;
    let metadata = if metadata.is_symlink() && parsed.on("follow-link") {
        std::fs::metadata(&source).map_err(|e| CliError::io(local, e))?
    } else {
        metadata
    };
    let (directory, name) = match &target {
        Some((path, true)) if contents => (path.clone(), String::new()),
        Some((path, true)) => (path.clone(), base_name(local).to_owned()),
        Some((_, false)) if metadata.is_dir() => {
            return Err(CliError::msg("cannot copy directory"));
        }
        other => {
            let path = other.as_ref().map_or(path, |(p, _)| p);
            if path.ends_with('/') && !metadata.is_dir() {
                return Err(CliError::msg("no such directory"));
            }
            let path = path.trim_end_matches('/');
            let parent = match path.rsplit_once('/') {
                Some(("", _)) | None => "/",
                Some((parent, _)) => parent,
            };
            (parent.to_owned(), base_name(path).to_owned())
        }
    };
    let (writer, reader) = tokio::io::duplex(256 << 10);
    let follow = parsed.on("follow-link");
    let runtime = tokio::runtime::Handle::current();
    let pack = tokio::task::spawn_blocking(move || {
        let bridge = tokio_util::io::SyncIoBridge::new_with_handle(writer, runtime);
        let mut archive = tar::Builder::new(bridge);
        archive.follow_symlinks(follow);
        if metadata.is_dir() {
            let name = if name.is_empty() { "." } else { &name };
            archive.append_dir_all(name, &source)?;
        } else {
            archive.append_path_with_name(&source, &name)?;
        }
        archive.into_inner()?.shutdown()
    });
    let sent = ctx.client().done(put(&directory).upload(reader)).await;
    let packed = pack.await.map_err(|e| CliError::msg(e.to_string()))?;
    sent?;
    packed.map_err(|e| CliError::io(local, e))?;
    success(parsed, metadata_size(local), &format!("{container}:{path}"));
    Ok(())
}

fn metadata_size(path: &str) -> u64 {
    std::fs::metadata(path).map_or(0, |m| m.len())
}

const EXPORT_FLAGS: &[Flag] =
    &[Flag::text("output", "Write to this file instead of standard output").short('o')];

/// The `export` command.
pub const EXPORT: Command = Command::new(
    "export",
    "[OPTIONS] CONTAINER",
    "Write a container's filesystem as a tar archive",
    Arity::Exactly(1),
    run_export,
)
.flags(&[EXPORT_FLAGS])
.spelled(&["bulkhead container export", "bulkhead export"]);

fn run_export(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let output = Output::choose(parsed.given("output"), "an archive")?;
        let request = Request::get(&["containers", &parsed.args[0], "export"]);
        let response = ctx.client().send(request).await?;
        output.fill(BodyStream::new(response)).await
    })
}

/// Where an archive goes: standard output, or a file that appears only when it is complete.
pub enum Output<'a> {
    /// Standard output.
    Stdout,
    /// A file.
    File(&'a str),
}

impl<'a> Output<'a> {
    /// The file `path`, or standard output unless that is a terminal.
    pub fn choose(path: Option<&'a str>, what: &str) -> CliResult<Self> {
        match path {
            Some(path) => {
                let parent = Path::new(path)
                    .parent()
                    .filter(|p| !p.as_os_str().is_empty());
                if let Some(parent) = parent.filter(|p| !p.is_dir()) {
                    return Err(CliError::msg(format!(
                        "failed to save {what}: invalid output path: directory \"{}\" does not exist",
                        parent.display()
                    )));
                }
                Ok(Self::File(path))
            }
            None if terminal::stdout_is_terminal() => Err(CliError::msg(
                "cowardly refusing to save to a terminal. Use the -o flag or redirect",
            )),
            None => Ok(Self::Stdout),
        }
    }

    /// Writes the whole answer.
    pub async fn fill(self, mut body: BodyStream) -> CliResult {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                while let Some(bytes) = body.next().await? {
                    out.write_all(&bytes).map_err(crate::output::output_error)?;
                }
                out.flush().map_err(crate::output::output_error)
            }
            Self::File(path) => {
                let wrong = |e: io::Error| CliError::io(path, e);
                // A device or a pipe is written as it is.
                let special = std::fs::metadata(path).is_ok_and(|m| !m.is_file());
                let temporary = if special {
                    path.to_owned()
                } else {
                    format!("{path}.{}.tmp", std::process::id())
                };
                let written = async {
                    let mut file = std::fs::File::create(&temporary).map_err(wrong)?;
                    while let Some(bytes) = body.next().await? {
                        file.write_all(&bytes).map_err(wrong)?;
                    }
                    if !special {
                        std::fs::rename(&temporary, path).map_err(wrong)?;
                    }
                    Ok(())
                }
                .await;
                if written.is_err() && !special {
                    let _ = std::fs::remove_file(&temporary);
                }
                written
            }
        }
    }
}

const COMMIT_FLAGS: &[Flag] = &[
    Flag::text("author", "Author of the image").short('a'),
    Flag::list("change", "Apply a Dockerfile instruction to the image").short('c'),
    Flag::text("message", "Message for the image's history").short('m'),
    Flag::switch("pause", "Freeze the container meanwhile")
        .short('p')
        .default("true"),
];

/// The `commit` command.
pub const COMMIT: Command = Command::new(
    "commit",
    "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]",
    "Make an image of a container's changes",
    Arity::Range(1, 2),
    run_commit,
)
.flags(&[COMMIT_FLAGS])
.spelled(&["bulkhead container commit", "bulkhead commit"]);

fn run_commit(ctx: Ctx, parsed: Parsed) -> LocalBoxFuture<'static, CliResult> {
    Box::pin(async move {
        let (repository, tag) = match parsed.args.get(1) {
            Some(name) => {
                let reference = Reference::parse(name)
                    .map_err(|e| CliError::msg(e.to_string()))?
                    .with_default_tag();
                (
                    Some(reference.familiar_name()),
                    reference.tag().map(str::to_owned),
                )
            }
            None => (None, None),
        };
        let mut request = Request::post(&["commit"])
            .query("container", &parsed.args[0])
            .query_some("repo", repository)
            .query_some("tag", tag)
            .query_some("comment", parsed.given("message"))
            .query_some("author", parsed.given("author"))
            .query("pause", if parsed.on("pause") { "1" } else { "0" });
        for change in parsed.list("change") {
            request = request.query("changes", change);
        }
        let answer: Value = ctx.client().json(request.json(&json!(null))).await?;
        emit_line(answer.get("Id").and_then(Value::as_str).unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_top_entry_is_renamed_and_nothing_escapes() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |path: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_size(u64::try_from(content.len()).unwrap());
            header.set_mode(0o644);
            header.set_cksum();
            builder.append(&header, content).unwrap();
        };
        add("top/a", b"one");
        add("../evil", b"two");
        let archive = builder.into_inner().unwrap();
        let root = std::env::temp_dir().join(format!("bulkhead-cli-{}", std::process::id()));
        let into = root.join("into");
        let _ = unpack(archive.as_slice(), &into, "top", Some("new"), false);
        assert_eq!(std::fs::read(into.join("new/a")).unwrap(), b"one");
        assert!(!root.join("evil").exists());
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn sources_and_targets() {
        assert_eq!(split("c:/x"), (Some("c"), "/x"));
        assert_eq!(split("/a:b"), (None, "/a:b"));
        assert_eq!(split("./a:b"), (None, "./a:b"));
        assert_eq!(split("a/b:c"), (None, "a/b:c"));
        assert_eq!(base_name("/a/b/"), "b");
    }
}
