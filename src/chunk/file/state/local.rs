//! What of a chunk is known and on the local disk.

use std::ops::Range;

use super::{Chunk, Local, State};
use crate::chunk::cache::Tag;
use crate::chunk::extents;
use crate::chunk::ranges::Ranges;
use crate::types::Extent;

/// Chunks whose lists are kept although nothing of them is new.
const MAX_CLEAN: usize = 512;

impl State {
    /// The tag that chunk `idx` has with these rows.
    pub fn tag_with(&self, idx: u64, rows: &[Extent]) -> Tag {
        let clipped = extents::clip(&extents::canonical(rows), self.within(idx, self.floor()));
        let clipped = extents::without_ranges(clipped, &self.cleared_in(idx));
        match self.chunks.get(&idx) {
            Some(chunk) => extents::tag(&extents::overlay(&clipped, &chunk.pending)),
            None => extents::tag(&clipped),
        }
    }

    /// Takes a chunk's list in, or that there is none. `recorded`: the tag under which the index has the chunk.
    pub fn learn_rows(&mut self, idx: u64, rows: Option<&[Extent]>, recorded: Option<Tag>) {
        let before = extents::tag(&self.list(idx));
        let chunk = self.chunk(idx);
        if chunk.rows.is_some() {
            return;
        }
        if chunk.local == Local::Recorded {
            chunk.local_tag = Some(before);
        }
        chunk.rows = Some(extents::canonical(rows.unwrap_or_default()));
        chunk.absent = rows.is_none();
        let stored = chunk.dirty.is_empty() && chunk.upload.is_none();
        let own = own_bytes(chunk);
        let list = self.list(idx);
        let tag = extents::tag(&list);
        let chunk = self.chunk(idx);
        if chunk.local_tag.take() == Some(tag) {
            return;
        }
        chunk.local = if stored && !list.is_empty() && recorded == Some(tag) {
            Local::Recorded
        } else {
            Local::Ranges(own)
        };
    }

    /// Chunk `idx` is not the index's any more; `present`: its bytes were there.
    pub fn taken_over(&mut self, idx: u64, generation: u64, present: bool) {
        let end = if present { self.data_end(idx) } else { 0 };
        if let Some(chunk) = self.chunks.get_mut(&idx)
            && chunk.local == Local::Recorded
        {
            let end = if chunk.generation == generation { end } else { 0 };
            chunk.local = Local::Ranges(Ranges::of(0..end));
        }
    }

    /// Whether `range` of chunk `idx` is on the local disk and the index has no record of it.
    pub fn is_local(&self, idx: u64, range: Range<u32>) -> bool {
        let chunk = self.chunks.get(&idx);
        chunk.is_some_and(|c| matches!(&c.local, Local::Ranges(local) if local.covers(range)))
    }

    /// What the index had of chunk `idx` was evicted.
    pub fn evicted(&mut self, idx: u64) {
        if let Some(chunk) = self.chunks.get_mut(&idx)
            && chunk.local == Local::Recorded
        {
            chunk.local = Local::Ranges(Ranges::default());
        }
    }

    /// Forgets the committed list of chunk `idx`, which may have been replaced. Returns what it was.
    pub fn forget_rows(&mut self, idx: u64) -> Vec<Extent> {
        let list = self.list(idx);
        let id = self.next_id();
        let chunk = self.chunk(idx);
        chunk.rows = None;
        chunk.local_tag = None;
        chunk.local = Local::Ranges(own_bytes(chunk));
        chunk.generation = id;
        list
    }

    /// Bytes of chunk `idx` came: those that are still wanted, if they still mean what they meant at `generation`.
    pub fn wanted(&self, idx: u64, generation: u64, range: Range<u32>) -> Ranges {
        match self.chunks.get(&idx) {
            Some(Chunk { generation: now, local: Local::Ranges(local), .. }) if *now == generation => {
                local.missing(range)
            }
            _ => Ranges::default(),
        }
    }

    /// Bytes of chunk `idx` are on the local disk. `false`: they mean something else by now.
    pub fn filled(&mut self, idx: u64, generation: u64, range: Range<u32>) -> bool {
        match self.chunks.get_mut(&idx) {
            Some(Chunk { generation: now, local: Local::Ranges(local), .. }) if *now == generation => {
                local.insert(range);
                true
            }
            _ => false,
        }
    }

    /// If chunk `idx` is in the bucket, and on the local disk up to the end of its list: its tag, that end, and its hash
    /// if it is known. It can be had again: the index may have it, and the evictor. Not before the journal has done with it.
    pub fn to_record(&self, idx: u64) -> Option<(Tag, u32, Option<[u8; 32]>)> {
        if self.is_relied_on(idx) {
            return None;
        }
        let chunk = self.chunks.get(&idx).filter(|c| c.dirty.is_empty() && c.upload.is_none() && !c.stale)?;
        let list = self.list(idx);
        let end = extents::end(&list);
        let known = !self.needs_rows(idx) || Ranges::of_extents(&chunk.pending).covers(0..self.chunk_size);
        let bare = self.is_bare(idx, &list, &Ranges::default());
        match &chunk.local {
            Local::Ranges(local) if known && !bare && end > 0 && local.covers(0..end) => {
                let hash = chunk.hash.filter(|(len, _)| *len == end).map(|(_, hash)| hash);
                Some((extents::tag(&list), end, hash))
            }
            _ => None,
        }
    }

    /// The index has chunk `idx` under `tag`.
    pub fn recorded(&mut self, idx: u64, tag: &Tag) {
        if self.to_record(idx).is_some_and(|(now, ..)| now == *tag) {
            self.chunk(idx).local = Local::Recorded;
        }
    }

    /// Keeps memory bounded: lists of chunks that nothing is new in can be read again.
    pub fn forget_some(&mut self) {
        // What the journal still needs is to be handed to the index afterwards.
        let is_clean = |(idx, c): &(&u64, &Chunk)| c.is_clean() && !self.is_relied_on(**idx);
        let mut clean: Vec<(u64, u64)> =
            self.chunks.iter().filter(is_clean).map(|(idx, c)| (c.used, *idx)).collect();
        if clean.len() <= MAX_CLEAN {
            return;
        }
        clean.sort_unstable();
        for (_, idx) in &clean[..clean.len() - MAX_CLEAN / 2] {
            self.chunks.remove(idx);
        }
    }
}

/// What only this process knows of a chunk, as far as it is on the local disk.
pub(super) fn own_bytes(chunk: &Chunk) -> Ranges {
    let mut own = chunk.dirty.clone();
    own.extend(&chunk.uploading);
    if let Local::Ranges(local) = &chunk.local {
        for extent in &chunk.pending {
            own.extend(&local.within(extents::span(extent)));
        }
    }
    own
}
