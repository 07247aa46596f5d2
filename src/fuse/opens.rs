//! Tells the second half of an open with `O_TRUNC`, which the kernel sends as an open and then as a truncation that names no
//! handle and looks like truncate(2): it comes from the same thread, for the same file.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use lru::LruCache;

use crate::types::Ino;

/// Threads that are remembered.
const THREADS: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// What each thread opened for writing last. Bounded: who is forgotten has its truncation committed at once, which costs
/// a round trip and nothing else.
#[derive(Debug)]
pub(super) struct Opens(Mutex<LruCache<u32, (Ino, u64)>>);

impl Default for Opens {
    fn default() -> Self {
        Opens(Mutex::new(LruCache::new(THREADS)))
    }
}

impl Opens {
    /// The thread `tid` gets the handle `fh` of a file that it opens for writing. A thread of another pid namespace has no
    /// number here (0).
    pub(super) fn opened(&self, tid: u32, ino: Ino, fh: u64) {
        if tid != 0 {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).put(tid, (ino, fh));
        }
    }

    /// The handle that the thread opened last, if it is one of this file; only once.
    pub(super) fn take(&self, tid: u32, ino: Ino) -> Option<u64> {
        let (of, fh) = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop(&tid)?;
        (of == ino).then_some(fh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_open_of_the_same_thread_counts_once() {
        let opens = Opens::default();
        opens.opened(1, Ino(5), 50);
        opens.opened(2, Ino(5), 51);
        assert_eq!(opens.take(3, Ino(5)), None, "another thread");
        assert_eq!((opens.take(1, Ino(5)), opens.take(1, Ino(5))), (Some(50), None));
        opens.opened(2, Ino(6), 60);
        assert_eq!((opens.take(2, Ino(5)), opens.take(2, Ino(6))), (None, None), "another file");
        opens.opened(0, Ino(5), 70);
        assert_eq!(opens.take(0, Ino(5)), None, "nobody in particular");
    }
}
