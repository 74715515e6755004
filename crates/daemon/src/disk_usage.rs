//! How much trees of files hold.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// How deep a tree is followed, against one made to exhaust the stack.
const MAX_DEPTH: usize = 128;

/// Bytes that the files below a directory hold, each file once whatever its names; what cannot
/// be read counts as nothing. Links are not followed: others write such trees.
pub fn apparent_size(path: &Path) -> u64 {
    let mut seen = HashSet::new();
    walk(path, &mut seen, 0)
}

fn walk(path: &Path, seen: &mut HashSet<(u64, u64)>, depth: usize) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return 0;
    };
    let mut total = 0_u64;
    for entry in entries.flatten() {
        // Of the entry itself, not of what it points to.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_dir() {
            if depth < MAX_DEPTH {
                total = total.saturating_add(walk(&entry.path(), seen, depth + 1));
            }
        } else if metadata.nlink() == 1 || seen.insert((metadata.dev(), metadata.ino())) {
            total = total.saturating_add(metadata.size());
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_count_once_and_links_are_not_followed() {
        let root = std::env::temp_dir().join(format!("bulkhead-size-{}", std::process::id()));
        std::fs::create_dir_all(root.join("a")).unwrap();
        std::fs::write(root.join("a/file"), vec![1; 5000]).unwrap();
        std::fs::hard_link(root.join("a/file"), root.join("again")).unwrap();
        std::os::unix::fs::symlink("/usr", root.join("link")).unwrap();
        assert_eq!(apparent_size(&root), 5000 + 4);
        assert_eq!(apparent_size(&root.join("missing")), 0);
        std::fs::remove_dir_all(&root).unwrap();
    }
}
