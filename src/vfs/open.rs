//! Opening and closing files, and what the kernel may keep of earlier opens.

use std::sync::Arc;

use bytes::Bytes;

use super::Vfs;
use super::change::{Place, unremembered};
use super::handles::{Data, Handle};
use super::types::{Caller, Entry, Opened};
use super::virtual_ino::{Which, which};
use crate::blocking::blocking;
use crate::chunk::FileContent;
use crate::chunk::file::Saved;
use crate::error::{Error, Kind, Result};
use crate::meta::{Attr, Content, New};
use crate::types::{FileType, Ino, Version};

/// What the kernel may keep when a file is opened. A pure function, so that its cases can be a table.
///
/// * `immutable`: the inode's data never changes (a blob opened for reading).
/// * `same`: the version is the one that the kernel's pages are of.
fn grant(immutable: bool, same: bool) -> (bool, bool) {
    let keep_cache = immutable || same;
    // With another version the kernel may hold an old size, and would cut the new data at it.
    let drop_attrs = !keep_cache;
    (keep_cache, drop_attrs)
}

/// What has data that can be opened and cut.
fn regular(attr: &Attr) -> Result<()> {
    match attr.kind {
        FileType::File => Ok(()),
        FileType::Dir => Err(Error::new(Kind::IsDirectory, format!("inode {}", attr.ino))),
        _ => Err(Error::new(Kind::Invalid, format!("inode {} is no regular file", attr.ino))),
    }
}

fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0
}

impl Vfs {
    /// Opens an inode that is not a directory.
    pub async fn open(self: &Arc<Self>, ino: Ino, flags: i32) -> Result<Opened> {
        if writes(flags) {
            self.writable()?;
        }
        match which(ino) {
            Which::Real => {}
            Which::Private => {
                let vfs = Arc::clone(self);
                let file = blocking(move || vfs.private.open_file(ino, flags)).await?;
                return Ok(self.opened(Handle { ino, flags, data: Data::Private(file) }, false, false));
            }
            _ => return Ok(self.opened(Handle { ino, flags, data: Data::Empty }, false, false)),
        }
        // A blob never changes under its inode: what is remembered of it is true.
        let known = if writes(flags) { None } else { self.remembered(ino) };
        let attr = match known {
            Some(attr) => attr,
            None => {
                let attr = self.meta.getattr(ino).await?;
                self.attrs.learn(&attr);
                attr
            }
        };
        self.open_attr(&attr, flags).await
    }

    async fn open_attr(self: &Arc<Self>, attr: &Attr, flags: i32) -> Result<Opened> {
        regular(attr)?;
        let ino = attr.ino;
        if let Content::Blob(blob) = &attr.content
            && !writes(flags)
            && self.files.in_use(ino).is_none()
        {
            let data = match attr.size {
                0 => Data::Empty,
                size => Data::Blob(self.chunks.open_blob(*blob, size).await?),
            };
            let (keep, drop) = grant(true, true);
            let drop = self.accessed_by_open(attr, flags, keep) || drop;
            return Ok(self.opened(Handle { ino, flags, data }, keep, drop));
        }
        let file = self.files.open(attr)?;
        // Linux empties the file though it be opened for reading.
        if flags & libc::O_TRUNC != 0 {
            file.truncate(0).await?;
        }
        let same = self.attrs.tell(ino, file.version());
        let (keep, drop) = grant(false, same && flags & libc::O_TRUNC == 0);
        let drop = self.accessed_by_open(attr, flags, keep) || drop;
        Ok(self.opened(Handle { ino, flags, data: Data::File(file) }, keep, drop))
    }

    fn opened(&self, handle: Handle, keep_cache: bool, drop_attrs: bool) -> Opened {
        let no_flush = !handle.writable();
        let fh = self.handles.insert(handle);
        Opened { fh, keep_cache, direct_io: false, drop_attrs, drop_pages: false, no_flush }
    }

    /// Makes a file and opens it. If there is one: [`Kind::Exists`] with `O_EXCL`, else [`Kind::Stale`], and the caller looks
    /// again.
    pub async fn create(
        self: &Arc<Self>,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u16,
        flags: i32,
    ) -> Result<(Entry, Opened)> {
        if self.place(parent, name).await? == Place::Private {
            let (vfs, caller, name) = (Arc::clone(self), *caller, Bytes::copy_from_slice(name));
            let made = blocking(move || vfs.private.create(&caller, parent, &name, mode, flags)).await?;
            let opened =
                self.opened(Handle { ino: made.0.ino, flags, data: Data::Private(made.1) }, false, false);
            return Ok((unremembered(made.0), opened));
        }
        let new = New::plain(FileType::File, mode, caller.uid, caller.gid);
        let attr = match self.make(parent, name, new).await {
            Ok(attr) => attr,
            // Another mount made it since the kernel looked. The kernel takes what it gets here for new and checks no
            // permission: it must walk the path again, and open what it finds.
            Err(e) if e.kind() == Kind::Exists && flags & libc::O_EXCL == 0 => {
                return Err(Error::with_source(Kind::Stale, "file made by another mount meanwhile", e));
            }
            Err(e) => return Err(e),
        };
        let opened = self.open_attr(&attr, flags).await?;
        Ok((self.entry(&attr), opened))
    }

    /// close(2) of one of possibly several descriptors of a handle: what was written is durable and visible to all when
    /// this answers. An error is the caller's only chance to hear that it is not.
    pub async fn flush(self: &Arc<Self>, fh: u64) -> Result<()> {
        let handle = self.handles.get(fh)?;
        match &handle.data {
            // What has no name nobody can open, so there is nobody to write it out for.
            Data::File(file) if handle.writable() && !self.attrs.is_removed(handle.ino) => {
                self.save(file).await
            }
            _ => Ok(()),
        }
    }

    /// fsync(2): as `flush`; for a private file, on the local disk.
    pub async fn fsync(self: &Arc<Self>, fh: u64) -> Result<()> {
        let handle = self.handles.get(fh)?;
        match &handle.data {
            Data::File(file) => self.save(file).await,
            Data::Private(file) => {
                let file = Arc::clone(file);
                blocking(move || {
                    file.sync_all().map_err(|e| Error::with_source(Kind::Disk, "fsync of a private file", e))
                })
                .await
            }
            Data::Blob(_) | Data::Empty => Ok(()),
        }
    }

    /// Makes what is new in a file safe: commits it or, with writeback, keeps it on the local disk until that is done.
    pub(super) async fn save(&self, file: &Arc<FileContent>) -> Result<()> {
        let (before, merges) = file.lineage();
        match file.save().await? {
            Saved::Here => {}
            Saved::Stored(attr) => self.committed(before, &attr, file.lineage().1 != merges),
        }
        Ok(())
    }

    /// Commits what is new in a file: when this answers, other mounts see it.
    pub(super) async fn write_out(&self, file: &Arc<FileContent>) -> Result<()> {
        let (before, merges) = file.lineage();
        let attr = file.flush().await?;
        self.committed(before, &attr, file.lineage().1 != merges);
        Ok(())
    }

    /// Data that was written here was committed. The kernel's pages, which have all of it, are of the new version then, unless
    /// the commit also brought in what another mount wrote.
    pub(super) fn committed(&self, before: Version, attr: &Attr, merged: bool) {
        self.attrs.forget(attr.ino);
        self.attrs.committed(before, attr);
        if merged {
            self.invalidations.pages(attr.ino);
        } else {
            self.attrs.told_moves(attr.ino, before, attr.version);
        }
    }

    /// The last close of a handle.
    pub async fn release(self: &Arc<Self>, fh: u64, flock_owner: Option<u64>) -> Result<()> {
        let Some(handle) = self.handles.remove(fh) else { return Ok(()) };
        // Usually there is nothing left after the flush; a shared mapping may have written since.
        let committed = match &handle.data {
            Data::File(file) if file.is_dirty() && !self.attrs.is_removed(handle.ino) => match flock_owner {
                None => self.save(file).await,
                // Whoever gets the lock next, on whichever mount, sees what was written under it.
                Some(_) => self.write_out(file).await,
            },
            _ => Ok(()),
        };
        if let (Some(owner), false) = (flock_owner, handle.ino.is_virtual()) {
            self.unlock(handle.ino, owner).await?;
        }
        committed
    }

    /// Sets the size of a file. With a handle it shows at once here and is committed at its close; without one it is
    /// committed before the answer.
    ///
    /// open(2) with `O_TRUNC` arrives as an open and then this, without the handle: what is emptied just after it was opened
    /// for writing is committed at the close of that handle, so that others find the old or the new, and never nothing.
    pub(super) async fn truncate(&self, ino: Ino, handle: Option<&Handle>, size: u64) -> Result<()> {
        if let Some(Handle { data: Data::File(file), .. }) = handle {
            return file.truncate(size).await;
        }
        let attr = self.meta.getattr(ino).await?;
        regular(&attr)?;
        let file = self.files.open(&attr)?;
        let opened = if size == 0 { self.handles.opened_just_now(ino) } else { None };
        file.truncate(size).await?;
        // A close that comes from now on finds something to commit; one that is past has not.
        if opened.is_some_and(|fh| self.handles.get(fh).is_ok()) {
            return Ok(());
        }
        self.save(&file).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_keeps_at_open() {
        // (immutable, same version) -> (keep pages, forget attributes)
        let cases = [
            ((true, true), (true, false)),
            ((true, false), (true, false)),
            ((false, true), (true, false)),
            ((false, false), (false, true)),
        ];
        for (given, expected) in cases {
            assert_eq!(grant(given.0, given.1), expected, "{given:?}");
        }
    }

    #[test]
    fn opens_that_write() {
        assert!(!writes(libc::O_RDONLY));
        assert!(writes(libc::O_WRONLY));
        assert!(writes(libc::O_RDWR | libc::O_APPEND));
        assert!(writes(libc::O_RDONLY | libc::O_TRUNC));
    }
}
