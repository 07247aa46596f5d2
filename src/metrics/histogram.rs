//! How often something was done, how long it took, and how often it failed: a few relaxed additions each time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the classes, in seconds; beyond the last one lies all the rest.
pub const BOUNDS: [f64; 8] = [0.000_1, 0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0];
const NANOS: [u64; 8] = [
    100_000,
    1_000_000,
    10_000_000,
    100_000_000,
    1_000_000_000,
    10_000_000_000,
    60_000_000_000,
    600_000_000_000,
];

/// Durations by class. Figures read while others count may be of moments that are an instant apart.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Not cumulated; the last one is for what is longer than all bounds.
    classes: [AtomicU64; 9],
    nanos: AtomicU64,
    failed: AtomicU64,
}

impl Histogram {
    /// One was done.
    pub fn note(&self, took: Duration, failed: bool) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let class = NANOS.iter().position(|bound| nanos <= *bound).unwrap_or(NANOS.len());
        self.classes[class].fetch_add(1, Relaxed);
        self.nanos.fetch_add(nanos, Relaxed);
        if failed {
            self.failed.fetch_add(1, Relaxed);
        }
    }

    /// How often it was done.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.classes.iter().map(|c| c.load(Relaxed)).sum()
    }

    /// How often in vain.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Relaxed)
    }

    /// All durations together.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.nanos.load(Relaxed) as f64 / 1e9
    }

    /// How many took no longer than each of [`BOUNDS`]; the last number is of all.
    #[must_use]
    pub fn cumulated(&self) -> [u64; 9] {
        let mut sum = 0;
        std::array::from_fn(|n| {
            sum += self.classes[n].load(Relaxed);
            sum
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_fall_into_their_classes() {
        let h = Histogram::default();
        for (micros, failed) in
            [(50, false), (100, false), (101, true), (5_000_000, false), (700_000_000, true)]
        {
            h.note(Duration::from_micros(micros), failed);
        }
        assert_eq!((h.count(), h.failed()), (5, 2));
        assert_eq!(h.cumulated(), [2, 3, 3, 3, 3, 4, 4, 4, 5]);
        assert!((h.seconds() - 705.000_251).abs() < 1e-6, "{}", h.seconds());
        for (bound, nanos) in BOUNDS.iter().zip(NANOS) {
            assert!((bound * 1e9 - nanos as f64).abs() < 1.0);
        }
    }
}
