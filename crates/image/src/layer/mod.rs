//! From a layer's stream to its EROFS image, in one pass: decompress, hash, convert.
//!
//! Three threads share each buffer: one reads and decompresses, one hashes (and keeps a
//! compressed copy where asked), one parses the tar and writes the image.

mod apply;
mod compression;
mod pipeline;

use std::fs::File;
use std::io::{self, Read};

use bulkhead_erofs::{Limits, Options};

pub(crate) use bulkhead_tar::{EntryKind, TarError, TarStream, readable};
pub(crate) use compression::{Compression, decoder};
pub(crate) use pipeline::{Kept, KeptTar};

use crate::digest::Digest;
use crate::error::{ImageError, Result};

/// Most bytes of one uncompressed layer, trailing padding included: 1 TiB.
pub const MAX_LAYER_BYTES: u64 = 1 << 40;

/// A converted layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvertedLayer {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Bytes of the uncompressed tar.
    pub tar_bytes: u64,
    /// Bytes of the EROFS image, a multiple of 4096.
    pub image_bytes: u64,
    /// Sum of the sizes of its files and symlinks, which is what docker calls a layer's size.
    pub content_bytes: u64,
    /// How many inodes the image has.
    pub inodes: u64,
}

/// Whether a stream that begins so (6 bytes tell) is compressed in a way that layers are.
pub fn is_compressed(prefix: &[u8]) -> bool {
    Compression::detect(prefix) != Compression::Plain
}

/// A stream without its compression, if it has one, within bounded memory. Reads its first
/// bytes at once.
///
/// # Errors
/// What the stream says.
pub fn decompressed(mut source: impl Read + Send + 'static) -> io::Result<Box<dyn Read + Send>> {
    let mut prefix = Vec::new();
    let most = u64::try_from(Compression::PREFIX).unwrap_or(u64::MAX);
    source.by_ref().take(most).read_to_end(&mut prefix)?;
    let compression = Compression::detect(&prefix);
    decoder(io::Cursor::new(prefix).chain(source), compression)
}

/// Converts one layer, plain or compressed (gzip, zstd, xz, bzip2, told by its first bytes),
/// into an EROFS image written to `output`, which must be empty. The output is synced to disk.
///
/// Whiteouts become what overlayfs reads: `.wh.name` a character device 0:0, `.wh..wh..opq`
/// the attribute `trusted.overlay.opaque` on its directory.
///
/// # Errors
/// [`ImageError::InvalidInput`] if the stream is malformed, truncated, hostile or over a
/// limit; the output's contents are then of no use.
pub fn convert_layer(source: &mut (dyn Read + Send), output: &File) -> Result<ConvertedLayer> {
    convert_layer_keeping(source, output, Kept::Nothing)
}

/// The same, also storing what is needed to give the tar back byte for byte.
pub(crate) fn convert_layer_keeping(
    source: &mut (dyn Read + Send),
    output: &File,
    kept: Kept<'_>,
) -> Result<ConvertedLayer> {
    let limits = Limits::default();
    let (digest, tar_bytes, summary) = pipeline::run(source, kept, |input| {
        apply::write_image(
            input,
            output,
            Options {
                uuid: [0; 16],
                limits,
            },
        )
    })?;
    output.sync_all().map_err(|source| ImageError::Storage {
        what: "sync a layer's image".to_owned(),
        source,
    })?;
    Ok(ConvertedLayer {
        diff_id: digest,
        tar_bytes,
        image_bytes: summary.image_bytes,
        content_bytes: summary.content_bytes,
        inodes: summary.inodes,
    })
}
