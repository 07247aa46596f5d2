//! The leases that this node holds: renewed together every few seconds, until each is done or lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::tracker::Tracker;
use super::types::{Claim, Claimed, Decision, Token};
use crate::error::Result;
use crate::types::BlobId;

/// After a renewal that failed the next one comes sooner.
const AGAIN: Duration = Duration::from_secs(1);

/// The leases of this node.
#[derive(Debug)]
pub struct Leases {
    tracker: Tracker,
    held: Arc<Mutex<Held>>,
    task: JoinHandle<()>,
}

type Held = HashMap<(BlobId, u64), Lease>;

#[derive(Clone, Copy, Debug)]
struct Lease {
    token: Token,
    /// When the question was sent whose answer was that it is this node's: it lasts from then on.
    good: Instant,
}

impl Leases {
    /// None yet. Renews, until it is dropped, whatever is kept.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new(tracker: Tracker) -> Arc<Self> {
        let held = Arc::<Mutex<Held>>::default();
        let (renewed, by) = (held.clone(), tracker.clone());
        let task = tokio::spawn(async move {
            let timing = by.timing();
            let mut pause = timing.beat;
            loop {
                sleep(pause).await;
                pause = match renew(&by, &renewed).await {
                    Ok(()) => timing.beat,
                    Err(e) => {
                        tracing::debug!("{e}");
                        AGAIN.min(timing.beat)
                    }
                };
            }
        });
        Arc::new(Leases { tracker, held, task })
    }

    /// Asks for chunks ([`Tracker::claim`]), and keeps what is granted.
    pub async fn claim(&self, claim: &Claim) -> Result<Claimed> {
        let asked = Instant::now();
        let claimed = self.tracker.claim(claim).await?;
        self.keep_from(asked, claim, &claimed);
        Ok(claimed)
    }

    /// Keeps the leases that were granted in answer to `claim`, just now. The time that the question took is unknown here:
    /// [`Leases::claim`] knows it.
    pub fn keep_granted(&self, claim: &Claim, claimed: &Claimed) {
        self.keep_from(Instant::now(), claim, claimed);
    }

    fn keep_from(&self, good: Instant, claim: &Claim, claimed: &Claimed) {
        let mut held = lock(&self.held);
        for (chunk, decision) in claim.chunks.iter().zip(&claimed.decisions) {
            if let Decision::Granted(token) = decision {
                keep(&mut held, (claim.blob, *chunk), Lease { token: *token, good });
            }
        }
    }

    /// Keeps one lease up from now on.
    pub fn keep(&self, blob: BlobId, idx: u64, token: Token) {
        keep(&mut lock(&self.held), (blob, idx), Lease { token, good: Instant::now() });
    }

    /// Whether this node may go on fetching a chunk: it has a lease that was not refused, and was granted or renewed less than
    /// its time ago, by this machine's monotonic clock.
    #[must_use]
    pub fn is_ours(&self, blob: BlobId, idx: u64) -> bool {
        let ttl = self.tracker.timing().ttl;
        lock(&self.held).get(&(blob, idx)).is_some_and(|lease| lease.good.elapsed() < ttl)
    }

    /// Keeps the lease no longer. Its token, if there was one: to be told with [`Tracker::landed`] or [`Tracker::release`], or
    /// it ends by itself.
    pub fn done(&self, blob: BlobId, idx: u64) -> Option<Token> {
        lock(&self.held).remove(&(blob, idx)).map(|lease| lease.token)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.held).len()
    }

    /// Gives all back: others may have them at once. What cannot be told ends by itself.
    pub async fn end(&self) {
        let mut blobs: HashMap<BlobId, Vec<(u64, Token)>> = HashMap::new();
        for ((blob, idx), lease) in std::mem::take(&mut *lock(&self.held)) {
            blobs.entry(blob).or_default().push((idx, lease.token));
        }
        for (blob, leases) in blobs {
            if let Err(e) = self.tracker.release(blob, &leases).await {
                tracing::debug!("leases end by themselves: {e}");
                return;
            }
        }
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn keep(held: &mut Held, key: (BlobId, u64), lease: Lease) {
    held.entry(key)
        // Two questions of one node may be answered out of their order.
        .and_modify(|old| {
            if old.token < lease.token || (old.token == lease.token && old.good < lease.good) {
                *old = lease;
            }
        })
        .or_insert(lease);
}

async fn renew(tracker: &Tracker, held: &Mutex<Held>) -> Result<()> {
    let mut leases: Vec<_> =
        lock(held).iter().map(|((blob, idx), lease)| (*blob, *idx, lease.token)).collect();
    // Those of a blob together.
    leases.sort_unstable();
    let asked = Instant::now();
    let renewed = tracker.renew(&leases).await?;
    let mut held = lock(held);
    for ((blob, idx, token), ours) in leases.into_iter().zip(renewed) {
        let key = (blob, idx);
        // It may be done by now, or another one.
        let Some(lease) = held.get_mut(&key).filter(|lease| lease.token == token) else { continue };
        if ours {
            lease.good = lease.good.max(asked);
        } else {
            tracing::debug!("the lease of blob {blob} chunk {idx} is another node's now");
            held.remove(&key);
        }
    }
    Ok(())
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}
