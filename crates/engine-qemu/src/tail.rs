//! The last of what another process says, bounded.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes kept.
const KEPT: usize = 16 * 1024;

/// The last bytes of a stream. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail {
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Tail {
    /// Reads until the stream's end.
    pub(crate) async fn read(&self, mut stream: impl AsyncRead + Unpin) {
        let mut buffer = vec![0; 4096];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(length) => self.push(buffer.get(..length).unwrap_or_default()),
            }
        }
    }

    fn push(&self, bytes: &[u8]) {
        // Whoever panicked with it held left bytes behind, whichever.
        let mut kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
    }

    /// What is kept, as text without control characters.
    pub(crate) fn text(&self) -> String {
        let kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept)
            .chars()
            .filter(|c| *c == '\n' || *c == '\t' || !c.is_control())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_is_kept() {
        let tail = Tail::default();
        tail.push(&vec![b'a'; KEPT]);
        tail.push(b"\x1b[31mend\n");
        let text = tail.text();
        assert!(text.ends_with("a[31mend\n"));
        assert!(text.len() < KEPT);
    }
}
