//! The threads of a conversion and the buffers between them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use sha2::{Digest as _, Sha256};

use super::compression::{Compression, decoder};
use super::{MAX_LAYER_BYTES, TarError, TarStream};
use crate::digest::Digest;
use crate::error::{ImageError, Result};

const BUFFER: usize = 256 << 10;
/// Buffers waiting for each consumer; with those in hand, some 5 MiB per conversion.
const QUEUE: usize = 8;
/// Fast; the kept copy saves half the disk at the speed at which the tar is written.
const ZSTD_LEVEL: i32 = 1;

/// What is stored beside the image.
pub(crate) enum Kept<'a> {
    /// Nothing: the stream is at hand elsewhere.
    Nothing,
    /// The tar. A stream that came compressed is kept as it came, a plain one compressed.
    Tar(&'a mut KeptTar),
}

/// A file that takes what [`Kept::Tar`] stores.
pub(crate) struct KeptTar {
    pub(crate) file: File,
    /// Set when the stream came compressed: digest and length of what was received.
    pub(crate) received: Option<(Digest, u64)>,
}

/// From so many uncompressed bytes on a stream must not have grown by more than this factor.
/// gzip cannot do more; zstd can, to make a terabyte of a few kilobytes. The start is there for
/// the sake of disk images full of nothing.
const BOMB_BYTES: u64 = 16 << 30;
const BOMB_FACTOR: u64 = 1100;

/// Uncompressed bytes in equal parts.
type Buffer = Arc<Vec<u8>>;

/// Why the reading side stopped.
enum PumpError {
    /// The caller's stream failed.
    Source(io::Error),
    /// It cannot be decompressed.
    Corrupt(io::Error),
    TooLong,
    /// It expands beyond all measure.
    Bomb,
    /// The kept copy could not be written.
    Keep(io::Error),
}

impl From<PumpError> for ImageError {
    fn from(error: PumpError) -> Self {
        match error {
            PumpError::Source(source) => Self::Input {
                what: "the layer".to_owned(),
                source,
            },
            PumpError::Corrupt(source) => {
                Self::InvalidInput(format!("cannot decompress the layer: {source}"))
            }
            PumpError::TooLong => {
                Self::InvalidInput(format!("the layer is over {MAX_LAYER_BYTES} bytes"))
            }
            PumpError::Bomb => Self::InvalidInput(format!(
                "the layer expands to more than {BOMB_FACTOR} times its size: a decompression bomb"
            )),
            PumpError::Keep(source) => Self::Storage {
                what: "keep the layer's tar".to_owned(),
                source,
            },
        }
    }
}

/// Runs `convert` over the uncompressed stream. Returns the stream's digest and length too.
pub(crate) fn run<T>(
    source: &mut (dyn Read + Send),
    kept: Kept<'_>,
    convert: impl FnOnce(&mut TarStream<BufferReader>) -> Result<T>,
) -> Result<(Digest, u64, T)> {
    let (to_tar, from_pump) = sync_channel(QUEUE);
    let (to_hash, hash_input) = sync_channel::<Buffer>(QUEUE);
    let mut prefix = [0; Compression::PREFIX];
    let prefix_length = read_up_to(source, &mut prefix).map_err(PumpError::Source)?;
    let prefix = &prefix[..prefix_length];
    thread::scope(|scope| {
        let compression = Compression::detect(prefix);
        let (raw_copy, plain_copy) = match kept {
            Kept::Nothing => (None, None),
            Kept::Tar(kept) if compression == Compression::Plain => (None, Some(kept)),
            Kept::Tar(kept) => (Some(kept), None),
        };
        let pump = scope.spawn(move || {
            let received = AtomicU64::new(0);
            let mut raw = RawStream::new(prefix.chain(source), raw_copy, &received);
            let result = pump(&mut raw, &received, compression, &to_tar, &to_hash);
            // The source's own failure shows up as the decoder's.
            if let Some(failure) = raw.failure.take() {
                return Err(failure);
            }
            let length = result?;
            raw.finish()?;
            Ok(length)
        });
        let hash = scope.spawn(move || hash(&hash_input, plain_copy));
        let converted = {
            let mut stream = TarStream::new(BufferReader::new(from_pump));
            let converted = convert(&mut stream);
            match converted {
                Ok(converted) => stream.drain().map_err(ImageError::from).map(|()| converted),
                Err(error) => Err(error),
            }
            // Dropping the receiver stops the pump, and that the hash.
        };
        let pumped = pump
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let hashed = hash
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // A broken stream looks truncated to the tar reader: its cause comes first.
        let length = pumped.map_err(ImageError::from)?;
        let digest = hashed.map_err(PumpError::Keep)?;
        Ok((digest, length, converted?))
    })
}

impl From<TarError> for ImageError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Read(source) => Self::Input {
                what: "the tar stream".to_owned(),
                source,
            },
            error => Self::InvalidInput(error.to_string()),
        }
    }
}

fn pump(
    raw: &mut RawStream<'_, impl Read + Send>,
    received: &AtomicU64,
    compression: Compression,
    to_tar: &SyncSender<Buffer>,
    to_hash: &SyncSender<Buffer>,
) -> std::result::Result<u64, PumpError> {
    let mut input = decoder(raw, compression).map_err(PumpError::Corrupt)?;
    let mut total = 0_u64;
    // Buffers handed out; the oldest is reused as soon as both consumers are done with it.
    let mut used: VecDeque<Buffer> = VecDeque::new();
    loop {
        let free = used
            .front_mut()
            .is_some_and(|buffer| Arc::get_mut(buffer).is_some());
        let recycled = if free { used.pop_front() } else { None };
        let mut buffer = recycled.unwrap_or_else(|| Arc::new(Vec::with_capacity(BUFFER)));
        // Not shared yet, or not any more.
        let Some(bytes) = Arc::get_mut(&mut buffer) else {
            continue;
        };
        bytes.resize(BUFFER, 0);
        let length = read_up_to(&mut input, bytes).map_err(PumpError::Corrupt)?;
        if length == 0 {
            return Ok(total);
        }
        bytes.truncate(length);
        total += length as u64;
        if total > MAX_LAYER_BYTES {
            return Err(PumpError::TooLong);
        }
        if total > BOMB_BYTES && total / BOMB_FACTOR > received.load(Ordering::Relaxed) {
            return Err(PumpError::Bomb);
        }
        // A consumer that is gone has failed and will say why.
        if to_tar.send(Arc::clone(&buffer)).is_err() || to_hash.send(Arc::clone(&buffer)).is_err() {
            return Ok(total);
        }
        used.push_back(buffer);
    }
}

fn hash(input: &Receiver<Buffer>, kept: Option<&mut KeptTar>) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let Some(kept) = kept else {
        for buffer in input {
            hasher.update(&buffer[..]);
        }
        return Ok(Digest::from_bytes(hasher.finalize().into()));
    };
    let mut encoder = zstd::stream::write::Encoder::new(&kept.file, ZSTD_LEVEL)?;
    encoder.include_checksum(true)?;
    for buffer in input {
        hasher.update(&buffer[..]);
        encoder.write_all(&buffer)?;
    }
    encoder.finish()?;
    kept.file.sync_all()?;
    Ok(Digest::from_bytes(hasher.finalize().into()))
}

/// The caller's stream, copied to a file and hashed on the way if so asked.
struct RawStream<'a, R> {
    source: R,
    copy: Option<(&'a mut KeptTar, BufWriter<File>, Sha256, u64)>,
    failure: Option<PumpError>,
    received: &'a AtomicU64,
}

impl<'a, R: Read> RawStream<'a, R> {
    fn new(source: R, kept: Option<&'a mut KeptTar>, received: &'a AtomicU64) -> Self {
        let mut failure = None;
        let copy = kept.and_then(|kept| match kept.file.try_clone() {
            Ok(file) => Some((
                kept,
                BufWriter::with_capacity(1 << 20, file),
                Sha256::new(),
                0,
            )),
            Err(error) => {
                failure = Some(PumpError::Keep(error));
                None
            }
        });
        Self {
            source,
            copy,
            failure,
            received,
        }
    }

    /// Reads what the decoder left, so that the copy is whole, and syncs the copy.
    fn finish(mut self) -> std::result::Result<(), PumpError> {
        if self.copy.is_none() {
            return Ok(());
        }
        let copied = io::copy(&mut self, &mut io::sink());
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        copied.map_err(PumpError::Source)?;
        if let Some((kept, mut writer, hasher, length)) = self.copy {
            writer.flush().map_err(PumpError::Keep)?;
            writer.get_ref().sync_all().map_err(PumpError::Keep)?;
            kept.received = Some((Digest::from_bytes(hasher.finalize().into()), length));
        }
        Ok(())
    }
}

impl<R: Read> Read for RawStream<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.failure.is_some() {
            return Err(io::Error::other("the stream has failed"));
        }
        let length = match self.source.read(buffer) {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                self.failure = Some(PumpError::Source(error));
                return Err(io::Error::other("the stream has failed"));
            }
        };
        self.received.fetch_add(length as u64, Ordering::Relaxed);
        if let Some((_, writer, hasher, total)) = &mut self.copy {
            hasher.update(&buffer[..length]);
            *total += length as u64;
            if let Err(error) = writer.write_all(&buffer[..length]) {
                self.failure = Some(PumpError::Keep(error));
                return Err(io::Error::other("the copy has failed"));
            }
        }
        Ok(length)
    }
}

/// The uncompressed stream as the tar reader sees it.
pub(crate) struct BufferReader {
    input: Receiver<Buffer>,
    current: Option<Buffer>,
    position: usize,
}

impl BufferReader {
    fn new(input: Receiver<Buffer>) -> Self {
        Self {
            input,
            current: None,
            position: 0,
        }
    }
}

impl Read for BufferReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for BufferReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let used_up = self
            .current
            .as_ref()
            .is_none_or(|buffer| self.position >= buffer.len());
        if used_up {
            self.current = None;
            self.position = 0;
            // The pump's end is the stream's end; if it failed, its error is reported instead.
            self.current = self.input.recv().ok();
        }
        Ok(self
            .current
            .as_ref()
            .map_or(&[], |buffer| &buffer[self.position..]))
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount;
    }
}

fn read_up_to(source: &mut (impl Read + ?Sized), buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match source.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}
