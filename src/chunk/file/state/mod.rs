//! What is known of a file's data: which bytes lie where, what is new, what is on its way. Bookkeeping only: no I/O, no
//! waiting, always held for short.
//!
//! A byte of the file is, in this order: what was written here and is on the local disk (`dirty`, part of `local`); what
//! was uploaded and not committed (`pending`); what the metadata has (`base`; where a chunk has no row at all, the blob
//! `under` the file), unless the file was cut since to `floor` or less, or the byte was made a hole (`cleared`); else zero.

mod change;
mod commit;
mod holes;
mod journal;
mod local;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::chunk::cache::Tag;
use crate::chunk::extents::{self, Piece};
use crate::chunk::file::kept::Kept;
use crate::chunk::ranges::Ranges;
use crate::meta::{Attr, Content, Under};
use crate::types::{Extent, ObjectId, Version};

pub(super) use self::change::Upload;
pub(super) use self::commit::{Delta, Plan, Step};
pub(super) use self::journal::{Entry, Journalled, Relied};

/// Where committed bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// Chunk rows; chunks at or beyond the committed size have none.
    Rows,
    /// The first bytes; zeros behind.
    Inline(Bytes),
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
    /// There is no such row: the list is empty, and the blob under the file shows.
    pub absent: bool,
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
    /// Of the new bytes (dirty, uploading, pending) those that nobody wrote: copies of what was committed, so that the
    /// chunk could become one object. If others commit first, they are not laid over what those wrote.
    pub copied: Ranges,
    /// The objects of `pending` may be on their way to deletion: the chunk is to be written anew.
    pub stale: bool,
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
            absent: false,
            pending: Vec::new(),
            dirty: Ranges::default(),
            uploading: Ranges::default(),
            upload: None,
            local: Local::Ranges(Ranges::default()),
            local_tag: None,
            copied: Ranges::default(),
            stale: false,
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
    Blob(Under, Range<u32>),
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

    /// About how many bytes come into memory with it: of an object with a checksum, all.
    pub fn cost(&self) -> usize {
        match self {
            Part::Fetch(Extent { sum: Some(sum), .. }) => sum.len as usize,
            _ => self.span().len(),
        }
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub chunk_size: u32,
    /// What the metadata said last.
    pub attr: Attr,
    pub base: Base,
    /// What shows where a chunk has no row.
    pub under: Option<Under>,
    /// The chunks that may have rows, if that was asked for since the version is this one.
    pub row_ranges: Option<Arc<Vec<Range<u64>>>>,
    pub size: u64,
    pub delta: Delta,
    /// The delta of the commit that is on its way.
    pub committing: Option<Delta>,
    /// Counts changes; `flushed` of them are committed.
    pub changes: u64,
    pub flushed: u64,
    pub chunks: HashMap<u64, Chunk>,
    /// Objects that no commit was ever asked to name and nothing refers to any more: those, and no others, are deleted from
    /// here.
    pub discarded: Vec<ObjectId>,
    /// Of the pending objects those that a commit was asked to name, whatever became of it. Rows may refer to them, so they go
    /// by the transaction that stops naming them; `gc` finds those that none ever named.
    pub offered: HashSet<ObjectId>,
    /// Of those the ones whose commit may have been applied without this process knowing it: others may have replaced them,
    /// and then they wait for their deletion.
    pub uncertain: HashSet<ObjectId>,
    /// The versions that those commits would have made.
    tried: VecDeque<Version>,
    /// Versions that the file had before this one. Attributes with one of them were read too early.
    past: VecDeque<Version>,
    /// How often what another mount committed came in.
    pub merges: u64,
    /// Of chunks that are being written in order.
    pub kept: Kept,
    /// The entry of the journal that has what was written up to some change.
    pub journalled: Option<Journalled>,
    /// A later entry that could not be written, or not for certain.
    pub attempted: Option<Journalled>,
    /// What that entry, or one that may be in its place, needs to be of use after a crash.
    pub relied: Relied,
    /// Bytes that no object has are gone with the local disk, and nobody was told yet.
    pub lost: bool,
    clock: u64,
    last_id: u64,
}

/// Versions that are remembered: more than can be committed while somebody reads attributes.
const PAST: usize = 64;

fn base_of(attr: &Attr) -> (Base, Option<Under>) {
    match &attr.content {
        Content::Inline(bytes) => (Base::Inline(bytes.clone()), None),
        Content::Blob(blob) => (Base::Rows, Some(Under { blob: *blob, size: attr.size, len: attr.size })),
        Content::Extents => (Base::Rows, attr.layout.under),
        Content::None | Content::Symlink(_) => (Base::Rows, None),
    }
}

impl State {
    pub fn new(attr: Attr, chunk_size: u32) -> Self {
        let (base, under) = base_of(&attr);
        State {
            chunk_size,
            base,
            under,
            row_ranges: None,
            size: attr.size,
            attr,
            delta: Delta::default(),
            committing: None,
            changes: 0,
            flushed: 0,
            chunks: HashMap::new(),
            discarded: Vec::new(),
            offered: HashSet::new(),
            uncertain: HashSet::new(),
            tried: VecDeque::new(),
            past: VecDeque::new(),
            merges: 0,
            kept: Kept::default(),
            journalled: None,
            attempted: None,
            relied: Relied::default(),
            lost: false,
            clock: 0,
            last_id: 0,
        }
    }

    /// Takes the attributes for the latest.
    fn adopt(&mut self, attr: Attr) {
        // Bytes that are not new any more may become others, and new again as copies of those.
        self.kept.clear();
        if self.attr.version != attr.version {
            self.past.push_back(self.attr.version);
            if self.past.len() > PAST {
                self.past.pop_front();
            }
        }
        (self.base, self.under) = base_of(&attr);
        self.row_ranges = None;
        self.attr = attr;
    }

    /// Whether the attributes are older than what is known.
    pub fn is_past(&self, attr: &Attr) -> bool {
        self.past.contains(&attr.version)
    }

    pub fn is_modified(&self) -> bool {
        self.changes != self.flushed
    }

    /// Committed bytes from here on are gone.
    pub fn floor(&self) -> u64 {
        let floor = self.delta.floor.min(self.committing.as_ref().map_or(u64::MAX, |d| d.floor));
        floor.min(self.attr.size)
    }

    /// About how many bytes of the file are data: exact if nothing is new, else not too few.
    pub fn data_bytes(&self) -> u64 {
        let committed = self.attr.blocks.saturating_mul(512).min(self.floor());
        if !self.is_modified() && self.committing.is_none() {
            return committed;
        }
        let new = |c: &Chunk| {
            let mut new = Ranges::of_extents(&c.pending);
            new.extend(&c.dirty);
            new.extend(&c.uploading);
            new.bytes()
        };
        self.chunks.values().map(new).fold(committed, u64::saturating_add).min(self.size)
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
        let end = self.within(idx, self.floor());
        self.base == Base::Rows
            && idx < self.attr.chunks
            && end > 0
            && self.chunks.get(&idx).is_none_or(|c| c.rows.is_none())
            && !self.is_cleared(idx, 0..end)
    }

    /// The committed list, without what was cut off or made a hole. Empty if it was not read.
    fn committed(&self, idx: u64) -> Vec<Extent> {
        match self.chunks.get(&idx).and_then(|c| c.rows.as_ref()) {
            Some(rows) if self.base == Base::Rows => {
                let kept = extents::clip(rows, self.within(idx, self.floor()));
                extents::without_ranges(kept, &self.cleared_in(idx))
            }
            _ => Vec::new(),
        }
    }

    /// The committed list of chunk `idx`, cut or not, if it was read.
    pub fn committed_rows(&self, idx: u64) -> Option<&[Extent]> {
        self.chunks.get(&idx)?.rows.as_deref().filter(|_| self.base == Base::Rows)
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
    fn other_base(&self, idx: u64) -> Ranges {
        let end = match (&self.base, self.under) {
            (Base::Inline(bytes), _) => self.floor().min(bytes.len() as u64),
            (Base::Rows, Some(under)) if !self.has_row(idx) => self.floor().min(under.len),
            (Base::Rows, _) => return Ranges::default(),
        };
        let mut other = Ranges::of(0..self.within(idx, end));
        if !other.is_empty() {
            self.cleared_in(idx).iter().for_each(|hole| other.remove(hole));
        }
        other
    }

    /// Whether chunk `idx` is known to have a row, be it an empty one.
    fn has_row(&self, idx: u64) -> bool {
        idx < self.attr.chunks && self.chunks.get(&idx).is_some_and(|c| c.rows.is_some() && !c.absent)
    }

    /// Whether bytes of chunk `idx` that lie in a row or a blob would be lost by a commit of its list as it is.
    fn is_bare(&self, idx: u64, list: &[Extent], but: &Ranges) -> bool {
        let shows = |r: Range<u32>| {
            extents::pieces(list, r).iter().any(|p| matches!(p, Piece::Hole(h) if !but.covers(h.clone())))
        };
        self.other_base(idx).iter().any(shows)
    }

    /// One past the last byte of chunk `idx` that is not for certain zero.
    pub fn data_end(&self, idx: u64) -> u32 {
        let dirty = self.chunks.get(&idx).map_or(0, |c| c.dirty.end().max(c.uploading.end()));
        extents::end(&self.list(idx)).max(self.other_base(idx).end()).max(dirty)
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
        let other = self.other_base(idx);
        parts.extend(other.missing(hole.clone()).iter().map(Part::Zeros));
        for shown in other.within(hole).iter() {
            parts.push(match (&self.base, self.under) {
                (Base::Inline(bytes), _) => Part::Inline(bytes.clone(), shown),
                (Base::Rows, Some(under)) => Part::Blob(under, shown),
                (Base::Rows, None) => Part::Zeros(shown),
            });
        }
    }
}
