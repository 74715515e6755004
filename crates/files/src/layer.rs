//! The writable layer as the layer of an image: what was deleted becomes whiteouts, and
//! overlayfs's own marks go.

use std::io::Write;
use std::os::fd::BorrowedFd;

use rustix::fs::FileType;

use crate::changes::Scaffold;
use crate::pack::{PackError, Packer};
use crate::protocol::{FilesError, FilesErrorKind};
use crate::tree::{Descend, is_opaque, is_whiteout, walk};

/// Packs `upper`, the writable layer over `base`.
pub(crate) fn pack<W: Write>(
    packer: &mut Packer<W>,
    upper: BorrowedFd<'_>,
    base: Option<BorrowedFd<'_>>,
    scaffold: &Scaffold,
) -> Result<(), PackError> {
    let mut broken = None;
    let walked = walk(upper, base, &mut |node| {
        let mut add = || -> Result<Descend, PackError> {
            if is_whiteout(node.stat) {
                let (parent, name) = match node.path.iter().rposition(|byte| *byte == b'/') {
                    Some(slash) => node.path.split_at(slash + 1),
                    None => (&b""[..], node.path),
                };
                packer.add_marker(&[parent, b".wh.", name].concat())?;
                return Ok(Descend::No);
            }
            if scaffold.is(node)? {
                return Ok(Descend::No);
            }
            let directory = |mode| FileType::from_raw_mode(mode).is_dir();
            let base = node.base_stat()?.filter(|base| directory(base.st_mode));
            let base = base.filter(|_| directory(node.stat.st_mode));
            if let Some(base) = &base
                && scaffold.is_all(node, base)?
            {
                return Ok(Descend::No);
            }
            packer.add(node.dir, node.name, node.stat, node.path)?;
            if base.is_some() && is_opaque(node.dir, node.name) {
                packer.add_marker(&[node.path, b"/.wh..wh..opq"].concat())?;
            }
            Ok(Descend::Yes)
        };
        add().map_err(|error| match error {
            PackError::Files(error) => error,
            output => {
                broken = Some(output);
                FilesError::new(FilesErrorKind::Other, "the reader has gone")
            }
        })
    });
    match broken {
        Some(error) => Err(error),
        None => Ok(walked?),
    }
}
