//! What the guest knows of the share: a node for every file that it has looked up and not
//! forgotten.
//!
//! A node is found again by a descriptor (`O_PATH`), not by a path, so that renames on
//! either side do not matter. Descriptors are scarce, therefore those that were not used for
//! long are closed, and opened again from where the file was last seen; if it is not there
//! any more the guest is told that its knowledge is stale, and looks again.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;

use crate::abi::ROOT_ID;

/// Most nodes; about 200 bytes each.
const MAX_NODES: usize = 1 << 20;
/// Deepest directory that is opened again from the root.
const MAX_DEPTH: usize = 4096;

/// What makes a file the same file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    device: (u32, u32),
    inode: u64,
    /// The same file by way of another mount may be read-only there.
    mount: u64,
}

impl Key {
    fn of(stat: &Statx) -> Self {
        Self {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            mount: stat.stx_mnt_id,
        }
    }
}

/// Where a file was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    parent: u64,
    name: Box<[u8]>,
}

#[derive(Debug)]
struct Node {
    key: Key,
    /// When the file was made, where the filesystem knows it: inode numbers are used again.
    born: (i64, u32),
    /// How often the guest was told of it and has not forgotten it.
    lookups: u64,
    /// `None` when its last known name is gone.
    place: Option<Place>,
    descriptor: Option<Arc<OwnedFd>>,
    /// Used since it was last considered for closing.
    used: bool,
}

#[derive(Debug)]
struct Table {
    nodes: HashMap<u64, Node>,
    by_key: HashMap<Key, u64>,
    /// Nodes with a descriptor, the next to be closed first; some have been forgotten.
    open: VecDeque<u64>,
    /// How many nodes have a descriptor.
    descriptors: usize,
    next: u64,
    /// The filesystems seen, for numbers that are unique in the share.
    devices: Vec<(u32, u32)>,
}

/// See the module.
#[derive(Debug)]
pub struct Nodes {
    table: Mutex<Table>,
    max_descriptors: usize,
}

/// A file with what is known of it.
#[derive(Debug)]
pub struct Found {
    /// Its node.
    pub node: u64,
    /// Its attributes.
    pub stat: Statx,
    /// The number that the guest sees.
    pub inode: u64,
    /// Whether it is mounted where it was found.
    pub mounted: bool,
}

impl Nodes {
    /// With the share's root. At most `max_descriptors` are kept open.
    ///
    /// # Errors
    /// That the root cannot be looked at.
    pub fn new(root: OwnedFd, max_descriptors: usize) -> Result<Self, Errno> {
        let stat = stat(&root)?;
        let key = Key::of(&stat);
        let node = Node {
            key,
            born: born(&stat),
            lookups: 1,
            place: None,
            descriptor: Some(Arc::new(root)),
            used: true,
        };
        let table = Table {
            nodes: HashMap::from([(ROOT_ID, node)]),
            by_key: HashMap::from([(key, ROOT_ID)]),
            open: VecDeque::new(),
            descriptors: 0,
            next: ROOT_ID + 1,
            devices: vec![key.device],
        };
        Ok(Self {
            table: Mutex::new(table),
            max_descriptors: max_descriptors.max(8),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // The table is consistent between any two of its statements.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The descriptor of a node, good for the `*at` calls.
    ///
    /// # Errors
    /// `ESTALE` when the guest makes the node up, or the file has gone from where it was.
    pub fn descriptor(&self, node: u64) -> Result<Arc<OwnedFd>, Errno> {
        let (mut at, way) = self.table().way_to(node)?;
        for (node, place_name) in way.into_iter().rev() {
            let opened = open_entry(&*at, &place_name)?;
            let found = stat(&opened)?;
            at = self.restore(node, Arc::new(opened), &found)?;
        }
        Ok(at)
    }

    /// Gives a node its descriptor back.
    fn restore(
        &self,
        id: u64,
        descriptor: Arc<OwnedFd>,
        stat: &Statx,
    ) -> Result<Arc<OwnedFd>, Errno> {
        let mut table = self.table();
        let node = table.nodes.get_mut(&id).ok_or(Errno::STALE)?;
        if node.key != Key::of(stat) || node.born != born(stat) {
            return Err(Errno::STALE);
        }
        if let Some(other) = &node.descriptor {
            return Ok(Arc::clone(other));
        }
        node.descriptor = Some(Arc::clone(&descriptor));
        node.used = true;
        table.opened(id, self.max_descriptors);
        Ok(descriptor)
    }

    /// Looks an entry of a directory up, and counts it as known to the guest.
    ///
    /// # Errors
    /// `ENOENT`; `ENFILE` when the guest knows too much.
    pub fn look_up(&self, parent: u64, name: &[u8]) -> Result<Found, Errno> {
        let directory = self.descriptor(parent)?;
        let opened = open_entry(&*directory, name)?;
        let place = Place {
            parent,
            name: name.into(),
        };
        self.adopt(opened, Some(place))
    }

    /// Counts a file as known to the guest that was just made at a place.
    ///
    /// # Errors
    /// As [`Nodes::look_up`].
    pub fn adopt_at(&self, opened: OwnedFd, parent: u64, name: &[u8]) -> Result<Found, Errno> {
        let place = Place {
            parent,
            name: name.into(),
        };
        self.adopt(opened, Some(place))
    }

    fn adopt(&self, opened: OwnedFd, place: Option<Place>) -> Result<Found, Errno> {
        let stat = stat(&opened)?;
        let key = Key::of(&stat);
        let mut table = self.table();
        let inode = table.visible_inode(&key);
        let above = place.as_ref().and_then(|at| table.nodes.get(&at.parent));
        let mounted = above.is_some_and(|above| above.key.mount != key.mount);
        if let Some(id) = table.by_key.get(&key).copied()
            && let Some(node) = table.nodes.get_mut(&id)
        {
            if node.born == born(&stat) {
                node.lookups = node.lookups.saturating_add(1);
                node.used = true;
                if id != ROOT_ID {
                    node.place = place.or_else(|| node.place.take());
                }
                if node.descriptor.is_none() {
                    node.descriptor = Some(Arc::new(opened));
                    table.opened(id, self.max_descriptors);
                }
                return Ok(Found {
                    node: id,
                    stat,
                    inode,
                    mounted,
                });
            }
            // Another file has the number now; the node of the old one leads nowhere.
            table.by_key.remove(&key);
        }
        if table.nodes.len() >= MAX_NODES {
            return Err(Errno::NFILE);
        }
        let id = table.next;
        table.next += 1;
        table.by_key.insert(key, id);
        table.nodes.insert(
            id,
            Node {
                key,
                born: born(&stat),
                lookups: 1,
                place,
                descriptor: Some(Arc::new(opened)),
                used: true,
            },
        );
        table.opened(id, self.max_descriptors);
        Ok(Found {
            node: id,
            stat,
            inode,
            mounted,
        })
    }

    /// The attributes of a node.
    ///
    /// # Errors
    /// As [`Nodes::descriptor`].
    pub fn attributes(&self, node: u64) -> Result<Found, Errno> {
        let descriptor = self.descriptor(node)?;
        self.describe(node, &*descriptor)
    }

    /// The attributes of a node by way of a descriptor of its file.
    ///
    /// # Errors
    /// What the system says.
    pub fn describe(&self, node: u64, descriptor: impl AsFd) -> Result<Found, Errno> {
        let stat = stat(descriptor)?;
        let inode = self.table().visible_inode(&Key::of(&stat));
        Ok(Found {
            node,
            stat,
            inode,
            mounted: false,
        })
    }

    /// The number that the guest sees for an entry of a directory on the filesystem of
    /// `stat`.
    pub fn visible_inode(&self, directory: &Statx, inode: u64) -> u64 {
        let mut key = Key::of(directory);
        key.inode = inode;
        self.table().visible_inode(&key)
    }

    /// Whether these are the attributes of the share's root.
    pub fn is_root(&self, stat: &Statx) -> bool {
        let key = Key::of(stat);
        self.table().by_key.get(&key) == Some(&ROOT_ID)
    }

    /// The guest has forgotten that many lookups of a node. Too many are no harm. Says
    /// whether these were the last.
    pub fn forget(&self, id: u64, lookups: u64) -> bool {
        if id == ROOT_ID {
            return false;
        }
        let mut table = self.table();
        let Some(node) = table.nodes.get_mut(&id) else {
            return false;
        };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups > 0 {
            return false;
        }
        let Some(node) = table.nodes.remove(&id) else {
            return false;
        };
        if node.descriptor.is_some() {
            table.descriptors -= 1;
        }
        if table.by_key.get(&node.key) == Some(&id) {
            table.by_key.remove(&node.key);
        }
        table.tidy();
        true
    }

    /// Where a node was last seen: its directory, and its name there.
    pub fn place(&self, id: u64) -> Option<(u64, Vec<u8>)> {
        let table = self.table();
        let place = table.nodes.get(&id)?.place.as_ref()?;
        Some((place.parent, place.name.to_vec()))
    }

    /// What an entry of a directory is now, if it is there.
    pub fn entry(&self, directory: &OwnedFd, name: &[u8]) -> Option<(Statx, u64)> {
        let stat = stat_entry(directory, name).ok()?;
        let inode = self.table().visible_inode(&Key::of(&stat));
        Some((stat, inode))
    }

    /// Before an entry's name goes or changes: makes sure that its node, if the guest knows
    /// one, is not lost with the name. The result is for [`Nodes::moved`] and
    /// [`Nodes::removed`].
    pub fn hold(&self, directory: &OwnedFd, name: &[u8]) -> Option<u64> {
        let stat = stat_entry(directory, name).ok()?;
        let id = {
            let table = self.table();
            let id = *table.by_key.get(&Key::of(&stat))?;
            let node = table.nodes.get(&id)?;
            if node.descriptor.is_some() {
                return Some(id);
            }
            id
        };
        let opened = open_entry(directory, name).ok()?;
        let found = self::stat(&opened).ok()?;
        self.restore(id, Arc::new(opened), &found).ok()?;
        Some(id)
    }

    /// A held node's file has another name now.
    pub fn moved(&self, held: Option<u64>, parent: u64, name: &[u8]) {
        let mut table = self.table();
        if let Some(node) = held.and_then(|id| table.nodes.get_mut(&id)) {
            node.place = Some(Place {
                parent,
                name: name.into(),
            });
        }
    }

    /// A held node's name is gone. The file may have others, which nobody knows.
    pub fn removed(&self, held: Option<u64>, parent: u64, name: &[u8]) {
        let mut table = self.table();
        if let Some(node) = held.and_then(|id| table.nodes.get_mut(&id))
            && node
                .place
                .as_ref()
                .is_some_and(|place| place.parent == parent && *place.name == *name)
        {
            node.place = None;
        }
    }

    /// How many nodes there are.
    pub fn count(&self) -> usize {
        self.table().nodes.len()
    }
}

impl Table {
    /// The closest ancestor with a descriptor, and what is to be opened below it to come to
    /// a node, the node itself first.
    #[expect(clippy::type_complexity, reason = "used once, right above")]
    fn way_to(&mut self, node: u64) -> Result<(Arc<OwnedFd>, Vec<(u64, Box<[u8]>)>), Errno> {
        let mut way = Vec::new();
        let mut at = node;
        loop {
            let node = self.nodes.get_mut(&at).ok_or(Errno::STALE)?;
            if let Some(descriptor) = &node.descriptor {
                node.used = true;
                return Ok((Arc::clone(descriptor), way));
            }
            let place = node.place.as_ref().ok_or(Errno::STALE)?;
            // Renames under way can make a ring of places for a moment.
            if way.len() >= MAX_DEPTH {
                return Err(Errno::STALE);
            }
            way.push((at, place.name.clone()));
            at = place.parent;
        }
    }

    /// A node has got a descriptor; others lose theirs if there are too many.
    fn opened(&mut self, id: u64, max: usize) {
        self.descriptors += 1;
        self.open.push_back(id);
        // Each is looked at twice at most: those without a name are never closed.
        let mut patience = 2 * self.open.len();
        while self.descriptors > max && patience > 0 {
            patience -= 1;
            let Some(candidate) = self.open.pop_front() else {
                return;
            };
            let Some(node) = self.nodes.get_mut(&candidate) else {
                continue;
            };
            if candidate == id || node.used || node.place.is_none() {
                node.used = false;
                self.open.push_back(candidate);
            } else if node.descriptor.take().is_some() {
                self.descriptors -= 1;
            }
        }
    }

    /// Drops forgotten nodes from the order of closing when they are most of it.
    fn tidy(&mut self) {
        if self.open.len() > 2 * self.descriptors + 64 {
            let nodes = &self.nodes;
            self.open
                .retain(|id| nodes.get(id).is_some_and(|node| node.descriptor.is_some()));
        }
    }

    /// A number that no other file of the share has, whatever is mounted in it.
    fn visible_inode(&mut self, key: &Key) -> u64 {
        let known = self.devices.iter().position(|device| *device == key.device);
        let index = known.unwrap_or_else(|| {
            // So many filesystems in one share may look alike.
            if self.devices.len() < 1 << 12 {
                self.devices.push(key.device);
            }
            self.devices.len() - 1
        });
        let index = u64::try_from(index).unwrap_or(0);
        key.inode ^ (index << 48)
    }
}

fn born(stat: &Statx) -> (i64, u32) {
    if stat.stx_mask & StatxFlags::BTIME.bits() == 0 {
        return (0, 0);
    }
    (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec)
}

const WANTED: StatxFlags = StatxFlags::BASIC_STATS
    .union(StatxFlags::BTIME)
    .union(StatxFlags::MNT_ID);

/// What a descriptor is of.
///
/// # Errors
/// What the system says.
pub fn stat(descriptor: impl AsFd) -> Result<Statx, Errno> {
    rustix::fs::statx(descriptor, c"", AtFlags::EMPTY_PATH, WANTED)
}

fn stat_entry(directory: &OwnedFd, name: &[u8]) -> Result<Statx, Errno> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(directory, name, flags, WANTED)
}

/// Opens an entry as itself, be it a symbolic link or a device: nothing is followed, and
/// nothing that opening could set off happens.
fn open_entry(directory: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::empty())
}

/// What kind of file it is.
pub fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(files: usize) -> (tempfile::TempDir, Nodes) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("d")).unwrap();
        for file in 0..files {
            let name = format!("d/{file}");
            std::fs::write(directory.path().join(name), file.to_string()).unwrap();
        }
        let root = rustix::fs::open(
            directory.path(),
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
        (directory, Nodes::new(root, 8).unwrap())
    }

    #[test]
    fn descriptors_are_closed_and_come_back() {
        let (directory, nodes) = share(100);
        let parent = nodes.look_up(ROOT_ID, b"d").unwrap().node;
        let found: Vec<_> = (0..100)
            .map(|file| nodes.look_up(parent, file.to_string().as_bytes()).unwrap())
            .collect();
        assert!(nodes.table().descriptors <= 9);
        for file in &found {
            let again = nodes.attributes(file.node).unwrap();
            assert_eq!(again.stat.stx_ino, file.stat.stx_ino);
        }
        assert!(nodes.table().descriptors <= 9);
        // What the host has replaced meanwhile is not what the guest meant.
        std::fs::remove_file(directory.path().join("d/0")).unwrap();
        std::fs::write(directory.path().join("d/0"), "other").unwrap();
        assert_eq!(nodes.attributes(found[0].node).unwrap_err(), Errno::STALE);
        let other = nodes.look_up(parent, b"0").unwrap();
        assert_ne!(other.node, found[0].node);
        for file in &found {
            nodes.forget(file.node, 1);
        }
        nodes.forget(other.node, 1);
        nodes.forget(parent, u64::MAX);
        assert_eq!(nodes.count(), 1);
        assert_eq!(nodes.table().descriptors, 0);
        assert!(nodes.table().open.len() <= 64);
    }

    #[test]
    fn a_name_that_goes_does_not_take_its_node() {
        let (directory, nodes) = share(20);
        let root = nodes.descriptor(ROOT_ID).unwrap();
        let parent = nodes.look_up(ROOT_ID, b"d").unwrap().node;
        let file = nodes.look_up(parent, b"3").unwrap();
        let d = nodes.descriptor(parent).unwrap();
        let held = nodes.hold(&d, b"3");
        assert_eq!(held, Some(file.node));
        std::fs::remove_file(directory.path().join("d/3")).unwrap();
        nodes.removed(held, parent, b"3");
        for other in 4..20 {
            nodes.look_up(parent, other.to_string().as_bytes()).unwrap();
        }
        assert_eq!(nodes.attributes(file.node).unwrap().stat.stx_nlink, 0);
        // And one that moves is found where it went.
        let moving = nodes.look_up(parent, b"1").unwrap();
        let held = nodes.hold(&d, b"1");
        std::fs::rename(directory.path().join("d/1"), directory.path().join("one")).unwrap();
        nodes.moved(held, ROOT_ID, b"one");
        for other in 4..20 {
            nodes.look_up(parent, other.to_string().as_bytes()).unwrap();
        }
        assert_eq!(
            nodes.attributes(moving.node).unwrap().stat.stx_ino,
            moving.stat.stx_ino
        );
        drop(root);
    }

    #[test]
    fn nodes_that_are_made_up_are_stale() {
        let (_directory, nodes) = share(1);
        for node in [0, 2, 77, u64::MAX] {
            assert_eq!(nodes.attributes(node).unwrap_err(), Errno::STALE);
            nodes.forget(node, 1);
        }
        nodes.forget(ROOT_ID, u64::MAX);
        nodes.attributes(ROOT_ID).unwrap();
    }
}
