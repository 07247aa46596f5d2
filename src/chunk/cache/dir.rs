//! The cache directory: who may use it, from its opening to its end.
//!
//! | file | what |
//! |---|---|
//! | `held` | what it holds, for those who tell others |
//! | `contents` | opening, finding and unlinking contents |
//! | `usage` | how much they take, when they were last used |
//! | `load` | what an earlier run left |
//! | `turn` | the bytes of a file become those of a blob |

mod contents;
mod held;
mod load;
mod turn;
mod usage;

use std::collections::HashMap;
use std::fmt::Debug;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::disk::Disk;
use super::epoch::Epochs;
use super::evict::{self, Signal};
use super::file::CacheFile;
use super::journal::Journal;
use super::layout::{claim, claim_this, siblings};
use super::{CacheLimits, ContentKey, lock, write};
use crate::error::{Result, ResultExt};

use self::contents::GATES;
pub use self::turn::Seen;

/// One content as the evictor sees it.
#[derive(Debug)]
pub(super) struct Entry {
    pub bytes: u64,
    /// Milliseconds since 1970.
    pub last_used: u64,
    /// When it came, milliseconds since 1970.
    pub born: u64,
    /// What the disk knows of `last_used`.
    pub stamped: u64,
    /// Alive while somebody uses it.
    pub open: Weak<CacheFile>,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub evicted: AtomicU64,
    pub evicted_bytes: AtomicU64,
    pub punched_bytes: AtomicU64,
    pub verified: AtomicU64,
    pub dropped: AtomicU64,
}

/// Figures about a cache directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Bytes on the disk.
    pub bytes: u64,
    pub contents: u64,
    pub max_bytes: u64,
    /// Contents unlinked to make room since the start.
    pub evicted: u64,
    pub evicted_bytes: u64,
    /// Bytes given back out of contents in use.
    pub punched_bytes: u64,
    /// Chunks of crashed runs that were found good, and bad.
    pub verified: u64,
    pub dropped: u64,
    /// Bytes held in memory because the disk has failed.
    pub in_memory: u64,
}

/// A cache directory, locked for this process. Its methods block on the disk.
#[derive(Debug)]
pub struct CacheDir {
    root: PathBuf,
    disk: Disk,
    journal: Journal,
    /// Its flock keeps other daemons out while this value lives.
    held: File,
    pub(super) limits: CacheLimits,
    epochs: Epochs,
    pub(super) table: Mutex<HashMap<ContentKey, Entry>>,
    /// Held while a content's files are made, opened or unlinked.
    gates: [Mutex<()>; GATES],
    pub(super) used: AtomicU64,
    /// Bytes of contents in memory, whose disk has failed.
    pub(super) in_memory: AtomicU64,
    pub(super) counters: Counters,
    pub(super) signal: Arc<Signal>,
    /// One pass of the evictor at a time.
    pub(super) passing: Mutex<()>,
    loaded: AtomicBool,
    /// Whether the run has ended: a record after that would be believed without having been synced.
    pub(super) ended: RwLock<bool>,
    evictor: Mutex<Option<JoinHandle<()>>>,
    /// Hears of what leaves, before it does.
    departures: OnceLock<Arc<dyn Departures>>,
}

/// Who wants to know what leaves the cache.
pub trait Departures: Debug + Send + Sync + 'static {
    /// These chunks of a content, or all of it, are about to go. Called on a thread that may block, though not for long; what
    /// is served from them is read again under their record.
    fn leaving(&self, key: &ContentKey, chunks: Option<Range<u64>>);
}

impl CacheDir {
    /// Opens (or makes) the cache directory of `volume`. If another daemon holds it, its sibling `<path>-1`, `<path>-2` …
    /// is taken; [`CacheDir::path`] says which. [`Kind::Config`] when it belongs to another volume or no sibling is free.
    pub fn open(path: &Path, volume: &str, limits: CacheLimits) -> Result<Arc<Self>> {
        Self::open_on(Disk::default(), path, volume, limits)
    }

    /// The same on a disk of the caller's.
    pub(crate) fn open_on(disk: Disk, path: &Path, volume: &str, limits: CacheLimits) -> Result<Arc<Self>> {
        let (root, held) = claim(path)?;
        if root != path {
            tracing::info!(wanted = %path.display(), taken = %root.display(), "the cache directory is in use");
        }
        Self::open_claimed(disk, root, held, volume, limits)
    }

    /// Opens just this directory; `None` if a daemon uses it.
    pub fn open_this(root: &Path, volume: &str, limits: CacheLimits) -> Result<Option<Arc<Self>>> {
        let Some(held) = claim_this(root)? else { return Ok(None) };
        Self::open_claimed(Disk::default(), root.to_owned(), held, volume, limits).map(Some)
    }

    /// The directory and its siblings, as far as they are there.
    #[must_use]
    pub fn siblings(path: &Path) -> Vec<PathBuf> {
        siblings(path)
    }

    fn open_claimed(
        disk: Disk,
        root: PathBuf,
        held: File,
        volume: &str,
        limits: CacheLimits,
    ) -> Result<Arc<Self>> {
        let epochs = Epochs::begin(&disk, &root, volume)?;
        // Before the evictor looks at anything.
        let journal = Journal::open(&root, &disk)?;
        let dir = Arc::new(CacheDir {
            root,
            disk,
            journal,
            held,
            limits,
            epochs,
            table: Mutex::default(),
            gates: [const { Mutex::new(()) }; GATES],
            used: AtomicU64::new(0),
            in_memory: AtomicU64::new(0),
            counters: Counters::default(),
            signal: Arc::default(),
            passing: Mutex::new(()),
            loaded: AtomicBool::new(false),
            ended: RwLock::new(false),
            evictor: Mutex::default(),
            departures: OnceLock::new(),
        });
        let thread = evict::start(&dir).context(|| "the evictor's thread")?;
        *lock(&dir.evictor) = Some(thread);
        Ok(dir)
    }

    /// From now on somebody hears of what leaves. Once in a directory's life.
    pub fn hear_of_departures(&self, departures: Arc<dyn Departures>) {
        let _ = self.departures.set(departures);
    }

    pub(super) fn leaving(&self, key: &ContentKey, chunks: Option<Range<u64>>) {
        if let Some(departures) = self.departures.get() {
            departures.leaving(key, chunks);
        }
    }

    /// The directory that was taken.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// What it holds that is nowhere else.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Why its disk is not used any more: it has failed, and memory stands in for it. `None` while it is used.
    #[must_use]
    pub fn aside(&self) -> Option<&str> {
        self.disk.aside()
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.disk
    }

    pub(super) fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    /// What it may take.
    #[must_use]
    pub fn limits(&self) -> &CacheLimits {
        &self.limits
    }

    /// Figures of this moment.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let c = &self.counters;
        CacheStats {
            bytes: self.used.load(Relaxed),
            contents: lock(&self.table).len() as u64,
            max_bytes: self.limits.max_bytes,
            evicted: c.evicted.load(Relaxed),
            evicted_bytes: c.evicted_bytes.load(Relaxed),
            punched_bytes: c.punched_bytes.load(Relaxed),
            verified: c.verified.load(Relaxed),
            dropped: c.dropped.load(Relaxed),
            in_memory: self.in_memory.load(Relaxed),
        }
    }

    /// Waits until what was in the directory before is known (tests, status).
    pub fn wait_loaded(&self, timeout: Duration) -> bool {
        let deadline = std::time::Instant::now() + timeout;
        while !self.loaded.load(Relaxed) && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.loaded.load(Relaxed)
    }

    /// Ends the run: everything goes to the disk and the directory says that it stopped cleanly, if the disk has it so.
    /// Nothing can be recorded afterwards ([`Kind::Unavailable`]).
    pub fn close(&self) -> Result<()> {
        self.signal.stop();
        if let Some(thread) = lock(&self.evictor).take()
            && thread.join().is_err()
        {
            tracing::error!("the evictor's thread panicked");
        }
        if self.aside().is_none() {
            self.stamp(Duration::from_secs(60));
        }
        *write(&self.ended) = true;
        if self.aside().is_some() {
            return Ok(());
        }
        let name = || self.root.display().to_string();
        let synced = self.disk.sync_all(&self.held, &self.root).context(name);
        // Nothing is lost by not saying that it stopped cleanly: the next run checks what it finds before it uses it.
        if let Err(e) = synced.and_then(|()| self.epochs.end_clean(&self.disk, &self.root)) {
            tracing::warn!("the next mount will check the cache before it uses it: {e}");
        }
        Ok(())
    }
}

impl Drop for CacheDir {
    fn drop(&mut self) {
        self.signal.stop();
    }
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

fn now() -> u64 {
    millis(SystemTime::now())
}
