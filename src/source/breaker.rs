//! Leaving alone what does not work: a place that failed a few times in a row is not asked for a while, then by one
//! request that finds out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct BreakerOptions {
    /// Failures in a row that open it.
    pub failures: u32,
    /// How long it stays open the first time; twice as long each time after that.
    pub first: Duration,
    /// For what is worse than a failure, see [`Breaker::condemn`].
    pub first_condemned: Duration,
    /// No longer than that.
    pub longest: Duration,
    /// After this long without a failure the next opening is a first one again.
    pub forgets: Duration,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        BreakerOptions {
            failures: 3,
            first: Duration::from_secs(5),
            first_condemned: Duration::from_secs(60),
            longest: Duration::from_secs(15 * 60),
            forgets: Duration::from_secs(30 * 60),
        }
    }
}

/// What a breaker does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// They pass.
    Closed,
    /// They are refused.
    Open,
    /// One is on its way to find out; the others are refused.
    HalfOpen,
}

/// One place's breaker. No I/O, no waiting.
#[derive(Debug)]
pub struct Breaker {
    options: BreakerOptions,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    failures: u32,
    /// Refused until then.
    until: Option<Instant>,
    probing: bool,
    /// How often in a row it was opened.
    opened: u32,
    last_failure: Option<Instant>,
    total: u64,
}

/// The right to send one request. Whoever drops it without a word was given up: that says nothing.
#[derive(Debug)]
#[must_use]
pub struct Pass {
    breaker: Arc<Breaker>,
    probe: bool,
    ended: bool,
}

impl Breaker {
    #[must_use]
    pub fn new(options: BreakerOptions) -> Self {
        Breaker { options, inner: Mutex::default() }
    }

    /// A pass, or how long it is certainly not worth asking again.
    pub fn enter(self: &Arc<Self>) -> Result<Pass, Duration> {
        let mut inner = self.lock();
        let Some(until) = inner.until else {
            return Ok(Pass { breaker: self.clone(), probe: false, ended: false });
        };
        let left = until.saturating_duration_since(Instant::now());
        if !left.is_zero() || inner.probing {
            return Err(left);
        }
        inner.probing = true;
        Ok(Pass { breaker: self.clone(), probe: true, ended: false })
    }

    /// What came from there was a lie, however smoothly: opens at once, and for longer.
    pub fn condemn(&self) {
        let mut inner = self.lock();
        self.open(&mut inner, self.options.first_condemned);
    }

    #[must_use]
    pub fn state(&self) -> BreakerState {
        let inner = self.lock();
        match inner.until {
            None => BreakerState::Closed,
            Some(_) if inner.probing => BreakerState::HalfOpen,
            Some(_) => BreakerState::Open,
        }
    }

    /// How often it opened since the start.
    #[must_use]
    pub fn openings(&self) -> u64 {
        self.lock().total
    }

    fn open(&self, inner: &mut Inner, first: Duration) {
        let now = Instant::now();
        if inner.last_failure.is_some_and(|at| now.duration_since(at) > self.options.forgets) {
            inner.opened = 0;
        }
        let wait = first.saturating_mul(1 << inner.opened.min(16)).min(self.options.longest);
        // Nodes that opened theirs at the same moment do not all come back at the same moment.
        inner.until = Some(now + wait.mul_f64(rand::random_range(0.8..1.2)));
        inner.opened += 1;
        inner.total += 1;
        inner.failures = 0;
        inner.probing = false;
        inner.last_failure = Some(now);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    /// It worked.
    pub fn succeeded(mut self) {
        self.ended = true;
        let mut inner = self.breaker.lock();
        inner.failures = 0;
        // Unless it was condemned meanwhile.
        if self.probe && inner.probing {
            inner.until = None;
            inner.probing = false;
        }
    }

    /// It did not.
    pub fn failed(mut self) {
        self.ended = true;
        let breaker = &self.breaker;
        let mut inner = breaker.lock();
        inner.failures += 1;
        inner.last_failure = inner.last_failure.or_else(|| Some(Instant::now()));
        let enough = inner.until.is_none() && inner.failures >= breaker.options.failures;
        if self.probe || enough {
            breaker.open(&mut inner, breaker.options.first);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.probe && !self.ended {
            // The next one finds out.
            self.breaker.lock().probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIEF: Duration = Duration::from_millis(40);

    fn breaker() -> Arc<Breaker> {
        Arc::new(Breaker::new(BreakerOptions {
            first: BRIEF,
            first_condemned: BRIEF * 50,
            longest: BRIEF * 100,
            ..BreakerOptions::default()
        }))
    }

    fn pass(breaker: &Arc<Breaker>) -> Pass {
        breaker.enter().expect("a pass")
    }

    #[test]
    fn opens_after_failures_in_a_row_and_closes_after_one_success() {
        let b = breaker();
        pass(&b).failed();
        pass(&b).failed();
        pass(&b).succeeded();
        pass(&b).failed();
        pass(&b).failed();
        assert_eq!(b.state(), BreakerState::Closed, "not in a row");
        pass(&b).failed();
        assert_eq!(b.state(), BreakerState::Open);
        assert!(b.enter().is_err_and(|left| left <= BRIEF * 2));
        std::thread::sleep(BRIEF * 2);
        let probe = pass(&b);
        assert_eq!(b.state(), BreakerState::HalfOpen);
        assert!(b.enter().is_err(), "one finds out");
        probe.succeeded();
        assert_eq!((b.state(), b.openings()), (BreakerState::Closed, 1));
    }

    #[test]
    fn a_failed_probe_opens_for_longer_and_one_given_up_says_nothing() {
        let b = breaker();
        (0..3).for_each(|_| pass(&b).failed());
        std::thread::sleep(BRIEF * 2);
        drop(pass(&b));
        assert_eq!(b.state(), BreakerState::Open);
        pass(&b).failed();
        let left = b.enter().expect_err("open again");
        assert!(left > BRIEF, "{left:?}");
        assert_eq!(b.openings(), 2);
    }

    #[test]
    fn a_lie_opens_at_once_whatever_succeeded_before() {
        let b = breaker();
        let under_way = pass(&b);
        b.condemn();
        assert!(b.enter().is_err_and(|left| left > BRIEF * 20));
        under_way.succeeded();
        assert_eq!(b.state(), BreakerState::Open, "what was on its way does not close it");
    }
}
