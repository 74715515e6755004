//! Archives come plain or compressed; their first bytes tell.

use std::io::{self, BufReader, Read};

/// Bytes that tell all kinds apart.
const PREFIX: usize = 6;

/// A kind of compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Plain,
    Gzip,
    Zstd,
    Xz,
    Bzip2,
}

fn detect(prefix: &[u8]) -> Compression {
    match prefix {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
        [b'B', b'Z', b'h', ..] => Compression::Bzip2,
        _ => Compression::Plain,
    }
}

/// The uncompressed bytes of a stream.
///
/// # Errors
/// That its head cannot be read, or is malformed.
pub fn decoder<'a>(mut source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut prefix = Vec::with_capacity(PREFIX);
    (&mut source).take(PREFIX as u64).read_to_end(&mut prefix)?;
    let compression = detect(&prefix);
    let source = BufReader::with_capacity(64 << 10, io::Cursor::new(prefix).chain(source));
    Ok(match compression {
        Compression::Plain => Box::new(source),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(source)?),
        Compression::Xz => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(source)),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(source)),
    })
}

/// Whether the first bytes are those of an archive that `ADD` unpacks: compressed, or a tar
/// with a valid header.
pub fn is_archive(head: &[u8]) -> bool {
    let first_header = |head: &[u8]| {
        head.len() >= 512 && {
            let sum: u32 = head[..512]
                .iter()
                .enumerate()
                .map(|(at, byte)| {
                    if (148..156).contains(&at) {
                        u32::from(b' ')
                    } else {
                        u32::from(*byte)
                    }
                })
                .sum();
            let field: String = head[148..156]
                .iter()
                .map(|byte| char::from(*byte))
                .collect();
            let field = field.trim_matches(|c: char| c == ' ' || c == '\0');
            u32::from_str_radix(field, 8).is_ok_and(|expected| expected == sum)
        }
    };
    match detect(head) {
        Compression::Plain => first_header(head),
        _ => {
            let mut inner = vec![0; 512];
            let Ok(mut decoded) = decoder(head) else {
                return false;
            };
            let mut length = 0;
            // The head may end in the middle of the compressed stream.
            while length < inner.len() {
                match decoded.read(&mut inner[length..]) {
                    Ok(0) | Err(_) => break,
                    Ok(read) => length += read,
                }
            }
            first_header(&inner[..length])
        }
    }
}
