//! From the bucket (or what the file began as) to the local disk, a chunk at a time and once for all who want it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};

use super::content::FileContent;
use super::read::ROUNDS;
use super::state::{Base, Part};
use crate::chunk::cache::CacheFile;
use crate::error::{Error, Kind, Result};
use crate::meta::Under;
use crate::source::bucket::Object;
use crate::types::{Extent, ObjectId, ObjectSum};

/// Lists of chunks read in one round trip.
const ROWS_AT_ONCE: u64 = 64;
/// Objects of one chunk that are fetched at once.
const OBJECTS_AT_ONCE: usize = 4;

impl FileContent {
    /// Reads the lists of those of `chunks` that are not known, and some behind them. `true` if it did.
    pub(super) async fn learn_rows(self: &Arc<Self>, chunks: Range<u64>) -> Result<bool> {
        self.learn_rows_ahead(chunks, ROWS_AT_ONCE).await
    }

    /// The same, with up to `ahead` lists in the round trip; no more than are remembered.
    pub(super) async fn learn_rows_ahead(self: &Arc<Self>, chunks: Range<u64>, ahead: u64) -> Result<bool> {
        let (version, unknown) = {
            let state = self.state();
            let Some(first) = chunks.clone().find(|&idx| state.needs_rows(idx)) else { return Ok(false) };
            let end = state.floor().div_ceil(u64::from(state.chunk_size)).min(state.attr.chunks);
            let last = end.min(first + ahead);
            (state.attr.version, (first..last).filter(|&idx| state.needs_rows(idx)).collect::<Vec<_>>())
        };
        let (attr, rows) = self.shared.meta.attr_and_chunk_rows(self.ino, &unknown).await?;
        {
            let mut state = self.state();
            // Another mount committed: its lists say nothing of the file as it was, which may even have had none.
            let newer = attr.version != version && !state.is_past(&attr);
            if state.attr.version == version && newer && state.committing.is_none() {
                let ours = self.shared.meta.is_own(attr.version.session);
                state.rebase(attr, ours);
                return Ok(true);
            }
        }
        let learn = move |content: &Arc<FileContent>| {
            for (idx, rows) in unknown.into_iter().zip(rows) {
                let list = rows.as_deref();
                let tag = content.state().tag_with(idx, list.unwrap_or_default());
                let some = list.is_some_and(|list| !list.is_empty());
                let recorded = (some && content.has_recorded(idx, &tag)).then_some(tag);
                let mut state = content.state();
                // Somebody committed meanwhile, perhaps we: these rows may be older than what is known now.
                if state.attr.version == version {
                    state.learn_rows(idx, list, recorded);
                }
            }
            content.state().forget_some();
            Ok(true)
        };
        self.read_disk(learn).await
    }

    /// Brings chunks to the local disk, several at once.
    pub(super) async fn fill_all(self: &Arc<Self>, chunks: Vec<u64>) -> Result<()> {
        let flights: Vec<_> = chunks.into_iter().map(|idx| self.fill(idx)).collect();
        for flight in flights {
            flight.landed().await?;
        }
        Ok(())
    }

    fn fill(self: &Arc<Self>, idx: u64) -> super::flight::Boarded {
        let content = self.clone();
        self.fills.board(&self.shared, idx, move || async move { content.bring(idx, false).await })
    }

    /// Brings what objects have of chunk `idx` to the local disk; with `all`, also what a blob, a row or holes give.
    pub(super) async fn bring(self: &Arc<Self>, idx: u64, all: bool) -> Result<()> {
        let mut reread = false;
        for _ in 0..ROUNDS {
            self.learn_rows(idx..idx + 1).await?;
            let (generation, parts) = {
                let mut state = self.state();
                if state.needs_rows(idx) {
                    continue;
                }
                let end = state.data_end(idx);
                (state.chunk(idx).generation, state.parts(idx, 0..end))
            };
            let local = |p: &Part| match p {
                Part::Local(_) | Part::Recorded(_) => true,
                Part::Fetch(_) => false,
                Part::Blob(..) | Part::Inline(..) | Part::Zeros(_) => !all,
            };
            // Holes are written too: what lies there on the disk may be old, and a chunk is recorded as a whole.
            let wanted: Vec<Part> = match parts.iter().all(local) {
                true => return Ok(()),
                false => {
                    parts.into_iter().filter(|p| !matches!(p, Part::Local(_) | Part::Recorded(_))).collect()
                }
            };
            let bytes = wanted.iter().map(Part::cost).sum();
            let _permit = self.fetch_permit(bytes).await?;
            match self.fetch(idx, wanted, false).await {
                Ok(pieces) => {
                    self.on_disk(move |content| content.land(idx, generation, pieces)).await?;
                }
                Err(e) if e.kind() == Kind::NotFound && !reread => {
                    self.reread(idx).await?;
                    reread = true;
                }
                Err(e) if e.kind() == Kind::NotFound => return Err(e.with_kind(Kind::Corrupt)),
                Err(e) => return Err(e),
            }
        }
        Err(Error::with_source(Kind::Unavailable, self.what(), "it changes faster than it can be read"))
    }

    /// The bytes of parts that are not on the local disk. What comes from the bucket is held to its checksum. `again`: the
    /// local disk will not have them afterwards, and more of the same objects may be asked for soon.
    pub(super) async fn fetch(
        &self,
        idx: u64,
        parts: Vec<Part>,
        again: bool,
    ) -> Result<Vec<(Range<u32>, Bytes)>> {
        if let Some(pieces) = self.fetch_here(idx, &parts).await {
            return Ok(pieces);
        }
        let objects = self.whole_objects(&parts, again).await?;
        let fetch = async |part: Part| -> Result<(Range<u32>, Bytes)> {
            let span = part.span();
            let bytes = match part {
                Part::Fetch(extent) => match objects.get(&extent.object) {
                    Some(whole) => super::object::slice(whole, &extent)?,
                    None => self.fetch_range(&extent).await?,
                },
                Part::Blob(Under { blob, size, .. }, r) => {
                    let (at, len) = (self.offset(idx, r.start), r.end - r.start);
                    let bytes = self.shared.blobs.read_blob(blob, size, at, len).await?;
                    if bytes.len() != r.len() {
                        let what = format!("blob {blob}");
                        return Err(Error::with_source(Kind::Corrupt, what, "a short read"));
                    }
                    bytes
                }
                Part::Inline(bytes, r) => bytes.slice(r.start as usize..r.end as usize),
                Part::Local(r) | Part::Recorded(r) | Part::Zeros(r) => BytesMut::zeroed(r.len()).freeze(),
            };
            Ok((span, bytes))
        };
        stream::iter(parts).map(fetch).buffered(OBJECTS_AT_ONCE).try_collect().await
    }

    /// The objects that `parts` need and that have a checksum, each once and whole: a part alone cannot be checked.
    async fn whole_objects(&self, parts: &[Part], again: bool) -> Result<HashMap<ObjectId, Bytes>> {
        let mut wanted: Vec<(ObjectId, ObjectSum)> = parts
            .iter()
            .filter_map(|part| match part {
                Part::Fetch(extent) => extent.sum.map(|sum| (extent.object, sum)),
                _ => None,
            })
            .collect();
        wanted.sort_unstable_by_key(|(object, _)| *object);
        wanted.dedup_by_key(|(object, _)| *object);
        let fetch = async |(object, sum): (ObjectId, ObjectSum)| {
            self.shared.whole_object(object, sum, again).await.map(|bytes| (object, bytes))
        };
        stream::iter(wanted).map(fetch).buffer_unordered(OBJECTS_AT_ONCE).try_collect().await
    }

    async fn fetch_range(&self, e: &Extent) -> Result<Bytes> {
        let range = u64::from(e.object_offset)..u64::from(e.object_offset) + u64::from(e.len);
        self.shared.bucket.get(&Object::FileChunk(e.object), Some(range)).await
    }

    /// Writes fetched bytes where they are still wanted, and records the chunk if that makes it whole.
    fn land(self: &Arc<Self>, idx: u64, generation: u64, pieces: Vec<(Range<u32>, Bytes)>) -> Result<()> {
        let cache = self.cache()?;
        let slot = self.make_slot(idx);
        for (range, bytes) in pieces {
            let wanted = self.state().wanted(idx, generation, range.clone());
            for part in wanted.iter() {
                let data = &bytes[(part.start - range.start) as usize..(part.end - range.start) as usize];
                self.write_cache(cache, self.offset(slot, part.start), data)?;
                if !self.state().filled(idx, generation, part) {
                    return Ok(());
                }
            }
        }
        self.settle(idx)
    }

    /// Writes at an offset of the cache's file, once more after making room if the disk is full. Blocks; `landing` is held.
    pub(super) fn write_cache(&self, cache: &CacheFile, offset: u64, data: &[u8]) -> Result<()> {
        let unit = u64::from(cache.chunk_size());
        let chunks = (offset + data.len() as u64).div_ceil(unit);
        if chunks > cache.chunks() {
            // In large steps: each is a sync.
            cache.set_size(chunks.max(cache.chunks() + cache.chunks().min(256)).saturating_mul(unit))?;
        }
        match cache.write_at(offset, data) {
            Err(e) if e.kind() == Kind::NoSpace && cache.dir().make_room(data.len() as u64) => {
                cache.write_at(offset, data)
            }
            other => other,
        }
    }

    /// Hands a chunk that is committed and wholly on the disk to the index. Blocks; `landing` is held.
    pub(super) fn settle(&self, idx: u64) -> Result<()> {
        let Some((tag, end, hash)) = self.state().to_record(idx) else { return Ok(()) };
        let (cache, Some(slot)) = (self.cache()?, self.slot(idx)) else { return Ok(()) };
        let hash = match hash {
            Some(hash) => Some(hash),
            None => cache.hash_of(slot, end)?,
        };
        let Some(hash) = hash else { return Ok(()) };
        cache.record(slot, &tag, &hash, end, || self.state().recorded(idx, &tag))
    }

    /// An object of chunk `idx` is gone: somebody replaced it since its list was read, or it is lost.
    async fn reread(self: &Arc<Self>, idx: u64) -> Result<()> {
        let attr = self.shared.meta.getattr(self.ino).await?;
        let before = {
            let mut state = self.state();
            let before = state.forget_rows(idx);
            let newer = state.attr.version != attr.version && !state.is_past(&attr);
            if newer && state.committing.is_none() {
                let ours = self.shared.meta.is_own(attr.version.session);
                state.rebase(attr, ours);
            }
            before
        };
        self.learn_rows(idx..idx + 1).await?;
        let state = self.state();
        if state.base == Base::Rows && state.list(idx) == before {
            let why = "an object of it is missing in the bucket";
            return Err(Error::with_source(Kind::Corrupt, format!("chunk {idx}"), why));
        }
        Ok(())
    }
}
