//! What this node has learnt about the others: how fast they are, who failed, who gave wrong bytes.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;
use tokio::time::Instant;

use crate::peer::types::{Holder, NodeId};

/// Nodes that are remembered; more than that are not alive at one time.
const NODES: NonZeroUsize = NonZeroUsize::new(4096).expect("above 0");
/// The weight of the latest sample.
const WEIGHT: f64 = 0.2;
/// What is expected of a node that nobody has tried: it should be tried.
const UNKNOWN_RATE: f64 = 1e9;
const UNKNOWN_LATENCY: f64 = 0.000_5;
/// After a failure a node is asked last for so long; twice as long after each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// Who gave wrong bytes is not asked for so long.
const BLOCKED: Duration = Duration::from_secs(30);
/// Smaller transfers say nothing about a rate.
const LEAST_SAMPLE: u64 = 64 << 10;
/// Longest pauses of transfers, by which it is judged whether one has stalled.
const PAUSES: usize = 64;
/// A second transfer costs so many tenths; each transfer earns one.
const HEDGE_COST: u32 = 10;
const MOST_HEDGES: u32 = 5 * HEDGE_COST;

#[derive(Debug)]
pub(super) struct Scores(Mutex<State>);

#[derive(Debug)]
struct State {
    nodes: LruCache<NodeId, Score>,
    /// A ring of the longest pause of each of the last transfers, seconds.
    pauses: Vec<f64>,
    next: usize,
    /// Tenths of a hedge that may be had.
    hedges: u32,
    /// Bytes a second of one transfer, over all nodes.
    rate: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Score {
    rate: Option<f64>,
    latency: Option<f64>,
    /// In a row.
    failures: u32,
    backoff: Option<Instant>,
    blocked: Option<Instant>,
    in_flight: u32,
    stats: PeerStats,
}

/// What one node gave this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerStats {
    pub bytes: u64,
    /// Chunks that came to their end from it.
    pub chunks: u64,
    pub requests: u64,
    pub failures: u64,
    /// Answers that it was busy.
    pub busy: u64,
    /// Answers that it had not what it was said to have.
    pub absent: u64,
    /// Chunks with wrong bytes.
    pub wrong: u64,
    /// Bytes a second of one transfer, lately. 0: unknown.
    pub rate: u64,
    /// To the first byte, lately. 0: unknown.
    pub latency: Duration,
    /// Not asked now, since it gave wrong bytes.
    pub blocked: bool,
}

/// How an answer came out, for the score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Busy,
    Absent,
    Failed,
}

fn blend(old: Option<f64>, new: f64) -> Option<f64> {
    Some(old.map_or(new, |old| old + WEIGHT * (new - old)))
}

impl Default for Scores {
    fn default() -> Self {
        let state = State {
            nodes: LruCache::new(NODES),
            pauses: Vec::with_capacity(PAUSES),
            next: 0,
            hedges: MOST_HEDGES,
            rate: None,
        };
        Scores(Mutex::new(state))
    }
}

impl Scores {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, node: NodeId, change: impl FnOnce(&mut Score) -> T) -> T {
        change(self.lock().nodes.get_or_insert_mut(node, Score::default))
    }

    /// The holders in the order in which they are to be asked for `len` bytes: of two taken at random the better one, then
    /// the others, best first, and those that failed lately last. Those that gave wrong bytes are left out.
    pub fn order(&self, mut holders: Vec<Holder>, zone: &str, len: u32) -> Vec<Holder> {
        let now = Instant::now();
        let mut state = self.lock();
        let mut rated: Vec<(bool, f64, Holder)> = Vec::with_capacity(holders.len());
        for holder in holders.drain(..) {
            let score = state.nodes.peek(&holder.node).copied().unwrap_or_default();
            if score.blocked.is_some_and(|until| until > now) {
                continue;
            }
            let late = score.backoff.is_some_and(|until| until > now);
            let general = state.rate.unwrap_or(UNKNOWN_RATE);
            let mut cost = score.latency.unwrap_or(UNKNOWN_LATENCY)
                + f64::from(len) / score.rate.unwrap_or(general).max(1.0);
            cost *= f64::from(1 + score.in_flight);
            if holder.slots_free == 0 {
                cost *= 2.0;
            }
            if !zone.is_empty() && !holder.zone.is_empty() && holder.zone != zone {
                cost *= 4.0;
            }
            rated.push((late, cost, holder));
        }
        state.hedges = (state.hedges + 1).min(MOST_HEDGES);
        drop(state);
        let good = rated.iter().filter(|(late, ..)| !late).count();
        let first = (good > 2).then(|| {
            // Two different ones of the good.
            let a = rand::random_range(0..good);
            let b = (a + rand::random_range(1..good)) % good;
            (a, b)
        });
        rated.sort_by_key(|(late, ..)| *late);
        let first = first.map(|(a, b)| if rated[b].1 < rated[a].1 { b } else { a });
        let first = first.map(|at| rated.remove(at));
        rated.sort_by(|x, y| x.0.cmp(&y.0).then(x.1.total_cmp(&y.1)));
        first.into_iter().chain(rated).map(|(.., holder)| holder).collect()
    }

    /// Whether the node neither failed nor gave wrong bytes lately.
    pub fn is_well(&self, node: NodeId) -> bool {
        let (now, state) = (Instant::now(), self.lock());
        let over = |until: Option<Instant>| until.is_none_or(|until| until <= now);
        state.nodes.peek(&node).is_none_or(|score| over(score.backoff) && over(score.blocked))
    }

    pub fn asked(&self, node: NodeId) {
        self.with(node, |s| s.stats.requests += 1);
    }

    pub fn began(&self, node: NodeId, latency: Option<Duration>) {
        self.with(node, |s| {
            s.in_flight += 1;
            s.failures = 0;
            s.backoff = None;
            if let Some(latency) = latency {
                s.latency = blend(s.latency, latency.as_secs_f64());
            }
        });
    }

    /// A transfer from the node has ended: so many bytes, for which it was waited so long. If it was `live`, no faster than they
    /// came to that node.
    pub fn ended(&self, node: NodeId, bytes: u64, waited: Duration, whole: bool, live: bool) {
        let mut state = self.lock();
        let score = state.nodes.get_or_insert_mut(node, Score::default);
        score.in_flight = score.in_flight.saturating_sub(1);
        score.stats.chunks += u64::from(whole);
        if bytes >= LEAST_SAMPLE {
            // A reader that is slower than the node measures itself: nobody is faster than this.
            let rate = bytes as f64 / waited.as_secs_f64().max(bytes as f64 / 2e10);
            if !live {
                score.rate = blend(score.rate, rate);
            }
            state.rate = blend(state.rate, rate);
        }
    }

    pub fn gave(&self, node: NodeId, bytes: usize) {
        self.with(node, |s| s.stats.bytes += bytes as u64);
    }

    pub fn outcome(&self, node: NodeId, outcome: Outcome) {
        self.with(node, |s| match outcome {
            Outcome::Busy => s.stats.busy += 1,
            Outcome::Absent => s.stats.absent += 1,
            Outcome::Failed => {
                s.stats.failures += 1;
                let pause = FIRST_BACKOFF.saturating_mul(1 << s.failures.min(10)).min(LONGEST_BACKOFF);
                s.failures = s.failures.saturating_add(1);
                s.backoff = Some(Instant::now() + pause);
            }
        });
    }

    pub fn wrong(&self, node: NodeId) {
        self.with(node, |s| {
            s.stats.wrong += 1;
            s.blocked = Some(Instant::now() + BLOCKED);
        });
    }

    /// The longest pause within a transfer that came to its end.
    pub fn paused(&self, pause: Duration) {
        let mut state = self.lock();
        let pause = pause.as_secs_f64();
        if state.pauses.len() < PAUSES {
            state.pauses.push(pause);
        } else {
            let at = state.next % PAUSES;
            state.pauses[at] = pause;
        }
        state.next = (state.next + 1) % PAUSES;
    }

    /// A transfer that pauses longer than nine of ten did has stalled; none has before `least`.
    pub fn stall(&self, least: Duration, most: Duration) -> Duration {
        let mut pauses = self.lock().pauses.clone();
        if pauses.len() < 8 {
            return (least * 4).min(most);
        }
        let at = pauses.len() * 9 / 10;
        let (_, p90, _) = pauses.select_nth_unstable_by(at, f64::total_cmp);
        Duration::from_secs_f64(*p90).clamp(least, most.max(least))
    }

    /// Whether a transfer of `bytes` in `waited` is so slow that another node would do better.
    pub fn is_slow(&self, bytes: u64, waited: Duration) -> bool {
        let rate = bytes as f64 / waited.as_secs_f64().max(1e-6);
        self.lock().rate.is_some_and(|usual| rate < usual / 2.0)
    }

    /// Takes the right to a second transfer of one chunk: one for ten chunks, so that a slow network is not made slower.
    pub fn may_hedge(&self) -> bool {
        let mut state = self.lock();
        let may = state.hedges >= HEDGE_COST;
        if may {
            state.hedges -= HEDGE_COST;
        }
        may
    }

    pub fn show(&self) -> Vec<(NodeId, PeerStats)> {
        let now = Instant::now();
        let state = self.lock();
        let one = |score: &Score| PeerStats {
            rate: score.rate.map_or(0, |r| r as u64),
            latency: score.latency.map_or(Duration::ZERO, Duration::from_secs_f64),
            blocked: score.blocked.is_some_and(|until| until > now),
            ..score.stats
        };
        state.nodes.iter().map(|(node, score)| (*node, one(score))).collect()
    }
}

#[cfg(test)]
mod tests;
