//! Where the bytes of blobs come from when the local disk does not have them. A source knows names of content and
//! ranges; it knows no inodes, no cache and no other source. Who asks them in which order is the caller's affair.

pub mod breaker;
pub mod bucket;
pub mod hub;
pub mod limited;
pub mod mirror;
pub mod peer;
mod provider;
pub mod seed;
pub mod storage;

pub use self::provider::Provider;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::error::Result;
use crate::peer::Holder;
use crate::types::{BlobId, Origin};

/// A run of whole chunks of one blob.
#[derive(Clone, Debug)]
pub struct Want {
    pub blob: BlobId,
    /// Length of the whole blob in bytes.
    pub size: u64,
    /// Where the Hub has it, best first. Empty: nothing is known, and only a bucket or a peer can help.
    pub origins: Arc<[Origin]>,
    /// Index of the first chunk.
    pub first: u64,
    /// Number of chunks, at least 1. The run may not begin beyond the blob's end; its last chunk may be short.
    pub count: u64,
    /// Bytes of a chunk, as fixed by the volume.
    pub chunk_size: u32,
    /// For each chunk of the run, its BLAKE3 if the volume's bucket is recorded to hold it: objects there are named by
    /// it. Shorter than `count` or empty: the rest is not there.
    pub stored: Arc<[Option<[u8; 32]>]>,
    /// For each chunk of the run, the nodes that hold it. Shorter than `count` or empty: nobody is known to.
    pub holders: Arc<[Arc<[Holder]>]>,
}

impl Want {
    /// The bytes of the run, cut at the blob's end.
    #[must_use]
    pub fn range(&self) -> Range<u64> {
        let size = u64::from(self.chunk_size);
        let start = self.first.saturating_mul(size).min(self.size);
        let end = self.first.saturating_add(self.count).saturating_mul(size).min(self.size);
        start..end
    }

    /// Bytes of chunk `idx`; 0 outside of the run.
    #[must_use]
    pub fn len_of(&self, idx: u64) -> u64 {
        let Range { start, end } = self.range();
        let begin = idx.saturating_mul(u64::from(self.chunk_size));
        if begin < start { 0 } else { end.saturating_sub(begin).min(u64::from(self.chunk_size)) }
    }

    /// How many bytes the run has. 0 only for an empty blob or a run beyond its end.
    #[must_use]
    pub fn len(&self) -> u64 {
        let range = self.range();
        range.end - range.start
    }

    /// Whether the run has no bytes: a source answers such a run with an empty stream, without I/O.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The bytes of a run, in order, in pieces of any size. It ends after exactly [`Want::len`] bytes or with an error, never
/// early. Dropping it gives the transfer up.
pub type Fetched = BoxStream<'static, Result<Bytes>>;

/// A place that may have bytes of blobs.
#[async_trait]
pub trait Source: Debug + Send + Sync + 'static {
    /// For logs and metrics: `hub`, `bucket`, `peer`, `mirror`, `seed`.
    fn name(&self) -> &'static str;

    /// Begins to fetch exactly the run of `want`. Bounded in time until the first byte and between bytes.
    ///
    /// [`NotFound`](crate::error::Kind::NotFound): this place does not have it, another may.
    /// [`Access`](crate::error::Kind::Access): it may not be had with the daemon's rights.
    /// [`Unavailable`](crate::error::Kind::Unavailable), [`TimedOut`](crate::error::Kind::TimedOut): it could not be
    /// found out, or the transfer broke off and could not be resumed. [`Corrupt`](crate::error::Kind::Corrupt): the place
    /// has something else under this name. The bytes themselves are not hashed here: the caller does that.
    async fn fetch(&self, want: &Want) -> Result<Fetched>;

    /// Whether it is on a disk of this machine, as far as is known without I/O: then nobody else need be asked.
    fn is_near(&self, _blob: BlobId) -> bool {
        false
    }

    /// The size of a blob that lies on a disk of this machine, as far as is known without I/O.
    fn near(&self, _blob: BlobId) -> Option<u64> {
        None
    }

    /// The `most` largest blobs that lie on a disk of this machine, with their sizes; `None`: it is not known yet.
    fn all_near(&self, _most: usize) -> Option<Vec<(BlobId, u64)>> {
        Some(Vec::new())
    }

    /// How many transfers that nobody waits for yet are worth having under way here at once; `None`: it does not know.
    fn ahead(&self) -> Option<usize> {
        None
    }

    /// Bytes of this blob that came from here were not what they had to be.
    fn wrong(&self, _blob: BlobId) {}

    /// The BLAKE3 of a chunk that came from here a moment ago, if this place has said it and can be believed as far as any
    /// node of the volume can.
    fn told(&self, _blob: BlobId, _chunk: u64) -> Option<[u8; 32]> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_with_the_blob() {
        let run = |size, first, count| {
            let blob = BlobId::Git([0; 20]);
            Want {
                blob,
                size,
                origins: Arc::from([]),
                first,
                count,
                chunk_size: 4,
                stored: Arc::from([]),
                holders: Arc::from([]),
            }
            .range()
        };
        assert_eq!(run(10, 0, 1), 0..4);
        assert_eq!(run(10, 1, 9), 4..10);
        assert_eq!(run(10, 3, 1), 10..10);
        assert_eq!(run(0, 0, 1), 0..0);
        assert_eq!(run(u64::MAX, u64::MAX, 2), u64::MAX..u64::MAX);
    }
}
