//! What this mount last saw of rows and entries. Guesses only: a transaction that builds on one expects it to
//! hold. Nothing here is ever an answer.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lru::LruCache;

use super::kv::Change;
use crate::types::Ino;

/// A few hundred bytes each.
const ENTRIES: NonZeroUsize = NonZeroUsize::new(16_384).expect("above 0");
const ROWS: NonZeroUsize = NonZeroUsize::new(16_384).expect("above 0");
/// Rows with more than this inside are not worth the memory.
const LARGEST_ROW: usize = 512;

/// `None`: the directory has no such name.
type Entries = LruCache<(Ino, Bytes), Option<Bytes>>;

pub(super) struct Hints {
    /// Never held across an await, nor both at once.
    entries: Mutex<Entries>,
    rows: Mutex<LruCache<Ino, Bytes>>,
}

impl Hints {
    pub fn new() -> Self {
        Hints { entries: Mutex::new(LruCache::new(ENTRIES)), rows: Mutex::new(LruCache::new(ROWS)) }
    }

    pub fn row(&self, ino: Ino) -> Option<Bytes> {
        self.rows().get(&ino).cloned()
    }

    pub fn entry(&self, dir: Ino, name: &[u8]) -> Option<Bytes> {
        self.entries().get(&(dir, Bytes::copy_from_slice(name))).cloned().flatten()
    }

    /// Whether the directory had no such name when it was last looked at.
    pub fn is_absent(&self, dir: Ino, name: &[u8]) -> bool {
        matches!(self.entries().get(&(dir, Bytes::copy_from_slice(name))), Some(None))
    }

    pub fn learn_row(&self, ino: Ino, value: &Bytes) {
        if value.len() > LARGEST_ROW {
            self.forget_row(ino);
        } else {
            self.rows().put(ino, value.clone());
        }
    }

    pub fn learn_entry(&self, dir: Ino, name: &[u8], value: &Bytes) {
        self.entries().put((dir, Bytes::copy_from_slice(name)), Some(value.clone()));
    }

    pub fn learn_absent(&self, dir: Ino, name: &[u8]) {
        self.entries().put((dir, Bytes::copy_from_slice(name)), None);
    }

    pub fn forget_row(&self, ino: Ino) {
        self.rows().pop(&ino);
    }

    pub fn forget_entry(&self, dir: Ino, name: &[u8]) {
        self.entries().pop(&(dir, Bytes::copy_from_slice(name)));
    }

    /// Other mounts changed something.
    pub fn heard(&self, changes: &[Change]) {
        let (mut entries, mut rows) = (None, None);
        for change in changes {
            match change {
                Change::Entry { parent, name } => {
                    // One at a time is held.
                    rows = None;
                    entries.get_or_insert_with(|| self.entries()).pop(&(*parent, name.clone()));
                }
                Change::Inode { ino } => {
                    entries = None;
                    rows.get_or_insert_with(|| self.rows()).pop(ino);
                }
                Change::Unlocked { .. } => {}
            }
        }
    }

    pub fn clear(&self) {
        self.entries().clear();
        self.rows().clear();
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rows(&self) -> MutexGuard<'_, LruCache<Ino, Bytes>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
