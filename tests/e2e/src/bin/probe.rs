//! Prints a file tree as seen from where it runs, one line an object: what the image
//! cases compare between isolations and with what they packed.
//!
//! `probe walk DIR` — path, type, mode, owner, size, time, device, extended attributes,
//! SHA-256 of the content. `probe eat MIB` — touches that much memory, says so.
//! `probe connect SOCKET TEXT` — says it to a UNIX socket and prints the answer.
//! `probe map FILE TEXT` — writes the start of a file through a shared mapping and prints
//! what was there. `probe locks FILE` — whether locks on it exclude each other.
//! `probe answer PORT TEXT` — answers every datagram with the text and the datagram's length.
//! `probe watch PATH…` — says `watching`, then a line for each event of inotify: the path,
//! what happened, the name. `probe ask ADDRESS` — sends a datagram until there is an answer, and prints that.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use sha2::Digest;

fn main() -> std::io::Result<()> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let word = |at: usize| {
        arguments
            .get(at)
            .map(|word| word.to_string_lossy().into_owned())
    };
    match (word(0).as_deref(), word(1), word(2)) {
        (Some("walk"), Some(root), _) => walk(Path::new(&root), Path::new(&root)),
        (Some("eat"), Some(mib), _) => eat(mib.parse().unwrap_or(0)),
        (Some("connect"), Some(socket), Some(text)) => connect(&socket, &text),
        (Some("map"), Some(file), Some(text)) => map(&file, text.as_bytes()),
        (Some("locks"), Some(file), _) => locks(&file),
        (Some("answer"), Some(port), Some(text)) => answer(&port, &text),
        (Some("ask"), Some(address), _) => ask(&address),
        (Some("watch"), Some(_), _) => watch(arguments.get(1..).unwrap_or_default()),
        _ => Err(std::io::Error::other(
            "usage: probe walk DIR | eat MIB | connect SOCKET TEXT | map FILE TEXT | locks FILE \
             | answer PORT TEXT | ask ADDRESS | watch PATH…",
        )),
    }
}

fn answer(port: &str, text: &str) -> std::io::Result<()> {
    let socket = std::net::UdpSocket::bind(format!("0.0.0.0:{port}"))?;
    let mut buffer = vec![0; 65_536];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        socket.send_to(format!("{text} {length}").as_bytes(), from)?;
    }
}

fn ask(address: &str) -> std::io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(std::time::Duration::from_secs(1)))?;
    let mut buffer = [0; 100];
    let mut last = std::io::Error::other("no answer");
    // Datagrams may be lost.
    for _ in 0..20 {
        socket.send_to(b"?", address)?;
        match socket.recv(&mut buffer) {
            Ok(length) => return std::io::stdout().write_all(&buffer[..length]),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn watch(paths: &[OsString]) -> std::io::Result<()> {
    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
    let group = inotify::init(CreateFlags::CLOEXEC)?;
    let flags = WatchFlags::MODIFY
        | WatchFlags::ATTRIB
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVE
        | WatchFlags::CLOSE_WRITE;
    let mut watched = std::collections::HashMap::new();
    for path in paths {
        let number = inotify::add_watch(&group, Path::new(path), flags)?;
        watched.insert(number, path.to_string_lossy());
    }
    println!("watching");
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(&group, &mut buffer);
    loop {
        let event = events.next()?;
        let path = watched.get(&event.wd()).map_or("?", |path| path);
        let name = event.file_name().map(std::ffi::CStr::to_string_lossy);
        for (flag, word) in [
            (ReadFlags::MODIFY, "modify"),
            (ReadFlags::ATTRIB, "attrib"),
            (ReadFlags::CREATE, "create"),
            (ReadFlags::DELETE, "delete"),
            (ReadFlags::MOVED_FROM, "from"),
            (ReadFlags::MOVED_TO, "to"),
            (ReadFlags::CLOSE_WRITE, "close"),
        ] {
            if event.events().contains(flag) {
                println!("{path} {word} {}", name.as_deref().unwrap_or("-"));
            }
        }
    }
}

fn connect(socket: &str, text: &str) -> std::io::Result<()> {
    let mut connection = std::os::unix::net::UnixStream::connect(socket)?;
    connection.write_all(text.as_bytes())?;
    connection.shutdown(std::net::Shutdown::Write)?;
    std::io::copy(&mut connection, &mut std::io::stdout())?;
    Ok(())
}

fn map(path: &str, text: &[u8]) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let length = usize::try_from(file.metadata()?.len()).map_err(std::io::Error::other)?;
    if length < text.len() {
        return Err(std::io::Error::other("the file is too short"));
    }
    // SAFETY: the mapping is as long as the file, is used here alone, and no longer than
    // until it is taken away.
    unsafe {
        let address = libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        if address == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let bytes = std::slice::from_raw_parts_mut(address.cast::<u8>(), length);
        let shown = std::io::stdout().write_all(&bytes[..text.len()]);
        bytes[..text.len()].copy_from_slice(text);
        let synced = libc::msync(address, length, libc::MS_SYNC);
        libc::munmap(address, length);
        shown?;
        if synced != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Two descriptors for flock(2), two processes for fcntl(2).
fn locks(path: &str) -> std::io::Result<()> {
    use rustix::fs::{FlockOperation, fcntl_lock, flock};
    let open = || std::fs::File::options().read(true).write(true).open(path);
    let (one, other) = (open()?, open()?);
    flock(&one, FlockOperation::LockExclusive)?;
    let excluded = flock(&other, FlockOperation::NonBlockingLockExclusive).is_err();
    flock(&one, FlockOperation::Unlock)?;
    let free = flock(&other, FlockOperation::NonBlockingLockExclusive).is_ok();
    println!("flock {excluded} {free}");
    if std::env::args_os().nth(3).is_some() {
        let excluded = fcntl_lock(&one, FlockOperation::NonBlockingLockExclusive).is_err();
        println!("child {excluded}");
        return Ok(());
    }
    fcntl_lock(&one, FlockOperation::LockExclusive)?;
    flock(&other, FlockOperation::Unlock)?;
    let child = std::process::Command::new(std::env::current_exe()?)
        .args(["locks", path, "child"])
        .status()?;
    if child.success() {
        Ok(())
    } else {
        Err(std::io::Error::other("the child failed"))
    }
}

fn walk(root: &Path, directory: &Path) -> std::io::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let meta = std::fs::symlink_metadata(&path)?;
        let kind = meta.file_type();
        let (letter, content) = if kind.is_dir() {
            ("d", String::new())
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&path)?;
            ("l", target.to_string_lossy().into_owned())
        } else if kind.is_file() {
            ("f", digest(&path)?)
        } else if kind.is_char_device() {
            ("c", String::new())
        } else if kind.is_block_device() {
            ("b", String::new())
        } else if kind.is_fifo() {
            ("p", String::new())
        } else {
            ("s", String::new())
        };
        let device = if letter == "c" || letter == "b" {
            let (major, minor) = (
                rustix::fs::major(meta.rdev()),
                rustix::fs::minor(meta.rdev()),
            );
            format!("{major}:{minor}")
        } else {
            "-".to_owned()
        };
        let size = if letter == "f" { meta.size() } else { 0 };
        let links = if letter == "d" { 0 } else { meta.nlink() };
        let name = path.strip_prefix(root).unwrap_or(&path);
        writeln!(
            std::io::stdout(),
            "{} {letter} {:o} {}:{} {size} {} {links} {device} [{}] {content}",
            name.display(),
            meta.mode() & 0o7777,
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            attributes(&path),
        )?;
        if kind.is_dir() {
            walk(root, &path)?;
        }
    }
    Ok(())
}

fn digest(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut digest = sha2::Sha256::new();
    std::io::copy(&mut file, &mut digest)?;
    let hex = digest
        .finalize()
        .iter()
        .fold(String::new(), |mut hex, byte| {
            use std::fmt::Write;
            // Writing into a string has no way to fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        });
    Ok(hex)
}

fn attributes(path: &Path) -> String {
    let mut names = vec![0; 64 * 1024];
    let Ok(length) = rustix::fs::llistxattr(path, &mut names[..]) else {
        return "?".to_owned();
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0) {
        // Overlayfs's own marks and labels of security modules are not the image's.
        if name.is_empty() || name.starts_with(b"trusted.overlay.") || name == b"security.selinux" {
            continue;
        }
        let mut value = vec![0; 64 * 1024];
        let name = std::ffi::OsStr::from_bytes(name);
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap_or(0);
        let value: String = value[..length]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        found.push(format!("{}={value}", name.to_string_lossy()));
    }
    found.sort();
    found.join(",")
}

fn eat(mib: usize) -> std::io::Result<()> {
    let mut memory: Vec<Vec<u8>> = Vec::new();
    for _ in 0..mib {
        memory.push(vec![1; 1 << 20]);
    }
    writeln!(std::io::stdout(), "ate {}", memory.len())?;
    std::io::stdout().flush()
}
