//! The body of an answer: nothing, a few bytes, or a chunk on its way from the disk.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::shelf::Shelved;
use super::stats::Counters;
use super::uploads::{Goes, Seated, Turn};
use super::watched::Busy;
use super::{LONGEST_LOOK, MAX_PIECE};
use crate::error::{Error, Kind, Result};
use crate::peer::limits::Limit;
use crate::peer::types::NodeId;

/// A body. The connection counts as busy as long as it is there.
pub(super) struct Reply {
    content: Content,
    busy: Option<Busy>,
}

enum Content {
    /// Known as a whole; `None` once it is sent.
    Whole(Option<Bytes>),
    Chunk {
        left: u64,
        bytes: BoxStream<'static, Result<Bytes>>,
    },
}

impl Reply {
    pub fn whole(bytes: Bytes) -> Self {
        Reply { content: Content::Whole(Some(bytes).filter(|b| !b.is_empty())), busy: None }
    }

    pub fn chunk(upload: Upload) -> Self {
        let left = u64::from(upload.left);
        Reply {
            content: Content::Chunk { left, bytes: stream::try_unfold(upload, Upload::next).boxed() },
            busy: None,
        }
    }

    /// The same, and the connection is busy until it is sent.
    pub fn during(mut self, busy: Busy) -> Self {
        self.busy = Some(busy);
        self
    }

    pub fn len(&self) -> u64 {
        match &self.content {
            Content::Whole(bytes) => bytes.as_ref().map_or(0, |b| b.len() as u64),
            Content::Chunk { left, .. } => *left,
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        match &mut self.get_mut().content {
            Content::Whole(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Content::Chunk { left, bytes } => bytes.poll_next_unpin(cx).map(|piece| {
                let piece = piece?;
                if let Ok(piece) = &piece {
                    *left -= piece.len() as u64;
                }
                Some(piece.map(Frame::data))
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Whole(None) | Content::Chunk { left: 0, .. })
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len())
    }
}

/// A chunk that is being sent. It holds a slot and a seat.
pub(super) struct Upload {
    pub shelved: Shelved,
    /// Bytes before the wanted ones.
    pub skip: u32,
    /// Bytes to send.
    pub left: u32,
    /// Read and not sent yet.
    pub piece: Bytes,
    pub _slot: OwnedSemaphorePermit,
    pub _turn: Option<Turn>,
    pub goes: Goes,
    pub seat: Seated,
    pub limit: Option<Arc<Limit>>,
    pub counters: Arc<Counters>,
    pub to: NodeId,
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Nobody asks for the end of a body whose length is known.
        if self.left == 0 {
            self.counters.chunks.fetch_add(1, Relaxed);
            self.seat.served();
        }
    }
}

impl Upload {
    /// The next piece; an error breaks the connection off, so that nobody takes a part for the whole.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.seat.given(false);
        while self.piece.is_empty() {
            let piece = timeout(LONGEST_LOOK, self.shelved.bytes.next())
                .await
                .map_err(|_| Error::new(Kind::TimedOut, "reading a chunk for a peer"))?;
            let Some(piece) = piece.transpose()? else {
                return Err(Error::new(Kind::Corrupt, "a chunk for a peer is shorter than its record"));
            };
            self.piece = piece;
            let skipped = self.piece.len().min(self.skip as usize);
            self.skip -= skipped as u32;
            let _ = self.piece.split_to(skipped);
        }
        self.goes.wait().await;
        let most =
            self.limit.as_ref().map_or(MAX_PIECE, |l| l.grain().min(MAX_PIECE)).min(self.left as usize);
        let piece = self.piece.split_to(most.min(self.piece.len()));
        if let Some(limit) = &self.limit {
            limit.take(piece.len()).await;
        }
        self.left -= piece.len() as u32;
        if self.left == 0 && !self.piece.is_empty() {
            return Err(Error::new(Kind::Corrupt, "a chunk for a peer is longer than its record"));
        }
        self.counters.sent(self.to, piece.len());
        self.seat.given(true);
        Ok(Some((piece, self)))
    }
}
