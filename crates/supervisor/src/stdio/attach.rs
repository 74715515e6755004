//! The attach socket: the supervisor's half of [`bulkhead_task::attach`].

use std::sync::Arc;

use bulkhead_task::attach::{AttachReply, AttachRequest, read_line, write_line};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

use super::clients::{Client, Wanted};
use super::{Hub, READ};
use crate::task::Task;

/// Room for all that can be left when the process has exited, bytes: the window, what the
/// kernel held, a megabyte of each at the most, and what the kernel counts beside the bytes.
const LEFT: usize = 16 << 20;

/// Serves clients for as long as the supervisor lives.
pub async fn serve(listener: UnixListener, task: Arc<Task>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(client(stream, Arc::clone(&task)));
            }
            Err(error) => {
                // Out of descriptors, most likely; those in use will be closed.
                tracing::error!(%error, "an attach client was lost");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

async fn client(mut stream: UnixStream, task: Arc<Task>) {
    let Ok(request) = read_line::<AttachRequest>(&mut stream).await else {
        return;
    };
    if request.files {
        files(stream, &task).await;
        return;
    }
    let hub = match task.hub(&request.exec_id) {
        Ok(hub) => hub,
        Err(error) => {
            let reply = AttachReply {
                ok: false,
                terminal: false,
                error: Some(error.message),
            };
            // It has gone: then it needs no answer.
            let _ = write_line(&mut stream, &reply).await;
            return;
        }
    };
    // Before the answer: what happens after the answer is not to be missed.
    let output = hub.subscribe(Wanted {
        stdout: request.stdout,
        stderr: request.stderr,
        raw: false,
    });
    let reply = AttachReply {
        ok: true,
        terminal: hub.terminal(),
        error: None,
    };
    if write_line(&mut stream, &reply).await.is_err() {
        return;
    }
    let (reader, writer) = stream.into_split();
    let outputs = tokio::spawn(send(output, writer));
    receive(reader, &hub, request.stdin).await;
    // The client has said all; it may still listen.
    let _ = outputs.await;
}

/// A conversation about the container's files.
async fn files(mut stream: UnixStream, task: &Task) {
    let found = task.files();
    let reply = AttachReply {
        ok: found.is_ok(),
        terminal: false,
        error: found.as_ref().err().map(|error| error.message.clone()),
    };
    let answered = write_line(&mut stream, &reply).await;
    let (Ok(files), Ok(()), Ok(stream)) = (found, answered, stream.into_std()) else {
        return;
    };
    if let Err(error) = files.serve(stream).await {
        tracing::warn!(%error, "a request for files was not served");
    }
}

/// Sends output until its end, then ends the connection's half.
async fn send(output: Client, mut writer: OwnedWriteHalf) {
    let socket = rustix::io::fcntl_dupfd_cloexec(writer.as_ref(), 0);
    let widen = || rustix::net::sockopt::set_socket_send_buffer_size_force(socket?, LEFT);
    output.forward(&mut writer, widen).await;
    let _ = writer.shutdown().await;
}

/// Passes the client's bytes on to stdin. What nobody reads any more is read all the same
/// and dropped, since closing on unread bytes would cost the client output it has not read.
async fn receive(mut reader: OwnedReadHalf, hub: &Hub, stdin: bool) {
    let mut buffer = vec![0; READ];
    while let Ok(count @ 1..) = reader.read(&mut buffer).await {
        if stdin {
            hub.write_stdin(buffer.get(..count).unwrap_or_default())
                .await;
        }
    }
    if stdin {
        hub.input_ended().await;
    }
}
