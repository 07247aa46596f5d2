//! Writing and cutting: into the local disk's file. What becomes complete goes to the bucket at once.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::timeout;

use super::TRY_AGAIN;
use super::content::FileContent;
use super::place::NEAR;
use super::state::Base;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::Timestamp;

/// The largest file, bytes.
pub const MAX_SIZE: u64 = 1 << 57;
/// Separate new ranges in a chunk, beyond which the chunk is fetched and they become one.
const MAX_RANGES: usize = 64;
/// How often a write that finds the disk full waits for uploads and tries again.
const RELIEFS: usize = 4;
/// Chunks that wait for a commit, beyond which one is made on the way.
const MAX_PENDING: usize = 2048;

/// What became of the room for a write.
enum Relief {
    Room,
    /// All that is ours is stored, and nothing of it is left to be given back.
    None,
    /// What is ours cannot be stored now.
    Stuck,
}

impl FileContent {
    /// Writes at `offset`. When it returns the bytes are on this mount's disk and in every read of this mount; in the
    /// bucket and for other mounts after [`FileContent::flush`].
    ///
    /// [`Kind::NoSpace`]: the volume's capacity is used up, and nothing was written; or the local disk is full and nothing
    /// can be evicted; [`Kind::TooLarge`]: it would begin beyond what a file may be; less is written if it would only end
    /// there. Bytes that were there before and are not wholly overwritten are kept.
    pub async fn write(self: &Arc<Self>, offset: u64, data: Bytes) -> Result<u32> {
        let room = usize::try_from(MAX_SIZE.saturating_sub(offset)).unwrap_or(usize::MAX);
        if room == 0 && !data.is_empty() {
            return Err(Error::new(Kind::TooLarge, self.what()));
        }
        // As other file systems do: what fits is written.
        let data = data.slice(..data.len().min(room));
        let len = u32::try_from(data.len()).map_err(|e| Error::with_source(Kind::Invalid, self.what(), e))?;
        self.put(Some(offset), data).await?;
        Ok(len)
    }

    /// Writes at the end of the file as this mount sees it; returns where that was. Two appends never overlap.
    pub async fn append(self: &Arc<Self>, data: Bytes) -> Result<u64> {
        self.put(None, data).await
    }

    async fn put(self: &Arc<Self>, offset: Option<u64>, data: Bytes) -> Result<u64> {
        let near = offset.unwrap_or_else(|| self.size());
        if data.is_empty() {
            return Ok(near);
        }
        if near.checked_add(data.len() as u64).is_none_or(|end| end > MAX_SIZE) {
            return Err(Error::new(Kind::TooLarge, self.what()));
        }
        self.claim(near + data.len() as u64).await.context(|| self.what())?;
        self.keep_known(near..near + data.len() as u64).await?;
        let len = data.len() as u64;
        let mut reliefs = 0;
        let mut left_disk = false;
        let (offset, complete) = loop {
            match self.put_once(offset, data.clone()).await {
                Err(e) if !left_disk && self.leave_disk(&e).await => left_disk = true,
                Err(e) if e.kind() == Kind::NoSpace && reliefs < RELIEFS => {
                    reliefs += 1;
                    let relieved = match self.relieve(len).await {
                        Relief::Room => true,
                        // It is full of what others keep there.
                        Relief::None => {
                            let left = self.leave_full_disk().await;
                            if left {
                                self.shared.say_full("what is written goes through memory");
                            }
                            left
                        }
                        Relief::Stuck => false,
                    };
                    if !relieved {
                        self.reclaim();
                        return Err(e.context(self.what()));
                    }
                }
                other => break other.context(|| self.what())?,
            }
        };
        self.after_write(offset..offset + len, &complete).await;
        Ok(offset)
    }

    /// Writes into the local disk's file; where that was, and which chunks are complete now.
    async fn put_once(self: &Arc<Self>, offset: Option<u64>, data: Bytes) -> Result<(u64, Vec<u64>)> {
        let write = move |content: &Arc<FileContent>| {
            let offset = offset.unwrap_or_else(|| content.size());
            let range = offset..offset + data.len() as u64;
            content.take_over(content.touched(&range))?;
            if let Err(e) = content.write_local(range.clone(), &data) {
                content.state().spoiled(range);
                return Err(e);
            }
            content.shared.pin(content);
            let mut state = content.state();
            let complete = state.wrote(range, Timestamp::now());
            state.keep(offset, &data, &content.shared.kept);
            Ok((offset, complete))
        };
        self.on_disk(write).await
    }

    /// Blocks; `landing` is held.
    fn write_local(&self, range: Range<u64>, data: &Bytes) -> Result<()> {
        let cache = self.cache()?;
        for run in self.runs(range.clone()) {
            let idx = run.start / u64::from(self.shared.chunk_size);
            let place = run.start - self.offset(idx, 0) + self.offset(self.make_slot(idx), 0);
            let piece = (run.start - range.start) as usize..(run.end - range.start) as usize;
            self.write_cache(cache, place, &data[piece])?;
        }
        Ok(())
    }

    /// The local disk is full of what is nowhere else: brings that to the bucket, so that it can be evicted.
    async fn relieve(self: &Arc<Self>, bytes: u64) -> Relief {
        let mut contents = self.shared.dirty_contents();
        // One's own first.
        contents.sort_by_key(|content| content.ino != self.ino);
        for content in contents {
            let chunks = content.state().to_upload();
            for idx in chunks {
                if let Err(error) = content.upload(idx).await {
                    tracing::warn!(%error, "the local disk is full, and what is new on it cannot be stored");
                    return Relief::Stuck;
                }
                if let Err(error) = content.on_disk(move |content| content.settle(idx)).await {
                    tracing::warn!(%error, "the cache cannot keep what was written");
                }
            }
            // What an entry of the journal speaks of stays until that is committed.
            if content.state().relies_on_cache() {
                let error = match timeout(TRY_AGAIN, content.flush_now()).await {
                    Ok(Ok(_)) => None,
                    Ok(Err(e)) => Some(e),
                    Err(_) => Some(Error::new(Kind::TimedOut, content.what())),
                };
                if let Some(error) = error {
                    tracing::warn!(%error, "the local disk is full, and what is new on it cannot be committed");
                    return Relief::Stuck;
                }
            }
            if self.make_room(bytes).await {
                return Relief::Room;
            }
        }
        // Nothing is dirty, this file neither, if its first write found the disk full: what is stored already can go.
        match self.make_room(bytes).await {
            true => Relief::Room,
            false => Relief::None,
        }
    }

    async fn make_room(&self, bytes: u64) -> bool {
        let cache = self.shared.cache.clone();
        let in_memory = self.in_memory();
        // Room on the disk is none for what is in memory.
        let make = move || if in_memory { cache.make_memory(bytes) } else { cache.make_room(bytes) };
        self.shared.runtime.spawn_blocking(make).await.unwrap_or(false)
    }

    /// Reads the lists of chunks that are about to be overwritten in part, if the cache may have the rest of them.
    pub(super) async fn keep_known(self: &Arc<Self>, range: Range<u64>) -> Result<()> {
        let known = {
            let state = self.state();
            let mut touched = self.touched(&range);
            state.base == Base::Rows
                && touched.any(|idx| state.needs_rows(idx))
                && (self.opened_cache().is_some()
                    || self.shared.cache.knows(&crate::chunk::cache::ContentKey::File(self.ino)))
        };
        if known {
            // Without the lists the write goes on; the rest is fetched again when it is needed.
            if let Err(error) = self.learn_rows(self.touched(&range)).await {
                tracing::debug!(%error, "cannot read what a write goes over");
            }
        }
        Ok(())
    }

    /// Sends off chunks that are complete, and keeps the bookkeeping small.
    async fn after_write(self: &Arc<Self>, range: Range<u64>, complete: &[u64]) {
        for &idx in complete {
            self.upload_behind(idx).await;
        }
        for idx in self.touched(&range) {
            let torn = self.state().chunk(idx).dirty.count() > MAX_RANGES;
            if torn && self.bring(idx, true).await.is_ok() {
                self.state().rewrite(idx);
            }
        }
        if self.state().pending_chunks() > MAX_PENDING {
            self.flush_behind();
        }
    }

    /// Commits what there is, so that little has to be remembered.
    pub(super) fn flush_behind(self: &Arc<Self>) {
        let content = self.clone();
        self.shared.spawn(async move {
            if let Err(error) = content.flush().await {
                tracing::debug!(%error, ino = %content.ino(), "cannot commit on the way");
            }
        });
    }

    /// Sets the size: what is cut off is gone, what is added reads as zeros. For other mounts after
    /// [`FileContent::flush`].
    pub async fn truncate(self: &Arc<Self>, size: u64) -> Result<()> {
        if size > MAX_SIZE {
            return Err(Error::new(Kind::TooLarge, self.what()));
        }
        if size > self.size() {
            self.claim(size).await.context(|| self.what())?;
        }
        if size > 0 && size < self.size() {
            let cut = size / u64::from(self.shared.chunk_size);
            self.keep_known(self.offset(cut, 0)..size).await?;
        }
        // Nobody writes an entry of the journal meanwhile: it would speak of bytes that are about to go.
        let saving = self.saving.lock().await;
        let journalled = self.state().journalled.is_some();
        let resize = move |content: &Arc<FileContent>| {
            let old = content.size();
            // A file that the cache never saw has nothing there to cut.
            if size < old && (content.opened_cache().is_some() || content.in_cache()) {
                let unit = u64::from(content.shared.chunk_size);
                let chunks = size / unit..old.div_ceil(unit);
                content.take_over(chunks.clone())?;
                let cache = content.cache()?;
                for slots in content.slots(&chunks) {
                    cache.clear(slots.start, slots.end.min(cache.chunks()).max(slots.start))?;
                }
                let left = size.div_ceil(unit).max(1);
                // The journal's entry speaks of these bytes until it is written anew.
                if !journalled && left <= NEAR && cache.chunks() > left {
                    // Gives the space back; the bytes on the disk up to `size` stay.
                    cache.set_size(left * unit)?;
                }
            }
            content.shared.pin(content);
            content.state().resize(size, Timestamp::now());
            Ok(())
        };
        let shorter = size < self.size();
        let resized = self.on_disk(resize).await.context(|| self.what());
        self.reclaim();
        resized?;
        self.correct_after(saving, journalled && shorter).await
    }

    /// Something was cut off or made a hole. If the journal's entry spoke of that: before anybody writes there, it is
    /// corrected, so that after a crash the file is what it was before, or what it is now, and never a mixture.
    pub(super) async fn correct_after(
        self: &Arc<Self>,
        saving: tokio::sync::MutexGuard<'_, ()>,
        wrong: bool,
    ) -> Result<()> {
        if !wrong {
            return Ok(());
        }
        let corrected = self.correct_entry(&saving).await;
        drop(saving);
        match corrected {
            Ok(()) => Ok(()),
            Err(e) => {
                tracing::warn!("{} is written through: the journal cannot be corrected: {e}", self.what());
                self.flush().await.map(drop)
            }
        }
    }

    pub(super) fn in_cache(&self) -> bool {
        self.shared.cache.knows(&crate::chunk::cache::ContentKey::File(self.ino))
    }
}
