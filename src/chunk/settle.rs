//! Agreement on a chunk: its hash against the cluster's record of it.
//!
//! The first to fill a chunk records its hash; all others are held to it. Until the blob as a whole was checked the record
//! may be the wrong one: what settles it is the origin, asked twice. Bytes that differ from the record are never shown.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::blob::Blob;
use super::lock;
use super::record::record;
use crate::error::{Error, Kind, Result};
use crate::meta::Recorded;

/// Chunks of one blob about which the origin's word is remembered.
const MAX_CLAIMS: usize = 1024;

/// What is known of a chunk that came in, beside its hash.
#[derive(Clone, Copy, Debug)]
pub(super) struct Finding {
    /// The source is the last word on a blob that nobody has verified.
    pub is_origin: bool,
    pub stored: bool,
    /// The hash recorded when the transfer began.
    pub recorded: Option<[u8; 32]>,
    /// The blob is this one chunk, and it is, or is not, what its name says.
    pub whole: Option<bool>,
    /// The metadata answer. If not, bytes are shown that nobody recorded: the next opening compares.
    pub can_record: bool,
}

/// `Ok` once the cluster's record is this hash. [`Kind::Corrupt`]: the bytes are not to be used.
pub(super) async fn settle(blob: &Arc<Blob>, idx: u64, hash: [u8; 32], finding: &Finding) -> Result<()> {
    if finding.whole == Some(false) {
        return Err(wrong(blob, "the bytes are not what the name says"));
    }
    let other = match finding.recorded {
        Some(recorded) if recorded == hash => return Ok(()),
        Some(other) => other,
        None if !finding.can_record => return Ok(()),
        None => match record(blob, idx, hash).await? {
            Recorded::New | Recorded::Agreed => return Ok(()),
            Recorded::Conflict(other) => other,
        },
    };
    let certain = finding.whole == Some(true) && finding.can_record;
    if !certain {
        if !finding.is_origin || !finding.can_record {
            return Err(wrong(blob, "the bytes differ from the record"));
        }
        if blob.fresh_facts().await?.verified {
            return Err(wrong(blob, "the bytes differ from the verified record"));
        }
        if !claimed_twice(blob, idx, hash) {
            return Err(wrong(blob, "the origin's bytes differ from the record"));
        }
    }
    tracing::warn!(blob = %blob.id, chunk = idx, "the recorded hash was wrong and is replaced");
    blob.shared.blobs.forget_hash(blob.id, idx, other).await?;
    if let Some(peers) = &blob.shared.peers {
        peers.was_wrong(blob.id, idx).await;
    }
    match record(blob, idx, hash).await? {
        Recorded::New | Recorded::Agreed => Ok(()),
        Recorded::Conflict(_) => Err(wrong(blob, "the record changed meanwhile")),
    }
}

fn wrong(blob: &Blob, why: &'static str) -> Error {
    blob.shared.counters.wrong.fetch_add(1, Relaxed);
    Error::new(Kind::Corrupt, why)
}

/// Whether the origin gave the same hash before.
fn claimed_twice(blob: &Blob, idx: u64, hash: [u8; 32]) -> bool {
    let claims = &mut lock(&blob.state).claims;
    if claims.get(&idx) == Some(&hash) {
        claims.remove(&idx);
        return true;
    }
    if claims.len() >= MAX_CLAIMS {
        claims.clear();
    }
    claims.insert(idx, hash);
    false
}
