//! Rows about blobs: what the cluster knows of a content beside its names.

use std::sync::Arc;

use bytes::Bytes;

use super::identity::Identity;
use super::kv::{Expect, Key, Kv, Outcome, Txn, Write};
use super::retry::Tries;
use super::schema::{self, BlobBase, ORIGINS_MAX};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{BlobId, Origin, SessionId, Timestamp};

/// What is known of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRow {
    /// Bytes.
    pub size: u64,
    /// Where it can be had from, at most [`ORIGINS_MAX`], the oldest first.
    pub origins: Vec<Origin>,
    /// The whole was checked against its name.
    pub verified: bool,
}

/// What is known of a chunk of a blob.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkRow {
    /// BLAKE3 of its bytes, once somebody filled it. Provisional until the blob is verified.
    pub hash: Option<[u8; 32]>,
    /// It is in the bucket.
    pub stored: bool,
}

/// What became of the record of a chunk's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Recorded {
    /// Somebody had recorded the same.
    Agreed,
    New,
    /// Somebody had recorded this other hash; it stays.
    Conflict([u8; 32]),
}

/// Access to the rows about blobs. Cheap to clone. Each call is one round trip, two after a lost race.
#[derive(Clone, Debug)]
pub struct Blobs {
    identity: Arc<Identity>,
}

pub(super) const VERIFIED: &[u8] = b"v";

fn base_key(blob: BlobId) -> Key {
    Key::new(schema::blob_map(blob), schema::ATTR)
}

pub(super) fn hash_key(blob: BlobId, index: u64) -> Key {
    Key::new(schema::blob_map(blob), format!("h{index}"))
}

pub(super) fn stored_key(blob: BlobId, index: u64) -> Key {
    Key::new(schema::blob_map(blob), format!("s{index}"))
}

pub(super) fn verified_key(blob: BlobId) -> Key {
    Key::new(schema::blob_map(blob), VERIFIED)
}

pub(super) fn parse_hash(blob: BlobId, value: &[u8]) -> Result<[u8; 32]> {
    <[u8; 32]>::try_from(value)
        .map_err(|e| Error::with_source(Kind::Corrupt, format!("a chunk hash of blob {blob}"), e))
}

impl Blobs {
    /// Rows written under `session`.
    #[must_use]
    pub fn new(kv: Arc<dyn Kv>, session: SessionId) -> Self {
        Blobs { identity: Identity::fixed(kv, session) }
    }

    /// Rows written under the session that a mount has at the time.
    pub(super) fn of(identity: Arc<Identity>) -> Self {
        Blobs { identity }
    }

    /// What is known of a blob; `None` if it was never heard of.
    pub async fn get(&self, blob: BlobId) -> Result<Option<BlobRow>> {
        let values = self.identity.kv().get(&[base_key(blob), verified_key(blob)]).await?;
        let [Some(base), verified] = &values[..] else { return Ok(None) };
        let BlobBase { size, origins, .. } = schema::decode(base, || format!("row of blob {blob}"))?;
        Ok(Some(BlobRow { size, origins, verified: verified.is_some() }))
    }

    /// What is known of `count` chunks from `first` on.
    pub async fn chunks(&self, blob: BlobId, first: u64, count: u64) -> Result<Vec<ChunkRow>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let keys: Vec<_> =
            (first..first + count).flat_map(|i| [hash_key(blob, i), stored_key(blob, i)]).collect();
        let values = self.identity.kv().get(&keys).await?;
        let row = |pair: &[Option<Bytes>]| {
            let hash = pair[0].as_ref().map(|v| parse_hash(blob, v)).transpose()?;
            Ok(ChunkRow { hash, stored: pair[1].is_some() })
        };
        values.chunks_exact(2).map(row).collect()
    }

    /// Records the hash of a chunk unless there is one.
    pub async fn record(&self, blob: BlobId, index: u64, hash: [u8; 32]) -> Result<Recorded> {
        let mut answers = self.record_all(blob, &[(index, hash)]).await?;
        answers.pop().ok_or_else(|| Kind::Internal.into())
    }

    /// Records the hashes of some chunks, those that have none yet; answers in their order.
    pub async fn record_all(&self, blob: BlobId, hashes: &[(u64, [u8; 32])]) -> Result<Vec<Recorded>> {
        let keys: Vec<_> = hashes.iter().map(|(index, _)| hash_key(blob, *index)).collect();
        // The guess: nobody was here before.
        let mut seen = vec![None; hashes.len()];
        let mut tries = Tries::new();
        loop {
            let mut txn = self.txn();
            let mut answers = Vec::with_capacity(hashes.len());
            for ((key, (_, hash)), seen) in keys.iter().zip(hashes).zip(&seen) {
                answers.push(match seen {
                    None => {
                        txn.expect.push(Expect::Absent(key.clone()));
                        txn.write.push(Write::Set(key.clone(), Bytes::copy_from_slice(hash)));
                        Recorded::New
                    }
                    Some(other) if other == hash => Recorded::Agreed,
                    Some(other) => Recorded::Conflict(*other),
                });
            }
            if txn.write.is_empty() || self.identity.commit(txn).await? == Outcome::Applied {
                return Ok(answers);
            }
            tries.again().await.context(|| format!("blob {blob}"))?;
            for (seen, value) in seen.iter_mut().zip(self.identity.kv().get(&keys).await?) {
                *seen = value.map(|v| parse_hash(blob, &v)).transpose()?;
            }
        }
    }

    /// Takes back the record of a chunk's hash if it is `hash`: its bytes turned out to be wrong. Whatever the bucket
    /// holds of it is not believed any more either.
    pub async fn forget_hash(&self, blob: BlobId, index: u64, hash: [u8; 32]) -> Result<()> {
        let mut txn = self.txn();
        txn.expect.push(Expect::Equals(hash_key(blob, index), Bytes::copy_from_slice(&hash)));
        txn.write.push(Write::Del(hash_key(blob, index)));
        txn.write.push(Write::Del(stored_key(blob, index)));
        // A conflict means that somebody else has done it.
        let _ = self.identity.commit(txn).await?;
        Ok(())
    }

    /// The chunk is durable in the bucket.
    pub async fn mark_stored(&self, blob: BlobId, index: u64) -> Result<()> {
        self.mark_all_stored(blob, &[index]).await
    }

    /// The chunks are durable in the bucket.
    pub async fn mark_all_stored(&self, blob: BlobId, chunks: &[u64]) -> Result<()> {
        let mark = |&index| Write::Set(stored_key(blob, index), Bytes::from_static(b"1"));
        self.write(chunks.iter().map(mark).collect()).await
    }

    /// The bucket was found not to have the chunk.
    pub async fn unmark_stored(&self, blob: BlobId, index: u64) -> Result<()> {
        self.write(vec![Write::Del(stored_key(blob, index))]).await
    }

    /// The whole blob was checked against its name: the recorded hashes are final.
    pub async fn mark_verified(&self, blob: BlobId) -> Result<()> {
        self.write(vec![Write::Set(verified_key(blob), Bytes::from_static(b"1"))]).await
    }

    /// Makes a blob known, or another origin of it. [`Kind::Corrupt`] if it is known with another size.
    pub async fn introduce(&self, blob: BlobId, size: u64, origin: Option<Origin>) -> Result<()> {
        self.introduce_all(&[(blob, size, origin)]).await
    }

    /// As [`introduce`](Self::introduce), many in one transaction. No blob may be in it twice.
    pub async fn introduce_all(&self, blobs: &[(BlobId, u64, Option<Origin>)]) -> Result<()> {
        let keys: Vec<_> = blobs.iter().map(|(blob, ..)| base_key(*blob)).collect();
        let mut tries = Tries::new();
        loop {
            let mut txn = self.txn();
            let seen = self.identity.kv().get(&keys).await?;
            for (((blob, size, origin), key), seen) in blobs.iter().zip(&keys).zip(seen) {
                let old = seen.as_ref().map(|v| schema::decode(v, || format!("row of blob {blob}")));
                let mut new = with_origin(old.transpose()?, *size, origin.as_ref())
                    .context(|| format!("blob {blob}"))?;
                new.introduce(Timestamp::now());
                let value = schema::encode(&new)?;
                if seen.as_ref() == Some(&value) {
                    continue;
                }
                txn.expect.push(match seen {
                    Some(seen) => Expect::Equals(key.clone(), seen),
                    None => Expect::Absent(key.clone()),
                });
                txn.write.push(Write::Set(key.clone(), value));
            }
            if txn.write.is_empty() || self.identity.commit(txn).await? == Outcome::Applied {
                return Ok(());
            }
            tries.again().await.context(|| "rows of blobs")?;
        }
    }

    fn txn(&self) -> Txn {
        Txn { session: Some(self.identity.id()), ..Txn::default() }
    }

    async fn write(&self, write: Vec<Write>) -> Result<()> {
        if !write.is_empty() {
            // Without an expectation there is nothing to lose to.
            let _ = self.identity.commit(Txn { write, ..self.txn() }).await?;
        }
        Ok(())
    }
}

/// The row with another origin. Of one path of one repository only the latest commit is kept: the Hub forgets old ones when a
/// history is squashed. When the list is full, the newcomer is not needed.
fn with_origin(old: Option<BlobBase>, size: u64, origin: Option<&Origin>) -> Result<BlobBase> {
    let mut row = old.unwrap_or(BlobBase { size, ..BlobBase::default() });
    if row.size != size {
        let words = format!("it has {} bytes, and is now said to have {size}", row.size);
        return Err(Error::new(Kind::Corrupt, words));
    }
    let Some(origin) = origin else { return Ok(row) };
    if let Some(same) = row.origins.iter_mut().find(|o| o.repo == origin.repo && o.path == origin.path) {
        same.commit = origin.commit;
    } else if row.origins.len() < ORIGINS_MAX {
        row.origins.push(origin.clone());
    }
    Ok(row)
}
