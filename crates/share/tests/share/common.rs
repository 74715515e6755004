//! A share server in its jail, and its other side.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use bulkhead_share::abi::{IN_HEADER, OUT_HEADER, Opcode};
use bulkhead_share::{ShareConfig, read_frame, write_frame};

/// Whether these tests can run; says why not.
pub fn possible() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: not root");
    }
    root
}

pub fn config(source: &Path) -> ShareConfig {
    ShareConfig {
        source: source.to_owned(),
        read_only: false,
        writable_below: false,
        recursive: true,
        follow_mounts: false,
        events: true,
    }
}

pub struct Jail {
    pub process: Child,
    pub socket: UnixStream,
    unique: u64,
}

impl Jail {
    pub fn start(config: &ShareConfig) -> Result<Self, String> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_bulkhead-share"))
            .arg("--id")
            .arg("test")
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let mut jail = Self {
            process,
            socket: ours,
            unique: 0,
        };
        write_frame(&mut jail.socket, config).unwrap();
        let ready: Result<(), String> = read_frame(&mut jail.socket).unwrap();
        ready.map(|()| jail)
    }

    /// Sends a request and returns its unique number.
    pub fn send(&mut self, opcode: u32, node: u64, body: &[u8]) -> u64 {
        self.unique += 1;
        let bytes = request(opcode, self.unique, node, (0, 0), body);
        self.socket.write_all(&bytes).unwrap();
        self.unique
    }

    /// Receives a reply: unique number, error, payload. What was not asked for is passed over.
    pub fn receive(&mut self) -> (u64, i32, Vec<u8>) {
        loop {
            let message = self.message();
            if message.0 != 0 {
                return message;
            }
        }
    }

    /// Receives whatever comes.
    pub fn message(&mut self) -> (u64, i32, Vec<u8>) {
        let mut head = [0; OUT_HEADER];
        self.socket.read_exact(&mut head).unwrap();
        let length = u32::from_ne_bytes(head[..4].try_into().unwrap());
        let error = i32::from_ne_bytes(head[4..8].try_into().unwrap());
        let unique = u64::from_ne_bytes(head[8..].try_into().unwrap());
        let mut payload = vec![0; usize::try_from(length).unwrap() - OUT_HEADER];
        self.socket.read_exact(&mut payload).unwrap();
        (unique, error, payload)
    }

    pub fn call(&mut self, opcode: Opcode, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let sent = self.send(opcode.number(), node, body);
        let (unique, error, payload) = self.receive();
        assert_eq!(unique, sent);
        if error == 0 { Ok(payload) } else { Err(-error) }
    }

    pub fn look_up(&mut self, node: u64, name: &[u8]) -> Result<u64, i32> {
        let mut body = name.to_vec();
        body.push(0);
        let reply = self.call(Opcode::Lookup, node, &body)?;
        Ok(u64::from_ne_bytes(reply[..8].try_into().unwrap()))
    }

    /// The process that serves, which is the started one's child.
    pub fn inner(&self) -> u32 {
        let outer = self.process.id().to_string();
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
            .find(|pid| {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
                let stat = stat.unwrap_or_default();
                let parent = stat.rsplit(") ").next().unwrap_or_default();
                parent.split(' ').nth(1) == Some(&outer)
            })
            .unwrap()
    }

    /// The socket is closed; the server ends by itself.
    pub fn end(self) {
        let Self {
            mut process,
            socket,
            ..
        } = self;
        drop(socket);
        assert_eq!(process.wait().unwrap().code(), Some(0));
    }
}

pub fn request(opcode: u32, unique: u64, node: u64, user: (u32, u32), body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(IN_HEADER + body.len());
    bytes.extend_from_slice(&u32::try_from(IN_HEADER + body.len()).unwrap().to_ne_bytes());
    bytes.extend_from_slice(&opcode.to_ne_bytes());
    bytes.extend_from_slice(&unique.to_ne_bytes());
    bytes.extend_from_slice(&node.to_ne_bytes());
    bytes.extend_from_slice(&user.0.to_ne_bytes());
    bytes.extend_from_slice(&user.1.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(body);
    bytes
}
