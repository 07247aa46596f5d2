//! Bytes on the local disk, and moving them there. Knows rows about bytes and sources of bytes; no names, no POSIX.
//!
//! ```text
//! read ─ blob ─┬─ cache ────────────── what is there
//!              ├─ readahead ─ ahead    what will be wanted, and what of it comes next
//!              ├─ follow               the same of the blobs that come after it
//!              ├─ backing              files of the volume that have the same bytes (adopt: how they became known)
//!              └─ flight ─ fill ─ pour one run of chunks from one source, hashed on its way into the cache
//!                            ├─ settle ─ record   agreement with the cluster on each chunk's hash
//!                            ├─ verify            the whole blob against its name, in the background
//!                            └─ store             into the bucket, in the background
//! ```

mod adopt;
mod ahead;
mod alone;
mod backing;
mod blob;
pub mod cache;
mod checkers;
mod cluster;
mod coming;
pub mod digest;
pub mod extents;
pub mod file;
mod fill;
mod flight;
mod follow;
mod overflow;
mod pour;
pub mod ranges;
mod readahead;
mod reads;
mod record;
mod settle;
mod shared;
mod small;
mod store;
mod tally;
mod verify;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::broadcast;

pub use self::adopt::{Proof, Proved};
pub use self::backing::Backing;
pub use self::blob::BlobContent;
pub use self::cluster::BlobShelf;
pub use self::file::{FileContent, Files};
pub use self::follow::Sequel;
pub use self::reads::Reads;
pub use self::shared::{ChunksStats, SourceStats};
pub use self::tally::{Amount, Whereabouts};

use self::blob::Blob;
use self::cache::{CacheDir, ContentKey};
use self::file::BlobReader;
use self::shared::Shared;
use self::small::{SMALL, Small};
use crate::blocking::blocking;
use crate::error::Result;
use crate::meta::Blobs;
use crate::peer::Peers;
use crate::source::Source;
use crate::source::bucket::Bucket;
use crate::types::BlobId;

/// Bounds of the store of chunks.
#[derive(Clone, Debug)]
pub struct ChunksOptions {
    /// Bytes of a chunk, as fixed by the volume.
    pub chunk_size: u32,
    /// The longest that one read waits, whatever is tried meanwhile. A page fault that fails is a dead job: generous.
    pub io_timeout: Duration,
    /// The longest that one source may take to its first byte, and between bytes.
    pub source_timeout: Duration,
    /// Bytes of transfers in memory, all together. Less than 8 MiB count as that.
    pub memory: u64,
    /// The longest run of one request ahead of readers, bytes.
    pub segment: u64,
    /// The farthest ahead of a reader, bytes. No more than a quarter of the cache in any case.
    pub max_window: u64,
    /// Blobs that came from elsewhere are put into the bucket.
    pub store_hub_blobs: bool,
    /// The last chunk of a blob is not shown before the whole was checked against its name.
    pub strict: bool,
    /// Small blobs that stay open when nobody reads them, with two descriptors each.
    pub small_blobs: usize,
}

impl Default for ChunksOptions {
    fn default() -> Self {
        ChunksOptions {
            chunk_size: 4 << 20,
            io_timeout: Duration::from_secs(15 * 60),
            source_timeout: Duration::from_secs(60),
            memory: 64 << 20,
            segment: 16 << 20,
            max_window: u64::MAX,
            store_hub_blobs: false,
            strict: false,
            small_blobs: 128,
        }
    }
}

/// What happened to a blob as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobEvent {
    /// Its digest was checked: it is what its name says.
    Verified(BlobId),
    /// It was not: its chunks were dropped, and what the kernel has of it should be.
    Mismatch(BlobId),
}

/// The store of chunks of one mount.
#[derive(Debug)]
pub struct Chunks {
    shared: Arc<Shared>,
    /// Blobs that files are copies of, the latest last: such a file reads piece by piece, and its way through the blob
    /// should be known as one.
    copied: Mutex<VecDeque<Arc<BlobContent>>>,
    small: Mutex<Small<Arc<BlobContent>>>,
}

/// Blobs held open for the files that are copies of them.
const MAX_COPIED: usize = 8;

impl Chunks {
    /// A store over a cache directory, rows about blobs, and sources in the order of preference, of which the last one is
    /// the origin: what it says about a blob that nobody has verified yet outweighs the others. `bucket` is where blobs
    /// are put when the options say so.
    ///
    /// # Panics
    /// Outside a tokio runtime: its tasks run on the current one.
    #[must_use]
    pub fn new(
        options: ChunksOptions,
        cache: Arc<CacheDir>,
        blobs: Blobs,
        sources: Vec<Arc<dyn Source>>,
        bucket: Option<Bucket>,
    ) -> Self {
        Self::among(options, cache, blobs, sources, bucket, None)
    }

    /// The same as one of several nodes, which fetch each chunk once for all of them.
    ///
    /// # Panics
    /// As [`Chunks::new`].
    #[must_use]
    pub fn among(
        options: ChunksOptions,
        cache: Arc<CacheDir>,
        blobs: Blobs,
        sources: Vec<Arc<dyn Source>>,
        bucket: Option<Bucket>,
        peers: Option<Arc<Peers>>,
    ) -> Self {
        let small = Mutex::new(Small::new(options.small_blobs));
        let shared = Shared::new(options, cache, blobs, sources, bucket, peers);
        store::start(&shared);
        cluster::start(&shared);
        Chunks { shared, copied: Mutex::default(), small }
    }

    /// Opens a blob of `size` bytes for reading. While somebody has it open all get the same one.
    /// [`Kind::Corrupt`] if it is open with another size; [`Kind::TooLarge`] if the disk allows no such file.
    pub async fn open_blob(&self, id: BlobId, size: u64) -> Result<Arc<BlobContent>> {
        let shared = &self.shared;
        if let Some(open) = shared.reopen(id, size)? {
            if size <= SMALL {
                lock(&self.small).promote(&id);
            }
            open.blob().came();
            return Ok(open);
        }
        let content = shared.open_file(id, size).await?;
        content.blob().came();
        if size <= SMALL {
            // Dropped outside of the lock: the last holder's end is work.
            let _oldest = lock(&self.small).hold(id, size, content.clone());
        }
        Ok(content)
    }

    /// Says who knows what blobs are parts of; once. From then on what follows a blob that is read whole comes before it is
    /// asked for.
    pub fn learn_what_follows(&self, sequel: Arc<dyn Sequel>) {
        let _first = self.shared.sequel.set(sequel);
    }

    /// Bytes of a blob of `size` bytes that are on the local disk, for `st_blocks`. No I/O.
    #[must_use]
    pub fn filled_bytes(&self, id: &BlobId, size: u64) -> u64 {
        let key = ContentKey::Blob(*id);
        match self.shared.cache.in_use(&key) {
            Some(file) => file.filled_bytes(),
            None => self.shared.cache.bytes_of(&key).unwrap_or(0),
        }
        .min(size)
    }

    /// What other nodes are served from.
    #[must_use]
    pub fn shelf(&self) -> BlobShelf {
        BlobShelf::new(&self.shared)
    }

    /// How much of a blob is on the local disk, and where it came from. Some I/O: it reads the index.
    pub async fn whereabouts(&self, id: BlobId, size: u64) -> Result<Whereabouts> {
        let (cache, chunk_size) = (self.shared.cache.clone(), self.shared.options.chunk_size);
        blocking(move || {
            let key = ContentKey::Blob(id);
            if cache.in_use(&key).is_none() && !cache.knows(&key) {
                return Ok(Whereabouts::nothing(size, chunk_size));
            }
            Whereabouts::of(&*cache.open_or_memory(key, size, chunk_size)?, size)
        })
        .await
    }

    /// The cache directory.
    #[must_use]
    pub fn cache(&self) -> &Arc<CacheDir> {
        &self.shared.cache
    }

    /// What happens to blobs from now on. Who lags behind loses the oldest.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<BlobEvent> {
        self.shared.events.subscribe()
    }

    /// Figures of this moment.
    #[must_use]
    pub fn stats(&self) -> ChunksStats {
        self.shared.stats()
    }

    /// How much of what was read of blobs was here already.
    #[must_use]
    pub fn reads(&self) -> &Reads {
        &self.shared.counters.reads
    }

    /// Ends the store: no more reads or readahead, uploads within `grace`, then what runs is given up, the cache is synced
    /// and says that it stopped cleanly. Reads fail from now on.
    pub async fn shutdown(&self, grace: Duration) -> Result<()> {
        lock(&self.copied).clear();
        let small = lock(&self.small).clear();
        drop(small);
        self.shared.shutdown(grace).await
    }
}

/// Files that began as copies of blobs read those through the store.
#[async_trait]
impl BlobReader for Chunks {
    async fn read_blob(&self, blob: BlobId, size: u64, offset: u64, len: u32) -> Result<Bytes> {
        let content = self.open_blob(blob, size).await?;
        let _oldest = {
            let mut copied = lock(&self.copied);
            copied.retain(|c| !Arc::ptr_eq(c, &content));
            copied.push_back(content.clone());
            if copied.len() > MAX_COPIED { copied.pop_front() } else { None }
        };
        content.read(offset, len).await
    }

    async fn read_here(&self, blob: BlobId, size: u64, offset: u64, len: u32) -> Option<Bytes> {
        self.read_whole(blob, size, offset, len).await
    }
}

// A panic while one of these is held leaves no half-made change that matters: each section is one small step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
