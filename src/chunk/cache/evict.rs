//! Keeps the cache within its limits: a thread of its own that wakes above 100 % and works down to 95 %.
//!
//! Whole contents that nobody uses go first, in the order of the policy. If that is not enough, contents in use give
//! back chunks that were not read for long.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::fs::statvfs;

use super::dir::CacheDir;
use super::file::CacheFile;
use super::{ContentKey, Policy, lock};

/// How often the disk's free space is looked at, though nobody asks.
const PERIOD: Duration = Duration::from_secs(10);
/// The least that asking for room frees: a disk that is full for one write is full for the next.
const MIN_ROOM: u64 = 64 << 20;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Call {
    #[default]
    Sleep,
    Work,
    Stop,
}

/// Wakes and stops the evictor.
#[derive(Debug, Default)]
pub(super) struct Signal {
    call: Mutex<Call>,
    changed: Condvar,
}

impl Signal {
    pub(super) fn wake(&self) {
        let mut call = lock(&self.call);
        if *call == Call::Sleep {
            *call = Call::Work;
            self.changed.notify_all();
        }
    }

    pub(super) fn stop(&self) {
        *lock(&self.call) = Call::Stop;
        self.changed.notify_all();
    }

    pub(super) fn stopped(&self) -> bool {
        *lock(&self.call) == Call::Stop
    }

    /// Waits for a call or the end of the period; `false` when it is time to end.
    fn wait(&self) -> bool {
        let call = lock(&self.call);
        let (mut call, _) = self
            .changed
            .wait_timeout_while(call, PERIOD, |c| *c == Call::Sleep)
            .unwrap_or_else(PoisonError::into_inner);
        let go_on = *call != Call::Stop;
        if go_on {
            *call = Call::Sleep;
        }
        go_on
    }
}

/// Starts the thread. It ends when the directory is closed or dropped.
pub(super) fn start(dir: &Arc<CacheDir>) -> std::io::Result<JoinHandle<()>> {
    let signal = dir.signal.clone();
    let dir = Arc::downgrade(dir);
    thread::Builder::new().name("cache-evict".into()).spawn(move || {
        if let Some(dir) = dir.upgrade() {
            dir.load();
            pass(&dir, 0);
        }
        while signal.wait() {
            let Some(dir) = dir.upgrade() else { return };
            pass(&dir, 0);
            dir.tick();
        }
    })
}

/// Bytes that must go for the cache to be within its limits again, `room` more being wanted on the disk.
fn excess(dir: &CacheDir, room: u64) -> u64 {
    let limits = &dir.limits;
    if dir.aside().is_some() {
        return room;
    }
    let used = dir.used.load(Relaxed);
    let over = if used > limits.max_bytes { used - limits.max_bytes / 100 * 95 } else { 0 };
    let short = match statvfs(dir.path()) {
        Ok(disk) => {
            let keep = (disk.f_blocks as f64 * limits.free_ratio) as u64 * disk.f_frsize;
            let free = disk.f_bavail * disk.f_frsize;
            // A little beyond the line, so that it is not crossed again at once.
            if free < keep { keep - free + keep / 20 } else { 0 }
        }
        Err(_) => 0,
    };
    over.max(short).max(room)
}

/// One pass; returns the bytes freed.
pub(super) fn pass(dir: &CacheDir, room: u64) -> u64 {
    let _one = lock(&dir.passing);
    let goal = excess(dir, if room > 0 { room.max(MIN_ROOM) } else { 0 });
    let too_many = lock(&dir.table).len().saturating_sub(dir.limits.max_contents);
    if goal == 0 && too_many == 0 {
        return 0;
    }
    // Of a disk that has failed nothing is wanted; what is in memory belongs to contents in use.
    let mut freed = if dir.aside().is_none() { unlink_idle(dir, goal, too_many) } else { 0 };
    if freed < goal {
        freed += punch_used(dir, goal - freed);
    }
    if freed < goal && room == 0 {
        tracing::debug!(goal, freed, "all else in the cache is in use");
    }
    freed
}

fn unlink_idle(dir: &CacheDir, goal: u64, too_many: usize) -> u64 {
    let mut idle: Vec<(u64, ContentKey)> = lock(&dir.table)
        .iter()
        .filter(|(key, e)| e.open.strong_count() == 0 && !dir.journal().protects(key))
        .map(|(key, e)| {
            let rank = match dir.limits.policy {
                Policy::Lru => e.last_used,
                Policy::Fifo => e.born,
                Policy::LargeFirst => u64::MAX - e.bytes,
            };
            (rank, *key)
        })
        .collect();
    idle.sort_unstable_by_key(|(rank, _)| *rank);
    let (mut freed, mut count) = (0, 0);
    for (_, key) in idle {
        if freed >= goal && count >= too_many {
            break;
        }
        dir.leaving(&key, None);
        match dir.evict(&key) {
            Ok(Some(bytes)) => {
                freed += bytes;
                count += 1;
                tracing::debug!(content = %key, bytes, "evicted");
            }
            Ok(None) => {}
            Err(e) => tracing::warn!(error = %e, "cannot evict"),
        }
    }
    dir.counters.evicted.fetch_add(count as u64, Relaxed);
    dir.counters.evicted_bytes.fetch_add(freed, Relaxed);
    freed
}

/// Frees memory that stands in for the disk; returns the bytes.
pub(super) fn free_memory(dir: &CacheDir, goal: u64) -> u64 {
    let _one = lock(&dir.passing);
    punch(dir, goal, |file| file.is_in_memory())
}

fn punch_used(dir: &CacheDir, goal: u64) -> u64 {
    punch(dir, goal, |file| dir.aside().is_none() || file.is_in_memory())
}

fn punch(dir: &CacheDir, goal: u64, wanted: impl Fn(&CacheFile) -> bool) -> u64 {
    let mut open: Vec<_> = {
        let table = lock(&dir.table);
        table.values().filter_map(|e| e.open.upgrade().map(|f| (e.bytes, f))).collect()
    };
    open.retain(|(_, file)| !dir.journal().protects_all_of(&file.key()) && wanted(file));
    open.sort_unstable_by_key(|(bytes, _)| u64::MAX - bytes);
    let mut freed = 0;
    for (_, file) in open {
        if freed >= goal {
            break;
        }
        match file.punch_some(goal - freed) {
            Ok(bytes) => freed += bytes,
            Err(e) => tracing::warn!(error = %e, "cannot give back space"),
        }
    }
    dir.counters.punched_bytes.fetch_add(freed, Relaxed);
    freed
}
