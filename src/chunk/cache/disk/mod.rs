//! The local disk as the cache uses it: a thin layer of plain file operations, so that there is one place which notices that
//! a disk has failed, and one where a test can make it fail or lose its power.
//!
//! A disk that answers with an error of the device (EIO, read-only after an error, gone) is *put aside* for the rest of the run:
//! once, with one warning. A full disk is not a failed one.

#[cfg(test)]
pub(crate) mod sim;

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{FallocateFlags, fallocate, syncfs};
use rustix::io::{Errno, ReadWriteFlags, preadv2, pwritev};

/// Pieces of one vectored write.
const MAX_SLICES: usize = 1024;
/// Bytes of one write, and a multiple of where it ends. The kernel takes memory in blocks as large as a write is. Larger ones
/// are those that a virtual machine has given back to its host, and getting them again costs six times what the write does
/// (measured: 1.26 s of processor for a GiB by 512 KiB, 0.20 by 256).
const STEP: usize = 256 << 10;

/// The disk that a cache directory lies on. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Why it was put aside.
    aside: OnceLock<String>,
    #[cfg(test)]
    sim: Option<Arc<sim::Sim>>,
}

/// What is about to be done to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Open,
    Read,
    Write,
    /// Sizes, names, holes.
    Change,
    Sync,
}

impl Disk {
    /// A disk that fails as a test wants it.
    #[cfg(test)]
    pub(crate) fn simulated(sim: Arc<sim::Sim>) -> Self {
        Disk(Arc::new(Inner { aside: OnceLock::new(), sim: Some(sim) }))
    }

    /// Why the disk is not used any more; `None` while it is.
    #[must_use]
    pub fn aside(&self) -> Option<&str> {
        self.0.aside.get().map(String::as_str)
    }

    /// Puts the disk aside. Said once.
    pub fn put_aside(&self, why: String) {
        if self.0.aside.set(why.clone()).is_ok() {
            tracing::warn!(
                "the cache's disk has failed and is not used any more; memory stands in for it: {why}"
            );
        }
    }

    /// Passes a result on; an error of the device puts the disk aside.
    fn noted<T>(&self, result: io::Result<T>, path: &Path) -> io::Result<T> {
        if let Err(e) = &result
            && is_device_error(e)
        {
            self.put_aside(format!("{}: {e}", path.display()));
        }
        result
    }

    #[cfg(not(test))]
    #[inline]
    fn gate(&self, _op: Op) -> io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn gate(&self, op: Op) -> io::Result<()> {
        self.0.sim.as_ref().map_or(Ok(()), |sim| sim.gate(op))
    }

    /// Opens a file for reading and writing.
    pub fn open(&self, path: &Path) -> io::Result<DiskFile> {
        self.open_with(path, OpenOptions::new().read(true).write(true), false)
    }

    /// Makes a file that must not be there yet, readable by this user only.
    pub fn create_new(&self, path: &Path) -> io::Result<DiskFile> {
        self.open_with(path, OpenOptions::new().read(true).write(true).create_new(true).mode(0o600), true)
    }

    /// Opens a file for writing, made if there is none; what it holds stays.
    pub fn open_or_create(&self, path: &Path) -> io::Result<DiskFile> {
        let fresh = !path.exists();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        self.open_with(path, &options, fresh)
    }

    #[cfg_attr(not(test), allow(unused_variables))]
    fn open_with(&self, path: &Path, options: &OpenOptions, fresh: bool) -> io::Result<DiskFile> {
        let opened = self.gate(Op::Open).and_then(|()| options.open(path));
        let file = self.noted(opened, path)?;
        #[cfg(test)]
        if let Some(sim) = &self.0.sim {
            sim.opened(path, &file, fresh);
        }
        Ok(DiskFile { file, path: path.to_owned(), disk: self.clone() })
    }

    /// All bytes of a file.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.noted(self.gate(Op::Read).and_then(|()| fs::read(path)), path)
    }

    /// Unlinks a file.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        #[cfg(test)]
        if let Some(sim) = &self.0.sim {
            sim.removing(path);
        }
        self.noted(self.gate(Op::Change).and_then(|()| fs::remove_file(path)), path)
    }

    /// Gives a file another name, in the place of what has it.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        #[cfg(test)]
        if let Some(sim) = &self.0.sim {
            sim.removing(to);
        }
        self.noted(self.gate(Op::Change).and_then(|()| fs::rename(from, to)), to)
    }

    /// Makes a directory and those above it.
    pub fn create_dirs(&self, path: &Path) -> io::Result<()> {
        self.noted(self.gate(Op::Change).and_then(|()| fs::create_dir_all(path)), path)
    }

    /// The names in a directory to the disk.
    pub fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let synced = self.gate(Op::Sync).and_then(|()| File::open(path)?.sync_all());
        self.noted(synced, path)?;
        #[cfg(test)]
        if let Some(sim) = &self.0.sim {
            sim.synced_dir(path);
        }
        Ok(())
    }

    /// Everything of the file system that `file` lies on to the disk.
    pub fn sync_all(&self, file: &File, path: &Path) -> io::Result<()> {
        let synced = self.gate(Op::Sync).and_then(|()| syncfs(file).map_err(io::Error::from));
        self.noted(synced, path)?;
        #[cfg(test)]
        if let Some(sim) = &self.0.sim {
            sim.synced_all();
        }
        Ok(())
    }

    /// Writes a small file in the place of whatever is there; wholly or not at all, and durable when this returns. It goes by
    /// way of `<path>.new`.
    pub fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let new = beside(path, ".new");
        let file = self.open_or_create(&new)?;
        if !bytes.is_empty() {
            file.write_all_at(bytes, 0)?;
        }
        file.set_len(bytes.len() as u64)?;
        file.sync()?;
        self.rename(&new, path)?;
        self.sync_dir(path.parent().unwrap_or(Path::new("/")))
    }
}

/// The path with something behind its name.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Whether the device is at fault, rather than the request or a lack of room.
fn is_device_error(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(
            libc::EIO
                | libc::EROFS
                | libc::ENXIO
                | libc::ENODEV
                | libc::EUCLEAN
                | libc::EREMOTEIO
                | libc::ESTALE
        )
    )
}

/// An open file on the disk. Reading and writing at places; no position of its own.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    path: PathBuf,
    disk: Disk,
}

impl DiskFile {
    /// A file in memory, in the place of one on a disk that was put aside.
    pub fn in_memory(name: &str) -> io::Result<Self> {
        let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
        Ok(DiskFile { file: File::from(fd), path: PathBuf::from(name), disk: Disk::default() })
    }

    /// The file itself, for handing it to the kernel.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn noted<T>(&self, result: io::Result<T>) -> io::Result<T> {
        self.disk.noted(result, &self.path)
    }

    pub fn metadata(&self) -> io::Result<Metadata> {
        self.noted(self.file.metadata())
    }

    /// Reads until the buffer is full or the file ends.
    pub fn read_full(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut read = || {
            self.disk.gate(Op::Read)?;
            let mut done = 0;
            while done < buf.len() {
                match self.file.read_at(&mut buf[done..], offset + done as u64) {
                    Ok(0) => break,
                    Ok(n) => done += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(done)
        };
        self.noted(read())
    }

    /// Reads what is in the kernel's cache, never waiting for the disk. `None`: not all of it is.
    #[must_use]
    pub fn try_read(&self, buf: &mut [u8], offset: u64) -> Option<usize> {
        let want = buf.len();
        self.disk.gate(Op::Read).ok()?;
        let n = preadv2(&self.file, &mut [IoSliceMut::new(buf)], offset, ReadWriteFlags::NOWAIT).ok()?;
        // A short read may be the end of the file or the end of what is in memory: the slow way finds out.
        (n == want).then_some(n)
    }

    /// Writes all of the pieces, one after the other.
    pub fn write_pieces(&self, mut slices: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut write = || {
            self.partial(slices, offset)?;
            self.disk.gate(Op::Write)?;
            let mut at = offset;
            while !slices.is_empty() {
                let n = match pwritev(&self.file, &step(slices, at), at) {
                    Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                    Ok(n) => n,
                    Err(Errno::INTR) => continue,
                    Err(e) => return Err(io::Error::from(e)),
                };
                at += n as u64;
                IoSlice::advance_slices(&mut slices, n);
            }
            Ok(())
        };
        self.noted(write())
    }

    #[cfg(not(test))]
    #[inline]
    fn partial(&self, _slices: &[IoSlice<'_>], _offset: u64) -> io::Result<()> {
        Ok(())
    }

    /// Writes half of it and fails, if the test wants that.
    #[cfg(test)]
    fn partial(&self, slices: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        match self.disk.0.sim.as_ref().and_then(|sim| sim.takes_half()) {
            None => Ok(()),
            Some(error) => {
                let first = slices.first().map_or(&[][..], |s| &s[..s.len() / 2]);
                self.file.write_all_at(first, offset)?;
                Err(error)
            }
        }
    }

    pub fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_pieces(&mut [IoSlice::new(buf)], offset)
    }

    /// The file's bytes to the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.noted(self.disk.gate(Op::Sync).and_then(|()| self.file.sync_data()))?;
        #[cfg(test)]
        if let Some(sim) = &self.disk.0.sim {
            sim.synced(&self.file);
        }
        Ok(())
    }

    pub fn set_len(&self, size: u64) -> io::Result<()> {
        self.noted(self.disk.gate(Op::Change).and_then(|()| self.file.set_len(size)))
    }

    /// Gives the space of a range back; it reads as zeros. A disk that cannot do it keeps the space, which is no error.
    pub fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punched =
            self.disk.gate(Op::Change).and_then(|()| match fallocate(&self.file, flags, offset, len) {
                Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
                Err(e) => Err(io::Error::from(e)),
            });
        self.noted(punched)
    }
}

/// What of `slices` one write at `offset` takes: up to the next multiple of [`STEP`].
fn step<'a>(slices: &'a [IoSlice<'_>], offset: u64) -> Vec<IoSlice<'a>> {
    let mut room = STEP - (offset % STEP as u64) as usize;
    let mut taken = Vec::new();
    for slice in slices.iter().take(MAX_SLICES) {
        if room == 0 {
            break;
        }
        let len = slice.len().min(room);
        taken.push(IoSlice::new(&slice[..len]));
        room -= len;
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_end_at_steps() {
        let bytes = vec![7; 3 * STEP];
        let lens = |slices: &[IoSlice<'_>], offset| -> Vec<usize> {
            step(slices, offset).iter().map(|slice| slice.len()).collect()
        };
        assert_eq!(lens(&[IoSlice::new(&bytes)], 0), [STEP]);
        assert_eq!(lens(&[IoSlice::new(&bytes)], 10), [STEP - 10]);
        assert_eq!(lens(&[IoSlice::new(&bytes)], 5 * STEP as u64 - 1), [1]);
        let pieces = [IoSlice::new(&bytes[..100]), IoSlice::new(&bytes), IoSlice::new(b"more")];
        assert_eq!(lens(&pieces, 0), [100, STEP - 100]);
        assert_eq!(lens(&[IoSlice::new(b"short")], 0), [5]);
        let many: Vec<IoSlice<'_>> = (0..2 * MAX_SLICES).map(|_| IoSlice::new(b"x")).collect();
        assert_eq!(step(&many, 0).len(), MAX_SLICES);
    }
}
