//! What belongs to one user on one node: `token`, `stored_tokens`, `xet` and dot files in the root of the mount. They lie
//! in a local folder per user and never reach the metadata, the bucket or another node.
//!
//! The same name in the root is another file for each caller, so the kernel must not remember what it stands for:
//! entries at this level are answered with no time to live, and the numbers below differ from user to user.
//! All calls here touch the local disk only; they are run on the blocking pool by the caller.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, Gid, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};

use super::types::{Caller, DirItem, Entry, Flock, SetAttr, Stat, TimeOrNow};
use super::virtual_ino;
use crate::error::{Error, Kind, Result};
use crate::meta::XATTRS_MAX;
use crate::types::{FileType, Ino, Timestamp};

/// Whether a name in the root belongs to the calling user. `.locks` is the one dot name that all share: the libraries
/// lock across users and nodes there.
#[must_use]
pub fn is_private(name: &[u8]) -> bool {
    let own = |stem: &[u8]| match name.strip_prefix(stem) {
        Some([]) => true,
        // Temporary names beside the file, to be renamed over it: `stored_tokens.1f.tmp`.
        Some([next, ..]) => matches!(next, b'.' | b'~'),
        None => false,
    };
    (name.starts_with(b".") && name != b".locks") || own(b"token") || own(b"stored_tokens") || name == b"xet"
}

/// The private files of all users of this mount.
#[derive(Debug)]
pub struct Private {
    root: PathBuf,
    next: AtomicU64,
    nodes: Mutex<Nodes>,
}

#[derive(Debug, Default)]
struct Nodes {
    by_ino: HashMap<Ino, Node>,
    by_path: HashMap<PathBuf, Ino>,
}

#[derive(Debug)]
struct Node {
    path: PathBuf,
    /// How often the kernel was told of it and has not forgotten yet.
    lookups: u64,
}

impl Private {
    /// Files live below `root/<uid>`, which only this daemon's user may enter.
    pub fn open(root: PathBuf) -> Result<Self> {
        fs::create_dir_all(&root)
            .and_then(|()| fs::set_permissions(&root, Permissions::from_mode(0o711)))
            .map_err(|e| failed(&root, e))?;
        Ok(Private { root, next: AtomicU64::new(1), nodes: Mutex::default() })
    }

    /// Takes the tokens that a user had in the folder which the mount hides, the first time that user is seen here.
    pub fn adopt(&self, uid: u32, gid: u32, files: &[(&str, Vec<u8>)]) -> Result<()> {
        if files.is_empty() || self.root.join(uid.to_string()).exists() {
            return Ok(());
        }
        let caller = Caller { uid, gid, pid: 0 };
        let home = self.home(&caller)?;
        for (name, bytes) in files {
            let path = home.join(name);
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            let file = file.map_err(|e| failed(&path, e))?;
            file.write_all_at(bytes, 0).map_err(|e| failed(&path, e))?;
            own(&path, &caller)?;
        }
        Ok(())
    }

    fn home(&self, caller: &Caller) -> Result<PathBuf> {
        let home = self.root.join(caller.uid.to_string());
        match fs::create_dir(&home) {
            Ok(()) => {
                fs::set_permissions(&home, Permissions::from_mode(0o700)).map_err(|e| failed(&home, e))?;
                own(&home, caller)?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed(&home, e)),
        }
        Ok(home)
    }

    /// The local path of `name` in `parent`: the root of the mount, or a private directory.
    fn path(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<PathBuf> {
        let dir = if parent == Ino::ROOT { self.home(caller)? } else { self.path_of(parent)? };
        if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
            return Err(Error::new(Kind::Invalid, "name"));
        }
        Ok(dir.join(OsStr::from_bytes(name)))
    }

    fn path_of(&self, ino: Ino) -> Result<PathBuf> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let node = nodes.by_ino.get(&ino).ok_or_else(|| Error::new(Kind::Stale, format!("inode {ino}")))?;
        Ok(node.path.clone())
    }

    fn told(&self, path: &Path) -> Ino {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let ino = match nodes.by_path.get(path) {
            Some(ino) => *ino,
            None => {
                let ino = virtual_ino::private(self.next.fetch_add(1, Ordering::Relaxed));
                nodes.by_path.insert(path.to_owned(), ino);
                nodes.by_ino.insert(ino, Node { path: path.to_owned(), lookups: 0 });
                ino
            }
        };
        if let Some(node) = nodes.by_ino.get_mut(&ino) {
            node.lookups += 1;
        }
        ino
    }

    /// The kernel forgot `n` lookups.
    pub fn forget(&self, ino: Ino, n: u64) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(node) = nodes.by_ino.get_mut(&ino) else { return };
        node.lookups = node.lookups.saturating_sub(n);
        if node.lookups == 0
            && let Some(node) = nodes.by_ino.remove(&ino)
            && nodes.by_path.get(&node.path) == Some(&ino)
        {
            nodes.by_path.remove(&node.path);
        }
    }

    /// The path no longer stands for the inode that it stood for: a later file of that name is another inode.
    fn detach(nodes: &mut Nodes, path: &Path) {
        let below: Vec<PathBuf> = nodes.by_path.keys().filter(|p| p.starts_with(path)).cloned().collect();
        for path in below {
            nodes.by_path.remove(&path);
        }
    }

    /// `None`: no such file for this caller.
    pub fn lookup(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Option<Stat>> {
        let path = self.path(caller, parent, name)?;
        match fs::symlink_metadata(&path) {
            Ok(meta) => Ok(Some(stat(self.told(&path), &meta))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(&path, e)),
        }
    }

    pub fn getattr(&self, ino: Ino, handle: Option<&File>) -> Result<Stat> {
        let meta = match handle {
            Some(file) => file.metadata(),
            None => fs::symlink_metadata(self.path_of(ino)?),
        };
        // Unlinked by another client of the same user: the kernel should walk again.
        meta.map(|m| stat(ino, &m))
            .map_err(|e| Error::with_source(Kind::Stale, format!("private inode {ino}"), e))
    }

    pub fn setattr(&self, ino: Ino, handle: Option<&File>, set: &SetAttr) -> Result<Stat> {
        let path = self.path_of(ino)?;
        let fail = |e| failed(&path, e);
        if let Some(mode) = set.mode {
            fs::set_permissions(&path, Permissions::from_mode(mode.into())).map_err(fail)?;
        }
        if set.uid.is_some() || set.gid.is_some() {
            let (uid, gid) = (set.uid.map(Uid::from_raw), set.gid.map(Gid::from_raw));
            rustix::fs::chownat(CWD, &path, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| fail(e.into()))?;
        }
        if let Some(size) = set.size {
            match handle {
                Some(file) => file.set_len(size).map_err(fail)?,
                None => {
                    OpenOptions::new().write(true).open(&path).and_then(|f| f.set_len(size)).map_err(fail)?
                }
            }
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let times =
                Timestamps { last_access: timespec(set.atime), last_modification: timespec(set.mtime) };
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| fail(e.into()))?;
        }
        self.getattr(ino, handle)
    }

    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u16) -> Result<Stat> {
        let path = self.path(caller, parent, name)?;
        fs::create_dir(&path).map_err(|e| failed(&path, e))?;
        self.made(caller, &path, mode)
    }

    pub fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Stat> {
        let path = self.path(caller, parent, name)?;
        std::os::unix::fs::symlink(OsStr::from_bytes(target), &path).map_err(|e| failed(&path, e))?;
        own(&path, caller)?;
        let meta = fs::symlink_metadata(&path).map_err(|e| failed(&path, e))?;
        Ok(stat(self.told(&path), &meta))
    }

    pub fn readlink(&self, ino: Ino) -> Result<Bytes> {
        let path = self.path_of(ino)?;
        let target = fs::read_link(&path).map_err(|e| failed(&path, e))?;
        Ok(Bytes::copy_from_slice(target.as_os_str().as_bytes()))
    }

    /// Opens, making the file if `flags` say `O_CREAT`.
    pub fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &[u8],
        mode: u16,
        flags: i32,
    ) -> Result<(Stat, Arc<File>)> {
        let path = self.path(caller, parent, name)?;
        let existed = fs::symlink_metadata(&path).is_ok();
        let file = open(&path, flags | libc::O_CREAT, mode)?;
        if existed {
            let meta = file.metadata().map_err(|e| failed(&path, e))?;
            return Ok((stat(self.told(&path), &meta), Arc::new(file)));
        }
        Ok((self.made(caller, &path, mode)?, Arc::new(file)))
    }

    pub fn open_file(&self, ino: Ino, flags: i32) -> Result<Arc<File>> {
        let path = self.path_of(ino)?;
        open(&path, flags & !(libc::O_CREAT | libc::O_EXCL), 0).map(Arc::new)
    }

    pub fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8], dir: bool) -> Result<()> {
        let path = self.path(caller, parent, name)?;
        let removed = if dir { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        removed.map_err(|e| failed(&path, e))?;
        Self::detach(&mut self.nodes.lock().unwrap_or_else(PoisonError::into_inner), &path);
        Ok(())
    }

    pub fn rename(&self, caller: &Caller, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: u32) -> Result<()> {
        let (old, new) = (self.path(caller, from.0, from.1)?, self.path(caller, to.0, to.1)?);
        let flags = rustix::fs::RenameFlags::from_bits_retain(flags);
        rustix::fs::renameat_with(CWD, &old, CWD, &new, flags).map_err(|e| failed(&old, e.into()))?;
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        Self::detach(&mut nodes, &new);
        let moved: Vec<(PathBuf, Ino)> =
            nodes.by_path.iter().filter(|(p, _)| p.starts_with(&old)).map(|(p, i)| (p.clone(), *i)).collect();
        for (path, ino) in moved {
            nodes.by_path.remove(&path);
            let rest = path.strip_prefix(&old).unwrap_or(Path::new(""));
            let now = if rest.as_os_str().is_empty() { new.clone() } else { new.join(rest) };
            if let Some(node) = nodes.by_ino.get_mut(&ino) {
                node.path.clone_from(&now);
            }
            nodes.by_path.insert(now, ino);
        }
        Ok(())
    }

    /// All entries of a private directory above the cookie `offset`. They come in the order of a hash of their names, which
    /// is the cookie: it stays good while entries come and go. With `plus` each has its attributes and counts as a lookup.
    pub fn readdir(&self, ino: Ino, offset: u64, plus: bool) -> Result<Vec<DirItem>> {
        let path = self.path_of(ino)?;
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).map_err(|e| failed(&path, e))? {
            let entry = entry.map_err(|e| failed(&path, e))?;
            let cookie = cookie(&entry.file_name());
            if cookie > offset {
                names.push((cookie, entry.file_name()));
            }
        }
        names.sort();
        let mut items = Vec::new();
        for (cookie, name) in names {
            let path = path.join(&name);
            // Removed since the names were read: not listed.
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let stat = plus.then(|| stat(self.told(&path), &meta));
            items.push(DirItem {
                ino: stat.map_or_else(|| self.known(&path), |s| s.ino),
                offset: cookie,
                name: Bytes::copy_from_slice(name.as_bytes()),
                kind: file_type(meta.file_type()),
                entry: stat.map(|stat| Entry { stat, entry_ttl: Duration::ZERO, attr_ttl: Duration::ZERO }),
            });
        }
        Ok(items)
    }

    /// The number of a path, for a listing without attributes: some number if the kernel was not told of it.
    fn known(&self, path: &Path) -> Ino {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.by_path.get(path).copied().unwrap_or(virtual_ino::private(0))
    }

    /// The value of an extended attribute, as the local disk keeps it.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Bytes> {
        let path = self.path_of(ino)?;
        let mut value = vec![0; XATTRS_MAX];
        let len = rustix::fs::lgetxattr(&path, OsStr::from_bytes(name), &mut value[..])
            .map_err(|e| failed(&path, e.into()))?;
        value.truncate(len);
        Ok(value.into())
    }

    /// The names that are kept of those that the local disk has, each with a 0 behind it.
    pub fn listxattr(&self, ino: Ino) -> Result<Bytes> {
        let path = self.path_of(ino)?;
        let mut names = vec![0; XATTRS_MAX];
        let len = rustix::fs::llistxattr(&path, &mut names[..]).map_err(|e| failed(&path, e.into()))?;
        let own = names[..len].split_inclusive(|b| *b == 0).filter(|name| name.starts_with(b"user."));
        Ok(own.flatten().copied().collect())
    }

    pub fn setxattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        let path = self.path_of(ino)?;
        let flags = rustix::fs::XattrFlags::from_bits_retain(flags.cast_unsigned());
        rustix::fs::lsetxattr(&path, OsStr::from_bytes(name), value, flags)
            .map_err(|e| failed(&path, e.into()))
    }

    pub fn removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let path = self.path_of(ino)?;
        rustix::fs::lremovexattr(&path, OsStr::from_bytes(name)).map_err(|e| failed(&path, e.into()))
    }

    fn made(&self, caller: &Caller, path: &Path, mode: u16) -> Result<Stat> {
        // The daemon's own umask must not show.
        fs::set_permissions(path, Permissions::from_mode(mode.into())).map_err(|e| failed(path, e))?;
        own(path, caller)?;
        let meta = fs::symlink_metadata(path).map_err(|e| failed(path, e))?;
        Ok(stat(self.told(path), &meta))
    }
}

/// flock on a private file is the local kernel's: nobody on another node has it open.
pub fn flock(file: &File, kind: Flock) -> Result<()> {
    let operation = match kind {
        Flock::Shared => libc::LOCK_SH | libc::LOCK_NB,
        Flock::Exclusive => libc::LOCK_EX | libc::LOCK_NB,
        Flock::Unlock => libc::LOCK_UN,
    };
    // SAFETY: flock(2) takes a descriptor that `file` keeps open, and touches no memory.
    if unsafe { libc::flock(file.as_raw_fd(), operation) } == 0 {
        return Ok(());
    }
    match std::io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::EWOULDBLOCK) => Err(Kind::WouldBlock.into()),
        e => Err(Error::with_source(Kind::Disk, "lock of a private file", e)),
    }
}

fn open(path: &Path, flags: i32, mode: u16) -> Result<File> {
    let access = flags & libc::O_ACCMODE;
    OpenOptions::new()
        // Reading is always possible for the daemon, so that the kernel may fill partial pages.
        .read(true)
        .write(access != libc::O_RDONLY)
        .create(flags & libc::O_CREAT != 0 && access != libc::O_RDONLY)
        .truncate(flags & libc::O_TRUNC != 0 && access != libc::O_RDONLY)
        .custom_flags((flags & libc::O_EXCL) | libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .mode(mode.into())
        .open(path)
        .map_err(|e| failed(path, e))
}

fn own(path: &Path, caller: &Caller) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = (Some(Uid::from_raw(caller.uid)), Some(Gid::from_raw(caller.gid)));
    rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| failed(path, e.into()))
}

/// Above 0 and below 2^62.
fn cookie(name: &OsStr) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..8]);
    (u64::from_be_bytes(first) >> 2).max(1)
}

fn timespec(time: Option<TimeOrNow>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(TimeOrNow::Time(t)) => {
            Timespec { tv_sec: t.0.div_euclid(1_000_000_000), tv_nsec: t.0.rem_euclid(1_000_000_000) }
        }
    }
}

fn file_type(kind: fs::FileType) -> FileType {
    match kind {
        k if k.is_dir() => FileType::Dir,
        k if k.is_symlink() => FileType::Symlink,
        k if k.is_fifo() => FileType::Fifo,
        k if k.is_socket() => FileType::Socket,
        k if k.is_char_device() => FileType::CharDevice,
        k if k.is_block_device() => FileType::BlockDevice,
        _ => FileType::File,
    }
}

fn stat(ino: Ino, meta: &fs::Metadata) -> Stat {
    let time = |s: i64, ns: i64| Timestamp(s.saturating_mul(1_000_000_000).saturating_add(ns));
    Stat {
        ino,
        kind: file_type(meta.file_type()),
        mode: (meta.mode() & 0o7777) as u16,
        uid: meta.uid(),
        gid: meta.gid(),
        nlink: u32::try_from(meta.nlink()).unwrap_or(u32::MAX),
        rdev: 0,
        size: meta.size(),
        blocks: meta.blocks(),
        atime: time(meta.atime(), meta.atime_nsec()),
        mtime: time(meta.mtime(), meta.mtime_nsec()),
        ctime: time(meta.ctime(), meta.ctime_nsec()),
    }
}

/// Private names show their errors as a local file system would. The path is left out: it may name a user's file.
fn failed(path: &Path, e: std::io::Error) -> Error {
    let kind = match e.raw_os_error() {
        Some(libc::ENOENT) => Kind::NotFound,
        Some(libc::EEXIST) => Kind::Exists,
        Some(libc::ENOTDIR) => Kind::NotDirectory,
        Some(libc::EISDIR) => Kind::IsDirectory,
        Some(libc::ENOTEMPTY) => Kind::NotEmpty,
        Some(libc::EACCES) => Kind::Access,
        Some(libc::EPERM) => Kind::NotPermitted,
        Some(libc::ENOSPC) => Kind::NoSpace,
        Some(libc::EINVAL) => Kind::Invalid,
        Some(libc::ENAMETOOLONG) => Kind::NameTooLong,
        Some(libc::ENODATA) => Kind::NoData,
        Some(libc::EOPNOTSUPP) => Kind::NotSupported,
        _ => Kind::Disk,
    };
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Error::with_source(kind, format!("private file {name:?}"), e)
}

#[cfg(test)]
#[path = "private_tests.rs"]
mod tests;
