//! A writer of pax archives. The same entries give the same bytes: names and numbers that the
//! old header cannot hold, and extended attributes, go into pax records in a fixed order.

use std::io::{self, Write};

use crate::reader::EntryKind;

const RECORD: usize = 512;
/// What fits into the header's fields, by their digits.
const MAX_ID: u32 = 0o777_7777;
const MAX_SIZE: u64 = 0o777_7777_7777;
const MAX_NAME: usize = 100;

/// What an entry says about itself, before its data.
#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    /// Its name; a directory's ends with a slash.
    pub path: &'a [u8],
    /// What it is.
    pub kind: EntryKind,
    /// Target of a link, else empty.
    pub link: &'a [u8],
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since the epoch.
    pub mtime: i64,
    /// Bytes of data that follow; of files only.
    pub size: u64,
    /// Extended attributes, whole names, sorted.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// See the module. After a file's header its data is written through it.
#[derive(Debug)]
pub struct TarWriter<W> {
    output: W,
    /// Bytes of data that the current entry still wants.
    remaining: u64,
    padding: usize,
}

impl<W: Write> TarWriter<W> {
    /// An empty archive.
    pub fn new(output: W) -> Self {
        Self {
            output,
            remaining: 0,
            padding: 0,
        }
    }

    /// Begins an entry; exactly as much data as it announces must be written behind it.
    ///
    /// # Errors
    /// What the output says; `InvalidInput` when the entry before is not complete.
    pub fn begin(&mut self, header: &Header<'_>) -> io::Result<()> {
        self.end_entry()?;
        let records = records(header);
        if !records.is_empty() {
            let mut extension = [0; RECORD];
            fill(
                &mut extension,
                &Header {
                    path: b"PaxHeaders/entry",
                    link: b"",
                    mode: 0o644,
                    uid: 0,
                    gid: 0,
                    mtime: 0,
                    size: length(&records),
                    ..*header
                },
                b'x',
            );
            self.output.write_all(&extension)?;
            self.output.write_all(&records)?;
            self.output
                .write_all(&[0; RECORD][..padding(length(&records))])?;
        }
        let (flag, size) = match header.kind {
            EntryKind::File => (b'0', header.size),
            EntryKind::HardLink => (b'1', 0),
            EntryKind::Symlink => (b'2', 0),
            EntryKind::CharacterDevice { .. } => (b'3', 0),
            EntryKind::BlockDevice { .. } => (b'4', 0),
            EntryKind::Directory => (b'5', 0),
            EntryKind::Fifo => (b'6', 0),
        };
        let mut bytes = [0; RECORD];
        fill(&mut bytes, &Header { size, ..*header }, flag);
        self.output.write_all(&bytes)?;
        self.remaining = size;
        self.padding = padding(size);
        Ok(())
    }

    /// How much of the current entry's data is missing.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Ends the archive and gives the output back.
    ///
    /// # Errors
    /// As [`TarWriter::begin`].
    pub fn finish(mut self) -> io::Result<W> {
        self.end_entry()?;
        self.output.write_all(&[0; 2 * RECORD])?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn end_entry(&mut self) -> io::Result<()> {
        if self.remaining > 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "an entry of a tar archive is not complete",
            ));
        }
        self.output.write_all(&[0; RECORD][..self.padding])?;
        self.padding = 0;
        Ok(())
    }
}

impl<W: Write> Write for TarWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if length(bytes) > self.remaining {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "more data than an entry of a tar archive announced",
            ));
        }
        let written = self.output.write(bytes)?;
        self.remaining -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

fn length(bytes: &[u8]) -> u64 {
    bytes.len() as u64
}

fn padding(size: u64) -> usize {
    // Less than a record.
    usize::try_from(size.wrapping_neg() % 512).unwrap_or(0)
}

/// The pax records that the entry needs.
fn records(header: &Header<'_>) -> Vec<u8> {
    let mut records = Vec::new();
    let plain = |text: &[u8]| text.len() <= MAX_NAME && text.is_ascii();
    if !plain(header.path) {
        record(&mut records, b"path", header.path);
    }
    if !plain(header.link) {
        record(&mut records, b"linkpath", header.link);
    }
    if header.kind == EntryKind::File && header.size > MAX_SIZE {
        record(&mut records, b"size", header.size.to_string().as_bytes());
    }
    for (key, id) in [(&b"uid"[..], header.uid), (b"gid", header.gid)] {
        if id > MAX_ID {
            record(&mut records, key, id.to_string().as_bytes());
        }
    }
    if u64::try_from(header.mtime).is_ok_and(|mtime| mtime > MAX_SIZE) || header.mtime < 0 {
        record(&mut records, b"mtime", header.mtime.to_string().as_bytes());
    }
    for (name, value) in header.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    records
}

/// `<length> <key>=<value>\n`, where the length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut total = rest + 1;
    while total != rest + total.to_string().len() {
        total = rest + total.to_string().len();
    }
    out.extend_from_slice(total.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn fill(bytes: &mut [u8; RECORD], header: &Header<'_>, flag: u8) {
    let text = |field: &mut [u8], value: &[u8]| {
        let length = value.len().min(field.len());
        field[..length].copy_from_slice(&value[..length]);
    };
    text(&mut bytes[..100], header.path);
    octal(&mut bytes[100..108], u64::from(header.mode));
    let id = |id: u32| u64::from(if id > MAX_ID { 0 } else { id });
    octal(&mut bytes[108..116], id(header.uid));
    octal(&mut bytes[116..124], id(header.gid));
    let size = Some(header.size).filter(|size| *size <= MAX_SIZE);
    octal(&mut bytes[124..136], size.unwrap_or(0));
    let mtime = u64::try_from(header.mtime).ok();
    octal(
        &mut bytes[136..148],
        mtime.filter(|mtime| *mtime <= MAX_SIZE).unwrap_or(0),
    );
    bytes[156] = flag;
    text(&mut bytes[157..257], header.link);
    text(&mut bytes[257..265], b"ustar\x0000");
    if let EntryKind::CharacterDevice { major, minor } | EntryKind::BlockDevice { major, minor } =
        header.kind
        && flag != b'x'
    {
        octal(&mut bytes[329..337], u64::from(major));
        octal(&mut bytes[337..345], u64::from(minor));
    }
    bytes[148..156].fill(b' ');
    let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut bytes[148..155], sum);
}

/// Digits, right-aligned, with a NUL behind them.
fn octal(field: &mut [u8], mut value: u64) {
    let Some((last, digits)) = field.split_last_mut() else {
        return;
    };
    *last = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value & 7).to_le_bytes()[0];
        value >>= 3;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::TarStream;

    #[test]
    fn what_is_written_is_read() {
        let long = b"d/".repeat(120);
        let name = "ünï".as_bytes();
        let xattrs = [(b"user.a".to_vec(), b"\0=\n".to_vec())];
        let plain = Header {
            path: b"a",
            kind: EntryKind::File,
            link: b"",
            mode: 0o4755,
            uid: 3_000_000,
            gid: 5,
            mtime: -7,
            size: 3,
            xattrs: &xattrs,
        };
        let mut tar = TarWriter::new(Vec::new());
        tar.begin(&plain).unwrap();
        assert!(tar.write_all(b"four").is_err());
        tar.write_all(b"abc").unwrap();
        let directory = Header {
            path: &long,
            kind: EntryKind::Directory,
            size: 0,
            xattrs: &[],
            ..plain
        };
        tar.begin(&directory).unwrap();
        let device = Header {
            path: name,
            kind: EntryKind::CharacterDevice {
                major: 259,
                minor: 70_000,
            },
            ..directory
        };
        tar.begin(&device).unwrap();
        let link = Header {
            path: b"l",
            kind: EntryKind::HardLink,
            link: &long,
            ..directory
        };
        tar.begin(&link).unwrap();
        let bytes = tar.finish().unwrap();
        assert_eq!(bytes.len() % RECORD, 0);

        let mut read = TarStream::new(&bytes[..]);
        let entry = read.next_entry().unwrap().unwrap();
        assert_eq!(
            (entry.path.as_slice(), entry.mode, entry.uid, entry.gid),
            (&b"a"[..], 0o4755, 3_000_000, 5)
        );
        assert_eq!((entry.mtime.seconds, entry.size), (-7, 3));
        assert_eq!(entry.xattrs, xattrs);
        let mut data = Vec::new();
        read.read_to_end(&mut data).unwrap();
        assert_eq!(data, b"abc");
        let entry = read.next_entry().unwrap().unwrap();
        assert_eq!(
            (entry.path, entry.kind),
            (long.clone(), EntryKind::Directory)
        );
        let entry = read.next_entry().unwrap().unwrap();
        assert_eq!((entry.path.as_slice(), entry.kind), (name, device.kind));
        let entry = read.next_entry().unwrap().unwrap();
        assert_eq!((entry.link, entry.kind), (long, EntryKind::HardLink));
        assert!(read.next_entry().unwrap().is_none());
    }
}
