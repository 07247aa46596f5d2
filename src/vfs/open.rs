//! Opening and closing files, and what the kernel may keep of earlier opens.

use std::sync::Arc;

use bytes::Bytes;

use super::Vfs;
use super::change::{Place, unremembered};
use super::handles::{Backed, Data, Handle};
use super::types::{Caller, Entry, Opened, SetAttr};
use super::virtual_ino::{Which, which};
use crate::blocking::blocking;
use crate::chunk::FileContent;
use crate::chunk::cache::CacheFile;
use crate::chunk::file::Saved;
use crate::error::{Error, Kind, Result};
use crate::meta::{Attr, Content, New};
use crate::types::{BlobId, FileType, Ino, Version};

/// A file that the kernel may read by itself: see [`Vfs::native`].
#[derive(Clone, Debug)]
pub struct NativeFile(Arc<CacheFile>);

impl NativeFile {
    /// The file. Open for writing, which must not be done.
    #[must_use]
    pub fn file(&self) -> &std::fs::File {
        self.0.disk_data()
    }
}

/// What an open is, as far as it decides what the kernel may keep of earlier opens.
#[derive(Clone, Copy, Debug)]
struct Opening {
    /// The inode's data never changes: a blob opened for reading.
    immutable: bool,
    /// The version that the kernel's pages are of, as far as it was told one. What this mount writes and commits becomes
    /// part of them, and moves it along; what it merged from another mount does not.
    told: Option<Version>,
    /// The version that the file has now. While something written here is not committed, the one that it was written over.
    now: Version,
    /// The flags of open(2). `O_DIRECT` changes nothing: the kernel goes past its pages by itself, and other handles have
    /// them still.
    flags: i32,
}

/// What the kernel may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grant {
    /// The pages.
    keep_cache: bool,
    /// Not the attributes: it may hold an old size, and would cut the new data at it.
    drop_attrs: bool,
}

/// Decides it. A pure function, so that its cases can be a table.
fn grant(opening: Opening) -> Grant {
    let Opening { immutable, told, now, flags } = opening;
    let emptied = flags & libc::O_TRUNC != 0;
    let keep_cache = immutable || (told == Some(now) && !emptied);
    Grant { keep_cache, drop_attrs: !keep_cache }
}

/// Whether the metadata must be asked before an open is answered. Not if what is remembered of the inode never changes by
/// itself, and the push would have told of somebody who changed it all the same.
fn must_ask(remembered: bool, push_arrives: bool, flags: i32) -> bool {
    writes(flags) || !remembered || !push_arrives
}

/// What has data that can be opened and cut.
fn regular(attr: &Attr) -> Result<()> {
    match attr.kind {
        FileType::File => Ok(()),
        FileType::Dir => Err(Error::new(Kind::IsDirectory, format!("inode {}", attr.ino))),
        _ => Err(Error::new(Kind::Invalid, format!("inode {} is no regular file", attr.ino))),
    }
}

/// The mode that is left when somebody without privileges changes the data.
fn without_set_id(mode: u16) -> u16 {
    match mode & 0o010 {
        0 => mode & !0o4000,
        _ => mode & !0o6000,
    }
}

fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0
}

impl Vfs {
    /// Opens an inode that is not a directory.
    pub async fn open(self: &Arc<Self>, ino: Ino, flags: i32) -> Result<Opened> {
        self.open_for(None, ino, flags).await
    }

    /// The same for a thread that may be told to look again.
    async fn open_for(self: &Arc<Self>, tid: Option<u32>, ino: Ino, flags: i32) -> Result<Opened> {
        if writes(flags) {
            self.writable()?;
        }
        match which(ino) {
            Which::Real => {}
            Which::Private => {
                let vfs = Arc::clone(self);
                let file = blocking(move || vfs.private.open_file(ino, flags)).await?;
                return Ok(self.opened(Handle::new(ino, flags, Data::Private(file)), false, false));
            }
            _ => return Ok(self.opened(Handle::new(ino, flags, Data::Empty), false, false)),
        }
        let known = self.attrs.immutable(ino);
        let attr = match known {
            Some(attr) if !must_ask(true, self.push_arrives(), flags) => attr,
            _ => {
                let attr = self.meta.getattr(ino).await?;
                self.attrs.learn(&attr);
                attr
            }
        };
        self.open_attr(tid, &attr, flags).await
    }

    /// The same for a program of this user, which is told to look again ([`Kind::Stale`], once) if the kernel relies on a
    /// size of the file that is too small to map all of it. Who empties a file thereby takes its set-user-id and set-group-id bits, unless it
    /// is root: with every other change of the data the kernel sees to that before it asks.
    pub async fn open_by(self: &Arc<Self>, caller: &Caller, ino: Ino, flags: i32) -> Result<Opened> {
        let mut opened = self.open_for(Some(caller.pid), ino, flags).await?;
        if flags & libc::O_TRUNC == 0 || caller.uid == 0 {
            return Ok(opened);
        }
        let mode = match &self.handles.get(opened.fh)?.data {
            Data::File(file) => file.attr().mode,
            _ => return Ok(opened),
        };
        let left = without_set_id(mode);
        if left != mode {
            let change = SetAttr { mode: Some(left), ..SetAttr::default() };
            if let Err(e) = self.setattr(ino, Some(opened.fh), change).await {
                // Nobody else closes it.
                self.release(opened.fh, None).await?;
                return Err(e);
            }
            opened.drop_attrs = true;
        }
        Ok(opened)
    }

    async fn open_attr(self: &Arc<Self>, tid: Option<u32>, attr: &Attr, flags: i32) -> Result<Opened> {
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
            // Then the kernel may have pages that are to be forgotten, whatever has become of the order to do so.
            let right = !matches!(&data, Data::Blob(blob) if blob.was_wrong());
            let told = right.then_some(attr.version);
            let grant = grant(Opening { immutable: right, told, now: attr.version, flags });
            let handle = Handle { attr: Some(Arc::new(attr.clone())), ..Handle::new(ino, flags, data) };
            return Ok(self.granted(handle, attr, grant));
        }
        let look_again = |version, size| match tid.filter(|_| flags & libc::O_TRUNC == 0) {
            Some(tid) if self.attrs.sends_back(tid, ino, version, size) => {
                Err(Error::new(Kind::Stale, format!("the size that the kernel knows of inode {ino}")))
            }
            _ => Ok(()),
        };
        if !writes(flags)
            && let Some(blob) = self.reads_as(attr)
        {
            look_again(attr.version, attr.size)?;
            match self.open_as_blob(attr, blob, flags).await {
                Ok(opened) => return Ok(opened),
                // The file has all of it.
                Err(e) => tracing::debug!(%ino, %blob, "it is read as the file that it is: {e}"),
            }
        }
        let file = self.files.open(attr)?;
        look_again(file.version(), file.size())?;
        // Linux empties the file though it be opened for reading.
        if flags & libc::O_TRUNC != 0 {
            file.truncate(0).await?;
        }
        let now = file.version();
        let grant = grant(Opening { immutable: false, told: self.attrs.tell(ino, now), now, flags });
        Ok(self.granted(Handle::new(ino, flags, Data::File(file)), attr, grant))
    }

    /// Opens a file for reading that is a blob.
    async fn open_as_blob(self: &Arc<Self>, attr: &Attr, blob: BlobId, flags: i32) -> Result<Opened> {
        let (ino, now) = (attr.ino, attr.version);
        let backed = Backed { version: now, _backing: self.chunks.back(blob, ino) };
        let content = self.chunks.open_blob(blob, attr.size).await?;
        if content.is_complete() && content.is_verified() {
            self.let_go_of(ino);
        }
        // As with the Hub's: what the kernel has may be of bytes that were dropped.
        let told = self.attrs.tell(ino, now).filter(|_| !content.was_wrong());
        let grant = grant(Opening { immutable: false, told, now, flags });
        let handle = Handle {
            attr: Some(Arc::new(attr.clone())),
            backed: Some(backed),
            ..Handle::new(ino, flags, Data::Blob(content))
        };
        Ok(self.granted(handle, attr, grant))
    }

    fn granted(&self, handle: Handle, attr: &Attr, grant: Grant) -> Opened {
        let Grant { keep_cache, drop_attrs } = grant;
        let drop_attrs = self.accessed_by_open(attr, handle.flags, keep_cache) || drop_attrs;
        self.opened(handle, keep_cache, drop_attrs)
    }

    fn opened(&self, handle: Handle, keep_cache: bool, drop_attrs: bool) -> Opened {
        let no_flush = !handle.writable();
        let blob = matches!(handle.data, Data::Blob(_)) && handle.backed.is_none();
        let fh = self.handles.insert(handle);
        Opened { fh, keep_cache, direct_io: false, drop_attrs, drop_pages: false, no_flush, blob }
    }

    /// The file on this machine's disk that has exactly what an open blob reads, if there is one: all of the blob, checked against
    /// its name. From then on that file is read and unlinked, and nothing else, so the kernel may have it for as long as it likes.
    pub async fn native(&self, fh: u64) -> Option<NativeFile> {
        let handle = self.handles.get(fh).ok()?;
        let Data::Blob(blob) = &handle.data else { return None };
        if !blob.is_complete() || !blob.is_verified() {
            return None;
        }
        let file = Arc::clone(blob.cache_file());
        let marked = if file.is_passthrough() {
            file.mark_passthrough()
        } else {
            let file = Arc::clone(&file);
            blocking(move || file.mark_passthrough()).await
        };
        match marked {
            Ok(marked) => marked.then_some(NativeFile(file)),
            Err(e) => {
                tracing::debug!("not for the kernel: {e}");
                None
            }
        }
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
            let opened = self.opened(Handle::new(made.0.ino, flags, Data::Private(made.1)), false, false);
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
        self.adoption.named(parent, name, &attr);
        let opened = self.open_attr(None, &attr, flags).await?;
        Ok((self.entry(&attr), opened))
    }

    /// close(2) of one of possibly several descriptors of a handle: what was written is durable and visible to all when
    /// this answers. An error is the caller's only chance to hear that it is not.
    pub async fn flush(self: &Arc<Self>, fh: u64) -> Result<()> {
        let handle = self.handles.get(fh)?;
        match &handle.data {
            // What has no name nobody can open, so there is nobody to write it out for, unless it may come back.
            Data::File(file) if handle.writable() && !self.attrs.is_lost(handle.ino) => self.save(file).await,
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
            Data::File(file) if file.is_dirty() && !self.attrs.is_lost(handle.ino) => match flock_owner {
                // What somebody else is writing is his to close: other mounts are not to see half of it.
                None if !handle.writable() && self.handles.is_open_to_write(handle.ino) => Ok(()),
                None => self.save(file).await,
                // Whoever gets the lock next, on whichever mount, sees what was written under it.
                Some(_) => self.write_out(file).await,
            },
            _ => Ok(()),
        };
        if handle.writable() {
            self.maybe_a_blob(handle.ino);
        }
        if let (Some(owner), false) = (flock_owner, handle.ino.is_virtual()) {
            self.let_go(handle.ino, owner).await?;
        }
        committed
    }

    /// Sets the size of a file. With a handle it shows at once here and is committed at its close; without one it is
    /// committed before the answer.
    ///
    /// `opening`: see [`SetAttr::opening`](super::SetAttr::opening). Others find the old or the new then, and never nothing.
    pub(super) async fn truncate(
        &self,
        ino: Ino,
        handle: Option<&Handle>,
        size: u64,
        opening: Option<u64>,
    ) -> Result<()> {
        if let Some(Handle { data: Data::File(file), .. }) = handle {
            return file.truncate(size).await;
        }
        let attr = self.meta.getattr(ino).await?;
        regular(&attr)?;
        let file = self.files.open(&attr)?;
        file.truncate(size).await?;
        // A close that comes from now on finds something to commit; one that is past has not.
        let handle = opening.and_then(|fh| self.handles.get(fh).ok());
        if handle.is_some_and(|h| h.ino == ino && h.writable() && matches!(h.data, Data::File(_))) {
            return Ok(());
        }
        self.save(&file).await
    }
}

#[cfg(test)]
mod tests;
