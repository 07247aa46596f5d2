//! Space: fallocate(2), and where data lies, for lseek(2).

use std::ops::Range;
use std::sync::Arc;

use super::content::FileContent;
use super::state::Base;
use super::write::MAX_SIZE;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::Timestamp;

/// Separate holes beyond which they are committed on the way.
const MAX_HOLES: usize = 512;
/// Lists of chunks read in one round trip by who looks for data.
const ROWS_AHEAD: u64 = 256;

/// What fallocate(2) is to do with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocate {
    /// Its bytes are zeros afterwards. Otherwise what is there stays.
    pub zero: bool,
    /// The file does not grow.
    pub keep_size: bool,
}

impl FileContent {
    /// As fallocate(2) does, the time of the last change included. What is zeroed becomes a hole: it takes no space, here or
    /// in the bucket. No space is put aside for later writes. For other mounts after [`FileContent::flush`].
    ///
    /// [`Kind::TooLarge`]: beyond what a file may be; [`Kind::NoSpace`]: the file would grow beyond the volume's capacity.
    pub async fn allocate(self: &Arc<Self>, offset: u64, len: u64, how: Allocate) -> Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= MAX_SIZE);
        let range = offset..end.ok_or_else(|| Error::new(Kind::TooLarge, self.what()))?;
        if range.is_empty() {
            return Ok(());
        }
        if !how.keep_size && range.end > self.size() {
            self.claim(range.end).await.context(|| self.what())?;
        }
        if how.zero {
            // The chunks that it begins and ends in: the cache may have the rest of them.
            self.keep_known(range.start..range.start + 1).await?;
            let last = range.end.min(self.size()).max(range.start + 1) - 1;
            self.keep_known(last..last + 1).await?;
        }
        // Nobody writes an entry of the journal meanwhile: it would speak of bytes that are about to go.
        let saving = self.saving.lock().await;
        let journalled = self.state().journalled.is_some();
        let work = |range: Range<u64>| {
            move |content: &Arc<FileContent>| {
                let size = content.size();
                let hole = range.start..range.end.min(size);
                if how.zero && !hole.is_empty() {
                    content.take_over(content.touched(&hole))?;
                    content.drop_local(&hole, journalled)?;
                    content.state().clear(hole, Timestamp::now());
                }
                content.shared.pin(content);
                if !how.keep_size && range.end > size {
                    content.state().resize(range.end, Timestamp::now());
                } else {
                    content.state().touch(Timestamp::now());
                }
                Ok(())
            }
        };
        let mut done = self.on_disk(work(range.clone())).await;
        if let Err(e) = &done
            && self.leave_disk(e).await
        {
            done = self.on_disk(work(range)).await;
        }
        self.reclaim();
        done.context(|| self.what())?;
        self.correct_after(saving, journalled && how.zero).await?;
        if self.state().holes() > MAX_HOLES {
            self.flush_behind();
        }
        Ok(())
    }

    /// Drops what the cache's index says of chunks that `hole` takes wholly and, unless an entry of the journal still speaks
    /// of their bytes, gives the space back. Blocks; `landing` is held.
    fn drop_local(&self, hole: &Range<u64>, journalled: bool) -> Result<()> {
        if self.opened_cache().is_none() && !self.in_cache() {
            return Ok(());
        }
        let unit = u64::from(self.shared.chunk_size);
        let whole = hole.start.div_ceil(unit)..hole.end / unit;
        let cache = self.cache()?;
        for slots in self.slots(&whole) {
            let end = slots.end.min(cache.chunks());
            match journalled {
                true => cache.clear(slots.start, end.max(slots.start))?,
                false => cache.give_back(slots.start, end)?,
            }
        }
        Ok(())
    }

    /// The first byte at or after `offset` that is data; `None` if there is none. What is not a hole for certain is data.
    pub async fn next_data(self: &Arc<Self>, offset: u64) -> Result<Option<u64>> {
        self.look(offset, true).await
    }

    /// The first byte at or after `offset` that lies in a hole; the end of the file counts as one. `None` if `offset` is
    /// beyond it.
    pub async fn next_hole(self: &Arc<Self>, offset: u64) -> Result<Option<u64>> {
        self.look(offset, false).await
    }

    async fn look(self: &Arc<Self>, offset: u64, for_data: bool) -> Result<Option<u64>> {
        let unit = u64::from(self.shared.chunk_size);
        let mut at = offset;
        loop {
            let unknown = {
                let state = self.state();
                if at >= state.size {
                    return Ok((!for_data && offset < state.size).then_some(state.size));
                }
                let idx = at / unit;
                if !state.needs_rows(idx) {
                    let data = state.data_in(idx);
                    let within = (at % unit) as u32;
                    let rest = within..self.shared.chunk_size;
                    let found = if for_data { data.within(rest) } else { data.missing(rest) };
                    if let Some(first) = found.iter().next() {
                        let found = idx * unit + u64::from(first.start);
                        return Ok(match found < state.size {
                            true => Some(found),
                            false => (!for_data).then_some(state.size),
                        });
                    }
                    // Holes may be large: on to the next chunk that may have something.
                    match if for_data { state.next_with_data(idx + 1) } else { Some(idx + 1) } {
                        Some(next) => at = next.saturating_mul(unit),
                        None => return Ok(None),
                    }
                    continue;
                }
                idx
            };
            self.learn_all_ranges(unknown).await?;
            self.learn_rows_ahead(unknown..unknown + 1, ROWS_AHEAD).await?;
        }
    }

    /// Finds out which chunks have rows, if `idx` is so far out that this tells much.
    async fn learn_all_ranges(&self, idx: u64) -> Result<()> {
        let (version, chunks, grouped) = {
            let state = self.state();
            let (chunks, grouped) = (state.attr.chunks, state.attr.layout.grouped);
            let wanted = state.base == Base::Rows && state.row_ranges.is_none();
            if !wanted || !crate::meta::needs_groups(&(idx..chunks), chunks, grouped) {
                return Ok(());
            }
            (state.attr.version, chunks, grouped)
        };
        let ranges = self.shared.meta.row_ranges(self.ino, chunks, grouped).await?;
        let mut state = self.state();
        if state.attr.version == version {
            state.row_ranges = Some(Arc::new(ranges));
        }
        Ok(())
    }
}
