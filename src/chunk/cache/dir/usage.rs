//! How much the contents take and when they were last used: what the evictor goes by.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, UNIX_EPOCH};

use super::{CacheDir, now};
use crate::chunk::cache::layout::index_path;
use crate::chunk::cache::{ContentKey, evict, lock};

/// What stands in for a disk that has failed may take so much of the memory, bytes.
const MEMORY: u64 = 256 << 20;
/// How coarsely the disk knows when a content was last used (its index's mtime).
const STAMP_EVERY: Duration = Duration::from_secs(600);

impl CacheDir {
    /// Tries to free `bytes` on the disk at once. `false`: nothing could be freed.
    pub fn make_room(&self, bytes: u64) -> bool {
        evict::pass(self, bytes) > 0
    }

    /// Tries to free so much of the memory that stands in for the disk. `false`: there is no room for `bytes` more.
    pub(crate) fn make_memory(&self, bytes: u64) -> bool {
        self.has_memory(bytes) || {
            evict::free_memory(self, bytes.max(MEMORY / 16));
            self.has_memory(bytes)
        }
    }

    /// Whether `bytes` more may be held in memory.
    pub(crate) fn has_memory(&self, bytes: u64) -> bool {
        self.in_memory.load(Relaxed) + bytes <= MEMORY.min(self.limits.max_bytes)
    }

    pub(in super::super) fn account(&self, key: ContentKey, bytes: u64) {
        if let Some(entry) = lock(&self.table).get_mut(&key) {
            // One step: the evictor must not see both figures at once.
            self.used.fetch_add(bytes.wrapping_sub(entry.bytes), Relaxed);
            entry.bytes = bytes;
        }
        if self.used.load(Relaxed) > self.limits.max_bytes {
            self.signal.wake();
        }
    }

    /// The same for a content in memory that took `before` bytes of it. What is in memory does not count as used.
    pub(in super::super) fn account_memory(&self, before: u64, bytes: u64) {
        self.in_memory.fetch_add(bytes.wrapping_sub(before), Relaxed);
    }

    pub(in super::super) fn released(&self, key: ContentKey) {
        if let Some(entry) = lock(&self.table).get_mut(&key) {
            entry.last_used = now();
        }
    }

    /// Writes to the disk when contents were last used, where it is more than `slack` behind.
    pub(in super::super) fn stamp(&self, slack: Duration) {
        let slack = slack.as_millis() as u64;
        let late: Vec<(ContentKey, u64)> = {
            let mut table = lock(&self.table);
            let late = table.iter_mut().filter(|(_, e)| e.last_used > e.stamped + slack);
            late.map(|(key, e)| {
                e.stamped = e.last_used;
                (*key, e.last_used)
            })
            .collect()
        };
        for (key, when) in late {
            let path = index_path(&self.root.join(key.path()));
            if let Ok(file) = self.disk.open(&path) {
                // Only the order of eviction rests on it.
                let _ = file.file().set_modified(UNIX_EPOCH + Duration::from_millis(when));
            }
        }
    }

    /// Periodic work besides eviction.
    pub(in super::super) fn tick(&self) {
        self.stamp(STAMP_EVERY);
    }

    pub(in super::super) fn count_verified(&self, good: bool) {
        let c = &self.counters;
        if good { &c.verified } else { &c.dropped }.fetch_add(1, Relaxed);
    }
}
