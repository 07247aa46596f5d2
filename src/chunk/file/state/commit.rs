//! From what was uploaded to what is committed, and over what others committed meanwhile.

use std::collections::{HashMap, HashSet};

use super::local::own_bytes;
use super::{Base, Chunk, Local, State};
use crate::chunk::cache::Tag;
use crate::chunk::extents;
use crate::chunk::ranges::{Ranges, Spans};
use crate::meta::{Attr, Under};
use crate::types::{Extent, ObjectId, Timestamp, Version};

/// Commits of which nobody knows what became of them that are told from others' afterwards.
const TRIED: usize = 64;

/// What changed since the last commit, apart from bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::chunk::file) struct Delta {
    /// The smallest size meanwhile: committed bytes from here on are gone. `u64::MAX`: never cut.
    pub floor: u64,
    /// One past the last byte written or added.
    pub end: u64,
    /// Committed bytes that are holes now.
    pub cleared: Spans,
    pub mtime: Option<Timestamp>,
}

impl Default for Delta {
    fn default() -> Self {
        Delta { floor: u64::MAX, end: 0, cleared: Spans::default(), mtime: None }
    }
}

/// Rows of one commit.
#[derive(Clone, Debug)]
pub(in crate::chunk::file) struct Plan {
    pub size: u64,
    pub chunks: Vec<(u64, Vec<Extent>)>,
    /// What of `pending` goes with it.
    pub sent: Vec<(u64, Vec<Extent>)>,
    pub kind: Step,
    /// What of the blob shows afterwards where a chunk has no row.
    pub under: Option<Under>,
    /// Chunks below this one need a row to be a hole.
    pub holes_below: u64,
    /// The holes that are still to be committed afterwards.
    pub left: Spans,
}

impl Plan {
    /// The objects that its rows are to name and that were not committed before.
    fn named(&self) -> impl Iterator<Item = ObjectId> + '_ {
        // What goes into the file's row goes without rows of chunks.
        let sent = self.sent.iter().filter(|_| !self.chunks.is_empty());
        sent.flat_map(|(_, list)| list).map(|e| e.object)
    }
}

/// How far a commit goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::chunk::file) enum Step {
    /// The file gets shorter on the way to where it was cut.
    Cut,
    /// Some of what was written.
    Some,
    /// All that is left.
    Last,
}

impl State {
    /// Chunks whose lists must be read before [`State::plan`].
    pub fn rows_to_plan(&self) -> Vec<u64> {
        let pending = self.chunks.iter().filter(|(_, c)| !c.pending.is_empty()).map(|(idx, _)| *idx);
        pending.chain(self.edges()).filter(|idx| self.needs_rows(*idx)).collect()
    }

    /// Whether more than `limit` chunks are cut off or emptied: some must be committed before anything else.
    pub fn must_cut(&self, limit: usize) -> bool {
        self.emptied().nth(limit).is_some()
    }

    /// The next commit towards what was uploaded. Of a large change, at most `limit` rows at a time: first the file is
    /// cut and holes are made, from the end on, then it grows, so that half-way it never has rows beyond its end. `size` is
    /// the file's size when the flush began: what was added since may not be uploaded yet.
    pub fn plan(&self, limit: usize, size: u64) -> Plan {
        let unit = u64::from(self.chunk_size);
        let floor = self.floor();
        let under =
            self.under.map(|under| Under { len: under.len.min(floor), ..under }).filter(|u| u.len > 0);
        let holes_below = under.map_or(0, |under| under.len.div_ceil(unit));
        let has_pending = |idx: &u64| self.chunks.get(idx).is_some_and(|c| !c.pending.is_empty());
        let mut pending: Vec<u64> = self.chunks.keys().copied().filter(|idx| has_pending(idx)).collect();
        pending.sort_unstable();
        let mut emptied: Vec<u64> = self.emptied().take(limit + 1).collect();
        if !emptied.is_empty() && emptied.len() + pending.len() > limit {
            let all = emptied.len() <= limit;
            emptied.truncate(limit);
            let keep = if all { 0 } else { emptied.last().copied().unwrap_or(0) };
            let size = (keep * unit).clamp(floor, self.attr.size);
            let list = |idx: u64| extents::clip(&self.committed(idx), self.within(idx, size));
            let chunks = emptied.into_iter().map(|idx| (idx, list(idx))).collect();
            let left = self.left_after(keep);
            return Plan { size, chunks, sent: Vec::new(), kind: Step::Cut, under, holes_below, left };
        }
        let last = pending.len() <= limit;
        pending.truncate(limit);
        let end_of = |idx: &u64| idx * unit + u64::from(extents::end(&self.list(*idx)));
        let reached = pending.last().map_or(0, end_of);
        let all = self.chunks.values().all(|c| c.dirty.is_empty() && c.uploading.is_empty());
        let size = match (last, all) {
            (true, true) => self.size,
            (true, false) => self.size.min(size.max(reached).max(floor)),
            (false, _) => self.size.min(floor.max(reached)),
        };
        let mut chunks: Vec<(u64, Vec<Extent>)> =
            emptied.into_iter().filter(|idx| !has_pending(idx)).map(|idx| (idx, self.list(idx))).collect();
        let mut sent = Vec::with_capacity(pending.len());
        for idx in pending {
            chunks.push((idx, extents::clip(&self.list(idx), self.within(idx, size))));
            sent.push((idx, self.chunks.get(&idx).map_or_else(Vec::new, |c| c.pending.clone())));
        }
        let kind = if last { Step::Last } else { Step::Some };
        Plan { size, chunks, sent, kind, under, holes_below, left: Spans::default() }
    }

    /// The commit of a file that is small enough to lie in its row.
    pub fn plan_inline(&self) -> Plan {
        let pending = self.chunks.iter().filter(|(_, c)| !c.pending.is_empty());
        let sent = pending.map(|(idx, c)| (*idx, c.pending.clone())).collect();
        let (under, left) = (None, Spans::default());
        Plan { size: self.size, chunks: Vec::new(), sent, kind: Step::Last, under, holes_below: 0, left }
    }

    /// A commit begins: changes from now on are another delta. What it names is deleted from here no more.
    pub fn begin_commit(&mut self, plan: &Plan) {
        self.committing = Some(std::mem::take(&mut self.delta));
        self.offered.extend(plan.named());
    }

    /// The commit did not happen (or nobody knows): its delta is still to be committed.
    pub fn end_commit_failed(&mut self) {
        let Some(old) = self.committing.take() else { return };
        let new = &mut self.delta;
        new.end = new.end.max(old.end.min(new.floor));
        let mut cleared = old.cleared;
        cleared.truncate(new.floor);
        new.cleared.extend(&cleared);
        new.floor = new.floor.min(old.floor);
        new.mtime = new.mtime.or(old.mtime);
    }

    /// The commit that was to make the version `tried` failed; it `may` have been applied all the same.
    pub fn commit_unknown(&mut self, plan: &Plan, tried: Version, may: bool) {
        self.end_commit_failed();
        if may {
            self.uncertain.extend(plan.named());
            self.tried.push_back(tried);
            if self.tried.len() > TRIED {
                self.tried.pop_front();
            }
        }
    }

    /// The commit was applied: what it said is the base now. After the last step `upto` changes are committed.
    pub fn end_commit_applied(&mut self, attr: Attr, plan: &Plan, upto: u64) {
        if plan.kind == Step::Last {
            self.committing = None;
            self.flushed = self.flushed.max(upto);
        } else {
            let (floor, cleared) = (self.delta.floor, self.delta.cleared.clone());
            if let Some(old) = &mut self.committing {
                old.cleared = plan.left.clone();
            }
            self.end_commit_failed();
            if plan.kind == Step::Some {
                // The cut is done, and beyond it there are new rows.
                self.delta.floor = floor;
                self.delta.cleared = cleared;
            }
        }
        self.adopt(attr);
        for (idx, list) in &plan.chunks {
            if let Some(chunk) = self.chunks.get_mut(idx) {
                chunk.rows = Some(extents::canonical(list));
                chunk.absent = list.is_empty() && *idx >= plan.holes_below;
            }
        }
        for (idx, sent) in &plan.sent {
            if let Some(chunk) = self.chunks.get_mut(idx) {
                chunk.pending = extents::without(&chunk.pending, sent);
                let mut new = Ranges::of_extents(&chunk.pending);
                new.extend(&chunk.dirty);
                new.extend(&chunk.uploading);
                for done in new.missing(0..u32::MAX).iter() {
                    chunk.copied.remove(done);
                }
                if self.base != Base::Rows {
                    let unneeded = extents::dropped(sent, &chunk.pending);
                    self.discarded.extend(unneeded.into_iter().filter(|o| !self.offered.contains(o)));
                }
            }
        }
        // What is pending still may be in rows all the same, if an earlier commit was applied unheard.
        let pending = self.chunks.values().flat_map(|c| &c.pending).map(|e| e.object);
        let pending: HashSet<ObjectId> = pending.collect();
        self.offered.retain(|object| pending.contains(object));
        self.uncertain.retain(|object| pending.contains(object));
        self.tried.clear();
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

    /// Somebody else committed, or this session, of which nobody heard or by another way: `ours`. What is new here lies over
    /// what they wrote.
    pub fn rebase(&mut self, attr: Attr, ours: bool) {
        self.end_commit_failed();
        if !ours {
            self.merges += 1;
        }
        // If the last change is a commit of ours whose reply was lost, what it named nobody has replaced.
        if !self.uncertain.is_empty() && !self.tried.contains(&attr.version) {
            self.upload_again();
        }
        self.drop_copies();
        let tags: HashMap<u64, Tag> = self
            .chunks
            .iter()
            // An empty list is not the blob that shows without one.
            .filter(|(_, c)| c.rows.is_some() && !(c.absent && self.under.is_some()))
            .map(|(i, _)| (*i, extents::tag(&self.list(*i))))
            .collect();
        let cut = self.delta.floor != u64::MAX;
        let modified = self.is_modified();
        self.size = match modified {
            false => attr.size,
            true if cut => self.size,
            true => attr.size.max(self.delta.end).max(self.own_end()),
        };
        self.adopt(attr);
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
                if !std::mem::take(&mut chunk.stale) {
                    let unneeded = extents::dropped(&unneeded, &[]).into_iter();
                    self.discarded.extend(unneeded.filter(|o| !self.offered.contains(o)));
                }
            }
            // Where there can be no row none will be read that it could be held to.
            let comparable = rows && *idx < end && *idx < self.attr.chunks;
            chunk.local_tag = if comparable { tags.get(idx).copied() } else { None };
            if chunk.local_tag.is_none() || chunk.local == Local::Recorded {
                chunk.local = Local::Ranges(own_bytes(chunk));
                chunk.local_tag = None;
            }
        }
        self.chunks.retain(|_, c| !c.is_clean() || c.local_tag.is_some());
    }

    /// Bytes that were only copied from what was committed before: others may have written there since.
    pub(super) fn drop_copies(&mut self) {
        for chunk in self.chunks.values_mut() {
            let copied = std::mem::take(&mut chunk.copied);
            if copied.is_empty() {
                continue;
            }
            let own = |e: &Extent| {
                let own = copied.missing(extents::span(e));
                own.iter().filter_map(|r| extents::cut(e, &r)).collect::<Vec<_>>()
            };
            let before = std::mem::take(&mut chunk.pending);
            chunk.pending = before.iter().flat_map(own).collect();
            if !chunk.stale {
                let gone = extents::dropped(&before, &chunk.pending).into_iter();
                self.discarded.extend(gone.filter(|o| !self.offered.contains(o)));
            }
            for range in copied.iter() {
                chunk.dirty.remove(range.clone());
                chunk.uploading.remove(range);
            }
        }
    }

    /// What was uploaded and perhaps committed may have been replaced by others since, and its objects wait for their
    /// deletion: they must not be named again.
    fn upload_again(&mut self) {
        for chunk in self.chunks.values_mut() {
            // One that is to be written anew already stays so.
            chunk.stale |= chunk.pending.iter().any(|e| self.uncertain.contains(&e.object));
        }
        self.uncertain.clear();
        self.tried.clear();
    }

    /// One past the last byte that is not committed.
    pub(super) fn own_end(&self) -> u64 {
        let end = |c: &Chunk| c.dirty.end().max(c.uploading.end()).max(extents::end(&c.pending));
        let ends = self.chunks.iter().map(|(idx, c)| (*idx, end(c))).filter(|(_, end)| *end > 0);
        ends.map(|(idx, end)| idx * u64::from(self.chunk_size) + u64::from(end)).max().unwrap_or(0)
    }

    /// How many chunks wait for a commit.
    pub fn pending_chunks(&self) -> usize {
        self.chunks.values().filter(|c| !c.pending.is_empty()).count()
    }
}
