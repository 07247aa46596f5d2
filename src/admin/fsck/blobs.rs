//! Blobs that inodes name: their rows, and what is said to be in the bucket.

use bytes::Bytes;

use super::{Fix, Fsck};
use crate::admin::inodes::blobs_of;
use crate::blocking::blocking;
use crate::chunk::digest::Digest;
use crate::error::{Kind, Result};
use crate::meta::survey::{BlobChunk, SurveyedBlob};
use crate::source::bucket::Object;
use crate::types::{BlobId, Ino};

/// Chunk rows in one round trip.
const CHUNKS_AT_ONCE: u64 = 450;

impl Fsck<'_> {
    pub(super) async fn look_at_blobs(&mut self) -> Result<()> {
        let blobs = std::mem::take(&mut self.blobs);
        let mut ids: Vec<BlobId> = blobs.keys().copied().collect();
        ids.sort_unstable();
        let all = ids.len() as u64;
        for some in ids.chunks(400) {
            for blob in self.place.survey.blobs(some).await? {
                self.tell("blobs", self.report.blobs, all);
                self.report.blobs += 1;
                if let Some(&(size, ino)) = blobs.get(&blob.id) {
                    self.look_at_blob(blob, size, ino).await?;
                }
            }
        }
        Ok(())
    }

    /// Reports something of a blob, by an inode that names it still.
    async fn found_blob(
        &mut self,
        class: &'static str,
        id: BlobId,
        ino: Ino,
        what: String,
        fix: Fix,
    ) -> Result<()> {
        self.found(class, ino, self.dir_of(ino), format!("blob {id}: {what}"), fix).await
    }

    async fn look_at_blob(&mut self, blob: SurveyedBlob, size: u64, ino: Ino) -> Result<()> {
        let id = blob.id;
        let wrong = match (&blob.raw, &blob.size) {
            (None, _) => Some("nothing is known of it".to_owned()),
            (_, Err(error)) => Some(error.to_string()),
            (_, Ok(other)) if *other != size => Some(format!("it has {other} bytes, and the inode {size}")),
            _ => None,
        };
        if let Some(what) = wrong {
            // The inode may have become something else since.
            let now = self.place.survey.inode(ino).await?;
            let named = now.and_then(|i| i.row.ok()).is_some_and(|row| blobs_of(&row).any(|(b, _)| b == id));
            if named {
                self.found_blob("blob", id, ino, what, Fix::None).await?;
            }
            return Ok(());
        }
        let chunks = size.div_ceil(u64::from(self.place.chunk_size));
        // Goes on as long as every chunk is in the bucket and right.
        let mut digest = self.options.deep.then(|| Digest::new(&id, size));
        for first in (0..chunks).step_by(CHUNKS_AT_ONCE as usize) {
            let count = CHUNKS_AT_ONCE.min(chunks - first);
            for chunk in self.place.survey.blob_chunks(id, first, count).await? {
                let bytes = self.look_at_blob_chunk(id, size, ino, &chunk).await?;
                digest = match (digest, bytes) {
                    (Some(mut digest), Some(bytes)) => Some(
                        blocking(move || {
                            digest.update(&bytes);
                            Ok(digest)
                        })
                        .await?,
                    ),
                    _ => None,
                };
            }
        }
        let Some(digest) = digest.filter(|_| chunks > 0) else { return Ok(()) };
        if digest.finish() == id {
            return Ok(());
        }
        let what =
            "its chunks are what was recorded, and together they are not what its name says".to_owned();
        let done = self.repairs() && self.place.survey.forget_hashes(id, chunks).await?;
        let fix = self.fix("has it fetched again from the Hub", done);
        self.found_blob("digest", id, ino, what, fix).await
    }

    /// One chunk; with `deep`, its bytes if the bucket has them and they are right.
    async fn look_at_blob_chunk(
        &mut self,
        id: BlobId,
        size: u64,
        ino: Ino,
        chunk: &BlobChunk,
    ) -> Result<Option<Bytes>> {
        let hash = match &chunk.hash {
            Ok(hash) => *hash,
            Err(error) => {
                self.found_blob("hash", id, ino, format!("chunk {}: {error}", chunk.index), Fix::None)
                    .await?;
                return Ok(None);
            }
        };
        if !chunk.stored {
            return Ok(None);
        }
        let unit = u64::from(self.place.chunk_size);
        let len = unit.min(size - chunk.index * unit);
        let (why, bytes) = match hash {
            None => (Some("is said to be in the bucket, and its hash is not known".to_owned()), None),
            Some(hash) => {
                self.fault_of(&Object::BlobChunk { blob: id, index: chunk.index, hash }, len, hash).await?
            }
        };
        let Some(why) = why else { return Ok(bytes) };
        // The rows after the object: what a mount took back since is no fault.
        let now = self.place.survey.blob_chunks(id, chunk.index, 1).await?.pop();
        if !now.is_some_and(|now| now.stored && now.hash.is_ok_and(|h| h == hash)) {
            return Ok(None);
        }
        let done = self.repairs() && self.place.survey.unmark_stored(id, chunk.index).await?;
        let fix = self.fix("has it fetched again from the Hub", done);
        self.found_blob("stored", id, ino, format!("chunk {} {why}", chunk.index), fix).await?;
        Ok(None)
    }

    async fn fault_of(
        &mut self,
        object: &Object,
        len: u64,
        hash: [u8; 32],
    ) -> Result<(Option<String>, Option<Bytes>)> {
        self.report.objects += 1;
        let missing = || (Some("is said to be in the bucket, and is not there".to_owned()), None);
        let short = |now: u64| (Some(format!("has {now} bytes in the bucket instead of {len}")), None);
        if !self.options.deep {
            if self.listing.as_ref().and_then(|l| l.len_of(object)) == Some(len) {
                return Ok((None, None));
            }
            return Ok(match self.place.bucket.head(object).await? {
                None => missing(),
                Some(now) if now != len => short(now),
                Some(_) => (None, None),
            });
        }
        let bytes = match self.place.bucket.get(object, None).await {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == Kind::NotFound => return Ok(missing()),
            Err(e) => return Err(e),
        };
        self.report.read += bytes.len() as u64;
        if bytes.len() as u64 != len {
            return Ok(short(bytes.len() as u64));
        }
        let hashed = bytes.clone();
        let now = blocking(move || Ok(*blake3::hash(&hashed).as_bytes())).await?;
        if now != hash {
            return Ok((Some("holds other bytes in the bucket than were recorded".to_owned()), None));
        }
        Ok((None, Some(bytes)))
    }
}
