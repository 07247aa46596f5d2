//! One blob being read.

mod read;
mod strict;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::cache::CacheFile;
use super::flight::State;
use super::lock;
use super::record::Recorder;
use super::shared::Shared;
use super::verify::Check;
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{BlobId, Origin};

/// How long what the metadata says of a blob as a whole is taken as it was.
const FACTS_AGE: Duration = Duration::from_secs(30);

/// A blob open for reading; shared by all who have it open. When the last one lets go, nothing is fetched ahead any more.
#[derive(Debug)]
pub struct BlobContent {
    blob: Arc<Blob>,
    /// Of the blob when it was opened: another one means that all of it was dropped since.
    generation: u64,
}

/// What lasts while anybody reads or anything is on its way.
#[derive(Debug)]
pub(super) struct Blob {
    pub shared: Arc<Shared>,
    pub id: BlobId,
    pub size: u64,
    pub file: Arc<CacheFile>,
    pub state: Mutex<State>,
    pub recorder: Recorder,
    pub check: Mutex<Check>,
    facts: Mutex<Option<(Instant, Arc<Facts>)>>,
    /// Whether what was on the disk at the start was compared with the cluster's records.
    compared: OnceCell<()>,
    /// The same, for a look without waiting.
    trusted: AtomicBool,
    /// With `strict`: its end may be shown.
    pub let_go: AtomicBool,
    /// Readers for whom the cache is too small.
    direct: AtomicUsize,
    /// A reader of what comes before it is expected here.
    pub expected: AtomicBool,
}

/// What the metadata says of the blob as a whole.
#[derive(Debug)]
pub(super) struct Facts {
    pub origins: Arc<[Origin]>,
    pub verified: bool,
}

impl BlobContent {
    pub(super) fn new(blob: Arc<Blob>) -> Arc<Self> {
        let generation = {
            let mut state = lock(&blob.state);
            state.users += 1;
            state.generation
        };
        Arc::new(BlobContent { blob, generation })
    }

    /// With `strict`: the blob was found to be wrong since this was opened. Who read from it must not come to its end.
    pub(super) fn is_spoilt(&self) -> bool {
        self.blob.shared.options.strict && lock(&self.blob.state).generation != self.generation
    }

    /// Whether a read up to `end` is refused for that.
    fn refuses(&self, end: u64) -> bool {
        self.blob.shared.options.strict && self.blob.reaches_end(end) && self.is_spoilt()
    }

    /// What it is called.
    #[must_use]
    pub fn id(&self) -> BlobId {
        self.blob.id
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.blob.size
    }

    /// Bytes that are on the local disk.
    #[must_use]
    pub fn filled_bytes(&self) -> u64 {
        self.blob.file.filled_bytes()
    }

    /// Whether all of it is on the local disk, checked and usable.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.blob.trusted.load(SeqCst) && self.blob.file.is_complete()
    }

    /// Whether all of it was checked against its name: the data file may be handed out as a whole.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.blob.file.is_verified()
    }

    pub(super) fn blob(&self) -> &Arc<Blob> {
        &self.blob
    }

    /// Has chunk `idx` here when it returns, as a reader would; for as long as the cache keeps it.
    pub(super) async fn fetch(&self, idx: u64) -> Result<()> {
        self.read(idx.saturating_mul(self.blob.chunk_size()), 1).await.map(drop)
    }

    /// Whether bytes of it that were given out turned out to be wrong, however long ago: what anybody kept of them is not to be
    /// trusted.
    #[must_use]
    pub fn was_wrong(&self) -> bool {
        self.blob.shared.was_wrong(self.blob.id)
    }

    /// Its cache file.
    #[must_use]
    pub fn cache_file(&self) -> &Arc<CacheFile> {
        &self.blob.file
    }

    /// Reads at `offset` what is in memory; never waits. Fewer bytes than the buffer has only at the end of the blob.
    /// `None`: use [`BlobContent::read`].
    #[must_use]
    pub fn try_read(&self, offset: u64, buf: &mut [u8]) -> Option<usize> {
        let blob = &self.blob;
        let end = offset + buf.len() as u64;
        if !blob.trusted.load(SeqCst) || blob.holds_back(end) || self.refuses(end) {
            return None;
        }
        let n = blob.file.try_read(offset, buf)?;
        blob.note(offset, n as u64);
        blob.shared.counters.reads.note(n as u64, 0);
        Some(n)
    }

    /// Reads up to `len` bytes at `offset`; fewer only at the end of the blob. What is not on the disk is fetched.
    ///
    /// Waits at most the store's `io_timeout`; then [`Kind::TimedOut`]. [`Kind::Access`]: the Hub refuses the daemon.
    /// [`Kind::Corrupt`]: all that can be had differs from what is recorded. [`Kind::Unavailable`]: nobody has it.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes> {
        let blob = &self.blob;
        let len = u64::from(len).min(blob.size.saturating_sub(offset));
        if len == 0 {
            return Ok(Bytes::new());
        }
        if self.refuses(offset + len) {
            let why = "it was read before its bytes were found to be wrong: open it again";
            return Err(Error::new(Kind::Corrupt, format!("blob {}: {why}", blob.id)));
        }
        let limit = blob.shared.options.io_timeout;
        match tokio::time::timeout(limit, blob.read(offset, len)).await {
            Ok(result) => result,
            Err(_) => {
                Err(Error::new(Kind::TimedOut, format!("read at {offset} after {} s", limit.as_secs())))
            }
        }
        // That nobody has the bytes is not "no such file": the file is there.
        .map_err(|e| if e.kind() == Kind::NotFound { e.with_kind(Kind::Unavailable) } else { e })
        .context(|| format!("blob {}", blob.id))
    }
}

impl Drop for BlobContent {
    fn drop(&mut self) {
        let mut state = lock(&self.blob.state);
        state.users -= 1;
        if state.users == 0 {
            state.readahead.stop();
            state.followed = false;
        }
    }
}

impl Blob {
    pub(super) fn new(shared: Arc<Shared>, id: BlobId, size: u64, file: Arc<CacheFile>) -> Arc<Self> {
        let chunk_size = u64::from(file.chunk_size());
        let window = shared.options.max_window.min(shared.cache.limits().max_bytes / 4) / chunk_size;
        let state = State::new(file.chunk_size(), file.chunks(), window.max(1));
        // Nothing recorded, or all of it known to be right: nothing to compare.
        let trusted = file.is_verified() || file.next_recorded(0, file.chunks()).is_none();
        Arc::new(Blob {
            shared,
            id,
            size,
            state: Mutex::new(state),
            recorder: Recorder::default(),
            check: Mutex::default(),
            facts: Mutex::default(),
            compared: OnceCell::new(),
            trusted: AtomicBool::new(trusted),
            let_go: AtomicBool::new(false),
            direct: AtomicUsize::new(0),
            expected: AtomicBool::new(false),
            file,
        })
    }

    /// What an earlier run left to be done.
    pub(super) fn opened(self: &Arc<Self>) {
        if self.file.is_complete() && self.trusted.load(Relaxed) {
            self.check_more();
        }
        self.shared.uploads.look_for(self);
    }

    pub(super) fn chunk_size(&self) -> u64 {
        u64::from(self.file.chunk_size())
    }

    fn chunks_of(&self, offset: u64, len: u64) -> Range<u64> {
        offset / self.chunk_size()..(offset + len).div_ceil(self.chunk_size())
    }

    /// The cache's disk has failed: from here on the blob is in memory, as much of it as there is room for. `false`: that is
    /// not why `error` came about.
    pub(super) async fn leave_disk(&self, error: &Error) -> bool {
        if error.kind() != Kind::Disk || self.shared.cache.aside().is_none() || self.file.is_in_memory() {
            return false;
        }
        let file = self.file.clone();
        match blocking(move || file.go_to_memory(&[], |_| {})).await {
            Ok(left) => left,
            Err(e) => {
                tracing::warn!(blob = %self.id, error = %e, "no memory in the place of the disk");
                false
            }
        }
    }

    /// What the metadata says of the blob, at most [`FACTS_AGE`] ago.
    pub(super) async fn facts(&self) -> Result<Arc<Facts>> {
        if let Some((at, facts)) = &*lock(&self.facts)
            && at.elapsed() < FACTS_AGE
        {
            return Ok(facts.clone());
        }
        self.fresh_facts().await
    }

    /// What the metadata said of the blob last, however long ago.
    pub(super) fn known_facts(&self) -> Arc<Facts> {
        let known = lock(&self.facts).as_ref().map(|(_, facts)| facts.clone());
        known.unwrap_or_else(|| Arc::new(Facts { origins: Arc::from([]), verified: false }))
    }

    /// What the metadata says of the blob now.
    pub(super) async fn fresh_facts(&self) -> Result<Arc<Facts>> {
        let row = self.shared.blobs.get(self.id).await?;
        let facts = match row {
            Some(row) if row.size != self.size => {
                let text = format!("the metadata says {} bytes, the inode {}", row.size, self.size);
                return Err(Error::new(Kind::Corrupt, text));
            }
            Some(row) => Facts { origins: row.origins.into(), verified: row.verified },
            None => Facts { origins: Arc::from([]), verified: false },
        };
        let facts = Arc::new(facts);
        *lock(&self.facts) = Some((Instant::now(), facts.clone()));
        Ok(facts)
    }

    /// Once per opening, before the first use: drops what the disk has from earlier runs but the cluster recorded
    /// otherwise since, or took back. What cannot be found out now is believed: each chunk is what was recorded once.
    pub(super) async fn compare(self: &Arc<Self>) {
        if self.trusted.load(SeqCst) {
            return;
        }
        let compared = self.compared.get_or_try_init(|| self.compare_all()).await;
        if let Err(e) = compared {
            tracing::warn!(blob = %self.id, error = %e, "cannot compare cached chunks with the records");
        }
        self.trusted.store(true, SeqCst);
        if self.file.is_complete() {
            self.check_more();
        }
    }

    pub(super) async fn compare_all(&self) -> Result<()> {
        const BATCH: u64 = 256;
        let chunks = self.file.chunks();
        let mut from = 0;
        while let Some(first) = self.file.next_recorded(from, chunks) {
            let count = BATCH.min(chunks - first);
            let rows = self.shared.blobs.chunks(self.id, first, count).await?;
            let file = self.file.clone();
            let dropped = blocking(move || {
                let mut dropped = 0;
                for (idx, row) in (first..).zip(rows) {
                    if let Some(local) = file.record_of(idx)?
                        && row.hash != Some(local.hash)
                    {
                        file.clear(idx, idx + 1)?;
                        dropped += 1;
                    }
                }
                Ok(dropped)
            })
            .await?;
            if dropped > 0 {
                tracing::info!(blob = %self.id, chunks = dropped, "dropped what the cluster records otherwise");
            }
            from = first + count;
        }
        Ok(())
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        self.shared.closed(self.id);
    }
}
