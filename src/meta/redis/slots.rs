//! Names for requests, so that one whose reply was lost can be repeated: as in NFSv4.1, a slot and a sequence number in it.
//! The server remembers the last request of each slot; a slot serves one request at a time. So nothing has to be
//! remembered longer than somebody may ask for it.

use std::sync::{Mutex, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit};

/// How many commits may be under way at once.
pub(super) const SLOTS: usize = 256;

pub(super) struct Slots {
    permits: Semaphore,
    free: Mutex<Free>,
}

struct Free {
    slots: Vec<u16>,
    /// One sequence serves all slots: it grows in each of them.
    last_request: u64,
}

/// A slot, held while the request may still be sent.
pub(super) struct Slot<'a> {
    pub(super) slot: u16,
    pub(super) request: u64,
    slots: &'a Slots,
    _permit: SemaphorePermit<'a>,
}

impl Slots {
    pub(super) fn new() -> Self {
        let slots = (0..SLOTS as u16).rev().collect();
        Slots { permits: Semaphore::new(SLOTS), free: Mutex::new(Free { slots, last_request: 0 }) }
    }

    /// Waits until a slot is free; `None` never happens while the engine lives.
    pub(super) async fn take(&self) -> Option<Slot<'_>> {
        let permit = self.permits.acquire().await.ok()?;
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = free.slots.pop()?;
        free.last_request += 1;
        Some(Slot { slot, request: free.last_request, slots: self, _permit: permit })
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        // The permit is released after this.
        self.slots.free.lock().unwrap_or_else(PoisonError::into_inner).slots.push(self.slot);
    }
}
