//! A chunk on its way out while it comes in: a chain of nodes takes as long as one transfer and a moment for each node,
//! not a transfer for each. The end of it is kept back until the chunk has landed here, so that who has got all of it has
//! got what the cluster's record says, and who did not is told nothing wrong.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::blocking::blocking;
use crate::chunk::blob::BlobContent;
use crate::chunk::coming::Follow;
use crate::chunk::shared::PIECE;
use crate::error::{Error, Kind, Result};

/// What is kept back until the chunk has landed, bytes.
const END: u32 = 16 << 10;

/// A chunk that is passed on.
pub(super) struct Relay {
    /// While it lives, the content as a whole is not evicted.
    content: Arc<BlobContent>,
    follow: Follow,
    /// Where the chunk begins.
    start: u64,
    len: u32,
    /// Bytes of it that were passed on.
    at: u32,
}

impl Relay {
    /// Passes on chunk `idx`, of which the first bytes have come.
    pub fn new(content: Arc<BlobContent>, follow: Follow, idx: u64) -> Self {
        let file = &content.blob().file;
        let (start, len) = (idx * u64::from(file.chunk_size()), file.chunk_len(idx));
        Relay { content, follow, start, len, at: 0 }
    }

    /// Of the whole chunk.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// The next piece, and what follows it.
    pub async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        if self.at == self.len {
            return Ok(None);
        }
        let shared = &self.content.blob().shared;
        shared.uploads.give_way();
        let end = self.len.saturating_sub(END);
        let ends = self.at >= end;
        let until = if ends {
            self.follow.landed().await?;
            self.len
        } else {
            self.follow.beyond(self.at).await?.min(end)
        };
        let len = ((until - self.at) as usize).min(PIECE);
        let (file, from) = (self.content.blob().file.clone(), self.start + u64::from(self.at));
        let mut piece = BytesMut::zeroed(len);
        // It was written a moment ago: it is in memory as a rule.
        let there = match ends {
            true => file.try_read(from, &mut piece),
            false => file.try_read_raw(from, &mut piece),
        };
        if there != Some(len) {
            let read = blocking(move || {
                let there = match ends {
                    true => file.read_present(from, &mut piece)? == Some(len),
                    false => file.read_at(from, &mut piece)? == len,
                };
                Ok(there.then_some(piece))
            });
            piece = read.await?.ok_or_else(|| Error::new(Kind::Unavailable, "evicted meanwhile"))?;
        }
        let piece = piece.freeze();
        self.at += len as u32;
        if self.at == self.len {
            let blob = self.content.blob();
            blob.shared.alone.shared(blob.id, self.start / blob.chunk_size());
        }
        Ok(Some((piece, self)))
    }
}
