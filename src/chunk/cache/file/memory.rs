//! When the disk fails under an open content: memory stands in for it. Once, and for as long as the content is in use.

use std::ops::Range;
use std::sync::atomic::Ordering::SeqCst;

use super::super::layout::{Pair, pair_in_memory};
use super::super::{lock, write};
use super::CacheFile;
use crate::error::{Error, Kind, Result, ResultExt};

/// Bytes that are carried over at a time.
const PIECE: u64 = 256 << 10;

impl CacheFile {
    /// Whether its disk has failed, and its bytes are in memory.
    #[must_use]
    pub fn is_in_memory(&self) -> bool {
        self.memory.get().is_some()
    }

    /// Leaves the disk: from here on the content is in memory, with the bytes of `keep` as far as they can still be read and
    /// there is room, and without any record. `switched` is called with those that are lost, just before reads and writes go to
    /// the one instead of the other. `false`: it was in memory already.
    ///
    /// The caller sees to it that nobody writes meanwhile what is to be kept.
    pub fn go_to_memory(&self, keep: &[Range<u64>], switched: impl FnOnce(&[Range<u64>])) -> Result<bool> {
        let order = lock(&self.header);
        if self.is_in_memory() {
            return Ok(false);
        }
        let pair = pair_in_memory("hfmount-cache", self.size(), self.chunk_size);
        let Pair { data, index, .. } = pair.context(|| format!("{} in memory", self.what()))?;
        let mut lost = Vec::new();
        let mut buf = vec![0; PIECE as usize];
        for range in keep {
            let mut at = range.start;
            while at < range.end {
                let end = range.end.min(at + PIECE);
                let piece = &mut buf[..(end - at) as usize];
                let read = self.files.0.read_full(piece, at);
                let whole = read.is_ok_and(|n| n == piece.len());
                if !(whole
                    && self.dir.has_memory(at - range.start + piece.len() as u64)
                    && data.write_all_at(piece, at).is_ok())
                {
                    lost.push(at..end);
                }
                at = end;
            }
        }
        // Before the switch: who sees the old state and then the new place notices that the place is another.
        switched(&lost);
        {
            let mut bits = write(&self.bits);
            // Who read from the one and asks what is there in the other looks again.
            self.changes.fetch_add(1, SeqCst);
            let chunks = bits.len();
            bits.resize(0);
            bits.resize(chunks);
            self.filled.store(0, SeqCst);
            self.verified.store(false, SeqCst);
            let _first = self.memory.set((data, index));
            self.changes.fetch_add(1, SeqCst);
        }
        drop(order);
        self.account();
        Ok(true)
    }

    /// [`Kind::NoSpace`] if it is in memory and there is no more of that.
    pub(super) fn check_memory(&self, bytes: u64) -> Result<()> {
        match !self.is_in_memory() || self.dir.has_memory(bytes) {
            true => Ok(()),
            false => Err(Error::new(Kind::NoSpace, format!("{} in memory", self.what()))),
        }
    }
}
