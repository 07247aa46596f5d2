//! How long each of many operations took.

use std::time::{Duration, Instant};

/// The laps of one task.
#[derive(Debug, Default)]
pub struct Laps(Vec<Duration>);

impl Laps {
    pub fn note(&mut self, began: Instant) {
        self.0.push(began.elapsed());
    }
}

/// All tasks' laps, which took `wall` together: operations a second, and percentiles of one in microseconds.
pub fn summary(laps: impl IntoIterator<Item = Laps>, wall: Duration) -> serde_json::Value {
    let mut all: Vec<Duration> = laps.into_iter().flat_map(|laps| laps.0).collect();
    all.sort_unstable();
    let at = |part: f64| {
        let index = ((all.len() as f64 * part) as usize).min(all.len().saturating_sub(1));
        all.get(index).map_or(0.0, |lap| lap.as_secs_f64() * 1e6)
    };
    serde_json::json!({
        "count": all.len(),
        "seconds": wall.as_secs_f64(),
        "rate": all.len() as f64 / wall.as_secs_f64(),
        "p50": at(0.5),
        "p99": at(0.99),
        "max": at(1.0),
    })
}
