//! Files that clients downloaded through the mount become blobs: the bytes of a file are held to the name that it bears, and
//! if they are what it says, what the local disk has of the file becomes the blob's, complete and verified. The file's rows
//! and objects stay as they are.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::Chunks;
use super::cache::{CacheFile, ContentKey, Presence, Record, Seen};
use super::checkers::Haste;
use super::digest::Digest;
use super::file::FileContent;
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::meta::Recorded;
use crate::types::{BlobId, Ino, Version};

/// Hashes recorded in one transaction.
const HASHES: u64 = 256;

/// What came out when a file was held to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proved {
    /// It is the blob.
    Yes(Proof),
    /// It is not.
    No,
    /// Not all of it is on the local disk as it was committed, or it is being written to.
    NotHere,
}

/// That all bytes of a file were what a blob's name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The version of the file that had these bytes.
    pub version: Version,
    /// Bytes.
    pub size: u64,
    /// The records under which the local disk had them.
    seen: [u8; 32],
}

impl Chunks {
    /// Reads all of a file on the local disk and holds it to the name of `blob`. Gives way to everything else. Fetches nothing.
    pub async fn prove(&self, content: &Arc<FileContent>, blob: BlobId) -> Result<Proved> {
        let shared = &self.shared;
        let (version, size) = (content.version(), content.size());
        if size == 0 || !content.is_at(version) || !content.is_here().await? {
            return Ok(Proved::NotHere);
        }
        let mut digest = Digest::new(&blob, size);
        let mut seen = Seen::default();
        for idx in 0..size.div_ceil(u64::from(shared.options.chunk_size)) {
            if shared.is_closing() {
                return Err(Error::new(Kind::Unavailable, "the store of chunks is closed"));
            }
            let Some((file, record)) = content.held(idx).await? else { return Ok(Proved::NotHere) };
            let fold = move || fold(&file, idx, &record, &digest);
            let Some(next) = shared.checkers.run(Haste::Soon, fold).await? else {
                return Ok(Proved::NotHere);
            };
            digest = next;
            seen.add(&record);
            if !content.is_at(version) {
                return Ok(Proved::NotHere);
            }
        }
        Ok(match digest.finish() == blob {
            true => Proved::Yes(Proof { version, size, seen: seen.finish() }),
            false => Proved::No,
        })
    }

    /// What the local disk has of the file becomes the blob's. `false`: somebody uses one of the two just now, or the disk has
    /// something else of the file by now.
    pub async fn turn(&self, ino: Ino, blob: BlobId, proof: &Proof) -> Result<bool> {
        let (cache, unit, proof) = (self.shared.cache.clone(), self.shared.options.chunk_size, *proof);
        blocking(move || cache.turn(ino, blob, proof.size, unit, &proof.seen)).await
    }

    /// Says in the cluster what the chunks of a blob are, all of which is on the local disk, and that this node has them.
    pub async fn vouch(&self, blob: BlobId, size: u64) -> Result<()> {
        let (shared, key) = (&self.shared, ContentKey::Blob(blob));
        let (cache, unit) = (shared.cache.clone(), shared.options.chunk_size);
        let file = blocking(move || cache.open_content(key, size, unit)).await?;
        if !file.is_verified() || !file.is_complete() {
            return Ok(());
        }
        if !shared.blobs.get(blob).await?.is_some_and(|row| row.verified) {
            shared.blobs.introduce(blob, size, None).await?;
            for first in (0..file.chunks()).step_by(HASHES as usize) {
                self.record_hashes(blob, &file, first).await?;
            }
            shared.blobs.mark_verified(blob).await?;
        }
        match &shared.peers {
            Some(peers) => peers.tell(blob, std::iter::once(0..file.chunks())).await,
            None => Ok(()),
        }
    }

    /// Records the hashes of some chunks of a verified blob. What others have recorded instead is wrong: nobody had seen the
    /// whole.
    async fn record_hashes(&self, blob: BlobId, file: &Arc<CacheFile>, first: u64) -> Result<()> {
        let blobs = &self.shared.blobs;
        let of = file.clone();
        let hashes = blocking(move || {
            let mut hashes = Vec::new();
            for idx in first..of.chunks().min(first + HASHES) {
                hashes.extend(of.record_of(idx)?.map(|record| (idx, record.hash)));
            }
            Ok(hashes)
        })
        .await?;
        let answers = blobs.record_all(blob, &hashes).await?;
        for ((idx, hash), answer) in hashes.into_iter().zip(answers) {
            if let Recorded::Conflict(other) = answer {
                tracing::warn!(%blob, chunk = idx, "the recorded hash was wrong and is replaced");
                blobs.forget_hash(blob, idx, other).await?;
                if let Some(peers) = &self.shared.peers {
                    peers.was_wrong(blob, idx).await;
                }
                let _settled = blobs.record(blob, idx, hash).await?;
            }
        }
        Ok(())
    }

    /// Brings all of a blob to the local disk, chunk by chunk, if that has room for it without others having to go.
    pub async fn bring(&self, blob: BlobId, size: u64) -> Result<()> {
        let stats = self.shared.cache.stats();
        if stats.bytes.saturating_add(size) > stats.max_bytes / 4 * 3 {
            return Ok(());
        }
        let content = self.open_blob(blob, size).await?;
        for idx in 0..content.cache_file().chunks() {
            content.fetch(idx).await?;
        }
        Ok(())
    }

    /// Bytes of a blob, if all of it is on the local disk and verified.
    pub(super) async fn read_whole(&self, blob: BlobId, size: u64, offset: u64, len: u32) -> Option<Bytes> {
        if !self.shared.cache.knows(&ContentKey::Blob(blob)) {
            return None;
        }
        let content = match self.shared.reopen(blob, size) {
            Ok(Some(content)) => content,
            Ok(None) => self.shared.open_file(blob, size).await.ok()?,
            Err(_) => return None,
        };
        if !content.is_complete() || !content.is_verified() {
            return None;
        }
        let file = content.cache_file().clone();
        let read = move || {
            let mut bytes = BytesMut::zeroed(len as usize);
            let n = file.read_present(offset, &mut bytes)?;
            Ok((n == Some(bytes.len())).then(|| bytes.freeze()))
        };
        blocking(read).await.ok()?
    }

    /// The local disk lets go of what it has of a file that is read as a blob, all of which is here.
    pub async fn let_go_of(&self, ino: Ino) -> Result<()> {
        let (cache, key) = (self.shared.cache.clone(), ContentKey::File(ino));
        if !cache.knows(&key) || cache.in_use(&key).is_some() {
            return Ok(());
        }
        blocking(move || cache.remove_idle(&key).map(drop)).await
    }
}

/// The digest with all that chunk `idx` has under `record`. `None`: it is not there any more. Blocks on the disk.
fn fold(file: &CacheFile, idx: u64, record: &Record, digest: &Digest) -> Result<Option<Digest>> {
    loop {
        let changes = file.changes();
        if file.presence(idx) != Presence::Present || file.record_of(idx)? != Some(*record) {
            return Ok(None);
        }
        let mut digest = digest.clone();
        // The last chunk of a file may be longer in the cache than it is.
        let whole = file.scan(idx, record.len, |piece| digest.update(piece))?;
        if file.changes() == changes {
            return Ok(whole.then_some(digest));
        }
    }
}
