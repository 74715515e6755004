//! The layout of FUSE messages (`linux/fuse.h`, version 7.36), read and written field by
//! field. Numbers are in the byte order of the machine, which guest and host share.

use rustix::fs::Statx;
use rustix::io::Errno;

/// Most bytes that one read or write carries.
pub const MAX_IO: usize = 1 << 20;
/// Longest request: a write with its headers.
pub const MAX_REQUEST: usize = MAX_IO + 4096;
/// Bytes of the header of a request.
pub const IN_HEADER: usize = 40;
/// Bytes of the header of a reply.
pub const OUT_HEADER: usize = 16;
/// The node that is the share's root.
pub const ROOT_ID: u64 = 1;
/// Longest name of a directory's entry, bytes.
pub const MAX_NAME: usize = 255;

/// The version that we speak.
pub const MAJOR: u32 = 7;
/// Its minor part: the newest that we know. An older guest gets its own.
pub const MINOR: u32 = 36;
/// The oldest minor version whose layouts are the ones here.
pub const OLDEST_MINOR: u32 = 23;

macro_rules! opcodes {
    ($($name:ident = $number:literal,)*) => {
        /// What is asked.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs, reason = "the names are the protocol's")]
        pub enum Opcode {
            $($name,)*
        }

        impl Opcode {
            /// The operation with this number, if we know it.
            pub fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Its number.
            pub fn number(self) -> u32 {
                match self {
                    $(Self::$name => $number,)*
                }
            }
        }
    };
}

opcodes! {
    Lookup = 1,
    Forget = 2,
    GetAttr = 3,
    SetAttr = 4,
    ReadLink = 5,
    SymLink = 6,
    MkNod = 8,
    MkDir = 9,
    Unlink = 10,
    RmDir = 11,
    Rename = 12,
    Link = 13,
    Open = 14,
    Read = 15,
    Write = 16,
    StatFs = 17,
    Release = 18,
    FSync = 20,
    SetXAttr = 21,
    GetXAttr = 22,
    ListXAttr = 23,
    RemoveXAttr = 24,
    Flush = 25,
    Init = 26,
    OpenDir = 27,
    ReadDir = 28,
    ReleaseDir = 29,
    FSyncDir = 30,
    Create = 35,
    Interrupt = 36,
    Destroy = 38,
    BatchForget = 42,
    FAllocate = 43,
    Rename2 = 45,
    LSeek = 46,
    CopyFileRange = 47,
}

/// Flags of the first request and its reply.
pub mod init {
    /// Reads of one file may be under way at the same time.
    pub const ASYNC_READ: u32 = 1 << 0;
    /// Open may truncate.
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    /// Writes longer than a page.
    pub const BIG_WRITES: u32 = 1 << 5;
    /// Cached pages go when a file's size or time of change is another one.
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    /// Direct reads and writes may be asynchronous.
    pub const ASYNC_DIO: u32 = 1 << 15;
    /// Lookups in one directory may be under way at the same time.
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    /// The reply says how many pages a request may have.
    pub const MAX_PAGES: u32 = 1 << 22;
    /// The server takes set-user-ID bits and capabilities off a file that is written.
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
    /// There are more flags.
    pub const INIT_EXT: u32 = 1 << 30;
    /// Of those: files without a page cache can be mapped all the same.
    pub const MORE_DIRECT_IO_ALLOW_MMAP: u32 = 1 << 4;
    /// What of these the server wants when the guest offers it.
    pub const WANTED: u32 = ASYNC_READ
        | ATOMIC_O_TRUNC
        | BIG_WRITES
        | AUTO_INVAL_DATA
        | ASYNC_DIO
        | PARALLEL_DIROPS
        | MAX_PAGES
        | HANDLE_KILLPRIV_V2;
}

/// Which fields a change of attributes sets.
pub mod set {
    /// Permission bits.
    pub const MODE: u32 = 1 << 0;
    /// Owner.
    pub const UID: u32 = 1 << 1;
    /// Group.
    pub const GID: u32 = 1 << 2;
    /// Length.
    pub const SIZE: u32 = 1 << 3;
    /// Time of last access.
    pub const ATIME: u32 = 1 << 4;
    /// Time of last change.
    pub const MTIME: u32 = 1 << 5;
    /// The request has an open file.
    pub const HANDLE: u32 = 1 << 6;
    /// The former, now.
    pub const ATIME_NOW: u32 = 1 << 7;
    /// The latter, now.
    pub const MTIME_NOW: u32 = 1 << 8;
    /// A new length takes set-user-ID and set-group-ID bits off.
    pub const KILL_SETID: u32 = 1 << 11;
}

/// Flag of an open: truncating takes set-user-ID and set-group-ID bits off.
pub const OPEN_KILL_SETID: u32 = 1 << 0;
/// Flag of an opened file: what is read and written does not stay in the guest's page cache.
pub const OPENED_DIRECT: u32 = 1 << 0;
/// Flag of a write: it takes them off.
pub const WRITE_KILL_SETID: u32 = 1 << 2;

/// The header of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The operation's number.
    pub opcode: u32,
    /// What the reply is to say, so that the guest finds the asker.
    pub unique: u64,
    /// What it is about.
    pub node: u64,
    /// The asker's user for files.
    pub uid: u32,
    /// The asker's group for files.
    pub gid: u32,
    /// The asking thread, as the guest numbers it.
    pub process: u32,
}

/// A message that is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a message of the guest is cut short")]
pub struct Truncated;

impl From<Truncated> for Errno {
    fn from(_: Truncated) -> Self {
        Self::INVAL
    }
}

/// What is left to read of a message.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// All of it.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Truncated> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    /// The next number of 16 bits.
    ///
    /// # Errors
    /// [`Truncated`], as all of these.
    pub fn u16(&mut self) -> Result<u16, Truncated> {
        self.array().map(u16::from_ne_bytes)
    }

    /// The next number of 32 bits.
    ///
    /// # Errors
    /// [`Truncated`].
    pub fn u32(&mut self) -> Result<u32, Truncated> {
        self.array().map(u32::from_ne_bytes)
    }

    /// The next number of 64 bits.
    ///
    /// # Errors
    /// [`Truncated`].
    pub fn u64(&mut self) -> Result<u64, Truncated> {
        self.array().map(u64::from_ne_bytes)
    }

    /// The next bytes.
    ///
    /// # Errors
    /// [`Truncated`].
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Truncated> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// The next bytes up to a NUL, which is passed over.
    ///
    /// # Errors
    /// [`Truncated`] when there is no NUL.
    pub fn string(&mut self) -> Result<&'a [u8], Truncated> {
        let end = self
            .rest
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(Truncated)?;
        let string = self.rest.get(..end).ok_or(Truncated)?;
        self.rest = self.rest.get(end + 1..).ok_or(Truncated)?;
        Ok(string)
    }

    /// The next string as the name of a directory's entry: not empty, no `.` or `..`, no
    /// slash, not too long. A name that passes cannot lead out of its directory.
    ///
    /// # Errors
    /// `EINVAL`, `ENAMETOOLONG`.
    pub fn name(&mut self) -> Result<&'a [u8], Errno> {
        let name = self.string()?;
        if name.len() > MAX_NAME {
            return Err(Errno::NAMETOOLONG);
        }
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
            return Err(Errno::INVAL);
        }
        Ok(name)
    }

    /// The header of a request whose length was read already.
    ///
    /// # Errors
    /// [`Truncated`].
    pub fn header(&mut self) -> Result<Header, Truncated> {
        let header = Header {
            opcode: self.u32()?,
            unique: self.u64()?,
            node: self.u64()?,
            uid: self.u32()?,
            gid: self.u32()?,
            process: self.u32()?,
        };
        let _extensions = self.u32()?;
        Ok(header)
    }
}

/// A message that is being written; its length is filled in at the end.
#[derive(Debug)]
pub struct Output {
    bytes: Vec<u8>,
}

impl Output {
    /// The reply to a request that succeeded.
    pub fn reply(unique: u64) -> Self {
        Self::with(unique, 0, 256)
    }

    /// As [`Output::reply`], with room for this many bytes of data.
    pub fn reply_with_room(unique: u64, room: usize) -> Self {
        Self::with(unique, 0, room)
    }

    /// The reply to one that did not.
    pub fn error(unique: u64, error: Errno) -> Self {
        Self::with(unique, -error.raw_os_error(), 0)
    }

    /// A message that nobody asked for.
    pub fn unasked(code: i32) -> Self {
        Self::with(0, code, 256)
    }

    fn with(unique: u64, error: i32, room: usize) -> Self {
        let mut bytes = Vec::with_capacity(OUT_HEADER + room);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&error.to_ne_bytes());
        bytes.extend_from_slice(&unique.to_ne_bytes());
        Self { bytes }
    }

    /// Appends a number.
    pub fn u16(&mut self, number: u16) -> &mut Self {
        self.bytes(&number.to_ne_bytes())
    }

    /// Appends a number.
    pub fn u32(&mut self, number: u32) -> &mut Self {
        self.bytes(&number.to_ne_bytes())
    }

    /// Appends a number.
    pub fn u64(&mut self, number: u64) -> &mut Self {
        self.bytes(&number.to_ne_bytes())
    }

    /// Appends bytes.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Appends what `read` puts into a buffer of `room` bytes; it says how many they are.
    ///
    /// # Errors
    /// What `read` says.
    pub fn fill(
        &mut self,
        room: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
    ) -> Result<&mut Self, Errno> {
        let start = self.bytes.len();
        self.bytes.resize(start + room, 0);
        let buffer = self.bytes.get_mut(start..).unwrap_or_default();
        let length = read(buffer)?.min(room);
        self.bytes.truncate(start + length);
        Ok(self)
    }

    /// Appends `struct fuse_attr`. `inode` is what the guest is to see as the number.
    pub fn attributes(&mut self, stat: &Statx, inode: u64) -> &mut Self {
        // Times before 1970 are negative, and their bits are what the guest takes.
        self.u64(inode)
            .u64(stat.stx_size)
            .u64(stat.stx_blocks)
            .u64(stat.stx_atime.tv_sec.cast_unsigned())
            .u64(stat.stx_mtime.tv_sec.cast_unsigned())
            .u64(stat.stx_ctime.tv_sec.cast_unsigned())
            .u32(stat.stx_atime.tv_nsec)
            .u32(stat.stx_mtime.tv_nsec)
            .u32(stat.stx_ctime.tv_nsec)
            .u32(u32::from(stat.stx_mode))
            .u32(stat.stx_nlink)
            .u32(stat.stx_uid)
            .u32(stat.stx_gid)
            .u32(encode_device(stat.stx_rdev_major, stat.stx_rdev_minor))
            .u32(stat.stx_blksize)
            .u32(0)
    }

    /// Appends `struct fuse_entry_out`, which is valid for no longer than it takes: the
    /// host may change anything at any time.
    pub fn entry(&mut self, node: u64, stat: &Statx, inode: u64) -> &mut Self {
        self.u64(node).u64(0).u64(0).u64(0).u32(0).u32(0);
        self.attributes(stat, inode)
    }

    /// Appends `struct fuse_attr_out`, valid as an entry is.
    pub fn attributes_alone(&mut self, stat: &Statx, inode: u64) -> &mut Self {
        self.u64(0).u32(0).u32(0);
        self.attributes(stat, inode)
    }

    /// How many bytes follow the header.
    pub fn payload_length(&self) -> usize {
        self.bytes.len() - OUT_HEADER
    }

    /// The message.
    pub fn finish(mut self) -> Vec<u8> {
        // No reply is longer than a read with its header.
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        if let Some(field) = self.bytes.first_chunk_mut() {
            *field = length.to_ne_bytes();
        }
        self.bytes
    }
}

/// A device's numbers in 32 bits, as the kernel's `new_encode_dev` packs them.
pub fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The reverse: major, minor.
pub fn decode_device(device: u32) -> (u32, u32) {
    let major = (device & 0xf_ff00) >> 8;
    let minor = (device & 0xff) | ((device >> 12) & 0xf_ff00);
    (major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_lead_out() {
        for bad in [
            &b"\0"[..],
            b".\0",
            b"..\0",
            b"/\0",
            b"/etc\0",
            b"a/b\0",
            b"../x\0",
            b"no end",
            b"",
        ] {
            assert_eq!(Input::new(bad).name(), Err(Errno::INVAL), "{bad:?}");
        }
        let mut long = vec![b'x'; MAX_NAME + 1];
        long.push(0);
        assert_eq!(Input::new(&long).name(), Err(Errno::NAMETOOLONG));
        for good in [&b"...\0"[..], b".x\0", b"a b\0", b"\xff\xfe\0"] {
            Input::new(good).name().unwrap();
        }
    }

    #[test]
    fn devices_survive() {
        for (major, minor) in [(0, 0), (8, 1), (4095, 1_048_575), (254, 256)] {
            assert_eq!(decode_device(encode_device(major, minor)), (major, minor));
        }
    }

    #[test]
    fn layouts_have_the_protocols_lengths() {
        let stat = rustix::fs::statx(
            rustix::fs::CWD,
            "/",
            rustix::fs::AtFlags::empty(),
            rustix::fs::StatxFlags::BASIC_STATS,
        )
        .unwrap();
        let mut entry = Output::reply(1);
        assert_eq!(entry.entry(1, &stat, 1).payload_length(), 128);
        let mut attributes = Output::reply(1);
        assert_eq!(attributes.attributes_alone(&stat, 1).payload_length(), 104);
        let error = Output::error(7, Errno::NOENT).finish();
        assert_eq!(error.len(), OUT_HEADER);
        assert_eq!(error[4..8], (-2i32).to_ne_bytes());
    }
}
