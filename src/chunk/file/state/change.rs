//! What is new, and its way into the bucket.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::{Base, Chunk, Local, State};
use crate::chunk::extents::{self, MAX_EXTENTS};
use crate::chunk::file::kept::Run;
use crate::chunk::ranges::Ranges;
use crate::types::{Extent, ObjectId, SessionId, Timestamp};

/// What is to be done to bring a chunk's new bytes into the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::chunk::file) enum Upload {
    /// There is nothing new.
    Nothing,
    /// Somebody is at it.
    Busy,
    /// The list must be read first.
    NeedRows,
    /// It would have too many extents: the whole of it must come to the local disk first.
    NeedWhole,
    /// These ranges, one object each. The first byte of the chunk to `whole` makes all of it, if that is one of them.
    Ranges { id: u64, ranges: Vec<Range<u32>>, whole: u32 },
}

impl State {
    /// Writes of `range` in the file are on the local disk. Returns the chunks that this made complete.
    pub fn wrote(&mut self, range: Range<u64>, now: Timestamp) -> Vec<u64> {
        let size = u64::from(self.chunk_size);
        let whole = 0..self.chunk_size;
        let mut complete = Vec::new();
        for idx in range.start / size..range.end.div_ceil(size) {
            let part = self.within(idx, range.start)..self.within(idx, range.end);
            let chunk = self.chunk(idx);
            let before = chunk.dirty.covers(whole.clone());
            chunk.dirty.insert(part.clone());
            chunk.copied.remove(part.clone());
            if !before && chunk.dirty.covers(whole.clone()) {
                complete.push(idx);
            }
            chunk.hash = None;
            match &mut chunk.local {
                Local::Ranges(local) => local.insert(part),
                // The write has cleared the record.
                Local::Recorded => chunk.local = Local::Ranges(Ranges::of(part)),
            }
        }
        self.size = self.size.max(range.end);
        self.delta.end = self.delta.end.max(range.end);
        self.delta.mtime = Some(now);
        self.changes += 1;
        complete
    }

    /// Keeps the bytes of the write at `offset` that [`State::wrote`] was just told of, while there is room for them.
    pub fn keep(&mut self, offset: u64, data: &Bytes, room: &Arc<Semaphore>) {
        self.kept.count(self.changes);
        let size = u64::from(self.chunk_size);
        let end = offset + data.len() as u64;
        for idx in offset / size..end.div_ceil(size) {
            let from = (idx * size).max(offset);
            let piece = data.slice((from - offset) as usize..(((idx + 1) * size).min(end) - offset) as usize);
            self.kept.wrote(idx, self.within(idx, from), piece, room);
            // All that is kept must be new and in no object.
            let new = self.chunks.get(&idx).is_some_and(|c| c.dirty.covers(0..self.kept.end(idx)));
            if !new {
                self.kept.forget(idx);
            }
        }
    }

    /// The bytes of `range` of chunk `idx`, if they are kept.
    pub fn take_kept(&mut self, idx: u64, range: &Range<u32>) -> Option<Run> {
        self.kept.take(self.changes, idx, range)
    }

    /// Bytes that a failed write may have overwritten: what of them can be had again is not local any more.
    pub fn spoiled(&mut self, range: Range<u64>) {
        self.kept.clear();
        let size = u64::from(self.chunk_size);
        for idx in range.start / size..range.end.div_ceil(size) {
            let part = self.within(idx, range.start)..self.within(idx, range.end);
            let chunk = self.chunk(idx);
            chunk.hash = None;
            let mut kept = chunk.dirty.within(part.clone());
            kept.extend(&chunk.uploading.within(part.clone()));
            if let Local::Ranges(local) = &mut chunk.local {
                local.remove(part);
                local.extend(&kept);
            }
        }
    }

    /// The file's size is changed. Chunks in the index from the new end on must have been taken out of it.
    pub fn resize(&mut self, size: u64, now: Timestamp) {
        if size < self.size {
            self.delta.floor = self.delta.floor.min(size);
            self.delta.cleared.truncate(size);
            self.delta.end = self.delta.end.min(size);
            let chunk_size = u64::from(self.chunk_size);
            let cut = size / chunk_size;
            let offset = (size % chunk_size) as u32;
            let beyond: Vec<u64> =
                self.chunks.keys().copied().filter(|&i| i > cut || (i == cut && offset == 0)).collect();
            for idx in beyond {
                if let Some(chunk) = self.chunks.remove(&idx).filter(|c| !c.stale) {
                    self.discard(&chunk.pending, &[]);
                }
            }
            let id = self.next_id();
            if let Some(chunk) = self.chunks.get_mut(&cut) {
                chunk.generation = id;
                chunk.dirty.truncate(offset);
                chunk.uploading.truncate(offset);
                chunk.copied.truncate(offset);
                chunk.hash = chunk.hash.filter(|(len, _)| *len <= offset);
                if let Local::Ranges(local) = &mut chunk.local {
                    local.truncate(offset);
                }
                let kept = extents::clip(&chunk.pending, offset);
                let before = std::mem::replace(&mut chunk.pending, kept.clone());
                if !chunk.stale {
                    self.discard(&before, &kept);
                }
            }
        } else {
            self.delta.end = self.delta.end.max(size);
        }
        self.size = size;
        self.delta.mtime = Some(now);
        self.changes += 1;
    }

    /// Notes the objects that only `before` uses, if nobody else can know them.
    pub(super) fn discard(&mut self, before: &[Extent], after: &[Extent]) {
        let gone = extents::dropped(before, after).into_iter().filter(|o| !self.offered.contains(o));
        self.discarded.extend(gone);
    }

    /// Takes the new bytes of a chunk for upload.
    pub fn begin_upload(&mut self, idx: u64) -> Upload {
        let needs_rows = self.needs_rows(idx);
        let list = self.list(idx);
        let whole = self.data_end(idx);
        let dirty = self.chunks.get(&idx).map(|c| c.dirty.clone()).unwrap_or_default();
        // Bytes that lie in a row or a blob must be written with the rest: rows name objects only.
        let bare = self.is_bare(idx, &list, &dirty);
        let id = self.next_id();
        let chunk = self.chunk(idx);
        if chunk.upload.is_some() {
            return Upload::Busy;
        }
        let all = chunk.dirty.covers(0..whole);
        let stale = chunk.stale && !chunk.pending.is_empty();
        if chunk.dirty.is_empty()
            && !bare
            && !stale
            && (chunk.pending.is_empty() || list.len() <= MAX_EXTENTS)
        {
            return Upload::Nothing;
        }
        if needs_rows && !all {
            return Upload::NeedRows;
        }
        let stand_in = |r: Range<u32>| Extent {
            start: r.start,
            len: r.end - r.start,
            object: ObjectId { session: SessionId(u64::MAX), seq: u64::from(r.start) },
            object_offset: 0,
            sum: None,
        };
        let then: Vec<Extent> = chunk.dirty.iter().map(stand_in).collect();
        if !all && (bare || stale || extents::overlay(&list, &then).len() > MAX_EXTENTS) {
            return Upload::NeedWhole;
        }
        chunk.uploading = std::mem::take(&mut chunk.dirty);
        chunk.upload = Some(id);
        Upload::Ranges { id, ranges: chunk.uploading.iter().collect(), whole }
    }

    /// All of the chunk up to its last byte of data is on the local disk and shall be one object.
    pub fn rewrite(&mut self, idx: u64) {
        let end = self.data_end(idx);
        if let Some(chunk) = self.chunks.get_mut(&idx)
            && let Local::Ranges(local) = &chunk.local
            && local.covers(0..end)
        {
            let mut new = Ranges::of_extents(&chunk.pending);
            new.extend(&chunk.dirty);
            new.extend(&chunk.uploading);
            chunk.copied.extend(&new.missing(0..end));
            chunk.dirty.insert(0..end);
            // Others wrote some of it.
            self.kept.forget(idx);
        }
    }

    /// The upload ended well. Bytes that were cut off meanwhile do not count.
    pub fn landed(&mut self, idx: u64, id: u64, objects: &[Extent], hash: Option<(u32, [u8; 32])>) {
        let all: Vec<ObjectId> = objects.iter().map(|e| e.object).collect();
        let Some(chunk) = self.chunks.get_mut(&idx).filter(|c| c.upload == Some(id)) else {
            self.discarded.extend(all);
            return;
        };
        chunk.upload = None;
        let live = std::mem::take(&mut chunk.uploading);
        let alive = |e: &Extent| live.iter().filter_map(|r| extents::cut(e, &r)).collect::<Vec<_>>();
        let landed: Vec<Extent> = objects.iter().flat_map(alive).collect();
        let before = chunk.pending.clone();
        chunk.pending = extents::overlay(&before, &landed);
        // Written anew, if it had to be; the metadata may still name what was there before.
        let was_stale = chunk.stale;
        let rest = || chunk.pending.iter().any(|e| before.iter().any(|b| b.object == e.object));
        chunk.stale = was_stale && rest();
        if chunk.dirty.is_empty() {
            chunk.hash = hash.filter(|(len, _)| live.covers(0..*len));
        }
        let after = chunk.pending.clone();
        self.discarded.extend(extents::dropped(objects, &after));
        if !was_stale {
            self.discard(&before, &after);
        }
    }

    /// The upload failed: what it was to bring is new again.
    pub fn failed(&mut self, idx: u64, id: u64, objects: &[Extent]) {
        self.discarded.extend(objects.iter().map(|e| e.object));
        if let Some(chunk) = self.chunks.get_mut(&idx).filter(|c| c.upload == Some(id)) {
            chunk.upload = None;
            let back = std::mem::take(&mut chunk.uploading);
            chunk.dirty.extend(&back);
        }
    }

    /// Chunks that have something which is not in the bucket, or that cannot be committed as they are.
    pub fn to_upload(&self) -> Vec<u64> {
        let wanted = |(idx, c): (&u64, &Chunk)| {
            let new = !c.dirty.is_empty() || c.upload.is_some();
            // Bytes that were copied, so that all of it could be one object, may have been dropped again.
            let again = !c.pending.is_empty() && (c.stale || self.must_store(*idx));
            (new || again).then_some(*idx)
        };
        let mut chunks: Vec<u64> = self.chunks.iter().filter_map(wanted).collect();
        chunks.sort_unstable();
        chunks
    }

    /// Whether chunk `idx` has bytes that no object has.
    pub fn is_unstored(&self, idx: u64) -> bool {
        let new = self.chunks.get(&idx).is_some_and(|c| !c.dirty.is_empty() || c.upload.is_some());
        new || self.must_store(idx)
    }

    /// Whether chunk `idx` cannot be committed as it is: bytes of it lie in a blob or a row, or its list is too long.
    pub fn must_store(&self, idx: u64) -> bool {
        let list = self.list(idx);
        let pending = self.chunks.get(&idx).is_some_and(|c| !c.pending.is_empty());
        let stale = self.chunks.get(&idx).is_some_and(|c| c.stale);
        (pending && (stale || list.len() > MAX_EXTENTS)) || self.is_bare(idx, &list, &Ranges::default())
    }

    /// Chunks whose bytes lie in the file's row or in a blob and must become objects with the next commit, though
    /// nothing may be new in them: those of a row, and those that a hole in the blob begins or ends in.
    pub fn bare_chunks(&self) -> Vec<u64> {
        match &self.base {
            Base::Inline(bytes) => (0..self.floor().min(bytes.len() as u64).min(1)).collect(),
            Base::Rows if self.under.is_some() => {
                let cut = self.floor() / u64::from(self.chunk_size);
                let holes = self.edges().into_iter();
                // Where the file was cut nothing changes but the blob's length.
                let halved = |idx: &u64| *idx != cut || !self.cleared_in(*idx).is_empty();
                holes.filter(|idx| halved(idx) && !self.other_base(*idx).is_empty()).collect()
            }
            Base::Rows => Vec::new(),
        }
    }
}
