//! Telling the tracker what has come: what somebody may wait for at once, the rest a few together.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::Token;
use super::tracker::Tracker;
use crate::types::BlobId;

/// So many wait no longer, and none longer than this.
const TOGETHER: usize = 8;
const LONGEST: Duration = Duration::from_millis(200);
/// What waits at most while the tracker is away. What is beyond that is told by the next look through the cache.
const MAX_WAITING: usize = 16 << 10;
/// Before the tracker is tried again.
const PAUSE: Duration = Duration::from_millis(500);

type Landed = Vec<(u64, Option<Token>)>;

/// What is to be told.
#[derive(Debug)]
pub(super) struct Adverts {
    waiting: Mutex<Vec<(BlobId, u64, Option<Token>)>>,
    first: Notify,
    now: Notify,
    /// Whether possession is told at all; ends of leases are in any case.
    serves: bool,
}

impl Adverts {
    pub(super) fn new(serves: bool) -> Self {
        Adverts { waiting: Mutex::default(), first: Notify::new(), now: Notify::new(), serves }
    }

    /// A chunk came; with a token if it was this node's to fetch.
    pub(super) fn add(&self, blob: BlobId, idx: u64, token: Option<Token>) {
        if token.is_none() && !self.serves {
            return;
        }
        let count = {
            let mut waiting = self.waiting();
            if waiting.len() >= MAX_WAITING {
                return;
            }
            waiting.push((blob, idx, token));
            waiting.len()
        };
        if token.is_some() || count >= TOGETHER {
            self.now.notify_one();
        }
        self.first.notify_one();
    }

    /// These chunks of a blob, or all, are not to be told of any more; ends of leases are.
    pub(super) fn forget(&self, blob: BlobId, chunks: Option<&Range<u64>>) {
        let goes = |idx| chunks.is_none_or(|chunks| chunks.contains(&idx));
        self.waiting().retain(|(of, idx, token)| *of != blob || token.is_some() || !goes(*idx));
    }

    /// Tells until it is dropped.
    pub(super) async fn run(self: Arc<Self>, tracker: Tracker) {
        loop {
            if self.waiting().is_empty() {
                self.first.notified().await;
                continue;
            }
            let _now_or_late = timeout(LONGEST, self.now.notified()).await;
            if !self.flush(&tracker).await {
                sleep(PAUSE).await;
            }
        }
    }

    /// Tells what waits; `false` if the tracker does not answer, and it waits on.
    pub(super) async fn flush(&self, tracker: &Tracker) -> bool {
        let mut blobs: HashMap<BlobId, Landed> = HashMap::new();
        for (blob, idx, token) in std::mem::take(&mut *self.waiting()) {
            blobs.entry(blob).or_default().push((idx, token));
        }
        let mut all = true;
        for (blob, landed) in blobs {
            let told = match self.serves {
                true => tracker.landed(blob, &landed).await,
                false => {
                    let leases: Vec<_> = landed.iter().filter_map(|(i, t)| Some((*i, (*t)?))).collect();
                    tracker.release(blob, &leases).await
                }
            };
            if let Err(e) = told {
                tracing::debug!(%blob, error = %e, "the other nodes hear of it later");
                all = false;
                let mut waiting = self.waiting();
                let room = MAX_WAITING.saturating_sub(waiting.len());
                waiting.extend(landed.into_iter().take(room).map(|(idx, token)| (blob, idx, token)));
            }
        }
        all
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(BlobId, u64, Option<Token>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
