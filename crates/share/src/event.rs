//! What others than the guest have changed in a share, as the server tells the agent.
//!
//! It goes the way of the replies, as a message that no request has asked for. The kernel has
//! none of this kind: the agent takes it out of the stream and makes the guest's kernel see
//! the change ([`crate::Replay`]).

use crate::abi::{Input, Output};

/// In the place of a reply's error; the kernel's own numbers of unasked messages are small.
const CODE: i32 = 0x6576;

/// What has happened; several may have.
pub mod what {
    /// A file has other contents.
    pub const MODIFIED: u32 = 1 << 0;
    /// Owner, mode, times or the like.
    pub const ATTRIBUTES: u32 = 1 << 1;
    /// A file that was open to be written is closed.
    pub const CLOSED: u32 = 1 << 2;
    /// There is a new name.
    pub const CREATED: u32 = 1 << 3;
    /// A name has gone.
    pub const REMOVED: u32 = 1 << 4;
    /// A name is another one now.
    pub const RENAMED: u32 = 1 << 5;
    /// It is about a directory.
    pub const DIRECTORY: u32 = 1 << 6;
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The directory's node.
    pub node: u64,
    /// The directory's number, as the guest sees it.
    pub inode: u64,
    /// Where the directory is, from the share's root.
    pub path: Vec<u8>,
    /// The name in it; empty for the directory itself.
    pub name: Vec<u8>,
}

/// Something that has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Of [`what`].
    pub what: u32,
    /// To whom.
    pub at: Entry,
    /// The number of the file there, as the guest sees it; 0 when there is none.
    pub inode: u64,
    /// The new name of what was renamed.
    pub to: Option<Entry>,
}

impl Event {
    /// The message.
    pub fn encode(&self) -> Vec<u8> {
        let mut output = Output::unasked(CODE);
        output.u32(self.what).u64(self.inode);
        for entry in std::iter::once(&self.at).chain(&self.to) {
            output.u64(entry.node).u64(entry.inode);
            output.bytes(&entry.path).bytes(&[0]);
            output.bytes(&entry.name).bytes(&[0]);
        }
        output.finish()
    }

    /// Whether a message is no reply.
    pub fn is_unasked(message: &[u8]) -> bool {
        message.get(8..16) == Some(&[0; 8])
    }

    /// The event that a message is, if it is one.
    pub fn decode(message: &[u8]) -> Option<Self> {
        let mut input = Input::new(message);
        let (_length, code, unique) = (input.u32().ok()?, input.u32().ok()?, input.u64().ok()?);
        if unique != 0 || code.cast_signed() != CODE {
            return None;
        }
        let what = input.u32().ok()?;
        let inode = input.u64().ok()?;
        let at = entry(&mut input)?;
        let to = if what & what::RENAMED == 0 {
            None
        } else {
            Some(entry(&mut input)?)
        };
        Some(Self {
            what,
            at,
            inode,
            to,
        })
    }
}

fn entry(input: &mut Input<'_>) -> Option<Entry> {
    Some(Entry {
        node: input.u64().ok()?,
        inode: input.u64().ok()?,
        path: input.string().ok()?.to_vec(),
        name: input.string().ok()?.to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_what_is_received() {
        let entry = |name: &[u8]| Entry {
            node: 7,
            inode: 1 << 60,
            path: b"a/b".to_vec(),
            name: name.to_vec(),
        };
        for event in [
            Event {
                what: what::CREATED | what::MODIFIED,
                at: entry(b"\xff new"),
                inode: 9,
                to: None,
            },
            Event {
                what: what::RENAMED | what::DIRECTORY,
                at: entry(b"old"),
                inode: 9,
                to: Some(entry(b"new")),
            },
        ] {
            let message = event.encode();
            assert!(Event::is_unasked(&message));
            assert_eq!(Event::decode(&message), Some(event));
            for length in 0..message.len() {
                assert_eq!(Event::decode(&message[..length]), None);
            }
        }
        assert!(!Event::is_unasked(&Output::reply(3).finish()));
    }
}
