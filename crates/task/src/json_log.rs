//! Docker's json-file log format: one JSON object a line, `{"log":…,"stream":…,"time":…}`,
//! with `"attrs":{…}` in between where the log's options ask for some.
//! A line longer than [`MAX_ENTRY`] is kept in several entries, of which only the last ends
//! with `\n`, as dockerd does. Bytes that are not UTF-8 become U+FFFD.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Longest payload of one entry, bytes (dockerd's 16 KiB copier buffer).
pub const MAX_ENTRY: usize = 16 * 1024;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What was written, with its `\n` if it had one.
    pub log: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// What the log's options say of the container.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attrs: BTreeMap<String, String>,
    /// When, RFC 3339 with nanoseconds.
    pub time: jiff::Timestamp,
}

/// Appends the line of one entry to `out`.
pub fn encode(
    out: &mut Vec<u8>,
    stream: &str,
    attrs: &BTreeMap<String, String>,
    at: jiff::Timestamp,
    payload: &[u8],
) {
    let entry = Entry {
        log: String::from_utf8_lossy(payload).into_owned(),
        stream: stream.to_owned(),
        attrs: attrs.clone(),
        time: at,
    };
    // Writing JSON of strings into memory has no way to fail.
    if serde_json::to_writer(&mut *out, &entry).is_ok() {
        out.push(b'\n');
    }
}

/// Reads one line; `None` for one that is not an entry (torn by a crash).
pub fn decode(line: &[u8]) -> Option<Entry> {
    serde_json::from_slice(line).ok()
}

/// Cuts a stream of bytes into payloads of entries.
#[derive(Debug, Default)]
pub struct LineSplitter {
    pending: Vec<u8>,
}

impl LineSplitter {
    /// Takes bytes and hands every complete payload to `emit`.
    pub fn push(&mut self, bytes: &[u8], mut emit: impl FnMut(&[u8])) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let mut piece = piece;
            while self.pending.len() + piece.len() > MAX_ENTRY {
                let (head, tail) = piece.split_at(MAX_ENTRY - self.pending.len());
                self.pending.extend_from_slice(head);
                emit(&self.pending);
                self.pending.clear();
                piece = tail;
            }
            if piece.ends_with(b"\n") && self.pending.is_empty() {
                emit(piece);
            } else {
                self.pending.extend_from_slice(piece);
                if piece.ends_with(b"\n") {
                    emit(&self.pending);
                    self.pending.clear();
                }
            }
        }
    }

    /// Hands over what is left when the stream has ended.
    pub fn finish(&mut self, mut emit: impl FnMut(&[u8])) {
        if !self.pending.is_empty() {
            emit(&self.pending);
            self.pending.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut splitter = LineSplitter::default();
        let mut out = Vec::new();
        for chunk in chunks {
            splitter.push(chunk, |payload| out.push(payload.to_vec()));
        }
        splitter.finish(|payload| out.push(payload.to_vec()));
        out
    }

    #[test]
    fn lines_across_chunks_become_one_entry() {
        assert_eq!(
            split(&[b"a\nb", b"c\nd"]),
            [b"a\n".to_vec(), b"bc\n".to_vec(), b"d".to_vec()]
        );
    }

    #[test]
    fn long_lines_are_cut_and_nothing_is_lost() {
        let long = vec![b'x'; MAX_ENTRY * 2 + 5];
        let parts = split(&[&long[..100], &long[100..], b"\n"]);
        assert!(parts.iter().all(|part| part.len() <= MAX_ENTRY));
        let mut whole = long.clone();
        whole.push(b'\n');
        assert_eq!(parts.concat(), whole);
    }

    #[test]
    fn entry_round_trip() {
        let mut out = Vec::new();
        encode(
            &mut out,
            "stderr",
            &BTreeMap::new(),
            jiff::Timestamp::UNIX_EPOCH,
            b"\xff\"\n",
        );
        let entry = decode(&out[..out.len() - 1]).unwrap();
        assert_eq!(
            (entry.log.as_str(), entry.stream.as_str()),
            ("\u{fffd}\"\n", "stderr")
        );
    }
}
