//! Reading: putting answers together, and looking ahead of who reads in order.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, sleep_until};

use super::content::FileContent;
use super::state::{Base, Part};
use crate::error::{Error, Kind, Result, ResultExt};

/// How often a read begins again because the file changes under it.
pub(super) const ROUNDS: usize = 16;
/// How often a read fetches what is evicted before it is read. Then it takes the bytes as they come.
const LOST: usize = 3;
/// Between two tries of a read.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
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
        let in_memory = self.in_memory();
        let cache = self.opened_cache();
        let changes = cache.map(|cache| cache.changes());
        let (len, parts) = self.parts(offset, buf.len())?;
        let buf = &mut buf[..len];
        for (at, idx, part) in parts {
            let span = part.span();
            let piece = &mut buf[at..at + (span.end - span.start) as usize];
            let place = || self.place(idx, span.start).ok();
            match part {
                Part::Zeros(_) => piece.fill(0),
                Part::Inline(bytes, r) => piece.copy_from_slice(&bytes[r.start as usize..r.end as usize]),
                Part::Local(_) => drop(cache?.try_read_raw(place()?, piece)?),
                Part::Recorded(_) => drop(cache?.try_read(place()?, piece)?),
                Part::Fetch(_) | Part::Blob(..) => return None,
            }
        }
        if self.in_memory() != in_memory || cache.map(|cache| cache.changes()) != changes {
            return None;
        }
        self.shared.reads.note(len as u64, 0);
        self.look_ahead(offset, len as u64);
        Some(len)
    }

    /// Up to `len` bytes at `offset`, less only at the end of the file. A bucket that does not answer is tried again within
    /// the `io_timeout`.
    pub async fn read(self: &Arc<Self>, offset: u64, len: u32) -> Result<Bytes> {
        self.look_ahead(offset, u64::from(len));
        let deadline = Instant::now() + self.shared.options.io_timeout;
        let mut pause = FIRST_PAUSE;
        let mut left_disk = 0;
        loop {
            let error = match self.read_once(offset, len, false).await {
                Ok(bytes) => return Ok(bytes),
                Err(e) => e,
            };
            if left_disk < 3 && self.leave_disk(&error).await {
                left_disk += 1;
                continue;
            }
            let wake = Instant::now() + pause;
            if !error.kind().is_transient() || wake > deadline || self.shared.closed.load(SeqCst) {
                return Err(error);
            }
            sleep_until(wake).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One try. `direct`: what is fetched is answered and not kept; so it is in any case if the local disk is full, broken or
    /// too small.
    pub(super) async fn read_once(self: &Arc<Self>, offset: u64, len: u32, direct: bool) -> Result<Bytes> {
        let (mut direct, mut lost, mut counted) = (direct, 0, false);
        for _ in 0..ROUNDS {
            let end = offset.saturating_add(u64::from(len)).min(self.size());
            if offset >= end {
                return Ok(Bytes::new());
            }
            if self.learn_rows(self.touched(&(offset..end))).await? {
                continue;
            }
            let in_memory = self.in_memory();
            let Some((len, parts)) = self.parts(offset, len as usize) else { continue };
            let mut missing: Vec<u64> = parts
                .iter()
                .filter(|(_, _, p)| matches!(p, Part::Fetch(_)))
                .map(|(_, idx, _)| *idx)
                .collect();
            missing.dedup();
            if !std::mem::replace(&mut counted, true) {
                self.count(len as u64, &parts);
            }
            if !missing.is_empty() && !direct {
                match self.fill_all(missing).await {
                    Err(e) if self.leave_disk(&e).await => {}
                    Err(e) if matches!(e.kind(), Kind::NoSpace | Kind::Disk | Kind::TooLarge) => {
                        self.shared.say_full(&format!("what is read is not kept: {e}"));
                        direct = true;
                    }
                    other => other.context(|| self.what())?,
                }
                continue;
            }
            match self.gather(len, parts).await {
                // Another place than the one that the parts were listed for has other bytes.
                Ok(Some(_)) if self.in_memory() != in_memory => {}
                Ok(Some(bytes)) => return Ok(bytes),
                // Evicted before it was read, and so it would go on while the cache is smaller than what is read at once.
                Ok(None) => {
                    lost += 1;
                    direct |= lost >= LOST;
                }
                // Replaced by somebody else since the list was read: the fill reads it again.
                Err(e) if e.kind() == Kind::NotFound => direct = false,
                Err(e) => return Err(e.context(self.what())),
            }
        }
        Err(Error::with_source(Kind::Unavailable, self.what(), "it changes faster than it can be read"))
    }

    /// What is read through a blob is counted there.
    fn count(&self, len: u64, parts: &[Placed]) {
        let bytes = |is: fn(&Part) -> bool| -> u64 {
            parts.iter().filter(|(_, _, p)| is(p)).map(|(_, _, p)| p.span().len() as u64).sum()
        };
        let through_blob = bytes(|p| matches!(p, Part::Blob(..)));
        self.shared.reads.note(len.saturating_sub(through_blob), bytes(|p| matches!(p, Part::Fetch(_))));
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
                    let pieces = self.fetch(idx, vec![part], true).await?;
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
                let (place, piece) = (content.place(idx, span.start)?, &mut answer[at..at + span.len()]);
                match part {
                    Part::Recorded(_) if cache.read_present(place, piece)? != Some(span.len()) => {
                        content.state().evicted(idx);
                        return Ok(None);
                    }
                    Part::Recorded(_) => {}
                    // What was cut off meanwhile is zeros, as it is in the answer.
                    _ => loop {
                        let changes = cache.changes();
                        if !content.state().is_local(idx, span.clone()) {
                            // The index has it since, or nobody: the evictor may have been faster.
                            return Ok(None);
                        }
                        cache.read_at(place, piece)?;
                        if cache.changes() == changes {
                            break;
                        }
                    },
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
        self.shared.spawn(async move {
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
