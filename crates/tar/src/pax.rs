//! Pax extended headers: the records that matter for a layer.

use bulkhead_erofs::{Extent, Timestamp};

use crate::reader::MAX_EXTENTS;

/// Most xattrs on one entry.
const MAX_XATTRS: usize = 1024;
/// Most bytes of one xattr's value, as EROFS counts it (Linux allows one more).
const MAX_XATTR_VALUE: usize = 65_535;

/// What one or more pax headers say about the entry behind them.
#[derive(Debug, Default)]
pub(crate) struct PaxHeader {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) mtime: Option<Timestamp>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: PaxSparse,
}

/// GNU's records about sparse files.
#[derive(Debug, Default)]
pub(crate) struct PaxSparse {
    major: Option<u64>,
    minor: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    /// The file's size (`GNU.sparse.size` in 0.0 and 0.1, `GNU.sparse.realsize` in 1.0).
    pub(crate) size: Option<u64>,
    /// Offsets and lengths by turns (0.0 and 0.1).
    numbers: Vec<u64>,
    has_map: bool,
}

impl PaxSparse {
    /// Whether the map is in the data.
    pub(crate) fn is_version_1(&self) -> bool {
        self.major == Some(1) && self.minor == Some(0)
    }

    /// Size and map of formats 0.0 and 0.1.
    pub(crate) fn map(&self) -> Result<Option<(u64, Vec<Extent>)>, String> {
        if self.major.is_some_and(|major| major > 0) {
            return Err("unknown format of sparse files".to_owned());
        }
        let Some(size) = self.size.filter(|_| self.has_map) else {
            return Ok(None);
        };
        let pairs = self.numbers.chunks_exact(2);
        if !pairs.remainder().is_empty() {
            return Err("sparse map has an odd count".to_owned());
        }
        let extent = |pair: &[u64]| Extent {
            offset: pair[0],
            length: pair[1],
        };
        Ok(Some((size, pairs.map(extent).collect())))
    }
}

impl PaxHeader {
    /// Takes in the records `<length> <key>=<value>\n` of one header.
    pub(crate) fn parse(&mut self, mut data: &[u8]) -> Result<(), String> {
        while !data.is_empty() {
            let malformed = || "malformed pax record".to_owned();
            let space = data
                .iter()
                .take(8)
                .position(|byte| *byte == b' ')
                .ok_or_else(malformed)?;
            let length = usize::try_from(decimal(&data[..space]).ok_or_else(malformed)?)
                .map_err(|_| malformed())?;
            if length <= space + 1 || length > data.len() || data[length - 1] != b'\n' {
                return Err(malformed());
            }
            let record = &data[space + 1..length - 1];
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or_else(malformed)?;
            self.record(&record[..equals], &record[equals + 1..])?;
            data = &data[length..];
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let text = || -> Result<Option<Vec<u8>>, String> {
            if value.contains(&0) {
                return Err("NUL in a pax path".to_owned());
            }
            // An empty value cancels an earlier one.
            Ok(Some(value.to_vec()).filter(|value| !value.is_empty()))
        };
        let whole = || -> Result<u64, String> {
            decimal(value).ok_or_else(|| "malformed number in a pax record".to_owned())
        };
        let id = || -> Result<Option<i64>, String> {
            match value {
                b"" => Ok(None),
                _ => i64::try_from(whole()?)
                    .map(Some)
                    .map_err(|error| error.to_string()),
            }
        };
        match key {
            b"path" => self.path = text()?,
            b"linkpath" => self.link = text()?,
            b"size" if value.is_empty() => self.size = None,
            b"size" => self.size = Some(whole()?),
            b"uid" => self.uid = id()?,
            b"gid" => self.gid = id()?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => {
                let time = time(value).ok_or_else(|| "malformed mtime in a pax record".to_owned());
                self.mtime = Some(time?);
            }
            b"GNU.sparse.major" => self.sparse.major = Some(whole()?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(whole()?),
            b"GNU.sparse.name" => self.sparse.name = text()?,
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.size = Some(whole()?),
            b"GNU.sparse.numblocks" => self.sparse.has_map = true,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                // They come in pairs, the offset first.
                let is_offset = key == b"GNU.sparse.offset";
                if is_offset != self.sparse.numbers.len().is_multiple_of(2) {
                    return Err("sparse map out of order".to_owned());
                }
                self.push_number(whole()?)?;
            }
            b"GNU.sparse.map" => {
                self.sparse.has_map = true;
                self.sparse.numbers.clear();
                for part in value
                    .split(|byte| *byte == b',')
                    .filter(|_| !value.is_empty())
                {
                    let number = decimal(part).ok_or_else(|| "malformed sparse map".to_owned())?;
                    self.push_number(number)?;
                }
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if self.xattrs.len() == MAX_XATTRS {
                        return Err("too many extended attributes".to_owned());
                    }
                    if value.len() > MAX_XATTR_VALUE {
                        return Err("extended attribute is too large".to_owned());
                    }
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }

    fn push_number(&mut self, number: u64) -> Result<(), String> {
        if self.sparse.numbers.len() >= 2 * MAX_EXTENTS {
            return Err("sparse map has too many extents".to_owned());
        }
        self.sparse.numbers.push(number);
        Ok(())
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// Seconds with an optional fraction, of which nine digits count.
fn time(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds = (0..9).fold(0_u32, |value, at| {
        value * 10 + fraction.get(at).map_or(0, |digit| u32::from(digit - b'0'))
    });
    Some(match (negative, nanoseconds) {
        (false, nanoseconds) => Timestamp {
            seconds,
            nanoseconds,
        },
        (true, 0) => Timestamp {
            seconds: -seconds,
            nanoseconds: 0,
        },
        (true, nanoseconds) => Timestamp {
            seconds: -seconds - 1,
            nanoseconds: 1_000_000_000 - nanoseconds,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let mut header = PaxHeader::default();
        header
            .parse(b"11 path=ab\n20 mtime=-1.5000001\n28 SCHILY.xattr.user.a=\0\n\0=\n")
            .unwrap();
        assert_eq!(header.path.as_deref(), Some(&b"ab"[..]));
        assert_eq!(
            header.mtime,
            Some(Timestamp {
                seconds: -2,
                nanoseconds: 499_999_900
            })
        );
        assert_eq!(header.xattrs, [(b"user.a".to_vec(), b"\0\n\0=".to_vec())]);
        for bad in [
            &b"path=a\n"[..],
            b"99 path=a\n",
            b"5 a=",
            b"0 a=b\n",
            b"6 a=b\n\n",
            b"1",
        ] {
            assert!(PaxHeader::default().parse(bad).is_err(), "{bad:?}");
        }
        assert!(PaxHeader::default().parse(b"12 path=a\0b\n").is_err());
    }
}
