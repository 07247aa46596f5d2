//! Telling the cluster the hashes of chunks, many in one transaction: while one is on its way the next ones gather.

use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;

use super::blob::Blob;
use super::lock;
use crate::error::{Error, Kind, Result};
use crate::meta::Recorded;

/// Hashes in one transaction.
const MAX_BATCH: usize = 256;

type Answer = oneshot::Sender<Result<Recorded>>;

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<(u64, [u8; 32], Answer)>,
    /// A task is at work and will see what is put in.
    busy: bool,
}

/// The hashes of one blob that wait to be recorded. No longer than the chunks in flight.
#[derive(Debug, Default)]
pub(super) struct Recorder(Mutex<Queue>);

/// Records the hash of a chunk unless there is one.
pub(super) async fn record(blob: &Arc<Blob>, idx: u64, hash: [u8; 32]) -> Result<Recorded> {
    let (answer, answered) = oneshot::channel();
    let start = {
        let mut queue = lock(&blob.recorder.0);
        queue.waiting.push((idx, hash, answer));
        !std::mem::replace(&mut queue.busy, true)
    };
    if start {
        blob.shared.spawn(drain(blob.clone()));
    }
    answered.await.unwrap_or_else(|_| Err(Error::new(Kind::Unavailable, "recording was given up")))
}

async fn drain(blob: Arc<Blob>) {
    loop {
        let batch: Vec<_> = {
            let mut queue = lock(&blob.recorder.0);
            let n = queue.waiting.len().min(MAX_BATCH);
            if n == 0 {
                queue.busy = false;
                return;
            }
            queue.waiting.drain(..n).collect()
        };
        let hashes: Vec<_> = batch.iter().map(|(idx, hash, _)| (*idx, *hash)).collect();
        let mut answers = blob.shared.blobs.record_all(blob.id, &hashes).await.map(Vec::into_iter);
        for (_, _, waiter) in batch {
            let answer = match &mut answers {
                Ok(all) => all.next().ok_or_else(|| Kind::Internal.into()),
                Err(e) => Err(e.share()),
            };
            // A reader that went away needs no answer.
            let _ = waiter.send(answer);
        }
    }
}
