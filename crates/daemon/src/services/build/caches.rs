//! The named caches of `RUN --mount=type=cache`: directories that stay between builds, and
//! who uses them at the moment.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bulkhead_build::{CacheDirectory, CacheRequest, CacheSharing, HostError};
use bulkhead_image::Digest;

/// How long a build that waits for a cache does not look whether anybody waits for it.
const LOOK_AROUND: Duration = Duration::from_millis(100);

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct BuildCaches(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    /// By names of directories.
    used: Mutex<HashMap<String, Use>>,
    changed: Condvar,
}

/// A cache as it is shown.
#[derive(Debug, Clone)]
pub struct CacheView {
    /// Its directory's.
    pub name: String,
    /// Whether a build uses it now.
    pub is_used: bool,
    /// Bytes.
    pub size: u64,
    /// When it was made.
    pub created: SystemTime,
    /// When the last build began to use it, or wrote to it.
    pub last_used: SystemTime,
}

#[derive(Debug, Clone, Copy)]
enum Use {
    /// By so many who share it.
    Shared(usize),
    Alone,
}

impl BuildCaches {
    /// Caches below a directory, which need not be there.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Self(Arc::new(Shared {
            root,
            used: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// Waits until a cache may be used as asked, and makes it if it is not there.
    ///
    /// # Errors
    /// The build was cancelled meanwhile; the directory cannot be made.
    pub fn take(
        &self,
        request: &CacheRequest,
        is_cancelled: impl Fn() -> bool,
    ) -> Result<CacheDirectory, HostError> {
        let mut used = self.0.used();
        let mut number = 0;
        let name = loop {
            let name = directory_name(&request.id, number);
            match (used.get_mut(&name), request.sharing) {
                (None, CacheSharing::Shared) => {
                    used.insert(name.clone(), Use::Shared(1));
                    break name;
                }
                (None, _) => {
                    used.insert(name.clone(), Use::Alone);
                    break name;
                }
                (Some(Use::Shared(count)), CacheSharing::Shared) => {
                    *count += 1;
                    break name;
                }
                (Some(_), CacheSharing::Private) => number += 1,
                (Some(_), _) => {
                    let waited = self.0.changed.wait_timeout(used, LOOK_AROUND);
                    used = waited.unwrap_or_else(PoisonError::into_inner).0;
                    if is_cancelled() {
                        return Err(HostError("the build was cancelled".to_owned()));
                    }
                }
            }
        };
        let path = self.0.root.join(&name);
        let held = Held {
            of: Arc::clone(&self.0),
            name,
        };
        // Under the lock still: nobody prunes it now.
        make(&path, request)?;
        drop(used);
        Ok(CacheDirectory {
            path,
            held: Box::new(held),
        })
    }

    /// Those that there are.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<CacheView>> {
        let entries = match fs::read_dir(&self.0.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut views = Vec::new();
        for entry in entries.flatten() {
            // One that is pruned meanwhile is not there.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            let name = entry.file_name().to_string_lossy().into_owned();
            let last_used = metadata.modified()?;
            views.push(CacheView {
                is_used: self.0.used().contains_key(&name),
                name,
                size: crate::disk_usage::apparent_size(&entry.path()),
                // Not every filesystem knows when it was made.
                created: metadata
                    .created()
                    .map_or(last_used, |time| time.min(last_used)),
                last_used,
            });
        }
        views.sort_by_key(|view| view.created);
        Ok(views)
    }

    /// Removes all that are not in use, nor were since a time: their names, and their bytes.
    /// With `ids`, only those whose names begin with one of them.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn prune(
        &self,
        ids: Option<&[String]>,
        unused_since: Option<SystemTime>,
    ) -> io::Result<(Vec<String>, u64)> {
        let used = self.0.used();
        let (mut names, mut bytes) = (Vec::new(), 0);
        let entries = match fs::read_dir(&self.0.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((names, bytes)),
            entries => entries?,
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_meant = ids.is_none_or(|ids| ids.iter().any(|id| name.starts_with(id)));
            let used_at = entry.metadata().and_then(|metadata| metadata.modified());
            let is_fresh =
                unused_since.is_some_and(|time| used_at.is_ok_and(|used_at| used_at >= time));
            if !is_meant || is_fresh || used.contains_key(&name) {
                continue;
            }
            let size = crate::disk_usage::apparent_size(&entry.path());
            if fs::remove_dir_all(entry.path()).is_ok() {
                bytes += size;
                names.push(name);
            }
        }
        Ok((names, bytes))
    }
}

/// Numbers above 0 are those that were made because the cache was in use.
fn directory_name(id: &str, number: u32) -> String {
    let digest = Digest::of(id.as_bytes()).hex();
    match number {
        0 => digest,
        number => format!("{digest}-{number}"),
    }
}

fn make(path: &std::path::Path, request: &CacheRequest) -> io::Result<()> {
    if let Some(root) = path.parent() {
        fs::create_dir_all(root)?;
    }
    match fs::create_dir(path) {
        // Its time tells when it was used.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return fs::File::open(path)?.set_modified(SystemTime::now());
        }
        made => made?,
    }
    let (uid, gid) = request.owner;
    chown(path, Some(uid), Some(gid))?;
    fs::set_permissions(path, fs::Permissions::from_mode(request.mode))
}

impl Shared {
    fn used(&self) -> MutexGuard<'_, HashMap<String, Use>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody uses a cache as long as this lives.
struct Held {
    of: Arc<Shared>,
    name: String,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut used = self.of.used();
        match used.get_mut(&self.name) {
            Some(Use::Shared(count)) if *count > 1 => *count -= 1,
            _ => {
                used.remove(&self.name);
            }
        }
        self.of.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn request(sharing: CacheSharing) -> CacheRequest {
        CacheRequest {
            id: "id".to_owned(),
            sharing,
            mode: 0o700,
            // Whoever runs the test.
            owner: (
                rustix::process::getuid().as_raw(),
                rustix::process::getgid().as_raw(),
            ),
        }
    }

    #[test]
    fn who_shares_what() {
        let root = tempfile::tempdir().unwrap();
        let caches = BuildCaches::new(root.path().join("caches"));
        let take = |sharing| caches.take(&request(sharing), || false).unwrap();
        let one = take(CacheSharing::Shared);
        let two = take(CacheSharing::Shared);
        assert_eq!(one.path, two.path);
        let mode = fs::metadata(&one.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let private = take(CacheSharing::Private);
        assert_ne!(private.path, one.path);
        assert!(
            caches.prune(None, None).unwrap().0.is_empty(),
            "all are in use"
        );
        // One that is locked is waited for.
        let cancelled = caches.take(&request(CacheSharing::Locked), || true);
        assert!(cancelled.is_err());
        let (sender, receiver) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sender.send("waits").unwrap();
                let locked = caches.take(&request(CacheSharing::Locked), || false);
                sender.send("has it").unwrap();
                drop(locked);
            });
            assert_eq!(receiver.recv().unwrap(), "waits");
            drop(one);
            assert!(receiver.try_recv().is_err());
            drop(two);
            assert_eq!(receiver.recv().unwrap(), "has it");
        });
        let again = take(CacheSharing::Private);
        assert!(again.path.ends_with(directory_name("id", 0)));
        let used = |caches: &BuildCaches| {
            let views = caches.list().unwrap().into_iter();
            views.filter(|view| view.is_used).count()
        };
        assert_eq!((caches.list().unwrap().len(), used(&caches)), (2, 2));
        fs::write(again.path.join("file"), "12345").unwrap();
        drop((private, again));
        assert_eq!(used(&caches), 0);
        let sizes = caches.list().unwrap().into_iter().map(|view| view.size);
        assert_eq!(sizes.sum::<u64>(), 5);
        let before = SystemTime::now() - Duration::from_secs(3600);
        assert!(
            caches.prune(None, Some(before)).unwrap().0.is_empty(),
            "all are fresh"
        );
        let prune = |id: &str| caches.prune(Some(&[id.to_owned()]), None).unwrap().0;
        assert!(prune("another").is_empty());
        assert_eq!(prune(&directory_name("id", 1)), [directory_name("id", 1)]);
        assert_eq!(prune(&directory_name("id", 0)[..12]).len(), 1);
    }
}
