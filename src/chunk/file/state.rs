//! What is known of a file's data: which bytes lie where, what is new, what is on its way. Bookkeeping only: no I/O, no
//! waiting, always held for short.
//!
//! A byte of the file is, in this order: what was written here and is on the local disk (`dirty`, part of `local`); what
//! was uploaded and not committed (`pending`); what the metadata has (`base`), unless the file was cut since to `floor` or
//! less; else zero.

use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;

use crate::chunk::cache::Tag;
use crate::chunk::extents::{self, MAX_EXTENTS, Piece};
use crate::chunk::ranges::Ranges;
use crate::meta::{Attr, Content};
use crate::types::{BlobId, Extent, ObjectId, SessionId, Timestamp};

/// Chunks whose lists are kept although nothing of them is new.
const MAX_CLEAN: usize = 512;

/// Where committed bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// Chunk rows; chunks at or beyond the committed size have none.
    Rows,
    /// The first bytes; zeros behind.
    Inline(Bytes),
    /// All of a blob.
    Blob(BlobId),
}

/// What the local disk has of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Local {
    /// The cache's index has it, under the tag of its list. It may be evicted at any time: the index is asked.
    Recorded,
    /// These bytes; the index has no record. They stay while the content is in use.
    Ranges(Ranges),
}

#[derive(Clone, Debug)]
pub(super) struct Chunk {
    /// The committed list as it was read, canonical. `None`: not read yet.
    pub rows: Option<Vec<Extent>>,
    /// Uploaded, not committed. Canonical.
    pub pending: Vec<Extent>,
    /// Not uploaded. Part of `local`.
    pub dirty: Ranges,
    /// On its way to the bucket under `upload`.
    pub uploading: Ranges,
    pub upload: Option<u64>,
    pub local: Local,
    /// The tag of the list that `local` was made for, when `rows` had to be forgotten.
    pub local_tag: Option<Tag>,
    /// BLAKE3 of so many first bytes, if they did not change since.
    pub hash: Option<(u32, [u8; 32])>,
    /// Raised when bytes mean something else than before, other than by a write.
    pub generation: u64,
    used: u64,
}

impl Chunk {
    fn new(generation: u64) -> Self {
        Chunk {
            rows: None,
            pending: Vec::new(),
            dirty: Ranges::default(),
            uploading: Ranges::default(),
            upload: None,
            local: Local::Ranges(Ranges::default()),
            local_tag: None,
            hash: None,
            generation,
            used: 0,
        }
    }

    /// Whether it can be forgotten and read again.
    fn is_clean(&self) -> bool {
        self.pending.is_empty() && self.dirty.is_empty() && self.uploading.is_empty() && self.upload.is_none()
    }
}

/// What changed since the last commit, apart from bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Delta {
    /// The smallest size meanwhile: committed bytes from here on are gone. `u64::MAX`: never cut.
    pub floor: u64,
    /// One past the last byte written or added.
    pub end: u64,
    pub mtime: Option<Timestamp>,
}

impl Default for Delta {
    fn default() -> Self {
        Delta { floor: u64::MAX, end: 0, mtime: None }
    }
}

/// A part of a chunk, as a reader finds it. Offsets are in the chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// On the local disk, for as long as the content is in use.
    Local(Range<u32>),
    /// On the local disk, if the index still says so.
    Recorded(Range<u32>),
    /// In the bucket.
    Fetch(Extent),
    /// In the blob that the file began as.
    Blob(BlobId, Range<u32>),
    Inline(Bytes, Range<u32>),
    Zeros(Range<u32>),
}

impl Part {
    pub fn span(&self) -> Range<u32> {
        match self {
            Part::Local(r) | Part::Recorded(r) | Part::Zeros(r) | Part::Blob(_, r) | Part::Inline(_, r) => {
                r.clone()
            }
            Part::Fetch(e) => extents::span(e),
        }
    }
}

/// What is to be done to bring a chunk's new bytes into the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Upload {
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

/// Rows of one commit.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub size: u64,
    pub chunks: Vec<(u64, Vec<Extent>)>,
    /// What of `pending` goes with it.
    pub sent: Vec<(u64, Vec<Extent>)>,
    pub kind: Step,
}

/// How far a commit goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The file gets shorter on the way to where it was cut.
    Cut,
    /// Some of what was written.
    Some,
    /// All that is left.
    Last,
}

#[derive(Debug)]
pub(super) struct State {
    pub chunk_size: u32,
    /// What the metadata said last.
    pub attr: Attr,
    pub base: Base,
    pub size: u64,
    pub delta: Delta,
    /// The delta of the commit that is on its way.
    pub committing: Option<Delta>,
    /// Counts changes; `flushed` of them are committed.
    pub changes: u64,
    pub flushed: u64,
    pub chunks: HashMap<u64, Chunk>,
    /// Objects that no commit ever named and nothing refers to any more.
    pub discarded: Vec<ObjectId>,
    /// Objects that nothing refers to any more but perhaps the commit that is on its way.
    replaced: Vec<ObjectId>,
    /// A commit may or may not have been applied: its objects may be referred to.
    pub uncertain: bool,
    clock: u64,
    last_id: u64,
}

fn base_of(attr: &Attr) -> Base {
    match &attr.content {
        Content::Inline(bytes) => Base::Inline(bytes.clone()),
        Content::Blob(id) => Base::Blob(*id),
        Content::None | Content::Extents | Content::Symlink(_) => Base::Rows,
    }
}

impl State {
    pub fn new(attr: Attr, chunk_size: u32) -> Self {
        State {
            chunk_size,
            base: base_of(&attr),
            size: attr.size,
            attr,
            delta: Delta::default(),
            committing: None,
            changes: 0,
            flushed: 0,
            chunks: HashMap::new(),
            discarded: Vec::new(),
            replaced: Vec::new(),
            uncertain: false,
            clock: 0,
            last_id: 0,
        }
    }

    pub fn is_modified(&self) -> bool {
        self.changes != self.flushed
    }

    /// Committed bytes from here on are gone.
    pub fn floor(&self) -> u64 {
        let floor = self.delta.floor.min(self.committing.as_ref().map_or(u64::MAX, |d| d.floor));
        floor.min(self.attr.size)
    }

    /// `offset` within chunk `idx`, cut to it.
    pub fn within(&self, idx: u64, offset: u64) -> u32 {
        let size = u64::from(self.chunk_size);
        // Below the chunk size, which is a u32.
        offset.saturating_sub(idx * size).min(size) as u32
    }

    pub fn chunk(&mut self, idx: u64) -> &mut Chunk {
        self.clock += 1;
        let (clock, id) = (self.clock, &mut self.last_id);
        let chunk = self.chunks.entry(idx).or_insert_with(|| {
            *id += 1;
            Chunk::new(*id)
        });
        chunk.used = clock;
        chunk
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Whether the list of chunk `idx` must be read before anything can be said of its committed bytes.
    pub fn needs_rows(&self, idx: u64) -> bool {
        self.base == Base::Rows
            && self.within(idx, self.floor()) > 0
            && self.chunks.get(&idx).is_none_or(|c| c.rows.is_none())
    }

    /// The committed list, cut where the file was. Empty if it was not read.
    fn committed(&self, idx: u64) -> Vec<Extent> {
        match self.chunks.get(&idx).and_then(|c| c.rows.as_ref()) {
            Some(rows) if self.base == Base::Rows => extents::clip(rows, self.within(idx, self.floor())),
            _ => Vec::new(),
        }
    }

    /// The list that a commit would write now, were nothing dirty.
    pub fn list(&self, idx: u64) -> Vec<Extent> {
        let committed = self.committed(idx);
        match self.chunks.get(&idx) {
            Some(chunk) if !chunk.pending.is_empty() => extents::overlay(&committed, &chunk.pending),
            _ => committed,
        }
    }

    /// The bytes of chunk `idx` that lie in a row or a blob rather than in objects.
    fn other_base(&self, idx: u64) -> Range<u32> {
        let end = match &self.base {
            Base::Rows => 0,
            Base::Inline(bytes) => self.floor().min(bytes.len() as u64),
            Base::Blob(_) => self.floor(),
        };
        0..self.within(idx, end)
    }

    /// One past the last byte of chunk `idx` that is not for certain zero.
    pub fn data_end(&self, idx: u64) -> u32 {
        let dirty = self.chunks.get(&idx).map_or(0, |c| c.dirty.end().max(c.uploading.end()));
        extents::end(&self.list(idx)).max(self.other_base(idx).end).max(dirty)
    }

    /// What `range` of chunk `idx` is made of. The rows must have been read.
    pub fn parts(&self, idx: u64, range: Range<u32>) -> Vec<Part> {
        let list = self.list(idx);
        let local = match self.chunks.get(&idx).map(|c| &c.local) {
            Some(Local::Recorded) => {
                let end = extents::end(&list).clamp(range.start, range.end);
                let both = [Part::Recorded(range.start..end), Part::Zeros(end..range.end)];
                return both.into_iter().filter(|p| !p.span().is_empty()).collect();
            }
            Some(Local::Ranges(ranges)) => ranges.within(range.clone()),
            None => Ranges::default(),
        };
        let mut parts: Vec<Part> = local.iter().map(Part::Local).collect();
        for gap in local.missing(range).iter() {
            for piece in extents::pieces(&list, gap) {
                match piece {
                    Piece::Data(extent) => parts.push(Part::Fetch(extent)),
                    Piece::Hole(hole) => self.hole(idx, hole, &mut parts),
                }
            }
        }
        parts.sort_unstable_by_key(|p| p.span().start);
        parts
    }

    fn hole(&self, idx: u64, hole: Range<u32>, parts: &mut Vec<Part>) {
        let end = self.other_base(idx).end.clamp(hole.start, hole.end);
        if hole.start < end {
            parts.push(match &self.base {
                Base::Inline(bytes) => Part::Inline(bytes.clone(), hole.start..end),
                Base::Blob(id) => Part::Blob(*id, hole.start..end),
                Base::Rows => Part::Zeros(hole.start..end),
            });
        }
        if end < hole.end {
            parts.push(Part::Zeros(end..hole.end));
        }
    }

    /// The tag that chunk `idx` has with these rows.
    pub fn tag_with(&self, idx: u64, rows: &[Extent]) -> Tag {
        let clipped = extents::clip(&extents::canonical(rows), self.within(idx, self.floor()));
        match self.chunks.get(&idx) {
            Some(chunk) => extents::tag(&extents::overlay(&clipped, &chunk.pending)),
            None => extents::tag(&clipped),
        }
    }

    /// Takes a chunk's list in. `recorded`: the tag under which the index has the chunk.
    pub fn learn_rows(&mut self, idx: u64, rows: &[Extent], recorded: Option<Tag>) {
        let chunk = self.chunk(idx);
        if chunk.rows.is_some() {
            return;
        }
        chunk.rows = Some(extents::canonical(rows));
        let (own, clean) = (own_bytes(chunk), chunk.is_clean());
        let list = self.list(idx);
        let tag = extents::tag(&list);
        let chunk = self.chunk(idx);
        if chunk.local_tag.take() == Some(tag) {
            return;
        }
        chunk.local = if clean && !list.is_empty() && recorded == Some(tag) {
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

    /// If chunk `idx` is committed, and on the local disk up to the end of its list: its tag, that end, and its hash if it
    /// is known.
    pub fn to_record(&self, idx: u64) -> Option<(Tag, u32, Option<[u8; 32]>)> {
        let chunk = self.chunks.get(&idx).filter(|c| c.is_clean() && c.rows.is_some())?;
        let list = self.list(idx);
        let end = extents::end(&list);
        match &chunk.local {
            Local::Ranges(local) if self.base == Base::Rows && end > 0 && local.covers(0..end) => {
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

    /// Writes of `range` in the file are on the local disk.
    pub fn wrote(&mut self, range: Range<u64>, now: Timestamp) {
        let size = u64::from(self.chunk_size);
        for idx in range.start / size..range.end.div_ceil(size) {
            let part = self.within(idx, range.start)..self.within(idx, range.end);
            let chunk = self.chunk(idx);
            chunk.dirty.insert(part.clone());
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
    }

    /// Bytes that a failed write may have overwritten: what of them can be had again is not local any more.
    pub fn spoiled(&mut self, range: Range<u64>) {
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
            self.delta.end = self.delta.end.min(size);
            let chunk_size = u64::from(self.chunk_size);
            let cut = size / chunk_size;
            let offset = (size % chunk_size) as u32;
            let beyond: Vec<u64> =
                self.chunks.keys().copied().filter(|&i| i > cut || (i == cut && offset == 0)).collect();
            for idx in beyond {
                if let Some(chunk) = self.chunks.remove(&idx) {
                    self.discard(&chunk.pending, &[]);
                }
            }
            let id = self.next_id();
            if let Some(chunk) = self.chunks.get_mut(&cut) {
                chunk.generation = id;
                chunk.dirty.truncate(offset);
                chunk.uploading.truncate(offset);
                chunk.hash = chunk.hash.filter(|(len, _)| *len <= offset);
                if let Local::Ranges(local) = &mut chunk.local {
                    local.truncate(offset);
                }
                let kept = extents::clip(&chunk.pending, offset);
                let before = std::mem::replace(&mut chunk.pending, kept.clone());
                self.discard(&before, &kept);
            }
        } else {
            self.delta.end = self.delta.end.max(size);
        }
        self.size = size;
        self.delta.mtime = Some(now);
        self.changes += 1;
    }

    /// Notes the objects that only `before` uses, if nobody else can know them.
    fn discard(&mut self, before: &[Extent], after: &[Extent]) {
        if self.uncertain {
            return;
        }
        let to = if self.committing.is_some() { &mut self.replaced } else { &mut self.discarded };
        to.extend(extents::dropped(before, after));
    }

    /// Takes the new bytes of a chunk for upload.
    pub fn begin_upload(&mut self, idx: u64) -> Upload {
        let needs_rows = self.needs_rows(idx);
        let list = self.list(idx);
        let whole = self.data_end(idx);
        let other = self.other_base(idx);
        let id = self.next_id();
        let chunk = self.chunk(idx);
        if chunk.upload.is_some() {
            return Upload::Busy;
        }
        let all = chunk.dirty.covers(0..whole);
        // Bytes that lie in a row or a blob must be written with the rest: rows name objects only.
        let bare = extents::pieces(&list, other)
            .iter()
            .any(|p| matches!(p, Piece::Hole(h) if !chunk.dirty.covers(h.clone())));
        if chunk.dirty.is_empty() && !bare && (chunk.pending.is_empty() || list.len() <= MAX_EXTENTS) {
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
        };
        let then: Vec<Extent> = chunk.dirty.iter().map(stand_in).collect();
        if !all && (bare || extents::overlay(&list, &then).len() > MAX_EXTENTS) {
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
            chunk.dirty.insert(0..end);
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
        let landed: Vec<Extent> = objects
            .iter()
            .flat_map(|e| {
                live.within(extents::span(e))
                    .iter()
                    .map(|r| Extent {
                        start: r.start,
                        len: r.end - r.start,
                        object: e.object,
                        object_offset: e.object_offset + (r.start - e.start),
                    })
                    .collect::<Vec<_>>()
            })
            .collect();
        let before = chunk.pending.clone();
        chunk.pending = extents::overlay(&before, &landed);
        if chunk.dirty.is_empty() {
            chunk.hash = hash.filter(|(len, _)| live.covers(0..*len));
        }
        let after = chunk.pending.clone();
        self.discarded.extend(extents::dropped(objects, &after));
        self.discard(&before, &after);
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

    /// Chunks that have something which is not in the bucket, or too many extents to be committed.
    pub fn to_upload(&self) -> Vec<u64> {
        let wanted = |(idx, c): (&u64, &Chunk)| {
            let new = !c.dirty.is_empty() || c.upload.is_some();
            (new || (!c.pending.is_empty() && self.list(*idx).len() > MAX_EXTENTS)).then_some(*idx)
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
        let bare =
            || extents::pieces(&list, self.other_base(idx)).iter().any(|p| matches!(p, Piece::Hole(_)));
        (pending && list.len() > MAX_EXTENTS) || bare()
    }

    /// Chunks of a blob or of inline bytes that are not in objects yet though they must be.
    pub fn bare_chunks(&self) -> Range<u64> {
        match &self.base {
            Base::Rows => 0..0,
            Base::Inline(bytes) => 0..self.floor().min(bytes.len() as u64).min(1),
            Base::Blob(_) => 0..self.floor().div_ceil(u64::from(self.chunk_size)),
        }
    }

    /// Chunks whose lists must be read before [`State::plan`].
    pub fn rows_to_plan(&self) -> Vec<u64> {
        let floor = self.floor();
        let size = u64::from(self.chunk_size);
        let cut = (floor < self.attr.size && !floor.is_multiple_of(size)).then_some(floor / size);
        let pending = self.chunks.iter().filter(|(_, c)| !c.pending.is_empty()).map(|(idx, _)| *idx);
        pending.chain(cut).filter(|idx| self.needs_rows(*idx)).collect()
    }

    /// The next commit towards what was uploaded. Of a large change, at most `limit` rows at a time: first the file is
    /// cut, then it grows, so that half-way it never has rows beyond its end. What began as a blob or inline becomes rows in
    /// one step. `size` is the file's size when the flush began: what was added since may not be uploaded yet.
    pub fn plan(&self, limit: usize, size: u64) -> Plan {
        let unit = u64::from(self.chunk_size);
        let floor = self.floor();
        let has_pending = |idx: &u64| self.chunks.get(idx).is_some_and(|c| !c.pending.is_empty());
        let mut pending: Vec<u64> = self.chunks.keys().copied().filter(|idx| has_pending(idx)).collect();
        pending.sort_unstable();
        // Rows of what was cut off, and the one that the cut went through.
        let (mut gone, mut cut) = (0..0, None);
        if self.base == Base::Rows && floor < self.attr.size {
            gone = floor.div_ceil(unit)..self.attr.size.div_ceil(unit);
            cut = (!floor.is_multiple_of(unit)).then_some(floor / unit);
        }
        let limit = if self.base == Base::Rows { limit as u64 } else { u64::MAX };
        if gone.start < gone.end && (gone.end - gone.start) + pending.len() as u64 > limit {
            let keep = gone.start.max(gone.end.saturating_sub(limit));
            let mut chunks: Vec<_> = (keep..gone.end).map(|idx| (idx, Vec::new())).collect();
            let to_floor = keep == gone.start;
            chunks.extend(cut.filter(|_| to_floor).map(|idx| (idx, self.committed(idx))));
            let size = if to_floor { floor } else { keep * unit };
            return Plan { size, chunks, sent: Vec::new(), kind: Step::Cut };
        }
        let last = pending.len() as u64 <= limit;
        pending.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let end_of = |idx: &u64| idx * unit + u64::from(extents::end(&self.list(*idx)));
        let reached = pending.last().map_or(0, end_of);
        let all = self.chunks.values().all(|c| c.dirty.is_empty() && c.uploading.is_empty());
        let size = match (last, all) {
            (true, true) => self.size,
            (true, false) => self.size.min(size.max(reached).max(floor)),
            (false, _) => self.size.min(floor.max(reached)),
        };
        let mut chunks: Vec<(u64, Vec<Extent>)> =
            gone.chain(cut).filter(|idx| !has_pending(idx)).map(|idx| (idx, self.list(idx))).collect();
        let mut sent = Vec::with_capacity(pending.len());
        for idx in pending {
            chunks.push((idx, extents::clip(&self.list(idx), self.within(idx, size))));
            sent.push((idx, self.chunks.get(&idx).map_or_else(Vec::new, |c| c.pending.clone())));
        }
        Plan { size, chunks, sent, kind: if last { Step::Last } else { Step::Some } }
    }

    /// The commit of a file that is small enough to lie in its row.
    pub fn plan_inline(&self) -> Plan {
        let pending = self.chunks.iter().filter(|(_, c)| !c.pending.is_empty());
        let sent = pending.map(|(idx, c)| (*idx, c.pending.clone())).collect();
        Plan { size: self.size, chunks: Vec::new(), sent, kind: Step::Last }
    }

    /// A commit begins: changes from now on are another delta.
    pub fn begin_commit(&mut self) {
        self.committing = Some(std::mem::take(&mut self.delta));
    }

    /// The commit did not happen (or nobody knows): its delta is still to be committed.
    pub fn end_commit_failed(&mut self) {
        let Some(old) = self.committing.take() else { return };
        let new = &mut self.delta;
        new.end = new.end.max(old.end.min(new.floor));
        new.floor = new.floor.min(old.floor);
        new.mtime = new.mtime.or(old.mtime);
    }

    /// The commit failed; it `may` have been applied all the same.
    pub fn commit_unknown(&mut self, may: bool) {
        self.end_commit_failed();
        self.uncertain |= may;
        let replaced = std::mem::take(&mut self.replaced);
        if !self.uncertain {
            self.discarded.extend(replaced);
        }
    }

    /// The commit was applied: what it said is the base now. After the last step `upto` changes are committed.
    pub fn end_commit_applied(&mut self, attr: Attr, plan: &Plan, upto: u64) {
        let uncertain = std::mem::take(&mut self.uncertain);
        if plan.kind == Step::Last {
            self.committing = None;
            self.flushed = self.flushed.max(upto);
        } else {
            let floor = self.delta.floor;
            self.end_commit_failed();
            if plan.kind == Step::Some {
                // The cut is done, and beyond it there are new rows.
                self.delta.floor = floor;
            }
        }
        self.base = base_of(&attr);
        self.attr = attr;
        let sent: Vec<ObjectId> = plan.sent.iter().flat_map(|(_, list)| list).map(|e| e.object).collect();
        let unsent = std::mem::take(&mut self.replaced).into_iter().filter(|o| !sent.contains(o));
        if !uncertain {
            self.discarded.extend(unsent);
        }
        for (idx, list) in &plan.chunks {
            if let Some(chunk) = self.chunks.get_mut(idx) {
                chunk.rows = Some(extents::canonical(list));
            }
        }
        for (idx, sent) in &plan.sent {
            if let Some(chunk) = self.chunks.get_mut(idx) {
                chunk.pending = extents::without(&chunk.pending, sent);
                if self.base != Base::Rows && !uncertain {
                    self.discarded.extend(extents::dropped(sent, &chunk.pending));
                }
            }
        }
        if self.base != Base::Rows {
            for chunk in self.chunks.values_mut() {
                chunk.rows = None;
                if self.changes == upto {
                    // The row has it; no object need.
                    chunk.dirty = Ranges::default();
                    chunk.uploading = Ranges::default();
                }
                if chunk.local == Local::Recorded {
                    chunk.local = Local::Ranges(Ranges::default());
                }
            }
        }
        self.forget_some();
    }

    /// Somebody else committed. What is new here lies over what they wrote.
    pub fn rebase(&mut self, attr: Attr) {
        self.end_commit_failed();
        if !self.uncertain {
            // The commit that may have named them was not applied.
            self.discarded.append(&mut self.replaced);
        }
        self.replaced.clear();
        let tags: HashMap<u64, Tag> = self
            .chunks
            .iter()
            .filter(|(_, c)| c.rows.is_some())
            .map(|(i, _)| (*i, extents::tag(&self.list(*i))))
            .collect();
        let cut = self.delta.floor != u64::MAX;
        let modified = self.is_modified();
        self.size = match modified {
            false => attr.size,
            true if cut => self.size,
            true => attr.size.max(self.delta.end).max(self.own_end()),
        };
        self.base = base_of(&attr);
        self.attr = attr;
        let id = self.next_id();
        if !modified {
            self.delta = Delta::default();
        }
        let rows = self.base == Base::Rows;
        let end = self.floor().div_ceil(u64::from(self.chunk_size));
        for (idx, chunk) in &mut self.chunks {
            chunk.generation = id;
            chunk.rows = None;
            if !modified {
                // Nothing is new, whatever was uploaded and not needed.
                chunk.dirty = Ranges::default();
                chunk.uploading = Ranges::default();
                let unneeded = std::mem::take(&mut chunk.pending);
                if !self.uncertain {
                    self.discarded.extend(extents::dropped(&unneeded, &[]));
                }
            }
            chunk.local_tag = if rows && *idx < end { tags.get(idx).copied() } else { None };
            if chunk.local_tag.is_none() || chunk.local == Local::Recorded {
                chunk.local = Local::Ranges(own_bytes(chunk));
                chunk.local_tag = None;
            }
        }
        self.chunks.retain(|_, c| !c.is_clean() || c.local_tag.is_some());
    }

    /// One past the last byte that is not committed.
    fn own_end(&self) -> u64 {
        let end = |c: &Chunk| c.dirty.end().max(c.uploading.end()).max(extents::end(&c.pending));
        let ends = self.chunks.iter().map(|(idx, c)| (*idx, end(c))).filter(|(_, end)| *end > 0);
        ends.map(|(idx, end)| idx * u64::from(self.chunk_size) + u64::from(end)).max().unwrap_or(0)
    }

    /// Keeps memory bounded: lists of chunks that nothing is new in can be read again.
    pub fn forget_some(&mut self) {
        let mut clean: Vec<(u64, u64)> =
            self.chunks.iter().filter(|(_, c)| c.is_clean()).map(|(idx, c)| (c.used, *idx)).collect();
        if clean.len() <= MAX_CLEAN {
            return;
        }
        clean.sort_unstable();
        for (_, idx) in &clean[..clean.len() - MAX_CLEAN / 2] {
            self.chunks.remove(idx);
        }
    }

    /// How many chunks wait for a commit.
    pub fn pending_chunks(&self) -> usize {
        self.chunks.values().filter(|c| !c.pending.is_empty()).count()
    }
}

/// What only this process knows of a chunk, as far as it is on the local disk.
fn own_bytes(chunk: &Chunk) -> Ranges {
    let mut own = chunk.dirty.clone();
    own.extend(&chunk.uploading);
    if let Local::Ranges(local) = &chunk.local {
        for extent in &chunk.pending {
            own.extend(&local.within(extents::span(extent)));
        }
    }
    own
}
