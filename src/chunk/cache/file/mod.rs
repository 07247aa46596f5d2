//! One content in the cache: a sparse data file, every byte at its own offset, beside its index.
//!
//! What this type promises: a chunk counts as present only while its record stands; a record stands only over data that
//! was written before it; data under a standing record is never changed (writing there clears the record first). Methods
//! block on the disk unless they say that they do not.

mod change;
mod memory;
mod read;

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use super::bits::Bits;
use super::dir::CacheDir;
use super::disk::DiskFile;
use super::index::{Header, Record, Tag, record_offset};
use super::layout::Pair;
use super::{ContentKey, lock, read, write};
use crate::error::{Result, ResultExt};

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
    /// The data and its index.
    files: (DiskFile, DiskFile),
    /// The same in memory, since the disk failed. From then on `files` is not used any more.
    memory: OnceLock<(DiskFile, DiskFile)>,
    /// Bytes of memory that it takes.
    memory_bytes: AtomicU64,
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
    /// Whether the names of the two files are on the disk.
    named: AtomicBool,
    dirty: AtomicBool,
    /// Held while a chunk is taken from a content in use. Who says that none may go, or begins to write where one may just
    /// be going, waits for it.
    punching: Mutex<()>,
    passthrough: AtomicBool,
    verified: AtomicBool,
    unaccounted: AtomicU64,
    /// Where the search for chunks to punch goes on.
    hand: AtomicU64,
}

impl CacheFile {
    /// Takes over open files whose header is already right; reads the index.
    pub(super) fn load(key: ContentKey, dir: Arc<CacheDir>, pair: Pair, in_memory: bool) -> Result<Self> {
        let Pair { data, index, header } = pair;
        let data_ino = data.metadata().context(|| format!("cached {key}"))?.ino();
        // Another inode number: the pair was copied or restored. The checksums tell what can be kept.
        let moved = data_ino != header.data_ino;
        let (files, memory) = match in_memory {
            false => ((data, index), OnceLock::new()),
            true => {
                let none = || DiskFile::in_memory("hfmount-none").context(|| format!("cached {key}"));
                ((none()?, none()?), OnceLock::from((data, index)))
            }
        };
        let file = CacheFile {
            key,
            dir,
            files,
            memory,
            memory_bytes: AtomicU64::new(0),
            chunk_size: header.chunk_size,
            data_ino,
            header: Mutex::new(header),
            size: AtomicU64::new(header.size),
            bits: RwLock::new(Bits::new(header.size.div_ceil(u64::from(header.chunk_size)))),
            filled: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            named: AtomicBool::new(false),
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
        // Most contents have one chunk, and more zeros would cost more than all the rest of an open.
        let records = usize::try_from(record_offset(bits.len()) - record_offset(0)).unwrap_or(usize::MAX);
        let mut buf = vec![0; records.min(64 << 10)];
        let mut idx = 0;
        while idx < bits.len() {
            let n = self.index().read_full(&mut buf, record_offset(idx)).context(|| self.what())?;
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

    fn data_file(&self) -> &DiskFile {
        &self.memory.get().unwrap_or(&self.files).0
    }

    fn index(&self) -> &DiskFile {
        &self.memory.get().unwrap_or(&self.files).1
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
        self.data_file().file()
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
        let n = self.index().read_full(&mut raw, record_offset(idx)).context(|| self.what())?;
        Ok(if n == raw.len() { Record::decode(&raw, idx) } else { None })
    }

    /// Whether chunk `idx` is present, not suspect, and of this tag.
    pub fn has(&self, idx: u64, tag: &Tag) -> Result<bool> {
        Ok(self.presence(idx) == Presence::Present && self.record_of(idx)?.is_some_and(|r| r.tag == *tag))
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

    /// Says that the data file is given to the kernel: from now on, for good, it is only read or unlinked. `false`, and
    /// nothing is said: not all of it is there and known to be what its name says, or it is not on the disk.
    pub fn mark_passthrough(&self) -> Result<bool> {
        let first = {
            let _none_going = lock(&self.punching);
            if !self.is_verified() || !self.is_complete() || self.is_in_memory() {
                return Ok(false);
            }
            !self.passthrough.swap(true, Relaxed)
        };
        if first {
            self.update_header(|h| h.passthrough = true)?;
        }
        Ok(true)
    }

    /// The data file on the disk, for the kernel to read after [`CacheFile::mark_passthrough`]; whatever became of the disk.
    #[must_use]
    pub fn disk_data(&self) -> &File {
        self.files.0.file()
    }

    /// Whether the data file was ever given to the kernel.
    #[must_use]
    pub fn is_passthrough(&self) -> bool {
        self.passthrough.load(Relaxed)
    }

    /// Says that it holds data that is nowhere else: no chunk of it is given back until this is taken back; when this
    /// returns, none is about to go either. It lasts as long as somebody uses the content: who made it dirty holds on to it.
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
        self.data_file().sync().and_then(|()| self.index().sync()).context(|| self.what())
    }

    /// The data to the disk, and what it takes to find it there again. Records are not: after a power loss they may be older.
    pub fn sync_data(&self) -> Result<()> {
        self.data_file().sync().context(|| self.what())?;
        if !self.named.load(SeqCst) {
            let sync = || {
                self.index().sync()?;
                // The file's name, and that of its folder.
                let mut folders = self.files.0.path().ancestors().skip(1).take(2);
                folders.try_for_each(|dir| self.dir.disk().sync_dir(dir))
            };
            sync().context(|| self.what())?;
            self.named.store(true, SeqCst);
        }
        Ok(())
    }

    fn update_header(&self, change: impl FnOnce(&mut Header)) -> Result<()> {
        let mut header = lock(&self.header);
        change(&mut header);
        header.data_ino = self.data_ino;
        let index = self.index();
        index.write_all_at(&header.encode(), 0).and_then(|()| index.sync()).context(|| self.what())
    }

    /// Tells the directory how much of the disk this content takes.
    pub(super) fn account(&self) {
        self.unaccounted.store(0, Relaxed);
        let Ok(meta) = self.data_file().metadata() else { return };
        if self.is_in_memory() {
            let bytes = meta.blocks() * 512;
            self.dir.account_memory(self.memory_bytes.swap(bytes, SeqCst), bytes);
        } else {
            self.dir.account(self.key, meta.blocks() * 512 + record_offset(self.chunks()));
        }
    }
}

impl Drop for CacheFile {
    fn drop(&mut self) {
        self.dir.account_memory(self.memory_bytes.load(SeqCst), 0);
        self.dir.released(self.key);
    }
}
