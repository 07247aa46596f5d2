//! A source that gives no more than so many bytes a second.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;

use super::{Fetched, Source, Want};
use crate::error::Result;
use crate::peer::limits::Limit;
use crate::types::BlobId;

/// Another source, slowed down. What is not taken from it is not read from the wire either.
#[derive(Debug)]
pub struct Limited<S> {
    source: S,
    limit: Arc<Limit>,
}

impl<S: Source> Limited<S> {
    /// `limit` is shared with whoever else has it.
    #[must_use]
    pub fn new(source: S, limit: Arc<Limit>) -> Self {
        Limited { source, limit }
    }
}

#[async_trait]
impl<S: Source> Source for Limited<S> {
    fn name(&self) -> &'static str {
        self.source.name()
    }

    async fn fetch(&self, want: &Want) -> Result<Fetched> {
        let limit = self.limit.clone();
        let paid = self.source.fetch(want).await?.then(move |piece| {
            let limit = limit.clone();
            async move {
                if let Ok(piece) = &piece {
                    limit.take(piece.len()).await;
                }
                piece
            }
        });
        Ok(paid.boxed())
    }

    fn told(&self, blob: BlobId, chunk: u64) -> Option<[u8; 32]> {
        self.source.told(blob, chunk)
    }

    fn is_near(&self, blob: BlobId) -> bool {
        self.source.is_near(blob)
    }

    fn near(&self, blob: BlobId) -> Option<u64> {
        self.source.near(blob)
    }

    fn all_near(&self, most: usize) -> Option<Vec<(BlobId, u64)>> {
        self.source.all_near(most)
    }

    fn ahead(&self) -> Option<usize> {
        self.source.ahead()
    }

    fn wrong(&self, blob: BlobId) {
        self.source.wrong(blob);
    }
}
