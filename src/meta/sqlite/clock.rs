//! The clock by which sessions on this machine are alive: it runs alike in all processes, does not step with the wall
//! clock, stands still while the machine sleeps (as the sessions do), and starts anew with every boot.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The clock of this boot.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    boot: String,
}

impl Clock {
    /// Where the kernel tells no boot id, all boots look the same.
    pub(super) fn new() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Clock { boot: boot.trim().to_owned() }
    }

    /// Times of another boot say nothing now.
    pub(super) fn boot(&self) -> &str {
        &self.boot
    }

    /// Milliseconds since some moment of this boot.
    pub(super) fn now_ms(&self) -> i64 {
        let now = clock_gettime(ClockId::Monotonic);
        now.tv_sec * 1000 + now.tv_nsec / 1_000_000
    }

    pub(super) fn after_ms(&self, ttl: Duration) -> i64 {
        self.now_ms().saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX))
    }
}
