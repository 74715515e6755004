//! Listening to what another process says, of which the end is kept.

use bulkhead_machine::Tail;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Reads until the stream's end.
pub(crate) async fn read(tail: &Tail, mut stream: impl AsyncRead + Unpin) {
    let mut buffer = vec![0; 4096];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => tail.push(buffer.get(..length).unwrap_or_default()),
        }
    }
}
