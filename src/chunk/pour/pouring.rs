//! One chunk on its way into the cache: gathered into pieces, each written while the next one comes, and hashed on its way. A
//! chunk that the disk does not take goes on in memory, if somebody waits for it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;

use crate::blocking::blocking;
use crate::chunk::blob::Blob;
use crate::chunk::cache::CacheFile;
use crate::chunk::coming::Mark;
use crate::chunk::digest::Digest;
use crate::chunk::overflow::Held;
use crate::chunk::shared::PIECE;
use crate::error::{Error, Kind, Result};

/// Pieces of a source that are gathered at most, however small.
const MAX_PIECES: usize = 256;
/// Bytes that are enough for a write of a chunk that is passed on, if that is no more than an eighth of it.
const FOLLOWED: usize = 128 << 10;

/// A chunk that came whole.
pub(super) struct Poured {
    pub idx: u64,
    pub hash: [u8; 32],
    pub len: u32,
    /// The chunk itself if it is not on the disk.
    pub memory: Option<Arc<Held>>,
    /// Whether the blob, being this one chunk, is what its name says.
    pub whole: Option<bool>,
    /// What it was written to: the file on the disk, or the one in memory since the disk failed.
    pub on_memory_file: bool,
}

/// A chunk that is coming in.
pub(super) struct Pouring {
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
    pub(super) async fn begin(blob: &Arc<Blob>, idx: u64, end: u64) -> Result<Self> {
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
    pub(super) fn rest(&self) -> usize {
        self.len - self.taken
    }

    /// Takes bytes, and writes those that are enough: always up to a multiple of [`PIECE`] in the chunk, so that no page is
    /// written twice and hashes are made of large blocks. Less is enough if the chunk is passed on.
    pub(super) async fn push(&mut self, mut bytes: Bytes) -> Result<()> {
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
    pub(super) async fn flush(&mut self) -> Result<()> {
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

    pub(super) async fn finish(mut self) -> Result<Poured> {
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

/// The first bytes of a chunk as they are on the disk.
pub(super) fn from_disk(file: &CacheFile, idx: u64, len: usize) -> Result<BytesMut> {
    let mut bytes = BytesMut::zeroed(len);
    let n = file.read_at(idx * u64::from(file.chunk_size()), &mut bytes)?;
    if n < len {
        return Err(Error::new(Kind::Disk, format!("chunk {idx} was cut in the cache")));
    }
    Ok(bytes)
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
