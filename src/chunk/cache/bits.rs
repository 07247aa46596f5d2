//! Three bits for each chunk of an open content: recorded, suspect, used since the evictor came by.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use super::file::Presence;

/// The bits; 3 × 1 bit a chunk (a terabyte in 4 MiB chunks: 96 KiB). Setting and clearing need no exclusive access.
#[derive(Debug, Default)]
pub struct Bits {
    len: u64,
    /// How many are recorded and not suspect. Changes to one chunk are made by one caller at a time.
    present: AtomicU64,
    recorded: Vec<AtomicU64>,
    suspect: Vec<AtomicU64>,
    used: Vec<AtomicU64>,
}

fn place(idx: u64) -> (usize, u64) {
    ((idx / 64) as usize, 1 << (idx % 64))
}

impl Bits {
    /// All absent.
    pub fn new(len: u64) -> Self {
        let mut bits = Bits::default();
        bits.resize(len);
        bits
    }

    /// Number of chunks.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Longer: the new ones are absent. Shorter: those beyond are forgotten.
    pub fn resize(&mut self, len: u64) {
        (len..self.len).for_each(|idx| self.clear(idx));
        self.len = len;
        for words in [&mut self.recorded, &mut self.suspect, &mut self.used] {
            words.resize_with(len.div_ceil(64) as usize, AtomicU64::default);
        }
    }

    pub fn get(&self, idx: u64) -> Presence {
        let (word, bit) = place(idx);
        if idx >= self.len || self.recorded[word].load(SeqCst) & bit == 0 {
            Presence::Absent
        } else if self.suspect[word].load(SeqCst) & bit != 0 {
            Presence::Suspect
        } else {
            Presence::Present
        }
    }

    /// Whether the chunk is present; if so it counts as used.
    pub fn use_if_present(&self, idx: u64) -> bool {
        let present = self.get(idx) == Presence::Present;
        let (word, bit) = place(idx);
        if present && self.used[word].load(Relaxed) & bit == 0 {
            self.used[word].fetch_or(bit, Relaxed);
        }
        present
    }

    /// Whether the chunk was used since this was last asked.
    pub fn take_used(&self, idx: u64) -> bool {
        let (word, bit) = place(idx);
        idx < self.len && self.used[word].fetch_and(!bit, Relaxed) & bit != 0
    }

    /// Recorded, and used just now.
    pub fn set(&self, idx: u64, suspect: bool) {
        if idx >= self.len {
            return;
        }
        let was = self.get(idx) == Presence::Present;
        let (word, bit) = place(idx);
        self.used[word].fetch_or(bit, Relaxed);
        if suspect {
            self.suspect[word].fetch_or(bit, SeqCst);
        } else {
            self.suspect[word].fetch_and(!bit, SeqCst);
        }
        self.recorded[word].fetch_or(bit, SeqCst);
        self.count(was, !suspect);
    }

    pub fn clear(&self, idx: u64) {
        if idx < self.len {
            let was = self.get(idx) == Presence::Present;
            let (word, bit) = place(idx);
            self.recorded[word].fetch_and(!bit, SeqCst);
            self.suspect[word].fetch_and(!bit, SeqCst);
            self.count(was, false);
        }
    }

    fn count(&self, was: bool, is: bool) {
        match (was, is) {
            (false, true) => _ = self.present.fetch_add(1, SeqCst),
            (true, false) => _ = self.present.fetch_sub(1, SeqCst),
            _ => {}
        }
    }

    /// Every chunk present, none suspect.
    pub fn is_full(&self) -> bool {
        self.present.load(SeqCst) == self.len
    }

    pub fn next_absent(&self, from: u64, to: u64) -> Option<u64> {
        next(from, to.min(self.len), |word| !self.recorded[word].load(SeqCst))
    }

    pub fn next_recorded(&self, from: u64, to: u64) -> Option<u64> {
        next(from, to.min(self.len), |word| self.recorded[word].load(SeqCst))
    }
}

/// The first bit that `word` shows as set in `from..to`, a word at a time.
fn next(from: u64, to: u64, word: impl Fn(usize) -> u64) -> Option<u64> {
    let mut idx = from;
    while idx < to {
        let rest = word((idx / 64) as usize) >> (idx % 64);
        if rest != 0 {
            let found = idx + u64::from(rest.trailing_zeros());
            return (found < to).then_some(found);
        }
        idx = (idx / 64 + 1) * 64;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_gaps_across_words() {
        let bits = Bits::new(200);
        (0..200).filter(|i| *i != 130).for_each(|i| bits.set(i, false));
        assert_eq!(bits.next_absent(0, 200), Some(130));
        assert_eq!((bits.next_absent(131, 500), bits.next_absent(0, 130)), (None, None));
        assert!(!bits.is_full());
        bits.set(130, false);
        assert!(bits.is_full());
        bits.clear(130);
        bits.clear(64);
        assert_eq!((bits.next_absent(0, 200), bits.next_absent(65, 200)), (Some(64), Some(130)));
        assert_eq!(bits.next_recorded(64, 200), Some(65));
    }

    #[test]
    fn suspects_are_neither_present_nor_absent() {
        let bits = Bits::new(3);
        (0..3).for_each(|i| bits.set(i, i == 1));
        assert_eq!(bits.get(1), Presence::Suspect);
        assert!(!bits.is_full() && !bits.use_if_present(1) && bits.next_absent(0, 3).is_none());
        bits.set(1, false);
        assert!(bits.is_full());
        assert_eq!(bits.get(3), Presence::Absent, "beyond the end");
    }

    #[test]
    fn shrinking_and_growing_brings_nothing_back() {
        let mut bits = Bits::new(100);
        (0..100).for_each(|i| bits.set(i, true));
        bits.resize(65);
        bits.resize(130);
        assert_eq!((bits.next_absent(0, 130), bits.get(99)), (Some(65), Presence::Absent));
        bits.set(99, false);
        assert_eq!(bits.get(99), Presence::Present);
    }
}
