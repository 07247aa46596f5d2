//! Copying from file to file, copy_file_range(2): whole chunks by reference, the rest through the local disk.

use std::ops::Range;
use std::sync::Arc;

use super::content::FileContent;
use super::hole::Allocate;
use super::state::Base;
use super::write::MAX_SIZE;
use crate::error::{Error, Kind, Result};
use crate::meta::{Committed, Content, DataChange};
use crate::types::{Extent, Timestamp, Version};

/// Bytes that are carried over at a time.
const PIECE: u64 = 1 << 20;
/// The most bytes that one call carries over.
const CARRY_MAX: u64 = 64 << 20;
/// Holes from this size on stay holes in the copy.
const HOLE_MIN: u64 = 64 << 10;
/// Chunks that are shared in one commit. In tests so few that small files take several.
const CHUNKS_AT_ONCE: u64 = if cfg!(test) { 3 } else { 256 };
/// How often a commit is tried, before what was to be shared is carried over.
const TRIES: u32 = 8;

/// What of the source can be shared: the lists of some chunks, and the version that they are of.
struct Lists {
    lists: Vec<Vec<Extent>>,
    version: Version,
}

impl FileContent {
    /// Copies up to `len` bytes at `from` in `source`, which may be this file, to `to`; how many it were: 0 at the end of
    /// the source, and perhaps fewer than asked for. Chunks that both files have at the same place within them are shared,
    /// and committed at once; the rest is as a write. Holes stay holes.
    ///
    /// The caller sees to it that the ranges do not overlap. Errors are those of [`FileContent::write`] and of reading.
    pub async fn copy_from(
        self: &Arc<Self>,
        source: &Arc<FileContent>,
        from: u64,
        to: u64,
        len: u64,
    ) -> Result<u64> {
        let len = len.min(source.size().saturating_sub(from));
        if len == 0 {
            return Ok(0);
        }
        let len = len.min(MAX_SIZE.saturating_sub(to));
        if len == 0 {
            return Err(Error::new(Kind::TooLarge, self.what()));
        }
        let mut done = 0;
        match self.copy_upto(source, from, to, len, &mut done).await {
            // What was copied is said first; the next call hears of the error.
            Err(e) if done == 0 => Err(e),
            _ => Ok(done),
        }
    }

    async fn copy_upto(
        self: &Arc<Self>,
        source: &Arc<FileContent>,
        from: u64,
        to: u64,
        len: u64,
        done: &mut u64,
    ) -> Result<()> {
        let unit = u64::from(self.shared.chunk_size);
        let whole = to.div_ceil(unit)..(to + len) / unit;
        let aligned = from % unit == to % unit;
        if !aligned || whole.is_empty() {
            return self.carry(source, from, to..to + len.min(CARRY_MAX), done).await;
        }
        if to < whole.start * unit {
            let head = whole.start * unit - to;
            self.carry(source, from, to..to + head, done).await?;
            if *done < head {
                return Ok(());
            }
        }
        let mut next = whole.start;
        while next < whole.end {
            let some = next..whole.end.min(next + CHUNKS_AT_ONCE);
            let shared = self.share(source, (from + *done) / unit, some).await?;
            if shared == 0 {
                break;
            }
            next += shared;
            *done += shared * unit;
        }
        let rest = (len - *done).min(CARRY_MAX);
        self.carry(source, from + *done, to + *done..to + *done + rest, done).await
    }

    /// Reads there and writes here. Stops where the source ends.
    async fn carry(
        self: &Arc<Self>,
        source: &Arc<FileContent>,
        from: u64,
        range: Range<u64>,
        done: &mut u64,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let (there, left) = (from + (at - range.start), range.end - at);
            let end = source.size();
            if there >= end {
                return Ok(());
            }
            let left = left.min(end - there);
            let hole = source.next_data(there).await?.map_or(left, |data| (data - there).min(left));
            let copied = if hole >= HOLE_MIN || hole == left && hole > 0 {
                self.allocate(at, hole, Allocate { zero: true, keep_size: false }).await?;
                hole
            } else {
                let data = left.min(PIECE);
                let data = match source.next_hole(there + hole).await? {
                    Some(hole) => data.min(hole - there),
                    None => data,
                };
                // Below `PIECE`.
                let bytes = source.read(there, data as u32).await?;
                if bytes.is_empty() {
                    // It was cut meanwhile.
                    return Ok(());
                }
                u64::from(self.write(at, bytes).await?)
            };
            at += copied;
            *done += copied;
        }
        Ok(())
    }

    /// Makes `chunks` of this file consist of the objects that the chunks of `source` from `first` on consist of, in one
    /// commit; how many it were, from the first. 0: they must be carried over.
    async fn share(
        self: &Arc<Self>,
        source: &Arc<FileContent>,
        first: u64,
        chunks: Range<u64>,
    ) -> Result<u64> {
        for _ in 0..TRIES {
            // What is new has no objects yet, and what is new here must not lie over the copy.
            if source.flush_now().await.is_err() || self.flush_now().await.is_err() {
                return Ok(0);
            }
            let Some(Lists { lists, version }) =
                source.lists(first..first + (chunks.end - chunks.start)).await?
            else {
                return Ok(0);
            };
            let shared = lists.len() as u64;
            match self.commit_shared(source, version, chunks.start, lists).await {
                Ok(true) => return Ok(shared),
                Ok(false) => {}
                Err(e) => return Err(e.context(self.what())),
            }
        }
        Ok(0)
    }

    /// The committed lists of `chunks`, or of as many of the first of them as consist of objects and holes.
    async fn lists(self: &Arc<Self>, chunks: Range<u64>) -> Result<Option<Lists>> {
        let unit = u64::from(self.shared.chunk_size);
        let indexes: Vec<u64> = chunks.collect();
        let (attr, rows) = self.shared.meta.attr_and_chunk_rows(self.ino, &indexes).await?;
        if attr.content != Content::Extents {
            return Ok(None);
        }
        // Behind that there is nothing to share; in front of it a chunk without a row is one of the blob's.
        let whole = attr.size / unit;
        let shown = attr.layout.under.map_or(0, |under| under.len);
        let known = |(idx, row): (u64, Option<Vec<Extent>>)| match row {
            _ if idx >= whole => None,
            None if idx * unit < shown => None,
            row => Some(row.unwrap_or_default()),
        };
        let lists: Vec<_> = indexes.into_iter().zip(rows).map_while(known).collect();
        Ok((!lists.is_empty()).then_some(Lists { lists, version: attr.version }))
    }

    /// `false`: somebody committed to one of the files meanwhile.
    async fn commit_shared(
        self: &Arc<Self>,
        source: &Arc<FileContent>,
        version: Version,
        first: u64,
        lists: Vec<Vec<Extent>>,
    ) -> Result<bool> {
        let unit = u64::from(self.shared.chunk_size);
        let _one = self.flushing.lock().await;
        let _committing = self.committing.lock().await;
        let (base, change) = {
            let state = self.state();
            if matches!(state.base, Base::Inline(_)) && first > 0 {
                // The bytes in the row would have to become an object.
                return Ok(false);
            }
            let under = state.under;
            let change = DataChange {
                size: state.attr.size.max((first + lists.len() as u64) * unit),
                chunks: (first..).zip(lists).collect(),
                mtime: Some(Timestamp::now()),
                under,
                holes_below: under.map_or(0, |under| under.len.div_ceil(unit)),
                source: Some((source.ino, version)),
                ..DataChange::default()
            };
            (state.attr.version, change)
        };
        let committed = self.shared.meta.commit_data(self.ino, base, change).await?;
        let mut state = self.state();
        let done = match committed {
            Committed::Applied(attr) => {
                state.rebase(attr, true);
                true
            }
            Committed::Conflict(attr) => {
                // If the version is still the same, it was the source's that is another one.
                if attr.version != base {
                    let ours = self.shared.meta.is_own(attr.version.session);
                    state.rebase(attr, ours);
                }
                false
            }
        };
        drop(state);
        self.reclaim();
        Ok(done)
    }
}
