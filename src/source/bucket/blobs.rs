//! Blobs in the bucket: one object a chunk, named by its BLAKE3.

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};

use super::{Bucket, Object, Patience};
use crate::error::{Error, Kind, Result};
use crate::source::{Fetched, Source, Want};
use crate::types::BlobId;

impl Bucket {
    /// Stores chunk `index` of a blob, whose BLAKE3 is `hash`. Doing it twice is harmless.
    pub async fn put_blob_chunk(&self, blob: BlobId, index: u64, hash: [u8; 32], data: Bytes) -> Result<()> {
        self.put(&Object::BlobChunk { blob, index, hash }, data).await
    }
}

/// The bucket as a place where bytes of blobs may be.
#[derive(Clone, Debug)]
pub struct BucketSource(Bucket);

/// Chunks of one run that are on their way or wait to be taken. Each is a buffer outside of the filler's budget, and what
/// hides the server's latency is that many runs are under way.
const AHEAD: usize = 1;

impl BucketSource {
    /// A source with short patience: there are other places to ask.
    #[must_use]
    pub fn new(bucket: &Bucket) -> Self {
        BucketSource(bucket.with_patience(Patience::short()))
    }
}

#[async_trait]
impl Source for BucketSource {
    fn name(&self) -> &'static str {
        "bucket"
    }

    /// The chunks that [`Want::stored`] says are there. `NotFound` without asking if the first is not among them;
    /// `NotFound` in the stream at the first that is not.
    async fn fetch(&self, want: &Want) -> Result<Fetched> {
        if want.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let chunk_size = u64::from(want.chunk_size);
        let (blob, first, end) = (want.blob, want.first, want.range().end);
        let hashes: Vec<Option<[u8; 32]>> = want.stored.to_vec();
        let bucket = self.0.clone();
        let chunk = move |i: u64| {
            let (bucket, hash) = (bucket.clone(), hashes.get(i as usize).copied().flatten());
            let index = first + i;
            async move {
                let Some(hash) = hash else {
                    return Err(Error::new(
                        Kind::NotFound,
                        format!("blob {blob} chunk {index} in the bucket"),
                    ));
                };
                let length = chunk_size.min(end - index * chunk_size);
                let object = Object::BlobChunk { blob, index, hash };
                let bytes = bucket.get(&object, None).await?;
                if bytes.len() as u64 != length {
                    let why = format!("{} bytes instead of {length}", bytes.len());
                    return Err(Error::with_source(Kind::Corrupt, object.to_string(), why));
                }
                Ok(bytes)
            }
        };
        let count = want.len().div_ceil(chunk_size);
        let mut chunks = stream::iter(0..count).map(chunk).buffered(AHEAD).boxed();
        let head = chunks.try_next().await?;
        Ok(stream::iter(head.map(Ok)).chain(chunks).boxed())
    }
}
