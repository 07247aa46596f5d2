//! Chunks from other nodes: one request for each, the next one sent before the last bytes of the one before have come.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tokio_util::task::AbortOnDropHandle;

use super::{Fetched, Source, Want};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::peer::client::{Client, Got};
use crate::types::BlobId;

/// The next chunk is asked for when so much of this one is left.
const AHEAD: u64 = 1 << 20;

/// The other nodes as a place where bytes of blobs may be.
#[derive(Clone, Debug)]
pub struct PeerSource {
    client: Client,
    /// How long busy nodes are asked again.
    patience: Duration,
    live: bool,
}

impl PeerSource {
    /// `patience`: how long to wait for a slot of holders that are all busy, before another source is asked.
    #[must_use]
    pub fn new(client: Client, patience: Duration) -> Self {
        PeerSource { client, patience, live: true }
    }

    /// Only from nodes that have the chunk whole and say what its hash is.
    #[must_use]
    pub fn recorded(self) -> Self {
        PeerSource { live: false, ..self }
    }
}

#[async_trait]
impl Source for PeerSource {
    fn name(&self) -> &'static str {
        "peer"
    }

    /// The chunks for which [`Want::holders`] names nodes. `NotFound` without asking if it names none for the first;
    /// `NotFound` in the stream at the first of which nobody is known to have it.
    async fn fetch(&self, want: &Want) -> Result<Fetched> {
        if want.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let mut run =
            Run { source: self.clone(), want: want.clone(), idx: want.first, left: 0, now: None, next: None };
        let got = run.open(want.first).await?;
        run.begin(got);
        Ok(stream::try_unfold(run, Run::next).boxed())
    }

    fn told(&self, blob: BlobId, chunk: u64) -> Option<[u8; 32]> {
        self.client.given(blob, chunk).and_then(|given| given.hash)
    }
}

/// Other nodes that are just fetching what is wanted: their bytes, as soon as they have come.
#[derive(Clone, Debug)]
pub struct WaitSource {
    client: Client,
    /// How long one chunk is waited for.
    limit: Duration,
    /// Whether those nodes are asked to begin.
    begin: bool,
}

impl WaitSource {
    /// `limit`: how long the first byte of a chunk may take.
    #[must_use]
    pub fn new(client: Client, limit: Duration) -> Self {
        WaitSource { client, limit, begin: false }
    }

    /// The nodes are asked to fetch what they do not fetch yet.
    #[must_use]
    pub fn begun_there(self) -> Self {
        WaitSource { begin: true, ..self }
    }
}

#[async_trait]
impl Source for WaitSource {
    fn name(&self) -> &'static str {
        "peer"
    }

    /// Of [`Want::holders`] the first of each chunk is the one that fetches it.
    async fn fetch(&self, want: &Want) -> Result<Fetched> {
        let waiting = Waiting { source: self.clone(), want: want.clone(), idx: want.first, next: None };
        let chunks = stream::try_unfold(waiting, Waiting::next).boxed();
        Ok(chunks.try_flatten().boxed())
    }

    fn told(&self, blob: BlobId, chunk: u64) -> Option<[u8; 32]> {
        self.client.given(blob, chunk).and_then(|given| given.hash)
    }
}

/// A run of which one chunk after the other is waited for.
struct Waiting {
    source: WaitSource,
    want: Want,
    idx: u64,
    next: Option<AbortOnDropHandle<Result<Got>>>,
}

impl Waiting {
    /// Waits for a chunk, once it is polled.
    fn open(&self, idx: u64) -> impl Future<Output = Result<Got>> + Send + use<> {
        let WaitSource { client, limit, begin } = self.source.clone();
        let (blob, size, len) = (self.want.blob, self.want.size, self.want.len_of(idx));
        let owner = self.want.holders.get((idx - self.want.first) as usize).and_then(|n| n.first()).cloned();
        async move {
            let what = || format!("blob {blob} chunk {idx}");
            let owner = owner.ok_or_else(|| Error::new(Kind::Internal, what()))?;
            let len = u32::try_from(len).map_err(|e| Error::with_source(Kind::Internal, what(), e))?;
            let got = match begin {
                true => client.wait_begun(blob, size, idx, len, &owner, limit).await,
                false => client.wait(blob, idx, len, &owner, limit).await,
            };
            got.context(what)
        }
    }

    async fn next(mut self) -> Result<Option<(BoxStream<'static, Result<Bytes>>, Self)>> {
        if self.want.len_of(self.idx) == 0 {
            return Ok(None);
        }
        let got = match self.next.take() {
            Some(opening) => {
                opening.await.map_err(|e| Error::with_source(Kind::Internal, "asking a peer", e))??
            }
            None => self.open(self.idx).await?,
        };
        self.idx += 1;
        // The end of a chunk that is passed on waits for its check; the next one comes meanwhile.
        if self.want.len_of(self.idx) > 0 {
            self.next = Some(AbortOnDropHandle::new(tokio::spawn(self.open(self.idx))));
        }
        Ok(Some((got.bytes, self)))
    }
}

/// A run on its way.
struct Run {
    source: PeerSource,
    want: Want,
    /// Which chunk `now` is.
    idx: u64,
    /// Bytes of it that are still to come.
    left: u64,
    now: Option<BoxStream<'static, Result<Bytes>>>,
    next: Option<AbortOnDropHandle<Result<Got>>>,
}

impl Run {
    /// Bytes of chunk `idx`; 0 beyond the run.
    fn len(&self, idx: u64) -> u64 {
        self.want.len_of(idx)
    }

    fn open(&self, idx: u64) -> impl Future<Output = Result<Got>> + Send + use<> {
        let PeerSource { client, patience, live } = self.source.clone();
        let (blob, len) = (self.want.blob, self.len(idx));
        let holders = self.want.holders.get((idx - self.want.first) as usize).cloned();
        async move {
            let what = || format!("blob {blob} chunk {idx}");
            let holders = holders.filter(|h| !h.is_empty());
            let holders =
                holders.ok_or_else(|| Error::new(Kind::NotFound, "no peer has it")).context(what)?;
            let len = u32::try_from(len).map_err(|e| Error::with_source(Kind::Internal, what(), e))?;
            let got = match live {
                true => client.fetch_live(blob, idx, len, &holders, patience).await,
                false => client.fetch(blob, idx, len, &holders, patience).await,
            };
            got.context(what)
        }
    }

    fn begin(&mut self, got: Got) {
        self.left = self.len(self.idx);
        self.now = Some(got.bytes);
    }

    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        loop {
            let after = self.idx + 1;
            if self.left == 0 {
                // Asked for its end too, so that it counts as come.
                if let Some(mut now) = self.now.take() {
                    now.next().await.transpose()?;
                }
                if self.len(after) == 0 {
                    return Ok(None);
                }
                let got = match self.next.take() {
                    Some(opening) => opening
                        .await
                        .map_err(|e| Error::with_source(Kind::Internal, "asking a peer", e))??,
                    None => self.open(after).await?,
                };
                self.idx = after;
                self.begin(got);
                continue;
            }
            if self.next.is_none() && self.left <= AHEAD && self.len(after) > 0 {
                self.next = Some(AbortOnDropHandle::new(tokio::spawn(self.open(after))));
                continue;
            }
            let what = || format!("blob {} chunk {}", self.want.blob, self.idx);
            let Some(now) = &mut self.now else { return Err(Error::new(Kind::Internal, what())) };
            let piece = now.next().await.transpose().context(what)?;
            let piece =
                piece.ok_or_else(|| Error::new(Kind::Internal, "a chunk ended early")).context(what)?;
            self.left = self.left.checked_sub(piece.len() as u64).ok_or(Kind::Internal)?;
            return Ok(Some((piece, self)));
        }
    }
}
