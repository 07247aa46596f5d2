//! The algebra of extents: what a chunk of a file consists of. Pure; no I/O.
//!
//! A list is *canonical*: sorted by start, disjoint, and neighbours that continue each other in the same object are one.
//! What no extent covers is zeros. Only canonical lists reach the metadata, so that equal content made in the same way has
//! an equal [`tag`].

use std::ops::Range;

use super::ranges::Ranges;
use crate::types::{Extent, ObjectId};

/// A chunk with more extents than this is rewritten as one object.
pub const MAX_EXTENTS: usize = 8;

/// The bytes of the chunk that an extent stands for.
#[must_use]
pub fn span(extent: &Extent) -> Range<u32> {
    extent.start..extent.start + extent.len
}

/// The part of `extent` within `range`.
#[must_use]
pub fn cut(extent: &Extent, range: &Range<u32>) -> Option<Extent> {
    let start = extent.start.max(range.start);
    let end = (extent.start + extent.len).min(range.end);
    (start < end).then(|| Extent {
        start,
        len: end - start,
        object_offset: extent.object_offset + (start - extent.start),
        ..*extent
    })
}

/// Lays `upper` (in order, later over earlier) over the canonical list `lower`. The result is canonical.
#[must_use]
pub fn overlay(lower: &[Extent], upper: &[Extent]) -> Vec<Extent> {
    let mut list = lower.to_vec();
    for new in upper.iter().filter(|e| e.len > 0) {
        let over = span(new);
        let mut next = Vec::with_capacity(list.len() + 2);
        for old in &list {
            next.extend(cut(old, &(0..over.start)));
        }
        next.push(*new);
        for old in &list {
            next.extend(cut(old, &(over.end..u32::MAX)));
        }
        list = next;
    }
    merge(list)
}

/// A list as it was read from the metadata, whoever wrote it, made canonical.
#[must_use]
pub fn canonical(list: &[Extent]) -> Vec<Extent> {
    overlay(&[], list)
}

/// The list without what lies at or beyond `end`.
#[must_use]
pub fn clip(list: &[Extent], end: u32) -> Vec<Extent> {
    list.iter().filter_map(|e| cut(e, &(0..end))).collect()
}

/// The list without what lies in `holes`.
#[must_use]
pub fn without_ranges(list: Vec<Extent>, holes: &Ranges) -> Vec<Extent> {
    if holes.is_empty() {
        return list;
    }
    let kept = |e: &Extent| holes.missing(span(e)).iter().filter_map(|r| cut(e, &r)).collect::<Vec<_>>();
    list.iter().flat_map(kept).collect()
}

/// The parts of the list within `range`, and in their order the holes between them.
#[must_use]
pub fn pieces(list: &[Extent], range: Range<u32>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = range.start;
    for extent in list.iter().filter_map(|e| cut(e, &range)) {
        if at < extent.start {
            pieces.push(Piece::Hole(at..extent.start));
        }
        at = extent.start + extent.len;
        pieces.push(Piece::Data(extent));
    }
    if at < range.end {
        pieces.push(Piece::Hole(at..range.end));
    }
    pieces
}

/// A part of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    Data(Extent),
    Hole(Range<u32>),
}

/// One past the last byte that the canonical list gives data for.
#[must_use]
pub fn end(list: &[Extent]) -> u32 {
    list.last().map_or(0, |e| e.start + e.len)
}

/// `list` without the parts that `other` maps to the very same bytes of the same objects. Both are canonical.
#[must_use]
pub fn without(list: &[Extent], other: &[Extent]) -> Vec<Extent> {
    let mut rest = list.to_vec();
    for done in other {
        let same = |e: &Extent| {
            e.object == done.object && i64::from(e.object_offset) - i64::from(e.start) == shift(done)
        };
        rest = rest
            .iter()
            .flat_map(|e| {
                if same(e) {
                    let over = span(done);
                    [cut(e, &(0..over.start)), cut(e, &(over.end..u32::MAX))]
                } else {
                    [Some(*e), None]
                }
            })
            .flatten()
            .collect();
    }
    rest
}

/// The objects of `old` that `new` no longer uses.
#[must_use]
pub fn dropped(old: &[Extent], new: &[Extent]) -> Vec<ObjectId> {
    let mut gone: Vec<ObjectId> =
        old.iter().map(|e| e.object).filter(|o| !new.iter().any(|e| e.object == *o)).collect();
    gone.sort_unstable();
    gone.dedup();
    gone
}

/// Names the content that a canonical list stands for: equal lists, equal bytes. Objects never change, so their checksums
/// say nothing more.
#[must_use]
pub fn tag(list: &[Extent]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    for e in list {
        for number in [e.object.session.0, e.object.seq] {
            hasher.update(&number.to_le_bytes());
        }
        for number in [e.start, e.len, e.object_offset] {
            hasher.update(&number.to_le_bytes());
        }
    }
    let mut tag = [0; 16];
    tag.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    tag
}

fn shift(e: &Extent) -> i64 {
    i64::from(e.object_offset) - i64::from(e.start)
}

/// Joins neighbours that continue each other in the same object.
fn merge(list: Vec<Extent>) -> Vec<Extent> {
    let mut merged: Vec<Extent> = Vec::with_capacity(list.len());
    for e in list {
        match merged.last_mut() {
            Some(last)
                if last.object == e.object
                    && last.start + last.len == e.start
                    && last.object_offset + last.len == e.object_offset =>
            {
                last.len += e.len;
                last.sum = last.sum.or(e.sum);
            }
            _ => merged.push(e),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SessionId;
    use proptest::prelude::*;

    const N: u32 = 48;

    fn extent(start: u32, len: u32, seq: u64, object_offset: u32) -> Extent {
        let object = ObjectId { session: SessionId(1), seq };
        Extent { start, len, object, object_offset, sum: None }
    }

    /// Where each byte of the chunk comes from.
    fn bytes(list: &[Extent]) -> Vec<Option<(u64, u32)>> {
        let mut bytes = vec![None; N as usize];
        for e in list {
            for i in 0..e.len {
                bytes[(e.start + i) as usize] = Some((e.object.seq, e.object_offset + i));
            }
        }
        bytes
    }

    fn is_canonical(list: &[Extent]) -> bool {
        list.iter().all(|e| e.len > 0)
            && list.windows(2).all(|w| w[0].start + w[0].len <= w[1].start)
            && merge(list.to_vec()) == list
    }

    fn any_list() -> impl Strategy<Value = Vec<Extent>> {
        let one = (0..N, 1..20u32, 1..5u64, 0..4u32);
        let one =
            one.prop_map(|(start, len, seq, offset)| extent(start, len.min(N - start), seq, offset * 7));
        proptest::collection::vec(one, 0..12)
    }

    proptest! {
        #[test]
        fn overlay_is_painting(lower in any_list(), upper in any_list()) {
            let below = canonical(&lower);
            prop_assert!(is_canonical(&below), "{:?}", below);
            prop_assert_eq!(bytes(&below), bytes(&lower));
            let both = overlay(&below, &upper);
            prop_assert!(is_canonical(&both), "{:?}", both);
            let painted: Vec<Extent> = lower.iter().chain(&upper).copied().collect();
            prop_assert_eq!(bytes(&both), bytes(&painted));
            // What was committed may be laid over it once more.
            prop_assert_eq!(overlay(&both, &canonical(&upper)), both);
        }

        #[test]
        fn clips_and_pieces(list in any_list(), end in 0..N, start in 0..N) {
            let list = canonical(&list);
            let clipped = clip(&list, end);
            prop_assert!(is_canonical(&clipped));
            let mut model = bytes(&list);
            model[end as usize..].fill(None);
            prop_assert_eq!(bytes(&clipped), model);

            let range = start.min(end)..start.max(end);
            let emptied = without_ranges(list.clone(), &Ranges::of(range.clone()));
            prop_assert!(is_canonical(&emptied));
            let mut model = bytes(&list);
            model[range.start as usize..range.end as usize].fill(None);
            prop_assert_eq!(bytes(&emptied), model);

            let mut at = range.start;
            for piece in pieces(&list, range.clone()) {
                let (span, data) = match &piece {
                    Piece::Data(e) => (span(e), Some(*e)),
                    Piece::Hole(r) => (r.clone(), None),
                };
                prop_assert_eq!(at, span.start);
                prop_assert!(!span.is_empty());
                at = span.end;
                let part = &bytes(&list)[span.start as usize..span.end as usize];
                let wanted = bytes(&data.into_iter().collect::<Vec<_>>());
                prop_assert_eq!(part, &wanted[span.start as usize..span.end as usize]);
            }
            prop_assert_eq!(at, range.end.max(range.start));
        }

        #[test]
        fn without_keeps_only_what_differs(list in any_list(), other in any_list()) {
            let (list, other) = (canonical(&list), canonical(&other));
            let rest = without(&list, &other);
            let (l, o) = (bytes(&list), bytes(&other));
            let model: Vec<_> = l.iter().zip(&o).map(|(l, o)| if l == o { None } else { *l }).collect();
            prop_assert_eq!(bytes(&rest), model);
            prop_assert!(without(&list, &list).is_empty());
        }
    }

    #[test]
    fn neighbours_of_one_object_join_and_tags_tell_lists_apart() {
        let joined = canonical(&[extent(0, 4, 1, 0), extent(4, 4, 1, 4)]);
        assert_eq!(joined, [extent(0, 8, 1, 0)]);
        assert_eq!(tag(&joined), tag(&canonical(&[extent(4, 4, 1, 4), extent(0, 4, 1, 0)])));
        assert_ne!(tag(&joined), tag(&[extent(0, 8, 2, 0)]));
        assert_ne!(tag(&joined), tag(&[]));
        assert_eq!(dropped(&[extent(0, 4, 1, 0), extent(4, 4, 2, 0)], &[extent(0, 2, 2, 0)]).len(), 1);
    }
}
