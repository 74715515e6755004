//! The files and directories that the guest has open.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

/// An open file or directory.
#[derive(Debug)]
pub struct Handle {
    /// The file.
    pub descriptor: OwnedFd,
    /// Held while a directory is read, which moves its one position.
    pub reading: Mutex<()>,
}

#[derive(Debug, Default)]
struct Table {
    handles: HashMap<u64, Arc<Handle>>,
    next: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Handles {
    table: Mutex<Table>,
    max: usize,
}

impl Handles {
    /// At most `max` are open at a time.
    pub fn new(max: usize) -> Self {
        Self {
            table: Mutex::default(),
            max,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Whoever panicked with it held only looked up, inserted or removed something.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an open file; the number is the guest's name for it.
    ///
    /// # Errors
    /// `ENFILE` when the guest has too many open.
    pub fn insert(&self, descriptor: OwnedFd) -> Result<u64, Errno> {
        let mut table = self.table();
        if table.handles.len() >= self.max {
            return Err(Errno::NFILE);
        }
        table.next += 1;
        let number = table.next;
        let handle = Handle {
            descriptor,
            reading: Mutex::new(()),
        };
        table.handles.insert(number, Arc::new(handle));
        Ok(number)
    }

    /// An open file.
    ///
    /// # Errors
    /// `EBADF` when there is none with this number.
    pub fn get(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        self.table()
            .handles
            .get(&number)
            .cloned()
            .ok_or(Errno::BADF)
    }

    /// The guest has closed one. What is unknown is no harm.
    pub fn remove(&self, number: u64) {
        // Closing may take time; not under the lock.
        let removed = self.table().handles.remove(&number);
        drop(removed);
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.table().handles.len()
    }
}
