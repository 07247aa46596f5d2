//! Bytes of chunks that are being written in order, kept in memory until they are uploaded: what was just written to the
//! local disk need not be read back from it. Bounded for all files together; where there is no room the disk is read.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes kept for all files together, uploads that are under way included.
pub(super) const KEPT_BYTES: usize = 32 << 20;
/// A chunk that comes in more pieces than this is not worth the bookkeeping.
const PIECES: usize = 1024;

/// What is kept of one file.
#[derive(Debug, Default)]
pub(super) struct Kept {
    runs: HashMap<u64, Run>,
    /// Writes that were told of.
    writes: u64,
    /// Changes of the file that were not, when `runs` began.
    others: u64,
}

/// The first bytes of a chunk. Room for them is taken until it is dropped.
#[derive(Debug, Default)]
pub(super) struct Run {
    pieces: Vec<Bytes>,
    len: u32,
    room: Option<OwnedSemaphorePermit>,
}

impl Run {
    /// The bytes, in order.
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }
}

impl Kept {
    /// A write, after which the file has been changed `changes` times.
    pub fn count(&mut self, changes: u64) {
        self.writes += 1;
        self.look(changes);
    }

    /// `data` was written at `start` of chunk `idx` just now.
    pub fn wrote(&mut self, idx: u64, start: u32, data: Bytes, room: &Arc<Semaphore>) {
        let run = match self.runs.remove(&idx) {
            // What goes over bytes that are kept makes them old; a chunk begins anew at its beginning.
            Some(run) if run.len != start => Run::default(),
            Some(run) => run,
            None => Run::default(),
        };
        let (Ok(len), Ok(kib)) = (u32::try_from(data.len()), u32::try_from(data.len().div_ceil(1024))) else {
            return;
        };
        if run.len != start || run.pieces.len() >= PIECES {
            return;
        }
        let Ok(more) = room.clone().try_acquire_many_owned(kib) else { return };
        let Run { mut pieces, len: before, room } = run;
        let room = match room {
            Some(mut room) => {
                room.merge(more);
                room
            }
            None => more,
        };
        pieces.push(data);
        self.runs.insert(idx, Run { pieces, len: before + len, room: Some(room) });
    }

    /// Takes the bytes of `range` of chunk `idx`, if all of them are kept and the file, which has been changed
    /// `changes` times, was only written to since.
    pub fn take(&mut self, changes: u64, idx: u64, range: &Range<u32>) -> Option<Run> {
        self.look(changes);
        if range.start != 0 || self.runs.get(&idx)?.len != range.end {
            return None;
        }
        self.runs.remove(&idx)
    }

    /// How many first bytes of chunk `idx` are kept.
    pub fn end(&self, idx: u64) -> u32 {
        self.runs.get(&idx).map_or(0, |run| run.len)
    }

    /// Drops what is kept of chunk `idx`.
    pub fn forget(&mut self, idx: u64) {
        self.runs.remove(&idx);
    }

    /// Drops all.
    pub fn clear(&mut self) {
        self.runs.clear();
    }

    /// Whatever changes a file without being a write may have changed what is kept.
    fn look(&mut self, changes: u64) {
        let others = changes.wrapping_sub(self.writes);
        if others != self.others {
            self.others = others;
            self.runs.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(run: Option<Run>) -> Option<Vec<u8>> {
        run.map(|run| run.pieces().concat())
    }

    /// A file's changes and what is kept of it.
    struct File(Kept, u64, Arc<Semaphore>);

    impl File {
        fn with_room(kib: usize) -> Self {
            File(Kept::default(), 0, Arc::new(Semaphore::new(kib)))
        }

        fn write(&mut self, idx: u64, start: u32, data: &'static [u8]) {
            self.1 += 1;
            self.0.count(self.1);
            self.0.wrote(idx, start, Bytes::from_static(data), &self.2);
        }

        fn take(&mut self, idx: u64, range: Range<u32>) -> Option<Vec<u8>> {
            bytes(self.0.take(self.1, idx, &range))
        }
    }

    #[test]
    fn what_comes_in_order_is_kept_and_taken_once() {
        let mut file = File::with_room(64);
        file.write(0, 0, b"abc");
        file.write(1, 0, b"xyz");
        file.write(0, 3, b"def");
        assert_eq!(file.take(0, 0..5), None, "more came since");
        assert_eq!(file.take(0, 3..6), None);
        assert_eq!(file.take(0, 0..6).expect("kept"), b"abcdef");
        assert_eq!(file.take(0, 0..6), None);
        assert_eq!(file.take(1, 0..3).expect("kept"), b"xyz");
        assert_eq!(file.2.available_permits(), 64, "the room is free again");
    }

    #[test]
    fn what_was_overwritten_is_not() {
        let mut file = File::with_room(64);
        file.write(0, 0, b"abc");
        file.write(0, 1, b"X");
        assert_eq!(file.take(0, 0..3), None);
        file.write(0, 3, b"def");
        assert_eq!(file.take(0, 0..6), None, "no beginning");
        file.write(0, 0, b"new");
        assert_eq!(file.take(0, 0..3).expect("from its beginning"), b"new");
        assert_eq!(file.2.available_permits(), 64);
    }

    #[test]
    fn any_other_change_drops_all() {
        let mut file = File::with_room(64);
        file.write(0, 0, b"abc");
        file.1 += 1; // Cut, punched, cloned: whatever it was.
        assert_eq!(file.take(0, 0..3), None);
        file.write(0, 0, b"abc");
        file.1 += 1;
        file.write(0, 3, b"def");
        assert_eq!(file.take(0, 0..6), None);
        assert_eq!(file.2.available_permits(), 64);
    }

    #[test]
    fn memory_is_bounded() {
        let mut file = File::with_room(2);
        for idx in 0..4 {
            file.write(idx, 0, b"abc");
        }
        assert!(file.take(1, 0..3).is_some());
        assert_eq!(file.take(2, 0..3), None);
        file.write(0, 3, b"def");
        file.write(0, 6, b"ghi");
        assert_eq!(file.take(0, 0..9), None, "no room for the rest: read from the disk");
        assert_eq!(file.2.available_permits(), 2);
    }
}
