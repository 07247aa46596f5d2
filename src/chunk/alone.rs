//! Chunks that this node brought for all and nobody else is known to have: if the node dies they leave the Hub again. So it
//! begins with few more than the others take from it. That costs no time: what it brings beyond that would wait here.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::lock;
use crate::types::BlobId;

/// With so many of them only what a reader here needs next is fetched for all, one transfer at a time. With what is on its way
/// that is a segment of 16 chunks.
const MANY: usize = 10;
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

    /// Whether they are many.
    pub fn are_many(&self) -> bool {
        self.are_many_at(Instant::now())
    }

    fn are_many_at(&self, now: Instant) -> bool {
        let mut chunks = lock(&self.0);
        while chunks.peek_lru().is_some_and(|(_, since)| now - *since > MEMORY) {
            chunks.pop_lru();
        }
        chunks.len() >= MANY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOB: BlobId = BlobId::Sha256([7; 32]);

    #[test]
    fn what_others_have_does_not_count_nor_what_nobody_takes() {
        let (alone, start) = (Alone::default(), Instant::now());
        for idx in 0..MANY as u64 {
            assert!(!alone.are_many_at(start), "{idx}");
            alone.brought(BLOB, idx, start);
            alone.brought(BLOB, idx, start);
        }
        assert!(alone.are_many_at(start));
        alone.shared(BLOB, 3);
        alone.shared(BLOB, 3);
        assert!(!alone.are_many_at(start));
        let later = start + MEMORY / 2;
        alone.brought(BLOB, 3, later);
        assert!(alone.are_many_at(later));
        assert!(!alone.are_many_at(start + MEMORY + Duration::from_secs(1)));
        assert_eq!(lock(&alone.0).len(), 1, "but the last");
        (0..5000).for_each(|idx| alone.add(BLOB, idx));
        assert_eq!(lock(&alone.0).len(), MOST.get());
    }
}
