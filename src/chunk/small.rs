//! Small blobs that were opened lately. Configs and tokenizers are opened again and again, and to open two files on the local
//! disk costs more than to read them.

use lru::LruCache;

use crate::types::BlobId;

/// The largest of them, bytes.
pub(super) const SMALL: u64 = 1 << 20;
/// Bytes that they keep from eviction, all together.
const ALL: u64 = 128 << 20;

/// What is held of them, the latest first.
#[derive(Debug)]
pub(super) struct Small<T> {
    held: LruCache<BlobId, (u64, T)>,
    most: usize,
    bytes: u64,
}

impl<T> Small<T> {
    /// Holds at most so many.
    pub(super) fn new(most: usize) -> Self {
        Small { held: LruCache::unbounded(), most, bytes: 0 }
    }

    /// It was opened again.
    pub(super) fn promote(&mut self, id: &BlobId) {
        self.held.promote(id);
    }

    /// Holds a blob of `size` bytes. Answers what is held no more, to be dropped outside of any lock.
    pub(super) fn hold(&mut self, id: BlobId, size: u64, content: T) -> Vec<T> {
        let mut gone = Vec::new();
        self.bytes += size;
        if let Some((before, old)) = self.held.put(id, (size, content)) {
            self.bytes -= before;
            gone.push(old);
        }
        while self.bytes > ALL || self.held.len() > self.most {
            let Some((_, (size, oldest))) = self.held.pop_lru() else { break };
            self.bytes -= size;
            gone.push(oldest);
        }
        gone
    }

    /// Holds nothing any more; what was held is to be dropped outside of any lock.
    pub(super) fn clear(&mut self) -> Vec<T> {
        self.bytes = 0;
        std::iter::from_fn(|| self.held.pop_lru()).map(|(_, (_, content))| content).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(n: u8) -> BlobId {
        BlobId::Git([n; 20])
    }

    #[test]
    fn few_and_few_bytes_are_held_and_the_latest() {
        let mut small = Small::new(3);
        for n in 0..3 {
            assert!(small.hold(blob(n), 10, n).is_empty());
        }
        small.promote(&blob(0));
        assert_eq!(small.hold(blob(3), 10, 3), [1], "the oldest");
        assert_eq!(small.hold(blob(0), 20, 9), [0], "the same again");
        assert_eq!(small.bytes, 40);
        assert_eq!(small.hold(blob(4), ALL - 10, 4), [2, 3, 9], "too many bytes");
        assert_eq!(small.hold(blob(5), ALL + 1, 5), [4, 5], "more than may be held");
        assert_eq!((small.bytes, small.held.len()), (0, 0));
        small.hold(blob(6), 1, 6);
        assert_eq!((small.clear(), small.bytes), (vec![6], 0));
    }
}
