//! A set of bytes as a list of disjoint ranges: what of a chunk is on the local disk, what is not uploaded yet; what of a
//! file was made a hole.

use std::ops::Range;

use crate::types::Extent;

/// Numbers in ranges: sorted, disjoint, not adjacent, none empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeSet<T>(Vec<Range<T>>);

/// Bytes of one chunk. Costs 8 bytes a range.
pub type Ranges = RangeSet<u32>;

/// Bytes of a file. Costs 16 bytes a range.
pub type Spans = RangeSet<u64>;

impl<T> Default for RangeSet<T> {
    fn default() -> Self {
        RangeSet(Vec::new())
    }
}

impl Ranges {
    /// The bytes of a chunk that extents give.
    #[must_use]
    pub fn of_extents(list: &[Extent]) -> Self {
        let mut ranges = Ranges::default();
        for e in list {
            ranges.insert(e.start..e.start + e.len);
        }
        ranges
    }

    /// How many bytes are in the set.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|r| u64::from(r.end - r.start)).sum()
    }

    /// The smallest range that holds them all.
    #[must_use]
    pub fn hull(&self) -> Range<u32> {
        self.0.first().map_or(0, |r| r.start)..self.end()
    }
}

impl<T: Copy + Ord + Default> RangeSet<T> {
    /// One range, or none if it is empty.
    #[must_use]
    pub fn of(range: Range<T>) -> Self {
        let mut ranges = RangeSet::default();
        ranges.insert(range);
        ranges
    }

    /// Adds the bytes of `range`.
    pub fn insert(&mut self, range: Range<T>) {
        if range.is_empty() {
            return;
        }
        // Adjacent ranges grow together.
        let first = self.0.partition_point(|r| r.end < range.start);
        let last = self.0.partition_point(|r| r.start <= range.end);
        let (mut start, mut end) = (range.start, range.end);
        if first < last {
            start = start.min(self.0[first].start);
            end = end.max(self.0[last - 1].end);
        }
        self.0.splice(first..last, std::iter::once(start..end));
    }

    /// Takes the bytes of `range` out.
    pub fn remove(&mut self, range: Range<T>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|r| r.end <= range.start);
        let last = self.0.partition_point(|r| r.start < range.end);
        if first >= last {
            return;
        }
        let left = self.0[first].start..range.start;
        let right = range.end..self.0[last - 1].end;
        self.0.splice(first..last, [left, right].into_iter().filter(|r| !r.is_empty()));
    }

    /// Adds the bytes of another set.
    pub fn extend(&mut self, other: &RangeSet<T>) {
        for range in &other.0 {
            self.insert(range.clone());
        }
    }

    /// Takes out everything from `end` on.
    pub fn truncate(&mut self, end: T) {
        let keep = self.0.partition_point(|r| r.start < end);
        self.0.truncate(keep);
        if let Some(last) = self.0.last_mut() {
            last.end = last.end.min(end);
        }
    }

    /// Whether every byte of `range` is in the set. An empty range is.
    #[must_use]
    pub fn covers(&self, range: Range<T>) -> bool {
        if range.is_empty() {
            return true;
        }
        let i = self.0.partition_point(|r| r.end <= range.start);
        self.0.get(i).is_some_and(|r| r.start <= range.start && range.end <= r.end)
    }

    /// The bytes of `range` that are not in the set.
    #[must_use]
    pub fn missing(&self, range: Range<T>) -> RangeSet<T> {
        let mut missing = RangeSet::of(range);
        for r in &self.0 {
            missing.remove(r.clone());
        }
        missing
    }

    /// The bytes of `range` that are in the set.
    #[must_use]
    pub fn within(&self, range: Range<T>) -> RangeSet<T> {
        let cut = |r: &Range<T>| r.start.max(range.start)..r.end.min(range.end);
        RangeSet(self.0.iter().map(cut).filter(|r| !r.is_empty()).collect())
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<T>> + '_ {
        self.0.iter().cloned()
    }

    /// How many separate ranges there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One past the last byte; 0 if there is none.
    #[must_use]
    pub fn end(&self) -> T {
        self.0.last().map_or(T::default(), |r| r.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const N: u32 = 64;

    fn bits(ranges: &Ranges) -> u64 {
        ranges.iter().flatten().fold(0, |bits, i| bits | 1 << i)
    }

    fn mask(range: &Range<u32>) -> u64 {
        range.clone().fold(0, |bits, i| bits | 1 << i)
    }

    fn range() -> impl Strategy<Value = Range<u32>> {
        (0..N, 0..N / 3).prop_map(|(start, len)| start..(start + len).min(N))
    }

    proptest! {
        #[test]
        fn agrees_with_a_bit_set(ops in proptest::collection::vec((any::<bool>(), range()), 0..40), probe in range()) {
            let (mut ranges, mut model) = (Ranges::default(), 0u64);
            for (add, range) in ops {
                if add {
                    model |= mask(&range);
                    ranges.insert(range);
                } else {
                    model &= !mask(&range);
                    ranges.remove(range);
                }
                prop_assert_eq!(bits(&ranges), model);
                prop_assert!(ranges.0.windows(2).all(|w| w[0].end < w[1].start), "{:?}", ranges);
                prop_assert!(ranges.iter().all(|r| !r.is_empty()));
            }
            let m = mask(&probe);
            prop_assert_eq!(ranges.covers(probe.clone()), model & m == m);
            prop_assert_eq!(bits(&ranges.missing(probe.clone())), m & !model);
            prop_assert_eq!(bits(&ranges.within(probe.clone())), m & model);
            prop_assert_eq!(ranges.bytes(), u64::from(model.count_ones()));
            prop_assert_eq!(ranges.end(), 64 - model.leading_zeros());
            ranges.truncate(probe.start);
            prop_assert_eq!(bits(&ranges), model & mask(&(0..probe.start)));
        }
    }
}
