//! One transfer: a run of chunks from one source into the cache, each hashed on its way and shown as soon as it is whole
//! and settled. What is in memory of it is two pieces, whatever the chunk size.

mod pouring;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use self::pouring::{Poured, Pouring, from_disk};
use super::blob::{Blob, Facts};
use super::flight::{AheadPlace, Flights, Landing};
use super::lock;
use super::overflow::Held;
use super::settle::{Finding, settle};
use super::shared::Fetched;
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::meta::ChunkRow;
use crate::peer::Holder;
use crate::source::{Provider, Source, Want};

/// A source that gives nothing for so long has stalled: what others could use is given back while it is waited for.
const STALL: Duration = Duration::from_secs(1);

/// What is known when a round begins.
#[derive(Debug)]
pub(super) struct Task {
    pub facts: Arc<Facts>,
    /// The rows of the chunks from `base` on. `None`: the metadata do not answer, and nothing can be recorded either.
    pub rows: Option<Vec<ChunkRow>>,
    pub base: u64,
    pub generation: u64,
}

impl Task {
    /// What is known of chunk `idx`, which is not before `base`.
    pub fn row(&self, idx: u64) -> ChunkRow {
        let rows = self.rows.as_deref().unwrap_or_default();
        rows.get((idx - self.base) as usize).copied().unwrap_or_default()
    }
}

/// Where a run comes from.
#[derive(Debug)]
pub(super) struct From<'a> {
    pub source: &'a dyn Source,
    pub counters: &'a Fetched,
    /// It is the last word on a blob that nobody has verified.
    pub is_origin: bool,
    /// For each chunk, the nodes that may have it; empty if the source is no other node.
    pub holders: Arc<[Arc<[Holder]>]>,
}

impl<'a> From<'a> {
    /// A source that is no other node.
    pub fn outside(source: &'a dyn Source, counters: &'a Fetched, is_origin: bool) -> Self {
        From { source, counters, is_origin, holders: Arc::from([]) }
    }
}

/// Fetches what is left of the run. Chunks that came whole have landed even if it fails.
pub(super) async fn pour(
    flights: &mut Flights,
    task: &Task,
    from: &From<'_>,
    place: &mut AheadPlace,
) -> Result<()> {
    let begun = Instant::now();
    flights.blob.transfer_begins();
    let mut last = None;
    let result = stream(flights, task, from, place, &mut last).await;
    // The chunk before the one that failed may just be settling.
    let settled = land(flights, last).await;
    from.counters.nanos.fetch_add(begun.elapsed().as_nanos() as u64, Relaxed);
    settled.and(result)
}

async fn stream(
    flights: &mut Flights,
    task: &Task,
    from: &From<'_>,
    place: &mut AheadPlace,
    last: &mut Option<Settling>,
) -> Result<()> {
    let From { source, counters, is_origin, .. } = *from;
    let blob = flights.blob.clone();
    let shared = &blob.shared;
    let run = flights.left.clone();
    let stored = run.clone().map(|idx| Some(task.row(idx)).filter(|r| r.stored).and_then(|r| r.hash));
    let want = Want {
        blob: blob.id,
        size: blob.size,
        origins: task.facts.origins.clone(),
        first: run.start,
        count: run.end - run.start,
        chunk_size: blob.file.chunk_size(),
        stored: stored.collect(),
        holders: from.holders.clone(),
    };
    let limit = shared.options.source_timeout;
    let late = |what| Error::new(Kind::TimedOut, format!("{what} after {} s", limit.as_secs()));
    counters.requests.fetch_add(1, Relaxed);
    let stall = STALL.min(limit);
    let mut fetch = source.fetch(&want);
    let mut bytes = match timeout(stall, &mut fetch).await {
        Ok(answer) => answer?,
        Err(_) => {
            *place = None;
            timeout(limit - stall, fetch).await.map_err(|_| late("no answer"))??
        }
    };
    let kind = Provider::of(source.name());
    let mut idx = run.start;
    let mut chunk = Pouring::begin(&blob, idx, run.end).await?;
    loop {
        let piece = match timeout(stall, next(&mut bytes, flights, last)).await {
            Ok(piece) => piece?,
            Err(_) => {
                *place = None;
                chunk.flush().await?;
                let next = next(&mut bytes, flights, last);
                timeout(limit - stall, next).await.map_err(|_| late("no more bytes"))??
            }
        };
        let Some(piece) = piece else { break };
        let mut piece = piece?;
        counters.bytes.fetch_add(piece.len() as u64, Relaxed);
        while !piece.is_empty() {
            if idx == run.end {
                return Err(Error::new(Kind::Corrupt, "more bytes than asked for"));
            }
            let len = piece.len().min(chunk.rest());
            chunk.push(piece.split_to(len)).await?;
            if chunk.rest() > 0 {
                continue;
            }
            let poured = chunk.finish().await?;
            land(flights, last.take()).await?;
            let in_memory = poured.memory.is_some();
            let finding = Finding {
                is_origin,
                stored: task.row(idx).stored,
                // Without the metadata the word of the node that gave it, which knows the volume's key.
                recorded: if task.rows.is_some() { task.row(idx).hash } else { source.told(blob.id, idx) },
                whole: poured.whole,
                can_record: task.rows.is_some(),
            };
            let shown = show(blob.clone(), poured, finding, task.generation, kind);
            *last = Some(Settling(tokio::spawn(shown)));
            if in_memory {
                // The next one may need its place.
                land(flights, last.take()).await?;
            }
            idx += 1;
            chunk = Pouring::begin(&blob, idx, run.end).await?;
        }
    }
    if idx < run.end {
        return Err(Error::new(Kind::Unavailable, "the transfer ended early"));
    }
    Ok(())
}

/// A chunk on its way from "whole" to "shown", while the next one comes in.
struct Settling(JoinHandle<Result<Landing>>);

impl Settling {
    /// Nothing is lost if the future is dropped.
    async fn end(&mut self) -> Result<Landing> {
        (&mut self.0).await.map_err(|e| Error::with_source(Kind::Internal, "settling a chunk", e))?
    }
}

async fn land(flights: &mut Flights, settling: Option<Settling>) -> Result<()> {
    let Some(mut settling) = settling else { return Ok(()) };
    flights.landed(&settling.end().await?);
    Ok(())
}

/// The next piece, or the end. Who waits for the chunk before has it as soon as it is settled, however long the next one takes.
/// Nothing is lost if the future is dropped.
async fn next(
    bytes: &mut crate::source::Fetched,
    flights: &mut Flights,
    last: &mut Option<Settling>,
) -> Result<Option<Result<Bytes>>> {
    loop {
        let Some(settling) = last else { return Ok(bytes.next().await) };
        tokio::select! {
            piece = bytes.next() => return Ok(piece),
            landing = settling.end() => {
                *last = None;
                flights.landed(&landing?);
            }
        }
    }
}

/// Agrees with the cluster on the chunk, then records it in the cache.
async fn show(
    blob: Arc<Blob>,
    poured: Poured,
    finding: Finding,
    generation: u64,
    from: Provider,
) -> Result<Landing> {
    let Poured { idx, hash, len, mut memory, on_memory_file, .. } = poured;
    settle(&blob, idx, hash, &finding).await.context(|| format!("chunk {idx}"))?;
    if lock(&blob.state).generation != generation {
        return Err(Error::new(Kind::Unavailable, format!("chunk {idx} was dropped meanwhile")));
    }
    let shared = &blob.shared;
    blob.came_from(from, len);
    if memory.is_none() {
        let file = blob.file.clone();
        let stored = from == Provider::Bucket || (from == Provider::Peer && finding.stored);
        let recorded = blocking(move || file.record_poured(idx, &hash, len, stored, from, on_memory_file));
        if let Err(e) = recorded.await {
            if e.kind() == Kind::Unavailable {
                return Err(e);
            }
            // The data is there, only the index found no room.
            tracing::debug!(blob = %blob.id, idx, error = %e, "no record in the cache");
            shared.disk_is_full();
            memory = Some(read_back(&blob, idx, len, &hash).await?);
        }
    }
    shared.counters.filled.fetch_add(1, Relaxed);
    let landing = match memory {
        Some(held) => {
            shared.counters.from_memory.fetch_add(1, Relaxed);
            shared.overflow.keep(blob.id, idx, held.clone());
            Landing::Memory(held)
        }
        None => {
            blob.tell_if_complete();
            if finding.whole == Some(true) {
                blob.verified_at_once();
            } else {
                blob.check_more();
            }
            // What a peer gave is put there by whoever brought it into the cluster; what a file has is there as the file's.
            if !matches!(from, Provider::Bucket | Provider::Peer | Provider::File) && !finding.stored {
                shared.uploads.add(&blob, idx, hash);
                if lock(&blob.state).stripes.is_some() {
                    shared.alone.add(blob.id, idx);
                }
            }
            if let Some(peers) = &shared.peers {
                peers.landed(blob.id, idx);
            }
            Landing::Cached
        }
    };
    Ok(landing)
}

async fn read_back(blob: &Arc<Blob>, idx: u64, len: u32, hash: &[u8; 32]) -> Result<Arc<Held>> {
    let place = blob.shared.overflow.place().await?;
    let file = blob.file.clone();
    let bytes = blocking(move || from_disk(&file, idx, len as usize)).await?;
    if blake3::hash(&bytes) != *hash {
        return Err(Error::new(
            Kind::Unavailable,
            format!("chunk {idx}: the disk does not have what was written"),
        ));
    }
    Ok(Held::new(bytes.freeze(), place))
}
