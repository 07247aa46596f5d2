//! Chunks that this node brought for all and nobody else is known to have: if the node dies they leave the Hub again. So it
//! begins with few more than the others take from it. That costs no time: what it brings beyond that would wait here.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::lock;
use crate::types::BlobId;

/// With so many of them one transfer at a time is for all, so that the Hub does not rest; and with so many only of what a reader
/// here needs next. With what is on its way then that is a segment of 16 chunks.
const MANY: usize = 10;
const TOO_MANY: usize = 14;
/// Remembered at most, and for how long: who does not take it by then may have gone.
const MOST: NonZeroUsize = NonZeroUsize::new(1024).expect("above 0");
const MEMORY: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(super) struct Alone(Mutex<LruCache<(BlobId, u64), Instant>>);

impl Default for Alone {
    fn default() -> Self {
        Alone(Mutex::new(LruCache::new(MOST)))
    }
}

impl Alone {
    /// This node brought the chunk.
    pub fn add(&self, blob: BlobId, idx: u64) {
        self.brought(blob, idx, Instant::now());
    }

    fn brought(&self, blob: BlobId, idx: u64, now: Instant) {
        lock(&self.0).put((blob, idx), now);
    }

    /// Another node got it, or the bucket.
    pub fn shared(&self, blob: BlobId, idx: u64) {
        lock(&self.0).pop(&(blob, idx));
    }

    /// Of so many transfers, how many may bring more of them.
    pub fn leaves(&self, most: usize) -> usize {
        match self.count(Instant::now()) {
            ..MANY => most,
            MANY..TOO_MANY => most.min(1),
            _ => 0,
        }
    }

    fn count(&self, now: Instant) -> usize {
        let mut chunks = lock(&self.0);
        while chunks.peek_lru().is_some_and(|(_, since)| now - *since > MEMORY) {
            chunks.pop_lru();
        }
        chunks.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOB: BlobId = BlobId::Sha256([7; 32]);

    #[test]
    fn what_others_have_does_not_count_nor_what_nobody_takes() {
        let (alone, start) = (Alone::default(), Instant::now());
        for idx in 0..4 {
            alone.brought(BLOB, idx, start);
            alone.brought(BLOB, idx, start);
        }
        assert_eq!(alone.count(start), 4);
        alone.shared(BLOB, 3);
        alone.shared(BLOB, 3);
        assert_eq!(alone.count(start), 3);
        let later = start + MEMORY / 2;
        alone.brought(BLOB, 3, later);
        assert_eq!((alone.count(later), alone.count(start + MEMORY + Duration::from_secs(1))), (4, 1));
        (0..5000).for_each(|idx| alone.add(BLOB, idx));
        assert_eq!(lock(&alone.0).len(), MOST.get());
    }

    #[test]
    fn the_more_nobody_has_the_less_is_brought() {
        let alone = Alone::default();
        let leaves: Vec<usize> = (0..TOO_MANY as u64 + 1)
            .map(|idx| {
                alone.add(BLOB, idx);
                alone.leaves(8)
            })
            .collect();
        assert_eq!(leaves, [8, 8, 8, 8, 8, 8, 8, 8, 8, 1, 1, 1, 1, 0, 0]);
        (0..6).for_each(|idx| alone.shared(BLOB, idx));
        assert_eq!((alone.leaves(8), alone.leaves(0)), (8, 0));
    }
}
