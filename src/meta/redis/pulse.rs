//! Up to when all that was published has been heard. The log is read over the connection that commits take, so whoever read
//! it knows all that was in it when the request left: a bell that nobody hears any more and a primary that nobody commits to
//! look alike from here, and neither moves this on.
//!
//! While nothing happens the log is read for this alone, and only if somebody asks for it
//! ([`Kv::heard_until`](crate::meta::kv::Kv::heard_until)).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// How often the log is read while somebody asks.
const EVERY: Duration = Duration::from_millis(400);
/// How long after the last question that goes on.
const ASKED: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Pulse {
    state: Mutex<State>,
    asked: Notify,
}

#[derive(Debug)]
struct State {
    /// When the last request left that was answered.
    heard: Option<Instant>,
    asked: Option<Instant>,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Pulse { state: Mutex::new(State { heard: None, asked: None }), asked: Notify::new() }
    }

    /// The answer to [`Kv::heard_until`](crate::meta::kv::Kv::heard_until).
    pub(super) fn heard_until(&self) -> Option<Instant> {
        let mut state = self.lock();
        let now = Instant::now();
        let asleep = state.asked.is_none_or(|asked| now.duration_since(asked) >= ASKED);
        state.asked = Some(now);
        let heard = state.heard;
        drop(state);
        if asleep {
            self.asked.notify_one();
        }
        heard
    }

    /// All was told to the watchers that was in the log when a request left at `sent`.
    pub(super) fn heard(&self, sent: Instant) {
        self.lock().heard = Some(sent);
    }

    /// What was heard before says nothing about what comes now.
    pub(super) fn broke(&self) {
        self.lock().heard = None;
    }

    /// Waits until somebody wants to know more than was heard up to `last`.
    pub(super) async fn due(&self, last: Instant) {
        while self.lock().asked.is_none_or(|asked| asked.elapsed() >= ASKED) {
            self.asked.notified().await;
        }
        sleep_until(last + EVERY).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
