//! A cap on bytes per second.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A token bucket that holds 50 ms worth of bytes.
#[derive(Debug)]
pub struct Bucket {
    rate: u64,
    /// When the bytes given out so far will have been paid for.
    paid: Mutex<Instant>,
}

impl Bucket {
    /// `rate` in bytes per second, at least 1.
    pub fn new(rate: u64) -> Self {
        Bucket { rate: rate.max(1), paid: Mutex::new(Instant::now()) }
    }

    /// How many bytes to take at once so that the flow stays even.
    pub fn grain(&self) -> u64 {
        (self.rate / 50).clamp(4 << 10, 256 << 10)
    }

    /// Waits until `bytes` more may pass.
    pub async fn take(&self, bytes: u64) {
        let until = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            let cost = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
            let now = Instant::now();
            let floor = now.checked_sub(Duration::from_millis(50)).unwrap_or(now);
            *paid = (*paid).max(floor) + cost;
            *paid
        };
        tokio::time::sleep_until(until).await;
    }
}
