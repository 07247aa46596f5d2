//! How many transfers ahead of readers one place is asked for at a time. One connection seldom carries what a link does, and
//! nobody says how many it takes: more of them as long as that makes it faster, half as many when the other side refuses,
//! fewer when its answers come late.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// At the start: what a connection of 100 MB/s and a fast link need, and a slow one bears.
const FIRST: usize = 16;
const FEWEST: usize = 2;
/// For how long a rate is measured.
const EPOCH: Duration = Duration::from_millis(400);
/// How long it stays as it is after more of them were no gain.
const ENOUGH: Duration = Duration::from_secs(10);
/// How long after a refusal, and the time in which several count as one.
const REFUSED: Duration = Duration::from_secs(2);
const ONE_EVENT: Duration = Duration::from_secs(1);
/// Answers that begin so late, and so many times later than the quickest, are signs of a crowd.
const LATE: Duration = Duration::from_millis(500);
const TIMES_LATER: u32 = 6;
/// How long the quickest answer is remembered.
const MEMORY: Duration = Duration::from_secs(30);

/// The pace of one client. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Flow(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    limit: usize,
    most: usize,
    /// Bodies under way.
    open: usize,
    /// The most of them in this epoch.
    busy: usize,
    began: Instant,
    bytes: u64,
    /// The limit and the bytes a second before it was last raised.
    before: Option<(usize, f64)>,
    /// Not raised before then.
    hold: Instant,
    lowered: Option<Instant>,
    quickest: Option<(Instant, Duration)>,
}

/// A body under way; counted until it is dropped.
#[derive(Debug)]
pub struct Open(Flow);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.state().open -= 1;
    }
}

impl Flow {
    /// For at most `most` transfers at a time.
    pub fn new(most: usize) -> Self {
        let (now, most) = (Instant::now(), most.max(1));
        Flow(Arc::new(Mutex::new(State {
            limit: FIRST.min(most),
            most,
            open: 0,
            busy: 0,
            began: now,
            bytes: 0,
            before: None,
            hold: now,
            lowered: None,
            quickest: None,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many transfers are worth having under way now.
    pub fn limit(&self) -> usize {
        self.state().limit
    }

    /// A body is asked for.
    pub fn open(&self) -> Open {
        let mut state = self.state();
        state.open += 1;
        state.busy = state.busy.max(state.open);
        Open(self.clone())
    }

    /// An answer began after so long.
    pub fn answered(&self, after: Duration) {
        let (mut state, now) = (self.state(), Instant::now());
        let quickest = match state.quickest {
            Some((at, quickest)) if now - at < MEMORY && quickest <= after => quickest,
            _ => {
                state.quickest = Some((now, after));
                after
            }
        };
        if after > LATE && after > quickest * TIMES_LATER {
            let fewer = state.limit - state.limit / 4;
            state.lower(fewer, now);
        }
    }

    /// The other side has too much to do, or cannot be reached.
    pub fn refused(&self) {
        let (mut state, now) = (self.state(), Instant::now());
        let fewer = state.limit / 2;
        state.lower(fewer, now);
    }

    /// Bytes came.
    pub fn took(&self, bytes: usize) {
        let (mut state, now) = (self.state(), Instant::now());
        state.bytes += bytes as u64;
        if now - state.began >= EPOCH {
            state.judge(now);
        }
    }
}

impl State {
    fn lower(&mut self, limit: usize, now: Instant) {
        if self.lowered.is_some_and(|at| now - at < ONE_EVENT) {
            return;
        }
        self.limit = limit.max(FEWEST.min(self.most));
        (self.lowered, self.before, self.hold) = (Some(now), None, now + REFUSED);
        tracing::debug!(limit = self.limit, "fewer transfers at a time");
    }

    /// An epoch is over.
    fn judge(&mut self, now: Instant) {
        let rate = self.bytes as f64 / (now - self.began).as_secs_f64();
        // What nobody wanted more of says nothing; nor does a pause.
        let tells = self.busy >= self.limit && now - self.began < 2 * EPOCH;
        (self.began, self.bytes, self.busy) = (now, 0, self.open);
        if !tells || now < self.hold {
            self.before = None;
            return;
        }
        if let Some((limit, earlier)) = self.before.take() {
            // Half of what as many more would bring if each carried as much.
            let gain = 1.0 + 0.5 * (self.limit - limit) as f64 / limit as f64;
            if rate < earlier * gain {
                (self.limit, self.hold) = (limit, now + ENOUGH);
                return;
            }
        }
        if self.limit < self.most {
            self.before = Some((self.limit, rate));
            self.limit = (self.limit + self.limit / 8 + 1).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Epochs of a place where a connection carries `each` bytes a second and all of them `total`.
    async fn epochs(flow: &Flow, n: usize, each: f64, total: f64) {
        for _ in 0..n {
            let open: Vec<Open> = (0..flow.limit()).map(|_| flow.open()).collect();
            let rate = (open.len() as f64 * each).min(total);
            tokio::time::advance(EPOCH).await;
            flow.took((rate * EPOCH.as_secs_f64()) as usize);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_grows_while_that_is_a_gain() {
        let flow = Flow::new(64);
        assert_eq!(flow.limit(), FIRST);
        epochs(&flow, 30, 50e6, 10e9).await;
        assert_eq!(flow.limit(), 64, "all of them are worth it");
        let flow = Flow::new(64);
        epochs(&flow, 30, 50e6, 1.5e9).await;
        assert!((28..=40).contains(&flow.limit()), "the link is full: {}", flow.limit());
        let flow = Flow::new(64);
        epochs(&flow, 30, 100e6, 800e6).await;
        assert!(flow.limit() <= FIRST + 3, "it was full before: {}", flow.limit());
    }

    #[tokio::test(start_paused = true)]
    async fn it_does_not_grow_when_nobody_wants_more() {
        let flow = Flow::new(64);
        for _ in 0..20 {
            let _few: Vec<Open> = (0..4).map(|_| flow.open()).collect();
            tokio::time::advance(EPOCH).await;
            flow.took(1 << 20);
        }
        assert_eq!(flow.limit(), FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_halve_it_and_it_comes_back() {
        let flow = Flow::new(64);
        tokio::time::advance(ONE_EVENT).await;
        (0..16).for_each(|_| flow.refused());
        assert_eq!(flow.limit(), FIRST / 2, "those of one moment are one");
        for _ in 0..10 {
            tokio::time::advance(ONE_EVENT).await;
            flow.refused();
        }
        assert_eq!(flow.limit(), FEWEST);
        epochs(&flow, 40, 50e6, 10e9).await;
        assert!(flow.limit() > FIRST, "{}", flow.limit());
    }

    #[tokio::test(start_paused = true)]
    async fn late_answers_make_it_smaller() {
        let flow = Flow::new(64);
        flow.answered(Duration::from_millis(400));
        flow.answered(Duration::from_secs(1));
        assert_eq!(flow.limit(), FIRST, "a place that is far away");
        flow.answered(Duration::from_millis(20));
        flow.answered(Duration::from_secs(1));
        assert_eq!(flow.limit(), FIRST - FIRST / 4);
        flow.answered(Duration::from_millis(110));
        assert_eq!(flow.limit(), FIRST - FIRST / 4, "that is nothing");
    }
}
