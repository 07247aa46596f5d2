//! Times of last access, as Linux's `relatime` has them: a read moves the time only if it is not younger than the last
//! change, or older than a day. With the policy off (the default) all of this is one test of a flag.
//!
//! A read never waits for it: reads are noted here and go to the metadata together, every few seconds and at the end. What
//! is noted shows at once on this mount. The notes are bounded; a read that finds no room for one is a read all the same.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lru::LruCache;

use super::Vfs;
use super::handles::{Data, Handle};
use crate::meta::{Access, Attr};
use crate::types::{Ino, Timestamp};

/// How often notes go to the metadata.
pub(super) const EVERY: Duration = Duration::from_secs(5);
const DAY: i64 = 24 * 3600 * 1_000_000_000;
/// How many inodes are noted and not recorded at most.
const NOTES: usize = 64 * 1024;
const SEEN: NonZeroUsize = NonZeroUsize::new(64 * 1024).expect("not zero");

/// Whether a read at `now` moves the time of last access.
fn is_due((atime, mtime, ctime): (Timestamp, Timestamp, Timestamp), now: Timestamp) -> bool {
    atime <= mtime || atime <= ctime || now.0.saturating_sub(atime.0) >= DAY
}

/// What this mount knows of reads.
#[derive(Debug)]
pub(super) struct Atimes {
    on: bool,
    /// To be recorded.
    notes: Mutex<HashMap<Ino, Access>>,
    /// Noted or recorded here, and not changed by others since: younger than what was read of the metadata before.
    latest: Mutex<LruCache<Ino, Timestamp>>,
    /// Times of blobs that were opened.
    seen: Mutex<LruCache<Ino, (Timestamp, Timestamp, Timestamp)>>,
}

impl Atimes {
    pub fn new(on: bool) -> Self {
        Atimes {
            on,
            notes: Mutex::default(),
            latest: Mutex::new(LruCache::new(SEEN)),
            seen: Mutex::new(LruCache::new(SEEN)),
        }
    }

    /// The time that an inode shows, whose metadata say `atime`.
    pub fn shown(&self, ino: Ino, atime: Timestamp) -> Timestamp {
        if !self.on {
            return atime;
        }
        lock(&self.latest).peek(&ino).map_or(atime, |latest| atime.max(*latest))
    }

    /// The time was set to what `attr` says: what was noted before does not count.
    pub fn set(&self, attr: &Attr) {
        if !self.on {
            return;
        }
        lock(&self.notes).remove(&attr.ino);
        lock(&self.latest).pop(&attr.ino);
        if let Some(seen) = lock(&self.seen).get_mut(&attr.ino) {
            *seen = times(attr);
        }
    }

    /// Another mount changed the inode: what it is now, the metadata say. What was noted stays to be recorded.
    pub fn heard(&self, ino: Ino) {
        if self.on && !lock(&self.notes).contains_key(&ino) {
            lock(&self.latest).pop(&ino);
        }
    }

    /// The inode, which has these times, was read. True if that moved its time of last access.
    fn note(&self, ino: Ino, (atime, mtime, ctime): (Timestamp, Timestamp, Timestamp)) -> bool {
        let before = self.shown(ino, atime);
        let now = Timestamp::now();
        if !is_due((before, mtime, ctime), now) || now <= before {
            return false;
        }
        let mut notes = lock(&self.notes);
        if notes.len() >= NOTES && !notes.contains_key(&ino) {
            return false;
        }
        notes.entry(ino).or_insert(Access { ino, at: now, before: atime }).at = now;
        drop(notes);
        lock(&self.latest).put(ino, now);
        true
    }

    fn take(&self) -> Vec<Access> {
        lock(&self.notes).drain().map(|(_, access)| access).collect()
    }

    /// What could not be recorded is for the next time, unless the inode was read again.
    fn put_back(&self, accesses: Vec<Access>) {
        let mut notes = lock(&self.notes);
        for access in accesses {
            if notes.len() < NOTES {
                notes.entry(access.ino).or_insert(access);
            }
        }
    }
}

impl Vfs {
    /// An inode that is no open file was read: a directory listed, a link followed.
    pub(super) fn accessed(&self, attr: &Attr) {
        if self.atimes.on && !attr.ino.is_virtual() {
            self.atimes.note(attr.ino, times(attr));
        }
    }

    /// Whether reads are noted at all.
    pub(super) fn notes_accesses(&self) -> bool {
        self.atimes.on
    }

    /// A file is being opened whose pages the kernel may have (`kept`): reads of them are seen nowhere else, so the open
    /// counts. True if that moved its time of last access.
    pub(super) fn accessed_by_open(&self, attr: &Attr, flags: i32, kept: bool) -> bool {
        if !self.atimes.on || flags & libc::O_NOATIME != 0 {
            return false;
        }
        let times = times(attr);
        lock(&self.atimes.seen).put(attr.ino, times);
        kept && flags & libc::O_ACCMODE != libc::O_WRONLY && self.atimes.note(attr.ino, times)
    }

    /// A read of an open file.
    pub(super) fn accessed_through(&self, handle: &Handle) {
        if !self.atimes.on || handle.flags & libc::O_NOATIME != 0 || handle.ino.is_virtual() {
            return;
        }
        let times = match &handle.data {
            Data::File(file) => Some(file.times()),
            _ => lock(&self.atimes.seen).get(&handle.ino).copied(),
        };
        if let Some(times) = times {
            self.atimes.note(handle.ino, times);
        }
    }

    /// Records what was noted, within `limit`. A failure is logged, and tried again the next time.
    pub async fn record_accesses(self: &Arc<Self>, limit: Duration) {
        let notes = self.atimes.take();
        if notes.is_empty() {
            return;
        }
        match tokio::time::timeout(limit, self.meta.record_accesses(&notes)).await {
            Ok(Ok(again)) => self.atimes.put_back(again),
            Ok(Err(e)) => {
                tracing::debug!("times of last access: {e}");
                self.atimes.put_back(notes);
            }
            Err(_) => self.atimes.put_back(notes),
        }
    }
}

fn times(attr: &Attr) -> (Timestamp, Timestamp, Timestamp) {
    (attr.atime, attr.mtime, attr.ctime)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(seconds: i64) -> Timestamp {
        Timestamp(seconds * 1_000_000_000)
    }

    #[test]
    fn when_a_read_counts() {
        let now = t(1_000_000);
        // (atime, mtime, ctime) -> moves
        let cases = [
            ((999_999, 999_998, 999_998), false),
            ((999_999, 999_999, 999_998), true),
            ((999_999, 999_998, 999_999), true),
            ((999_990, 999_998, 1), true),
            ((999_990, 1, 999_998), true),
            ((1_000_000 - 24 * 3600, 1, 1), true),
            ((1_000_001 - 24 * 3600, 1, 1), false),
            ((1_000_500, 1, 1), false),
        ];
        for ((atime, mtime, ctime), moves) in cases {
            assert_eq!(is_due((t(atime), t(mtime), t(ctime)), now), moves, "{atime} {mtime} {ctime}");
        }
    }

    #[test]
    fn notes_show_until_the_time_is_set() {
        let atimes = Atimes::new(true);
        let (ino, old) = (Ino(7), (t(1), t(2), t(2)));
        assert!(atimes.note(ino, old));
        let shown = atimes.shown(ino, t(1));
        assert!(shown > t(2));
        assert!(!atimes.note(ino, old), "younger than the change");
        assert_eq!(atimes.take(), [Access { ino, at: shown, before: t(1) }]);
        assert_eq!(atimes.shown(ino, t(1)), shown, "recorded or not");
        atimes.heard(ino);
        assert_eq!(atimes.shown(ino, t(1)), t(1), "the metadata say what it is now");
        let off = Atimes::new(false);
        assert_eq!(off.shown(ino, t(1)), t(1));
    }

    #[test]
    fn notes_are_bounded() {
        let atimes = Atimes::new(true);
        for n in 0..NOTES as u64 + 10 {
            atimes.note(Ino(n + 2), (t(1), t(2), t(2)));
        }
        assert_eq!(atimes.take().len(), NOTES);
    }
}
