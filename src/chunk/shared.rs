//! What all contents of a store share: its bounds, its places, what is open, its end.

use std::collections::HashMap;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use lru::LruCache;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::alone::Alone;
use super::backing::Backings;
use super::cache::{CacheDir, CacheFile, CacheStats, ContentKey};
use super::checkers::{CHECKERS, Checkers};
use super::follow::{self, Expected, Sequel};
use super::overflow::Overflow;
use super::reads::Reads;
use super::store::Uploads;
use super::{Blob, BlobContent, BlobEvent, ChunksOptions, lock};
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::meta::Blobs;
use crate::peer::{NodeId, Peers};
use crate::source::Source;
use crate::source::bucket::Bucket;
use crate::types::BlobId;

/// Bytes gathered before they are written.
pub(super) const PIECE: usize = 512 << 10;
/// Transfers ahead of readers that there may be from other nodes, however few the Hub bears.
const AHEAD_OF_PEERS: usize = 16;
/// Blobs that are remembered as wrong. More than ever are, unless a disk or a node gives rubbish for all that it has.
const MOST_WRONG: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// How long nothing is fetched ahead after the disk was full.
const FULL_PAUSE: Duration = Duration::from_secs(10);
/// How long transfers may take to notice that they were given up.
const STOP_GRACE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Shared {
    pub options: ChunksOptions,
    pub cache: Arc<CacheDir>,
    pub blobs: Blobs,
    pub sources: Vec<Arc<dyn Source>>,
    pub bucket: Option<Bucket>,
    /// The other nodes, if there may be any.
    pub peers: Option<Arc<Peers>>,
    pub runtime: Handle,
    tasks: TaskTracker,
    pub stop: CancellationToken,
    closing: AtomicBool,
    /// Places for pieces in memory. Held while bytes are there, never while a source is waited for.
    pub pieces: Arc<Semaphore>,
    /// Places for transfers ahead of readers.
    pub ahead: Arc<Semaphore>,
    /// The nodes that read the same large blob as this one lately.
    pub companions: Mutex<Option<(Instant, Vec<NodeId>)>>,
    /// Places for transfers that other nodes asked for.
    pub lent: Arc<Semaphore>,
    /// How many there are.
    ahead_places: usize,
    /// Transfers that nobody here waits for and that are probably this node's to fetch for all.
    for_all: AtomicUsize,
    /// Who knows what blobs are parts of, if somebody does.
    pub sequel: OnceLock<Arc<dyn Sequel>>,
    /// Files that have the bytes of blobs which are read.
    pub backings: Backings,
    pub expected: Expected,
    /// Places for readers who are followed.
    pub followed: Arc<Semaphore>,
    /// Whole-blob checks at a time, and where they are done.
    pub verifying: Arc<Semaphore>,
    pub checkers: Checkers,
    pub overflow: Overflow,
    pub uploads: Uploads,
    pub alone: Alone,
    open: Mutex<HashMap<BlobId, Open>>,
    /// Blobs that were found to be wrong, the latest: who read of them may have kept it.
    wrong: Mutex<LruCache<BlobId, ()>>,
    full: Mutex<Option<Instant>>,
    pub events: broadcast::Sender<BlobEvent>,
    pub counters: Counters,
}

/// A blob outlives its readers while transfers run; both are found here.
#[derive(Debug)]
struct Open {
    blob: Weak<Blob>,
    content: Weak<BlobContent>,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    /// One for each source.
    pub fetched: Vec<Fetched>,
    /// Other nodes.
    pub peers: Fetched,
    /// Files of the volume.
    pub files: Fetched,
    pub filled: AtomicU64,
    pub wrong: AtomicU64,
    pub mismatches: AtomicU64,
    pub from_memory: AtomicU64,
    pub reads: Reads,
}

#[derive(Debug, Default)]
pub(super) struct Fetched {
    pub requests: AtomicU64,
    pub bytes: AtomicU64,
    pub failed: AtomicU64,
    /// Of transfers, those that failed included.
    pub nanos: AtomicU64,
}

/// What one source was asked since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceStats {
    pub name: &'static str,
    pub requests: u64,
    pub bytes: u64,
    /// Requests that ended with an error other than "not found".
    pub failed: u64,
    /// How long its transfers took, all together.
    pub time: Duration,
}

/// Figures about a store of chunks since its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunksStats {
    pub cache: CacheStats,
    /// In the order in which they are asked.
    pub sources: Vec<SourceStats>,
    pub chunks_filled: u64,
    /// Chunks that did not match what was recorded of them.
    pub chunks_wrong: u64,
    /// Whole blobs that were not what their name says.
    pub mismatches: u64,
    /// Chunks that were served without room on the disk.
    pub from_memory: u64,
    pub uploads_waiting: u64,
    pub uploads_done: u64,
    pub uploads_failed: u64,
    pub open_blobs: u64,
}

/// A place among the transfers ahead of readers, or among those that other nodes asked for. Given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    /// Set if the transfer is this node's to fetch for all.
    counted: Option<Arc<Shared>>,
}

impl Place {
    pub(super) fn new(permit: OwnedSemaphorePermit) -> Self {
        Place { _permit: permit, counted: None }
    }

    /// The same for what is this node's to fetch for all.
    pub(super) fn for_all(permit: OwnedSemaphorePermit, shared: &Arc<Shared>) -> Self {
        shared.for_all.fetch_add(1, Relaxed);
        Place { _permit: permit, counted: Some(shared.clone()) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(shared) = &self.counted {
            shared.for_all.fetch_sub(1, Relaxed);
        }
    }
}

/// Whether a source is the Hub, or what stands for it: not a place that only has copies.
fn is_origin(source: &dyn Source) -> bool {
    !matches!(source.name(), "bucket" | "peer" | "mirror" | "seed")
}

impl Shared {
    pub(super) fn new(
        options: ChunksOptions,
        cache: Arc<CacheDir>,
        blobs: Blobs,
        sources: Vec<Arc<dyn Source>>,
        bucket: Option<Bucket>,
        peers: Option<Arc<Peers>>,
    ) -> Arc<Self> {
        let memory = options.memory.max(8 << 20);
        // Five eighths for transfers, of which those ahead of readers, with two pieces each, may take four fifths. The rest
        // for a full disk.
        let pieces = (memory / 8 * 5 / PIECE as u64) as usize;
        let ahead_places = pieces * 2 / 5;
        let counters =
            Counters { fetched: sources.iter().map(|_| Fetched::default()).collect(), ..Counters::default() };
        Arc::new(Shared {
            overflow: Overflow::new(memory / 8 * 3, options.chunk_size),
            options,
            cache,
            blobs,
            sources,
            bucket,
            peers,
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            closing: AtomicBool::new(false),
            pieces: Arc::new(Semaphore::new(pieces)),
            ahead: Arc::new(Semaphore::new(ahead_places)),
            ahead_places,
            for_all: AtomicUsize::new(0),
            companions: Mutex::default(),
            lent: Arc::new(Semaphore::new(ahead_places)),
            sequel: OnceLock::new(),
            backings: Backings::default(),
            expected: Expected::default(),
            followed: Arc::new(Semaphore::new(follow::MOST_READERS)),
            verifying: Arc::new(Semaphore::new(CHECKERS)),
            checkers: Checkers::new(),
            uploads: Uploads::default(),
            alone: Alone::default(),
            open: Mutex::default(),
            wrong: Mutex::new(LruCache::new(MOST_WRONG)),
            full: Mutex::default(),
            events: broadcast::Sender::new(256),
            counters,
        })
    }

    /// Starts a task that the store's end waits for and gives up. Callable from any thread.
    pub(super) fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        let task = async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = task => {}
            }
        };
        self.tasks.spawn_on(task, &self.runtime);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    /// Whether source number `n` is the last word on a blob that nobody has verified. Without the Hub the bucket comes last,
    /// which only repeats what somebody recorded.
    pub(super) fn is_origin(&self, n: usize) -> bool {
        n + 1 == self.sources.len() && is_origin(&*self.sources[n])
    }

    /// Whether the Hub, or what stands for it, can be asked at all.
    pub(super) fn reaches_origin(&self) -> bool {
        self.sources.iter().any(|source| is_origin(&**source))
    }

    /// Transfers ahead of readers that are under way.
    pub(super) fn under_way_ahead(&self) -> usize {
        self.ahead_places - self.ahead.available_permits()
    }

    /// How many of them are worth it, as far as the last of the sources knows: of those that come from there.
    pub(super) fn most_ahead(&self) -> usize {
        let told = self.sources.last().and_then(|source| source.ahead());
        told.map_or(self.ahead_places, |most| most.clamp(1, self.ahead_places))
    }

    /// The same while other nodes read what this one does, and give it most of it.
    pub(super) fn most_ahead_of_all(&self) -> usize {
        self.most_ahead().max(AHEAD_OF_PEERS).min(self.ahead_places)
    }

    /// Transfers under way that are this node's to fetch for all.
    pub(super) fn for_all(&self) -> usize {
        self.for_all.load(Relaxed)
    }

    /// Transfers under way that bring what is wanted here alone, ahead of readers, from whoever has it.
    pub(super) fn for_readers_here(&self) -> usize {
        let lent = self.ahead_places - self.lent.available_permits();
        self.under_way_ahead().saturating_sub(self.for_all().saturating_sub(lent))
    }

    /// The size of the blob, if it lies on another disk of this machine.
    pub(super) fn near(&self, id: BlobId) -> Option<u64> {
        self.sources.iter().find_map(|source| source.near(id))
    }

    /// The blob, if somebody has it open or something of it is on its way.
    pub(super) fn find(&self, id: BlobId) -> Option<Arc<Blob>> {
        lock(&self.open).get(&id).and_then(|entry| entry.blob.upgrade())
    }

    /// The blob is not what its name says; its bytes are about to be dropped.
    pub(super) fn is_wrong(&self, id: BlobId) {
        lock(&self.wrong).put(id, ());
        self.counters.mismatches.fetch_add(1, SeqCst);
    }

    /// Whether bytes of the blob that were given out since the start turned out to be wrong.
    pub(super) fn was_wrong(&self, id: BlobId) -> bool {
        self.counters.mismatches.load(SeqCst) > 0 && lock(&self.wrong).contains(&id)
    }

    /// Notes that the disk has no room.
    pub(super) fn disk_is_full(&self) {
        *lock(&self.full) = Some(Instant::now());
    }

    /// Whether the disk had no room a moment ago.
    pub(super) fn was_full(&self) -> bool {
        lock(&self.full).is_some_and(|at| at.elapsed() < FULL_PAUSE)
    }

    /// The blob, if somebody has it open or something of it is still on its way.
    pub(super) fn reopen(self: &Arc<Self>, id: BlobId, size: u64) -> Result<Option<Arc<BlobContent>>> {
        if self.is_closing() {
            return Err(Error::new(Kind::Unavailable, "the store of chunks is closed"));
        }
        let mut open = lock(&self.open);
        let Some(entry) = open.get_mut(&id) else { return Ok(None) };
        let Some(blob) = entry.blob.upgrade() else { return Ok(None) };
        if blob.size != size {
            let text = format!("blob {id} has {} bytes, asked for with {size}", blob.size);
            // The last holder's end takes this lock.
            drop(open);
            drop(blob);
            return Err(Error::new(Kind::Corrupt, text));
        }
        Ok(Some(match entry.content.upgrade().filter(|content| !content.is_spoilt()) {
            Some(content) => content,
            None => {
                let content = BlobContent::new(blob);
                entry.content = Arc::downgrade(&content);
                content
            }
        }))
    }

    /// The blob, which nobody has open: over its file on the disk, or in memory if there is no room for one.
    pub(super) async fn open_file(self: &Arc<Self>, id: BlobId, size: u64) -> Result<Arc<BlobContent>> {
        let (cache, chunk_size) = (self.cache.clone(), self.options.chunk_size);
        let file = blocking(move || cache.open_or_memory(ContentKey::Blob(id), size, chunk_size)).await?;
        self.open(id, size, file)
    }

    /// Puts a blob over its cache file, unless another caller was faster.
    pub(super) fn open(
        self: &Arc<Self>,
        id: BlobId,
        size: u64,
        file: Arc<CacheFile>,
    ) -> Result<Arc<BlobContent>> {
        let blob = Blob::new(self.clone(), id, size, file);
        loop {
            if let Some(open) = self.reopen(id, size)? {
                return Ok(open);
            }
            let mut open = lock(&self.open);
            if open.get(&id).is_none_or(|e| e.blob.strong_count() == 0) {
                let content = BlobContent::new(blob.clone());
                open.insert(id, Open { blob: Arc::downgrade(&blob), content: Arc::downgrade(&content) });
                drop(open);
                blob.opened();
                return Ok(content);
            }
        }
    }

    /// Called at a blob's end.
    pub(super) fn closed(&self, id: BlobId) {
        let mut open = lock(&self.open);
        if open.get(&id).is_some_and(|e| e.blob.strong_count() == 0) {
            open.remove(&id);
        }
    }

    pub(super) fn stats(&self) -> ChunksStats {
        let c = &self.counters;
        let figures = |name, f: &Fetched| SourceStats {
            name,
            requests: f.requests.load(Relaxed),
            bytes: f.bytes.load(Relaxed),
            failed: f.failed.load(Relaxed),
            time: Duration::from_nanos(f.nanos.load(Relaxed)),
        };
        let peers = self.peers.is_some().then(|| figures("peer", &c.peers));
        // Few mounts ever need one.
        let files = (c.files.requests.load(Relaxed) > 0).then(|| figures("file", &c.files));
        let sources = self.sources.iter().zip(&c.fetched).map(|(source, f)| figures(source.name(), f));
        ChunksStats {
            cache: self.cache.stats(),
            sources: peers.into_iter().chain(files).chain(sources).collect(),
            chunks_filled: c.filled.load(Relaxed),
            chunks_wrong: c.wrong.load(Relaxed),
            mismatches: c.mismatches.load(Relaxed),
            from_memory: c.from_memory.load(Relaxed),
            uploads_waiting: self.uploads.waiting(),
            uploads_done: self.uploads.done.load(Relaxed),
            uploads_failed: self.uploads.failed.load(Relaxed),
            open_blobs: lock(&self.open).len() as u64,
        }
    }

    pub(super) async fn shutdown(&self, grace: Duration) -> Result<()> {
        self.closing.store(true, Relaxed);
        let left = self.uploads.drain(grace).await;
        if left > 0 {
            tracing::info!(chunks = left, "not put into the bucket before the end; done when next read");
        }
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_GRACE, self.tasks.wait()).await.is_err() {
            tracing::warn!("transfers did not end in time");
        }
        let cache = self.cache.clone();
        blocking(move || cache.close()).await
    }
}
