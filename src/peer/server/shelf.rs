//! What the server serves from: the chunk store, seen from below.

use std::fmt;
use std::fmt::Debug;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::error::Result;
use crate::types::BlobId;

/// A chunk that is held.
pub struct Shelved {
    /// Bytes of the chunk.
    pub len: u32,
    /// BLAKE3 of the chunk, as this node recorded it when it came in; `None` while it is still coming in.
    pub hash: Option<[u8; 32]>,
    /// Whether the whole blob was verified against its name.
    pub verified: bool,
    /// The chunk, in order: exactly `len` bytes or an error. Pieces of at most 512 KiB are best: two of them are in memory
    /// at a time.
    pub bytes: BoxStream<'static, Result<Bytes>>,
}

impl Debug for Shelved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shelved")
            .field("len", &self.len)
            .field("verified", &self.verified)
            .finish_non_exhaustive()
    }
}

/// What a wait for a chunk came to.
#[derive(Debug)]
pub enum Waited {
    /// It has come, and is held.
    Landed,
    /// It is coming: these are its bytes as they come, the last of them not before all of it was checked against the cluster's
    /// record. The stream fails if the transfer does.
    Coming(Shelved),
    /// There is no such transfer, or it failed.
    Absent,
}

/// Where the chunks of this node are. Dropping a call's future gives up on it.
#[async_trait]
pub trait Shelf: Debug + Send + Sync + 'static {
    /// The chunk if it is held: recorded on the local disk, or in memory. [`Kind::Busy`](crate::error::Kind::Busy): it can be
    /// had here, a moment later.
    async fn chunk(&self, blob: BlobId, idx: u64) -> Result<Option<Shelved>>;

    /// Waits until a transfer of the chunk that is under way has ended; not at all if there is none. `live`: only until it
    /// can be passed on. The caller bounds the wait.
    async fn wait(&self, blob: BlobId, idx: u64, live: bool) -> Waited;

    /// Begins to fetch the chunk of a blob of `size` bytes, unless it is held or a transfer of it is under way, or too much is
    /// fetched for others. Answers at once.
    async fn begin(&self, blob: BlobId, size: u64, idx: u64) -> Result<()>;

    /// Fetches the chunk of a blob of `size` bytes from the Hub for another node, and returns when it is held.
    /// [`Kind::NotPermitted`](crate::error::Kind::NotPermitted): this node may not call the Hub either. The caller bounds
    /// the wait and then asks again: a transfer goes on meanwhile.
    async fn fill(&self, blob: BlobId, size: u64, idx: u64) -> Result<()>;
}
