//! Where a chunk lies in the local disk's sparse file: at its own offset, unless that is far out. A disk has a limit for the
//! size of a file (16 TiB on ext4) and the index a record for each chunk, so far chunks lie behind the near ones, in the
//! order in which they came.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::content::FileContent;
use crate::error::{Error, Kind, Result};

/// Chunks from here on (1 TiB, if a chunk has 4 MiB) have no place of their own.
pub(super) const NEAR: u64 = 1 << 18;

/// The places of far chunks. What was there is not known any more when the file is next opened: it is fetched again.
/// Takes some 30 bytes for each far chunk that is used.
#[derive(Debug, Default)]
pub(super) struct Slots(Mutex<HashMap<u64, u64>>);

impl Slots {
    fn get(&self, idx: u64) -> Option<u64> {
        match idx {
            0..NEAR => Some(idx),
            _ => self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&idx).copied(),
        }
    }

    fn make(&self, idx: u64) -> u64 {
        if idx < NEAR {
            return idx;
        }
        let mut far = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let next = NEAR + far.len() as u64;
        *far.entry(idx).or_insert(next)
    }

    fn idx(&self, slot: u64) -> Option<u64> {
        if slot < NEAR {
            return Some(slot);
        }
        let far = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        far.iter().find(|(_, at)| **at == slot).map(|(idx, _)| *idx)
    }

    fn far(&self, chunks: &Range<u64>) -> Vec<u64> {
        if chunks.end <= NEAR {
            return Vec::new();
        }
        let far = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        far.iter().filter(|(idx, _)| chunks.contains(idx)).map(|(_, slot)| *slot).collect()
    }
}

impl FileContent {
    /// The number that chunk `idx` has in the cache. `None`: it was never there.
    pub(super) fn slot(&self, idx: u64) -> Option<u64> {
        self.slots.get(idx)
    }

    /// The same; it has one from now on.
    pub(super) fn make_slot(&self, idx: u64) -> u64 {
        self.slots.make(idx)
    }

    /// The offset in the cache's file of a byte that is there.
    pub(super) fn place(&self, idx: u64, within: u32) -> Result<u64> {
        match self.slot(idx) {
            Some(slot) => Ok(self.offset(slot, within)),
            None => Err(Error::with_source(Kind::Internal, self.what(), format!("chunk {idx} has no place"))),
        }
    }

    /// The cache's numbers of those of `chunks` that may be there.
    pub(super) fn slots(&self, chunks: &Range<u64>) -> Vec<Range<u64>> {
        let near = chunks.start.min(NEAR)..chunks.end.min(NEAR);
        let far = self.slots.far(chunks).into_iter().map(|slot| slot..slot + 1);
        std::iter::once(near).filter(|r| !r.is_empty()).chain(far).collect()
    }

    /// Where ranges of the file lie in the cache's file; each is of one chunk.
    pub(super) fn in_slots(&self, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        let unit = u64::from(self.shared.chunk_size);
        let moved = |r: &Range<u64>| {
            let (idx, slot) = (r.start / unit, self.slot(r.start / unit)?);
            Some(r.start - idx * unit + slot * unit..r.end - idx * unit + slot * unit)
        };
        ranges.iter().filter_map(moved).collect()
    }

    /// The way back.
    pub(super) fn out_of_slots(&self, ranges: &[Range<u64>]) -> Vec<Range<u64>> {
        let unit = u64::from(self.shared.chunk_size);
        let moved = |r: &Range<u64>| {
            let (slot, idx) = (r.start / unit, self.slots.idx(r.start / unit)?);
            Some(r.start - slot * unit + idx * unit..r.end - slot * unit + idx * unit)
        };
        ranges.iter().filter_map(moved).collect()
    }

    /// The pieces of a range of the file that lie together in the cache's file: the file's offset, and how many bytes.
    pub(super) fn runs(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let unit = u64::from(self.shared.chunk_size);
        let near = NEAR * unit;
        let mut runs = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = if at < near { range.end.min(near) } else { range.end.min((at / unit + 1) * unit) };
            runs.push(at..end);
            at = end;
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_chunks_lie_behind_the_near_ones() {
        let slots = Slots::default();
        assert_eq!((slots.get(7), slots.make(7), slots.get(1 << 40)), (Some(7), 7, None));
        assert_eq!((slots.make(1 << 40), slots.make(NEAR), slots.make(1 << 40)), (NEAR, NEAR + 1, NEAR));
        assert_eq!((slots.idx(7), slots.idx(NEAR), slots.idx(NEAR + 2)), (Some(7), Some(1 << 40), None));
        assert_eq!((slots.far(&(0..NEAR)), slots.far(&(0..1 << 39))), (vec![], vec![NEAR + 1]));
    }
}
