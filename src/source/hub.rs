//! Bytes from the Hub (or from a mirror of it), by ranges of files that are known to hold the blob.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tokio::time::Instant;

use super::{Fetched, Source, Want};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::hub::{HubClient, RangeStream};

/// Pause before a transfer is resumed that gave no byte since the last time.
const PAUSE: Duration = Duration::from_millis(500);

/// The Hub as a source: one request for each run; one that breaks off is resumed where it stopped.
#[derive(Clone, Debug)]
pub struct HubSource {
    client: HubClient,
    name: &'static str,
}

impl HubSource {
    /// The Hub itself.
    #[must_use]
    pub fn new(client: HubClient) -> Self {
        HubSource { client, name: "hub" }
    }

    /// A mirror: the same protocol at another endpoint.
    #[must_use]
    pub fn mirror(client: HubClient) -> Self {
        HubSource { client, name: "mirror" }
    }

    /// Opens the blob from `start` to `end` at the first origin that has it, beginning with number `at`. Answers the
    /// number too.
    async fn open(&self, want: &Want, at: usize, start: u64, end: u64) -> Result<(usize, RangeStream)> {
        let mut worst: Option<Error> = None;
        for i in 0..want.origins.len() {
            let at = (at + i) % want.origins.len();
            match self.client.open_range(&want.origins[at], want.blob, want.size, start..end).await {
                Ok(stream) => return Ok((at, stream)),
                // Deleted, renamed away, closed, changed under a commit's name: another may still have it.
                Err(e) if matches!(e.kind(), Kind::NotFound | Kind::Access | Kind::Corrupt) => {
                    tracing::debug!(error = %e, blob = %want.blob, "the next origin is tried");
                    // "It is not there" is said only when every origin says so.
                    worst = Some(worst.filter(|w| w.kind() != Kind::NotFound).unwrap_or(e));
                }
                Err(e) => return Err(e),
            }
        }
        Err(worst.unwrap_or_else(|| Error::new(Kind::NotFound, "no repository is known to have it")))
    }
}

#[async_trait]
impl Source for HubSource {
    fn name(&self) -> &'static str {
        self.name
    }

    fn ahead(&self) -> Option<usize> {
        Some(self.client.transfers())
    }

    async fn fetch(&self, want: &Want) -> Result<Fetched> {
        if want.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let range = want.range();
        let opened = self.open(want, 0, range.start, range.end).await;
        let (origin, stream) = opened.context(|| format!("blob {} from the {}", want.blob, self.name))?;
        let transfer = Transfer {
            source: self.clone(),
            want: want.clone(),
            at: range.start,
            end: range.end,
            origin,
            stream,
            last_byte: Instant::now(),
            failed: false,
        };
        Ok(stream::try_unfold(transfer, Transfer::next).boxed())
    }
}

/// A run on its way.
struct Transfer {
    source: HubSource,
    want: Want,
    /// Offset of the next byte.
    at: u64,
    end: u64,
    origin: usize,
    stream: RangeStream,
    last_byte: Instant,
    /// Nothing came since the last resumption.
    failed: bool,
}

impl Transfer {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        while self.at < self.end {
            let error = match self.stream.next().await {
                Some(Ok(bytes)) => {
                    self.at += bytes.len() as u64;
                    (self.last_byte, self.failed) = (Instant::now(), false);
                    return Ok(Some((bytes, self)));
                }
                Some(Err(e)) => e,
                None => Error::new(Kind::Internal, "a range ended early without an error"),
            };
            if !error.kind().is_transient() || self.last_byte.elapsed() >= self.source.client.deadline() {
                return Err(error.context(format!("blob {}", self.want.blob)));
            }
            tracing::debug!(%error, blob = %self.want.blob, at = self.at, "the transfer is resumed");
            if self.failed {
                tokio::time::sleep(PAUSE.mul_f64(rand::random_range(0.5..1.0))).await;
            }
            self.failed = true;
            let opened = self.source.open(&self.want, self.origin, self.at, self.end).await;
            (self.origin, self.stream) = opened.context(|| format!("blob {}", self.want.blob))?;
        }
        Ok(None)
    }
}
