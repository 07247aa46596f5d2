//! How many transfers ahead of readers one place is asked for at a time. One connection seldom carries what a link does, and
//! nobody says how many it takes: more of them as long as that makes it faster; fewer when they are slow and only share what
//! fewer would bring as well, for then each of them comes late, and with it the chunk that a reader waits for; half as many
//! when the other side refuses, fewer when its answers come late.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Until it is known what the place gives.
const FIRST: usize = 4;
/// What a connection of 100 MB/s and a fast link need: so many at once as soon as transfers are known not to be slow.
const USUAL: usize = 16;
const FEWEST: usize = 2;
/// Bytes a second of one transfer: with more than this a chunk comes in half a second, and nobody feels how many share a link.
const QUICK: f64 = 8.0 * 1024.0 * 1024.0;
/// The same of a transfer after which so many need not be tried with fewer: even if they share what that one had, a chunk comes
/// in a second. And how much of one shows it.
const FAST: f64 = 64.0 * 1024.0 * 1024.0;
const SHOWS: u64 = 2 << 20;
const SHOWS_IN: f64 = 0.01;
/// A transfer that has less than this part of what one can have shares a link that is full, and fewer would bring as much.
const CROWDED: f64 = 0.6;
/// With less than this part, more of them are no gain.
const ALMOST: f64 = 0.75;
/// Beyond what fills the link: the time between two transfers.
const SPARE: f64 = 1.25;
/// For how long a rate is measured; and at the start, if so many bytes come meanwhile.
const EPOCH: Duration = Duration::from_millis(400);
const BRIEF: Duration = Duration::from_millis(100);
const MANY: u64 = 16 << 20;
/// Fewer bytes in less time of transfers say nothing about the rate of one.
const TELLING: u64 = 128 << 10;
const LEAST: f64 = 0.05;
/// How long it may take until a change shows.
const SHOWN: Duration = Duration::from_secs(4);
/// How long it stays as it is after more of them were no gain, or fewer a loss.
const ENOUGH: Duration = Duration::from_secs(10);
/// How long after a refusal, and the time in which several count as one.
const REFUSED: Duration = Duration::from_secs(2);
const ONE_EVENT: Duration = Duration::from_secs(1);
/// Answers that begin so late, and so many times later than the quickest, are signs of a crowd.
const LATE: Duration = Duration::from_millis(500);
const TIMES_LATER: u32 = 6;
/// How long the quickest answer, and what one transfer can have, are remembered.
const MEMORY: Duration = Duration::from_secs(30);
/// A place that has given nothing for so long is not what the bytes come from.
const UNUSED: Duration = Duration::from_secs(5);

/// The pace of one client. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Flow(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    limit: usize,
    most: usize,
    /// Requests under way, and bodies that have begun.
    open: usize,
    flowing: usize,
    /// The most requests in this epoch, and those at its beginning.
    busy: usize,
    before: usize,
    began: Instant,
    bytes: u64,
    /// Seconds of bodies in this epoch, up to then.
    shared: f64,
    counted: Instant,
    /// What one transfer can have, bytes a second, and when that was seen.
    best: Option<(Instant, f64)>,
    /// The limit was changed a moment ago.
    trial: Option<Trial>,
    /// Nothing has shown yet that it should not be raised.
    starting: bool,
    /// Not raised before then, and not lowered for a crowd.
    hold: Instant,
    keep: Instant,
    lowered: Option<Instant>,
    quickest: Option<(Instant, Duration)>,
    used: Option<Instant>,
}

/// The limit, and the bytes a second, before a change of it, and when that was.
#[derive(Clone, Copy, Debug)]
struct Trial {
    limit: usize,
    rate: f64,
    since: Instant,
}

/// A body under way; counted until it is dropped.
#[derive(Debug)]
pub struct Open {
    flow: Flow,
    flows: bool,
}

impl Open {
    /// The answer has come: bytes follow.
    pub fn begins(&mut self) {
        if !std::mem::replace(&mut self.flows, true) {
            let mut state = self.flow.state();
            state.count(Instant::now());
            state.flowing += 1;
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut state = self.flow.state();
        state.count(Instant::now());
        state.open -= 1;
        state.flowing -= usize::from(self.flows);
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

    /// How many transfers are worth having under way now. While nothing comes from here, what there is comes from elsewhere, and
    /// this place says nothing about it.
    pub fn limit(&self) -> usize {
        self.state().told(Instant::now())
    }

    /// A body is asked for.
    pub fn open(&self) -> Open {
        self.state().open(Instant::now());
        Open { flow: self.clone(), flows: false }
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
            flowing: 0,
            busy: 0,
            before: 0,
            began: now,
            bytes: 0,
            shared: 0.0,
            counted: now,
            best: None,
            trial: None,
            starting: true,
            hold: now,
            keep: now,
            lowered: None,
            quickest: None,
            used: None,
        }
    }

    fn told(&self, now: Instant) -> usize {
        let used = self.open > 0 || self.used.is_some_and(|at| now - at < UNUSED);
        // A refusal counts longer than its transfers.
        if used || self.lowered.is_some() { self.limit } else { self.limit.max(USUAL.min(self.most)) }
    }

    fn open(&mut self, now: Instant) {
        if self.open == 0 && now - self.began > EPOCH {
            self.begin(now);
        }
        self.open += 1;
        self.busy = self.busy.max(self.open);
        self.used = Some(now);
    }

    /// Time has gone by for those that are under way.
    fn count(&mut self, now: Instant) {
        self.shared += (now - self.counted).as_secs_f64() * self.flowing as f64;
        self.counted = now;
    }

    fn begin(&mut self, now: Instant) {
        (self.began, self.counted, self.bytes, self.shared) = (now, now, 0, 0.0);
        (self.busy, self.before) = (self.open, self.open);
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
        self.used = Some(now);
        if self.starting && self.limit < USUAL && self.bytes >= SHOWS {
            self.count(now);
            if self.shared >= SHOWS_IN && self.bytes as f64 / self.shared >= FAST {
                self.limit = USUAL.min(self.most);
            }
        }
        let age = now - self.began;
        if age >= EPOCH || (self.starting && age >= BRIEF && self.bytes >= MANY) {
            self.count(now);
            self.judge(now);
            self.begin(now);
        }
    }

    fn lower(&mut self, limit: usize, now: Instant) {
        if self.lowered.is_some_and(|at| now - at < ONE_EVENT) {
            return;
        }
        self.limit = limit.max(FEWEST.min(self.most));
        (self.lowered, self.trial, self.hold) = (Some(now), None, now + REFUSED);
        self.starting = false;
        tracing::debug!(limit = self.limit, "fewer transfers at a time");
    }

    /// What one transfer has now, and which part that is of what one can have.
    fn share(&mut self, now: Instant) -> Option<(f64, f64)> {
        if self.bytes < TELLING || self.shared < LEAST {
            return None;
        }
        let each = self.bytes as f64 / self.shared;
        let best = match self.best {
            Some((at, best)) if now - at < MEMORY && best >= each => best,
            _ => {
                self.best = Some((now, each));
                each
            }
        };
        Some((each, each / best))
    }

    /// An epoch is over.
    fn judge(&mut self, now: Instant) {
        let rate = self.bytes as f64 / (now - self.began).as_secs_f64();
        let share = self.share(now);
        // What nobody wanted more of says nothing; nor does a pause.
        let Some((each, share)) = share.filter(|_| self.busy >= self.limit && now - self.began < 2 * EPOCH)
        else {
            self.trial = self.trial.filter(|trial| now - trial.since < SHOWN);
            return;
        };
        match self.trial {
            Some(trial) if !self.shows(trial) => return,
            Some(trial) => {
                self.trial = None;
                if !self.paid(trial, rate) {
                    if trial.limit > self.limit {
                        // One can have no more than that, whatever it had once.
                        (self.best, self.keep) = (Some((now, each)), now + ENOUGH);
                    }
                    (self.limit, self.hold, self.starting) = (trial.limit, now + ENOUGH, false);
                    return;
                }
            }
            None => {}
        }
        let quick = each >= QUICK;
        if !quick && share < CROWDED && self.limit > FEWEST && now >= self.keep {
            let wanted = (self.limit as f64 * share * SPARE).ceil() as usize;
            self.change(wanted.clamp(FEWEST, self.limit - 1), rate, now);
            (self.hold, self.starting) = (now + ENOUGH, false);
            return;
        }
        if now < self.hold || self.limit >= self.most || !(quick || share >= ALMOST) {
            return;
        }
        if self.starting && quick && self.limit < USUAL {
            self.limit = USUAL.min(self.most);
        } else if self.starting {
            self.change(self.limit * 2, rate, now);
        } else {
            self.change(self.limit + self.limit / 8 + 1, rate, now);
        }
    }

    /// Whether this epoch is one of the new limit from its beginning on.
    fn shows(&self, trial: Trial) -> bool {
        match trial.limit > self.limit {
            true => self.before <= self.limit,
            false => self.before > trial.limit,
        }
    }

    /// Whether a change was worth it: more of them brought half of what they would if each carried as much, or fewer lost
    /// less than half of that.
    fn paid(&self, trial: Trial, rate: f64) -> bool {
        let proportion = self.limit as f64 / trial.limit as f64;
        rate >= trial.rate * (1.0 + 0.5 * (proportion - 1.0))
    }

    fn change(&mut self, limit: usize, rate: f64, since: Instant) {
        tracing::debug!(limit, before = self.limit, rate, "transfers at a time");
        self.trial = Some(Trial { limit: self.limit, rate, since });
        self.limit = limit.min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: f64 = 1e6;

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
            self.with(wanted.min(self.state.limit), each, total);
        }

        /// The same, whatever the limit.
        fn with(&mut self, under_way: usize, each: f64, total: f64) {
            for _ in 0..under_way {
                self.state.open(self.now);
            }
            self.state.count(self.now);
            self.state.flowing += under_way;
            let rate = (under_way as f64 * each).min(total);
            for _ in 0..8 {
                self.now += EPOCH / 8;
                self.state.took((rate * EPOCH.as_secs_f64() / 8.0) as u64, self.now);
            }
            self.state.count(self.now);
            self.state.open -= under_way;
            self.state.flowing -= under_way;
        }

        fn epochs(&mut self, n: usize, each: f64, total: f64) -> usize {
            (0..n).for_each(|_| self.epoch(usize::MAX, each, total));
            self.state.limit
        }
    }

    #[test]
    fn it_grows_while_that_is_a_gain() {
        assert_eq!(Place::new().state.limit, FIRST);
        let mut place = Place::new();
        place.with(1, 100.0 * MB, 1e10);
        assert_eq!(place.state.limit, USUAL, "a fast one has what it needs at once");
        assert_eq!(place.epochs(1, 100.0 * MB, 1e10), 2 * USUAL);
        assert_eq!(Place::new().epochs(40, 50.0 * MB, 1e10), 64, "all of them are worth it");
        let limit = Place::new().epochs(100, 50.0 * MB, 1500.0 * MB);
        assert!((24..=40).contains(&limit), "the link is full: {limit}");
        let limit = Place::new().epochs(30, 100.0 * MB, 800.0 * MB);
        assert!((USUAL..=USUAL + 3).contains(&limit), "it was full before: {limit}");
        let limit = Place::new().epochs(40, 2.0 * MB, 100.0 * MB);
        assert!((40..=64).contains(&limit), "slow ones, and a link for fifty: {limit}");
    }

    #[test]
    fn slow_ones_that_share_a_link_are_few() {
        for (each, total, fits) in [(5.0, 10.0, 2..=3), (2.5, 2.5, 2..=2), (6.0, 25.0, 4..=8)] {
            let mut place = Place::new();
            // The first chunk by itself.
            place.epoch(1, each * MB, total * MB);
            let limit = place.epochs(6, each * MB, total * MB);
            assert!(fits.contains(&limit), "{each} of {total}: {limit}");
            // It may just be trying one more.
            let limit = place.epochs(100, each * MB, total * MB);
            assert!((*fits.start()..=fits.end() + 1).contains(&limit), "{each} of {total}, later: {limit}");
        }
    }

    #[test]
    fn fewer_are_a_trial_too() {
        let mut place = Place::new();
        // The first one had a better way than the others ever will.
        place.epoch(1, 7.0 * MB, 100.0 * MB);
        let limit = place.epochs(4, 2.0 * MB, 100.0 * MB);
        assert_eq!(limit, FIRST, "half as many brought half as much");
        assert!(place.epochs(60, 2.0 * MB, 100.0 * MB) > 30, "{}", place.state.limit);
        // As long as more than the new limit are under way, nothing is known.
        let mut place = Place::new();
        place.epoch(1, 5.0 * MB, 10.0 * MB);
        (0..3).for_each(|_| place.with(4, 5.0 * MB, 10.0 * MB));
        assert_eq!(place.state.limit, 3);
        assert!(place.state.trial.is_some());
    }

    #[test]
    fn it_does_not_grow_when_nobody_wants_more() {
        let mut place = Place::new();
        (0..20).for_each(|_| place.epoch(FIRST - 1, 50.0 * MB, 1e10));
        assert_eq!(place.state.limit, FIRST);
    }

    #[test]
    fn what_is_not_used_says_nothing() {
        let mut place = Place::new();
        assert_eq!(place.state.told(place.now), USUAL, "never used");
        place.epoch(1, 5.0 * MB, 10.0 * MB);
        let limit = place.epochs(6, 5.0 * MB, 10.0 * MB);
        assert_eq!(place.state.told(place.now), limit);
        assert_eq!(place.state.told(place.now + UNUSED), USUAL);
        place.state.refused(place.now);
        assert_eq!(place.state.told(place.now + UNUSED), FEWEST, "it said so");
    }

    #[test]
    fn small_bodies_say_nothing_about_rates() {
        let mut place = Place::new();
        for _ in 0..50 {
            // 100 KB that are here at once, ten times a second.
            place.now += Duration::from_millis(100);
            place.state.open(place.now);
            place.state.took(100_000, place.now);
            place.state.open -= 1;
        }
        assert_eq!((place.state.best, place.state.limit), (None, FIRST));
    }

    #[test]
    fn refusals_halve_it_and_it_comes_back() {
        let mut place = Place::new();
        place.epochs(1, 50.0 * MB, 1e10);
        let limit = place.state.limit;
        assert!(limit >= USUAL);
        (0..16).for_each(|_| place.state.refused(place.now));
        assert_eq!(place.state.limit, limit / 2, "those of one moment are one");
        for _ in 0..10 {
            place.now += ONE_EVENT;
            place.state.refused(place.now);
        }
        assert_eq!(place.state.limit, FEWEST);
        assert!(place.epochs(60, 50.0 * MB, 1e10) > USUAL, "{}", place.state.limit);
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
        let counts = || {
            let state = flow.state();
            (state.open, state.flowing, state.busy)
        };
        let (mut one, two) = (flow.open(), flow.open());
        one.begins();
        one.begins();
        assert_eq!(counts(), (2, 1, 2));
        drop(one);
        assert_eq!(flow.limit(), FIRST);
        assert_eq!(counts(), (1, 0, 2));
        drop(two);
        assert_eq!(counts().0, 0);
    }
}
