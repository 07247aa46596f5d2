//! Whether the push channel still carries: a message to oneself, on a channel of one's own, over the connection that
//! commits take and back over the one that is subscribed. When it is heard, all that was published before it was sent has
//! been heard too. A silent connection, a proxy that swallows messages and a primary that nobody commits to any more all
//! look alike from here: nothing is heard.
//!
//! It beats only while somebody asks for it ([`Kv::heard_until`](crate::meta::kv::Kv::heard_until)).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::cmd;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::link::Link;

/// How often it beats while somebody asks.
const EVERY: Duration = Duration::from_millis(400);
/// How long after the last question it goes on.
const ASKED: Duration = Duration::from_secs(5);
/// How many beats may be under way; older ones count as lost.
const UNDER_WAY: usize = 64;

pub(super) struct Pulse {
    /// A name that nobody else subscribes to.
    pub(super) channel: String,
    state: Mutex<State>,
    asked: Notify,
}

struct State {
    last: u64,
    /// Sent and not heard yet.
    sent: Vec<(u64, Instant)>,
    /// When the latest that was heard had been sent.
    heard: Option<Instant>,
    asked: Instant,
}

impl Pulse {
    pub(super) fn new(channel: String) -> Self {
        let state = State { last: 0, sent: Vec::new(), heard: None, asked: Instant::now() };
        Pulse { channel, state: Mutex::new(state), asked: Notify::new() }
    }

    /// The answer to [`Kv::heard_until`](crate::meta::kv::Kv::heard_until).
    pub(super) fn heard_until(&self) -> Option<Instant> {
        let mut state = self.lock();
        let now = Instant::now();
        let asleep = now.duration_since(state.asked) >= ASKED;
        state.asked = now;
        let heard = state.heard;
        drop(state);
        if asleep {
            self.asked.notify_one();
        }
        heard
    }

    /// A message came back.
    pub(super) fn heard(&self, body: &[u8]) {
        let number = std::str::from_utf8(body).ok().and_then(|text| text.parse::<u64>().ok());
        let mut state = self.lock();
        if let Some(at) = state.sent.iter().position(|(n, _)| Some(*n) == number) {
            let sent = state.sent[at].1;
            state.sent.drain(..=at);
            state.heard = state.heard.max(Some(sent));
        }
    }

    /// The connection broke: what was sent over it says nothing about the next one.
    pub(super) fn broke(&self) {
        let mut state = self.lock();
        state.sent.clear();
        state.heard = None;
    }

    /// Beats until it is dropped.
    pub(super) async fn run(self: Arc<Self>, link: Arc<Link>) {
        loop {
            if self.lock().asked.elapsed() >= ASKED {
                self.asked.notified().await;
                continue;
            }
            let number = {
                let mut state = self.lock();
                state.last += 1;
                let number = state.last;
                state.sent.push((number, Instant::now()));
                if state.sent.len() > UNDER_WAY {
                    state.sent.remove(0);
                }
                number
            };
            let mut beat = cmd("PUBLISH");
            beat.arg(&self.channel).arg(number);
            // What becomes of it shows when it is heard, or is not.
            let _ = timeout(EVERY * 2, link.run(&beat)).await;
            sleep(EVERY).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
