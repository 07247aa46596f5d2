//! A read of a blob: each chunk goes into the answer as soon as it is there, and is let go of. So a read comes to its end
//! though the cache be smaller than what is read at once, and none holds memory that another waits for.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::Blob;
use crate::blocking::blocking;
use crate::chunk::cache::CacheFile;
use crate::chunk::flight::{Landing, Wait};
use crate::error::{Error, Result};

/// Between two tries of one read when a transfer that it waited for was given up.
const PAUSE: Duration = Duration::from_millis(50);
/// How often a read waits for what is evicted before it is read. Then it has the bytes kept in memory for it.
const LOST: usize = 3;

/// An answer in the making.
struct Answer {
    offset: u64,
    buf: BytesMut,
    chunk_size: u64,
    /// Chunks whose bytes are not in it yet, in order.
    missing: Vec<u64>,
}

impl Answer {
    /// Where the bytes of some chunks lie: in the blob, and here.
    fn place(&self, chunks: Range<u64>) -> (u64, Range<usize>) {
        let end = self.offset + self.buf.len() as u64;
        let from = self.offset.max(chunks.start * self.chunk_size);
        let to = end.min(chunks.end * self.chunk_size);
        (from, (from - self.offset) as usize..(to - self.offset) as usize)
    }

    /// Takes what it needs of a chunk in memory.
    fn take(&mut self, idx: u64, chunk: &[u8]) {
        let (from, place) = self.place(idx..idx + 1);
        let start = (from - idx * self.chunk_size) as usize;
        self.buf[place.clone()].copy_from_slice(&chunk[start..start + place.len()]);
        self.missing.retain(|missing| *missing != idx);
    }

    /// Takes what the disk has of the chunks from `first` to `last`. Several at once are taken together or not at all.
    fn read(&mut self, file: &CacheFile, first: u64, last: u64) -> Result<()> {
        let (from, place) = self.place(first..last + 1);
        let len = place.len();
        if file.read_present(from, &mut self.buf[place])? == Some(len) {
            self.missing.retain(|idx| !(first..=last).contains(idx));
        }
        Ok(())
    }
}

/// While it lives, chunks that somebody waits for come in memory.
struct Direct(Arc<Blob>);

impl Direct {
    fn new(blob: &Arc<Blob>) -> Self {
        blob.direct.fetch_add(1, SeqCst);
        Direct(blob.clone())
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.0.direct.fetch_sub(1, SeqCst);
    }
}

impl Blob {
    /// Whether the cache gives chunks away before they are read: who waits for this one wants it in memory.
    pub(in crate::chunk) fn wants_memory(&self, idx: u64) -> bool {
        self.direct.load(SeqCst) > 0 && self.is_awaited(idx..idx + 1)
    }

    /// Bytes within the blob, at least one.
    pub(super) async fn read(self: &Arc<Self>, offset: u64, len: u64) -> Result<Bytes> {
        self.compare().await;
        if self.holds_back(offset + len) {
            self.whole().await?;
        }
        let mut buf = BytesMut::zeroed(len as usize);
        if self.file.try_read(offset, &mut buf) == Some(buf.len()) {
            self.note(offset, len);
            self.shared.counters.reads.note(len, 0);
            return Ok(buf.freeze());
        }
        let missing = self.chunks_of(offset, len).collect();
        let mut answer = Answer { offset, buf, chunk_size: self.chunk_size(), missing };
        let (mut noted, mut lost, mut direct) = (false, 0, None);
        loop {
            let waits = self.join(answer.missing.iter().copied())?;
            // After the chunks that are waited for, those ahead of them.
            if !std::mem::replace(&mut noted, true) {
                self.note(offset, len);
                let away = waits.iter().map(|(idx, _)| answer.place(*idx..idx + 1).1.len() as u64).sum();
                self.shared.counters.reads.note(len, away);
            }
            let landing = async |(idx, wait): (u64, Wait)| (idx, wait.landing().await);
            // As they come: one that is here must not wait in memory for one that needs its place.
            let mut landings: FuturesUnordered<_> = waits.into_iter().map(landing).collect();
            let mut again = false;
            while let Some((idx, landing)) = landings.next().await {
                match landing {
                    Landing::Memory(chunk) => answer.take(idx, &chunk.bytes),
                    Landing::Cached if lost > 0 => answer = self.read_disk(answer, vec![(idx, idx)]).await?,
                    Landing::Cached => {}
                    // Others gave up on it; this reader has time left.
                    Landing::Failed(e) if e.kind().is_transient() => again = true,
                    Landing::Failed(e) => return Err(e.share()),
                }
            }
            drop(landings);
            if again {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let runs = answer.missing.chunk_by(|a, b| lost == 0 && a + 1 == *b);
            let runs: Vec<(u64, u64)> = runs.map(|run| (run[0], run[run.len() - 1])).collect();
            if !runs.is_empty() {
                answer = self.read_disk(answer, runs).await?;
            }
            if answer.missing.is_empty() {
                return Ok(answer.buf.freeze());
            }
            // Evicted meanwhile.
            lost += 1;
            if lost >= LOST && direct.is_none() {
                direct = Some(Direct::new(self));
            }
        }
    }

    /// Takes what the disk still has.
    async fn read_disk(&self, mut answer: Answer, runs: Vec<(u64, u64)>) -> Result<Answer> {
        let file = self.file.clone();
        let read = move || {
            let read = runs.into_iter().try_for_each(|(first, last)| answer.read(&file, first, last));
            Ok((read, answer))
        };
        let (read, answer): (Result<(), Error>, Answer) = blocking(read).await?;
        match read {
            Err(e) if !self.leave_disk(&e).await => Err(e),
            _ => Ok(answer),
        }
    }
}
