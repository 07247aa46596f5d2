//! The store of a volume's objects: any S3, or a local folder. It knows names of objects and bytes; nothing above it
//! names the `object_store` crate.
//!
//! Every object but the marker is written once and never changed, so that a read may be resumed, repeated or cached at
//! will, and nothing rests on conditional requests, which some servers ignore. Every call is bounded in time
//! ([`Patience`]); transient failures are tried again inside. An object is there wholly or not at all; once [`Bucket::put`]
//! has returned it survives a power cut (a local folder is synced).

mod blobs;
pub mod faulty;
mod marker;
mod name;
mod open;
mod retry;
#[cfg(test)]
mod tests;
mod unfinished;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use object_store::path::Path;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, PutPayload};
use tokio::time::timeout;

use crate::error::{Error, Kind, Result, ResultExt};
use crate::metrics::Histogram;
use crate::types::Timestamp;
use open::LocalFolders;
use retry::{Backoff, translate};

pub use blobs::BucketSource;
pub use marker::{Claim, Marker};
pub use name::Object;
pub use retry::Patience;

/// The largest object that is ever written: the largest chunk.
pub const MAX_OBJECT: u64 = 64 << 20;

/// The objects of one volume. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Bucket {
    shared: Arc<Shared>,
    patience: Patience,
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn ObjectStore>,
    /// `<prefix>/<volume>`: what all names of the volume begin with.
    root: Path,
    /// For messages: `s3://bucket/prefix at http://…`.
    place: String,
    /// A local folder's directories, which must be durable before the first object in them is.
    folders: Option<LocalFolders>,
    stats: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    puts: AtomicU64,
    gets: AtomicU64,
    others: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    failed: AtomicU64,
    put_time: Histogram,
    get_time: Histogram,
}

/// Notes how long a call took with all its tries, and that it failed unless told otherwise.
struct Timing<'a> {
    histogram: &'a Histogram,
    begun: Instant,
    failed: bool,
}

impl<'a> Timing<'a> {
    fn of(histogram: &'a Histogram) -> Self {
        Timing { histogram, begun: Instant::now(), failed: true }
    }

    fn succeeded(mut self) {
        self.failed = false;
    }
}

impl Drop for Timing<'_> {
    fn drop(&mut self) {
        self.histogram.note(self.begun.elapsed(), self.failed);
    }
}

/// What a bucket was asked since it was opened. Tries count one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BucketStats {
    pub puts: u64,
    pub gets: u64,
    /// Heads, deletes and lists.
    pub others: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
    /// Tries that ended with an error other than "not found".
    pub failed: u64,
}

/// An object that a listing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Relative to the volume: `chunks/…`, `blobs/…`.
    pub name: String,
    pub size: u64,
    /// By the store's clock.
    pub modified: Timestamp,
}

impl Bucket {
    fn over(store: Arc<dyn ObjectStore>, root: Path, place: String, folders: Option<LocalFolders>) -> Self {
        let shared = Shared { store, root, place, folders, stats: Counters::default() };
        Bucket { shared: Arc::new(shared), patience: Patience::default() }
    }

    /// The same bucket with other bounds of time.
    #[must_use]
    pub fn with_patience(&self, patience: Patience) -> Self {
        Bucket { shared: self.shared.clone(), patience }
    }

    /// Its bounds of time.
    #[must_use]
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Where it is, for messages; without secrets.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.shared.place
    }

    /// What it was asked since it was opened, by all clones together.
    #[must_use]
    pub fn stats(&self) -> BucketStats {
        let c = &self.shared.stats;
        BucketStats {
            puts: c.puts.load(Relaxed),
            gets: c.gets.load(Relaxed),
            others: c.others.load(Relaxed),
            bytes_up: c.bytes_up.load(Relaxed),
            bytes_down: c.bytes_down.load(Relaxed),
            failed: c.failed.load(Relaxed),
        }
    }

    /// How long writing and reading whole objects took, with all tries.
    #[must_use]
    pub fn times(&self) -> [(&'static str, &Histogram); 2] {
        [("put", &self.shared.stats.put_time), ("get", &self.shared.stats.get_time)]
    }

    /// Writes the whole object, durably.
    pub async fn put(&self, object: &Object, data: Bytes) -> Result<()> {
        self.put_pieces(object, &[data]).await
    }

    /// The same for bytes in several pieces, without joining them.
    pub async fn put_pieces(&self, object: &Object, data: &[Bytes]) -> Result<()> {
        let timing = Timing::of(&self.shared.stats.put_time);
        let data = PutPayload::from_iter(data.iter().cloned());
        let len = data.content_length();
        let path = self.path(object);
        if let Some(folders) = &self.shared.folders {
            folders.prepare(&path).await.context(|| format!("{object} in {}", self.shared.place))?;
        }
        let bound = self.patience.upload(len);
        let mut backoff = Backoff::new(&self.patience);
        loop {
            self.shared.stats.puts.fetch_add(1, Relaxed);
            let put = self.shared.store.put(&path, data.clone());
            let error = match timeout(bound, put).await {
                Ok(Ok(_)) => {
                    self.shared.stats.bytes_up.fetch_add(len as u64, Relaxed);
                    timing.succeeded();
                    return Ok(());
                }
                // "No such file" of a write means a folder that is gone, not an absent object.
                Ok(Err(e)) => {
                    let e = self.failed(e, object);
                    if e.kind() == Kind::NotFound { e.with_kind(Kind::Config) } else { e }
                }
                Err(_) => self.slow(object, "upload", bound),
            };
            backoff.pause(error).await?;
        }
    }

    /// The bytes of `range` of the object, or all of it. A range must lie within the object.
    ///
    /// [`Kind::NotFound`]: there is no such object. [`Kind::Corrupt`]: it is shorter than the range, or larger than any
    /// object of a volume.
    pub async fn get(&self, object: &Object, range: Option<Range<u64>>) -> Result<Bytes> {
        if range.as_ref().is_some_and(|r| r.is_empty()) {
            return Ok(Bytes::new());
        }
        let timing = Timing::of(&self.shared.stats.get_time);
        let mut got = BytesMut::new();
        let mut backoff = Backoff::new(&self.patience);
        loop {
            let before = got.len();
            match self.get_once(object, range.as_ref(), &mut got).await {
                Ok(()) => {
                    timing.succeeded();
                    return Ok(got.freeze());
                }
                Err(e) => {
                    // Bytes came: the line works, the next break is not the fault of this one.
                    if got.len() > before {
                        backoff = Backoff::new(&self.patience);
                    }
                    backoff.pause(e).await?;
                }
            }
        }
    }

    /// One try, going on after what `got` holds already.
    async fn get_once(&self, object: &Object, range: Option<&Range<u64>>, got: &mut BytesMut) -> Result<()> {
        self.shared.stats.gets.fetch_add(1, Relaxed);
        let done = got.len() as u64;
        let options = match range {
            Some(range) => GetOptions::new().with_range(Some(range.start + done..range.end)),
            None if done > 0 => GetOptions::new().with_range(Some(object_store::GetRange::Offset(done))),
            None => GetOptions::new(),
        };
        let bound = self.patience.progress;
        let answer = timeout(bound, self.shared.store.get_opts(&self.path(object), options))
            .await
            .map_err(|_| self.slow(object, "read", bound))?
            .map_err(|e| self.failed(e, object))?;
        // A local file answers with less than was asked; a server that ignores ranges, with more.
        let expected = match range {
            Some(range) => range.start + done..range.end,
            None => done..answer.meta.size,
        };
        if answer.range != expected || expected.end - expected.start.min(expected.end) > MAX_OBJECT {
            let why =
                format!("bytes {expected:?} wanted, {:?} of {} offered", answer.range, answer.meta.size);
            return Err(Error::with_source(Kind::Corrupt, self.describe(object), why));
        }
        got.reserve((expected.end - expected.start) as usize);
        let end = got.len() as u64 + (expected.end - expected.start);
        let mut stream = answer.into_stream();
        while (got.len() as u64) < end {
            let piece = timeout(bound, stream.next())
                .await
                .map_err(|_| self.slow(object, "read", bound))?
                .transpose()
                .map_err(|e| self.failed(e, object))?;
            let Some(piece) = piece else {
                return Err(Error::with_source(Kind::Unavailable, self.describe(object), "the body was cut"));
            };
            if got.len() as u64 + piece.len() as u64 > end {
                return Err(Error::with_source(Kind::Corrupt, self.describe(object), "the body is too long"));
            }
            self.shared.stats.bytes_down.fetch_add(piece.len() as u64, Relaxed);
            got.extend_from_slice(&piece);
        }
        Ok(())
    }

    /// The object's length, `None` if it is not there.
    pub async fn head(&self, object: &Object) -> Result<Option<u64>> {
        let path = self.path(object);
        let mut backoff = Backoff::new(&self.patience);
        loop {
            self.shared.stats.others.fetch_add(1, Relaxed);
            let error = match timeout(self.patience.progress, self.shared.store.head(&path)).await {
                Ok(Ok(meta)) => return Ok(Some(meta.size)),
                Ok(Err(e)) => match self.failed(e, object) {
                    // An answer without a body does not tell a missing bucket from a missing object: `check` has
                    // found that out before.
                    e if e.kind() == Kind::NotFound => return Ok(None),
                    e => e,
                },
                Err(_) => self.slow(object, "look", self.patience.progress),
            };
            backoff.pause(error).await?;
        }
    }

    /// Whether the object is there.
    pub async fn exists(&self, object: &Object) -> Result<bool> {
        Ok(self.head(object).await?.is_some())
    }

    /// Deletes the object. One that is not there is deleted already.
    pub async fn delete(&self, object: &Object) -> Result<()> {
        let path = self.path(object);
        let mut backoff = Backoff::new(&self.patience);
        loop {
            self.shared.stats.others.fetch_add(1, Relaxed);
            let error = match timeout(self.patience.progress, self.shared.store.delete(&path)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(e)) => match self.failed(e, object) {
                    e if e.kind() == Kind::NotFound => return Ok(()),
                    e => e,
                },
                Err(_) => self.slow(object, "delete", self.patience.progress),
            };
            backoff.pause(error).await?;
        }
    }

    /// Up to `limit` objects of the volume whose names begin with the folders `under` (`""`, `chunks`, `blobs/3f`), in
    /// the order of names, after the name `after`. For tools: a listing is slow.
    pub async fn list(&self, under: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>> {
        let what = || format!("list of {}/{under}", self.shared.place);
        let prefix =
            under.split('/').filter(|p| !p.is_empty()).fold(self.shared.root.clone(), |p, s| p.join(s));
        let offset = after
            .map(|a| a.split('/').filter(|p| !p.is_empty()).fold(self.shared.root.clone(), |p, s| p.join(s)));
        let mut backoff = Backoff::new(&self.patience);
        'again: loop {
            self.shared.stats.others.fetch_add(1, Relaxed);
            let mut stream = match &offset {
                Some(offset) => self.shared.store.list_with_offset(Some(&prefix), offset),
                None => self.shared.store.list(Some(&prefix)),
            };
            let mut found = Vec::new();
            loop {
                let next = match timeout(self.patience.progress, stream.next()).await {
                    Ok(None) => break,
                    Ok(Some(Ok(meta))) => meta,
                    Ok(Some(Err(e))) => {
                        let e = translate(e, &what(), &self.shared.place);
                        // A local folder that nothing was written to yet.
                        if e.kind() == Kind::NotFound {
                            break;
                        }
                        self.shared.stats.failed.fetch_add(1, Relaxed);
                        backoff.pause(e).await?;
                        continue 'again;
                    }
                    Err(_) => {
                        backoff.pause(Error::new(Kind::TimedOut, what())).await?;
                        continue 'again;
                    }
                };
                let Some(parts) = next.location.prefix_match(&self.shared.root) else { continue };
                let name = parts.map(|p| p.as_ref().to_owned()).collect::<Vec<_>>().join("/");
                let nanos = next.last_modified.timestamp_nanos_opt().unwrap_or_default();
                found.push(Listed { name, size: next.size, modified: Timestamp(nanos) });
                // A folder is listed in no order at all; a server in the order of names.
                if found.len() >= limit && self.shared.folders.is_none() {
                    break;
                }
            }
            found.sort_by(|a, b| a.name.cmp(&b.name));
            found.truncate(limit);
            return Ok(found);
        }
    }

    /// Calls `found` for every object of the volume whose name begins with the folders `under`, in no particular order.
    /// Holds none of them in memory. What is put or deleted meanwhile may or may not be found.
    pub async fn each(&self, under: &str, mut found: impl FnMut(Listed)) -> Result<()> {
        let what = || format!("list of {}/{under}", self.shared.place);
        let prefix =
            under.split('/').filter(|p| !p.is_empty()).fold(self.shared.root.clone(), |p, s| p.join(s));
        let mut backoff = Backoff::new(&self.patience);
        let mut last: Option<Path> = None;
        'again: loop {
            self.shared.stats.others.fetch_add(1, Relaxed);
            let mut stream = match &last {
                Some(last) => self.shared.store.list_with_offset(Some(&prefix), last),
                None => self.shared.store.list(Some(&prefix)),
            };
            loop {
                let error = match timeout(self.patience.progress, stream.next()).await {
                    Ok(None) => return Ok(()),
                    Ok(Some(Ok(meta))) => {
                        let parts = meta.location.prefix_match(&self.shared.root);
                        let name =
                            parts.map(|p| p.map(|p| p.as_ref().to_owned()).collect::<Vec<_>>().join("/"));
                        if let Some(name) = name {
                            let nanos = meta.last_modified.timestamp_nanos_opt().unwrap_or_default();
                            found(Listed { name, size: meta.size, modified: Timestamp(nanos) });
                            last = Some(meta.location);
                            backoff = Backoff::new(&self.patience);
                        }
                        continue;
                    }
                    Ok(Some(Err(e))) => translate(e, &what(), &self.shared.place),
                    Err(_) => Error::new(Kind::TimedOut, what()),
                };
                // A folder that nothing was written to yet, or an object that went while it was being listed.
                if error.kind() == Kind::NotFound {
                    match last {
                        None => return Ok(()),
                        Some(_) => continue,
                    }
                }
                self.shared.stats.failed.fetch_add(1, Relaxed);
                // A folder is listed in no order: one cannot go on where it broke off.
                if last.is_some() && self.shared.folders.is_some() {
                    return Err(error);
                }
                backoff.pause(error).await?;
                continue 'again;
            }
        }
    }

    fn path(&self, object: &Object) -> Path {
        object.parts().iter().fold(self.shared.root.clone(), |path, part| path.join(part.as_str()))
    }

    fn describe(&self, object: &Object) -> String {
        format!("{object} in {}", self.shared.place)
    }

    fn failed(&self, e: object_store::Error, object: &Object) -> Error {
        let e = translate(e, &object.to_string(), &self.shared.place);
        if e.kind() != Kind::NotFound {
            self.shared.stats.failed.fetch_add(1, Relaxed);
        }
        e
    }

    fn slow(&self, object: &Object, what: &str, bound: Duration) -> Error {
        self.shared.stats.failed.fetch_add(1, Relaxed);
        let why = format!("{what} made no progress for {} s", bound.as_secs_f32());
        Error::with_source(Kind::TimedOut, self.describe(object), why)
    }
}
