//! Leases that this node holds, and what it tells that it has.

use std::sync::LazyLock;

use redis::{Script, Value};

use super::claim::{CHUNKS, holder};
use super::{Tracker, list, ms, number, script, strange, text};
use crate::error::{Error, Kind, Result};
use crate::peer::types::{Holder, NodeId, Token};
use crate::types::BlobId;

static RENEW: LazyLock<Script> = script!("renew.lua");
static LANDED: LazyLock<Script> = script!("told.lua", "landed.lua");
static ADVERTISE: LazyLock<Script> = script!("told.lua", "advertise.lua");
static WITHDRAW: LazyLock<Script> = script!("withdraw.lua");
static HOLDINGS: LazyLock<Script> = script!("holdings.lua");

/// The most leases or chunks of one script; longer lists take several.
const AT_ONCE: usize = 512;
/// The most blobs, and about the most bytes of bitmaps, of one script.
const BLOBS_AT_ONCE: usize = 128;
const BITMAPS_AT_ONCE: usize = 1 << 20;

/// A node that holds chunks of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    pub holder: Holder,
    /// How many.
    pub chunks: u64,
}

impl Tracker {
    /// Leases last anew. Of each, in order: whether it is still this node's; one that is not must not be acted on any more.
    pub async fn renew(&self, leases: &[(BlobId, u64, Token)]) -> Result<Vec<bool>> {
        let mut answers = Vec::with_capacity(leases.len());
        for some in leases.chunks(AT_ONCE) {
            let reply = self
                .call("renewal", &RENEW, |cmd| {
                    cmd.arg(ms(self.timing().ttl));
                    for of_blob in some.chunk_by(|a, b| a.0 == b.0) {
                        cmd.arg(of_blob[0].0.etag()).arg(of_blob.len());
                        for (_, chunk, token) in of_blob {
                            cmd.arg(*chunk).arg(token.0);
                        }
                    }
                })
                .await?;
            let renewed = list(&reply).filter(|list| list.len() == some.len());
            answers.extend(renewed.ok_or_else(|| strange("a renewal"))?.iter().map(|n| number(n) == Some(1)));
        }
        Ok(answers)
    }

    /// These chunks are on this node now, whole and checked: others may ask for them. Ends the leases whose token is
    /// given and still the right one; a lease that somebody else got meanwhile stays.
    pub async fn landed(&self, blob: BlobId, chunks: &[(u64, Option<Token>)]) -> Result<()> {
        let lasts = if self.0.role.serves() { self.timing().possession.as_secs().max(1) } else { 0 };
        self.settle(blob, chunks, lasts).await
    }

    /// These leases were given up: others may have them at once.
    pub async fn release(&self, blob: BlobId, chunks: &[(u64, Token)]) -> Result<()> {
        let chunks: Vec<_> = chunks.iter().map(|(chunk, token)| (*chunk, Some(*token))).collect();
        self.settle(blob, &chunks, 0).await
    }

    async fn settle(&self, blob: BlobId, chunks: &[(u64, Option<Token>)], lasts: u64) -> Result<()> {
        check(blob, chunks.iter().map(|(chunk, _)| *chunk))?;
        for some in chunks.chunks(AT_ONCE) {
            self.call("possession", &LANDED, |cmd| {
                cmd.arg(blob.etag()).arg(lasts).arg(ms(self.timing().participant));
                for (chunk, token) in some {
                    cmd.arg(*chunk).arg(token.map_or_else(String::new, |token| token.0.to_string()));
                }
            })
            .await?;
        }
        Ok(())
    }

    /// All that this node holds of some blobs, by their bitmaps ([`bitmap`]), beside what it has told already: after Redis
    /// lost its data, and before possession runs out.
    pub async fn advertise(&self, held: &[(BlobId, Vec<u8>)]) -> Result<()> {
        if !self.0.role.serves() {
            return Ok(());
        }
        let mut rest = held;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fit = rest.iter().take(BLOBS_AT_ONCE).take_while(|(_, bits)| {
                bytes += bits.len();
                bytes <= BITMAPS_AT_ONCE
            });
            let (some, more) = rest.split_at(fit.count().max(1));
            rest = more;
            self.call("possession", &ADVERTISE, |cmd| {
                cmd.arg(self.timing().possession.as_secs().max(1));
                for (blob, bits) in some {
                    let bits = &bits[..bits.len().min((CHUNKS / 8) as usize)];
                    cmd.arg(blob.etag()).arg(bits);
                }
            })
            .await?;
        }
        Ok(())
    }

    /// This node will not have these chunks any more. To be awaited before the bytes go.
    pub async fn withdraw(&self, blob: BlobId, chunks: &[u64]) -> Result<()> {
        for some in chunks.chunks(AT_ONCE) {
            self.without(blob, self.me(), some).await?;
        }
        Ok(())
    }

    /// This node will have nothing of the blob any more.
    pub async fn withdraw_all(&self, blob: BlobId) -> Result<()> {
        self.without(blob, self.me(), &[]).await
    }

    /// Another node was asked for a chunk that it is said to hold, and does not.
    pub async fn not_held(&self, blob: BlobId, chunk: u64, node: NodeId) -> Result<()> {
        self.without(blob, node, &[chunk]).await
    }

    async fn without(&self, blob: BlobId, node: NodeId, chunks: &[u64]) -> Result<()> {
        let reply = self.call("possession", &WITHDRAW, |cmd| {
            cmd.arg(blob.etag()).arg(node.to_string());
            chunks.iter().for_each(|chunk| {
                cmd.arg(*chunk);
            });
        });
        reply.await.map(drop)
    }

    /// Who holds how much of a blob: live nodes that are not blocked, 256 at most.
    pub async fn holdings(&self, blob: BlobId) -> Result<Vec<Holding>> {
        let reply = self.call("holdings", &HOLDINGS, |cmd| {
            cmd.arg(blob.etag());
        });
        let reply = reply.await?;
        let read = |row: &Value| {
            let row = text(row)?;
            Some(Holding { holder: holder(row)?, chunks: row.rsplit('|').next()?.parse().ok()? })
        };
        list(&reply).and_then(|rows| rows.iter().map(read).collect()).ok_or_else(|| strange("holdings"))
    }
}

/// Chunk numbers as [`Tracker::advertise`] wants them: a bit each, the first one is the highest of the first byte.
#[must_use]
pub fn bitmap(chunks: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let mut bits = Vec::new();
    for chunk in chunks.into_iter().filter(|chunk| *chunk < CHUNKS) {
        let byte = (chunk / 8) as usize;
        if bits.len() <= byte {
            bits.resize(byte + 1, 0);
        }
        bits[byte] |= 0x80 >> (chunk % 8);
    }
    bits
}

fn check(blob: BlobId, mut chunks: impl Iterator<Item = u64>) -> Result<()> {
    match chunks.find(|chunk| *chunk >= CHUNKS) {
        Some(chunk) => Err(Error::new(Kind::Invalid, format!("blob {blob}: chunk {chunk}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_in_the_order_of_redis() {
        assert_eq!(bitmap([0, 9, 15]), [0x80, 0x41]);
        assert_eq!(bitmap([]), [0u8; 0]);
        assert_eq!(bitmap([CHUNKS]), [0u8; 0]);
    }
}
