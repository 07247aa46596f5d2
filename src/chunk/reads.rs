//! How much of what was read was here already.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes that readers asked for. Counted where the answer is put together, so that what a file reads of the blob it began as is
/// counted once, as the blob's.
#[derive(Debug, Default)]
pub struct Reads {
    hit: AtomicU64,
    missed: AtomicU64,
}

impl Reads {
    /// A read of `len` bytes, of which `missed` had to be waited for.
    pub(super) fn note(&self, len: u64, missed: u64) {
        self.hit.fetch_add(len.saturating_sub(missed), Relaxed);
        if missed > 0 {
            self.missed.fetch_add(missed, Relaxed);
        }
    }

    /// Bytes that were on this machine when they were asked for: in the disk cache, in memory, or nowhere, as holes are.
    #[must_use]
    pub fn hit(&self) -> u64 {
        self.hit.load(Relaxed)
    }

    /// Bytes that were on their way, or had to be fetched.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed.load(Relaxed)
    }
}
