//! Running a client: output, exit code, a terminal, and a limit after which whatever
//! hangs is killed. The limits exist so that a hang fails a case instead of the run.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// What a client that has ended left.
#[derive(Debug, Clone)]
pub struct Output {
    what: String,
    /// Exit code; 128 + the signal that ended the client itself.
    pub code: i32,
    /// As it came.
    pub stdout: Vec<u8>,
    /// As it came; with a terminal everything is in `stdout`.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output without the white space around it.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Lines of standard output.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.text().lines().map(str::to_owned).collect()
    }

    /// Standard error without the white space around it.
    #[must_use]
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }

    /// Standard output as JSON.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("no JSON ({error}) from {self}"))
    }

    /// Demands exit code 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// Demands this exit code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert!(self.code == code, "exit code {code} expected of {self}");
        self
    }

    /// Demands any exit code but 0.
    #[track_caller]
    pub fn fails(self) -> Self {
        assert!(self.code != 0, "a failure expected of {self}");
        self
    }

    /// Demands that the words are in what was printed, whatever their case.
    #[track_caller]
    pub fn says(self, words: &str) -> Self {
        let all = format!("{}\n{}", self.text(), self.err()).to_lowercase();
        assert!(
            all.contains(&words.to_lowercase()),
            "{words:?} expected from {self}"
        );
        self
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cut = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            match text.char_indices().nth(4000) {
                Some((end, _)) => format!("{}… ({} bytes)", &text[..end], bytes.len()),
                None => text,
            }
        };
        write!(
            f,
            "`{}`: exit code {}\n--- stdout\n{}\n--- stderr\n{}\n---",
            self.what,
            self.code,
            cut(&self.stdout),
            cut(&self.stderr)
        )
    }
}

/// Bytes that a reader thread collects, and that others wait for.
#[derive(Clone, Default)]
struct Collected(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    closed: bool,
}

impl Collected {
    fn pump(&self, mut from: impl Read + Send + 'static) -> JoinHandle<()> {
        let this = self.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let got = match from.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(got) => got,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    // A terminal whose other side has gone says EIO.
                    Err(_) => break,
                };
                let (lock, changed) = &*this.0;
                let mut state = lock.lock().unwrap_or_else(PoisonError::into_inner);
                state.bytes.extend_from_slice(&buffer[..got]);
                changed.notify_all();
            }
            let (lock, changed) = &*this.0;
            lock.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
            changed.notify_all();
        })
    }

    fn snapshot(&self) -> Vec<u8> {
        let lock = &self.0.0;
        let state = lock.lock().unwrap_or_else(PoisonError::into_inner);
        state.bytes.clone()
    }

    /// Waits until `found` gives something, over all bytes so far.
    fn wait<T>(&self, limit: Duration, found: impl Fn(&[u8]) -> Option<T>) -> Option<T> {
        let end = Instant::now() + limit;
        let (lock, changed) = &*self.0;
        let mut state = lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(value) = found(&state.bytes) {
                return Some(value);
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                return None;
            }
            state = changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// A client that is about to be run.
pub struct Call {
    what: String,
    command: Command,
    stdin: Option<Vec<u8>>,
    limit: Duration,
}

impl Call {
    pub(crate) fn new(what: String, command: Command, limit: Duration) -> Self {
        Self {
            what,
            command,
            stdin: None,
            limit,
        }
    }

    /// Feeds these bytes, then closes standard input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    /// Another limit than the usual one.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// An environment variable for the client.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it to its end, with nothing on standard input unless [`Call::stdin`] said so.
    #[track_caller]
    pub fn output(mut self) -> Output {
        let stdin = self.stdin.take();
        let mut running = self.start();
        let feeder = running.close_stdin().zip(stdin).map(|(mut pipe, bytes)| {
            // A client may end without having read everything; that is not the feeder's
            // business.
            std::thread::spawn(move || drop(pipe.write_all(&bytes)))
        });
        let output = running.finish();
        if let Some(feeder) = feeder {
            drop(feeder.join());
        }
        output
    }

    /// Starts it, with pipes; standard input stays open.
    #[track_caller]
    pub fn start(mut self) -> Running {
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("`{}` does not start: {error}", self.what));
        let (out, err) = (Collected::default(), Collected::default());
        let mut pumps = Vec::new();
        if let Some(pipe) = child.stdout.take() {
            pumps.push(out.pump(pipe));
        }
        if let Some(pipe) = child.stderr.take() {
            pumps.push(err.pump(pipe));
        }
        let stdin = child
            .stdin
            .take()
            .map(|pipe| Box::new(pipe) as Box<dyn Write + Send>);
        Running::new(self.what, child, stdin, out, err, pumps, None, self.limit)
    }

    /// Starts it on a terminal of 80 columns and 24 rows.
    #[track_caller]
    pub fn terminal(mut self) -> Running {
        let size = nix::pty::Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = nix::pty::openpty(&size, None).expect("openpty");
        let (master, slave) = (pty.master, pty.slave);
        for end in [&master, &slave] {
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC).expect("F_SETFD");
        }
        let duplicate = |fd: &OwnedFd| fd.try_clone().expect("dup");
        self.command
            .stdin(duplicate(&slave))
            .stdout(duplicate(&slave))
            .stderr(duplicate(&slave))
            .env("TERM", "xterm");
        // SAFETY: setsid and ioctl are async-signal-safe, and nothing is allocated.
        unsafe {
            self.command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        let child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("`{}` does not start: {error}", self.what));
        // `command` still holds ends of the slave: they have to go for EOF to come.
        drop(self.command);
        drop(slave);
        let out = Collected::default();
        let pump = out.pump(std::fs::File::from(duplicate(&master)));
        let stdin: Box<dyn Write + Send> = Box::new(std::fs::File::from(duplicate(&master)));
        Running::new(
            self.what,
            child,
            Some(stdin),
            out,
            Collected::default(),
            vec![pump],
            Some(master),
            self.limit,
        )
    }
}

/// A client that runs. Dropping it kills it.
pub struct Running {
    what: String,
    child: Child,
    pidfd: OwnedFd,
    stdin: Option<Box<dyn Write + Send>>,
    out: Collected,
    err: Collected,
    pumps: Vec<JoinHandle<()>>,
    master: Option<OwnedFd>,
    limit: Duration,
    seen: usize,
    done: bool,
}

impl Running {
    #[allow(clippy::too_many_arguments, reason = "private, called twice")]
    fn new(
        what: String,
        child: Child,
        stdin: Option<Box<dyn Write + Send>>,
        out: Collected,
        err: Collected,
        pumps: Vec<JoinHandle<()>>,
        master: Option<OwnedFd>,
        limit: Duration,
    ) -> Self {
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("pidfd of a child");
        Self {
            what,
            child,
            pidfd,
            stdin,
            out,
            err,
            pumps,
            master,
            limit,
            seen: 0,
            done: false,
        }
    }

    /// Writes to its standard input, or types on its terminal.
    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        stdin
            .write_all(bytes.as_ref())
            .and_then(|()| stdin.flush())
            .unwrap_or_else(|error| panic!("`{}` takes no input: {error}", self.what));
    }

    /// Hands over its standard input; dropping that closes it.
    pub fn close_stdin(&mut self) -> Option<Box<dyn Write + Send>> {
        self.stdin.take()
    }

    /// Sends a signal to the client itself.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Everything printed so far.
    #[must_use]
    pub fn printed(&self) -> String {
        String::from_utf8_lossy(&self.out.snapshot()).into_owned()
    }

    /// Waits until the words show up on standard output, after the place where the last
    /// call stopped, and returns what was printed up to and including them.
    #[track_caller]
    pub fn expect(&mut self, words: &str) -> String {
        let from = self.seen;
        let Some(end) = self.find(words, self.limit) else {
            panic!(
                "{words:?} never came from `{}`; it printed\n--- stdout\n{}\n--- stderr\n{}\n---",
                self.what,
                self.printed(),
                String::from_utf8_lossy(&self.err.snapshot())
            );
        };
        self.seen = end;
        String::from_utf8_lossy(&self.out.snapshot()[from..end]).into_owned()
    }

    /// Whether the words show up within the time; the next call looks from the same place.
    pub fn prints_within(&mut self, words: &str, limit: Duration) -> bool {
        self.find(words, limit).is_some()
    }

    /// Where they end.
    fn find(&mut self, words: &str, limit: Duration) -> Option<usize> {
        let from = self.seen;
        self.out.wait(limit, |bytes| {
            let rest = bytes.get(from..)?;
            rest.windows(words.len())
                .position(|window| window == words.as_bytes())
                .map(|at| from + at + words.len())
        })
    }

    /// Changes the size of its terminal.
    #[track_caller]
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = rustix::termios::Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let master = self.master.as_ref().expect("a terminal");
        rustix::termios::tcsetwinsize(master, size).expect("TIOCSWINSZ");
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.exited(Duration::ZERO)
    }

    fn exited(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut fds = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(ready) => return ready > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("poll: {error}"),
            }
        }
    }

    /// Waits for its end; what does not end in time is killed and fails the case.
    #[track_caller]
    pub fn finish(mut self) -> Output {
        // A terminal's input stays open: closing it would hang up on the client.
        if self.master.is_none() {
            self.stdin = None;
        }
        let in_time = self.exited(self.limit);
        if !in_time {
            self.signal(Signal::KILL);
        }
        let status = self.child.wait().expect("wait for a child");
        self.done = true;
        self.stdin = None;
        for pump in self.pumps.drain(..) {
            drop(pump.join());
        }
        let output = Output {
            what: self.what.clone(),
            code: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: self.out.snapshot(),
            stderr: self.err.snapshot(),
        };
        assert!(
            in_time,
            "killed because it did not end within {:?}: {output}",
            self.limit
        );
        output
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.done {
            self.signal(Signal::KILL);
            drop(self.child.wait());
        }
    }
}

/// Waits for something on the host that has no event to wait for.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < end, "within {limit:?} not seen: {what}");
        std::thread::sleep(Duration::from_millis(30));
    }
}
