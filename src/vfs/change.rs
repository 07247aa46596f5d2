//! Changing names and attributes: make, link, unlink, rename, setattr.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Vfs;
use super::handles::Data;
use super::lazy::tombstone_of;
use super::types::{Caller, Entry, SetAttr, Stat, TimeOrNow};
use super::virtual_ino::{Which, which};
use super::{adopt, present, private};
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::meta::{self, Attr, Keep, New, Removed, RenameMode, Role, is_temporary as is_temporary_name};
use crate::types::{FileType, Ino, RepoId, Timestamp};

impl Vfs {
    /// Where a name lies, once it is clear that it may be changed.
    pub(super) async fn place(&self, parent: Ino, name: &[u8]) -> Result<Place> {
        self.writable()?;
        match which(parent) {
            Which::Private => return Ok(Place::Private),
            Which::Real => {}
            // What is not in a commit cannot be put there.
            _ => return Err(Error::new(Kind::Access, ".no_exist of a commit")),
        }
        if parent == Ino::ROOT {
            if name == b"hub" {
                return Err(Error::new(Kind::NotPermitted, "hub stands for the root itself"));
            }
            if private::is_private(name) {
                return Ok(Place::Private);
            }
        }
        self.settle(parent).await?;
        Ok(Place::Shared)
    }

    pub(super) fn writable(&self) -> Result<()> {
        if self.opts.read_only { Err(Error::new(Kind::ReadOnly, "the mount")) } else { Ok(()) }
    }

    /// Makes a directory.
    pub async fn mkdir(
        self: &Arc<Self>,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u16,
    ) -> Result<Entry> {
        if self.place(parent, name).await? == Place::Private {
            let (vfs, caller, name) = self.owned(caller, name);
            return blocking(move || vfs.private.mkdir(&caller, parent, &name, mode)).await.map(unremembered);
        }
        let new = New::plain(FileType::Dir, mode, caller.uid, caller.gid);
        let made = self.make(parent, name, new).await?;
        Ok(self.entry(&made))
    }

    /// Makes a file, fifo, socket or device without opening it.
    pub async fn mknod(
        self: &Arc<Self>,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        kind: FileType,
        mode: u16,
        rdev: u32,
    ) -> Result<Entry> {
        if self.place(parent, name).await? == Place::Private {
            return Err(Error::new(Kind::NotPermitted, "special file among private files"));
        }
        let new = New { rdev, ..New::plain(kind, mode, caller.uid, caller.gid) };
        let made = self.make(parent, name, new).await?;
        Ok(self.entry(&made))
    }

    /// Makes a symbolic link.
    pub async fn symlink(
        self: &Arc<Self>,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        target: &[u8],
    ) -> Result<Entry> {
        if self.place(parent, name).await? == Place::Private {
            let (vfs, caller, name) = self.owned(caller, name);
            let target = Bytes::copy_from_slice(target);
            let made = blocking(move || vfs.private.symlink(&caller, parent, &name, &target)).await;
            return made.map(unremembered);
        }
        let target = Some(Bytes::copy_from_slice(target));
        let new = New { target, ..New::plain(FileType::Symlink, 0o777, caller.uid, caller.gid) };
        let made = self.make(parent, name, new).await?;
        Ok(self.entry(&made))
    }

    /// Makes what `new` says. `.locks` and `blobs` in the root are for all users, whatever their umask, with all that is made
    /// in them: the libraries of different users lock and share there. A name made by hand is no longer the Hub's.
    pub(super) async fn make(self: &Arc<Self>, parent: Ino, name: &[u8], mut new: New) -> Result<Attr> {
        let facts =
            self.facts(parent).await?.ok_or_else(|| Error::new(Kind::Stale, format!("inode {parent}")))?;
        let is_dir = new.kind == FileType::Dir;
        if is_dir && facts.role == Some(Role::Root) {
            new.role = match name {
                b".locks" => Some(Role::Locks),
                b"blobs" => Some(Role::SharedBlobs),
                _ => None,
            };
        }
        let made = self.meta.make(parent, name, new).await?;
        match facts.role {
            // The tombstone of its name went in the same commit.
            Some(Role::Root) if is_dir => self.forget_repo(name),
            Some(Role::Snapshots(_) | Role::Refs { .. }) if !is_temporary(name) => {
                self.meta.set_tombstone(&tombstone_of(parent, name), None).await?;
            }
            _ => {}
        }
        Ok(made)
    }

    fn forget_repo(&self, name: &[u8]) {
        let repo = std::str::from_utf8(name).ok().and_then(RepoId::from_folder);
        if let (Some(lazy), Some(repo)) = (&self.lazy, repo) {
            lazy.forget_repo(&repo);
        }
    }

    /// Another name for an inode that is not a directory.
    pub async fn link(self: &Arc<Self>, ino: Ino, parent: Ino, name: &[u8]) -> Result<Entry> {
        if self.place(parent, name).await? == Place::Private || ino.is_virtual() {
            return Err(Error::new(Kind::CrossDevice, "link between private and shared files"));
        }
        let attr = self.meta.link(ino, parent, name).await?;
        self.attrs.forget(ino);
        self.bears_name(parent, name, &attr);
        Ok(self.entry(&attr))
    }

    /// Removes a name of anything but a directory.
    pub async fn unlink(self: &Arc<Self>, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        if self.place(parent, name).await? == Place::Private {
            let (vfs, caller, name) = self.owned(caller, name);
            return blocking(move || vfs.private.unlink(&caller, parent, &name, false)).await;
        }
        self.bury(parent, name).await?;
        let keep = self.keeps(parent, name).await?;
        let removed = self.meta.unlink_keeping(parent, name, keep).await?;
        self.attrs.removed(&removed);
        Ok(())
    }

    /// Removes an empty directory.
    pub async fn rmdir(self: &Arc<Self>, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        if self.place(parent, name).await? == Place::Private {
            let (vfs, caller, name) = self.owned(caller, name);
            return blocking(move || vfs.private.unlink(&caller, parent, &name, true)).await;
        }
        let keep = if self.bin_has_place_for(parent, name).await? { Keep::Yes } else { Keep::No };
        let removed = self.meta.rmdir_keeping(parent, name, keep).await?;
        self.attrs.removed(&removed);
        self.bury(parent, name).await
    }

    /// Whether what has the name is kept for a while when that is its last one and is deleted.
    async fn keeps(&self, parent: Ino, name: &[u8]) -> Result<Keep> {
        if is_temporary_name(name) || !self.bin_has_place_for(parent, name).await? {
            return Ok(Keep::No);
        }
        // With writeback, a file that was closed may be empty still in the metadata.
        if self.files.waiting().0.files > 0
            && let Some(attr) = self.meta.lookup(parent, name).await?
            && self.files.in_use(attr.ino).is_some_and(|file| file.is_dirty())
        {
            return Ok(Keep::Filled);
        }
        Ok(Keep::Yes)
    }

    /// What the place tells of that: nothing is kept of the folders that hold what the Hub has, nor of those of locks.
    async fn bin_has_place_for(&self, parent: Ino, name: &[u8]) -> Result<bool> {
        if self.meta.bin_ttl().is_zero() {
            return Ok(false);
        }
        let Some(facts) = self.facts(parent).await? else { return Ok(false) };
        if !matches!(facts.role, None | Some(Role::Root | Role::Repo(_))) {
            return Ok(false);
        }
        // A client that downloaded with a token of its own made `<repository>/blobs/<etag>` itself: the Hub has that too.
        Ok(adopt::etag(name).is_none() || !self.may_hold_blobs(parent).await?)
    }

    /// What was deleted on purpose does not come back from the Hub by itself while its tombstone lasts. For a repository
    /// the metadata sets it in the commit that removes the name.
    async fn bury(&self, parent: Ino, name: &[u8]) -> Result<()> {
        match self.facts(parent).await?.and_then(|f| f.role) {
            Some(Role::Root) => {
                self.forget_repo(name);
                Ok(())
            }
            Some(Role::Snapshots(_) | Role::Refs { .. }) if !is_temporary(name) => {
                let ttl = u64::try_from(self.opts.tombstone_ttl.as_nanos()).unwrap_or(u64::MAX);
                let until = Timestamp(self.meta.now().0.saturating_add_unsigned(ttl));
                self.meta.set_tombstone(&tombstone_of(parent, name), Some(until)).await
            }
            _ => Ok(()),
        }
    }

    /// renameat2(2). `flags` are `RENAME_NOREPLACE` (1) or `RENAME_EXCHANGE` (2).
    pub async fn rename(
        self: &Arc<Self>,
        caller: &Caller,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        flags: u32,
    ) -> Result<()> {
        match (self.place(from.0, from.1).await?, self.place(to.0, to.1).await?) {
            (Place::Private, Place::Private) => {
                let (vfs, caller) = (Arc::clone(self), *caller);
                let (old, new) = (Bytes::copy_from_slice(from.1), Bytes::copy_from_slice(to.1));
                let rename = move || vfs.private.rename(&caller, (from.0, &old), (to.0, &new), flags);
                return blocking(rename).await;
            }
            (Place::Shared, Place::Shared) => {}
            _ => return Err(Error::new(Kind::CrossDevice, "rename between private and shared files")),
        }
        let mode = match flags {
            0 => RenameMode::Replace,
            libc::RENAME_NOREPLACE => RenameMode::NoReplace,
            libc::RENAME_EXCHANGE => RenameMode::Exchange,
            _ => return Err(Error::new(Kind::Invalid, format!("rename flags {flags:#x}"))),
        };
        if mode != RenameMode::NoReplace {
            self.commit_before_it_replaces(from, to).await?;
        }
        let keep = if mode == RenameMode::Replace { self.keeps(to.0, to.1).await? } else { Keep::No };
        let renamed = self.meta.rename_keeping(from.0, from.1, to.0, to.1, mode, keep).await?;
        self.attrs.forget(renamed.moved.ino);
        self.bears_name(to.0, to.1, &renamed.moved);
        if let Some(replaced) = &renamed.replaced {
            self.attrs.removed(replaced);
        }
        if mode != RenameMode::Exchange {
            self.bury(from.0, from.1).await?;
        }
        if to.0 == Ino::ROOT {
            self.forget_repo(to.1);
        }
        Ok(())
    }

    /// With writeback: names change at once, and data follows. A file that takes the place of another is committed first, so
    /// that no other mount finds less under the name than there was.
    async fn commit_before_it_replaces(&self, from: (Ino, &[u8]), to: (Ino, &[u8])) -> Result<()> {
        if self.files.waiting().0.files == 0 {
            return Ok(());
        }
        let (moved, replaced) =
            tokio::try_join!(self.meta.lookup(from.0, from.1), self.meta.lookup(to.0, to.1))?;
        let (Some(moved), Some(_)) = (moved, replaced) else { return Ok(()) };
        match self.files.in_use(moved.ino) {
            Some(file) if file.is_dirty() => self.write_out(&file).await,
            _ => Ok(()),
        }
    }

    /// Changes attributes, the size among them.
    pub async fn setattr(
        self: &Arc<Self>,
        ino: Ino,
        fh: Option<u64>,
        set: SetAttr,
    ) -> Result<(Stat, Duration)> {
        self.writable()?;
        let handle = match fh {
            Some(fh) => Some(self.handles.get(fh)?),
            None => None,
        };
        match which(ino) {
            Which::Real => {}
            Which::Private => {
                let file = match handle.as_ref().map(|h| &h.data) {
                    Some(Data::Private(file)) => Some(Arc::clone(file)),
                    _ => None,
                };
                let vfs = Arc::clone(self);
                let stat = blocking(move || vfs.private.setattr(ino, file.as_deref(), &set)).await?;
                return Ok((stat, Duration::ZERO));
            }
            // A client that notes "not in this commit" touches the file and finds it there.
            _ => return self.getattr(ino, None).await,
        }
        if let Some(ghost) = self.attrs.ghost(ino).filter(|g| g.kind != FileType::File) {
            return Ok(self.set_ghost(ghost, &set));
        }
        self.settle(ino).await?;
        if let Some(size) = set.size {
            self.truncate(ino, handle.as_deref(), size, set.opening).await?;
        }
        let change = self.change_of(ino, &set).await?;
        let attr = match (change, self.files.in_use(ino)) {
            (Some(change), Some(file)) if set.mtime.is_some() => {
                file.set_times(self.meta.setattr(ino, change)).await?
            }
            (Some(change), _) => self.meta.setattr(ino, change).await?,
            // What was cut is known from the commit.
            (None, _) => match self.meta.recent(ino, self.opts.attr_ttl) {
                Some((attr, _)) => attr,
                None => self.meta.getattr(ino).await?,
            },
        };
        self.attrs.forget(ino);
        if set.atime.is_some() {
            self.atimes.set(&attr);
        }
        if let Some(file) = self.files.in_use(ino) {
            file.refresh(&attr);
        }
        let entry = self.entry(&attr);
        Ok((entry.stat, entry.attr_ttl))
    }

    /// What of the wanted change is one. The modes of the root and of what lies below `.locks` are fixed: a chmod there
    /// succeeds and changes nothing, since programs check it and no user may lock the others out.
    async fn change_of(&self, ino: Ino, set: &SetAttr) -> Result<Option<meta::SetAttr>> {
        let mut mode = set.mode;
        if mode.is_some() && (ino == Ino::ROOT || self.is_lock(ino).await?) {
            mode = None;
        }
        let (mut uid, mut gid) = if ino == Ino::ROOT { (None, None) } else { (set.uid, set.gid) };
        if uid.is_some() || gid.is_some() {
            let attr = self.meta.getattr(ino).await?;
            // What the Hub brought becomes somebody's own as it is shown here: its row says nothing of this mount's owner.
            if attr.hub {
                let shown = present::stat(&attr, &self.opts);
                uid = uid.or(Some(shown.uid));
                gid = gid.or(Some(shown.gid));
                mode = mode.or(Some(shown.mode));
            }
        }
        if mode.is_none() && uid.is_none() && gid.is_none() && set.atime.is_none() && set.mtime.is_none() {
            return Ok(None);
        }
        Ok(Some(meta::SetAttr { mode, uid, gid, atime: time(set.atime), mtime: time(set.mtime) }))
    }

    /// A directory or fifo that is open and has no name any more: it is in nobody's metadata but this mount's memory.
    fn set_ghost(&self, mut ghost: Attr, set: &SetAttr) -> (Stat, Duration) {
        ghost.mode = set.mode.unwrap_or(ghost.mode);
        ghost.uid = set.uid.unwrap_or(ghost.uid);
        ghost.gid = set.gid.unwrap_or(ghost.gid);
        ghost.atime = time(set.atime).unwrap_or(ghost.atime);
        ghost.mtime = time(set.mtime).unwrap_or(ghost.mtime);
        ghost.ctime = Timestamp::now();
        self.attrs.removed(&Removed { attr: ghost.clone(), binned: false });
        let entry = self.entry(&ghost);
        (entry.stat, entry.attr_ttl)
    }

    /// Whether the inode is `.locks` or was made below it.
    async fn is_lock(&self, ino: Ino) -> Result<bool> {
        let (kind, parent) = self.meta.origin(ino).await?;
        let dir = if kind == FileType::Dir { ino } else { parent };
        Ok(self.facts(dir).await?.is_some_and(|f| f.role == Some(Role::Locks)))
    }

    fn owned(self: &Arc<Self>, caller: &Caller, name: &[u8]) -> (Arc<Self>, Caller, Bytes) {
        (Arc::clone(self), *caller, Bytes::copy_from_slice(name))
    }
}

/// Whose a name is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the metadata, for all.
    Shared,
    /// On this node, for one user.
    Private,
}

/// The entry of a private name: the kernel must ask each time, since the next caller has another file there.
pub(super) fn unremembered(stat: Stat) -> Entry {
    Entry { stat, entry_ttl: Duration::ZERO, attr_ttl: Duration::ZERO }
}

fn time(set: Option<TimeOrNow>) -> Option<Timestamp> {
    set.map(|t| match t {
        TimeOrNow::Now => Timestamp::now(),
        TimeOrNow::Time(t) => t,
    })
}

/// A name that a client writes to and renames: `main.1f2e3d4c.tmp`.
fn is_temporary(name: &[u8]) -> bool {
    name.starts_with(b".") || name.ends_with(b".tmp")
}
