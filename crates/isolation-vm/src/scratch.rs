//! The scratch disk: a sparse file with a filesystem that only guests ever mount.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

const NAME: &str = "scratch.img";
const UNFINISHED: &str = "scratch.img.new";

/// A container's scratch disk.
#[derive(Debug)]
pub struct ScratchDisk {
    /// The file.
    pub path: PathBuf,
    /// Whether it was made just now, and is worth nothing to anybody yet.
    pub fresh: bool,
}

impl ScratchDisk {
    /// The disk in the container's writable directory, made from `template` unless it exists
    /// from an earlier run. Blocks.
    ///
    /// # Errors
    /// What the system says; nothing is left behind then.
    pub fn prepare(writable: &Path, template: &Path) -> io::Result<Self> {
        let path = writable.join(NAME);
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => return Ok(Self { path, fresh: false }),
            Ok(_) => return Err(io::Error::other("the scratch disk is not a regular file")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        std::fs::create_dir_all(writable)?;
        let unfinished = writable.join(UNFINISHED);
        let made =
            copy_sparse(template, &unfinished).and_then(|()| std::fs::rename(&unfinished, &path));
        if let Err(error) = made {
            // Best effort: the error says what matters.
            let _ = std::fs::remove_file(&unfinished);
            return Err(error);
        }
        Ok(Self { path, fresh: true })
    }

    /// Undoes [`ScratchDisk::prepare`] when the container came to nothing.
    pub fn discard(&self) {
        if self.fresh
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, path = %self.path.display(), "a scratch disk is left");
        }
    }
}

/// Copies a file with its holes; shares its blocks where the filesystem can.
fn copy_sparse(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
        let length = source.metadata()?.len();
        target.set_len(length)?;
        copy_data(&source, &target, length)?;
    }
    target.sync_data()
}

fn copy_data(source: &File, target: &File, length: u64) -> io::Result<()> {
    let mut offset = 0;
    while offset < length {
        let start = match rustix::fs::seek(source, SeekFrom::Data(offset)) {
            Ok(start) => start,
            // Holes up to the end.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(start))?;
        copy_extent(source, target, start, end)?;
        offset = end;
    }
    Ok(())
}

fn copy_extent(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let mut from = start;
    let mut to = start;
    while from < end {
        let rest = usize::try_from(end - from).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), rest) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            // Different filesystems on old kernels, or ones that cannot.
            Err(Errno::XDEV | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) => {
                return copy_bytes(source, target, from, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_bytes(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 256 << 10];
    let mut offset = start;
    while offset < end {
        let most = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        let wanted = usize::try_from((end - offset).min(most)).unwrap_or(buffer.len());
        let read = match source.read_at(&mut buffer[..wanted], offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        target.write_all_at(&buffer[..read], offset)?;
        offset += u64::try_from(read).unwrap_or(most);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn template(directory: &Path) -> PathBuf {
        let path = directory.join("template");
        let mut file = File::create(&path).unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_all(b"first").unwrap();
        file.seek(io::SeekFrom::Start(512 << 20)).unwrap();
        file.write_all(&[7; 100_000]).unwrap();
        path
    }

    #[test]
    fn a_copy_has_the_bytes_and_the_holes() {
        let directory = tempfile::tempdir().unwrap();
        let template = template(directory.path());
        let writable = directory.path().join("writable");
        let disk = ScratchDisk::prepare(&writable, &template).unwrap();
        assert!(disk.fresh);
        let mut copy = File::open(&disk.path).unwrap();
        let metadata = copy.metadata().unwrap();
        assert_eq!(metadata.len(), 1 << 30);
        assert!(metadata.blocks() * 512 < 1 << 20, "{}", metadata.blocks());
        let mut bytes = vec![0; 5];
        copy.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, b"first");
        copy.seek(io::SeekFrom::Start((512 << 20) + 99_999))
            .unwrap();
        copy.read_exact(&mut bytes[..2]).unwrap();
        assert_eq!(bytes[..2], [7, 0]);
        let names: Vec<_> = std::fs::read_dir(&writable).unwrap().collect();
        assert_eq!(names.len(), 1);
    }

    #[test]
    fn bytes_are_copied_where_the_kernel_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let template = File::open(template(directory.path())).unwrap();
        let copy = File::create_new(directory.path().join("copy")).unwrap();
        let start = 512 << 20;
        copy_bytes(&template, &copy, start, start + 100_000).unwrap();
        assert_eq!(copy.metadata().unwrap().len(), start + 100_000);
        assert!(copy_bytes(&template, &copy, 1 << 30, (1 << 30) + 1).is_err());
    }

    #[test]
    fn what_a_container_wrote_survives() {
        let directory = tempfile::tempdir().unwrap();
        let template = template(directory.path());
        let disk = ScratchDisk::prepare(directory.path(), &template).unwrap();
        std::fs::write(&disk.path, "changed").unwrap();
        let again = ScratchDisk::prepare(directory.path(), &template).unwrap();
        assert!(!again.fresh);
        again.discard();
        assert_eq!(std::fs::read(&again.path).unwrap(), b"changed");
        disk.discard();
        assert!(!disk.path.exists());
    }

    #[test]
    fn a_missing_template_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let writable = directory.path().join("writable");
        assert!(ScratchDisk::prepare(&writable, Path::new("/nonexistent")).is_err());
        assert_eq!(std::fs::read_dir(&writable).unwrap().count(), 0);
    }
}
