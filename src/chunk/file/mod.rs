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

mod content;
mod fill;
mod flight;
mod flush;
mod kept;
mod put;
mod read;
mod state;
mod sweep;
#[cfg(test)]
mod tests;
mod upload;
mod write;

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::chunk::cache::{CacheDir, ContentKey};
use crate::error::{Error, Kind, Result};
use crate::meta::{Attr, Meta};
use crate::source::bucket::Bucket;
use crate::types::{BlobId, FileType, Ino};

pub use content::FileContent;
pub use sweep::GRACE;

/// Bytes of uploads in memory at once, in all files together; one chunk may be more.
const UPLOAD_BYTES: usize = 32 << 20;
/// The same for what is read from the bucket.
const FETCH_BYTES: usize = 64 << 20;
/// Complete chunks that wait for their upload before writers wait too.
const QUEUED_UPLOADS: usize = 64;
/// How often data whose flush failed, and that nobody has open any more, is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(15);
/// Files flushed at once by [`Files::flush_all`].
const FLUSHES: usize = 8;

/// Reads the blob that a file began as a copy of.
#[async_trait]
pub trait BlobReader: Debug + Send + Sync + 'static {
    /// Exactly `len` bytes at `offset` of a blob of `size` bytes; the range lies within it.
    async fn read_blob(&self, blob: BlobId, size: u64, offset: u64, len: u32) -> Result<Bytes>;
}

/// The data of all files of one mount. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Files(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    meta: Meta,
    cache: Arc<CacheDir>,
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
    fetches: Semaphore,
    queue: Arc<Semaphore>,
    /// Room for what is kept of chunks that are being written, in KiB.
    kept: Arc<Semaphore>,
    /// What runs without somebody who waits for it.
    tasks: TaskTracker,
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
        let shared = Arc::new(Shared {
            meta,
            cache,
            bucket,
            blobs,
            chunk_size,
            runtime: Handle::current(),
            open: Mutex::default(),
            dirty: Mutex::default(),
            uploads: Semaphore::new(UPLOAD_BYTES / 1024),
            fetches: Semaphore::new(FETCH_BYTES / 1024),
            queue: Arc::new(Semaphore::new(QUEUED_UPLOADS)),
            kept: Arc::new(Semaphore::new(kept::KEPT_BYTES / 1024)),
            tasks: TaskTracker::new(),
            closed: AtomicBool::new(false),
        });
        tokio::spawn(retry(Arc::downgrade(&shared)));
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

    /// Number of contents with data that is not committed yet.
    #[must_use]
    pub fn dirty_count(&self) -> usize {
        self.0.dirty.lock().unwrap_or_else(PoisonError::into_inner).len()
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
    /// Ends it, before the cache is closed: flushes everything that is new, waits for what runs (for `grace`), and from
    /// then on touches the cache no more: reads and writes fail. Returns the first error of the flushes.
    pub async fn close(&self, grace: Duration) -> Result<()> {
        let flushed = self.flush_all().await;
        self.0.tasks.close();
        if tokio::time::timeout(grace, self.0.tasks.wait()).await.is_err() {
            tracing::warn!("uploads and deletions in the background were given up");
        }
        self.0.closed.store(true, Ordering::SeqCst);
        flushed
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
            if Arc::strong_count(&content) > 2 || !content.is_dirty() {
                continue;
            }
            if let Err(error) = content.flush().await {
                tracing::warn!(%error, ino = %content.ino(), "data that was not stored at close still cannot be");
            }
        }
    }
}
