//! Docker's frames, in which both outputs of a process come on one connection: stream, three
//! zeros, length, content.

/// The head of a frame of standard output.
pub fn frame_head(length: usize) -> [u8; 8] {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [1, 0, 0, 0, length[0], length[1], length[2], length[3]]
}

/// Takes frames away.
#[derive(Debug, Default)]
pub struct Frames {
    head: Vec<u8>,
    left: usize,
}

impl Frames {
    /// Appends the content of frames, which may come in any pieces.
    pub fn strip(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let take = self.left.min(bytes.len());
                out.extend_from_slice(&bytes[..take]);
                self.left -= take;
                bytes = &bytes[take..];
                continue;
            }
            let take = bytes.len().min(8 - self.head.len());
            self.head.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if let [_, _, _, _, length @ ..] = self.head.as_slice()
                && let Ok(length) = <[u8; 4]>::try_from(length)
            {
                self.left = usize::try_from(u32::from_be_bytes(length)).unwrap_or(0);
                self.head.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_tells_its_length() {
        assert_eq!(frame_head(0x0102), [1, 0, 0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn frames_come_in_any_pieces() {
        let mut stream = Vec::new();
        for content in ["one ", "", "two ", "three"] {
            stream.extend_from_slice(&frame_head(content.len()));
            stream.extend_from_slice(content.as_bytes());
        }
        for size in 1..=stream.len() {
            let (mut frames, mut out) = (Frames::default(), Vec::new());
            for piece in stream.chunks(size) {
                frames.strip(piece, &mut out);
            }
            assert_eq!(out, b"one two three", "in pieces of {size}");
        }
    }
}
