//! The files of one container, and the work that is asked for.

use std::ffi::CString;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use bulkhead_tar::TarStream;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};

use crate::changes::{self, Scaffold};
use crate::extract::{Rules, extract};
use crate::layer;
use crate::pack::{PackError, Packer};
use crate::protocol::{
    CHUNK, FilesError, FilesErrorKind, FrameReader, FrameWriter, Reply, Request, receive, send,
};
use crate::stat::PathStat;
use crate::tree::Result;

/// What of a container somebody needs to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Its root with what is mounted over it.
    Mounted,
    /// Its root alone.
    Root,
    /// The writable layer, and what is below it.
    Layers,
}

impl Request {
    /// What it needs to see.
    pub fn view(&self) -> View {
        match self {
            Self::Stat { .. } | Self::Read { .. } | Self::Write { .. } => View::Mounted,
            Self::Export => View::Root,
            Self::Changes | Self::Layer { .. } | Self::Usage => View::Layers,
        }
    }
}

/// The files, as far as a request needs them.
#[derive(Debug)]
pub enum Scene {
    /// The container's root, which must be the root of this process: symbolic links lead no
    /// further.
    Root(OwnedFd),
    /// The writable layer, and what is below it.
    Layers {
        /// The writable one.
        upper: OwnedFd,
        /// The others as one.
        base: Option<OwnedFd>,
    },
}

/// Resolves `user[:group]` in the container to numbers.
pub type UserLookup<'a> = &'a dyn Fn(&OwnedFd, &str) -> std::result::Result<(u32, u32), String>;

/// Serves one conversation. `enter` shows the files; it is called once the request is known.
///
/// # Errors
/// That who asks has gone.
pub fn serve<S: Read + Write>(
    mut stream: S,
    enter: impl FnOnce(View) -> std::result::Result<Scene, FilesError>,
    lookup: UserLookup<'_>,
) -> io::Result<()> {
    let request: Request = receive(&mut stream)?;
    let scene = match enter(request.view()) {
        Ok(scene) => scene,
        Err(error) => return send(&mut stream, &Err::<Reply, _>(error)),
    };
    let outcome = match (&scene, request) {
        (Scene::Root(root), Request::Stat { path }) => {
            let found = Target::find(root, &path).map(|target| Reply::Stat(target.stat()));
            send(&mut stream, &found)?;
            if found.is_err() {
                return Ok(());
            }
            stream = FrameWriter::new(stream).end()?;
            Ok(())
        }
        (Scene::Root(root), Request::Read { path }) => match Target::find(root, &path) {
            Ok(target) => {
                send(
                    &mut stream,
                    &Ok::<_, FilesError>(Reply::Stat(target.stat())),
                )?;
                packed(&mut stream, None, |packer| target.pack(packer))
            }
            Err(error) => return send(&mut stream, &Err::<Reply, _>(error)),
        },
        (
            Scene::Root(root),
            Request::Write {
                path,
                no_overwrite_dir_non_dir,
                owner,
            },
        ) => {
            let prepared = writable_directory(root, &path).and_then(|target| {
                let owner = owner.map(|name| lookup(root, &name)).transpose();
                let owner = owner.map_err(|why| FilesError::new(FilesErrorKind::Invalid, why))?;
                Ok((target, owner))
            });
            let (target, owner) = match prepared {
                Ok(prepared) => prepared,
                Err(error) => return send(&mut stream, &Err::<Reply, _>(error)),
            };
            send(&mut stream, &Ok::<_, FilesError>(Reply::Done))?;
            let rules = Rules {
                no_overwrite_dir_non_dir,
                owner,
            };
            let frames = FrameReader::new(&mut stream);
            let mut tar = TarStream::new(BufReader::with_capacity(CHUNK, frames));
            let outcome = extract(target.as_fd(), &mut tar, rules);
            stream = FrameWriter::new(stream).end()?;
            send(&mut stream, &outcome)?;
            // What is still on its way is read and dropped, so that the answer gets through.
            io::copy(&mut stream, &mut io::sink())?;
            return Ok(());
        }
        (Scene::Root(root), Request::Export) => {
            send(&mut stream, &Ok::<_, FilesError>(Reply::Done))?;
            packed(&mut stream, None, |packer| {
                packer.add_below(root.as_fd(), b"")
            })
        }
        (Scene::Layers { upper, base }, request) => {
            let base = base.as_ref().map(AsFd::as_fd);
            match request {
                Request::Usage => {
                    let usage = changes::usage(upper.as_fd(), base).map(Reply::Usage);
                    send(&mut stream, &usage)?;
                    if usage.is_err() {
                        return Ok(());
                    }
                    stream = FrameWriter::new(stream).end()?;
                    Ok(())
                }
                Request::Layer {
                    newest,
                    mount_points,
                } => {
                    send(&mut stream, &Ok::<_, FilesError>(Reply::Done))?;
                    let scaffold = Scaffold::with(&mount_points);
                    packed(&mut stream, newest, |packer| {
                        layer::pack(packer, upper.as_fd(), base, &scaffold)
                    })
                }
                _ => {
                    send(&mut stream, &Ok::<_, FilesError>(Reply::Done))?;
                    let mut frames = FrameWriter::new(&mut stream);
                    let mut broken = None;
                    let listed = changes::changes(upper.as_fd(), base, &mut |change| {
                        let line = serde_json::to_vec(change).map_err(io::Error::other);
                        let sent = line.and_then(|mut line| {
                            line.push(b'\n');
                            frames.write_all(&line)
                        });
                        sent.map_err(|error| {
                            broken = Some(error);
                            FilesError::new(FilesErrorKind::Other, "the reader has gone")
                        })
                    });
                    if let Some(error) = broken {
                        return Err(error);
                    }
                    frames.end()?;
                    listed
                }
            }
        }
        (Scene::Root(_), _) => Err(FilesError::new(
            FilesErrorKind::Other,
            "the container's layers are not in sight",
        )),
    };
    send(&mut stream, &outcome)
}

/// Sends an archive in frames.
fn packed<S: Write>(
    stream: &mut S,
    newest: Option<i64>,
    pack: impl FnOnce(&mut Packer<FrameWriter<&mut S>>) -> std::result::Result<(), PackError>,
) -> Result<()> {
    let mut packer = Packer::new(FrameWriter::new(stream), newest);
    pack(&mut packer)
        .and_then(|()| Ok(packer.finish()?.end()?))
        .map(|_| ())
        .map_err(PackError::into_files)
}

/// A path that was found.
struct Target<'a> {
    root: &'a OwnedFd,
    /// The path as it was asked for, absolute.
    asked: String,
    /// The directory that the last part is in; symbolic links on the way to it were followed.
    parent: OwnedFd,
    /// The last part; `.` for a directory that is meant by a slash or a dot behind it.
    name: CString,
    stat: Stat,
}

impl<'a> Target<'a> {
    fn find(root: &'a OwnedFd, path: &str) -> Result<Self> {
        let asked = absolute(path);
        let (parent, name) = match asked.rsplit_once('/') {
            Some((parent, "" | ".")) => (parent, "."),
            Some((parent, name)) => (parent, name),
            None => ("", "."),
        };
        let failed = |error| FilesError::system("lstat", path.as_bytes(), error);
        let parent = resolve(root, &format!("/{parent}"), OFlags::DIRECTORY).map_err(failed)?;
        let name = CString::new(name).map_err(|_| failed(rustix::io::Errno::NOENT))?;
        let stat = rustix::fs::statat(&parent, &name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed)?;
        Ok(Self {
            root,
            asked,
            parent,
            name,
            stat,
        })
    }

    fn is_directory(&self) -> bool {
        FileType::from_raw_mode(self.stat.st_mode).is_dir()
    }

    fn stat(&self) -> PathStat {
        let link = FileType::from_raw_mode(self.stat.st_mode).is_symlink();
        let target = if link {
            self.link_target()
        } else {
            String::new()
        };
        PathStat::new(base_name(&self.asked), &self.stat, target)
    }

    /// Where the link leads in the end, as Docker tells it: also where nothing is.
    fn link_target(&self) -> String {
        let mut path = self.asked.clone();
        for _ in 0..40 {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
            let opened = resolve(self.root, &format!("/{parent}"), OFlags::DIRECTORY);
            let Ok(opened) = opened else { return path };
            let Ok(target) = rustix::fs::readlinkat(&opened, name, Vec::new()) else {
                return path;
            };
            let target = target.to_string_lossy().into_owned();
            path = if target.starts_with('/') {
                clean(&target)
            } else {
                clean(&format!("{parent}/{target}"))
            };
        }
        path
    }

    /// Entries are under the last part of what was asked for.
    fn pack<W: Write>(&self, packer: &mut Packer<W>) -> std::result::Result<(), PackError> {
        let base = base_name(&self.asked);
        if !self.is_directory() {
            return packer.add(self.parent.as_fd(), &self.name, &self.stat, base.as_bytes());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let top = rustix::fs::openat(&self.parent, &self.name, flags, Mode::empty())
            .map_err(|error| FilesError::system("open", self.asked.as_bytes(), error))?;
        let stat = rustix::fs::fstat(&top)
            .map_err(|error| FilesError::system("stat", self.asked.as_bytes(), error))?;
        // The whole root's entries have nothing but a slash in front.
        let name = base.trim_end_matches('/');
        let dot = CString::from(c".");
        packer.add(
            top.as_fd(),
            &dot,
            &stat,
            if name.is_empty() {
                b"/"
            } else {
                name.as_bytes()
            },
        )?;
        packer.add_below(top.as_fd(), format!("{name}/").as_bytes())
    }
}

/// The directory that an archive goes into, every link followed.
fn writable_directory(root: &OwnedFd, path: &str) -> Result<OwnedFd> {
    let asked = absolute(path);
    let failed = |error| FilesError::system("stat", path.as_bytes(), error);
    let opened = resolve(root, &asked, OFlags::empty()).map_err(failed)?;
    let stat = rustix::fs::fstat(&opened).map_err(failed)?;
    if !FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Err(FilesError::new(
            FilesErrorKind::Invalid,
            "extraction point is not a directory",
        ));
    }
    let mount = rustix::fs::fstatvfs(&opened).map_err(failed)?;
    if mount.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        let of_root = rustix::fs::fstat(root).map_err(failed)?;
        let why = if of_root.st_dev == stat.st_dev {
            "container rootfs is marked read-only"
        } else {
            "mounted volume is marked read-only"
        };
        return Err(FilesError::new(FilesErrorKind::ReadOnly, why));
    }
    Ok(opened)
}

/// Opens a path, every link followed, within the container's root.
fn resolve(root: &OwnedFd, path: &str, kind: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | kind;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        // A rename meanwhile may make the kernel unsure that `..` stayed within.
        match rustix::fs::openat2(root, path, flags, Mode::empty(), within) {
            Err(rustix::io::Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// Cleans a path's text and makes it absolute; a slash or a dot at its end stays, since it
/// means what is behind a link.
fn absolute(path: &str) -> String {
    let cleaned = clean(path);
    // A slash behind a dot adds nothing to it.
    let dotted = match path.trim_end_matches('/') {
        trimmed if trimmed == "." || trimmed.ends_with("/.") => trimmed,
        _ => path,
    };
    let last = dotted.rsplit('/').next().unwrap_or_default();
    match last {
        "." if cleaned != "/" => format!("{cleaned}/."),
        "." => "/.".to_owned(),
        "" if cleaned != "/" && !path.is_empty() => format!("{cleaned}/"),
        _ => cleaned,
    }
}

fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The last part of an absolute path, as Go has it.
fn base_name(path: &str) -> &str {
    let trimmed = path.trim_end_matches('/');
    match trimmed.rsplit_once('/') {
        _ if trimmed.is_empty() => "/",
        Some((_, name)) => name,
        None => trimmed,
    }
}
