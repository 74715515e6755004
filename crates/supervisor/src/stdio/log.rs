//! The json-file log of a container: entries appended as they come, files rotated by size.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bulkhead_task::json_log::{self, LineSplitter};
use bulkhead_task::options::LogOptions;

/// An open log.
pub struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    max_size: Option<u64>,
    max_files: u32,
    attributes: BTreeMap<String, String>,
    stdout: LineSplitter,
    stderr: LineSplitter,
    failing: bool,
}

impl Log {
    /// Opens the log to append to it. A container runs even if its log cannot be written.
    pub fn open(options: &LogOptions) -> Option<Self> {
        let opened = open(&options.path).and_then(|file| {
            let size = file.metadata()?.len();
            Ok((file, size))
        });
        match opened {
            Ok((file, size)) => Some(Self {
                path: options.path.clone(),
                file,
                size,
                max_size: options.max_size.filter(|size| *size > 0),
                max_files: options.max_files.max(1),
                attributes: options.attributes.clone(),
                stdout: LineSplitter::default(),
                stderr: LineSplitter::default(),
                failing: false,
            }),
            Err(error) => {
                tracing::error!(%error, path = %options.path.display(), "no log is kept");
                None
            }
        }
    }

    /// Appends what came on a stream; an unfinished line waits for its end.
    pub fn append(&mut self, stream: &'static str, bytes: &[u8]) {
        self.write(stream, |splitter, emit| splitter.push(bytes, emit));
    }

    /// The stream has ended: appends its unfinished line.
    pub fn finish(&mut self, stream: &'static str) {
        self.write(stream, |splitter, emit| splitter.finish(emit));
    }

    /// Everything is in the file already; the page cache outlives this process.
    pub fn flush(&mut self) {
        if let Err(error) = self.file.flush() {
            self.complain(&error);
        }
    }

    fn write(
        &mut self,
        stream: &'static str,
        split: impl FnOnce(&mut LineSplitter, &mut dyn FnMut(&[u8])),
    ) {
        let at = jiff::Timestamp::now();
        let mut encoded = Vec::new();
        // Ends of the entries in `encoded`: files are cut between entries only.
        let mut ends = Vec::new();
        let splitter = match stream {
            "stderr" => &mut self.stderr,
            _ => &mut self.stdout,
        };
        let attributes = &self.attributes;
        split(splitter, &mut |payload| {
            json_log::encode(&mut encoded, stream, attributes, at, payload);
            ends.push(encoded.len());
        });
        if let Err(error) = self.write_entries(&encoded, &ends) {
            self.complain(&error);
        } else {
            self.failing = false;
        }
    }

    fn write_entries(&mut self, encoded: &[u8], ends: &[usize]) -> io::Result<()> {
        let Some(max_size) = self.max_size else {
            self.file.write_all(encoded)?;
            return Ok(());
        };
        let mut start = 0;
        for end in ends {
            let entry = encoded.get(start..*end).unwrap_or_default();
            start = *end;
            let length = u64::try_from(entry.len()).unwrap_or(u64::MAX);
            if self.size > 0 && self.size.saturating_add(length) > max_size {
                self.rotate()?;
            }
            self.file.write_all(entry)?;
            self.size = self.size.saturating_add(length);
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        if self.max_files == 1 {
            self.file.set_len(0)?;
        } else {
            for number in (1..self.max_files - 1).rev() {
                rename_if_there(&numbered(number), &numbered(number + 1))?;
            }
            rename_if_there(&self.path, &numbered(1))?;
            self.file = open(&self.path)?;
        }
        self.size = 0;
        Ok(())
    }

    /// Once per trouble, not once per line.
    fn complain(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!(%error, path = %self.path.display(), "output is not logged");
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(name: &str, max_size: Option<u64>, max_files: u32) -> (PathBuf, LogOptions) {
        let directory = std::env::temp_dir().join(format!("log-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = directory.join("x-json.log");
        let options = LogOptions {
            path,
            max_size,
            max_files,
            attributes: BTreeMap::new(),
        };
        (directory, options)
    }

    fn entries(path: &Path) -> Vec<String> {
        let text = fs::read(path).unwrap();
        let lines = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        lines
            .map(|line| json_log::decode(line).unwrap().log)
            .collect()
    }

    #[test]
    fn streams_do_not_mix_their_lines() {
        let (directory, options) = log("mix", None, 1);
        let mut log = Log::open(&options).unwrap();
        log.append("stdout", b"one ");
        log.append("stderr", b"bad\n");
        log.append("stdout", b"two\nrest");
        log.finish("stdout");
        log.finish("stderr");
        assert_eq!(entries(&options.path), ["bad\n", "one two\n", "rest"]);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn rotation_keeps_whole_entries() {
        let (directory, options) = log("rotate", Some(200), 3);
        let mut log = Log::open(&options).unwrap();
        for number in 0..10 {
            log.append("stdout", format!("line {number}\n").as_bytes());
        }
        drop(log);
        let path = options.path.to_str().unwrap();
        let mut all = Vec::new();
        for file in [format!("{path}.2"), format!("{path}.1"), path.to_owned()] {
            assert!(fs::metadata(&file).unwrap().len() <= 200);
            all.extend(entries(Path::new(&file)));
        }
        assert!(!Path::new(&format!("{path}.3")).exists());
        assert_eq!(all.last().unwrap(), "line 9\n");
        assert_eq!(all.first().unwrap(), &format!("line {}\n", 10 - all.len()));
        fs::remove_dir_all(directory).unwrap();
    }
}
