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
use std::os::fd::RawFd;

use bulkhead_machine::LayerFile;

use crate::command::fdset;

/// Bytes of a sector.
const SECTOR: u64 = 512;

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
    /// All of them together are too large to count.
    #[error("the layers are too large")]
    Overflow,
}

/// The descriptor of a disk that consists of `files`, which QEMU has as these descriptors.
pub(crate) fn descriptor(files: &[LayerFile], descriptors: &[RawFd]) -> Result<String, VmdkError> {
    // No blank line before the first extent: QEMU's parser skips it and takes that extent twice.
    let mut text = String::from(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
         createType=\"twoGbMaxExtentFlat\"\n# Extents\n",
    );
    let mut sectors = 0_u64;
    for (file, descriptor) in files.iter().zip(descriptors) {
        if file.bytes == 0 || file.bytes % SECTOR != 0 {
            return Err(VmdkError::Length {
                path: file.path.display().to_string(),
                bytes: file.bytes,
            });
        }
        let length = file.bytes / SECTOR;
        sectors = sectors.checked_add(length).ok_or(VmdkError::Overflow)?;
        // Writing to a String has no way to fail.
        let _ = writeln!(text, "RW {length} FLAT \"{}\" 0", fdset(*descriptor));
    }
    if sectors > i64::MAX.unsigned_abs() / SECTOR {
        return Err(VmdkError::Overflow);
    }
    text.push_str("# Disk data base\nddb.adapterType = \"ide\"\n");
    Ok(text)
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
        let text = descriptor(&[layer("/a b/1", 4096), layer("/2", 512)], &[7, 8]).unwrap();
        assert!(!text.contains("\n\n"));
        assert!(text.contains("\nRW 8 FLAT \"/dev/fdset/7\" 0\nRW 1 FLAT \"/dev/fdset/8\" 0\n"));
    }

    #[test]
    fn what_cannot_be_written_down_is_refused() {
        for bad in [layer("/empty", 0), layer("/odd", 513)] {
            assert!(
                descriptor(std::slice::from_ref(&bad), &[7]).is_err(),
                "{bad:?}"
            );
        }
        let huge = layer("/huge", u64::MAX / 512 * 512);
        assert_eq!(
            descriptor(&[huge.clone(), huge.clone(), huge], &[7, 8, 9]),
            Err(VmdkError::Overflow)
        );
    }
}
