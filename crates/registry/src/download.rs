//! A layer's bytes on their way from a registry into the store: resumed where a connection
//! breaks off, never more than was announced, never waiting for ever.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bulkhead_image::{AnnouncedLayer, Digest, ImageStore, ReceivedLayer};
use bytes::{Buf, Bytes};
use reqwest::{Method, StatusCode};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::error::{RegistryError, Result};
use crate::http::{cause, header, request_line};
use crate::repository::{Repository, pause};

/// A server that sends less than so much in so long has stalled too.
const LEAST_BYTES: u64 = 16 << 10;
const LEAST_INTERVAL: Duration = Duration::from_secs(60);
/// What must have come since the last failure for this one to count as the first.
const GOOD_PROGRESS: u64 = 64 << 10;
/// Parts of a layer between the network and the converter; of at most 64 KiB each.
const QUEUE: usize = 16;
const PART: usize = 64 << 10;

/// A blob that is announced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) diff_id: Digest,
    /// Whether it is a gzip stream, which any image can have as its layer.
    pub(crate) is_gzip: bool,
}

/// Fetches and converts a layer in one pass.
pub(crate) async fn layer(
    repository: &Repository,
    store: &Arc<ImageStore>,
    blob: Blob,
    attempts: u32,
    progress: impl Fn(Step),
) -> Result<ReceivedLayer> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    // Dropped with this future: the converter then sees its source fail.
    let cancel = CancellationToken::new();
    let guard = cancel.clone().drop_guard();
    let store = Arc::clone(store);
    let convert = tokio::task::spawn_blocking(move || {
        let mut source = PartReader {
            parts: receiver,
            current: Bytes::new(),
            cancel,
        };
        let announced = AnnouncedLayer {
            diff_id: blob.diff_id,
            blob: blob.digest,
        };
        store.receive_layer(&mut source, &announced)
    });
    let fetched = fetch(repository, blob, attempts, &sender, &progress).await;
    let guard = match &fetched {
        Ok(()) => {
            progress(Step::Fetched);
            Some(guard)
        }
        // The converter is told and stops.
        Err(_) => {
            drop(guard);
            None
        }
    };
    drop(sender);
    let converted = convert.await.map_err(|error| {
        RegistryError::Configuration(format!("conversion of layer {}: {error}", blob.digest))
    })?;
    // Awaited to its end.
    drop(guard.map(DropGuard::disarm));
    match (fetched, converted) {
        (Ok(()), Ok(layer)) => Ok(layer),
        // The converter closes the channel when it fails; that failure is the cause.
        (Err(RegistryError::Cancelled) | Ok(()), Err(error)) => Err(of_layer(error, blob)),
        (Err(error), _) => Err(error),
    }
}

/// Names the layer in what the store says of it.
fn of_layer(error: bulkhead_image::ImageError, blob: Blob) -> RegistryError {
    use bulkhead_image::ImageError;
    match error {
        ImageError::DigestMismatch {
            what,
            actual,
            expected,
        } => RegistryError::InvalidAnswer(format!(
            "filesystem layer verification failed for digest {}: {what} has {actual}, not \
             {expected}",
            blob.digest
        )),
        ImageError::InvalidInput(why) => {
            RegistryError::InvalidAnswer(format!("failed to register layer {}: {why}", blob.digest))
        }
        error => RegistryError::Store(error),
    }
}

/// How a layer is getting on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// So many bytes have come.
    Bytes(u64),
    /// It broke off; in so many seconds it is resumed.
    Retrying(u64),
    /// All have come.
    Fetched,
}

/// Sends the blob's bytes, all of them and no more.
async fn fetch(
    repository: &Repository,
    blob: Blob,
    attempts: u32,
    sender: &mpsc::Sender<Bytes>,
    progress: &impl Fn(Step),
) -> Result<()> {
    let mut offset = 0;
    let mut failures = 0;
    loop {
        let before = offset;
        let error = match stream(repository, blob, &mut offset, sender, progress).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if offset - before >= GOOD_PROGRESS {
            failures = 0;
        }
        failures += 1;
        if !error.is_transient() || failures >= attempts {
            return Err(error);
        }
        let wait = pause(failures);
        tracing::debug!(digest = %blob.digest, offset, %error, "resuming a layer");
        progress(Step::Retrying(wait.as_secs().max(1)));
        tokio::time::sleep(wait).await;
    }
}

/// One answer's worth.
async fn stream(
    repository: &Repository,
    blob: Blob,
    offset: &mut u64,
    sender: &mpsc::Sender<Bytes>,
    progress: &impl Fn(Step),
) -> Result<()> {
    let mut response = repository.open_blob(&blob.digest, *offset).await?;
    let url = response.url().clone();
    let broken = |why: String| RegistryError::Transport {
        request: request_line(&Method::GET, &url),
        why,
        transient: true,
    };
    let too_long = || {
        RegistryError::InvalidAnswer(format!(
            "layer {} is longer than the {} bytes of its manifest",
            blob.digest, blob.size
        ))
    };
    // A server that knows no ranges begins anew: what we have is skipped.
    let mut skip = match response.status() {
        StatusCode::PARTIAL_CONTENT => {
            let range = header(response.headers(), "content-range");
            let start = range
                .trim_start_matches("bytes ")
                .split('-')
                .next()
                .and_then(|start| start.trim().parse::<u64>().ok());
            if start != Some(*offset) {
                return Err(broken(format!("unexpected range {range:?}")));
            }
            0
        }
        _ => *offset,
    };
    if response
        .content_length()
        .is_some_and(|length| length > blob.size)
    {
        return Err(too_long());
    }
    let mut window = (Instant::now(), *offset);
    while let Some(mut part) =
        tokio::time::timeout(repository.endpoint.server.patience, response.chunk())
            .await
            .map_err(|_| broken("the download stalled".to_owned()))?
            .map_err(|error| broken(cause(&error)))?
    {
        let skipped = skip.min(part.len() as u64);
        part.advance(usize::try_from(skipped).unwrap_or(part.len()));
        skip -= skipped;
        if *offset + part.len() as u64 > blob.size {
            return Err(too_long());
        }
        while !part.is_empty() {
            let piece = part.split_to(part.len().min(PART));
            *offset += piece.len() as u64;
            let waiting = Instant::now();
            sender
                .send(piece)
                .await
                .map_err(|_| RegistryError::Cancelled)?;
            // A slow disk is not the server's fault.
            window.0 += waiting.elapsed();
        }
        progress(Step::Bytes(*offset));
        if window.0.elapsed() >= LEAST_INTERVAL {
            if *offset - window.1 < LEAST_BYTES && skip == 0 {
                return Err(broken("the download is too slow".to_owned()));
            }
            window = (Instant::now(), *offset);
        }
    }
    if *offset < blob.size {
        return Err(broken("unexpected EOF".to_owned()));
    }
    Ok(())
}

/// The parts as a blocking stream. Ends with an error where the sender gave up.
struct PartReader {
    parts: mpsc::Receiver<Bytes>,
    current: Bytes,
    cancel: CancellationToken,
}

impl Read for PartReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.parts.blocking_recv() {
                Some(part) => self.current = part,
                None if self.cancel.is_cancelled() => {
                    return Err(io::Error::other("the download was given up"));
                }
                None => return Ok(0),
            }
        }
        let length = out.len().min(self.current.len());
        out[..length].copy_from_slice(&self.current[..length]);
        self.current.advance(length);
        Ok(length)
    }
}
