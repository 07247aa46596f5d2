//! Bytes a second: what may pass, and what has passed.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What may pass at once after a pause: so much time's worth of bytes.
const BURST: Duration = Duration::from_millis(100);
/// Over how long a rate is taken.
const WINDOW: Duration = Duration::from_secs(5);

/// A limit on bytes a second, shared by all transfers that it is given to: first come, first served.
#[derive(Debug)]
pub struct Limit {
    /// At least 1.
    rate: u64,
    /// When what was taken so far will have been paid for.
    paid: Mutex<Instant>,
}

impl Limit {
    /// `rate` in bytes a second; 0 counts as 1.
    #[must_use]
    pub fn new(rate: u64) -> Self {
        Limit { rate: rate.max(1), paid: Mutex::new(Instant::now()) }
    }

    /// How many bytes to take at a time, so that the flow is even and those who share it take turns.
    #[must_use]
    pub fn grain(&self) -> usize {
        usize::try_from(self.rate / 20).unwrap_or(usize::MAX).clamp(4 << 10, 512 << 10)
    }

    /// Waits until `bytes` more may pass: as long as they and what was taken before them take at this rate. Who gives up
    /// waiting has taken them all the same.
    pub async fn take(&self, bytes: usize) {
        tokio::time::sleep_until(self.book(bytes, Instant::now())).await;
    }

    /// When `bytes` more may pass.
    fn book(&self, bytes: usize, now: Instant) -> Instant {
        let mut paid = guard(&self.paid);
        // Rust has no division of bytes by rates; a day is longer than anybody waits.
        let cost = Duration::from_secs_f64((bytes as f64 / self.rate as f64).min(86_400.0));
        let credit = now.checked_sub(BURST).unwrap_or(now);
        *paid = (*paid).max(credit) + cost;
        *paid
    }
}

/// Counts bytes, and tells how many a second there were lately.
#[derive(Debug)]
pub struct Meter(Mutex<Measured>);

#[derive(Debug)]
struct Measured {
    total: u64,
    /// Bytes a second, exponentially weighted.
    rate: f64,
    /// Bytes since `since` that are not in `rate` yet.
    fresh: u64,
    since: Instant,
}

/// Bytes are gathered for so long before they count.
const STEP: Duration = Duration::from_millis(250);

impl Default for Meter {
    fn default() -> Self {
        Meter(Mutex::new(Measured { total: 0, rate: 0.0, fresh: 0, since: Instant::now() }))
    }
}

impl Meter {
    /// Notes that `bytes` have passed.
    pub fn add(&self, bytes: usize) {
        let mut m = guard(&self.0);
        m.total += bytes as u64;
        m.fresh += bytes as u64;
        m.settle(Instant::now());
    }

    /// All bytes so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        guard(&self.0).total
    }

    /// Bytes a second over the last seconds.
    #[must_use]
    pub fn rate(&self) -> u64 {
        let mut m = guard(&self.0);
        m.settle(Instant::now());
        m.rate as u64
    }
}

impl Measured {
    fn settle(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed < STEP {
            return;
        }
        let weight = (-passed.as_secs_f64() / WINDOW.as_secs_f64()).exp();
        let rate = self.fresh as f64 / passed.as_secs_f64();
        self.rate = self.rate * weight + rate * (1.0 - weight);
        (self.fresh, self.since) = (0, now);
    }
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 1_000_000;

    #[test]
    fn what_passes_in_a_time_is_the_rate_and_the_burst() {
        let limit = Limit::new(RATE);
        let start = Instant::now();
        let mut now = start;
        for _ in 0..40 {
            now = now.max(limit.book(50_000, now));
        }
        let took = (now - start).as_secs_f64();
        assert!((1.85..=2.01).contains(&took), "2 MB at 1 MB/s took {took} s");
        let later = now + Duration::from_secs(60);
        assert!(limit.book(100_000, later) <= later + Duration::from_millis(1), "the burst after a pause");
        let took = limit.book(1_000_000, later) - later;
        assert!((0.95..=1.05).contains(&took.as_secs_f64()), "a pause is worth one burst: {took:?}");
    }

    #[tokio::test]
    async fn takers_share_a_limit() {
        let limit = std::sync::Arc::new(Limit::new(RATE));
        let start = Instant::now();
        let takers = (0..4).map(|_| {
            let limit = limit.clone();
            async move {
                for _ in 0..4 {
                    limit.take(25_000).await;
                }
            }
        });
        futures::future::join_all(takers).await;
        assert!(start.elapsed() > Duration::from_millis(280), "400 kB at 1 MB/s: {:?}", start.elapsed());
    }

    #[test]
    fn rates_follow_what_passes_and_fade() {
        let start = Instant::now();
        let mut m = Measured { total: 0, rate: 0.0, fresh: 0, since: start };
        for i in 1..=300 {
            m.fresh += 100_000;
            m.settle(start + Duration::from_millis(100 * i));
        }
        assert!((950_000.0..=1_050_000.0).contains(&m.rate), "{}", m.rate);
        m.settle(start + Duration::from_secs(90));
        assert!(m.rate < 1_000.0, "{}", m.rate);
    }

    #[test]
    fn extreme_rates_are_no_accidents() {
        assert_eq!(Limit::new(0).grain(), 4 << 10);
        assert_eq!(Limit::new(u64::MAX).grain(), 512 << 10);
        let (limit, now) = (Limit::new(0), Instant::now());
        assert!(limit.book(usize::MAX, now) <= now + Duration::from_secs(86_401));
    }
}
