//! From the local disk to the bucket: one object for each range that is new.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::time::timeout;

use super::content::FileContent;
use super::permits;
use super::state::Upload;
use crate::error::{Error, Kind, Result};
use crate::source::bucket::Object;
use crate::types::{Extent, ObjectId, ObjectSum};

/// Ranges of one chunk that are uploaded at once.
const RANGES_AT_ONCE: usize = 4;

/// Uploads of others that are waited for before one's own.
const JOINS: usize = 100;

/// A range that is in the bucket, and its hash if that is the chunk's.
type Uploaded = (Extent, Option<(u32, [u8; 32])>);

impl FileContent {
    /// Uploads what is new in chunk `idx`, in the background. Waits while too many are queued: a writer that is faster than
    /// the bucket fills the disk no further. With `writeback` nobody waits: what is not queued goes with the journal.
    pub(super) async fn upload_behind(self: &Arc<Self>, idx: u64) {
        let queue = self.queue.clone();
        let place = match self.shared.options.writeback {
            true => queue.try_acquire_owned().ok(),
            false => queue.acquire_owned().await.ok(),
        };
        let Some(place) = place else { return };
        let content = self.clone();
        self.shared.spawn(async move {
            let _place = place;
            if let Err(error) = content.upload(idx).await {
                // It is still new: the flush tries again and tells whoever closes the file.
                tracing::debug!(%error, ino = %content.ino(), "an upload ahead of the flush failed");
            }
        });
    }

    /// Uploads what is new in chunk `idx` when this is called. One at a time for each chunk.
    pub(super) async fn upload(self: &Arc<Self>, idx: u64) -> Result<()> {
        for _ in 0..JOINS {
            let content = self.clone();
            let work = move || async move { content.upload_once(idx).await };
            let boarded = self.uploads.board(&self.shared, idx, work);
            let began = boarded.began;
            let result = boarded.landed().await;
            // One that was under way may have begun before the last write: what became of it does not matter.
            if began {
                return result;
            }
        }
        Err(Error::with_source(Kind::Unavailable, self.what(), "others upload it all the time"))
    }

    async fn upload_once(self: Arc<Self>, idx: u64) -> Result<()> {
        // Each round brings what the round before found missing.
        for _ in 0..8 {
            let upload = self.state().begin_upload(idx);
            match upload {
                Upload::Nothing | Upload::Busy => return Ok(()),
                Upload::NeedRows => {
                    self.learn_rows(idx..idx + 1).await?;
                }
                Upload::NeedWhole => {
                    self.on_disk(move |content| content.take_over(idx..idx + 1)).await?;
                    self.bring(idx, true).await?;
                    self.state().rewrite(idx);
                }
                Upload::Ranges { id, ranges, whole } => {
                    return self.upload_ranges(idx, id, ranges, whole).await;
                }
            }
        }
        Err(Error::with_source(Kind::Unavailable, self.what(), "it changes faster than it can be stored"))
    }

    async fn upload_ranges(
        self: &Arc<Self>,
        idx: u64,
        id: u64,
        ranges: Vec<Range<u32>>,
        whole: u32,
    ) -> Result<()> {
        let upload = async |range: Range<u32>| self.upload_range(idx, range, whole).await;
        let results: Vec<Result<Uploaded>> =
            stream::iter(ranges).map(upload).buffer_unordered(RANGES_AT_ONCE).collect().await;
        let (mut done, mut hash, mut failed) = (Vec::new(), None, None);
        for result in results {
            match result {
                Ok((extent, h)) => {
                    done.push(extent);
                    hash = hash.or(h);
                }
                Err(e) => failed = failed.or(Some(e)),
            }
        }
        let discarded = {
            let mut state = self.state();
            match &failed {
                None => state.landed(idx, id, &done, hash),
                Some(_) => state.failed(idx, id, &done),
            }
            state.take_discarded()
        };
        self.delete_objects(discarded);
        if let Some(e) = failed {
            return Err(e);
        }
        if hash.is_some() {
            // It is in the bucket: the evictor may have it from now on, long before the file is committed.
            self.on_disk(move |content| content.settle(idx)).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "the cache cannot keep what was written");
            });
        }
        Ok(())
    }

    async fn upload_range(self: &Arc<Self>, idx: u64, range: Range<u32>, whole: u32) -> Result<Uploaded> {
        let failed = |e| Error::with_source(Kind::Internal, self.what(), e);
        let places = permits(range.len(), self.shared.options.share() / 1024 * 1024);
        let _own = self.own_uploads.acquire_many(places).await.map_err(failed)?;
        let place = self.shared.uploads.acquire_many(places).await.map_err(failed)?;
        let wanted = range.clone();
        let kept = self.state().take_kept(idx, &range);
        let read = move |content: &Arc<FileContent>| {
            let bytes = match &kept {
                Some(run) => run.pieces().to_vec(),
                None => {
                    let mut bytes = vec![0; wanted.len()];
                    // What was cut off meanwhile is not there; it does not count when the upload lands.
                    content.cache()?.read_at(content.place(idx, wanted.start)?, &mut bytes)?;
                    vec![Bytes::from(bytes)]
                }
            };
            let mut hash = blake3::Hasher::new();
            for piece in &bytes {
                hash.update(piece);
            }
            Ok((kept, bytes, *hash.finalize().as_bytes()))
        };
        // What is kept takes its room until it is stored.
        let (_kept, bytes, hash) = self.read_disk(read).await?;
        let sum = ObjectSum::with_hash(range.len(), &hash);
        let object: ObjectId = self.shared.meta.next_object();
        let name = Object::FileChunk(object);
        let put = self.shared.bucket.put_pieces(&name, &bytes);
        tokio::pin!(put);
        match timeout(self.shared.options.stall, &mut put).await {
            Ok(done) => done?,
            Err(_) => {
                // It may be slow, or the store may not answer for it: others go on in its place, as far as there is memory.
                let aside = self.shared.stalled.try_acquire_many(places);
                let _held = match aside {
                    Ok(aside) => {
                        drop(place);
                        aside
                    }
                    Err(_) => place,
                };
                put.await?;
            }
        }
        let extent =
            Extent { start: range.start, len: range.len() as u32, object, object_offset: 0, sum: Some(sum) };
        let all = range.start == 0 && range.end == whole;
        Ok((extent, all.then_some((whole, hash))))
    }
}
