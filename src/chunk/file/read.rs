//! Reading: from the local disk, else from the bucket, a chunk at a time, ahead of who reads in order.

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};

use super::content::FileContent;
use super::state::{Base, Part};
use crate::chunk::cache::CacheFile;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::source::bucket::Object;
use crate::types::Extent;

/// Lists of chunks read in one round trip.
const ROWS_AT_ONCE: u64 = 64;
/// How often a read begins again because the file changes under it.
const ROUNDS: usize = 16;
/// Objects of one chunk that are fetched at once.
const OBJECTS_AT_ONCE: usize = 4;
/// The most that is fetched ahead of a reader, bytes (and at least one chunk).
const AHEAD: u64 = 32 << 20;
/// How far from where it is expected a read may begin and still be in order: the kernel's own readahead sends several
/// at once.
const SLACK: u64 = 1 << 20;

/// Where a reader is expected next.
#[derive(Debug, Default)]
pub(super) struct Readahead {
    next: u64,
    in_order: u32,
    /// Chunks before this one were asked for.
    asked: u64,
}

/// A part of a read: its place in the answer, and what it is.
pub(super) type Placed = (usize, u64, Part);

impl FileContent {
    /// Reads without waiting: only what is in memory or in the kernel's cache of the local disk. `None`: use
    /// [`FileContent::read`]. Otherwise the number of bytes, less than `buf` holds only at the end of the file.
    #[must_use]
    pub fn try_read(self: &Arc<Self>, offset: u64, buf: &mut [u8]) -> Option<usize> {
        let (len, parts) = self.parts(offset, buf.len())?;
        let buf = &mut buf[..len];
        let cache = self.opened_cache();
        for (at, idx, part) in parts {
            let span = part.span();
            let piece = &mut buf[at..at + (span.end - span.start) as usize];
            let place = self.offset(idx, span.start);
            match part {
                Part::Zeros(_) => piece.fill(0),
                Part::Inline(bytes, r) => piece.copy_from_slice(&bytes[r.start as usize..r.end as usize]),
                Part::Local(_) => drop(cache?.try_read_raw(place, piece)?),
                Part::Recorded(_) => drop(cache?.try_read(place, piece)?),
                Part::Fetch(_) | Part::Blob(..) => return None,
            }
        }
        self.look_ahead(offset, len as u64);
        Some(len)
    }

    /// Up to `len` bytes at `offset`, less only at the end of the file. Bounded in time by the bucket's patience.
    pub async fn read(self: &Arc<Self>, offset: u64, len: u32) -> Result<Bytes> {
        self.look_ahead(offset, u64::from(len));
        // The local disk is full or broken: what is fetched is answered and not kept.
        let mut direct = false;
        for _ in 0..ROUNDS {
            let end = offset.saturating_add(u64::from(len)).min(self.size());
            if offset >= end {
                return Ok(Bytes::new());
            }
            if self.learn_rows(self.touched(&(offset..end))).await? {
                continue;
            }
            let Some((len, parts)) = self.parts(offset, len as usize) else { continue };
            let mut missing: Vec<u64> = parts
                .iter()
                .filter(|(_, _, p)| matches!(p, Part::Fetch(_)))
                .map(|(_, idx, _)| *idx)
                .collect();
            missing.dedup();
            if !missing.is_empty() && !direct {
                match self.fill_all(missing).await {
                    Err(e) if matches!(e.kind(), Kind::NoSpace | Kind::Disk | Kind::TooLarge) => {
                        tracing::warn!(error = %e, "the local disk cannot keep what is read");
                        direct = true;
                    }
                    other => other.context(|| self.what())?,
                }
                continue;
            }
            match self.gather(len, parts).await {
                Ok(Some(bytes)) => return Ok(bytes),
                Ok(None) => {}
                // Replaced by somebody else since the list was read: the fill reads it again.
                Err(e) if e.kind() == Kind::NotFound => direct = false,
                Err(e) => return Err(e.context(self.what())),
            }
        }
        Err(Error::with_source(Kind::Unavailable, self.what(), "it changes faster than it can be read"))
    }

    /// What a read consists of; `None` if a list must be read first. The parts are in order and without gaps.
    pub(super) fn parts(&self, offset: u64, len: usize) -> Option<(usize, Vec<Placed>)> {
        let state = self.state();
        let end = offset.saturating_add(len as u64).min(state.size);
        if offset >= end {
            return Some((0, Vec::new()));
        }
        let mut parts = Vec::new();
        for idx in self.touched(&(offset..end)) {
            if state.needs_rows(idx) {
                return None;
            }
            let range = state.within(idx, offset)..state.within(idx, end);
            for part in state.parts(idx, range) {
                let at = self.offset(idx, part.span().start) - offset;
                parts.push((usize::try_from(at).ok()?, idx, part));
            }
        }
        Some((usize::try_from(end - offset).ok()?, parts))
    }

    /// Reads the lists of those of `chunks` that are not known, and some behind them. `true` if it did.
    pub(super) async fn learn_rows(self: &Arc<Self>, chunks: Range<u64>) -> Result<bool> {
        let (version, unknown) = {
            let state = self.state();
            let Some(first) = chunks.clone().find(|&idx| state.needs_rows(idx)) else { return Ok(false) };
            let last = state.floor().div_ceil(u64::from(state.chunk_size)).min(first + ROWS_AT_ONCE);
            (state.attr.version, (first..last).filter(|&idx| state.needs_rows(idx)).collect::<Vec<_>>())
        };
        let rows = self.shared.meta.extents(self.ino, &unknown).await?;
        let learn = move |content: &Arc<FileContent>| {
            for (idx, rows) in unknown.into_iter().zip(rows) {
                let tag = content.state().tag_with(idx, &rows);
                let recorded = (!rows.is_empty() && content.has_recorded(idx, &tag)).then_some(tag);
                let mut state = content.state();
                // Somebody committed meanwhile, perhaps we: these rows may be older than what is known now.
                if state.attr.version == version {
                    state.learn_rows(idx, &rows, recorded);
                }
            }
            content.state().forget_some();
            Ok(true)
        };
        self.read_disk(learn).await
    }

    /// Brings chunks to the local disk, several at once.
    async fn fill_all(self: &Arc<Self>, chunks: Vec<u64>) -> Result<()> {
        let flights: Vec<_> = chunks.into_iter().map(|idx| self.fill(idx)).collect();
        for flight in flights {
            flight.landed().await?;
        }
        Ok(())
    }

    fn fill(self: &Arc<Self>, idx: u64) -> super::flight::Boarded {
        let content = self.clone();
        self.fills.board(&self.shared.runtime, idx, move || async move { content.bring(idx, false).await })
    }

    /// Brings what objects have of chunk `idx` to the local disk; with `all`, also what a blob, a row or holes give.
    pub(super) async fn bring(self: &Arc<Self>, idx: u64, all: bool) -> Result<()> {
        let mut reread = false;
        for _ in 0..ROUNDS {
            self.learn_rows(idx..idx + 1).await?;
            let (generation, parts) = {
                let mut state = self.state();
                if state.needs_rows(idx) {
                    continue;
                }
                let end = state.data_end(idx);
                (state.chunk(idx).generation, state.parts(idx, 0..end))
            };
            let local = |p: &Part| match p {
                Part::Local(_) | Part::Recorded(_) => true,
                Part::Fetch(_) => false,
                Part::Blob(..) | Part::Inline(..) | Part::Zeros(_) => !all,
            };
            // Holes are written too: what lies there on the disk may be old, and a chunk is recorded as a whole.
            let wanted: Vec<Part> = match parts.iter().all(local) {
                true => return Ok(()),
                false => {
                    parts.into_iter().filter(|p| !matches!(p, Part::Local(_) | Part::Recorded(_))).collect()
                }
            };
            let bytes = wanted.iter().map(|p| p.span().len()).sum();
            let _permit = self.fetch_permit(bytes).await?;
            match self.fetch(idx, wanted).await {
                Ok(pieces) => {
                    self.on_disk(move |content| content.land(idx, generation, pieces)).await?;
                }
                Err(e) if e.kind() == Kind::NotFound && !reread => {
                    self.reread(idx).await?;
                    reread = true;
                }
                Err(e) if e.kind() == Kind::NotFound => return Err(e.with_kind(Kind::Corrupt)),
                Err(e) => return Err(e),
            }
        }
        Err(Error::with_source(Kind::Unavailable, self.what(), "it changes faster than it can be read"))
    }

    /// The bytes of parts that are not on the local disk.
    async fn fetch(&self, idx: u64, parts: Vec<Part>) -> Result<Vec<(Range<u32>, Bytes)>> {
        let fetch = async |part: Part| -> Result<(Range<u32>, Bytes)> {
            let span = part.span();
            let bytes = match part {
                Part::Fetch(extent) => self.fetch_extent(&extent).await?,
                Part::Blob(blob, r) => {
                    let size = self.state().attr.size;
                    let bytes = self
                        .shared
                        .blobs
                        .read_blob(blob, size, self.offset(idx, r.start), r.end - r.start)
                        .await?;
                    if bytes.len() != r.len() {
                        return Err(Error::with_source(
                            Kind::Corrupt,
                            format!("blob {blob}"),
                            "a short read",
                        ));
                    }
                    bytes
                }
                Part::Inline(bytes, r) => bytes.slice(r.start as usize..r.end as usize),
                Part::Local(r) | Part::Recorded(r) | Part::Zeros(r) => BytesMut::zeroed(r.len()).freeze(),
            };
            Ok((span, bytes))
        };
        stream::iter(parts).map(fetch).buffered(OBJECTS_AT_ONCE).try_collect().await
    }

    async fn fetch_extent(&self, e: &Extent) -> Result<Bytes> {
        let range = u64::from(e.object_offset)..u64::from(e.object_offset) + u64::from(e.len);
        self.shared.bucket.get(&Object::FileChunk(e.object), Some(range)).await
    }

    /// Writes fetched bytes where they are still wanted, and records the chunk if that makes it whole.
    fn land(self: &Arc<Self>, idx: u64, generation: u64, pieces: Vec<(Range<u32>, Bytes)>) -> Result<()> {
        let cache = self.cache()?;
        for (range, bytes) in pieces {
            let wanted = self.state().wanted(idx, generation, range.clone());
            for part in wanted.iter() {
                let data = &bytes[(part.start - range.start) as usize..(part.end - range.start) as usize];
                self.write_cache(cache, self.offset(idx, part.start), data)?;
                if !self.state().filled(idx, generation, part) {
                    return Ok(());
                }
            }
        }
        self.settle(idx)
    }

    /// Writes into the cache's file, once more after making room if the disk is full. Blocks; `landing` is held.
    pub(super) fn write_cache(&self, cache: &CacheFile, offset: u64, data: &[u8]) -> Result<()> {
        let unit = u64::from(cache.chunk_size());
        let chunks = (offset + data.len() as u64).div_ceil(unit);
        if chunks > cache.chunks() {
            // In large steps: each is a sync.
            cache.set_size(chunks.max(cache.chunks() + cache.chunks().min(256)).saturating_mul(unit))?;
        }
        match cache.write_at(offset, data) {
            Err(e) if e.kind() == Kind::NoSpace && cache.dir().make_room(data.len() as u64) => {
                cache.write_at(offset, data)
            }
            other => other,
        }
    }

    /// Hands a chunk that is committed and wholly on the disk to the index. Blocks; `landing` is held.
    pub(super) fn settle(&self, idx: u64) -> Result<()> {
        let Some((tag, end, hash)) = self.state().to_record(idx) else { return Ok(()) };
        let cache = self.cache()?;
        let hash = match hash {
            Some(hash) => Some(hash),
            None => cache.hash_of(idx, end)?,
        };
        let Some(hash) = hash else { return Ok(()) };
        cache.record(idx, &tag, &hash, end)?;
        self.state().recorded(idx, &tag);
        Ok(())
    }

    /// An object of chunk `idx` is gone: somebody replaced it since its list was read, or it is lost.
    async fn reread(self: &Arc<Self>, idx: u64) -> Result<()> {
        let attr = self.shared.meta.getattr(self.ino).await?;
        let before = {
            let mut state = self.state();
            let before = state.forget_rows(idx);
            if state.attr.version != attr.version && state.committing.is_none() {
                state.rebase(attr);
            }
            before
        };
        self.learn_rows(idx..idx + 1).await?;
        let state = self.state();
        if state.base == Base::Rows && state.list(idx) == before {
            let why = "an object of it is missing in the bucket";
            return Err(Error::with_source(Kind::Corrupt, format!("chunk {idx}"), why));
        }
        Ok(())
    }

    /// Puts an answer together. `None`: something was evicted since the parts were listed.
    pub(super) async fn gather(self: &Arc<Self>, len: usize, parts: Vec<Placed>) -> Result<Option<Bytes>> {
        let mut answer = BytesMut::zeroed(len);
        let mut local = Vec::new();
        for (at, idx, part) in parts {
            match part {
                Part::Zeros(_) => {}
                Part::Local(_) | Part::Recorded(_) => local.push((at, idx, part)),
                Part::Inline(bytes, r) => {
                    answer[at..at + r.len()].copy_from_slice(&bytes[r.start as usize..r.end as usize]);
                }
                Part::Fetch(_) | Part::Blob(..) => {
                    let span = part.span();
                    let pieces = self.fetch(idx, vec![part]).await?;
                    for (_, bytes) in pieces {
                        answer[at..at + span.len()].copy_from_slice(&bytes);
                    }
                }
            }
        }
        if local.is_empty() {
            return Ok(Some(answer.freeze()));
        }
        let read = move |content: &Arc<FileContent>| {
            let cache = content.cache()?;
            for (at, idx, part) in local {
                let span = part.span();
                let (place, piece) = (content.offset(idx, span.start), &mut answer[at..at + span.len()]);
                match part {
                    Part::Recorded(_) if cache.read_present(place, piece)? != Some(span.len()) => {
                        content.state().evicted(idx);
                        return Ok(None);
                    }
                    Part::Recorded(_) => {}
                    // What was cut off meanwhile is zeros, as it is in the answer.
                    _ => drop(cache.read_at(place, piece)?),
                }
            }
            Ok(Some(answer.freeze()))
        };
        self.read_disk(read).await
    }

    /// Fetches ahead of a reader who reads in order: nothing at first, then more with each read, up to [`AHEAD`].
    fn look_ahead(self: &Arc<Self>, offset: u64, len: u64) {
        let unit = u64::from(self.shared.chunk_size);
        let chunks = {
            let mut ahead = self.readahead.lock().unwrap_or_else(PoisonError::into_inner);
            if offset.abs_diff(ahead.next) <= SLACK {
                ahead.in_order = (ahead.in_order + 1).min(16);
            } else {
                *ahead = Readahead::default();
            }
            ahead.next = offset + len;
            if ahead.in_order < 2 {
                return;
            }
            let window = (1u64 << (ahead.in_order - 1)).min((AHEAD / unit).max(1));
            let here = ahead.next / unit;
            let chunks = ahead.asked.max(here + 1)..here + 1 + window;
            // In steps: a task for each read would cost more than it brings.
            if chunks.is_empty() || (chunks.end - chunks.start) * 4 < window {
                return;
            }
            ahead.asked = chunks.end;
            chunks
        };
        {
            let state = self.state();
            if state.base != Base::Rows || chunks.start >= state.floor().div_ceil(unit) {
                return;
            }
        }
        let content = self.clone();
        self.shared.runtime.spawn(async move {
            // Whoever needs the bytes will see the error.
            if content.learn_rows(chunks.clone()).await.is_err() {
                return;
            }
            let missing: Vec<u64> = {
                let state = content.state();
                let needs = |idx: u64| {
                    !state.needs_rows(idx)
                        && state
                            .parts(idx, 0..state.data_end(idx))
                            .iter()
                            .any(|p| matches!(p, Part::Fetch(_)))
                };
                chunks.filter(|&idx| needs(idx)).collect()
            };
            let _ = content.fill_all(missing).await;
        });
    }
}
