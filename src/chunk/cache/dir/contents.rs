//! The contents of a cache directory: opening, finding and unlinking them. One gate for some of them each keeps that apart.

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use rustix::process::{Resource, getrlimit};

use super::{CacheDir, Entry, now};
use crate::chunk::cache::file::CacheFile;
use crate::chunk::cache::layout::{Pair, index_path, make_index, make_pair, open_pair, pair_in_memory};
use crate::chunk::cache::{ContentKey, lock};
use crate::error::{Error, Kind, Result, ResultExt};

/// How many contents can be opened or unlinked at once.
pub(super) const GATES: usize = 64;

impl CacheDir {
    /// Opens a content, made if there is none, for holding `size` bytes in chunks of `chunk_size`. While somebody uses it
    /// everybody gets the same one, whatever size they ask for. Otherwise a blob whose files say another size, and any
    /// content of another chunk size, starts empty; a file keeps what it has and gets the size.
    ///
    /// [`Kind::TooLarge`] when the process or the disk allows no file of that size.
    pub fn open_content(
        self: &Arc<Self>,
        key: ContentKey,
        size: u64,
        chunk_size: u32,
    ) -> Result<Arc<CacheFile>> {
        self.open_in(key, size, chunk_size, false)
    }

    /// The same in memory, for a content that the disk has no room for, as far as nobody uses it yet. What the disk has of it
    /// is not looked at, and not removed.
    pub fn open_in_memory(
        self: &Arc<Self>,
        key: ContentKey,
        size: u64,
        chunk_size: u32,
    ) -> Result<Arc<CacheFile>> {
        self.open_in(key, size, chunk_size, true)
    }

    /// Opens a content on the disk or, if that has no room even for an empty one and nothing can be evicted, in memory: for who
    /// reads, which never fails for a full disk.
    pub fn open_or_memory(
        self: &Arc<Self>,
        key: ContentKey,
        size: u64,
        chunk_size: u32,
    ) -> Result<Arc<CacheFile>> {
        let full = |e: &Error| e.kind() == Kind::NoSpace;
        match self.open_content(key, size, chunk_size) {
            Err(e) if full(&e) && self.make_room(u64::from(chunk_size)) => {}
            Err(e) if full(&e) => return self.open_in_memory(key, size, chunk_size),
            opened => return opened,
        }
        match self.open_content(key, size, chunk_size) {
            Err(e) if full(&e) => self.open_in_memory(key, size, chunk_size),
            opened => opened,
        }
    }

    fn open_in(
        self: &Arc<Self>,
        key: ContentKey,
        size: u64,
        chunk_size: u32,
        memory: bool,
    ) -> Result<Arc<CacheFile>> {
        let _gate = lock(self.gate(&key));
        if let Some(file) = self.in_use(&key) {
            return Ok(file);
        }
        self.check_file_size(size).context(|| format!("cached {key}"))?;
        let path = self.root.join(key.path());
        let on_disk = match self.aside() {
            None if !memory => {
                Some(self.open_files(&key, &path, size, chunk_size).context(|| path.display().to_string()))
            }
            _ => None,
        };
        let (pair, in_memory) = match on_disk {
            Some(Ok(pair)) => (pair, false),
            Some(Err(e)) if self.aside().is_none() => return Err(e),
            _ => {
                let pair = pair_in_memory("hfmount-cache", size, chunk_size);
                (pair.context(|| format!("cached {key} in memory"))?, true)
            }
        };
        let mut file = CacheFile::load(key, self.clone(), pair, in_memory)?;
        // Programs may map it still, so what it lacks can be written to another file only.
        if file.is_passthrough() && file.next_absent(0, file.chunks()).is_some() {
            let pair =
                make_pair(&self.disk, &path, size, chunk_size).context(|| path.display().to_string())?;
            let lost = std::mem::replace(&mut file, CacheFile::load(key, self.clone(), pair, false)?);
            drop(lost);
        }
        let file = Arc::new(file);
        let now = now();
        lock(&self.table)
            .entry(key)
            .and_modify(|e| {
                e.open = Arc::downgrade(&file);
                e.last_used = now;
            })
            .or_insert_with(|| Entry {
                bytes: 0,
                last_used: now,
                born: now,
                stamped: now,
                open: Arc::downgrade(&file),
            });
        file.account();
        if file.size() != size {
            file.set_size(size)?;
        }
        Ok(file)
    }

    fn open_files(&self, key: &ContentKey, path: &Path, size: u64, chunk_size: u32) -> std::io::Result<Pair> {
        if let Some(pair) = open_pair(&self.disk, path, key, size, chunk_size)? {
            return Ok(pair);
        }
        // The index can be had again; the bytes under it may be nowhere else.
        if self.journal.has_bytes(key) {
            return make_index(&self.disk, path, size, chunk_size);
        }
        make_pair(&self.disk, path, size, chunk_size)
    }

    /// The content, if somebody uses it now. No I/O.
    #[must_use]
    pub fn in_use(&self, key: &ContentKey) -> Option<Arc<CacheFile>> {
        lock(&self.table).get(key).and_then(|e| e.open.upgrade())
    }

    /// Whether the directory has anything of this content. No I/O. May say no in the first moments, while the directory
    /// is being read.
    #[must_use]
    pub fn knows(&self, key: &ContentKey) -> bool {
        lock(&self.table).contains_key(key)
    }

    /// Bytes that the content takes on the disk, if the directory has it. No I/O.
    #[must_use]
    pub fn bytes_of(&self, key: &ContentKey) -> Option<u64> {
        lock(&self.table).get(key).map(|e| e.bytes)
    }

    /// Unlinks a content. Who uses it keeps it until he lets go; who opens it next starts empty.
    pub fn remove(&self, key: &ContentKey) -> Result<()> {
        let _gate = lock(self.gate(key));
        self.unlink(key).map(|_| ())
    }

    /// Unlinks a content unless somebody uses it, or only it has what it holds. Whether it is gone.
    pub fn remove_idle(&self, key: &ContentKey) -> Result<bool> {
        self.evict(key).map(|bytes| bytes.is_some())
    }

    /// Unlinks a content that nobody uses; `None` if somebody does.
    pub(in super::super) fn evict(&self, key: &ContentKey) -> Result<Option<u64>> {
        let _gate = lock(self.gate(key));
        if self.in_use(key).is_some() || self.journal.protects(key) {
            return Ok(None);
        }
        self.unlink(key).map(Some)
    }

    pub(super) fn unlink(&self, key: &ContentKey) -> Result<u64> {
        let path = self.root.join(key.path());
        // The index first: data without an index is nothing, an index without its data would be a lie.
        for path in [index_path(&path), path] {
            if self.aside().is_some() {
                break;
            }
            match self.disk.remove(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).context(|| path.display().to_string());
                }
                _ => {}
            }
        }
        let bytes = lock(&self.table).remove(key).map_or(0, |e| e.bytes);
        self.used.fetch_sub(bytes, Relaxed);
        Ok(bytes)
    }

    /// A larger write would not only fail: the kernel would send the process SIGXFSZ.
    pub(in super::super) fn check_file_size(&self, size: u64) -> Result<()> {
        match getrlimit(Resource::Fsize).current {
            Some(limit) if size > limit => Err(Error::new(
                Kind::TooLarge,
                format!("{size} bytes; this process may write files of {limit} bytes (ulimit -f)"),
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn gate(&self, key: &ContentKey) -> &Mutex<()> {
        &self.gates[Self::gate_number(key)]
    }

    pub(super) fn gate_number(key: &ContentKey) -> usize {
        let n = match key {
            ContentKey::Blob(crate::types::BlobId::Sha256(b)) => usize::from(b[1]),
            ContentKey::Blob(crate::types::BlobId::Git(b)) => usize::from(b[1]),
            ContentKey::File(ino) => ino.0 as usize,
        };
        n % GATES
    }
}
