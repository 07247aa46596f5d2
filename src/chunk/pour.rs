//! One transfer: a run of chunks from one source into the cache, each hashed on its way and shown as soon as it is whole
//! and settled. What is in memory of it is two pieces, whatever the chunk size.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::blob::{Blob, Facts};
use super::cache::CacheFile;
use super::coming::Mark;
use super::digest::Digest;
use super::flight::{AheadPlace, Flights, Landing};
use super::lock;
use super::overflow::Held;
use super::settle::{Finding, settle};
use super::shared::{Fetched, PIECE};
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::meta::ChunkRow;
use crate::peer::Holder;
use crate::source::{Provider, Source, Want};

/// Pieces of a source that are gathered at most, however small.
const MAX_PIECES: usize = 256;
/// Bytes that are enough for a write of a chunk that is passed on, if that is no more than an eighth of it.
const FOLLOWED: usize = 128 << 10;
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
        let piece = match timeout(stall, bytes.next()).await {
            Ok(piece) => piece,
            Err(_) => {
                *place = None;
                chunk.flush().await?;
                timeout(limit - stall, bytes.next()).await.map_err(|_| late("no more bytes"))?
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

async fn land(flights: &mut Flights, settling: Option<Settling>) -> Result<()> {
    let Some(Settling(task)) = settling else { return Ok(()) };
    let landing = task.await.map_err(|e| Error::with_source(Kind::Internal, "settling a chunk", e))??;
    flights.landed(&landing);
    Ok(())
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

fn from_disk(file: &CacheFile, idx: u64, len: usize) -> Result<BytesMut> {
    let mut bytes = BytesMut::zeroed(len);
    let n = file.read_at(idx * u64::from(file.chunk_size()), &mut bytes)?;
    if n < len {
        return Err(Error::new(Kind::Disk, format!("chunk {idx} was cut in the cache")));
    }
    Ok(bytes)
}

/// A chunk that came whole.
struct Poured {
    idx: u64,
    hash: [u8; 32],
    len: u32,
    /// The chunk itself if it is not on the disk.
    memory: Option<Arc<Held>>,
    /// Whether the blob, being this one chunk, is what its name says.
    whole: Option<bool>,
    /// What it was written to: the file on the disk, or the one in memory since the disk failed.
    on_memory_file: bool,
}

/// A chunk that is coming in.
struct Pouring {
    blob: Arc<Blob>,
    idx: u64,
    len: usize,
    taken: usize,
    batch: Vec<Bytes>,
    /// Of what is gathered.
    room: Option<OwnedSemaphorePermit>,
    sink: Place,
    mark: Option<Arc<Mark>>,
}

enum Place {
    Here(Box<Sink>),
    /// Being written to, elsewhere.
    Away(JoinHandle<Result<Box<Sink>, Box<NoRoom>>>),
    /// Between the two, or lost with a failed write.
    Gone,
}

impl Place {
    /// Nothing is being written.
    fn is_here(&self) -> bool {
        match self {
            Place::Here(_) => true,
            Place::Away(job) => job.is_finished(),
            Place::Gone => false,
        }
    }
}

struct Sink {
    hasher: blake3::Hasher,
    whole: Option<Digest>,
    written: usize,
    memory: Option<(BytesMut, OwnedSemaphorePermit)>,
    on_memory_file: bool,
    /// For those to whom it is passed on meanwhile.
    mark: Option<Arc<Mark>>,
}

/// A write that the disk did not take.
struct NoRoom {
    sink: Box<Sink>,
    batch: Vec<Bytes>,
    error: Error,
}

impl Pouring {
    /// A chunk of a run that ends before `end`. In memory from the start if the cache would not keep it until it is read.
    async fn begin(blob: &Arc<Blob>, idx: u64, end: u64) -> Result<Self> {
        let mut pouring = Self::new(blob, idx);
        if idx < end && !blob.wants_memory(idx) {
            pouring.mark = blob.begins(idx).map(Arc::new);
            if let Place::Here(sink) = &mut pouring.sink {
                sink.mark = pouring.mark.clone();
            }
        } else if idx < end {
            let place = blob.shared.overflow.place().await?;
            if let Place::Here(sink) = &mut pouring.sink {
                sink.memory = Some((BytesMut::with_capacity(pouring.len), place));
            }
        }
        Ok(pouring)
    }

    fn new(blob: &Arc<Blob>, idx: u64) -> Self {
        let single = blob.file.chunks() == 1;
        let sink = Sink {
            hasher: blake3::Hasher::new(),
            whole: single.then(|| Digest::new(&blob.id, blob.size)),
            written: 0,
            memory: None,
            on_memory_file: blob.file.is_in_memory(),
            mark: None,
        };
        Pouring {
            blob: blob.clone(),
            idx,
            len: blob.file.chunk_len(idx) as usize,
            taken: 0,
            batch: Vec::new(),
            room: None,
            sink: Place::Here(Box::new(sink)),
            mark: None,
        }
    }

    /// Bytes still to come.
    fn rest(&self) -> usize {
        self.len - self.taken
    }

    /// Takes bytes, and writes those that are enough: always up to a multiple of [`PIECE`] in the chunk, so that no page is
    /// written twice and hashes are made of large blocks. Less is enough if the chunk is passed on.
    async fn push(&mut self, mut bytes: Bytes) -> Result<()> {
        while !bytes.is_empty() {
            if self.room.is_none() {
                let room = self.blob.shared.pieces.clone().acquire_owned().await;
                self.room =
                    Some(room.map_err(|e| Error::with_source(Kind::Internal, "memory for pieces", e))?);
            }
            let followed = self.mark.as_ref().is_some_and(|mark| mark.is_followed());
            let eighth = (self.blob.chunk_size() as usize / 8).max(4 << 10);
            let enough = if followed { FOLLOWED.min(eighth) } else { PIECE };
            let piece = bytes.split_to(bytes.len().min(enough - self.taken % enough));
            self.taken += piece.len();
            self.batch.push(piece);
            let due = self.taken.is_multiple_of(PIECE) || self.batch.len() >= MAX_PIECES || self.rest() == 0;
            // More is gathered while the write before goes on.
            if due || (self.taken.is_multiple_of(enough) && self.sink.is_here()) {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Waits for the write before and begins the next one.
    async fn flush(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let sink = self.sink().await?;
        let (file, idx) = (self.blob.file.clone(), self.idx);
        let (batch, room) = (std::mem::take(&mut self.batch), self.room.take());
        self.sink = Place::Away(tokio::task::spawn_blocking(move || {
            let written = write(&file, idx, sink, batch);
            drop(room);
            written
        }));
        Ok(())
    }

    async fn sink(&mut self) -> Result<Box<Sink>> {
        match std::mem::replace(&mut self.sink, Place::Gone) {
            Place::Here(sink) => Ok(sink),
            Place::Gone => Err(Error::new(Kind::Internal, "a chunk without a place")),
            Place::Away(job) => match job.await {
                Ok(Ok(sink)) => Ok(sink),
                Ok(Err(no_room)) => self.go_on_in_memory(*no_room).await,
                Err(e) => Err(Error::with_source(Kind::Internal, "writing to the cache", e)),
            },
        }
    }

    /// Goes on in memory, if somebody waits for the chunk.
    async fn go_on_in_memory(&mut self, no_room: NoRoom) -> Result<Box<Sink>> {
        let NoRoom { mut sink, batch, error } = no_room;
        let shared = &self.blob.shared;
        if self.blob.file.is_in_memory() != sink.on_memory_file {
            return Err(error.with_kind(Kind::Unavailable));
        }
        // What the kernel was given is not written to; the next to open the blob begins another file.
        if error.kind() != Kind::Busy {
            if !shared.was_full() && shared.cache.aside().is_none() {
                tracing::warn!(blob = %self.blob.id, error = %error, "the cache has no room: reads go on without it");
            }
            shared.disk_is_full();
        }
        if !self.blob.is_awaited(self.idx..self.idx + 1) {
            return Err(error);
        }
        let place = shared.overflow.place().await?;
        let (file, idx, len) = (self.blob.file.clone(), self.idx, self.len);
        blocking(move || {
            let mut bytes = from_disk(&file, idx, sink.written)?;
            bytes.reserve(len - bytes.len());
            sink.memory = Some((bytes, place));
            write(&file, idx, sink, batch).map_err(|e| e.error)
        })
        .await
    }

    async fn finish(mut self) -> Result<Poured> {
        let sink = *self.sink().await?;
        let whole = sink.whole.map(|digest| digest.finish() == self.blob.id);
        Ok(Poured {
            idx: self.idx,
            hash: sink.hasher.finalize().into(),
            len: self.len as u32,
            memory: sink.memory.map(|(bytes, place)| Held::new(bytes.freeze(), place)),
            whole,
            on_memory_file: sink.on_memory_file,
        })
    }
}

fn write(
    file: &Arc<CacheFile>,
    idx: u64,
    mut sink: Box<Sink>,
    batch: Vec<Bytes>,
) -> Result<Box<Sink>, Box<NoRoom>> {
    let len: usize = batch.iter().map(Bytes::len).sum();
    if let Some((bytes, _)) = &mut sink.memory {
        batch.iter().for_each(|piece| bytes.extend_from_slice(piece));
    } else {
        let at = idx * u64::from(file.chunk_size()) + sink.written as u64;
        let mut written = match file.is_in_memory() == sink.on_memory_file {
            true => file.write_pieces(at, &batch),
            false => Err(Error::new(Kind::Unavailable, "the disk failed meanwhile")),
        };
        if written.as_ref().is_err_and(|e| e.kind() == Kind::NoSpace)
            && file.dir().make_room(u64::from(file.chunk_size()))
        {
            written = file.write_pieces(at, &batch);
        }
        if let Err(error) = written {
            return Err(Box::new(NoRoom { sink, batch, error }));
        }
    }
    for piece in &batch {
        sink.hasher.update(piece);
        if let Some(whole) = &mut sink.whole {
            whole.update(piece);
        }
    }
    sink.written += len;
    if sink.memory.is_none()
        && let Some(mark) = &sink.mark
    {
        mark.wrote(sink.written);
    }
    Ok(sink)
}
