//! QEMU's monitor protocol (QMP): lines of JSON on a socket that QEMU was born with.
//!
//! QEMU is not trusted here, since a guest may have taken it over: lines are bounded, and
//! what does not parse ends the conversation.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bulkhead_machine::MachineError;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

/// Longest line, bytes.
const MAX_LINE: u64 = 1 << 20;

/// A line from QEMU.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    event: Option<String>,
    data: Option<Value>,
    id: Option<u64>,
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Failure>,
}

#[derive(Debug, Deserialize)]
struct Failure {
    desc: String,
}

/// Something that QEMU tells unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// The machine is about to end, for this reason (QEMU's `ShutdownCause`).
    Shutdown(String),
}

type Answer = Result<Value, String>;

#[derive(Default)]
struct Waiting {
    next: u64,
    answers: HashMap<u64, oneshot::Sender<Answer>>,
    ended: bool,
}

/// The side that asks.
#[derive(Clone)]
pub(crate) struct Client {
    writer: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    waiting: Arc<Mutex<Waiting>>,
}

/// The side that listens; must be driven by [`Listener::run`] for requests to be answered.
pub(crate) struct Listener {
    reader: BufReader<OwnedReadHalf>,
    waiting: Arc<Mutex<Waiting>>,
}

/// Waits for QEMU's greeting, which it sends once the machine is built, and enters command
/// mode.
pub(crate) async fn connect(socket: UnixStream) -> io::Result<(Client, Listener)> {
    let (reader, mut writer) = socket.into_split();
    let mut reader = BufReader::new(reader);
    let greeting = read_line(&mut reader).await?;
    if greeting.greeting.is_none() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    writer
        .write_all(b"{\"execute\":\"qmp_capabilities\"}\n")
        .await?;
    loop {
        let line = read_line(&mut reader).await?;
        if line.error.is_some() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if line.value.is_some() {
            break;
        }
    }
    let waiting = Arc::new(Mutex::new(Waiting::default()));
    Ok((
        Client {
            writer: Arc::new(tokio::sync::Mutex::new(writer)),
            waiting: Arc::clone(&waiting),
        },
        Listener { reader, waiting },
    ))
}

impl Client {
    /// Has a command without arguments carried out.
    pub(crate) async fn execute(&self, command: &str) -> Result<Value, MachineError> {
        self.execute_with(command, &json!({})).await
    }

    /// Has a command with these arguments carried out.
    pub(crate) async fn execute_with(
        &self,
        command: &str,
        arguments: &Value,
    ) -> Result<Value, MachineError> {
        let (sender, answer) = oneshot::channel();
        let id = {
            let mut waiting = lock(&self.waiting);
            if waiting.ended {
                return Err(MachineError::Ended);
            }
            let id = waiting.next;
            waiting.next += 1;
            waiting.answers.insert(id, sender);
            id
        };
        let mut line = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        line.push('\n');
        self.writer
            .lock()
            .await
            .write_all(line.as_bytes())
            .await
            .map_err(|_| MachineError::Ended)?;
        match answer.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(message)) => Err(MachineError::Refused(message)),
            Err(_) => Err(MachineError::Ended),
        }
    }
}

impl Listener {
    /// Hands events to `on_event` until the conversation ends.
    pub(crate) async fn run(mut self, mut on_event: impl FnMut(Event)) {
        while let Ok(line) = read_line(&mut self.reader).await {
            if let Some(event) = line.event {
                if event == "SHUTDOWN" {
                    let reason = line
                        .data
                        .as_ref()
                        .and_then(|data| data.get("reason"))
                        .and_then(Value::as_str)
                        .unwrap_or_default();
                    on_event(Event::Shutdown(reason.to_owned()));
                }
                continue;
            }
            let Some(sender) = line
                .id
                .and_then(|id| lock(&self.waiting).answers.remove(&id))
            else {
                continue;
            };
            // The asker may have been cancelled.
            let _ = sender.send(match line.error {
                Some(failure) => Err(failure.desc),
                None => Ok(line.value.unwrap_or_default()),
            });
        }
        let mut waiting = lock(&self.waiting);
        waiting.ended = true;
        waiting.answers.clear();
    }
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    // No holder leaves it in between two states.
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<Line> {
    let mut line = Vec::new();
    reader.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (Client, Listener, BufReader<UnixStream>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut theirs = BufReader::new(theirs);
        let greet = async {
            theirs
                .write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n")
                .await
                .unwrap();
            let mut line = String::new();
            theirs.read_line(&mut line).await.unwrap();
            assert!(line.contains("qmp_capabilities"));
            theirs.write_all(b"{\"return\": {}}\r\n").await.unwrap();
            theirs
        };
        let (connected, theirs) = tokio::join!(connect(ours), greet);
        let (client, listener) = connected.unwrap();
        (client, listener, theirs)
    }

    #[tokio::test]
    async fn answers_and_events() {
        let (client, listener, mut theirs) = pair().await;
        let mut seen = Vec::new();
        let peer = async {
            for answer in [
                "{\"event\":\"STOP\"}\n{\"return\": {}, \"id\": 0}\n",
                "{\"error\": {\"class\": \"x\", \"desc\": \"no\"}, \"id\": 1}\n",
            ] {
                let mut line = String::new();
                theirs.read_line(&mut line).await.unwrap();
                theirs.write_all(answer.as_bytes()).await.unwrap();
            }
            theirs
                .write_all(b"{\"event\":\"SHUTDOWN\",\"data\":{\"reason\":\"guest-reset\"}}\n")
                .await
                .unwrap();
            drop(theirs);
        };
        let asker = async {
            assert!(client.execute("stop").await.is_ok());
            let error = client.execute("cont").await.unwrap_err();
            assert!(matches!(error, MachineError::Refused(message) if message == "no"));
        };
        tokio::join!(listener.run(|event| seen.push(event)), peer, asker);
        assert_eq!(seen, [Event::Shutdown("guest-reset".to_owned())]);
        let error = client.execute("stop").await.unwrap_err();
        assert!(matches!(error, MachineError::Ended));
    }

    #[tokio::test]
    async fn nonsense_ends_it() {
        for nonsense in [&b"[[[[\n"[..], b"{\"return\": {}}\n", b""] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(nonsense).await.unwrap();
            drop(theirs);
            assert!(connect(ours).await.is_err());
        }
    }
}
