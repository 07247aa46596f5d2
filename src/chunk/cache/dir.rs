//! The cache directory: who may use it, which contents it has, how much they take.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};

use super::disk::Disk;
use super::epoch::Epochs;
use super::evict::{self, Signal};
use super::file::CacheFile;
use super::index::RECORD_LEN;
use super::journal::Journal;
use super::layout::{
    Pair, claim, claim_this, index_path, list, make_index, make_pair, open_pair, pair_in_memory, siblings,
};
use super::{CacheLimits, ContentKey, lock, write};
use crate::error::{Error, Kind, Result, ResultExt};

const GATES: usize = 64;
/// What stands in for a disk that has failed may take so much of the memory, bytes.
const MEMORY: u64 = 256 << 20;
/// How coarsely the disk knows when a content was last used (its index's mtime).
const STAMP_EVERY: Duration = Duration::from_secs(600);

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
        });
        let thread = evict::start(&dir).context(|| "the evictor's thread")?;
        *lock(&dir.evictor) = Some(thread);
        Ok(dir)
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

    /// Opens a content, made if there is none, for holding `size` bytes in chunks of `chunk_size`. While somebody uses it
    /// everybody gets the same one, whatever size they ask for. Otherwise a blob whose files say another size, and any
    /// content of another chunk size, starts empty; a file keeps what it has and gets the size.
    ///
    /// [`Kind::TooLarge`] when the process or the disk allows no file of that size.
    pub fn open_content(
        self: &Arc<Self>,
        key: ContentKey,
        size: u64,
        chunk_size: u32,
    ) -> Result<Arc<CacheFile>> {
        self.open_in(key, size, chunk_size, false)
    }

    /// The same in memory, for a content that the disk has no room for, as far as nobody uses it yet. What the disk has of it
    /// is not looked at, and not removed.
    pub fn open_in_memory(
        self: &Arc<Self>,
        key: ContentKey,
        size: u64,
        chunk_size: u32,
    ) -> Result<Arc<CacheFile>> {
        self.open_in(key, size, chunk_size, true)
    }

    /// Opens a content on the disk or, if that has no room even for an empty one and nothing can be evicted, in memory: for who
    /// reads, which never fails for a full disk.
    pub fn open_or_memory(
        self: &Arc<Self>,
        key: ContentKey,
        size: u64,
        chunk_size: u32,
    ) -> Result<Arc<CacheFile>> {
        let full = |e: &Error| e.kind() == Kind::NoSpace;
        match self.open_content(key, size, chunk_size) {
            Err(e) if full(&e) && self.make_room(u64::from(chunk_size)) => {}
            Err(e) if full(&e) => return self.open_in_memory(key, size, chunk_size),
            opened => return opened,
        }
        match self.open_content(key, size, chunk_size) {
            Err(e) if full(&e) => self.open_in_memory(key, size, chunk_size),
            opened => opened,
        }
    }

    fn open_in(
        self: &Arc<Self>,
        key: ContentKey,
        size: u64,
        chunk_size: u32,
        memory: bool,
    ) -> Result<Arc<CacheFile>> {
        let _gate = lock(self.gate(&key));
        if let Some(file) = self.in_use(&key) {
            return Ok(file);
        }
        self.check_file_size(size).context(|| format!("cached {key}"))?;
        let path = self.root.join(key.path());
        let on_disk = match self.aside() {
            None if !memory => {
                Some(self.open_files(&key, &path, size, chunk_size).context(|| path.display().to_string()))
            }
            _ => None,
        };
        let (pair, in_memory) = match on_disk {
            Some(Ok(pair)) => (pair, false),
            Some(Err(e)) if self.aside().is_none() => return Err(e),
            _ => {
                let pair = pair_in_memory("hfmount-cache", size, chunk_size);
                (pair.context(|| format!("cached {key} in memory"))?, true)
            }
        };
        let file = Arc::new(CacheFile::load(key, self.clone(), pair, in_memory)?);
        let now = now();
        lock(&self.table)
            .entry(key)
            .and_modify(|e| {
                e.open = Arc::downgrade(&file);
                e.last_used = now;
            })
            .or_insert_with(|| Entry {
                bytes: 0,
                last_used: now,
                born: now,
                stamped: now,
                open: Arc::downgrade(&file),
            });
        file.account();
        if file.size() != size {
            file.set_size(size)?;
        }
        Ok(file)
    }

    fn open_files(&self, key: &ContentKey, path: &Path, size: u64, chunk_size: u32) -> std::io::Result<Pair> {
        if let Some(pair) = open_pair(&self.disk, path, key, size, chunk_size)? {
            return Ok(pair);
        }
        // The index can be had again; the bytes under it may be nowhere else.
        if self.journal.has_bytes(key) {
            return make_index(&self.disk, path, size, chunk_size);
        }
        make_pair(&self.disk, path, size, chunk_size)
    }

    /// The content, if somebody uses it now. No I/O.
    #[must_use]
    pub fn in_use(&self, key: &ContentKey) -> Option<Arc<CacheFile>> {
        lock(&self.table).get(key).and_then(|e| e.open.upgrade())
    }

    /// Whether the directory has anything of this content. No I/O. May say no in the first moments, while the directory
    /// is being read.
    #[must_use]
    pub fn knows(&self, key: &ContentKey) -> bool {
        lock(&self.table).contains_key(key)
    }

    /// Bytes that the content takes on the disk, if the directory has it. No I/O.
    #[must_use]
    pub fn bytes_of(&self, key: &ContentKey) -> Option<u64> {
        lock(&self.table).get(key).map(|e| e.bytes)
    }

    /// Unlinks a content. Who uses it keeps it until he lets go; who opens it next starts empty.
    pub fn remove(&self, key: &ContentKey) -> Result<()> {
        let _gate = lock(self.gate(key));
        self.unlink(key).map(|_| ())
    }

    /// Unlinks a content that nobody uses; `None` if somebody does.
    pub(super) fn evict(&self, key: &ContentKey) -> Result<Option<u64>> {
        let _gate = lock(self.gate(key));
        if self.in_use(key).is_some() || self.journal.protects(key) {
            return Ok(None);
        }
        self.unlink(key).map(Some)
    }

    fn unlink(&self, key: &ContentKey) -> Result<u64> {
        let path = self.root.join(key.path());
        // The index first: data without an index is nothing, an index without its data would be a lie.
        for path in [index_path(&path), path] {
            if self.aside().is_some() {
                break;
            }
            match self.disk.remove(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).context(|| path.display().to_string());
                }
                _ => {}
            }
        }
        let bytes = lock(&self.table).remove(key).map_or(0, |e| e.bytes);
        self.used.fetch_sub(bytes, Relaxed);
        Ok(bytes)
    }

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

    /// Writes to the disk when contents were last used, where it is more than `slack` behind.
    pub(super) fn stamp(&self, slack: Duration) {
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
    pub(super) fn tick(&self) {
        self.stamp(STAMP_EVERY);
    }

    pub(super) fn account(&self, key: ContentKey, bytes: u64) {
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
    pub(super) fn account_memory(&self, before: u64, bytes: u64) {
        self.in_memory.fetch_add(bytes.wrapping_sub(before), Relaxed);
    }

    /// Whether `bytes` more may be held in memory.
    pub(crate) fn has_memory(&self, bytes: u64) -> bool {
        self.in_memory.load(Relaxed) + bytes <= MEMORY.min(self.limits.max_bytes)
    }

    pub(super) fn released(&self, key: ContentKey) {
        if let Some(entry) = lock(&self.table).get_mut(&key) {
            entry.last_used = now();
        }
    }

    pub(super) fn count_verified(&self, good: bool) {
        let c = &self.counters;
        if good { &c.verified } else { &c.dropped }.fetch_add(1, Relaxed);
    }

    /// A larger write would not only fail: the kernel would send the process SIGXFSZ.
    pub(super) fn check_file_size(&self, size: u64) -> Result<()> {
        match getrlimit(Resource::Fsize).current {
            Some(limit) if size > limit => Err(Error::new(
                Kind::TooLarge,
                format!("{size} bytes; this process may write files of {limit} bytes (ulimit -f)"),
            )),
            _ => Ok(()),
        }
    }

    fn gate(&self, key: &ContentKey) -> &Mutex<()> {
        let n = match key {
            ContentKey::Blob(crate::types::BlobId::Sha256(b)) => usize::from(b[1]),
            ContentKey::Blob(crate::types::BlobId::Git(b)) => usize::from(b[1]),
            ContentKey::File(ino) => ino.0 as usize,
        };
        &self.gates[n % GATES]
    }

    /// Reads what the directory holds. Runs beside everything else.
    pub(super) fn load(&self) {
        for kind in ["blobs", "files"] {
            for fan in list(&self.root.join(kind)) {
                for path in list(&fan) {
                    if self.signal.stopped() {
                        return;
                    }
                    self.load_one(kind, &path);
                }
            }
        }
        self.loaded.store(true, Relaxed);
    }

    fn load_one(&self, kind: &str, path: &Path) {
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return };
        let Some(key) = ContentKey::parse(kind, name.strip_suffix(".idx").unwrap_or(name)) else { return };
        let _gate = lock(self.gate(&key));
        if lock(&self.table).contains_key(&key) {
            return;
        }
        let data = self.root.join(key.path());
        let (Ok(meta), Ok(index)) = (fs::metadata(&data), fs::metadata(index_path(&data))) else {
            if self.journal.protects(&key) {
                return;
            }
            // Half a pair is left of an unlink that a crash cut in two.
            if let Err(e) = self.unlink(&key) {
                tracing::warn!(error = %e, "cannot remove a leftover of the cache");
            }
            return;
        };
        let used = index.modified().map_or(0, millis);
        let bytes = meta.blocks() * 512 + index.len().max(RECORD_LEN);
        let born = meta.created().map_or(used, millis);
        let entry = Entry { bytes, last_used: used, born, stamped: used, open: Weak::new() };
        lock(&self.table).insert(key, entry);
        self.used.fetch_add(bytes, Relaxed);
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
