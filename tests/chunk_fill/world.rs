//! A store of chunks over a directory, an engine in memory and sources in memory.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hfmount::chunk::cache::{CacheDir, CacheLimits};
use hfmount::chunk::digest::Digest;
use hfmount::chunk::{BlobContent, Chunks, ChunksOptions};
use hfmount::meta::Blobs;
use hfmount::meta::kv::{Key, Kv, Outcome, SESSIONS, Txn, Write, session_field};
use hfmount::meta::memory::MemoryKv;
use hfmount::source::Source;
use hfmount::source::bucket::Bucket;
use hfmount::types::{BlobId, SessionId};

pub use crate::blobs::{bytes, eventually, same};
use crate::source::Memory;

pub const CHUNK: usize = 64 << 10;

pub struct World {
    pub chunks: Arc<Chunks>,
    pub blobs: Blobs,
    pub hub: Arc<Memory>,
}

/// What a world is made of; what is not said is as usual.
pub struct Build {
    pub options: ChunksOptions,
    pub limits: CacheLimits,
    pub kv: Arc<MemoryKv>,
    /// Asked before the Hub.
    pub before: Vec<Arc<dyn Source>>,
    pub hub: Memory,
    pub bucket: Option<Bucket>,
}

impl Default for Build {
    fn default() -> Self {
        let options = ChunksOptions {
            chunk_size: CHUNK as u32,
            segment: 4 * CHUNK as u64,
            io_timeout: Duration::from_secs(20),
            source_timeout: Duration::from_secs(2),
            ..ChunksOptions::default()
        };
        let limits = CacheLimits { free_ratio: 0.0, ..CacheLimits::default() };
        let hub = Memory::new("hub");
        Build { options, limits, kv: MemoryKv::new(), before: Vec::new(), hub, bucket: None }
    }
}

impl Build {
    pub async fn at(self, dir: &Path) -> World {
        let session = SessionId::random();
        let write = vec![Write::Set(Key::new(SESSIONS, session_field(session)), Bytes::from_static(b"test"))];
        let registered = self.kv.commit(Txn { write, ..Txn::default() }).await.expect("commit");
        assert_eq!(registered, Outcome::Applied);
        let blobs = Blobs::new(self.kv, session);
        let cache = CacheDir::open(dir, "volume", self.limits).expect("cache directory");
        assert_eq!(cache.path(), dir, "the directory is free");
        let hub = Arc::new(self.hub);
        let mut sources = self.before;
        sources.push(hub.clone());
        let chunks = Arc::new(Chunks::new(self.options, cache, blobs.clone(), sources, self.bucket));
        World { chunks, blobs, hub }
    }
}

pub async fn world(dir: &Path) -> World {
    Build::default().at(dir).await
}

pub fn sha256(bytes: &[u8]) -> BlobId {
    Digest::of(&BlobId::Sha256([0; 32]), bytes)
}

pub fn git(bytes: &[u8]) -> BlobId {
    Digest::of(&BlobId::Git([0; 20]), bytes)
}

impl World {
    /// A blob that the Hub has.
    pub async fn blob(&self, len: usize, seed: u64) -> (Arc<BlobContent>, Bytes) {
        let bytes = bytes(len, seed);
        let id = sha256(&bytes);
        self.hub.put(id, bytes.clone());
        self.blobs.introduce(id, len as u64, None).await.expect("introduce");
        (self.chunks.open_blob(id, len as u64).await.expect("open"), bytes)
    }

    /// Lets go of the store as a crash does: nothing is synced, no clean stop is noted. The caller has dropped all else.
    pub async fn crash(self) {
        let cache = Arc::downgrade(self.chunks.cache());
        let lock = std::fs::File::open(self.chunks.cache().path().join("lock")).expect("lock file");
        drop(self);
        eventually("the store is gone", || cache.strong_count() == 0).await;
        // A child that another test is just starting may hold a copy of the descriptor for a moment.
        let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        eventually("the directory is free", || rustix::fs::flock(&lock, operation).is_ok()).await;
    }
}

/// Reads all of a blob in steps.
pub async fn read_all(blob: &BlobContent, step: u32) -> Bytes {
    let mut all = Vec::new();
    while (all.len() as u64) < blob.size() {
        all.extend_from_slice(&blob.read(all.len() as u64, step).await.expect("read"));
    }
    all.into()
}
