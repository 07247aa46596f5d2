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
        Flow(Arc::new(Mutex::new(State::new(most, Instant::now()))))
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
        self.state().open();
        Open(self.clone())
    }

    /// An answer began after so long.
    pub fn answered(&self, after: Duration) {
        self.state().answered(after, Instant::now());
    }

    /// The other side has too much to do, or cannot be reached.
    pub fn refused(&self) {
        self.state().refused(Instant::now());
    }

    /// Bytes came.
    pub fn took(&self, bytes: usize) {
        self.state().took(bytes as u64, Instant::now());
    }
}

impl State {
    fn new(most: usize, now: Instant) -> Self {
        let most = most.max(1);
        State {
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
        }
    }

    fn open(&mut self) {
        self.open += 1;
        self.busy = self.busy.max(self.open);
    }

    fn answered(&mut self, after: Duration, now: Instant) {
        let quickest = match self.quickest {
            Some((at, quickest)) if now - at < MEMORY && quickest <= after => quickest,
            _ => {
                self.quickest = Some((now, after));
                after
            }
        };
        if after > LATE && after > quickest * TIMES_LATER {
            self.lower(self.limit - self.limit / 4, now);
        }
    }

    fn refused(&mut self, now: Instant) {
        self.lower(self.limit / 2, now);
    }

    fn took(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        if now - self.began >= EPOCH {
            self.judge(now);
        }
    }

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

    /// A place whose time goes as the test says.
    struct Place {
        state: State,
        now: Instant,
    }

    impl Place {
        fn new() -> Self {
            let now = Instant::now();
            Place { state: State::new(64, now), now }
        }

        /// `wanted` transfers at a time for one epoch, each of `each` bytes a second, and `total` together.
        fn epoch(&mut self, wanted: usize, each: f64, total: f64) {
            let under_way = wanted.min(self.state.limit);
            (0..under_way).for_each(|_| self.state.open());
            self.now += EPOCH;
            let rate = (under_way as f64 * each).min(total);
            self.state.took((rate * EPOCH.as_secs_f64()) as u64, self.now);
            self.state.open -= under_way;
        }

        fn epochs(&mut self, n: usize, each: f64, total: f64) -> usize {
            (0..n).for_each(|_| self.epoch(usize::MAX, each, total));
            self.state.limit
        }
    }

    #[test]
    fn it_grows_while_that_is_a_gain() {
        assert_eq!(Place::new().state.limit, FIRST);
        assert_eq!(Place::new().epochs(30, 50e6, 10e9), 64, "all of them are worth it");
        let limit = Place::new().epochs(100, 50e6, 1.5e9);
        assert!((28..=40).contains(&limit), "the link is full: {limit}");
        let limit = Place::new().epochs(30, 100e6, 800e6);
        assert!(limit <= FIRST + 3, "it was full before: {limit}");
    }

    #[test]
    fn it_does_not_grow_when_nobody_wants_more() {
        let mut place = Place::new();
        (0..20).for_each(|_| place.epoch(FIRST - 1, 50e6, 10e9));
        assert_eq!(place.state.limit, FIRST);
    }

    #[test]
    fn refusals_halve_it_and_it_comes_back() {
        let mut place = Place::new();
        (0..16).for_each(|_| place.state.refused(place.now));
        assert_eq!(place.state.limit, FIRST / 2, "those of one moment are one");
        for _ in 0..10 {
            place.now += ONE_EVENT;
            place.state.refused(place.now);
        }
        assert_eq!(place.state.limit, FEWEST);
        assert!(place.epochs(60, 50e6, 10e9) > FIRST, "{}", place.state.limit);
    }

    #[test]
    fn late_answers_make_it_smaller() {
        let mut place = Place::new();
        let mut answered = |millis| {
            place.now += ONE_EVENT;
            place.state.answered(Duration::from_millis(millis), place.now);
            place.state.limit
        };
        assert_eq!([answered(400), answered(1000)], [FIRST; 2], "a place that is far away");
        assert_eq!([answered(20), answered(110)], [FIRST; 2]);
        assert_eq!(answered(1000), FIRST - FIRST / 4);
        assert_eq!(answered(110), FIRST - FIRST / 4, "that is nothing");
    }

    #[test]
    fn bodies_are_counted_while_they_are_under_way() {
        let flow = Flow::new(8);
        let (one, two) = (flow.open(), flow.open());
        drop(one);
        assert_eq!(flow.limit(), 8);
        let (open, busy) = {
            let state = flow.state();
            (state.open, state.busy)
        };
        assert_eq!((open, busy), (1, 2));
        drop(two);
        assert_eq!(flow.state().open, 0);
    }
}
