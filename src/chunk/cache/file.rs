//! One content in the cache: a sparse data file, every byte at its own offset, beside its index.
//!
//! What this type promises: a chunk counts as present only while its record stands; a record stands only over data that
//! was written before it; data under a standing record is never changed (writing there clears the record first). Methods
//! block on the disk unless they say that they do not.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, RwLock};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev};

use super::bits::Bits;
use super::dir::CacheDir;
use super::index::{Header, Record, Tag, record_offset};
use super::{ContentKey, lock, read, write};
use crate::error::{Error, Kind, Result, ResultExt};

/// Bytes written before the disk usage is asked for again.
const ACCOUNT_EVERY: u64 = 1 << 20;

/// What is known of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Absent,
    Present,
    /// Recorded by a run that did not stop cleanly: [`CacheFile::verify`] decides before it is used.
    Suspect,
}

/// An open content. Shared: [`CacheDir::open_content`] gives everybody the same one while it is in use, and it is not
/// evicted before the last holder lets go.
#[derive(Debug)]
pub struct CacheFile {
    key: ContentKey,
    dir: Arc<CacheDir>,
    data: File,
    index: File,
    chunk_size: u32,
    data_ino: u64,
    /// The header as last written, and the order of changes to records.
    header: Mutex<Header>,
    size: AtomicU64,
    bits: RwLock<Bits>,
    /// Sum of the lengths of the present chunks, bytes.
    filled: AtomicU64,
    /// Raised when a record was cleared, before the data under it changes: a reader that raced with it looks again.
    changes: AtomicU64,
    dirty: AtomicBool,
    /// Held while a chunk is taken from a content in use, and while it is said to be dirty: no chunk goes once that is
    /// said.
    punching: Mutex<()>,
    passthrough: AtomicBool,
    verified: AtomicBool,
    unaccounted: AtomicU64,
    /// Where the search for chunks to punch goes on.
    hand: AtomicU64,
}

impl CacheFile {
    /// Takes over open files whose header is already right; reads the index.
    pub(super) fn load(
        key: ContentKey,
        dir: Arc<CacheDir>,
        data: File,
        index: File,
        header: Header,
    ) -> Result<Self> {
        let data_ino = data.metadata().context(|| format!("cached {key}"))?.ino();
        // Another inode number: the pair was copied or restored. The checksums tell what can be kept.
        let moved = data_ino != header.data_ino;
        let file = CacheFile {
            key,
            dir,
            data,
            index,
            chunk_size: header.chunk_size,
            data_ino,
            header: Mutex::new(header),
            size: AtomicU64::new(header.size),
            bits: RwLock::new(Bits::new(header.size.div_ceil(u64::from(header.chunk_size)))),
            filled: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            dirty: AtomicBool::new(false),
            punching: Mutex::new(()),
            passthrough: AtomicBool::new(header.passthrough),
            verified: AtomicBool::new(header.verified),
            unaccounted: AtomicU64::new(0),
            hand: AtomicU64::new(0),
        };
        file.load_bits(moved)?;
        Ok(file)
    }

    fn load_bits(&self, all_suspect: bool) -> Result<()> {
        let bits = write(&self.bits);
        let mut buf = vec![0; 64 << 10];
        let mut idx = 0;
        while idx < bits.len() {
            let n = read_full(&self.index, &mut buf, record_offset(idx)).context(|| self.what())?;
            for raw in buf[..n].as_chunks::<64>().0 {
                if idx < bits.len()
                    && let Some(r) = Record::decode(raw, idx)
                {
                    bits.set(idx, all_suspect || self.dir.epochs().is_suspect(r.epoch));
                    self.filled.fetch_add(u64::from(r.len), Relaxed);
                }
                idx += 1;
            }
            if n < buf.len() {
                break;
            }
        }
        Ok(())
    }

    fn what(&self) -> String {
        format!("cached {}", self.key)
    }

    /// What it holds.
    #[must_use]
    pub fn key(&self) -> ContentKey {
        self.key
    }

    /// The directory it lies in.
    #[must_use]
    pub fn dir(&self) -> &Arc<CacheDir> {
        &self.dir
    }

    /// Bytes of a chunk.
    #[must_use]
    pub fn chunk_size(&self) -> u32 {
        self.chunk_size
    }

    /// Bytes of the content.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size.load(Relaxed)
    }

    /// Number of chunks, the last of which may be short.
    #[must_use]
    pub fn chunks(&self) -> u64 {
        self.size().div_ceil(u64::from(self.chunk_size))
    }

    /// Bytes that chunk `idx` has: the chunk size, less for the last one, 0 beyond the end.
    #[must_use]
    pub fn chunk_len(&self, idx: u64) -> u32 {
        let start = idx.saturating_mul(u64::from(self.chunk_size));
        let len = self.size().saturating_sub(start).min(u64::from(self.chunk_size));
        u32::try_from(len).unwrap_or(self.chunk_size)
    }

    /// Bytes of present chunks: what `st_blocks` should tell.
    #[must_use]
    pub fn filled_bytes(&self) -> u64 {
        self.filled.load(Relaxed)
    }

    /// The data file, for handing it to the kernel. Readers only: nobody else writes to it.
    #[must_use]
    pub fn data(&self) -> &File {
        &self.data
    }

    /// What is known of chunk `idx`. No I/O.
    #[must_use]
    pub fn presence(&self, idx: u64) -> Presence {
        read(&self.bits).get(idx)
    }

    /// Whether every chunk is present and none is suspect. No I/O.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        read(&self.bits).is_full()
    }

    /// The first absent chunk in `from..to`. No I/O.
    #[must_use]
    pub fn next_absent(&self, from: u64, to: u64) -> Option<u64> {
        read(&self.bits).next_absent(from, to)
    }

    /// The first recorded chunk (present or suspect) in `from..to`. No I/O.
    #[must_use]
    pub fn next_recorded(&self, from: u64, to: u64) -> Option<u64> {
        read(&self.bits).next_recorded(from, to)
    }

    /// The record of chunk `idx`, if it has one.
    pub fn record_of(&self, idx: u64) -> Result<Option<Record>> {
        if self.presence(idx) == Presence::Absent {
            return Ok(None);
        }
        let mut raw = [0; 64];
        let n = read_full(&self.index, &mut raw, record_offset(idx)).context(|| self.what())?;
        Ok(if n == raw.len() { Record::decode(&raw, idx) } else { None })
    }

    /// Whether chunk `idx` is present, not suspect, and of this tag.
    pub fn has(&self, idx: u64, tag: &Tag) -> Result<bool> {
        Ok(self.presence(idx) == Presence::Present && self.record_of(idx)?.is_some_and(|r| r.tag == *tag))
    }

    /// Reads at `offset` if all of it is present and in memory; never waits for the disk. `None`: ask elsewhere. Fewer
    /// bytes than asked for only at the content's end.
    #[must_use]
    pub fn try_read(&self, offset: u64, buf: &mut [u8]) -> Option<usize> {
        let want = self.clip(offset, buf.len());
        let changes = self.changes.load(SeqCst);
        self.all_present(offset, want).then_some(())?;
        let n = self.try_read_raw(offset, &mut buf[..want])?;
        (n == want && self.changes.load(SeqCst) == changes).then_some(n)
    }

    /// Reads at `offset` if all of it is present. `None`: some of it is not (any more).
    pub fn read_present(&self, offset: u64, buf: &mut [u8]) -> Result<Option<usize>> {
        let want = self.clip(offset, buf.len());
        loop {
            let changes = self.changes.load(SeqCst);
            if !self.all_present(offset, want) {
                return Ok(None);
            }
            let n = self.read_at(offset, &mut buf[..want])?;
            if n < want {
                // Somebody else cut the data file. What is not there cannot be present.
                let size = u64::from(self.chunk_size);
                self.clear(offset / size, (offset + want as u64).div_ceil(size))?;
                return Ok(None);
            }
            if self.changes.load(SeqCst) == changes {
                return Ok(Some(n));
            }
        }
    }

    /// Like [`CacheFile::try_read`] without asking what is present: for who keeps book of that himself.
    #[must_use]
    pub fn try_read_raw(&self, offset: u64, buf: &mut [u8]) -> Option<usize> {
        if buf.is_empty() {
            return Some(0);
        }
        let want = buf.len();
        let n = preadv2(&self.data, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT).ok()?;
        // A short read may be the end of the file or the end of what is in memory: the slow way finds out.
        (n == want).then_some(n)
    }

    /// Reads the data file, present or not. Fewer bytes than asked for only at its end.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        read_full(&self.data, buf, offset).context(|| self.what())
    }

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

    fn write_all(&self, offset: u64, mut slices: &mut [IoSlice<'_>], len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        if self.passthrough.load(Relaxed) {
            return Err(Error::new(Kind::Busy, self.what()));
        }
        self.dir.check_file_size(offset + len).context(|| self.what())?;
        let size = u64::from(self.chunk_size);
        {
            // What has no record is not punched: from here on the bytes are safe.
            let _none_going = lock(&self.punching);
            self.clear(offset / size, (offset + len).div_ceil(size))?;
        }
        self.changes.fetch_add(1, SeqCst);
        let mut at = offset;
        while !slices.is_empty() {
            let n = match pwritev(&self.data, &slices[..slices.len().min(1024)], at) {
                Ok(0) => return Err(Error::new(Kind::Disk, self.what())),
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(Errno::FBIG) => return Err(Error::with_source(Kind::TooLarge, self.what(), Errno::FBIG)),
                Err(e) => return Err(std::io::Error::from(e)).context(|| self.what()),
            };
            at += n as u64;
            IoSlice::advance_slices(&mut slices, n);
        }
        if self.unaccounted.fetch_add(len, Relaxed) + len >= ACCOUNT_EVERY {
            self.account();
        }
        Ok(())
    }

    /// Says that chunk `idx` now holds `len` bytes with this hash. The data must have been written before.
    pub fn record(&self, idx: u64, tag: &Tag, hash: &[u8; 32], len: u32) -> Result<()> {
        let epoch = self.dir.epochs().current();
        self.put_record(idx, &Record { tag: *tag, hash: *hash, len, epoch, stored: false })
    }

    /// The same for a chunk that came from the bucket.
    pub fn record_stored(&self, idx: u64, tag: &Tag, hash: &[u8; 32], len: u32) -> Result<()> {
        let epoch = self.dir.epochs().current();
        self.put_record(idx, &Record { tag: *tag, hash: *hash, len, epoch, stored: true })
    }

    /// Notes that the bucket has chunk `idx`, if it is still recorded with this hash.
    pub fn set_stored(&self, idx: u64, hash: &[u8; 32]) -> Result<()> {
        match self.record_of(idx)? {
            Some(r) if r.hash == *hash && !r.stored && self.presence(idx) == Presence::Present => {
                self.put_record(idx, &Record { stored: true, ..r })
            }
            _ => Ok(()),
        }
    }

    fn put_record(&self, idx: u64, record: &Record) -> Result<()> {
        if idx >= self.chunks() {
            return Err(Error::new(Kind::Invalid, format!("{} has no chunk {idx}", self.what())));
        }
        let ended = read(&self.dir.ended);
        if *ended {
            return Err(Error::new(Kind::Unavailable, "the cache directory is closed"));
        }
        let order = lock(&self.header);
        let old = self.record_of(idx)?.map_or(0, |r| u64::from(r.len));
        self.index.write_all_at(&record.encode(idx), record_offset(idx)).context(|| self.what())?;
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
            self.index.write_all_at(&[0; 64], record_offset(idx)).context(|| self.what())?;
            from = idx + 1;
        }
        // Records of this run would be suspect after a crash anyway; those of earlier ones would be believed.
        if old_epoch {
            self.index.sync_data().context(|| self.what())?;
        }
        Ok(())
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
                self.put_record(idx, &record)?;
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

    /// BLAKE3 of the first `len` bytes of chunk `idx` as they are on the disk; `None` if the file is too short.
    pub fn hash_of(&self, idx: u64, len: u32) -> Result<Option<[u8; 32]>> {
        let mut hasher = blake3::Hasher::new();
        let whole = self.scan(idx, len, |piece| {
            hasher.update(piece);
        })?;
        Ok(whole.then(|| hasher.finalize().into()))
    }

    /// Shows a present chunk in pieces. `false`: it is not present, or went meanwhile; what was shown is worthless then.
    pub fn scan_present(&self, idx: u64, see: impl FnMut(&[u8])) -> Result<bool> {
        let changes = self.changes.load(SeqCst);
        let there = self.presence(idx) == Presence::Present && self.scan(idx, self.chunk_len(idx), see)?;
        Ok(there && (self.changes.load(SeqCst) == changes || self.presence(idx) == Presence::Present))
    }

    /// Shows the first `len` bytes of chunk `idx` in pieces of at most 256 KiB; `false` if the file ends before.
    pub fn scan(&self, idx: u64, len: u32, mut see: impl FnMut(&[u8])) -> Result<bool> {
        let start = idx * u64::from(self.chunk_size);
        let mut buf = vec![0; (256 << 10).min(len as usize)];
        let mut done = 0;
        while done < len {
            let want = buf.len().min((len - done) as usize);
            let n = self.read_at(start + u64::from(done), &mut buf[..want])?;
            see(&buf[..n]);
            if n < want {
                return Ok(false);
            }
            done += n as u32;
        }
        Ok(true)
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
        self.data.set_len(size).context(|| self.what())?;
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

    /// Whether the hashes in the records are known to belong to the whole, checked content. Kept over restarts.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.verified.load(Relaxed)
    }

    /// Sets what [`CacheFile::is_verified`] tells.
    pub fn set_verified(&self, verified: bool) -> Result<()> {
        if self.verified.swap(verified, Relaxed) != verified {
            self.update_header(|h| h.verified = verified)?;
        }
        Ok(())
    }

    /// Says that the data file is given to the kernel: from now on, for good, it is only read or unlinked.
    pub fn mark_passthrough(&self) -> Result<()> {
        if !self.passthrough.swap(true, Relaxed) {
            self.update_header(|h| h.passthrough = true)?;
        }
        Ok(())
    }

    /// Whether the data file was ever given to the kernel.
    #[must_use]
    pub fn is_passthrough(&self) -> bool {
        self.passthrough.load(Relaxed)
    }

    /// Holds data that is nowhere else: nothing of it is evicted, in use or not, until this is taken back. When this
    /// returns, no chunk is about to go either.
    pub fn set_dirty(&self, dirty: bool) {
        let _none_going = lock(&self.punching);
        self.dirty.store(dirty, Relaxed);
    }

    /// What [`CacheFile::set_dirty`] said.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.dirty.load(Relaxed)
    }

    /// Data and index to the disk.
    pub fn sync(&self) -> Result<()> {
        self.data.sync_data().and_then(|()| self.index.sync_data()).context(|| self.what())
    }

    fn update_header(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let mut header = lock(&self.header);
        change(&mut header);
        header.data_ino = self.data_ino;
        self.index.write_all_at(&header.encode(), 0).context(|| self.what())?;
        self.index.sync_data().context(|| self.what())
    }

    /// Gives back the space of chunks that were not read for long, about `bytes` of it, while the content stays in use.
    /// Returns how many were given back.
    pub(super) fn punch_some(&self, bytes: u64) -> Result<u64> {
        let chunks = self.chunks();
        if chunks == 0 || self.is_dirty() || self.is_passthrough() {
            return Ok(0);
        }
        let mut freed = 0;
        let mut hand = self.hand.load(Relaxed) % chunks;
        // Twice around: the first time a chunk that was read since is only marked as not read.
        for _ in 0..2 * chunks {
            if freed >= bytes || self.is_passthrough() {
                break;
            }
            let idx = hand;
            hand = (hand + 1) % chunks;
            if self.presence(idx) == Presence::Absent || read(&self.bits).take_used(idx) {
                continue;
            }
            let _going = lock(&self.punching);
            if self.is_dirty() {
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

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.data, flags, offset, len) {
            // A disk that cannot do it keeps the space until the content goes; nothing is wrong with the data.
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(e) => Err(std::io::Error::from(e)).context(|| self.what()),
        }
    }

    /// Tells the directory how much of the disk this content takes.
    pub(super) fn account(&self) {
        self.unaccounted.store(0, Relaxed);
        if let Ok(meta) = self.data.metadata() {
            self.dir.account(self.key, meta.blocks() * 512 + record_offset(self.chunks()));
        }
    }

    fn clip(&self, offset: u64, len: usize) -> usize {
        len.min(usize::try_from(self.size().saturating_sub(offset)).unwrap_or(usize::MAX))
    }

    fn all_present(&self, offset: u64, len: usize) -> bool {
        if len == 0 {
            return true;
        }
        let size = u64::from(self.chunk_size);
        let bits = read(&self.bits);
        (offset / size..(offset + len as u64).div_ceil(size)).all(|idx| bits.use_if_present(idx))
    }
}

impl Drop for CacheFile {
    fn drop(&mut self) {
        self.dir.released(self.key);
    }
}

/// Reads until the buffer is full or the file ends.
fn read_full(file: &File, buf: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
