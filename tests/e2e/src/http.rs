//! A small HTTP server on loopback: files under fixed paths, and a note of what was asked for.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

/// When its files were changed last.
pub const MODIFIED: &str = "Sun, 09 Sep 2001 01:46:40 GMT";

/// A running server. Its thread ends with the program.
pub struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

/// Content type and content by path. A proxy is asked for whole addresses.
pub type Files = BTreeMap<String, (&'static str, Vec<u8>)>;

impl Server {
    /// Starts it.
    #[track_caller]
    #[must_use]
    pub fn start(files: Files) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let noted = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // Whoever breaks off has nothing to be told.
                drop(answer(&stream, &files, &noted));
            }
        });
        Self { address, asked }
    }

    /// `127.0.0.1:port`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// The first lines of all requests, without the protocol.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.clone()
    }
}

fn answer(
    mut stream: &TcpStream,
    files: &Files,
    noted: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next(), words.next().unwrap_or_default());
    let method = method.unwrap_or_default();
    let mut notes = noted.lock().unwrap_or_else(PoisonError::into_inner);
    notes.push(format!("{method} {path}"));
    drop(notes);
    match files.get(path) {
        Some((kind, content)) => {
            let length = content.len();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
                 Last-Modified: {MODIFIED}\r\nConnection: close\r\n\r\n"
            )?;
            stream.write_all(content)
        }
        None => write!(
            stream,
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ),
    }
}
