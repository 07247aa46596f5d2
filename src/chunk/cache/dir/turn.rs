//! The bytes of a file become those of the blob that they are: the same data file under another name, with another index. No
//! byte is copied. A file's chunks and a blob's lie at the same places, and their records hold the same hashes.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, MutexGuard, Weak};

use super::{CacheDir, Entry, now};
use crate::chunk::cache::disk::DiskFile;
use crate::chunk::cache::file::CacheFile;
use crate::chunk::cache::index::{BLOB_TAG, Header, RECORD_LEN, Record, record_offset};
use crate::chunk::cache::layout::{index_path, make, open_pair};
use crate::chunk::cache::{ContentKey, lock, read};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::source::Provider;
use crate::types::{BlobId, Ino};

/// Records that are read or written at once.
const AT_ONCE: u64 = 1024;

/// Of the records of a file's chunks, in their order: who saw the same twice saw the same bytes.
#[derive(Clone, Debug, Default)]
pub struct Seen(blake3::Hasher);

impl Seen {
    /// The next record.
    pub fn add(&mut self, record: &Record) {
        self.0.update(&record.tag).update(&record.hash).update(&record.len.to_le_bytes());
    }

    /// What stands for all of them.
    #[must_use]
    pub fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

impl CacheDir {
    /// Makes what is here of the file `ino` the content of `blob`, complete and verified: all of its `size` bytes were found to
    /// be what the blob's name says, when its records were those that `seen` stands for. If the blob is here already the
    /// file's bytes are let go of.
    ///
    /// `false`, and nothing is changed: somebody uses one of the two, or the file's records are others by now.
    pub fn turn(
        self: &Arc<Self>,
        ino: Ino,
        blob: BlobId,
        size: u64,
        chunk_size: u32,
        seen: &[u8; 32],
    ) -> Result<bool> {
        let (file, blob) = (ContentKey::File(ino), ContentKey::Blob(blob));
        if self.aside().is_some() {
            return Ok(false);
        }
        let ended = read(&self.ended);
        if *ended {
            return Ok(false);
        }
        let _gates = self.both_gates(&file, &blob);
        if self.in_use(&file).is_some() || self.journal.protects(&file) {
            return Ok(false);
        }
        if self.is_whole(&blob, size, chunk_size)? {
            if self.knows(&file) {
                self.unlink(&file)?;
            }
            return Ok(true);
        }
        if self.in_use(&blob).is_some() {
            return Ok(false);
        }
        let path = self.root.join(file.path());
        let pair = open_pair(&self.disk, &path, &file, size, chunk_size);
        let Some(pair) = pair.context(|| path.display().to_string())? else { return Ok(false) };
        if records_of(&pair.index, size, chunk_size)? != Some(*seen) {
            return Ok(false);
        }
        // In whole chunks until now. The kernel is to find the blob's end where it is.
        pair.data.set_len(size).context(|| path.display().to_string())?;
        self.unlink(&blob)?;
        self.rename(&file, &blob, &pair.data, &pair.index, (size, chunk_size))?;
        Ok(true)
    }

    /// The gates of two contents, in an order that nobody takes the other way round.
    fn both_gates(&self, a: &ContentKey, b: &ContentKey) -> (MutexGuard<'_, ()>, Option<MutexGuard<'_, ()>>) {
        let (a, b) = (Self::gate_number(a), Self::gate_number(b));
        let (first, second) = (a.min(b), a.max(b));
        (lock(&self.gates[first]), (first != second).then(|| lock(&self.gates[second])))
    }

    /// Whether all of a blob is here and verified. Its gate is held.
    fn is_whole(self: &Arc<Self>, blob: &ContentKey, size: u64, chunk_size: u32) -> Result<bool> {
        let whole = |file: &CacheFile| file.is_verified() && file.is_complete() && !file.is_in_memory();
        if let Some(file) = self.in_use(blob) {
            return Ok(whole(&file));
        }
        if !self.knows(blob) {
            return Ok(false);
        }
        let path = self.root.join(blob.path());
        let pair = open_pair(&self.disk, &path, blob, size, chunk_size);
        match pair.context(|| path.display().to_string())? {
            Some(pair) => Ok(whole(&CacheFile::load(*blob, self.clone(), pair, false)?)),
            None => Ok(false),
        }
    }

    /// Gives the data its new name, and an index that says the same of a blob. What is cut short leaves data without an index,
    /// which is nothing, and goes by itself.
    fn rename(
        &self,
        file: &ContentKey,
        blob: &ContentKey,
        data: &DiskFile,
        old: &DiskFile,
        (size, chunk_size): (u64, u32),
    ) -> Result<()> {
        let (from, to) = (self.root.join(file.path()), self.root.join(blob.path()));
        let what = || to.display().to_string();
        if let Some(parent) = to.parent() {
            self.disk.create_dirs(parent).context(what)?;
        }
        let used = lock(&self.table).remove(file).map_or(0, |entry| entry.bytes);
        self.used.fetch_sub(used, Relaxed);
        // The old index first: what it says may not outlive its data.
        self.disk.remove(&index_path(&from)).context(what)?;
        self.disk.rename(&from, &to).context(what)?;
        let index = make(&self.disk, &index_path(&to)).context(what)?;
        let meta = data.metadata().context(what)?;
        let header = Header { chunk_size, size, data_ino: meta.ino(), passthrough: false, verified: true };
        each_record(old, size, chunk_size, |first, records| {
            let mut raw = Vec::with_capacity(records.len() * RECORD_LEN as usize);
            for (idx, record) in (first..).zip(records) {
                let record = Record { tag: BLOB_TAG, stored: false, from: Provider::File, ..*record };
                raw.extend_from_slice(&record.encode(idx));
            }
            index.write_all_at(&raw, record_offset(first)).context(what)
        })?;
        index.write_all_at(&header.encode(), 0).context(what)?;
        let bytes = meta.blocks() * 512 + record_offset(size.div_ceil(u64::from(chunk_size)));
        let now = now();
        let entry = Entry { bytes, last_used: now, born: now, stamped: now, open: Weak::new() };
        lock(&self.table).insert(*blob, entry);
        self.used.fetch_add(bytes, Relaxed);
        Ok(())
    }
}

/// What stands for the records of all chunks, if each of them is one of a whole chunk.
fn records_of(index: &DiskFile, size: u64, chunk_size: u32) -> Result<Option<[u8; 32]>> {
    let mut seen = Seen::default();
    let whole = each_record(index, size, chunk_size, |_, records| {
        records.iter().for_each(|record| seen.add(record));
        Ok(())
    })?;
    Ok(whole.then(|| seen.finish()))
}

/// Shows the records of all chunks of a content of `size` bytes, some at a time. `false`: one of them is not there, or is not
/// of all that its chunk has.
fn each_record(
    index: &DiskFile,
    size: u64,
    chunk_size: u32,
    mut see: impl FnMut(u64, &[Record]) -> Result<()>,
) -> Result<bool> {
    let unit = u64::from(chunk_size);
    let chunks = size.div_ceil(unit);
    for first in (0..chunks).step_by(AT_ONCE as usize) {
        let count = AT_ONCE.min(chunks - first);
        let mut raw = vec![0; (count * RECORD_LEN) as usize];
        let n = index.read_full(&mut raw, record_offset(first)).context(|| "an index of the cache")?;
        let mut records = Vec::with_capacity(count as usize);
        for (idx, raw) in (first..).zip(raw[..n].as_chunks::<64>().0) {
            let whole = unit.min(size - idx * unit);
            match Record::decode(raw, idx).filter(|record| u64::from(record.len) == whole) {
                Some(record) => records.push(record),
                None => return Ok(false),
            }
        }
        if (records.len() as u64) < count {
            return Ok(false);
        }
        see(first, &records)?;
    }
    match chunks {
        0 => Err(Error::new(Kind::Invalid, "an empty content")),
        _ => Ok(true),
    }
}
