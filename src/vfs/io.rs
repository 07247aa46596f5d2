//! Reading and writing through handles.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::Vfs;
use super::handles::{Data, Handle};
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};

impl Vfs {
    /// Reads what is at hand without waiting: the number of bytes put into `buf`, which is short only at the end of the
    /// file. `None` if some of it must be fetched or the local disk would block.
    pub fn try_read(&self, fh: u64, offset: u64, buf: &mut [u8]) -> Option<Result<usize>> {
        let handle = match self.handles.get(fh) {
            Ok(handle) => handle,
            Err(e) => return Some(Err(e)),
        };
        let read = match &handle.data {
            // Whether it is that still may have to be asked.
            Data::Blob(_) if !self.is_surely_a_blob(&handle) => None,
            Data::Blob(blob) => blob.try_read(offset, buf).map(Ok),
            Data::File(file) => file.try_read(offset, buf).map(Ok),
            Data::Empty => Some(Ok(0)),
            Data::Private(_) => None,
        };
        if let Some(Ok(_)) = read {
            self.accessed_through(&handle);
        }
        read
    }

    /// Reads up to `size` bytes; fewer only at the end of the file.
    pub async fn read(self: &Arc<Self>, fh: u64, offset: u64, size: u32) -> Result<Bytes> {
        let handle = self.handles.get(fh)?;
        let read = self.read_from(&handle, offset, size).await?;
        self.accessed_through(&handle);
        Ok(read)
    }

    pub(super) async fn read_from(&self, handle: &Handle, offset: u64, size: u32) -> Result<Bytes> {
        match &handle.data {
            Data::Blob(blob) => match self.written_since(handle).await? {
                Some(file) => file.read(offset, size).await,
                None => self.read_blob(handle, blob, offset, size).await,
            },
            Data::File(file) => file.read(offset, size).await,
            Data::Empty => Ok(Bytes::new()),
            Data::Private(file) => {
                let file = Arc::clone(file);
                blocking(move || read_private(&file, offset, size)).await
            }
        }
    }

    /// Writes all of `data`. A handle opened with `O_APPEND` writes at the end, wherever the kernel believes it to be.
    pub async fn write(self: &Arc<Self>, fh: u64, offset: u64, data: Bytes) -> Result<u32> {
        let handle = self.handles.get(fh)?;
        let append = handle.flags & libc::O_APPEND != 0;
        self.write_to(&handle, offset, append, data).await
    }

    /// Writes all of `data` at `offset`, however the handle was opened.
    pub async fn write_at(self: &Arc<Self>, fh: u64, offset: u64, data: Bytes) -> Result<u32> {
        let handle = self.handles.get(fh)?;
        self.write_to(&handle, offset, false, data).await
    }

    pub(super) async fn write_to(
        &self,
        handle: &Handle,
        offset: u64,
        append: bool,
        data: Bytes,
    ) -> Result<u32> {
        let len = u32::try_from(data.len()).map_err(|e| Error::with_source(Kind::Invalid, "write", e))?;
        match &handle.data {
            Data::File(file) if append => {
                file.append(data).await?;
            }
            Data::File(file) => return file.write(offset, data).await,
            Data::Private(file) => {
                let file = Arc::clone(file);
                blocking(move || {
                    let at = if append { file.metadata().map(|m| m.len()) } else { Ok(offset) };
                    at.and_then(|at| file.write_all_at(&data, at)).map_err(private_failed)
                })
                .await?;
            }
            // "Not in this commit" has nothing to say beyond being there.
            Data::Empty => {}
            Data::Blob(_) => return Err(Error::new(Kind::BadHandle, "blob opened for reading")),
        }
        Ok(len)
    }
}

fn read_private(file: &std::fs::File, offset: u64, size: u32) -> Result<Bytes> {
    let mut buf = BytesMut::zeroed(size as usize);
    let mut filled = 0;
    while filled < buf.len() {
        match file.read_at(&mut buf[filled..], offset + filled as u64).map_err(private_failed)? {
            0 => break,
            n => filled += n,
        }
    }
    buf.truncate(filled);
    Ok(buf.freeze())
}

fn private_failed(e: std::io::Error) -> Error {
    let kind = if e.raw_os_error() == Some(libc::ENOSPC) { Kind::NoSpace } else { Kind::Disk };
    Error::with_source(kind, "private file", e)
}
