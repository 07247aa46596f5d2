//! Changing a content: data first, then its record; the record goes before the data does.

use std::io::IoSlice;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use bytes::Bytes;

use super::super::index::{BLOB_TAG, Record, Tag, record_offset};
use super::super::{lock, read, write};
use super::{ACCOUNT_EVERY, CacheFile, Presence};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::source::Provider;

impl CacheFile {
    /// Writes at `offset`; records of the chunks touched are cleared first. [`Kind::NoSpace`] when the disk is full:
    /// [`CacheDir::make_room`] may help. [`Kind::TooLarge`] beyond the limit that the process or the disk has for a file.
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.write_all(offset, &mut [IoSlice::new(data)], data.len() as u64)
    }

    /// The same for bytes in several pieces, without joining them.
    pub fn write_pieces(&self, offset: u64, pieces: &[Bytes]) -> Result<()> {
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|p| IoSlice::new(p)).collect();
        self.write_all(offset, &mut slices, pieces.iter().map(|p| p.len() as u64).sum())
    }

    fn write_all(&self, offset: u64, slices: &mut [IoSlice<'_>], len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.dir.check_file_size(offset + len).context(|| self.what())?;
        let size = u64::from(self.chunk_size);
        {
            // What has no record is not punched, nor given to the kernel: from here on the bytes are safe.
            let _none_going = lock(&self.punching);
            if self.is_passthrough() && !self.is_in_memory() {
                return Err(Error::new(Kind::Busy, self.what()));
            }
            self.clear(offset / size, (offset + len).div_ceil(size))?;
        }
        self.check_memory(len)?;
        match self.data_file().write_pieces(slices, offset) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::EFBIG) => {
                return Err(Error::with_source(Kind::TooLarge, self.what(), e));
            }
            Err(e) => return Err(e).context(|| self.what()),
        }
        if self.unaccounted.fetch_add(len, Relaxed) + len >= ACCOUNT_EVERY || self.is_in_memory() {
            self.account();
        }
        Ok(())
    }

    /// Says that chunk `idx` now holds `len` bytes with this hash. The data must have been written before. `then` runs
    /// before the evictor may take the chunk: nobody reads it as his own any more who is told by it.
    pub fn record(&self, idx: u64, tag: &Tag, hash: &[u8; 32], len: u32, then: impl FnOnce()) -> Result<()> {
        let (epoch, from) = (self.dir.epochs().current(), Provider::Unknown);
        let record = Record { tag: *tag, hash: *hash, len, epoch, stored: false, from };
        let _none_going = lock(&self.punching);
        self.put_record(idx, &record, None)?;
        then();
        Ok(())
    }

    /// The same for a blob's chunk that came from `from` and was written while [`CacheFile::is_in_memory`] said `in_memory`;
    /// `stored`: the bucket has it. [`Kind::Unavailable`] if the content has left the disk since: its data is not here.
    pub fn record_poured(
        &self,
        idx: u64,
        hash: &[u8; 32],
        len: u32,
        stored: bool,
        from: Provider,
        in_memory: bool,
    ) -> Result<()> {
        let epoch = self.dir.epochs().current();
        let record = Record { tag: BLOB_TAG, hash: *hash, len, epoch, stored, from };
        self.put_record(idx, &record, Some(in_memory))
    }

    /// Notes that the bucket has chunk `idx`, if it is still recorded with this hash.
    pub fn set_stored(&self, idx: u64, hash: &[u8; 32]) -> Result<()> {
        match self.record_of(idx)? {
            Some(r) if r.hash == *hash && !r.stored && self.presence(idx) == Presence::Present => {
                self.put_record(idx, &Record { stored: true, ..r }, Some(self.is_in_memory()))
            }
            _ => Ok(()),
        }
    }

    fn put_record(&self, idx: u64, record: &Record, in_memory: Option<bool>) -> Result<()> {
        if idx >= self.chunks() {
            return Err(Error::new(Kind::Invalid, format!("{} has no chunk {idx}", self.what())));
        }
        let ended = read(&self.dir.ended);
        if *ended {
            return Err(Error::new(Kind::Unavailable, "the cache directory is closed"));
        }
        let order = lock(&self.header);
        if in_memory.is_some_and(|then| then != self.is_in_memory()) {
            return Err(Error::with_source(Kind::Unavailable, self.what(), "the disk failed meanwhile"));
        }
        let old = self.record_of(idx)?.map_or(0, |r| u64::from(r.len));
        self.index().write_all_at(&record.encode(idx), record_offset(idx)).context(|| self.what())?;
        self.filled.fetch_add(u64::from(record.len), Relaxed);
        self.filled.fetch_sub(old, Relaxed);
        read(&self.bits).set(idx, false);
        drop((order, ended));
        self.account();
        Ok(())
    }

    /// Drops the records of `first..end`. When this returns, no crash brings them back.
    pub fn clear(&self, first: u64, end: u64) -> Result<()> {
        if self.next_recorded(first, end).is_none() {
            return Ok(());
        }
        let _order = lock(&self.header);
        let mut old_epoch = false;
        let mut from = first;
        while let Some(idx) = self.next_recorded(from, end) {
            if let Some(r) = self.record_of(idx)? {
                old_epoch |= r.epoch != self.dir.epochs().current();
                self.filled.fetch_sub(u64::from(r.len), Relaxed);
            }
            read(&self.bits).clear(idx);
            self.changes.fetch_add(1, SeqCst);
            self.index().write_all_at(&[0; 64], record_offset(idx)).context(|| self.what())?;
            from = idx + 1;
        }
        // Records of this run would be suspect after a crash anyway; those of earlier ones would be believed.
        if old_epoch {
            self.index().sync().context(|| self.what())?;
        }
        Ok(())
    }

    /// Takes chunk `idx` out of the evictor's reach: drops its record, and says whether its bytes are there. If so they
    /// stay while the content is in use.
    pub fn take(&self, idx: u64) -> Result<bool> {
        let _none_going = lock(&self.punching);
        let present = self.presence(idx) == Presence::Present;
        self.clear(idx, idx + 1)?;
        Ok(present)
    }

    /// Decides about a suspect chunk by reading it: `true` if it is now present.
    pub fn verify(&self, idx: u64) -> Result<bool> {
        match self.presence(idx) {
            Presence::Absent => return Ok(false),
            Presence::Present => return Ok(true),
            Presence::Suspect => {}
        }
        let good = match self.record_of(idx)? {
            Some(record) if self.hash_of(idx, record.len)? == Some(record.hash) => {
                let record = Record { epoch: self.dir.epochs().current(), ..record };
                self.put_record(idx, &record, None)?;
                true
            }
            _ => {
                self.clear(idx, idx + 1)?;
                false
            }
        };
        self.dir.count_verified(good);
        Ok(good)
    }

    /// Changes the content's size. Shorter: the chunks beyond the new end, and the one that it cuts, are dropped. Longer:
    /// what is new reads as zeros and is absent; a last chunk that was short keeps its record and its length.
    pub fn set_size(&self, size: u64) -> Result<()> {
        let old = self.size();
        if size == old {
            return Ok(());
        }
        if self.passthrough.load(Relaxed) {
            return Err(Error::new(Kind::Busy, self.what()));
        }
        self.dir.check_file_size(size).context(|| self.what())?;
        self.clear(size / u64::from(self.chunk_size), self.chunks())?;
        self.changes.fetch_add(1, SeqCst);
        self.data_file().set_len(size).context(|| self.what())?;
        self.size.store(size, SeqCst);
        write(&self.bits).resize(size.div_ceil(u64::from(self.chunk_size)));
        self.update_header(|h| h.size = size)?;
        self.account();
        Ok(())
    }

    /// Forgets all chunks and gives their space back.
    pub fn clear_all(&self) -> Result<()> {
        self.set_verified(false)?;
        self.clear(0, self.chunks())?;
        if !self.passthrough.load(Relaxed) {
            self.punch(0, self.size())?;
        }
        self.account();
        Ok(())
    }

    /// Gives back the space of chunks that were not read for long, about `bytes` of it, while the content stays in use.
    /// Returns how many were given back.
    pub(in crate::chunk::cache) fn punch_some(&self, bytes: u64) -> Result<u64> {
        let chunks = self.chunks();
        if chunks == 0 || self.is_dirty() || self.is_passthrough() {
            return Ok(0);
        }
        let mut freed = 0;
        let mut hand = self.hand.load(Relaxed) % chunks;
        // Twice around: the first time a chunk that was read since is only marked as not read.
        for _ in 0..2 * chunks {
            if freed >= bytes {
                break;
            }
            let idx = hand;
            hand = (hand + 1) % chunks;
            if self.presence(idx) == Presence::Absent || read(&self.bits).take_used(idx) {
                continue;
            }
            self.dir.leaving(&self.key, Some(idx..idx + 1));
            let _going = lock(&self.punching);
            if self.is_dirty() || self.is_passthrough() {
                break;
            }
            // A writer was faster.
            if self.presence(idx) == Presence::Absent {
                continue;
            }
            self.clear(idx, idx + 1)?;
            let len = self.chunk_len(idx);
            self.punch(idx * u64::from(self.chunk_size), u64::from(len))?;
            freed += u64::from(len);
        }
        self.hand.store(hand, Relaxed);
        self.account();
        Ok(freed)
    }

    /// Drops the records of `first..end` and gives the space back. Nobody else may be writing there.
    pub fn give_back(&self, first: u64, end: u64) -> Result<()> {
        if first >= end {
            return Ok(());
        }
        self.clear(first, end)?;
        let size = u64::from(self.chunk_size);
        if !self.passthrough.load(Relaxed) {
            self.punch(first * size, (end - first) * size)?;
        }
        self.account();
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        self.data_file().punch(offset, len).context(|| self.what())
    }
}
