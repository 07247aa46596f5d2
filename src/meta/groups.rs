//! Which chunks of a file may have rows. Nobody can ask a map for its fields, and a sparse file of 2^57 bytes has
//! billions of chunks: those far out are found by a list of groups.

use std::ops::Range;

use super::Meta;
use super::kv::Kv;
use super::schema::{self, FAR, GROUP};
use crate::error::{Error, Kind, Result};
use crate::types::Ino;

/// Groups read in one round trip.
const PAGE: usize = 1000;

/// Whether the list of groups is needed to find rows of `wanted` in a file with these attributes.
#[must_use]
pub fn needs_groups(wanted: &Range<u64>, chunks: u64, grouped: bool) -> bool {
    grouped && wanted.start.max(FAR) < wanted.end.min(chunks)
}

impl Meta {
    /// The chunks of a file that may have rows, in order; everywhere else there is none. `chunks` and `grouped` are of its
    /// attributes. A file without far chunks: no round trip; else one for a thousand groups. Takes 16 bytes for each
    /// group that has data.
    pub async fn row_ranges(&self, ino: Ino, chunks: u64, grouped: bool) -> Result<Vec<Range<u64>>> {
        row_ranges(&**self.kv(), ino, chunks, grouped).await
    }
}

/// [`Meta::row_ranges`], for who has no session.
pub(super) async fn row_ranges(kv: &dyn Kv, ino: Ino, chunks: u64, grouped: bool) -> Result<Vec<Range<u64>>> {
    if !needs_groups(&(0..chunks), chunks, grouped) {
        // Not `vec![a..b]`, which reads as if it were all of the numbers.
        return Ok(std::iter::once(0..chunks).filter(|r| !r.is_empty()).collect());
    }
    let mut groups = Vec::new();
    let mut after = 0;
    loop {
        let page = kv.scan(&schema::groups_map(ino), after, PAGE).await?;
        for entry in &page {
            let number = <[u8; 8]>::try_from(&entry.field[..]).map(u64::from_be_bytes);
            let bad = |e| Error::with_source(Kind::Corrupt, format!("groups of inode {ino}"), e);
            groups.push(number.map_err(bad)?);
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = last.id,
            _ => break,
        }
    }
    groups.sort_unstable();
    Ok(ranges(&groups, chunks))
}

/// The near chunks and those of the groups, below `chunks`; neighbours joined.
fn ranges(groups: &[u64], chunks: u64) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = std::iter::once(0..FAR.min(chunks)).collect();
    for group in groups {
        let start = group.saturating_mul(GROUP);
        let range = start..start.saturating_add(GROUP).min(chunks);
        match ranges.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ if range.is_empty() => {}
            _ => ranges.push(range),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_chunks_and_groups_in_order() {
        let one = |range: Range<u64>| std::iter::once(range).collect::<Vec<_>>();
        assert_eq!(ranges(&[], 7), one(0..7));
        assert_eq!(ranges(&[4, 5, 9], 9500), [0..6000, 9000..9500]);
        assert_eq!(ranges(&[1 << 40], 1 << 35), one(0..FAR));
        assert!(needs_groups(&(5..6000), 6000, true) && !needs_groups(&(5..FAR), 6000, true));
        assert!(!needs_groups(&(5000..6000), 6000, false) && !needs_groups(&(5000..6000), 4500, true));
    }
}
