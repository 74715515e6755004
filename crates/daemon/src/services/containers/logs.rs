//! Reading the log of a container: the json-file that its supervisor writes, with what was
//! rotated away, and following it while the container runs.

use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_task::json_log::{self, Entry};
use bulkhead_task::options::IsolationKind;
use bytes::{BufMut, Bytes, BytesMut};
use jiff::Timestamp;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::{mpsc, watch};

use super::model::{Status, View};

/// Bytes read from a log at a time.
const CHUNK: usize = 64 << 10;
/// Longest line that is kept: an entry is at most 16 KiB, six times that when escaped.
const MAX_LINE: usize = 1 << 20;
/// Rotated files that are looked for.
const MAX_ROTATED: u32 = 1000;
/// Pieces that wait for a slow client.
const BACKLOG: usize = 16;

/// What of the log is wanted, and how.
#[derive(Debug, Clone, Default)]
pub struct LogQuery {
    /// Lines of stdout.
    pub stdout: bool,
    /// Lines of stderr.
    pub stderr: bool,
    /// Not older.
    pub since: Option<Timestamp>,
    /// Not newer.
    pub until: Option<Timestamp>,
    /// With the time before each line.
    pub timestamps: bool,
    /// The newest ones only.
    pub tail: Option<usize>,
    /// Go on while the container runs.
    pub follow: bool,
    /// With the details before each line (there are none).
    pub details: bool,
    /// In Docker's stream frames; otherwise raw.
    pub framed: bool,
}

/// Where a piece of a log comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Its stdout.
    Stdout,
    /// Its stderr.
    Stderr,
}

/// The frames in one piece of a framed log; pieces hold whole frames.
pub fn frames(mut piece: &[u8]) -> impl Iterator<Item = (Stream, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = piece.split_first_chunk::<8>()?;
        let [stream, _, _, _, length @ ..] = *head;
        let length = usize::try_from(u32::from_be_bytes(length)).ok()?;
        let (text, rest) = rest.split_at_checked(length)?;
        piece = rest;
        let stream = if stream == 2 {
            Stream::Stderr
        } else {
            Stream::Stdout
        };
        Some((stream, text))
    })
}

/// How long after its start a container may take to say its first words, as other engines
/// take to say that it was started.
const FIRST_WORDS: Duration = Duration::from_millis(100);
/// The same where a command has to be read and run on a processor of its own.
const FIRST_WORDS_IN_VM: Duration = Duration::from_millis(1000);
/// How often is looked meanwhile.
const GLANCE: Duration = Duration::from_millis(25);

/// Gives a container that was just started the moment that its first words need: clients look
/// at the log of a short command right after they started it. Ends with the container, when
/// it has spoken and says no more, or when the moment is over.
pub async fn first_words(path: &Path, mut view: watch::Receiver<Arc<View>>) {
    let moment = match view.borrow().record.isolation {
        IsolationKind::Process => FIRST_WORDS,
        IsolationKind::Hyperv => FIRST_WORDS_IN_VM,
    };
    let waits = async {
        let mut spoken = 0;
        loop {
            let (alive, age) = {
                let view = view.borrow_and_update();
                let started = view.record.state.started_at.unwrap_or_default();
                let age = Timestamp::now().duration_since(started);
                (view.record.state.status == Status::Running, age)
            };
            let Ok(age) = Duration::try_from(age) else {
                return;
            };
            if !alive || age >= moment {
                return;
            }
            let length = tokio::fs::metadata(path).await.map_or(0, |file| file.len());
            if length > 0 && length == spoken {
                return;
            }
            spoken = length;
            // Its end wakes sooner.
            let _ = tokio::time::timeout(GLANCE, view.changed()).await;
        }
    };
    // Whatever the clocks say.
    let _ = tokio::time::timeout(moment, waits).await;
}

/// Reads a log; what comes out of the receiver are bytes for the client. It ends with the
/// log, with the container when following, or when the receiver is dropped.
pub fn read(
    path: PathBuf,
    query: LogQuery,
    view: watch::Receiver<Arc<View>>,
) -> mpsc::Receiver<io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        let mut reader = Reader {
            path,
            query,
            sender,
            out: BytesMut::new(),
        };
        if let Err(error) = reader.run(view).await {
            let _ = reader.sender.send(Err(error)).await;
        }
    });
    receiver
}

struct Reader {
    path: PathBuf,
    query: LogQuery,
    sender: mpsc::Sender<io::Result<Bytes>>,
    out: BytesMut,
}

/// One log file being read.
struct LogFile {
    inode: u64,
    reader: BufReader<tokio::fs::File>,
    /// A line whose end was not written yet.
    partial: Vec<u8>,
}

enum Flow {
    GoOn,
    /// The client has gone, or `until` is reached.
    Stop,
}

impl Reader {
    async fn run(&mut self, mut view: watch::Receiver<Arc<View>>) -> io::Result<()> {
        // Before the first read, so that nothing is missed between.
        let changes = match self.query.follow && view.borrow().record.state.status.is_alive() {
            true => Some(Changes::of(&self.path)?),
            false => None,
        };
        let (path, tail) = (self.path.clone(), self.query.tail);
        let files = tokio::task::spawn_blocking(move || open_files(&path, tail))
            .await
            .map_err(io::Error::other)??;
        let mut current = None;
        for (inode, file) in files {
            let mut file = LogFile {
                inode,
                reader: BufReader::with_capacity(CHUNK, tokio::fs::File::from_std(file)),
                partial: Vec::new(),
            };
            if let Flow::Stop = self.drain(&mut file).await? {
                return Ok(());
            }
            current = Some(file);
        }
        if let Some(changes) = changes {
            let first = view.borrow().exits;
            self.follow(current, changes, &mut view, first).await?;
        }
        Ok(())
    }

    async fn follow(
        &mut self,
        mut current: Option<LogFile>,
        changes: Changes,
        view: &mut watch::Receiver<Arc<View>>,
        first: u64,
    ) -> io::Result<()> {
        loop {
            // Asked before reading: what was written before the end is read after it.
            let over = {
                let view = view.borrow_and_update();
                view.removed || view.exits > first || !view.record.state.status.is_alive()
            };
            loop {
                if let Some(file) = &mut current
                    && let Flow::Stop = self.drain(file).await?
                {
                    return Ok(());
                }
                let Some(next) = self.successor(current.as_ref()).await? else {
                    break;
                };
                // What was written to the old file until it was renamed.
                if let Some(file) = &mut current
                    && let Flow::Stop = self.drain(file).await?
                {
                    return Ok(());
                }
                current = Some(next);
            }
            if over {
                return Ok(());
            }
            tokio::select! {
                changed = changes.next() => changed?,
                changed = view.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
                () = self.sender.closed() => return Ok(()),
            }
        }
    }

    /// The file that has the log's name now, if it is not the one being read.
    async fn successor(&self, current: Option<&LogFile>) -> io::Result<Option<LogFile>> {
        let file = match tokio::fs::File::open(&self.path).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let inode = file.metadata().await?.ino();
        if current.is_some_and(|current| current.inode == inode) {
            return Ok(None);
        }
        Ok(Some(LogFile {
            inode,
            reader: BufReader::with_capacity(CHUNK, file),
            partial: Vec::new(),
        }))
    }

    /// Reads a file to its present end.
    async fn drain(&mut self, file: &mut LogFile) -> io::Result<Flow> {
        loop {
            let read = file.reader.read_until(b'\n', &mut file.partial).await?;
            if file.partial.ends_with(b"\n") {
                let line = std::mem::take(&mut file.partial);
                if let Flow::Stop = self.take(&line) {
                    self.flush().await;
                    return Ok(Flow::Stop);
                }
                if self.out.len() >= CHUNK
                    && let Flow::Stop = self.flush().await
                {
                    return Ok(Flow::Stop);
                }
                continue;
            }
            if file.partial.len() > MAX_LINE {
                // Not a line that a supervisor wrote.
                file.partial.clear();
            }
            if read == 0 {
                return Ok(self.flush().await);
            }
        }
    }

    fn take(&mut self, line: &[u8]) -> Flow {
        let Some(entry) = json_log::decode(line) else {
            return Flow::GoOn;
        };
        if self.query.until.is_some_and(|until| entry.time > until) {
            return Flow::Stop;
        }
        let wanted = match entry.stream.as_str() {
            "stderr" => self.query.stderr,
            _ => self.query.stdout,
        };
        if wanted && self.query.since.is_none_or(|since| entry.time >= since) {
            encode(&mut self.out, &entry, &self.query);
        }
        Flow::GoOn
    }

    async fn flush(&mut self) -> Flow {
        if self.out.is_empty() {
            return Flow::GoOn;
        }
        let bytes = self.out.split().freeze();
        match self.sender.send(Ok(bytes)).await {
            Ok(()) => Flow::GoOn,
            Err(_) => Flow::Stop,
        }
    }
}

/// Attributes as Docker writes them, `name=value` with a comma between two.
fn details(entry: &Entry) -> String {
    let escaped = |text: &str| {
        let escaped = percent_encoding::utf8_percent_encode(text, QUERY).to_string();
        escaped.replace("%20", "+")
    };
    let attributes = entry.attrs.iter();
    let words: Vec<String> = attributes
        .map(|(name, value)| format!("{}={}", escaped(name), escaped(value)))
        .collect();
    words.join(",")
}

/// What Go's `url.QueryEscape` escapes, with the space as `%20`.
const QUERY: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// One entry as the client gets it.
fn encode(out: &mut BytesMut, entry: &Entry, query: &LogQuery) {
    let mut prefix = String::new();
    if query.timestamps {
        prefix = format!("{:.9} ", entry.time);
    }
    if query.details {
        prefix.push_str(&details(entry));
        prefix.push(' ');
    }
    if query.framed {
        let stream = if entry.stream == "stderr" { 2 } else { 1 };
        // An entry is bounded by `MAX_LINE`.
        let length = u32::try_from(prefix.len() + entry.log.len()).unwrap_or(u32::MAX);
        out.put_slice(&[stream, 0, 0, 0]);
        out.put_u32(length);
    }
    out.put_slice(prefix.as_bytes());
    out.put_slice(entry.log.as_bytes());
}

/// The log's files, the oldest first, each at the position where reading begins.
fn open_files(path: &Path, tail: Option<usize>) -> io::Result<Vec<(u64, std::fs::File)>> {
    let mut files: Vec<(u64, std::fs::File)> = Vec::new();
    for number in 0..=MAX_ROTATED {
        let name = match number {
            0 => path.to_owned(),
            _ => {
                let mut name = path.as_os_str().to_owned();
                name.push(format!(".{number}"));
                PathBuf::from(name)
            }
        };
        match std::fs::File::open(&name) {
            Ok(file) => {
                let inode = file.metadata()?.ino();
                // Rotated while the files were being opened: seen already.
                if files.iter().all(|(seen, _)| *seen != inode) {
                    files.push((inode, file));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if number > 0 {
                    break;
                }
            }
            Err(error) => return Err(error),
        }
    }
    if let Some(tail) = tail {
        let mut missing = tail;
        let mut kept = 0;
        for (_, file) in &mut files {
            kept += 1;
            missing -= seek_tail(file, missing)?;
            if missing == 0 {
                break;
            }
        }
        files.truncate(kept);
    }
    files.reverse();
    Ok(files)
}

/// Moves a file to where its last `wanted` lines begin; gives how many it has of them.
fn seek_tail(file: &mut std::fs::File, wanted: usize) -> io::Result<usize> {
    let mut end = file.seek(SeekFrom::End(0))?;
    if wanted == 0 {
        return Ok(0);
    }
    let mut buffer = vec![0; CHUNK];
    let mut found = 0;
    while end > 0 {
        let length = usize::try_from(end).unwrap_or(CHUNK).min(CHUNK);
        let start = end - u64::try_from(length).unwrap_or(0);
        file.seek(SeekFrom::Start(start))?;
        let piece = &mut buffer[..length];
        file.read_exact(piece)?;
        for (index, _) in piece.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
            // The newline that ends line N from the end is found as number N.
            if found == wanted {
                let offset = u64::try_from(index + 1).unwrap_or(0);
                file.seek(SeekFrom::Start(start + offset))?;
                return Ok(wanted);
            }
            found += 1;
        }
        end = start;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(found)
}

/// Wakes when something happens in the directory of a log.
struct Changes {
    fd: AsyncFd<OwnedFd>,
}

impl Changes {
    fn of(log: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        inotify::add_watch(
            &fd,
            log.parent().unwrap_or(Path::new("/")),
            inotify::WatchFlags::MODIFY
                | inotify::WatchFlags::CREATE
                | inotify::WatchFlags::MOVED_TO
                | inotify::WatchFlags::DELETE_SELF,
        )?;
        // SAFETY: an `OwnedFd` names one descriptor until it is dropped, after the registration.
        let fd = unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }
            .map_err(io::Error::other)?;
        Ok(Self { fd })
    }

    async fn next(&self) -> io::Result<()> {
        loop {
            let mut ready = self.fd.readable().await?;
            // What exactly happened is of no interest; the events only have to go.
            let outcome = ready.try_io(|fd| {
                let mut buffer = [0; 4096];
                rustix::io::read(fd, &mut buffer)
                    .map(|_| ())
                    .map_err(io::Error::from)
            });
            if let Ok(outcome) = outcome {
                return outcome;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, lines: std::ops::Range<usize>) {
        let mut bytes = Vec::new();
        for line in lines {
            let stream = if line % 2 == 0 { "stdout" } else { "stderr" };
            json_log::encode(
                &mut bytes,
                stream,
                &std::collections::BTreeMap::new(),
                Timestamp::from_second(i64::try_from(line).unwrap()).unwrap(),
                format!("line {line}\n").as_bytes(),
            );
        }
        std::fs::write(path, bytes).unwrap();
    }

    fn all(path: &Path, tail: Option<usize>) -> Vec<String> {
        open_files(path, tail)
            .unwrap()
            .into_iter()
            .flat_map(|(_, mut file)| {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                text.lines()
                    .map(|line| json_log::decode(line.as_bytes()).unwrap().log)
                    .collect::<Vec<_>>()
            })
            .collect()
    }

    #[test]
    fn tail_counts_over_rotated_files() {
        let dir = std::env::temp_dir().join(format!("bulkhead-logs-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("x.log");
        write(&dir.join("x.log.2"), 0..10);
        write(&dir.join("x.log.1"), 10..20);
        write(&path, 20..25);
        assert_eq!(all(&path, None).len(), 25);
        assert_eq!(all(&path, Some(0)).len(), 0);
        assert_eq!(all(&path, Some(3)), ["line 22\n", "line 23\n", "line 24\n"]);
        assert_eq!(all(&path, Some(5)).len(), 5);
        let seven = all(&path, Some(7));
        assert_eq!((seven.len(), seven[0].as_str()), (7, "line 18\n"));
        assert_eq!(all(&path, Some(100)).len(), 25);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn entries_are_framed() {
        let entry = Entry {
            log: "hi\n".to_owned(),
            stream: "stderr".to_owned(),
            attrs: std::collections::BTreeMap::new(),
            time: Timestamp::UNIX_EPOCH,
        };
        let query = LogQuery {
            timestamps: true,
            framed: true,
            ..LogQuery::default()
        };
        let mut out = BytesMut::new();
        encode(&mut out, &entry, &query);
        assert_eq!(&out[..8], &[2, 0, 0, 0, 0, 0, 0, 34]);
        assert_eq!(&out[8..], b"1970-01-01T00:00:00.000000000Z hi\n");
    }
}
