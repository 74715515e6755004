//! What the host sees, by its own means: `/proc`, `/sys/fs/cgroup`, the file system.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a web server says, without the white space around it; `None` when there is none.
#[must_use]
pub fn page(address: SocketAddr, path: &str) -> Option<String> {
    let limit = Duration::from_secs(20);
    let mut stream = TcpStream::connect_timeout(&address, limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (_, body) = text.split_once("\r\n\r\n")?;
    Some(body.trim().to_owned())
}

/// A process of the host.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its parent.
    pub ppid: u32,
    /// Its name, as pgrep matches it.
    pub comm: String,
    /// Its arguments, joined by spaces.
    pub command: String,
    /// `/proc/<pid>/cgroup`.
    pub cgroups: String,
}

/// One process, if it is there and no zombie.
#[must_use]
pub fn process(pid: u32) -> Option<Process> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    let (head, tail) = stat.rsplit_once(')')?;
    let mut fields = tail.split_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    let command = fs::read(directory.join("cmdline")).ok()?;
    Some(Process {
        pid,
        ppid: fields.next()?.parse().ok()?,
        comm: head.split_once('(')?.1.to_owned(),
        command: String::from_utf8_lossy(&command)
            .trim_end_matches('\0')
            .replace('\0', " "),
        cgroups: fs::read_to_string(directory.join("cgroup")).ok()?,
    })
}

/// All processes.
#[must_use]
pub fn processes() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(process)
        .collect()
}

/// Processes of this name that have these words in their arguments.
#[must_use]
pub fn pgrep(comm: &str, words: &str) -> Vec<Process> {
    let mut found = processes();
    found.retain(|process| process.comm == comm && process.command.contains(words));
    found
}

/// The workers of a hyperv container.
#[must_use]
pub fn workers(id: &str) -> Vec<Process> {
    pgrep("vmwp", id)
}

/// Processes that are members of a cgroup of this container.
#[must_use]
pub fn members(id: &str) -> Vec<Process> {
    let mut found = processes();
    found.retain(|process| process.cgroups.contains(id));
    found
}

/// `root` and everything that descends from it.
#[must_use]
pub fn family(root: u32) -> Vec<Process> {
    let all = processes();
    let mut found: Vec<Process> = all.iter().filter(|one| one.pid == root).cloned().collect();
    let mut next = 0;
    while next < found.len() {
        let parent = found[next].pid;
        found.extend(all.iter().filter(|one| one.ppid == parent).cloned());
        next += 1;
    }
    found
}

/// Lines of the host's mount table that contain these words.
#[must_use]
pub fn mounts(words: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let lines = table.lines().filter(|line| line.contains(words));
    lines.map(str::to_owned).collect()
}

/// Directories under `/sys/fs/cgroup` whose name contains these words.
#[must_use]
pub fn cgroups(words: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), 5, &mut |path, directory| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if directory && name.contains(words) {
            found.push(path.to_owned());
        }
    });
    found
}

/// Network interfaces whose alias contains these words.
#[must_use]
pub fn interfaces(words: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/class/net") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| read_file(&entry.path().join("ifalias")).contains(words))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn read_file(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Loop devices over files whose path contains these words.
#[must_use]
pub fn loops(words: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("loop/backing_file")).ok())
        .filter(|file| file.contains(words))
        .collect()
}

/// The running kernel.
#[must_use]
pub fn kernel() -> String {
    read("/proc/sys/kernel/osrelease")
}

/// The ID of this boot.
#[must_use]
pub fn boot_id() -> String {
    read("/proc/sys/kernel/random/boot_id")
}

fn read(path: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

/// Calls `each` for everything below `root`, at most `depth` levels deep; symbolic links
/// are not followed, mounted file systems are entered.
pub fn walk(root: &Path, depth: usize, each: &mut dyn FnMut(&Path, bool)) {
    let Ok(entries) = fs::read_dir(root) else {
        return;
    };
    for entry in entries.flatten() {
        let directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let path = entry.path();
        each(&path, directory);
        if directory && depth > 1 {
            walk(&path, depth - 1, each);
        }
    }
}
