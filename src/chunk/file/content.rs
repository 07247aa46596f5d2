//! The content of one file: what all handles of the process share, and the small things about it.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{OwnedMutexGuard, Semaphore};

use super::flight::Flights;
use super::place::{NEAR, Slots};
use super::read::Readahead;
use super::state::{Local, State};
use super::{QUEUED_UPLOADS, Shared, permits};
use crate::chunk::cache::{CacheFile, ContentKey, Presence};
use crate::error::{Error, Kind, Result};
use crate::meta::Attr;
use crate::types::{Ino, Timestamp, Version};

/// The data of one file as this mount sees it. Get it from [`Files::open`](super::Files::open); drop it at release.
#[derive(Debug)]
pub struct FileContent {
    pub(super) ino: Ino,
    pub(super) shared: Arc<Shared>,
    /// Never held across an await or I/O.
    state: Mutex<State>,
    /// Made when first needed: most small files never touch the cache.
    cache: OnceLock<Arc<CacheFile>>,
    opening: Mutex<()>,
    pub(super) slots: Slots,
    /// Held while bytes are written into the cache's file, and never during network I/O: what is fetched must not land
    /// on what is written.
    pub(super) landing: Arc<tokio::sync::Mutex<()>>,
    pub(super) fills: Flights,
    pub(super) uploads: Flights,
    pub(super) flushing: tokio::sync::Mutex<()>,
    /// Held while a commit is on its way: shorter than `flushing`, which waits for uploads.
    pub(super) committing: tokio::sync::Mutex<()>,
    /// Held while the journal's entry is written or removed. Taken before `landing`.
    pub(super) saving: tokio::sync::Mutex<()>,
    /// Whether a task brings what is journalled to the bucket.
    pub(super) draining: AtomicBool,
    /// Of the places for uploads, those that this file may have. In KiB.
    pub(super) own_uploads: Semaphore,
    /// Complete chunks that wait for their upload.
    pub(super) queue: Arc<Semaphore>,
    pub(super) readahead: Mutex<Readahead>,
    /// Bytes that it is going to add to the volume, as its capacity was told.
    pub(super) claimed: AtomicU64,
}

impl FileContent {
    pub(super) fn new(shared: Arc<Shared>, attr: Attr) -> Arc<Self> {
        let (chunk_size, ino) = (shared.chunk_size, attr.ino);
        Self::with_state(shared, State::new(attr, chunk_size), ino)
    }

    pub(super) fn with_state(shared: Arc<Shared>, state: State, ino: Ino) -> Arc<Self> {
        let own_uploads = Semaphore::new(shared.options.share() / 1024);
        Arc::new(FileContent {
            ino,
            shared,
            state: Mutex::new(state),
            cache: OnceLock::new(),
            opening: Mutex::default(),
            slots: Slots::default(),
            landing: Arc::default(),
            fills: Flights::default(),
            uploads: Flights::default(),
            flushing: tokio::sync::Mutex::default(),
            committing: tokio::sync::Mutex::default(),
            saving: tokio::sync::Mutex::default(),
            draining: AtomicBool::new(false),
            own_uploads,
            queue: Arc::new(Semaphore::new(QUEUED_UPLOADS)),
            readahead: Mutex::default(),
            claimed: AtomicU64::new(0),
        })
    }

    /// The inode.
    #[must_use]
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Bytes, with what was written here and is not flushed.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.state().size
    }

    /// Whether something was written, cut or added that is not committed.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.state().is_modified()
    }

    /// Whether the journal has all that is not committed.
    #[must_use]
    pub fn is_journalled(&self) -> bool {
        let state = self.state();
        state.journalled.is_some_and(|j| j.changes >= state.changes)
    }

    /// The version that the data is based on: what the metadata said last.
    #[must_use]
    pub fn version(&self) -> Version {
        self.state().attr.version
    }

    /// The version, and how often what another mount committed has come in: if that stays, all between one version and a
    /// later one was written here.
    #[must_use]
    pub fn lineage(&self) -> (Version, u64) {
        let state = self.state();
        (state.attr.version, state.merges)
    }

    /// The attributes as the metadata said them last, with the size and mtime of what is not flushed yet.
    #[must_use]
    pub fn attr(&self) -> Attr {
        let state = self.state();
        with_news(&state, state.attr.clone())
    }

    /// Times of last access, change and attribute change, as [`FileContent::attr`] has them.
    #[must_use]
    pub fn times(&self) -> (Timestamp, Timestamp, Timestamp) {
        let state = self.state();
        let attr = &state.attr;
        let committing = state.committing.as_ref().and_then(|d| d.mtime);
        match state.delta.mtime.or(committing) {
            Some(mtime) => (attr.atime, mtime, attr.ctime.max(mtime)),
            None => (attr.atime, attr.mtime, attr.ctime),
        }
    }

    /// Attributes that were just read, with the size and mtime of what is not flushed yet, or of what was committed here
    /// while they were being read.
    #[must_use]
    pub fn attr_over(&self, mut attr: Attr) -> Attr {
        let state = self.state();
        if state.is_past(&attr) {
            attr.take_data_of(&state.attr);
        }
        if state.is_modified() || state.committing.is_some() { with_news(&state, attr) } else { attr }
    }

    /// Sets the file's times by `set`, with no flush under way that would set them again: neither one that runs now nor
    /// that of writes before this. Writes after it set them again, as they must.
    pub async fn set_times<T>(self: &Arc<Self>, set: impl Future<Output = Result<T>>) -> Result<T> {
        let _none = self.committing.lock().await;
        let saving = self.saving.lock().await;
        {
            let mut state = self.state();
            state.delta.mtime = None;
            if let Some(committing) = &mut state.committing {
                committing.mtime = None;
            }
        }
        // After a crash nothing may set them back.
        self.correct_entry(&saving).await?;
        set.await
    }

    /// New attributes were read, at open or because somebody said that the file changed. If nothing is new here, their
    /// data is the data from now on; else the next flush merges. Attributes that were read before a commit that is known
    /// here change nothing.
    pub fn refresh(&self, attr: &Attr) {
        let mut state = self.state();
        if state.attr.version == attr.version {
            state.attr = attr.clone();
        } else if !state.is_modified() && state.committing.is_none() && !state.is_past(attr) {
            state.rebase(attr.clone(), self.shared.meta.is_own(attr.version.session));
        }
    }

    /// Drops what is new: the inode is gone.
    pub(super) async fn abandon(self: &Arc<Self>) {
        let landing = self.landing.lock().await;
        let objects = {
            let mut state = self.state();
            state.flushed = state.changes;
            let fresh = state.chunks.values().filter(|c| !c.stale);
            let pending = fresh.flat_map(|c| c.pending.iter().map(|e| e.object));
            let mut objects: Vec<_> = pending.filter(|o| !state.offered.contains(o)).collect();
            state.chunks.clear();
            objects.append(&mut state.discarded);
            objects.sort_unstable();
            objects.dedup();
            objects
        };
        self.shared.unpin(self.ino);
        self.set_claim(0);
        self.delete_objects(objects);
        drop(landing);
        self.end_entry(true).await;
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn what(&self) -> String {
        format!("data of inode {}", self.ino)
    }

    pub(super) fn offset(&self, idx: u64, within: u32) -> u64 {
        idx * u64::from(self.shared.chunk_size) + u64::from(within)
    }

    /// The chunks that a range of the file touches.
    pub(super) fn touched(&self, range: &Range<u64>) -> Range<u64> {
        let size = u64::from(self.shared.chunk_size);
        range.start / size..range.end.div_ceil(size).max(range.start / size)
    }

    /// The cache's file if it was opened. No I/O.
    pub(super) fn opened_cache(&self) -> Option<&Arc<CacheFile>> {
        self.cache.get()
    }

    /// The cache's file. Blocks on the disk.
    pub(super) fn cache(&self) -> Result<&Arc<CacheFile>> {
        if let Some(cache) = self.cache.get() {
            return Ok(cache);
        }
        let _one = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = self.cache.get() {
            return Ok(cache);
        }
        let size = u64::from(self.shared.chunk_size);
        // In whole chunks: its exact size is ours to keep, and changing it costs a sync.
        let rounded = self.size().div_ceil(size).clamp(1, NEAR) * size;
        let cache =
            self.shared.cache.open_content(ContentKey::File(self.ino), rounded, self.shared.chunk_size)?;
        Ok(self.cache.get_or_init(|| cache))
    }

    /// The same in memory, if it was not opened yet: the disk has no room for it.
    pub(super) fn cache_in_memory(&self) -> Result<&Arc<CacheFile>> {
        let _one = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cache) = self.cache.get() {
            return Ok(cache);
        }
        let unit = self.shared.chunk_size;
        let rounded = self.size().div_ceil(unit.into()).max(1) * u64::from(unit);
        let cache = self.shared.cache.open_in_memory(ContentKey::File(self.ino), rounded, unit)?;
        Ok(self.cache.get_or_init(|| cache))
    }

    /// Whether the cache has chunk `idx` under `tag`. Blocks on the disk: a chunk of a run that crashed is read.
    pub(super) fn has_recorded(&self, idx: u64, tag: &[u8; 16]) -> bool {
        let look = || -> Result<bool> {
            let key = ContentKey::File(self.ino);
            if self.cache.get().is_none() && !self.shared.cache.knows(&key) {
                return Ok(false);
            }
            let cache = self.cache()?;
            let Some(slot) = self.slot(idx) else { return Ok(false) };
            if cache.presence(slot) == Presence::Suspect && !cache.verify(slot)? {
                return Ok(false);
            }
            cache.has(slot, tag)
        };
        look().unwrap_or_else(|error| {
            tracing::warn!(%error, "the cache cannot be read");
            false
        })
    }

    /// Takes chunks of `range` out of the hands of the index, before they are changed: the evictor must not touch them any
    /// more. Blocks on the disk; `landing` is held.
    pub(super) fn take_over(&self, range: Range<u64>) -> Result<()> {
        let recorded: Vec<(u64, u64)> = {
            let state = self.state();
            let recorded =
                state.chunks.iter().filter(|(i, c)| range.contains(i) && c.local == Local::Recorded);
            recorded.map(|(idx, c)| (*idx, c.generation)).collect()
        };
        for (idx, generation) in recorded {
            let present = match self.slot(idx) {
                Some(slot) => self.cache()?.take(slot)?,
                None => false,
            };
            self.state().taken_over(idx, generation, present);
        }
        Ok(())
    }

    fn check_open(&self) -> Result<()> {
        match self.shared.closed.load(Ordering::SeqCst) {
            false => Ok(()),
            true => Err(Error::with_source(Kind::Unavailable, self.what(), "the mount has ended")),
        }
    }

    /// Runs `work`, which blocks on the disk, while nothing else is written into the cache's file. Goes on though the
    /// caller stops waiting, so that the state never tells less than the disk.
    pub(super) async fn on_disk<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<FileContent>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let guard: OwnedMutexGuard<()> = self.landing.clone().lock_owned().await;
        self.check_open()?;
        let content = self.clone();
        let task = self.shared.runtime.spawn_blocking(move || {
            let _guard = guard;
            work(&content)
        });
        task.await.map_err(|e| Error::with_source(Kind::Internal, self.what(), e))?
    }

    /// The same for reading, which disturbs nobody.
    pub(super) async fn read_disk<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Arc<FileContent>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.check_open()?;
        let content = self.clone();
        let task = self.shared.runtime.spawn_blocking(move || work(&content));
        task.await.map_err(|e| Error::with_source(Kind::Internal, self.what(), e))?
    }

    /// Waits until `bytes` more may be fetched.
    pub(super) async fn fetch_permit(&self, bytes: usize) -> Result<tokio::sync::SemaphorePermit<'_>> {
        let permit = self.shared.fetches.acquire_many(permits(bytes, super::FETCH_BYTES)).await;
        permit.map_err(|e| Error::with_source(Kind::Internal, self.what(), e))
    }

    /// Deletes objects that nothing refers to, in the background. What fails is left to the tools.
    pub(super) fn delete_objects(self: &Arc<Self>, objects: Vec<crate::types::ObjectId>) {
        if objects.is_empty() {
            return;
        }
        let bucket = self.shared.bucket.clone();
        self.shared.spawn(async move {
            for object in objects {
                if let Err(error) = bucket.delete(&crate::source::bucket::Object::FileChunk(object)).await {
                    tracing::debug!(%error, "cannot delete an object that nothing refers to");
                }
            }
        });
    }
}

impl Drop for FileContent {
    fn drop(&mut self) {
        self.set_claim(0);
        self.shared.closed(self.ino);
    }
}

/// `attr` with what of its size and times is not committed yet.
fn with_news(state: &State, mut attr: Attr) -> Attr {
    attr.size = state.size;
    attr.blocks = state.data_bytes().div_ceil(512);
    let committing = state.committing.as_ref().and_then(|d| d.mtime);
    if let Some(mtime) = state.delta.mtime.or(committing) {
        attr.mtime = mtime;
        attr.ctime = attr.ctime.max(mtime);
    }
    attr
}
