//! A reader of tar streams from strangers: ustar, GNU (long names, old sparse files) and pax
//! (paths, owners, times, xattrs, sparse files 0.0, 0.1 and 1.0), every length bounded.
//! Knows the format only: what an entry means for a layer is decided elsewhere.

use std::io::{self, BufRead, Read};

use bulkhead_erofs::{Extent, Timestamp};

use crate::pax::PaxHeader;

const RECORD: usize = 512;
const RECORD_U64: u64 = 512;
/// Most bytes of one pax header or GNU long name; Go's reader, and so docker, has the same.
const MAX_EXTENSION: u64 = 1 << 20;
/// Most extents of one sparse file.
pub const MAX_EXTENTS: usize = 1 << 20;

/// Why a stream is not (any more) a tar stream that we read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream failed.
    #[error("read the tar stream")]
    Read(#[from] io::Error),
    /// It ended within something.
    #[error("unexpected end of the tar stream in {0}")]
    Truncated(String),
    /// A header or extension is malformed, or over a limit.
    #[error("invalid tar stream: {0}")]
    Invalid(String),
}

type Result<T> = std::result::Result<T, TarError>;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// Another name of an entry before.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharacterDevice {
        /// Driver.
        major: u32,
        /// Device.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Driver.
        major: u32,
        /// Device.
        minor: u32,
    },
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// One entry; its data is read through [`TarStream`].
#[derive(Debug)]
pub struct Entry {
    /// Its name as it stands in the archive.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When it was changed.
    pub mtime: Timestamp,
    /// Extended attributes, whole names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The file's size.
    pub size: u64,
    /// Where the data goes, if the file is sparse.
    pub extents: Option<Vec<Extent>>,
}

/// A tar stream, positioned in the data of the entry that was returned last. Reading it reads
/// that data and ends with it.
pub struct TarStream<R> {
    input: R,
    /// Bytes of the current entry's data that are not consumed.
    remaining: u64,
    /// Bytes of padding behind it.
    padding: u64,
    ended: bool,
}

impl<R: BufRead> TarStream<R> {
    /// A stream at the beginning of an archive.
    pub fn new(input: R) -> Self {
        Self {
            input,
            remaining: 0,
            padding: 0,
            ended: false,
        }
    }

    /// Skips what is left of the current entry and reads the next one's headers.
    ///
    /// # Errors
    /// See [`TarError`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut pax = PaxHeader::default();
        let mut long_name: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        // An extended header is followed by what it is about.
        let mut may_end = true;
        loop {
            self.skip_rest(may_end)?;
            let Some(header) = self.read_header()? else {
                return Ok(None);
            };
            let size = number(&header[124..136], "size")?;
            let size = u64::try_from(size).map_err(|_| invalid("negative size"))?;
            match header[156] {
                b'x' | b'g' | b'L' | b'K' => {
                    let data = self.read_extension(size)?;
                    may_end = false;
                    match header[156] {
                        b'x' => pax.parse(&data).map_err(TarError::Invalid)?,
                        // Global headers hold comments (git) in practice; docker ignores them.
                        b'g' => {}
                        b'L' => long_name = Some(until_nul(&data).to_vec()),
                        _ => long_link = Some(until_nul(&data).to_vec()),
                    }
                }
                // A volume's label is no file.
                b'V' => self.enter_data(size),
                _ => {
                    return self
                        .entry(&header, size, pax, long_name, long_link)
                        .map(Some);
                }
            }
        }
    }

    /// Reads to the stream's very end. What follows the end marker is part of a layer's digest.
    ///
    /// # Errors
    /// What the stream says.
    pub fn drain(&mut self) -> Result<()> {
        loop {
            let length = self.input.fill_buf()?.len();
            if length == 0 {
                return Ok(());
            }
            self.input.consume(length);
        }
    }

    fn entry(
        &mut self,
        header: &[u8; RECORD],
        stored: u64,
        mut pax: PaxHeader,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry> {
        let stored = pax.size.unwrap_or(stored);
        let mut path = match (pax.path.take(), long_name) {
            (Some(path), _) | (None, Some(path)) => path,
            (None, None) => header_path(header),
        };
        let link = match (pax.link.take(), long_link) {
            (Some(link), _) | (None, Some(link)) => link,
            (None, None) => until_nul(&header[157..257]).to_vec(),
        };
        if let Some(name) = pax.sparse.name.take() {
            path = name;
        }
        let device = || -> Result<(u32, u32)> {
            let part = |field: &[u8]| {
                let value = number(field, "device number")?;
                u32::try_from(value).map_err(|_| invalid("device number out of range"))
            };
            Ok((part(&header[329..337])?, part(&header[337..345])?))
        };
        let kind = match header[156] {
            // Before POSIX a trailing slash made a directory.
            b'0' | 0 if path.ends_with(b"/") => EntryKind::Directory,
            b'0' | 0 | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => {
                let (major, minor) = device()?;
                EntryKind::CharacterDevice { major, minor }
            }
            b'4' => {
                let (major, minor) = device()?;
                EntryKind::BlockDevice { major, minor }
            }
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => {
                let name = readable(&path);
                return Err(invalid(format!(
                    "{name}: unknown entry type {:?}",
                    char::from(other)
                )));
            }
        };
        let named = |error: TarError| match error {
            TarError::Invalid(why) => invalid(format!("{}: {why}", readable(&path))),
            other => other,
        };
        let id = |given: Option<i64>, field: &[u8], what: &str| -> Result<u32> {
            let value = match given {
                Some(value) => value,
                None => number(field, what)?,
            };
            u32::try_from(value).map_err(|_| invalid(format!("{what} {value} is out of range")))
        };
        let uid = id(pax.uid, &header[108..116], "uid").map_err(named)?;
        let gid = id(pax.gid, &header[116..124], "gid").map_err(named)?;
        let mode = number(&header[100..108], "mode").map_err(named)? & 0o7777;
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => Timestamp {
                seconds: number(&header[136..148], "mtime").map_err(named)?,
                nanoseconds: 0,
            },
        };
        let mut size = 0;
        let mut extents = None;
        if kind == EntryKind::File {
            self.enter_data(stored);
            size = stored;
            let sparse = if header[156] == b'S' {
                Some(self.old_gnu_sparse(header)?)
            } else if pax.sparse.is_version_1() {
                let real_size = pax
                    .sparse
                    .size
                    .ok_or_else(|| invalid("sparse without size"));
                Some((real_size.map_err(named)?, self.sparse_map_1_0()?))
            } else {
                pax.sparse.map().map_err(TarError::Invalid).map_err(named)?
            };
            if let Some((real_size, map)) = sparse {
                let sum = map
                    .iter()
                    .try_fold(0_u64, |sum, extent| sum.checked_add(extent.length));
                if sum != Some(self.remaining) {
                    return Err(named(invalid("sparse map does not match the data")));
                }
                size = real_size;
                extents = Some(map);
            }
        }
        Ok(Entry {
            path,
            kind,
            link,
            mode: u16::try_from(mode).unwrap_or(0),
            uid,
            gid,
            mtime,
            xattrs: pax.xattrs,
            size,
            extents,
        })
    }

    /// The header's four extents and those of the extension records behind it. Real size, map.
    fn old_gnu_sparse(&mut self, header: &[u8; RECORD]) -> Result<(u64, Vec<Extent>)> {
        let mut map = Vec::new();
        // The extension records are not counted in the entry's size.
        let data = std::mem::take(&mut self.remaining);
        let padding = std::mem::take(&mut self.padding);
        let parse = |fields: &[u8], map: &mut Vec<Extent>| -> Result<()> {
            for field in fields.chunks_exact(24) {
                if field[0] == 0 {
                    break;
                }
                let part = |field: &[u8]| {
                    u64::try_from(number(field, "sparse map")?)
                        .map_err(|_| invalid("negative number in a sparse map"))
                };
                map.push(Extent {
                    offset: part(&field[..12])?,
                    length: part(&field[12..])?,
                });
            }
            Ok(())
        };
        parse(&header[386..482], &mut map)?;
        let real_size = u64::try_from(number(&header[483..495], "real size")?)
            .map_err(|_| invalid("negative size"))?;
        let mut extended = header[482] != 0;
        while extended {
            let mut record = [0; RECORD];
            self.read_exact_raw(&mut record, "a sparse map")?;
            parse(&record[..504], &mut map)?;
            extended = record[504] != 0;
            if map.len() > MAX_EXTENTS {
                return Err(invalid("sparse map has too many extents"));
            }
        }
        self.remaining = data;
        self.padding = padding;
        Ok((real_size, map))
    }

    /// Decimal lines at the start of the data, filled up to a record: a count, then offset and
    /// length of each extent.
    fn sparse_map_1_0(&mut self) -> Result<Vec<Extent>> {
        let mut consumed = 0_u64;
        let mut line = |stream: &mut Self| -> Result<u64> {
            let mut value = 0_u64;
            let mut digits = 0;
            loop {
                let mut byte = [0];
                stream.read_data_exact(&mut byte, "a sparse map")?;
                consumed += 1;
                match byte[0] {
                    b'\n' if digits > 0 => return Ok(value),
                    digit @ b'0'..=b'9' if digits < 20 => {
                        digits += 1;
                        value = value
                            .checked_mul(10)
                            .and_then(|value| value.checked_add(u64::from(digit - b'0')))
                            .ok_or_else(|| invalid("number in a sparse map is too large"))?;
                    }
                    _ => return Err(invalid("malformed sparse map")),
                }
            }
        };
        let count = usize::try_from(line(self)?).unwrap_or(usize::MAX);
        if count > MAX_EXTENTS {
            return Err(invalid("sparse map has too many extents"));
        }
        let mut map = Vec::new();
        for _ in 0..count {
            map.push(Extent {
                offset: line(self)?,
                length: line(self)?,
            });
        }
        let mut filler = [0; RECORD];
        let rest = usize::try_from(consumed.next_multiple_of(RECORD_U64) - consumed).unwrap_or(0);
        self.read_data_exact(&mut filler[..rest], "a sparse map")?;
        Ok(map)
    }

    fn enter_data(&mut self, size: u64) {
        self.remaining = size;
        self.padding = size.wrapping_neg() % RECORD_U64;
    }

    fn skip_rest(&mut self, may_end: bool) -> Result<()> {
        // Apart, since a hostile size plus padding may overflow. A stream may end with its last
        // file's last byte: some writers leave out what fills the record, and the end marker.
        for (count, may_end) in [(&mut self.remaining, false), (&mut self.padding, may_end)] {
            while *count > 0 {
                let available = self.input.fill_buf()?.len();
                if available == 0 && may_end {
                    *count = 0;
                } else if available == 0 {
                    return Err(TarError::Truncated("an entry's data".to_owned()));
                }
                let part = available.min(usize::try_from(*count).unwrap_or(usize::MAX));
                self.input.consume(part);
                *count -= part as u64;
            }
        }
        Ok(())
    }

    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(size.min(MAX_EXTENSION + 1)).unwrap_or(0);
        if size > MAX_EXTENSION {
            return Err(invalid(format!(
                "extended header of {size} bytes is too large"
            )));
        }
        self.enter_data(size);
        let mut data = vec![0; length];
        self.read_data_exact(&mut data, "an extended header")?;
        Ok(data)
    }

    fn read_data_exact(&mut self, buffer: &mut [u8], what: &str) -> Result<()> {
        self.read_exact(buffer)
            .map_err(|error| truncated(error, what))
    }

    fn read_exact_raw(&mut self, buffer: &mut [u8], what: &str) -> Result<()> {
        self.input
            .read_exact(buffer)
            .map_err(|error| truncated(error, what))
    }

    /// The next header; `None` at the end marker, or at the stream's end before a header.
    fn read_header(&mut self) -> Result<Option<[u8; RECORD]>> {
        if self.ended || self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut header = [0; RECORD];
        self.read_exact_raw(&mut header, "a header")?;
        if header.iter().all(|byte| *byte == 0) {
            // Two zero records end an archive; one and the stream's end do for docker too.
            self.ended = true;
            if !self.input.fill_buf()?.is_empty() {
                self.read_exact_raw(&mut header, "the end marker")?;
                if header.iter().any(|byte| *byte != 0) {
                    return Err(invalid("data follows a zero record"));
                }
            }
            return Ok(None);
        }
        let expected = number(&header[148..156], "checksum")?;
        let mut unsigned = 0_i64;
        let mut signed = 0_i64;
        for (at, byte) in header.iter().enumerate() {
            let byte = if (148..156).contains(&at) {
                b' '
            } else {
                *byte
            };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if expected != unsigned && expected != signed {
            return Err(invalid("wrong header checksum; is this a tar archive?"));
        }
        Ok(Some(header))
    }
}

/// Reads the current entry's data.
impl<R: BufRead> Read for TarStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl<R: BufRead> BufRead for TarStream<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let available = self.input.fill_buf()?;
        let limit = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        Ok(&available[..available.len().min(limit)])
    }

    fn consume(&mut self, amount: usize) {
        self.input.consume(amount);
        self.remaining -= amount as u64;
    }
}

fn invalid(why: impl Into<String>) -> TarError {
    TarError::Invalid(why.into())
}

fn truncated(error: io::Error, what: &str) -> TarError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => TarError::Truncated(what.to_owned()),
        _ => TarError::Read(error),
    }
}

/// For messages: lossy, cut to 200 characters.
pub fn readable(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    text.chars()
        .flat_map(char::escape_default)
        .take(200)
        .collect()
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

/// Name and, in POSIX headers, prefix. GNU headers have times where the prefix would be.
fn header_path(header: &[u8; RECORD]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    let prefix = until_nul(&header[345..500]);
    if &header[257..263] != b"ustar\0" || prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

/// An octal number with spaces or NULs around it, or a base-256 one (first bit set). An empty
/// field is 0.
fn number(field: &[u8], what: &str) -> Result<i64> {
    let error = || invalid(format!("malformed {what}"));
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        // Without the marker bit, sign-extended.
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let mut value = i128::from(first.cast_signed());
        for byte in &field[1..] {
            value = value << 8 | i128::from(*byte);
        }
        return i64::try_from(value).map_err(|_| error());
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().take_while(|byte| blank(byte)).count();
    let digits = field[start..].split(blank).next().unwrap_or_default();
    if !field[start + digits.len()..].iter().all(blank) {
        return Err(error());
    }
    digits.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => Ok(value << 3 | i64::from(digit - b'0')),
        _ => Err(error()),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::{Header, TarWriter};

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0", "x").unwrap(), 0o644);
        assert_eq!(number(b" 12 \0\0\0\0", "x").unwrap(), 0o12);
        assert_eq!(number(&[0; 8], "x").unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0], "x").unwrap(), 256);
        assert_eq!(number(&[0xff; 12], "x").unwrap(), -1);
        assert_eq!(number(b"777777777777", "x").unwrap(), 0o777_777_777_777);
        assert!(number(b"12 34 \0\0", "x").is_err());
        assert!(number(b"0000008\0", "x").is_err());
        assert!(
            number(
                &[0xbf, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255],
                "x"
            )
            .is_err()
        );
    }

    #[test]
    fn a_stream_may_end_with_its_last_files_last_byte() {
        let header = Header {
            path: b"file",
            kind: EntryKind::File,
            link: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 0,
            size: 6,
            xattrs: &[],
        };
        let mut writer = TarWriter::new(Vec::new());
        writer.begin(&header).unwrap();
        writer.write_all(b"words\n").unwrap();
        let whole = writer.finish().unwrap();
        let read = |length: usize| -> Result<Vec<u8>> {
            let mut stream = TarStream::new(&whole[..length]);
            assert!(stream.next_entry()?.is_some());
            let mut data = Vec::new();
            stream.read_to_end(&mut data)?;
            assert!(stream.next_entry()?.is_none());
            Ok(data)
        };
        let end = RECORD + 6;
        for length in [end, end + 1, 2 * RECORD, 3 * RECORD, 4 * RECORD] {
            assert_eq!(read(length).unwrap(), b"words\n", "{length}");
        }
        for length in [end - 1, RECORD, RECORD - 1, 2 * RECORD + 1] {
            assert!(
                matches!(read(length), Err(TarError::Truncated(_))),
                "{length}"
            );
        }
    }
}
