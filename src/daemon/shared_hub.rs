//! What the nodes of a cluster share about the Hub, kept by the tracker: its pauses, and the signed URLs that it gave. Each
//! blob's place is asked for by one node.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::error::Result;
use crate::hub::{Bucket, Place, Shared};
use crate::peer::Token;
use crate::peer::tracker::{HubBucket, Locate, Tracker};
use crate::types::BlobId;

/// How long what the tracker said of a pause is taken as so: a pause that began elsewhere is noticed so late.
const PAUSE_AGE: Duration = Duration::from_millis(500);
/// How long one question to the tracker may take beside the Hub's own time.
const BRIEF: Duration = Duration::from_millis(500);
/// After one that was not answered, how long none is asked.
const SILENT: Duration = Duration::from_secs(5);

/// The Hub as the nodes of one volume share it: those with the same rights at the same endpoint.
pub struct SharedHub {
    tracker: Tracker,
    /// The endpoint: pauses are of one Hub.
    endpoint: String,
    /// Who shares signed URLs, see [`hub::Token::scope`](crate::hub::Token::scope).
    scope: String,
    runtime: Handle,
    heard: Mutex<Heard>,
}

#[derive(Default)]
struct Heard {
    /// When it was asked last, and until when the Hub wants to be left alone.
    pauses: [Option<(Instant, Instant)>; 2],
    silent_since: Option<Instant>,
}

impl fmt::Debug for SharedHub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedHub").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl SharedHub {
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use]
    pub fn new(tracker: Tracker, endpoint: &str, scope: String) -> Arc<Self> {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Arc::new(SharedHub { tracker, endpoint, scope, runtime: Handle::current(), heard: Mutex::default() })
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the tracker answered lately, or has not been asked.
    fn answers(&self) -> bool {
        self.heard().silent_since.is_none_or(|at| at.elapsed() > SILENT)
    }

    fn note<T>(&self, what: &str, answer: Result<T>) -> Option<T> {
        self.heard().silent_since = answer.is_err().then(Instant::now);
        answer
            .inspect_err(|e| tracing::debug!(error = %e, "{what}: the Hub is used as by one node alone"))
            .ok()
    }
}

fn of(bucket: Bucket) -> (HubBucket, usize) {
    match bucket {
        Bucket::Api => (HubBucket::Api, 0),
        Bucket::Resolvers => (HubBucket::Resolvers, 1),
    }
}

#[async_trait]
impl Shared for SharedHub {
    async fn paused(&self, bucket: Bucket) -> Duration {
        let (bucket, n) = of(bucket);
        let known = self.heard().pauses[n];
        if let Some((asked, until)) = known
            && (asked.elapsed() < PAUSE_AGE || until > Instant::now())
        {
            return until.saturating_duration_since(Instant::now());
        }
        if !self.answers() {
            return Duration::ZERO;
        }
        let asked = timeout(BRIEF, self.tracker.paused(&self.endpoint, bucket)).await;
        let Ok(answer) = asked else {
            self.heard().silent_since = Some(Instant::now());
            return Duration::ZERO;
        };
        let left = self.note("pauses", answer).unwrap_or_default();
        let now = Instant::now();
        self.heard().pauses[n] = Some((now, now + left));
        left
    }

    fn pause(&self, bucket: Bucket, wait: Duration) {
        let (tracker, endpoint, (bucket, _)) = (self.tracker.clone(), self.endpoint.clone(), of(bucket));
        self.runtime.spawn(async move {
            if let Err(e) = tracker.pause(&endpoint, bucket, wait).await {
                tracing::debug!(error = %e, "the others do not hear of a pause of the Hub");
            }
        });
    }

    async fn locate(&self, blob: BlobId, limit: Duration) -> Place {
        if !self.answers() {
            return Place::Alone;
        }
        let found = self.tracker.locate_within(blob, &self.scope, limit).await;
        match self.note("places", found) {
            Some(Locate::Known(url, lasts)) => match String::from_utf8(url.to_vec()) {
                Ok(url) => Place::Known { url, lasts },
                Err(_) => Place::Alone,
            },
            Some(Locate::Resolve(token)) => Place::Ask(token.0),
            Some(Locate::Wait(_)) | None => Place::Alone,
        }
    }

    fn located(&self, blob: BlobId, ticket: u64, found: Option<(&str, Duration)>) {
        let (tracker, scope) = (self.tracker.clone(), self.scope.clone());
        let found = found.map(|(url, lasts)| (url.to_owned(), lasts));
        self.runtime.spawn(async move {
            let told = match found {
                Some((url, lasts)) => {
                    tracker.located(blob, &scope, Token(ticket), url.as_bytes(), lasts).await
                }
                None => tracker.locate_failed(blob, &scope, Token(ticket)).await,
            };
            if let Err(e) = told {
                tracing::debug!(%blob, error = %e, "the others are not told its place");
            }
        });
    }

    async fn refused(&self, blob: BlobId, url: &str) {
        if !self.answers() {
            return;
        }
        let told = self.tracker.forget_location(blob, &self.scope, url.as_bytes()).await;
        let _ = self.note("places", told);
    }
}
