//! Durations, counted in classes: the middle and the tail of any number of them, in 16 KiB.

use std::time::Duration;

/// Classes between a power of two and the next: a figure is off by no more than 1/32.
const STEPS: usize = 32;
const CLASSES: usize = (64 - 5 + 1) * STEPS;

/// Some durations.
#[derive(Clone, Debug)]
pub(super) struct Laps {
    classes: Vec<u64>,
    count: u64,
    nanos: u128,
}

impl Default for Laps {
    fn default() -> Self {
        Laps { classes: vec![0; CLASSES], count: 0, nanos: 0 }
    }
}

impl Laps {
    pub(super) fn note(&mut self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.classes[class(nanos)] += 1;
        self.count += 1;
        self.nanos += u128::from(nanos);
    }

    pub(super) fn merge(&mut self, other: &Laps) {
        self.classes.iter_mut().zip(&other.classes).for_each(|(own, more)| *own += more);
        self.count += other.count;
        self.nanos += other.nanos;
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn mean(&self) -> Duration {
        let mean = self.nanos.checked_div(u128::from(self.count)).unwrap_or(0);
        Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX))
    }

    /// What the given share of them, above 0 and up to 1, did not take longer than.
    pub(super) fn share(&self, share: f64) -> Duration {
        let wanted = (self.count as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (class, count) in self.classes.iter().enumerate() {
            seen += count;
            if seen >= wanted && *count > 0 {
                return Duration::from_nanos(upper(class));
            }
        }
        Duration::ZERO
    }
}

/// Below 32 each number is a class; from there on the five bits behind the first count.
fn class(nanos: u64) -> usize {
    match nanos.checked_ilog2() {
        Some(bits) if bits >= 5 => {
            let shift = bits - 5;
            (shift as usize + 1) * STEPS + ((nanos >> shift) as usize - STEPS)
        }
        _ => nanos as usize,
    }
}

/// The largest number of a class.
fn upper(class: usize) -> u64 {
    if class < STEPS {
        return class as u64;
    }
    let shift = class / STEPS - 1;
    let first = ((class % STEPS + STEPS) as u64) << shift;
    first + ((1u64 << shift) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_holds_its_numbers() {
        for nanos in (0..5000).chain([u64::MAX / 3, u64::MAX - 1, u64::MAX]) {
            let class = class(nanos);
            assert!(class < CLASSES && upper(class) >= nanos, "{nanos}");
            assert!(upper(class) - nanos <= nanos / 32, "{nanos} {}", upper(class));
            assert!(class == 0 || upper(class - 1) < nanos, "{nanos}");
        }
    }

    #[test]
    fn the_middle_and_the_tail() {
        let mut laps = Laps::default();
        (1..=98).for_each(|_| laps.note(Duration::from_micros(100)));
        let mut slow = Laps::default();
        (1..=2).for_each(|_| slow.note(Duration::from_millis(10)));
        laps.merge(&slow);
        assert_eq!((laps.count(), laps.mean()), (100, Duration::from_micros(298)));
        let near = |found: Duration, micros: f64| (found.as_secs_f64() * 1e6 / micros - 1.0).abs() < 0.04;
        assert!(near(laps.share(0.5), 100.0) && near(laps.share(0.98), 100.0), "{:?}", laps.share(0.5));
        assert!(near(laps.share(0.99), 10_000.0) && near(laps.share(1.0), 10_000.0));
        assert_eq!((Laps::default().share(0.5), Laps::default().mean()), (Duration::ZERO, Duration::ZERO));
    }
}
