//! Many files as one read-only disk, by a VMDK descriptor with flat extents.
//!
//! QEMU has no driver that only concatenates; its VMDK driver does it for a descriptor of
//! type `twoGbMaxExtentFlat` (despite the name, without a limit of size), which costs one
//! device and no copy whatever the number of files. Format: VMware's "Virtual Disk Format
//! 5.0", and what QEMU's `block/vmdk.c` accepts of it: the access must be `RW` even though
//! the disk is opened read-only, a name ends at a quotation mark or a line's end, and an
//! empty line before an extent makes it count twice (QEMU 7.2's parser skips the line's end
//! as white space).

use std::fmt::Write as _;
use std::path::Path;

use bulkhead_machine::LayerFile;

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Longest name that QEMU's parser takes, bytes.
const MAX_NAME: usize = 511;

/// A layer cannot be part of the disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VmdkError {
    /// Its length is odd.
    #[error("the layer '{path}' has {bytes} bytes, which is not a positive multiple of 512")]
    Length {
        /// Which.
        path: String,
        /// Its length.
        bytes: u64,
    },
    /// Its name cannot be written down.
    #[error(
        "the layer's path '{0}' cannot be used in a VM: it must be absolute, UTF-8, at most \
         511 bytes, without quotation marks and control characters"
    )]
    Name(String),
    /// All of them together are too large to count.
    #[error("the layers are too large")]
    Overflow,
}

/// The descriptor of a disk that consists of `files`.
pub(crate) fn descriptor(files: &[LayerFile]) -> Result<String, VmdkError> {
    // No blank line before the first extent: QEMU's parser skips it and takes that extent twice.
    let mut text = String::from(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
         createType=\"twoGbMaxExtentFlat\"\n# Extents\n",
    );
    let mut sectors = 0_u64;
    for file in files {
        let name = name(&file.path)?;
        if file.bytes == 0 || file.bytes % SECTOR != 0 {
            return Err(VmdkError::Length {
                path: name.to_owned(),
                bytes: file.bytes,
            });
        }
        let length = file.bytes / SECTOR;
        sectors = sectors.checked_add(length).ok_or(VmdkError::Overflow)?;
        // Writing to a String has no way to fail.
        let _ = writeln!(text, "RW {length} FLAT \"{name}\" 0");
    }
    if sectors > i64::MAX.unsigned_abs() / SECTOR {
        return Err(VmdkError::Overflow);
    }
    text.push_str("# Disk data base\nddb.adapterType = \"ide\"\n");
    Ok(text)
}

fn name(path: &Path) -> Result<&str, VmdkError> {
    path.to_str()
        .filter(|name| {
            path.is_absolute()
                && name.len() <= MAX_NAME
                && !name.contains(|c: char| c == '"' || c.is_control())
        })
        .ok_or_else(|| VmdkError::Name(path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(path: &str, bytes: u64) -> LayerFile {
        LayerFile {
            path: path.into(),
            bytes,
        }
    }

    #[test]
    fn one_line_a_file() {
        let text = descriptor(&[layer("/a b/1", 4096), layer("/2", 512)]).unwrap();
        assert!(!text.contains("\n\nRW"));
        assert!(!text.contains("\n\n"));
        assert!(text.contains("\nRW 8 FLAT \"/a b/1\" 0\nRW 1 FLAT \"/2\" 0\n"));
    }

    #[test]
    fn what_cannot_be_written_down_is_refused() {
        for bad in [
            layer("relative", 512),
            layer("/quo\"te", 512),
            layer("/line\nRW 1 FLAT \"/etc/shadow\" 0", 512),
            layer(&format!("/{}", "x".repeat(600)), 512),
            layer("/empty", 0),
            layer("/odd", 513),
        ] {
            assert!(descriptor(std::slice::from_ref(&bad)).is_err(), "{bad:?}");
        }
        let huge = layer("/huge", u64::MAX / 512 * 512);
        assert_eq!(
            descriptor(&[huge.clone(), huge.clone(), huge]),
            Err(VmdkError::Overflow)
        );
    }
}
