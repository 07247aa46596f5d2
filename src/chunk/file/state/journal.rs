//! What is new in a file as an entry of the journal, and back.
//!
//! An entry says all that a commit over the version `base` would have to: the bytes that lie in the cache's file and in no
//! object, the objects that were uploaded and not committed, the size. Laid once more over a version that has some of it
//! already it changes nothing.

use std::collections::HashSet;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::local::own_bytes;
use super::{Chunk, Delta, Local, State};
use crate::chunk::extents;
use crate::chunk::ranges::{Ranges, Spans};
use crate::error::{Error, Kind, Result};
use crate::meta::{Attr, JournalMark};
use crate::types::{Extent, ObjectId, SessionId, Timestamp, Version};

/// The entry that a file has in the journal.
#[derive(Clone, Copy, Debug)]
pub(in crate::chunk::file) struct Journalled {
    pub mark: JournalMark,
    /// So many changes are in it.
    pub changes: u64,
    /// Since when something of the file waits.
    pub since: Timestamp,
}

/// What entries on the disk speak of: it stays as it is until they are replaced or gone, or a crash would find them pointing
/// at nothing.
#[derive(Debug, Default)]
pub(in crate::chunk::file) struct Relied {
    /// They are not deleted.
    objects: HashSet<ObjectId>,
    /// Their bytes in the cache's file are not given to the evictor, though an object has them by now.
    chunks: HashSet<u64>,
}

/// The text of an entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::chunk::file) struct Entry {
    /// In whose count the serial is: the session that wrote it.
    pub session: SessionId,
    pub serial: u64,
    pub chunk_size: u32,
    pub base: Version,
    pub size: u64,
    pub floor: u64,
    pub end: u64,
    pub mtime: Option<Timestamp>,
    pub chunks: Vec<EntryChunk>,
    /// Bytes of the version `base` that are holes; the chunks lie over them.
    #[serde(default)]
    pub cleared: Vec<(u64, u64)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::chunk::file) struct EntryChunk {
    pub idx: u64,
    /// In the cache's file, in no object.
    pub dirty: Vec<(u32, u32)>,
    pub pending: Vec<Extent>,
    pub copied: Vec<(u32, u32)>,
    pub stale: bool,
}

fn pairs(ranges: &Ranges) -> Vec<(u32, u32)> {
    ranges.iter().map(|r| (r.start, r.end)).collect()
}

fn ranges(pairs: &[(u32, u32)]) -> Ranges {
    let mut ranges = Ranges::default();
    pairs.iter().for_each(|(start, end)| ranges.insert(*start..*end));
    ranges
}

impl Entry {
    pub fn encode(&self) -> Result<Vec<u8>> {
        rmp_serde::to_vec(self)
            .map_err(|e| Error::with_source(Kind::Internal, "encoding an entry of the journal", e))
    }

    pub fn decode(text: &[u8]) -> Result<Self> {
        rmp_serde::from_slice(text)
            .map_err(|e| Error::with_source(Kind::Corrupt, "an entry of the journal", e))
    }

    /// Bytes that are in no object.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().flat_map(|c| &c.dirty).map(|(start, end)| u64::from(end - start)).sum()
    }

    fn objects(&self) -> impl Iterator<Item = ObjectId> + '_ {
        self.chunks.iter().flat_map(|c| &c.pending).map(|e| e.object)
    }

    /// The sessions whose objects or counts it names.
    pub fn sessions(&self) -> HashSet<SessionId> {
        self.objects().map(|object| object.session).chain([self.session]).collect()
    }

    /// The chunks that have some of those.
    pub fn dirty_chunks(&self) -> impl Iterator<Item = u64> + '_ {
        self.chunks.iter().filter(|c| !c.dirty.is_empty()).map(|c| c.idx)
    }

    /// One past the last of those bytes in the file.
    pub fn dirty_end(&self) -> u64 {
        let end = |c: &EntryChunk| {
            let last = c.dirty.iter().map(|(_, end)| *end).max()?;
            Some(c.idx * u64::from(self.chunk_size) + u64::from(last))
        };
        self.chunks.iter().filter_map(end).max().unwrap_or(0)
    }
}

impl State {
    /// All that is new, as an entry.
    pub fn entry(&self, mark: JournalMark) -> Entry {
        let before = self.committing.clone().unwrap_or_default();
        let mut chunks: Vec<EntryChunk> = self
            .chunks
            .iter()
            .filter(|(_, c)| !c.dirty.is_empty() || !c.uploading.is_empty() || !c.pending.is_empty())
            .map(|(&idx, c)| {
                let mut dirty = c.dirty.clone();
                dirty.extend(&c.uploading);
                let (pending, copied) = (c.pending.clone(), pairs(&c.copied));
                EntryChunk { idx, dirty: pairs(&dirty), pending, copied, stale: c.stale }
            })
            .collect();
        chunks.sort_unstable_by_key(|c| c.idx);
        let mut cleared = before.cleared;
        cleared.truncate(self.delta.floor);
        cleared.extend(&self.delta.cleared);
        Entry {
            session: mark.session,
            serial: mark.serial,
            chunk_size: self.chunk_size,
            base: self.attr.version,
            size: self.size,
            floor: self.delta.floor.min(before.floor),
            end: self.delta.end.max(before.end.min(self.delta.floor)),
            mtime: self.delta.mtime.or(before.mtime),
            chunks,
            cleared: cleared.iter().map(|r| (r.start, r.end)).collect(),
        }
    }

    /// An entry is about to be written, in the place of the one before: a crash may find either.
    pub fn rely_also_on(&mut self, entry: &Entry) {
        self.relied.chunks.extend(entry.dirty_chunks());
        self.relied.objects.extend(entry.objects());
    }

    /// The entry is written, and no other is there; or none, any more. Returns the chunks that no entry needs from now on.
    pub fn rely_only_on(&mut self, entry: Option<&Entry>) -> Vec<u64> {
        let before = std::mem::take(&mut self.relied);
        if let Some(entry) = entry {
            self.rely_also_on(entry);
        }
        before.chunks.into_iter().filter(|idx| !self.relied.chunks.contains(idx)).collect()
    }

    /// Whether an entry needs the bytes of chunk `idx` in the cache's file.
    pub fn is_relied_on(&self, idx: u64) -> bool {
        self.relied.chunks.contains(&idx)
    }

    /// Whether an entry needs bytes in the cache's file.
    pub fn relies_on_cache(&self) -> bool {
        !self.relied.chunks.is_empty()
    }

    /// Takes the objects that may be deleted.
    pub fn take_discarded(&mut self) -> Vec<ObjectId> {
        let relied = &self.relied.objects;
        self.discarded.extract_if(.., |object| !relied.contains(object)).collect()
    }

    /// What an entry says, over what the file is now: the version that it was made for, or a later one.
    pub fn restored(attr: Attr, entry: &Entry, changes: Journalled) -> Self {
        let same = attr.version == entry.base;
        let committed_size = attr.size;
        let mut state = State::new(attr, entry.chunk_size);
        let mut cleared = Spans::default();
        entry.cleared.iter().for_each(|(start, end)| cleared.insert(*start..*end));
        state.delta = Delta { floor: entry.floor, end: entry.end, cleared, mtime: entry.mtime };
        state.changes = changes.changes;
        state.journalled = Some(changes);
        state.rely_also_on(entry);
        for saved in &entry.chunks {
            let chunk = state.chunk(saved.idx);
            chunk.dirty = ranges(&saved.dirty);
            chunk.pending = extents::canonical(&saved.pending);
            chunk.copied = ranges(&saved.copied);
            // The objects may have been committed and replaced since: they must not be named again.
            chunk.stale = saved.stale || (!same && !saved.pending.is_empty());
        }
        // The run that wrote it may have committed some of them, or have had a commit on its way when it ended.
        state.offered.extend(entry.objects());
        state.uncertain.extend(entry.objects());
        if !same {
            state.drop_copies();
        }
        for chunk in state.chunks.values_mut() {
            chunk.local = Local::Ranges(chunk.dirty.clone());
        }
        state.size = match same || entry.floor != u64::MAX {
            true => entry.size,
            false => committed_size.max(entry.end).max(state.own_end()),
        };
        state
    }

    /// The entry that a commit of the first `upto` changes contains, and with it all before: the last that may be there.
    pub fn mark(&self, upto: u64) -> Option<JournalMark> {
        let is_later = |a: &Journalled| self.journalled.is_none_or(|j| j.mark.session == a.mark.session);
        let contained = |j: &Journalled| j.changes <= upto;
        let last = self.attempted.filter(is_later).filter(contained);
        last.or(self.journalled.filter(contained)).map(|j| j.mark)
    }

    /// Whether bytes that are in no object lie in chunks from `near` on.
    pub fn has_far(&self, near: u64) -> bool {
        let far = |(idx, c): (&u64, &Chunk)| *idx >= near && !(c.dirty.is_empty() && c.uploading.is_empty());
        self.chunks.iter().any(far)
    }

    /// The bytes of the file that are in no object; each range is of one chunk.
    pub fn unstored(&self) -> Vec<Range<u64>> {
        let mut all = Vec::new();
        for (idx, chunk) in &self.chunks {
            let mut new = chunk.dirty.clone();
            new.extend(&chunk.uploading);
            let start = idx * u64::from(self.chunk_size);
            all.extend(new.iter().map(|r| start + u64::from(r.start)..start + u64::from(r.end)));
        }
        all.sort_unstable_by_key(|r| r.start);
        all
    }

    /// The content left the disk that has failed; only what is in no object was taken along, without `lost`.
    pub fn moved(&mut self, lost: &[Range<u64>]) {
        let size = u64::from(self.chunk_size);
        self.kept.clear();
        for range in lost {
            self.lost = true;
            for idx in range.start / size..range.end.div_ceil(size) {
                let part = self.within(idx, range.start)..self.within(idx, range.end);
                if let Some(chunk) = self.chunks.get_mut(&idx) {
                    chunk.dirty.remove(part.clone());
                    chunk.uploading.remove(part);
                }
            }
        }
        // What is in memory no entry speaks of.
        self.relied.chunks.clear();
        let id = self.next_id();
        for chunk in self.chunks.values_mut() {
            chunk.generation = id;
            chunk.local_tag = None;
            chunk.hash = None;
            // What is pending is in the bucket.
            let pending = std::mem::take(&mut chunk.pending);
            chunk.local = Local::Ranges(own_bytes(chunk));
            chunk.pending = pending;
        }
    }
}
