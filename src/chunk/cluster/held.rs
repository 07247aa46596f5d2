//! Telling the other nodes what is on the disk here, and taking it back before it goes.

use std::ops::Range;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::sleep;

use crate::blocking::blocking;
use crate::chunk::cache::{CacheDir, ContentKey, Departures};
use crate::chunk::lock;
use crate::chunk::shared::Shared;
use crate::error::Result;
use crate::peer::Peers;
use crate::types::BlobId;

/// How long the evictor waits for the tracker. Without an answer the bytes go all the same: who asks for them in vain takes
/// the advertisement back.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long it is not waited for after that.
const SILENT: Duration = Duration::from_secs(10);
/// Between two contents that are told.
const PACE: Duration = Duration::from_millis(2);

/// Hears of what leaves the disk, on the evictor's thread.
#[derive(Debug)]
pub(in crate::chunk) struct Withdrawals {
    peers: Arc<Peers>,
    /// Does not keep the store.
    shared: Weak<Shared>,
    runtime: Handle,
    /// When the tracker last did not answer in time.
    silent: Mutex<Option<Instant>>,
}

impl Withdrawals {
    pub(super) fn new(peers: Arc<Peers>, shared: &Arc<Shared>) -> Self {
        let runtime = shared.runtime.clone();
        Withdrawals { peers, shared: Arc::downgrade(shared), runtime, silent: Mutex::default() }
    }
}

impl Departures for Withdrawals {
    fn leaving(&self, key: &ContentKey, chunks: Option<Range<u64>>) {
        let ContentKey::Blob(blob) = *key else { return };
        // It can still be had here.
        if self.shared.upgrade().is_some_and(|shared| shared.near(blob).is_some()) {
            return;
        }
        let (peers, (done, wait)) = (self.peers.clone(), sync_channel(1));
        self.runtime.spawn(async move {
            peers.withdraw(blob, chunks).await;
            // The evictor may have gone on.
            let _ = done.try_send(());
        });
        // Not once for each chunk while the tracker is away.
        if lock(&self.silent).is_some_and(|at| at.elapsed() < SILENT) {
            return;
        }
        let answered = wait.recv_timeout(PATIENCE).is_ok();
        *lock(&self.silent) = (!answered).then(Instant::now);
    }
}

/// Tells what is here: now, for earlier runs left it, and whenever the tracker has lost what it knew or is about to.
pub(in crate::chunk) async fn tell(shared: Arc<Shared>, peers: Arc<Peers>) {
    let cache = shared.cache.clone();
    drop(shared);
    let loaded = cache.clone();
    let _ = blocking(move || Ok(loaded.wait_loaded(Duration::from_mins(10)))).await;
    let mut again = peers.to_advertise();
    loop {
        for blob in cache.blobs() {
            if let Err(e) = tell_one(&cache, &peers, blob).await {
                tracing::debug!(%blob, error = %e, "the other nodes were not told of it");
            }
            sleep(PACE).await;
        }
        if again.changed().await.is_err() {
            return;
        }
    }
}

async fn tell_one(cache: &Arc<CacheDir>, peers: &Arc<Peers>, blob: BlobId) -> Result<()> {
    let cache = cache.clone();
    let held = blocking(move || cache.held_chunks(&ContentKey::Blob(blob))).await?;
    peers.tell(blob, held).await
}
