//! Where data lies in a file: making space and holes, finding them, copying from file to file.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::Vfs;
use super::handles::{Data, Handle};
use crate::blocking::blocking;
use crate::chunk::FileContent;
use crate::chunk::file::Allocate;
use crate::error::{Error, Kind, Result};
use crate::types::Version;

/// The most that one call copies, bytes: a program that copies more calls again, and can be interrupted in between.
const COPY_MAX: u64 = 1 << 30;
/// The same for what is not copied by reference.
const CARRY_MAX: u64 = 64 << 20;
/// Bytes that are carried over at a time.
const PIECE: u64 = 1 << 20;

/// What the mode of fallocate(2) asks for; `None` if that is not to be had.
fn allocation(mode: i32) -> Option<Allocate> {
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => Some(Allocate { zero: false, keep_size }),
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => Some(Allocate { zero: true, keep_size }),
        libc::FALLOC_FL_ZERO_RANGE => Some(Allocate { zero: true, keep_size }),
        _ => None,
    }
}

impl Vfs {
    /// fallocate(2): the modes 0 and `ZERO_RANGE`, both also with `KEEP_SIZE`, and `PUNCH_HOLE` with it; for any other
    /// [`Kind::NotSupported`]. As a write, it is durable after `flush`.
    pub async fn fallocate(self: &Arc<Self>, fh: u64, offset: u64, len: u64, mode: i32) -> Result<()> {
        let handle = self.handles.get(fh)?;
        if !handle.writable() {
            return Err(Error::new(Kind::BadHandle, "fallocate of a file opened for reading"));
        }
        let how = allocation(mode)
            .ok_or_else(|| Error::new(Kind::NotSupported, format!("fallocate with mode {mode:#x}")))?;
        if len == 0 {
            return Err(Error::new(Kind::Invalid, "fallocate of no bytes"));
        }
        match &handle.data {
            Data::File(file) => file.allocate(offset, len, how).await,
            Data::Private(file) => {
                let file = Arc::clone(file);
                let (offset, len) = (signed(offset)?, signed(len)?);
                blocking(move || {
                    // SAFETY: fallocate(2) takes no pointers, and the descriptor is open as long as `file` is.
                    done(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }.into()).map(drop)
                })
                .await
            }
            Data::Empty => Ok(()),
            Data::Blob(_) => Err(Error::new(Kind::BadHandle, "blob opened for reading")),
        }
    }

    /// lseek(2) with `SEEK_DATA` or `SEEK_HOLE`, for which the kernel asks: where the next data, or the next hole, begins at
    /// or after `offset`. The end of the file counts as a hole. [`Kind::Beyond`] if there is none.
    pub async fn lseek(self: &Arc<Self>, fh: u64, offset: i64, whence: i32) -> Result<u64> {
        let handle = self.handles.get(fh)?;
        let beyond = || Error::new(Kind::Beyond, format!("lseek to {offset}"));
        let at = u64::try_from(offset).map_err(|_| beyond())?;
        let for_data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return Err(Error::new(Kind::Invalid, format!("lseek with {whence}"))),
        };
        let found = match &handle.data {
            Data::File(file) if for_data => file.next_data(at).await?,
            Data::File(file) => file.next_hole(at).await?,
            // All of it is data.
            Data::Blob(blob) => {
                let end = blob.size();
                (at < end).then_some(if for_data { at } else { end })
            }
            Data::Empty => None,
            Data::Private(file) => {
                let file = Arc::clone(file);
                return blocking(move || {
                    // SAFETY: lseek(2) takes no pointers, and the descriptor is open as long as `file` is. Nobody goes by its
                    // offset.
                    done(unsafe { libc::lseek(file.as_raw_fd(), offset, whence) })
                })
                .await;
            }
        };
        found.ok_or_else(beyond)
    }

    /// copy_file_range(2) from a handle and an offset to another one. Returns how many bytes were copied: 0 at the end of
    /// the source; perhaps fewer than asked for. Whole chunks that lie alike in both files are shared by them afterwards
    /// and not copied; then what was new in both is committed on the way.
    ///
    /// [`Kind::Invalid`] if the ranges overlap in one file.
    pub async fn copy_file_range(
        self: &Arc<Self>,
        (fh_in, from): (u64, u64),
        (fh_out, to): (u64, u64),
        len: u64,
    ) -> Result<u32> {
        let (source, target) = (self.handles.get(fh_in)?, self.handles.get(fh_out)?);
        if !target.writable() || target.flags & libc::O_APPEND != 0 {
            return Err(Error::new(
                Kind::BadHandle,
                "copy_file_range into a file that cannot be written at an offset",
            ));
        }
        let len = len.min(COPY_MAX);
        if source.ino == target.ino && from.abs_diff(to) < len {
            return Err(Error::new(Kind::Invalid, "copy_file_range within itself"));
        }
        // A file that is read as a blob is copied as the file that it is.
        let source_file = match &source.data {
            Data::File(of) => Some(of.clone()),
            Data::Blob(_) if source.backed.is_some() => {
                Some(self.files.open(&self.meta.getattr(source.ino).await?)?)
            }
            _ => None,
        };
        let copied = match (&source_file, &target.data) {
            (Some(of), Data::File(file)) => {
                let before = (of.lineage(), file.lineage());
                let copied = file.copy_from(of, from, to, len).await;
                self.note_commit(of, before.0);
                self.note_commit(file, before.1);
                copied?
            }
            _ => self.carry(&source, from, &target, to, len.min(CARRY_MAX)).await?,
        };
        u32::try_from(copied).map_err(|e| Error::with_source(Kind::Internal, "copy_file_range", e))
    }

    /// Copies by reading and writing.
    async fn carry(&self, source: &Handle, from: u64, target: &Handle, to: u64, len: u64) -> Result<u64> {
        let mut done = 0;
        while done < len {
            // Below `PIECE`.
            let piece = (len - done).min(PIECE) as u32;
            let copied = async {
                let data = self.read_from(source, from + done, piece).await?;
                if data.is_empty() { Ok(0) } else { self.write_to(target, to + done, false, data).await }
            };
            match copied.await {
                Ok(0) => break,
                Ok(n) => done += u64::from(n),
                Err(e) if done == 0 => return Err(e),
                // What was copied is said first; the next call hears of the error.
                Err(_) => break,
            }
        }
        Ok(done)
    }

    /// A file may have been committed since it had this version.
    fn note_commit(&self, file: &Arc<FileContent>, (before, merges): (Version, u64)) {
        let (version, now) = file.lineage();
        if version != before {
            self.committed(before, &file.attr(), now != merges);
        }
    }
}

fn signed(n: u64) -> Result<i64> {
    i64::try_from(n).map_err(|e| Error::with_source(Kind::TooLarge, "private file", e))
}

/// What a system call answered.
fn done(answer: i64) -> Result<u64> {
    u64::try_from(answer).map_err(|_| {
        let e = std::io::Error::last_os_error();
        let kind = match e.raw_os_error() {
            Some(libc::ENXIO) => Kind::Beyond,
            Some(libc::ENOSPC) => Kind::NoSpace,
            Some(libc::EOPNOTSUPP) => Kind::NotSupported,
            Some(libc::EFBIG) => Kind::TooLarge,
            Some(libc::EINVAL) => Kind::Invalid,
            _ => Kind::Disk,
        };
        Error::with_source(kind, "private file", e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_of_fallocate() {
        use libc::{
            FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE, FALLOC_FL_KEEP_SIZE as KEEP,
            FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE as ZERO,
        };
        let some = |zero, keep_size| Some(Allocate { zero, keep_size });
        let cases = [
            (0, some(false, false)),
            (KEEP, some(false, true)),
            (FALLOC_FL_PUNCH_HOLE | KEEP, some(true, true)),
            (FALLOC_FL_PUNCH_HOLE, None),
            (ZERO, some(true, false)),
            (ZERO | KEEP, some(true, true)),
            (FALLOC_FL_PUNCH_HOLE | ZERO | KEEP, None),
            (FALLOC_FL_COLLAPSE_RANGE, None),
            (FALLOC_FL_INSERT_RANGE, None),
        ];
        for (mode, expected) in cases {
            assert_eq!(allocation(mode), expected, "{mode:#x}");
        }
    }
}
