//! Docker's stream frames: 8 bytes of header (stream, 0, 0, 0, big-endian length), then the
//! payload. Decodes incrementally and never holds a whole frame: a payload is handed out in
//! the pieces in which it arrives, so its length needs no limit in memory.

/// Which stream a piece belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Standard output (and the echo of standard input).
    Out,
    /// Standard error.
    Err,
    /// The daemon reports a failure.
    System,
}

/// Why a stream of frames cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// The first byte of a header names no stream.
    #[error("Unrecognized input header: {0}")]
    Header(u8),
}

const HEADER: usize = 8;

/// The decoder's place in the stream.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    header: [u8; HEADER],
    filled: usize,
    /// Bytes of payload still to come, and their stream.
    payload: Option<(StreamKind, u32)>,
}

impl FrameDecoder {
    /// Splits `input` into pieces of payload, in order, continuing where the last call ended.
    pub fn decode(
        &mut self,
        mut input: &[u8],
        mut piece: impl FnMut(StreamKind, &[u8]),
    ) -> Result<(), FrameError> {
        while !input.is_empty() {
            match &mut self.payload {
                Some((kind, left)) => {
                    let take = usize::try_from(*left)
                        .unwrap_or(usize::MAX)
                        .min(input.len());
                    piece(*kind, &input[..take]);
                    input = &input[take..];
                    *left -= u32::try_from(take).unwrap_or(*left);
                    if *left == 0 {
                        self.payload = None;
                    }
                }
                None => {
                    let take = (HEADER - self.filled).min(input.len());
                    self.header[self.filled..self.filled + take].copy_from_slice(&input[..take]);
                    self.filled += take;
                    input = &input[take..];
                    if self.filled == HEADER {
                        self.filled = 0;
                        let [stream, _, _, _, a, b, c, d] = self.header;
                        let kind = match stream {
                            0 | 1 => StreamKind::Out,
                            2 => StreamKind::Err,
                            3 => StreamKind::System,
                            other => return Err(FrameError::Header(other)),
                        };
                        let length = u32::from_be_bytes([a, b, c, d]);
                        if length > 0 {
                            self.payload = Some((kind, length));
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![stream, 0, 0, 0];
        out.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        out.extend(payload);
        out
    }

    #[test]
    fn any_split_gives_the_same_bytes() {
        let mut input = frame(1, b"hello ");
        input.extend(frame(2, b"oops"));
        input.extend(frame(1, b""));
        input.extend(frame(1, b"world"));
        for size in 1..=input.len() {
            let mut decoder = FrameDecoder::default();
            let (mut out, mut err) = (Vec::new(), Vec::new());
            for chunk in input.chunks(size) {
                decoder
                    .decode(chunk, |kind, bytes| match kind {
                        StreamKind::Err => err.extend(bytes),
                        _ => out.extend(bytes),
                    })
                    .unwrap();
            }
            assert_eq!(
                (out.as_slice(), err.as_slice()),
                (&b"hello world"[..], &b"oops"[..])
            );
        }
    }

    #[test]
    fn hostile_headers() {
        let mut decoder = FrameDecoder::default();
        assert_eq!(
            decoder.decode(&[9; 8], |_, _| {}),
            Err(FrameError::Header(9))
        );
        let mut decoder = FrameDecoder::default();
        let mut seen = 0;
        let huge = [1, 0, 0, 0, 255, 255, 255, 255, b'x'];
        decoder
            .decode(&huge, |_, bytes| seen += bytes.len())
            .unwrap();
        assert_eq!(seen, 1);
    }
}
