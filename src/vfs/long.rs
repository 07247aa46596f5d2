//! What the kernel was told that it may rely on for long: names and attributes that change only if somebody goes out of his
//! way to change them (blobs, links of a commit). That is sound only while the push is known to arrive, so it is granted
//! only then, and all of it is remembered: when the push falls silent the kernel is told to forget it.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::meta::kv::Change;
use crate::types::Ino;

/// For how long.
pub(super) const LONG: Duration = Duration::from_secs(3600);
/// How many names, and how many attributes, at most; beyond that they are granted as briefly as all others. Some 100 bytes
/// each.
const MOST: usize = 32 * 1024;

/// What is granted for long. Never held across an await.
#[derive(Debug)]
pub(super) struct LongLived {
    granted: Mutex<Granted>,
    /// Counts what others changed.
    changes: AtomicU64,
    /// Rings when there is something again.
    pub some: Arc<Notify>,
}

#[derive(Debug)]
struct Granted {
    names: LruCache<(Ino, Bytes), Instant>,
    attrs: LruCache<Ino, Instant>,
}

impl Default for LongLived {
    fn default() -> Self {
        let most = NonZeroUsize::new(MOST).unwrap_or(NonZeroUsize::MIN);
        let granted = Granted { names: LruCache::new(most), attrs: LruCache::new(most) };
        LongLived { granted: Mutex::new(granted), changes: AtomicU64::new(0), some: Arc::default() }
    }
}

impl LongLived {
    /// How many changes were heard of. To be asked before reading what is to be granted: if others changed something
    /// between the reading and the granting, the kernel was told to forget what it does not have yet.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Takes note of a name that was read when there were so many `changes`. False: it must not be granted.
    pub fn name(&self, parent: Ino, name: &[u8], changes: u64) -> bool {
        self.name_at(parent, name, changes, Instant::now())
    }

    fn name_at(&self, parent: Ino, name: &[u8], changes: u64, now: Instant) -> bool {
        self.note(changes, |granted| note(&mut granted.names, (parent, Bytes::copy_from_slice(name)), now))
    }

    /// The same for an inode's attributes.
    pub fn attrs(&self, ino: Ino, changes: u64) -> bool {
        self.attrs_at(ino, changes, Instant::now())
    }

    fn attrs_at(&self, ino: Ino, changes: u64, now: Instant) -> bool {
        self.note(changes, |granted| note(&mut granted.attrs, ino, now))
    }

    fn note(&self, changes: u64, note: impl FnOnce(&mut Granted) -> bool) -> bool {
        let mut granted = self.lock();
        let first = granted.is_empty();
        // What changes from now on takes it out again.
        let done = self.changes() == changes && note(&mut granted);
        drop(granted);
        if first && done {
            self.some.notify_one();
        }
        done
    }

    /// Whether nothing is granted.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Other mounts changed something: the kernel is told to forget it.
    pub fn forget(&self, changes: &[Change]) {
        let mut granted = self.lock();
        self.changes.fetch_add(1, Ordering::SeqCst);
        if granted.is_empty() {
            return;
        }
        for change in changes {
            match change {
                Change::Entry { parent, name } => {
                    granted.names.pop(&(*parent, name.clone()));
                }
                Change::Inode { ino } => {
                    granted.attrs.pop(ino);
                }
                Change::Unlocked { .. } => {}
            }
        }
    }

    /// Everything that the kernel may still rely on, for who tells it to forget.
    pub fn take(&self) -> (Vec<(Ino, Bytes)>, Vec<Ino>) {
        self.take_at(Instant::now())
    }

    fn take_at(&self, now: Instant) -> (Vec<(Ino, Bytes)>, Vec<Ino>) {
        let mut granted = self.lock();
        self.changes.fetch_add(1, Ordering::SeqCst);
        let names = granted.names.iter().filter(|(_, until)| **until > now).map(|(k, _)| k.clone()).collect();
        let attrs = granted.attrs.iter().filter(|(_, until)| **until > now).map(|(k, _)| *k).collect();
        granted.names.clear();
        granted.attrs.clear();
        (names, attrs)
    }

    fn lock(&self) -> MutexGuard<'_, Granted> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Granted {
    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.attrs.is_empty()
    }
}

/// What is granted last runs out last: if the list is full, only its oldest entry can have run out.
fn note<K: std::hash::Hash + Eq>(list: &mut LruCache<K, Instant>, key: K, now: Instant) -> bool {
    if list.len() >= MOST && !list.contains(&key) {
        match list.peek_lru() {
            Some((_, until)) if *until > now => return false,
            _ => drop(list.pop_lru()),
        }
    }
    list.put(key, now + LONG);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_granted_is_bounded_and_taken_once() {
        let long = LongLived::default();
        assert!(long.is_empty());
        for n in 0..MOST as u64 {
            assert!(long.attrs(Ino(n), 0));
        }
        assert!(!long.attrs(Ino(MOST as u64), 0), "no room");
        assert!(long.attrs(Ino(5), 0), "what is there already is granted anew");
        assert!(long.name(Ino(1), b"a", 0) && long.name(Ino(1), b"b", 0));
        long.forget(&[Change::Entry { parent: Ino(1), name: Bytes::from_static(b"a") }]);
        assert!(!long.name(Ino(1), b"a", 0), "it may have changed since it was read");
        let later = Instant::now() + LONG + Duration::from_secs(1);
        assert!(long.attrs_at(Ino(MOST as u64), 1, later), "the oldest ran out");
        assert!(long.name_at(Ino(1), b"c", 1, later));
        let (names, attrs) = long.take_at(later);
        assert_eq!(names, [(Ino(1), Bytes::from_static(b"c"))], "what ran out needs no word");
        assert_eq!(attrs, [Ino(MOST as u64)]);
        assert!(long.is_empty());
    }
}
