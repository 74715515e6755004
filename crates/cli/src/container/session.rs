//! Streams between this process and a container (or an exec) over a hijacked connection:
//! standard input until its end or the detach keys, output until the daemon closes it, raw
//! terminal mode around both, and the terminal's size.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

use crate::client::{ClientError, FrameDecoder, Hijacked, Request, StreamKind};
use crate::command::Ctx;
use crate::error::{CliError, CliResult};
use crate::output::{complain, output_error};
use crate::terminal::{self, RawMode};

/// Bytes that are read at once.
const CHUNK: usize = 32 << 10;

/// The key sequence that detaches when none is configured: ctrl-p ctrl-q.
const DEFAULT_DETACH_KEYS: [u8; 2] = [16, 17];

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The daemon closed the stream.
    Closed,
    /// The user typed the detach keys.
    Detached,
}

/// Which streams are connected, and how.
pub struct Session {
    /// Standard input goes to the container.
    pub stdin: bool,
    /// Standard output is shown.
    pub stdout: bool,
    /// Standard error is shown.
    pub stderr: bool,
    /// The container has a terminal: output is not framed.
    pub tty: bool,
    /// The keys that detach.
    pub detach_keys: Vec<u8>,
}

/// The size of whose terminal follows ours.
#[derive(Clone, Debug)]
pub enum Resized {
    /// A container's.
    Container(String),
    /// An exec's.
    Exec(String),
}

/// Parses a detach key sequence, such as `ctrl-p,ctrl-q` or `a`; empty is the default.
pub fn detach_keys(text: &str) -> Result<Vec<u8>, CliError> {
    if text.is_empty() {
        return Ok(DEFAULT_DETACH_KEYS.to_vec());
    }
    text.split(',')
        .map(|key| {
            let control = key.strip_prefix("ctrl-");
            match (control.unwrap_or(key).as_bytes(), control.is_some()) {
                ([byte], false) if byte.is_ascii() => Some(*byte),
                ([letter @ b'a'..=b'z'], true) => Some(letter - b'a' + 1),
                ([b'@'], true) => Some(0),
                ([b'['], true) => Some(27),
                ([b'\\'], true) => Some(28),
                ([b']'], true) => Some(29),
                ([b'^'], true) => Some(30),
                ([b'_'], true) => Some(31),
                (b"DEL", false) => Some(127),
                _ => None,
            }
        })
        .collect::<Option<Vec<u8>>>()
        .ok_or_else(|| CliError::msg(format!("invalid detach keys ({text}) provided")))
}

/// Refuses a terminal session whose standard input is none.
pub fn check_tty(attach_stdin: bool, tty: bool) -> CliResult {
    if tty && attach_stdin && !terminal::stdin_is_terminal() {
        return Err(CliError::msg("the input device is not a TTY"));
    }
    Ok(())
}

/// A session that runs beside the requests that start its container: keys that are typed
/// meanwhile are for the container, and the terminal is raw from the start.
pub struct Running(tokio::task::JoinHandle<CliResult<Ended>>);

impl Running {
    /// Waits for the end.
    pub async fn ended(&mut self) -> CliResult<Ended> {
        match (&mut self.0).await {
            Ok(ended) => ended,
            Err(error) => Err(CliError::msg(format!("the session failed: {error}"))),
        }
    }

    /// Ends it at once and puts the terminal back.
    pub async fn cancel(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await;
        terminal::restore();
    }
}

impl Session {
    /// Runs in the background.
    pub fn spawn(self, connection: Hijacked) -> Running {
        Running(tokio::task::spawn_local(self.run(connection)))
    }

    /// Moves bytes both ways until the daemon closes its direction or the user detaches.
    /// The end of standard input closes only ours.
    pub async fn run(self, connection: Hijacked) -> CliResult<Ended> {
        let Hijacked { mut reader, writer } = connection;
        let raw = if self.stdin && self.tty && terminal::stdin_is_terminal() {
            Some(RawMode::enter().map_err(|e| CliError::io("set the terminal to raw mode", e))?)
        } else {
            None
        };
        if raw.is_some() {
            restore_on_fatal_signals()?;
        }
        let (stdin, tty, keys) = (self.stdin, self.tty, self.detach_keys.clone());
        let input = async move {
            if !stdin {
                return std::future::pending().await;
            }
            match forward_input(tokio::io::stdin(), writer, tty.then_some(keys.as_slice())).await {
                Some(Ended::Detached) => Ended::Detached,
                // Output goes on after the end of input.
                _ => std::future::pending().await,
            }
        };
        let output = self.copy_output(&mut reader);
        let ended = tokio::select! {
            biased;
            copied = output => copied.map(|()| Ended::Closed),
            ended = input => Ok(ended),
        };
        drop(raw);
        ended
    }

    async fn copy_output(&self, reader: &mut (impl AsyncRead + Unpin)) -> CliResult {
        let mut out = tokio::io::stdout();
        let mut err = tokio::io::stderr();
        let mut buffer = BytesMut::with_capacity(CHUNK);
        let mut demux = Demux::default();
        loop {
            buffer.clear();
            let count = match reader.read_buf(&mut buffer).await {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                // The daemon ends a stream it has no more to say on in either way.
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
                Err(e) => return Err(CliError::io("read from the daemon", e)),
            };
            if self.tty {
                if self.stdout {
                    out.write_all(&buffer[..count])
                        .await
                        .map_err(output_error)?;
                    out.flush().await.map_err(output_error)?;
                }
                continue;
            }
            demux.feed(&buffer[..count])?;
            demux
                .flush(
                    self.stdout.then_some(&mut out),
                    self.stderr.then_some(&mut err),
                )
                .await?;
        }
    }
}

/// Takes framed bytes apart, keeping the order between the two streams.
#[derive(Default)]
pub struct Demux {
    decoder: FrameDecoder,
    pieces: Vec<(StreamKind, Vec<u8>)>,
}

impl Demux {
    /// Takes what came.
    pub fn feed(&mut self, bytes: &[u8]) -> CliResult {
        let pieces = &mut self.pieces;
        self.decoder
            .decode(bytes, |kind, payload| match pieces.last_mut() {
                Some((last, buffer)) if *last == kind => buffer.extend_from_slice(payload),
                _ => pieces.push((kind, payload.to_vec())),
            })
            .map_err(|e| CliError::msg(e.to_string()))
    }

    /// Writes what was taken; a stream without a writer is dropped. A failure that the daemon
    /// reports in the stream becomes this call's.
    pub async fn flush(
        &mut self,
        mut out: Option<&mut (impl AsyncWrite + Unpin)>,
        mut err: Option<&mut (impl AsyncWrite + Unpin)>,
    ) -> CliResult {
        for (kind, bytes) in self.pieces.drain(..) {
            match kind {
                StreamKind::Out => write(&mut out, &bytes).await?,
                StreamKind::Err => write(&mut err, &bytes).await?,
                StreamKind::System => {
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    return Err(CliError::msg(format!(
                        "error from daemon in stream: {text}"
                    )));
                }
            }
        }
        Ok(())
    }
}

async fn write(target: &mut Option<&mut (impl AsyncWrite + Unpin)>, bytes: &[u8]) -> CliResult {
    if let Some(target) = target {
        target.write_all(bytes).await.map_err(output_error)?;
        target.flush().await.map_err(output_error)?;
    }
    Ok(())
}

/// Sends standard input until its end (then closes that direction) or the detach keys.
async fn forward_input(
    mut source: impl AsyncRead + Unpin,
    mut target: impl AsyncWrite + Unpin,
    keys: Option<&[u8]>,
) -> Option<Ended> {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    let mut watch = keys.filter(|k| !k.is_empty()).map(KeyWatch::new);
    loop {
        buffer.clear();
        match source.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => {
                let _ = target.shutdown().await;
                return None;
            }
            Ok(_) => {}
        }
        let (bytes, detached) = match &mut watch {
            Some(watch) => watch.filter(&buffer),
            None => (buffer.to_vec(), false),
        };
        if !bytes.is_empty()
            && (target.write_all(&bytes).await.is_err() || target.flush().await.is_err())
        {
            // The reading side will see why.
            return None;
        }
        if detached {
            return Some(Ended::Detached);
        }
    }
}

/// Looks for a key sequence in what is typed and holds back what may be its beginning.
struct KeyWatch<'a> {
    keys: &'a [u8],
    matched: usize,
}

impl<'a> KeyWatch<'a> {
    fn new(keys: &'a [u8]) -> Self {
        Self { keys, matched: 0 }
    }

    /// What to pass on, and whether the sequence is complete.
    fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(typed.len());
        for byte in typed {
            if *byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return (out, true);
                }
                continue;
            }
            out.extend_from_slice(&self.keys[..self.matched]);
            self.matched = 0;
            if *byte == self.keys[0] && self.keys.len() > 1 {
                self.matched = 1;
            } else {
                out.push(*byte);
            }
        }
        (out, false)
    }
}

/// While the terminal is raw, signals that would end this process restore it first.
fn restore_on_fatal_signals() -> CliResult {
    for (kind, code) in [(SignalKind::hangup(), 129), (SignalKind::quit(), 131)] {
        let mut stream = signal(kind).map_err(|e| CliError::io("handle signals", e))?;
        tokio::spawn(async move {
            if stream.recv().await.is_some() {
                terminal::restore();
                std::process::exit(code);
            }
        });
    }
    Ok(())
}

async fn resize(
    ctx: &Ctx,
    target: &Resized,
    (height, width): (u16, u16),
) -> Result<(), ClientError> {
    if height == 0 && width == 0 {
        return Ok(());
    }
    let request = match target {
        Resized::Container(id) => Request::post(&["containers", id, "resize"]),
        Resized::Exec(id) => Request::post(&["exec", id, "resize"]),
    };
    let request = request
        .query("h", height.to_string())
        .query("w", width.to_string());
    ctx.client().done(request).await
}

/// Sends the terminal's size now and whenever it changes, for as long as the runtime lives.
/// With `nudge` it is first sent one larger, so that a program that is already running
/// repaints.
pub async fn follow_size(ctx: &Ctx, target: Resized, nudge: bool) -> CliResult {
    let mut changes =
        signal(SignalKind::window_change()).map_err(|e| CliError::io("handle signals", e))?;
    let (height, width) = terminal::size();
    if nudge {
        let _ = resize(
            ctx,
            &target,
            (height.saturating_add(1), width.saturating_add(1)),
        )
        .await;
    }
    if resize(ctx, &target, (height, width)).await.is_err() {
        // A process that is still starting has no terminal yet; it gets the size when the
        // next change comes, or here, a moment later.
        let (ctx, target) = (ctx.clone(), target.clone());
        tokio::task::spawn_local(async move {
            for attempt in 1..=10u32 {
                tokio::time::sleep(std::time::Duration::from_millis(10) * attempt).await;
                if resize(&ctx, &target, terminal::size()).await.is_ok() {
                    return;
                }
            }
            complain("failed to resize tty, using default size\r");
        });
    }
    let ctx = ctx.clone();
    tokio::task::spawn_local(async move {
        while changes.recv().await.is_some() {
            let _ = resize(&ctx, &target, terminal::size()).await;
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_key_notation() {
        assert_eq!(detach_keys("").unwrap(), [16, 17]);
        assert_eq!(detach_keys("ctrl-a,d").unwrap(), [1, b'd']);
        assert_eq!(detach_keys("ctrl-@,ctrl-[,ctrl-_").unwrap(), [0, 27, 31]);
        assert_eq!(
            detach_keys("ctrl-A").unwrap_err().to_string(),
            "invalid detach keys (ctrl-A) provided"
        );
        assert!(detach_keys("ab").is_err() && detach_keys(",").is_err());
    }

    #[test]
    fn keys_are_found_across_reads_and_false_starts_pass() {
        let keys = [16, 17];
        let mut watch = KeyWatch::new(&keys);
        assert_eq!(watch.filter(b"ab\x10"), (b"ab".to_vec(), false));
        assert_eq!(watch.filter(b"c"), (b"\x10c".to_vec(), false));
        assert_eq!(watch.filter(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(watch.filter(b"\x11never"), (Vec::new(), true));
    }

    #[tokio::test]
    async fn the_order_of_streams_is_kept_and_errors_surface() {
        let mut demux = Demux::default();
        demux
            .feed(b"\x01\0\0\0\0\0\0\x02ab\x02\0\0\0\0\0\0\x01c")
            .unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        demux.flush(Some(&mut out), Some(&mut err)).await.unwrap();
        assert_eq!((out.as_slice(), err.as_slice()), (&b"ab"[..], &b"c"[..]));
        demux.feed(b"\x03\0\0\0\0\0\0\x02no").unwrap();
        let failed = demux
            .flush(Some(&mut out), Some(&mut err))
            .await
            .unwrap_err();
        assert!(failed.to_string().contains("no"));
    }

    #[tokio::test]
    async fn the_end_of_input_closes_our_direction_only() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        assert_eq!(forward_input(&b"hi"[..], ours, None).await, None);
        let mut got = String::new();
        theirs.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "hi");
    }
}
