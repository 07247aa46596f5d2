//! Ranges of the file that were made holes: what of the committed data they hide, and which chunks a commit of them changes.

use std::ops::Range;

use super::{Base, State};
use crate::chunk::extents;
use crate::chunk::ranges::{Ranges, Spans};
use crate::meta::needs_groups;
use crate::types::Timestamp;

impl State {
    /// The bytes of `range` are zeros from now on. Chunks in the index of which the range has a part must have been taken
    /// out of it. The size stays.
    pub fn clear(&mut self, range: Range<u64>, now: Timestamp) {
        let unit = u64::from(self.chunk_size);
        // Also what is not committed yet, for all that is known here: a commit that is on its way brings it, and so may one
        // that was not heard of again.
        self.delta.cleared.insert(range.start..range.end.min(self.delta.floor));
        let touched = range.start / unit..range.end.div_ceil(unit);
        let known: Vec<u64> = self.chunks.keys().copied().filter(|idx| touched.contains(idx)).collect();
        for idx in known {
            let part = self.within(idx, range.start)..self.within(idx, range.end);
            if part == (0..self.chunk_size) {
                if let Some(chunk) = self.chunks.remove(&idx).filter(|c| !c.stale) {
                    self.discard(&chunk.pending, &[]);
                }
                continue;
            }
            let id = self.next_id();
            let Some(chunk) = self.chunks.get_mut(&idx) else { continue };
            chunk.generation = id;
            for ranges in [&mut chunk.dirty, &mut chunk.uploading, &mut chunk.copied] {
                ranges.remove(part.clone());
            }
            if let super::Local::Ranges(local) = &mut chunk.local {
                local.remove(part.clone());
            }
            chunk.hash = chunk.hash.filter(|(len, _)| *len <= part.start);
            let kept = extents::without_ranges(chunk.pending.clone(), &Ranges::of(part));
            let before = std::mem::replace(&mut chunk.pending, kept.clone());
            if !chunk.stale {
                self.discard(&before, &kept);
            }
        }
        self.delta.mtime = Some(now);
        self.changes += 1;
    }

    /// The file counts as changed, though no byte of it is another.
    pub fn touch(&mut self, now: Timestamp) {
        self.delta.mtime = Some(now);
        self.changes += 1;
    }

    /// The bytes of chunk `idx` that were made holes since the last commit.
    pub(super) fn cleared_in(&self, idx: u64) -> Ranges {
        let mut cleared = Ranges::default();
        for spans in self.cleared() {
            if !spans.is_empty() {
                let start = idx * u64::from(self.chunk_size);
                let end = start.saturating_add(u64::from(self.chunk_size));
                for span in spans.within(start..end).iter() {
                    cleared.insert(self.within(idx, span.start)..self.within(idx, span.end));
                }
            }
        }
        cleared
    }

    pub(super) fn is_cleared(&self, idx: u64, range: Range<u32>) -> bool {
        self.cleared().any(|spans| !spans.is_empty()) && self.cleared_in(idx).covers(range)
    }

    fn cleared(&self) -> impl Iterator<Item = &Spans> {
        std::iter::once(&self.delta).chain(&self.committing).map(|d| &d.cleared)
    }

    /// How many separate holes wait for a commit.
    pub fn holes(&self) -> usize {
        self.delta.cleared.count()
    }

    /// The committed bytes that are gone: holes, and what was cut off.
    pub(super) fn gone(&self) -> Spans {
        let mut gone = Spans::of(self.floor()..self.attr.size);
        self.cleared().for_each(|spans| gone.extend(spans));
        gone.truncate(self.attr.size);
        gone
    }

    /// The chunks that `gone` takes a part of and leaves a part of, as far as something was committed there.
    pub(super) fn edges(&self) -> Vec<u64> {
        let unit = u64::from(self.chunk_size);
        let mut edges: Vec<u64> = self
            .gone()
            .iter()
            .flat_map(|span| [span.start, span.end])
            .filter(|&at| !at.is_multiple_of(unit) && at < self.attr.size)
            .map(|at| at / unit)
            .collect();
        edges.dedup();
        edges
    }

    /// The holes that are left to commit once the chunks from `keep` on were written as [`State::emptied`] says.
    pub(super) fn left_after(&self, keep: u64) -> Spans {
        let unit = u64::from(self.chunk_size);
        let mut left = Spans::default();
        for spans in self.cleared() {
            left.extend(spans);
        }
        left.truncate(keep.saturating_mul(unit));
        for idx in self.edges().into_iter().filter(|idx| *idx >= keep) {
            if !self.other_base(idx).is_empty() {
                for hole in self.cleared_in(idx).iter() {
                    left.insert(idx * unit + u64::from(hole.start)..idx * unit + u64::from(hole.end));
                }
            }
        }
        left
    }

    /// Whether [`State::row_ranges`] must be known before a commit can be planned.
    pub fn needs_row_ranges(&self) -> bool {
        self.base == Base::Rows
            && self.row_ranges.is_none()
            && self.gone().iter().any(|span| {
                let chunks = span.start / u64::from(self.chunk_size)..self.attr.chunks;
                needs_groups(&chunks, self.attr.chunks, self.attr.layout.grouped)
            })
    }

    /// The chunks that a commit must write anew because `gone` takes of them, from the last to the first; those without
    /// rows are not among them, unless the blob under the file would show there.
    pub(super) fn emptied(&self) -> impl Iterator<Item = u64> + '_ {
        let unit = u64::from(self.chunk_size);
        let mut candidates = Spans::default();
        if self.base == Base::Rows {
            match &self.row_ranges {
                Some(ranges) => ranges.iter().for_each(|r| candidates.insert(r.clone())),
                None => candidates.insert(0..self.attr.chunks),
            }
            // What is cut off the blob's end is not shown any more; a hole in it must be said.
            let shown = self.under.map_or(0, |under| under.len.min(self.floor()));
            candidates.insert(0..shown.div_ceil(unit));
        }
        let mut chunks = Spans::default();
        for span in self.gone().iter() {
            for part in candidates.within(span.start / unit..span.end.div_ceil(unit)).iter() {
                chunks.insert(part);
            }
        }
        let ranges: Vec<Range<u64>> = chunks.iter().collect();
        // Where some of the blob still shows a row would hide it: such a chunk is written whole, or only the blob cut.
        ranges.into_iter().rev().flat_map(Iterator::rev).filter(|&idx| self.other_base(idx).is_empty())
    }

    /// The bytes of chunk `idx` that are data, below the file's size. Its rows must be known.
    pub fn data_in(&self, idx: u64) -> Ranges {
        let mut data = Ranges::of_extents(&self.list(idx));
        data.extend(&self.other_base(idx));
        if let Some(chunk) = self.chunks.get(&idx) {
            data.extend(&chunk.dirty);
            data.extend(&chunk.uploading);
        }
        data.truncate(self.within(idx, self.size));
        data
    }

    /// The first chunk from `idx` on that may have data.
    pub fn next_with_data(&self, idx: u64) -> Option<u64> {
        let unit = u64::from(self.chunk_size);
        let after = |range: Range<u64>| Some(range.start.max(idx)).filter(|next| *next < range.end);
        let held = self.chunks.iter().filter(|(i, c)| **i >= idx && !c.is_clean()).map(|(i, _)| *i).min();
        let floor = self.floor();
        let shown = match (&self.base, self.under) {
            (Base::Inline(bytes), _) => floor.min(bytes.len() as u64),
            (Base::Rows, under) => under.map_or(0, |under| under.len.min(floor)),
        };
        let rows = match (&self.base, &self.row_ranges) {
            (Base::Inline(_), _) => None,
            (Base::Rows, Some(ranges)) => ranges.iter().cloned().find_map(after),
            (Base::Rows, None) => after(0..self.attr.chunks),
        };
        let rows = rows.filter(|next| *next < floor.div_ceil(unit));
        [held, after(0..shown.div_ceil(unit)), rows].into_iter().flatten().min()
    }
}
