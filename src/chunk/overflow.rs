//! Chunks that found no room on the disk: a read never fails for that. Few, in memory, the oldest given up first.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::lock;
use crate::error::{Error, Kind, Result};
use crate::types::BlobId;

/// A chunk in memory, checked like any other. Its place counts as taken until the last holder lets go.
#[derive(Debug)]
pub struct Held {
    pub bytes: Bytes,
    _place: OwnedSemaphorePermit,
}

impl Held {
    /// The chunk `bytes`, in the place that was taken for it.
    pub fn new(bytes: Bytes, place: OwnedSemaphorePermit) -> Arc<Self> {
        Arc::new(Held { bytes, _place: place })
    }
}

/// Name of a chunk, and the chunk.
type Entry = ((BlobId, u64), Arc<Held>);

/// The chunks held by this process.
#[derive(Debug)]
pub struct Overflow {
    places: Arc<Semaphore>,
    /// The oldest first. Readers come in small steps: the next one wants the same chunk.
    kept: Mutex<VecDeque<Entry>>,
    /// Who waits for a place hears that something is kept, which may give way.
    keeping: Notify,
}

impl Overflow {
    /// At most `bytes` in chunks of `chunk_size`, but always one.
    pub fn new(bytes: u64, chunk_size: u32) -> Self {
        let places = usize::try_from(bytes / u64::from(chunk_size)).unwrap_or(1).max(1);
        Overflow { places: Arc::new(Semaphore::new(places)), kept: Mutex::default(), keeping: Notify::new() }
    }

    /// A place for one chunk, taken from the chunk kept longest if need be. Waits for one otherwise.
    pub async fn place(&self) -> Result<OwnedSemaphorePermit> {
        loop {
            let kept = self.keeping.notified();
            tokio::pin!(kept);
            // Before the look: what is kept after it is heard.
            kept.as_mut().enable();
            if let Ok(place) = self.places.clone().try_acquire_owned() {
                return Ok(place);
            }
            // Dropped outside the lock, which a semaphore's waiters do not need.
            let oldest = lock(&self.kept).pop_front();
            if oldest.is_none() {
                tokio::select! {
                    place = self.places.clone().acquire_owned() => {
                        return place.map_err(|e| Error::with_source(Kind::Internal, "memory for chunks", e));
                    }
                    () = kept => {}
                }
            }
        }
    }

    /// Keeps a chunk for the next reader.
    pub fn keep(&self, blob: BlobId, idx: u64, held: Arc<Held>) {
        {
            let mut kept = lock(&self.kept);
            kept.retain(|(name, _)| *name != (blob, idx));
            kept.push_back(((blob, idx), held));
        }
        self.keeping.notify_waiters();
    }

    /// The chunk, if it is kept.
    pub fn get(&self, blob: BlobId, idx: u64) -> Option<Arc<Held>> {
        lock(&self.kept).iter().find(|(name, _)| *name == (blob, idx)).map(|(_, held)| held.clone())
    }

    /// Gives up all chunks of a blob.
    pub fn forget(&self, blob: BlobId) {
        lock(&self.kept).retain(|((id, _), _)| *id != blob);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_gives_way_but_not_what_is_being_read() {
        let overflow = Overflow::new(8, 4);
        let id = BlobId::Git([1; 20]);
        for idx in 0..3 {
            let place = overflow.place().await.expect("place");
            overflow.keep(id, idx, Held::new(Bytes::from_static(b"four"), place));
        }
        assert!(overflow.get(id, 0).is_none());
        let (one, two) = (overflow.get(id, 1), overflow.get(id, 2));
        assert!(one.is_some() && two.is_some());
        let wait = tokio::time::timeout(std::time::Duration::from_millis(20), overflow.place()).await;
        assert!(wait.is_err(), "both places are in use");
        drop(one);
        drop(overflow.place().await.expect("free again"));
        drop(two);

        // Who waits gets the place of what is kept later.
        let overflow = Arc::new(Overflow::new(4, 4));
        let place = overflow.place().await.expect("place");
        let waiting = tokio::spawn({
            let overflow = overflow.clone();
            async move { overflow.place().await.map(drop) }
        });
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        overflow.keep(id, 0, Held::new(Bytes::from_static(b"four"), place));
        let waited = tokio::time::timeout(std::time::Duration::from_secs(5), waiting).await;
        waited.expect("in time").expect("task").expect("a place");
    }
}
