//! Reading what is present, and only that: a reader that raced with a change looks again.

use std::sync::atomic::Ordering::SeqCst;

use super::super::read;
use super::CacheFile;
use crate::error::{Result, ResultExt};

impl CacheFile {
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

    /// How often records were cleared. Whoever reads bytes that had none, and finds afterwards that this has moved, may have read
    /// what was recorded meanwhile and given back.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(SeqCst)
    }

    /// Like [`CacheFile::try_read`] without asking what is present: for who keeps book of that himself
    /// ([`CacheFile::changes`]).
    #[must_use]
    pub fn try_read_raw(&self, offset: u64, buf: &mut [u8]) -> Option<usize> {
        if buf.is_empty() {
            return Some(0);
        }
        self.data_file().try_read(buf, offset)
    }

    /// Reads the data file, present or not. Fewer bytes than asked for only at its end.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.data_file().read_full(buf, offset).context(|| self.what())
    }

    /// BLAKE3 of the first `len` bytes of chunk `idx` as they are on the disk; `None` if the file is too short.
    pub fn hash_of(&self, idx: u64, len: u32) -> Result<Option<[u8; 32]>> {
        let mut hasher = blake3::Hasher::new();
        let whole = self.scan(idx, len, |piece| {
            hasher.update(piece);
        })?;
        Ok(whole.then(|| hasher.finalize().into()))
    }

    /// Shows the first `len` bytes of chunk `idx`, present or not ([`CacheFile::changes`]), in pieces of at most 256 KiB;
    /// `false` if the file ends before. Takes no lock for which others would wait.
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
