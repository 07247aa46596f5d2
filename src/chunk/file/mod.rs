//! File data: whatever is written through the mount.
//!
//! [`FileContent`] is the one object for the data of an inode, shared by all its handles in the process. Reads are served
//! from the cache's sparse file, else from the bucket; writes go into the sparse file; a chunk that is complete is
//! uploaded at once, the rest by [`FileContent::flush`], which then commits extents, size and version in one transaction.
//!
//! Promises: within the process a read sees every write that returned before. After `flush` returned, an `open` on any
//! other mount sees the data ([`Files::open`] with fresh attributes). What a flush could not bring to the bucket stays, is
//! not evicted, and goes with the next one. Of two mounts that write at once, the later flush wins where both wrote, and
//! nothing is lost where only one did. Memory is bounded, whatever the size of the file.
//!
//! With `writeback`, [`FileContent::save`] answers when the data is on the local disk and in the cache directory's journal; the
//! rest happens behind, and after a crash at the next start ([`Files::resume`]).

mod claim;
mod content;
mod copy;
mod drain;
mod fill;
mod flight;
mod flush;
mod hole;
mod kept;
mod leave;
mod object;
mod place;
mod put;
mod read;
mod state;
mod sweep;
#[cfg(test)]
mod tests;
mod upload;
mod whole;
mod write;
mod writeback;

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, broadcast};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::chunk::Reads;
use crate::chunk::cache::{CacheDir, ContentKey};
use crate::error::{Error, Kind, Result};
use crate::meta::{Attr, JournalMark, Meta};
use crate::source::bucket::{Bucket, Patience};
use crate::types::{BlobId, FileType, Ino, SessionId};

pub use content::FileContent;
pub use drain::FileCommitted;
pub use hole::Allocate;
pub use sweep::GRACE;
pub(in crate::chunk) use whole::WeakFiles;
pub use write::MAX_SIZE;
pub use writeback::Saved;

/// The same for what is read from the bucket.
const FETCH_BYTES: usize = 64 << 20;
/// Complete chunks of a file that wait for their upload before its writers wait too.
const QUEUED_UPLOADS: usize = 64;
/// The longest that one upload or read is tried again while it holds places that others could use.
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// Journalled files that are uploaded at once.
const DRAINS: usize = 8;
/// How often data whose flush failed, and that nobody has open any more, is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(15);
/// How often it is said that the local disk is full.
const SAY_FULL_EVERY: Duration = Duration::from_secs(60);
/// Files flushed at once by [`Files::flush_all`].
const FLUSHES: usize = 8;

/// Reads the blob that a file began as a copy of.
#[async_trait]
pub trait BlobReader: Debug + Send + Sync + 'static {
    /// Exactly `len` bytes at `offset` of a blob of `size` bytes; the range lies within it.
    async fn read_blob(&self, blob: BlobId, size: u64, offset: u64, len: u32) -> Result<Bytes>;

    /// The same if all of the blob is on the local disk and verified; nothing is fetched for it. `None`: it is not, or the disk
    /// does not give it.
    async fn read_here(&self, _blob: BlobId, _size: u64, _offset: u64, _len: u32) -> Option<Bytes> {
        None
    }
}

/// How the files of a mount behave.
#[derive(Clone, Debug)]
pub struct FilesOptions {
    /// The longest that one read or flush waits for a bucket that does not answer.
    pub io_timeout: Duration,
    /// [`FileContent::save`] is content with the local disk.
    pub writeback: bool,
    /// Bytes in the journal beyond which nothing more is put there; `None`: half of what the cache may take.
    pub backlog: Option<u64>,
    /// How long the end waits for what is to be uploaded. The rest stays in the journal.
    pub drain: Duration,
    /// Bytes of uploads in memory at once, in all files together; a chunk that is larger has all of it. Of these one file
    /// may have two thirds, so that others go on though the store does not answer for it.
    pub uploads: usize,
    /// An upload that takes so long gives its place to others, as long as those that did are no more than two thirds of
    /// `uploads` beside them.
    pub stall: Duration,
}

impl FilesOptions {
    /// The share of the uploads that one file may have, and all those that have stalled.
    fn share(&self) -> usize {
        (self.uploads / 3 * 2).max(1024)
    }
}

impl Default for FilesOptions {
    fn default() -> Self {
        FilesOptions {
            io_timeout: Duration::from_secs(15 * 60),
            writeback: false,
            backlog: None,
            drain: Duration::from_secs(45),
            uploads: 48 << 20,
            stall: Duration::from_secs(5),
        }
    }
}

/// The data of all files of one mount. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Files(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    options: FilesOptions,
    meta: Meta,
    cache: Arc<CacheDir>,
    /// With little patience: who waits for it tries again, without holding places meanwhile.
    bucket: Bucket,
    blobs: Arc<dyn BlobReader>,
    chunk_size: u32,
    runtime: Handle,
    open: Mutex<HashMap<Ino, Weak<FileContent>>>,
    /// Contents with data that is nowhere else. Nobody need have them open.
    dirty: Mutex<HashMap<Ino, Arc<FileContent>>>,
    /// In KiB.
    uploads: Semaphore,
    /// In KiB.
    stalled: Semaphore,
    /// In KiB.
    fetches: Semaphore,
    /// Room for what is kept of chunks that are being written, in KiB.
    kept: Arc<Semaphore>,
    drains: Semaphore,
    /// Those who wait before they upload what is journalled shall not.
    hurry: Notify,
    /// An entry left the journal.
    drained: Notify,
    /// Counts the entries of this session.
    serials: AtomicU64,
    /// Sessions that are on the list of those with a journal, because of this mount's: its own, and those of runs before.
    registered: tokio::sync::Mutex<HashSet<SessionId>>,
    /// Saves that write their entry now.
    saves: AtomicU64,
    /// Entries that were committed and removed, whose marks the metadata still has.
    ended: Mutex<Vec<(JournalMark, Ino)>>,
    /// Files in the journal whose last upload failed, and why.
    errors: Mutex<HashMap<Ino, String>>,
    /// When it was last said that the local disk is full.
    full_said: Mutex<Option<tokio::time::Instant>>,
    events: broadcast::Sender<FileCommitted>,
    recent: object::Recent,
    reads: Reads,
    /// What runs without somebody who waits for it.
    tasks: TaskTracker,
    closing: AtomicBool,
    closed: AtomicBool,
}

/// Permits for `bytes` of a budget of `all`: what is larger than the budget takes all of it.
fn permits(bytes: usize, all: usize) -> u32 {
    u32::try_from(bytes.min(all).div_ceil(1024)).unwrap_or(u32::MAX)
}

impl Files {
    /// The files of a mount. `chunk_size` is the volume's. Must be called in the runtime that all its I/O shall run in.
    #[must_use]
    pub fn new(
        meta: Meta,
        cache: Arc<CacheDir>,
        bucket: Bucket,
        blobs: Arc<dyn BlobReader>,
        chunk_size: u32,
    ) -> Self {
        Self::with_options(meta, cache, bucket, blobs, chunk_size, FilesOptions::default())
    }

    /// The same with other options.
    #[must_use]
    pub fn with_options(
        meta: Meta,
        cache: Arc<CacheDir>,
        bucket: Bucket,
        blobs: Arc<dyn BlobReader>,
        chunk_size: u32,
        options: FilesOptions,
    ) -> Self {
        let given = bucket.patience();
        let patience = Patience {
            progress: given.progress.min(options.io_timeout),
            total: given.total.min(TRY_AGAIN).min(options.io_timeout),
        };
        let bucket = bucket.with_patience(patience);
        let (uploads, share) = (options.uploads.max(1024), options.share());
        let shared = Arc::new(Shared {
            options,
            meta,
            cache,
            bucket,
            blobs,
            chunk_size,
            runtime: Handle::current(),
            open: Mutex::default(),
            dirty: Mutex::default(),
            uploads: Semaphore::new(uploads / 1024),
            stalled: Semaphore::new(share / 1024),
            fetches: Semaphore::new(FETCH_BYTES / 1024),
            kept: Arc::new(Semaphore::new(kept::KEPT_BYTES / 1024)),
            drains: Semaphore::new(DRAINS),
            hurry: Notify::new(),
            drained: Notify::new(),
            serials: AtomicU64::new(1),
            registered: tokio::sync::Mutex::default(),
            saves: AtomicU64::new(0),
            ended: Mutex::default(),
            errors: Mutex::default(),
            full_said: Mutex::default(),
            events: broadcast::Sender::new(1024),
            recent: object::Recent::default(),
            reads: Reads::default(),
            tasks: TaskTracker::new(),
            closing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        tokio::spawn(retry(Arc::downgrade(&shared)));
        tokio::spawn(drain::tidy(Arc::downgrade(&shared)));
        Files(shared)
    }

    /// The content of a file whose attributes were just read: the one that is in use, brought up to date if nothing in
    /// it is new, or a fresh one. No I/O. [`Kind::Invalid`] for what is no regular file.
    pub fn open(&self, attr: &Attr) -> Result<Arc<FileContent>> {
        if attr.kind != FileType::File {
            return Err(Error::new(Kind::Invalid, format!("data of inode {}", attr.ino)));
        }
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(content) = open.get(&attr.ino).and_then(Weak::upgrade) {
            drop(open);
            content.refresh(attr);
            return Ok(content);
        }
        let content = FileContent::new(self.0.clone(), attr.clone());
        open.insert(attr.ino, Arc::downgrade(&content));
        Ok(content)
    }

    /// The content of an inode, if somebody has it open or something in it is new: for getattr, whose size and times it
    /// knows better ([`FileContent::attr`]).
    #[must_use]
    pub fn in_use(&self, ino: Ino) -> Option<Arc<FileContent>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner).get(&ino).and_then(Weak::upgrade)
    }

    /// The inode is gone for good: what is new in it is dropped, its objects that no commit named are deleted, and the
    /// cache forgets it.
    pub async fn forget(&self, ino: Ino) {
        if let Some(content) = self.in_use(ino) {
            content.abandon().await;
        }
        let cache = self.0.cache.clone();
        let removed = tokio::task::spawn_blocking(move || {
            let key = ContentKey::File(ino);
            if cache.knows(&key) { cache.remove(&key) } else { Ok(()) }
        });
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(%error, %ino, "cannot remove a deleted file from the cache");
        }
    }

    /// [`Files::forget`], with nobody waiting for it.
    pub fn forget_behind(&self, ino: Ino) {
        let files = self.clone();
        self.0.spawn(async move { files.forget(ino).await });
    }

    /// Commits that nobody waited for, from now on.
    #[must_use]
    pub fn commits(&self) -> broadcast::Receiver<FileCommitted> {
        self.0.events.subscribe()
    }

    /// Number of contents with data that is not committed yet.
    #[must_use]
    pub fn dirty_count(&self) -> usize {
        self.0.dirty.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// How much of what was read of files was here already.
    #[must_use]
    pub fn reads(&self) -> &Reads {
        &self.0.reads
    }

    /// Flushes everything that is new; all are tried, the first error is returned. For sync and for the end.
    pub async fn flush_all(&self) -> Result<()> {
        let flush = async |content: Arc<FileContent>| content.flush().await.map(drop);
        let mut results = stream::iter(self.0.dirty_contents()).map(flush).buffer_unordered(FLUSHES).boxed();
        let mut first = Ok(());
        while let Some(result) = results.next().await {
            first = first.and(result);
        }
        first
    }
}

impl Files {
    /// Ends it, before the cache is closed: brings everything that is new to the bucket, waits for what runs (for `grace`), and
    /// from then on touches the cache no more: reads and writes fail.
    ///
    /// What the bucket does not take in time goes into the journal, and is uploaded after the next start with this cache
    /// directory; the log says how much. An error if that cannot be either.
    pub async fn close(&self, grace: Duration) -> Result<()> {
        self.0.closing.store(true, Ordering::SeqCst);
        let deadline = tokio::time::Instant::now() + self.0.options.drain;
        let flushed = self.flush_within(deadline).await;
        let waiting = self.drain_within(deadline - tokio::time::Instant::now()).await;
        if waiting.files > 0 {
            tracing::warn!(
                "{} files ({} bytes) are not uploaded yet: they wait in {} and go on with the next mount",
                waiting.files,
                waiting.bytes,
                self.0.cache.path().display()
            );
        } else if let Err(error) = self.0.unregister().await {
            tracing::debug!(%error, "the journal's session stays registered");
        }
        self.0.tasks.close();
        self.0.closed.store(true, Ordering::SeqCst);
        self.0.hurry.notify_waiters();
        if tokio::time::timeout(grace, self.0.tasks.wait()).await.is_err() {
            tracing::warn!("uploads and deletions in the background were given up");
        }
        flushed
    }

    /// The process is gone, as far as what it shares with others is concerned.
    #[cfg(test)]
    fn kill(&self) {
        self.0.closing.store(true, Ordering::SeqCst);
        self.0.closed.store(true, Ordering::SeqCst);
        self.0.hurry.notify_waiters();
        self.0.dirty.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Flushes everything that is not in the journal; what cannot be flushed goes there.
    async fn flush_within(&self, deadline: tokio::time::Instant) -> Result<()> {
        let writeback = self.0.options.writeback;
        let finish = async |content: Arc<FileContent>| -> Result<()> {
            if writeback && content.save_here().await.is_ok() {
                content.drain();
                return Ok(());
            }
            if content.is_journalled() {
                return Ok(());
            }
            let flushed = match tokio::time::timeout_at(deadline, content.flush_until(deadline)).await {
                Ok(flushed) => flushed,
                Err(_) => Err(Error::new(Kind::TimedOut, format!("data of inode {}", content.ino()))),
            };
            match flushed {
                Ok(_) => Ok(()),
                Err(e) if e.kind() == Kind::Stale => Err(e),
                Err(e) => content.save_here().await.map_err(|_| e),
            }
        };
        let mut results = stream::iter(self.0.dirty_contents()).map(finish).buffer_unordered(FLUSHES).boxed();
        let mut first = Ok(());
        while let Some(result) = results.next().await {
            first = first.and(result);
        }
        first
    }
}

impl Shared {
    /// Runs `work` though nobody waits for it.
    fn spawn<F>(&self, work: F) -> JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.tasks.spawn_on(work, &self.runtime)
    }

    /// Says that the local disk is full, and what of it; once in a while.
    fn say_full(&self, what: &str) {
        let mut said = self.full_said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.is_none_or(|when| when.elapsed() > SAY_FULL_EVERY) {
            tracing::warn!("the cache's disk is full, {what}");
            *said = Some(tokio::time::Instant::now());
        }
    }

    fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    fn dirty_contents(&self) -> Vec<Arc<FileContent>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn pin(&self, content: &Arc<FileContent>) {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        dirty.entry(content.ino()).or_insert_with(|| content.clone());
    }

    fn unpin(&self, ino: Ino) {
        let gone = self.dirty.lock().unwrap_or_else(PoisonError::into_inner).remove(&ino);
        // Dropped outside the lock: it may be the last holder.
        drop(gone);
    }

    fn closed(&self, ino: Ino) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.get(&ino).is_some_and(|c| c.strong_count() == 0) {
            open.remove(&ino);
        }
    }
}

/// Tries data again whose flush failed at close.
async fn retry(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(RETRY_EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        for content in shared.dirty_contents() {
            // This list and the one that pins it.
            if Arc::strong_count(&content) > 2 || !content.is_dirty() || content.is_journalled() {
                continue;
            }
            if let Err(error) = content.flush_now().await {
                tracing::warn!(%error, ino = %content.ino(), "data that was not stored at close still cannot be");
            }
        }
    }
}
