//! What a loader reads next. Large models lie in several blobs, which are read one after the other: when all of one was given
//! out, the next ones begin to come, so that the link does not rest while a reader closes one file and opens another.
//!
//! Only after a reader who has shown that he reads wholes; never more than a window of bytes beyond him; and what is fetched for
//! somebody who does not come is forgotten like all that nobody reads.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use super::blob::{Blob, BlobContent};
use super::cluster;
use super::lock;
use super::shared::Shared;
use crate::error::Result;
use crate::types::{BlobId, Origin};

/// Bytes wanted beyond the end of a blob, and no more than that part of the cache.
const MOST_BYTES: u64 = 1 << 30;
const PART_OF_CACHE: u64 = 8;
/// Blobs looked at for that.
const MOST_BLOBS: usize = 8;
/// Readers followed at a time.
pub(super) const MOST_READERS: usize = 4;
/// How long a reader who does not come is expected.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// How often it is looked whether there is a place for another transfer.
const LOOK: Duration = Duration::from_millis(20);
/// Blobs remembered as expected.
const MOST_EXPECTED: usize = 64;

/// Who knows what blobs are parts of.
#[async_trait]
pub trait Sequel: fmt::Debug + Send + Sync + 'static {
    /// The blobs that a reader of `blob`, known to lie at `origins`, will probably read next, in their order, with their
    /// lengths in bytes; at most `most`. None for a blob that is a whole by itself.
    async fn after(&self, blob: BlobId, origins: &[Origin], most: usize) -> Result<Vec<(BlobId, u64)>>;
}

/// The blobs for which readers are expected, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Expected(Mutex<VecDeque<BlobId>>);

impl Expected {
    fn add(&self, blob: BlobId) {
        let mut blobs = lock(&self.0);
        blobs.retain(|known| *known != blob);
        if blobs.len() >= MOST_EXPECTED {
            blobs.pop_front();
        }
        blobs.push_back(blob);
    }

    /// Whether a reader of this blob was expected; he is not any more.
    fn take(&self, blob: BlobId) -> bool {
        let mut blobs = lock(&self.0);
        let at = blobs.iter().position(|known| *known == blob);
        at.and_then(|at| blobs.remove(at)).is_some()
    }
}

impl Blob {
    /// A reader of this blob is expected.
    fn expect(self: &Arc<Self>, bytes: u64) {
        cluster::expect(self);
        lock(&self.state).readahead.expect(bytes.div_ceil(self.chunk_size()));
        self.expected.store(true, Relaxed);
        self.shared.expected.add(self.id);
        self.pump();
    }

    /// Somebody reads the blob, all of which is here. Often the kernel does it without telling, so nothing more is to be
    /// learnt about him.
    pub(super) fn read_complete(self: &Arc<Self>) {
        if self.expected.load(Relaxed) && self.expected.swap(false, Relaxed) {
            self.shared.expected.take(self.id);
            self.follow();
        }
    }

    /// Somebody opened it.
    pub(super) fn came(self: &Arc<Self>) {
        if self.file.is_complete() && self.shared.expected.take(self.id) {
            self.follow();
        }
    }

    /// All of the blob was given out to a loader: what follows is wanted. Once for each time that it is opened.
    pub(super) fn follow(self: &Arc<Self>) {
        let shared = &self.shared;
        let Some(sequel) = shared.sequel.get().cloned() else { return };
        // From the bucket alone it comes as fast as anything; a seed is a disk.
        if !shared.reaches_origin() && shared.peers.is_none() {
            return;
        }
        let Ok(place) = shared.followed.clone().try_acquire_owned() else { return };
        let blob = self.clone();
        shared.spawn(async move {
            let held = match open_next(&blob, sequel).await {
                Ok(held) => held,
                Err(e) => {
                    return tracing::debug!(blob = %blob.id, error = %e, "cannot find what follows");
                }
            };
            drop(blob);
            wait(&held).await;
            drop(place);
        });
    }
}

/// Opens what follows, as far as the window goes.
async fn open_next(blob: &Arc<Blob>, sequel: Arc<dyn Sequel>) -> Result<Vec<Arc<BlobContent>>> {
    let shared = &blob.shared;
    let facts = blob.facts().await?;
    let next = sequel.after(blob.id, &facts.origins, MOST_BLOBS).await?;
    let mut left = MOST_BYTES.min(shared.cache.limits().max_bytes / PART_OF_CACHE);
    let mut held = Vec::new();
    for (id, size) in next {
        if left == 0 {
            break;
        }
        let content = open(shared, id, size).await?;
        if content.cache_file().is_complete() {
            shared.expected.add(id);
            continue;
        }
        let bytes = left.min(size);
        tracing::debug!(blob = %id, bytes, after = %blob.id, "a reader is expected");
        content.blob().expect(bytes);
        left -= bytes;
        held.push(content);
    }
    Ok(held)
}

async fn open(shared: &Arc<Shared>, id: BlobId, size: u64) -> Result<Arc<BlobContent>> {
    match shared.reopen(id, size)? {
        Some(content) => Ok(content),
        None => shared.open_file(id, size).await,
    }
}

/// Until all of the window is on its way, or for as long as somebody may still come.
async fn wait(held: &[Arc<BlobContent>]) {
    let until = Instant::now() + FORGOTTEN;
    loop {
        let mut more = false;
        for content in held.iter().filter(|content| !content.blob().file.is_complete()) {
            content.blob().pump();
            more |= !lock(&content.blob().state).readahead.expects_no_more();
        }
        if !more || Instant::now() >= until {
            return;
        }
        sleep(LOOK).await;
    }
}
