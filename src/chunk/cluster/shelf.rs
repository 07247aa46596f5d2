//! What the other nodes are served from: the chunks on the disk of this one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt};
use tokio::time::timeout;

use super::relay::Relay;
use crate::blocking::blocking;
use crate::chunk::blob::{Blob, BlobContent};
use crate::chunk::cache::{CacheFile, ContentKey, Presence};
use crate::chunk::flight::Landing;
use crate::chunk::lock;
use crate::chunk::shared::{PIECE, Place, Shared};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::peer::{Shelf, Shelved, Waited};
use crate::types::BlobId;

/// Blobs kept open for those who fetch them chunk by chunk.
const MOST_OPEN: usize = 32;
/// How long after the last request.
const OPEN_FOR: Duration = Duration::from_secs(20);
/// How long a chunk from another disk of this machine waits for its turn, and may take, before who asks is told to come again.
const NEAR: Duration = Duration::from_secs(1);

/// The chunks of one store, for other nodes. Does not keep the store alive.
#[derive(Debug)]
pub struct BlobShelf {
    shared: Weak<Shared>,
    /// The latest last.
    open: Mutex<VecDeque<(Instant, Arc<BlobContent>)>>,
}

impl BlobShelf {
    pub(in crate::chunk) fn new(shared: &Arc<Shared>) -> Self {
        BlobShelf { shared: Arc::downgrade(shared), open: Mutex::default() }
    }

    fn shared(&self) -> Result<Arc<Shared>> {
        let shared = self.shared.upgrade().filter(|shared| !shared.is_closing());
        shared.ok_or_else(|| Error::new(Kind::Unavailable, "the store of chunks is closed"))
    }

    /// The blob, if there is anything of it here.
    async fn blob(&self, shared: &Arc<Shared>, id: BlobId) -> Result<Option<Arc<BlobContent>>> {
        let old = self.let_go(Instant::now());
        let known = lock(&self.open).iter().find(|(_, blob)| blob.id() == id).map(|(_, blob)| blob.clone());
        drop(old);
        let content = match known {
            Some(content) => content,
            None => {
                let key = ContentKey::Blob(id);
                if !shared.cache.knows(&key) {
                    return self.near(shared, id).await;
                }
                let (cache, chunk_size) = (shared.cache.clone(), shared.options.chunk_size);
                let found = blocking(move || match cache.size_of(&key)? {
                    Some(size) => Ok(Some((size, cache.open_content(key, size, chunk_size)?))),
                    None => Ok(None),
                });
                let Some((size, file)) = found.await? else { return Ok(None) };
                shared.open(id, size, file)?
            }
        };
        self.keep(id, &content);
        Ok(Some(content))
    }

    /// The blob, of which there is nothing in the cache, if it lies on another disk of this machine and is one of the volume's.
    async fn near(&self, shared: &Arc<Shared>, id: BlobId) -> Result<Option<Arc<BlobContent>>> {
        let Some(size) = shared.near(id) else { return Ok(None) };
        let row = shared.blobs.get(id).await?;
        if row.is_none_or(|row| row.size != size) {
            return Ok(None);
        }
        let content = shared.open_file(id, size).await?;
        self.keep(id, &content);
        Ok(Some(content))
    }

    /// Keeps it open for the next chunk.
    fn keep(&self, id: BlobId, content: &Arc<BlobContent>) {
        let _oldest = {
            let mut open = lock(&self.open);
            open.retain(|(_, blob)| blob.id() != id);
            open.push_back((Instant::now(), content.clone()));
            if open.len() > MOST_OPEN { open.pop_front() } else { None }
        };
    }

    /// Takes chunk `idx` from another disk of this machine into the cache, if it lies there. `false`: it did not come.
    /// [`Kind::Busy`]: others are before it.
    async fn take_near(&self, shared: &Arc<Shared>, blob: &Arc<Blob>, idx: u64) -> Result<bool> {
        if shared.near(blob.id) != Some(blob.size) || idx >= blob.file.chunks() {
            return Ok(false);
        }
        let busy = || Error::new(Kind::Busy, format!("blob {} chunk {idx}", blob.id));
        let permit = timeout(NEAR, shared.lent.clone().acquire_owned()).await.map_err(|_| busy())?;
        let place =
            Place::new(permit.map_err(|e| Error::with_source(Kind::Internal, "a place for a chunk", e))?);
        let Some(wait) = blob.take_near(idx, place) else { return Ok(true) };
        let landing = timeout(NEAR, wait.landing()).await.map_err(|_| busy())?;
        Ok(matches!(landing, Landing::Cached | Landing::Memory(_)))
    }

    /// What nobody asked for any more. To be dropped without a lock.
    fn let_go(&self, now: Instant) -> Vec<Arc<BlobContent>> {
        let mut open = lock(&self.open);
        let fresh = open.iter().position(|(at, _)| now.duration_since(*at) < OPEN_FOR).unwrap_or(open.len());
        open.drain(..fresh).map(|(_, blob)| blob).collect()
    }
}

#[async_trait]
impl Shelf for BlobShelf {
    async fn chunk(&self, id: BlobId, idx: u64) -> Result<Option<Shelved>> {
        let shared = self.shared()?;
        let Some(content) = self.blob(&shared, id).await? else { return Ok(None) };
        let blob = content.blob();
        shared.uploads.give_way();
        // What differs from the cluster's records is dropped before anybody sees it.
        blob.compare().await;
        let file = blob.file.clone();
        let mut tried = false;
        let record = loop {
            if let Some(held) = shared.overflow.get(id, idx) {
                let (len, hash) = (held.bytes.len() as u32, Some(*blake3::hash(&held.bytes).as_bytes()));
                let bytes = stream::once(async move { Ok(held.bytes.clone()) }).boxed();
                return Ok(Some(Shelved { len, hash, verified: file.is_verified(), bytes }));
            }
            let file = file.clone();
            let record = blocking(move || match file.presence(idx) {
                Presence::Absent => Ok(None),
                Presence::Suspect if !file.verify(idx)? => Ok(None),
                Presence::Suspect | Presence::Present => file.record_of(idx),
            });
            if let Some(record) = record.await.context(|| format!("blob {id} chunk {idx}"))? {
                break record;
            }
            if tried || !self.take_near(&shared, blob, idx).await? {
                return Ok(None);
            }
            tried = true;
        };
        let verified = file.is_verified();
        let bytes =
            Pieces { content, file, at: idx * u64::from(shared.options.chunk_size), left: record.len };
        let bytes = stream::try_unfold(bytes, Pieces::next).boxed();
        Ok(Some(Shelved { len: record.len, hash: Some(record.hash), verified, bytes }))
    }

    async fn wait(&self, id: BlobId, idx: u64, live: bool) -> Waited {
        let Ok(shared) = self.shared() else { return Waited::Absent };
        let Some(blob) = shared.find(id) else { return Waited::Absent };
        let landing = if live {
            let Some(mut follow) = blob.passed_on(idx) else { return Waited::Absent };
            match follow.begun().await {
                Some(landing) => landing,
                None => {
                    let Ok(Some(content)) = shared.reopen(id, blob.size) else { return Waited::Absent };
                    let relay = Relay::new(content, follow, idx);
                    let len = relay.len();
                    let bytes = stream::try_unfold(relay, Relay::next).boxed();
                    return Waited::Coming(Shelved { len, hash: None, verified: false, bytes });
                }
            }
        } else {
            let Some(wait) = blob.wait_for(idx) else { return Waited::Absent };
            wait.landing().await
        };
        match landing {
            Landing::Cached | Landing::Memory(_) => Waited::Landed,
            Landing::Failed(_) => Waited::Absent,
        }
    }

    async fn begin(&self, id: BlobId, size: u64, idx: u64) -> Result<()> {
        let shared = self.shared()?;
        if !shared.reaches_origin() {
            return Ok(());
        }
        let content = match shared.reopen(id, size)? {
            Some(content) => content,
            None => shared.open_file(id, size).await?,
        };
        if idx < content.blob().file.chunks() {
            content.blob().lend(idx);
        }
        Ok(())
    }

    async fn fill(&self, id: BlobId, size: u64, idx: u64) -> Result<()> {
        let shared = self.shared()?;
        if !shared.reaches_origin() {
            return Err(Error::new(Kind::NotPermitted, "this node may not call the Hub either"));
        }
        let asking = |blob: Arc<Blob>| lock(&blob.state).asking.contains(&idx);
        if shared.find(id).is_some_and(asking) {
            return Err(Error::new(Kind::Access, format!("blob {id}: the Hub refuses this node too")));
        }
        let content = match shared.reopen(id, size)? {
            Some(content) => content,
            None => shared.open_file(id, size).await?,
        };
        content.fetch(idx).await
    }
}

/// A chunk on its way out, a piece of it in memory at a time.
struct Pieces {
    /// While it lives, the content as a whole is not evicted.
    content: Arc<BlobContent>,
    file: Arc<CacheFile>,
    at: u64,
    left: u32,
}

impl Pieces {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.content.blob().shared.uploads.give_way();
        let len = (self.left as usize).min(PIECE);
        let (file, at) = (self.file.clone(), self.at);
        let mut piece = BytesMut::zeroed(len);
        if file.try_read(at, &mut piece) != Some(len) {
            let read = blocking(move || {
                let n = file.read_present(at, &mut piece)?;
                Ok((n == Some(len)).then_some(piece))
            });
            piece = read.await?.ok_or_else(|| Error::new(Kind::NotFound, "evicted meanwhile"))?;
        }
        let piece = piece.freeze();
        self.at += len as u64;
        self.left -= len as u32;
        if self.left == 0 {
            let blob = self.content.blob();
            blob.shared.alone.shared(blob.id, at / blob.chunk_size());
        }
        Ok(Some((piece, self)))
    }
}
