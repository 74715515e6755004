//! The initramfs: the agent as `/init`, the modules and the order to insert them in, and
//! the device nodes that a program expects before `/dev` is mounted.
//!
//! The same inputs give the same bytes: times are 0 and inodes count up.

use std::io::{self, Write};

use cpio::NewcBuilder;

use crate::modules::Module;

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const FILE: u32 = 0o100_644;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// The names that `docker top` gives to users of a guest: those two that every system has.
const USERS: &[u8] =
    b"root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n";
const GROUPS: &[u8] = b"root:x:0:\nnogroup:x:65534:\n";

/// Where the guest finds its modules: `/modules/<file>`, and `/modules/order` names those
/// that every guest needs, one a line.
const MODULES: &str = "modules";

pub(crate) fn archive(agent: &[u8], modules: &[Module]) -> io::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["dev", "etc", "proc", "sys", "run", MODULES] {
        archive.entry(directory, DIRECTORY, (0, 0), b"")?;
    }
    // Before it mounts devtmpfs, the kernel opens the one for init's standard streams, and
    // Rust's runtime the other when there are none.
    archive.entry("dev/console", CHARACTER_DEVICE, (5, 1), b"")?;
    archive.entry("dev/null", CHARACTER_DEVICE | 0o066, (1, 3), b"")?;
    archive.entry("etc/passwd", FILE, (0, 0), USERS)?;
    archive.entry("etc/group", FILE, (0, 0), GROUPS)?;
    archive.entry("init", EXECUTABLE, (0, 0), agent)?;
    archive.modules(modules)?;
    archive.finish()
}

/// An initramfs that is being written.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// A directory.
    ///
    /// # Errors
    /// When the archive cannot be written.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, DIRECTORY, (0, 0), b"")
    }

    /// A program.
    ///
    /// # Errors
    /// When it is too large for the format.
    pub fn executable(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.entry(name, EXECUTABLE, (0, 0), content)
    }

    /// The modules below `modules/`, which must be a directory already, and their order.
    ///
    /// # Errors
    /// When one is too large for the format.
    pub fn modules(&mut self, modules: &[Module]) -> io::Result<()> {
        let mut order = String::new();
        for module in modules {
            if !crate::modules::is_on_demand(&module.file) {
                order.push_str(&module.file);
                order.push('\n');
            }
            let name = format!("{MODULES}/{}", module.file);
            self.entry(&name, FILE, (0, 0), &module.bytes)?;
        }
        self.entry(&format!("{MODULES}/order"), FILE, (0, 0), order.as_bytes())
    }

    /// The archive's bytes.
    ///
    /// # Errors
    /// When the archive cannot be written.
    pub fn finish(self) -> io::Result<Vec<u8>> {
        let mut bytes = cpio::newc::trailer(self.bytes)?;
        // Archives can then be appended to each other.
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        Ok(bytes)
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let length = u32::try_from(content.len())
            .map_err(|_| io::Error::other(format!("'{name}' is larger than 4 GiB")))?;
        self.inode += 1;
        let mut writer = NewcBuilder::new(name)
            .ino(self.inode)
            .mode(mode)
            .rdev_major(device.0)
            .rdev_minor(device.1)
            .write(&mut self.bytes, length);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_what_the_kernel_looks_for() {
        let modules = ["b.ko", "a.ko"].map(|file| Module {
            file: file.to_owned(),
            bytes: vec![7; 5],
        });
        let bytes = archive(b"agent", &modules).unwrap();
        assert_eq!(bytes, archive(b"agent", &modules).unwrap());
        let mut rest = &bytes[..];
        let mut seen = Vec::new();
        loop {
            let mut reader = cpio::NewcReader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut content = Vec::new();
            io::Read::read_to_end(&mut reader, &mut content).unwrap();
            seen.push((
                reader.entry().name().to_owned(),
                reader.entry().mode(),
                content,
            ));
            rest = reader.finish().unwrap();
        }
        let find = |name: &str| seen.iter().find(|entry| entry.0 == name).unwrap();
        assert_eq!(find("init").1, EXECUTABLE);
        assert_eq!(find("init").2, b"agent");
        assert_eq!(find("modules/order").2, b"b.ko\na.ko\n");
        assert_eq!(find("dev/null").1, 0o020_666);
    }
}
