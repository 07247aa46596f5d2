//! The values that the file system takes and answers. They know nothing of the kernel's protocol: `fuse` translates.

use std::time::Duration;

use bytes::Bytes;

use crate::types::{FileType, Ino, Timestamp};

/// Who calls. The umask is already in the mode: the kernel applies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// The calling thread, as `/proc` names it; 0 if it is in another pid namespace or there is none.
    pub pid: u32,
}

/// The attributes of an inode, as the calling mount presents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub ino: Ino,
    pub kind: FileType,
    /// Permission bits with set-uid, set-gid and sticky: `0o7777` at most.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// Of 512 bytes.
    pub blocks: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
}

/// What a name stands for, and how long the kernel may rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub stat: Stat,
    /// For the name.
    pub entry_ttl: Duration,
    /// For the attributes.
    pub attr_ttl: Duration,
}

/// The answer to a lookup. That a name is absent is an answer, not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    Found(Entry),
    Absent {
        /// How long the kernel may remember it; zero = ask again.
        ttl: Duration,
    },
}

/// An open file, and what the kernel may keep of earlier opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    pub fh: u64,
    /// The kernel's pages are of this version: keep them.
    pub keep_cache: bool,
    /// Bypass the page cache.
    pub direct_io: bool,
    /// The kernel may hold an old size: it must forget the attributes before the open returns.
    pub drop_attrs: bool,
    /// The kernel holds pages of another version.
    pub drop_pages: bool,
    /// Nothing will ever be written through this handle: its close need not be told.
    pub no_flush: bool,
    /// It reads what the Hub brought, whose data never changes.
    pub blob: bool,
}

/// One entry of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirItem {
    pub ino: Ino,
    /// The cookie of this entry: listing from it resumes after this entry.
    pub offset: u64,
    pub name: Bytes,
    pub kind: FileType,
    /// With attributes, if they were asked for. `.` and `..` may go without.
    pub entry: Option<Entry>,
}

/// What to change of an inode's attributes; `None` = leave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits, `0o7777` at most.
    pub mode: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Truncate or extend to so many bytes.
    pub size: Option<u64>,
    pub atime: Option<TimeOrNow>,
    pub mtime: Option<TimeOrNow>,
    /// The handle that is being opened with `O_TRUNC`: the size is committed at its close, as if it came through it. It may
    /// be closed by now.
    pub opening: Option<u64>,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeOrNow {
    Now,
    Time(Timestamp),
}

/// The figures of `df`. Blocks are of `frsize` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    /// Inodes.
    pub files: u64,
    pub ffree: u64,
    /// The size of transfer that suits best, bytes.
    pub bsize: u32,
    /// The longest name, bytes.
    pub namelen: u32,
    /// The unit of the block counts, bytes.
    pub frsize: u32,
}

/// A request of flock(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flock {
    Shared,
    Exclusive,
    Unlock,
}

/// What the kernel must forget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// What the name in the directory stands for, or that it is absent.
    Entry { parent: Ino, name: Bytes },
    /// The attributes.
    Attrs { ino: Ino },
    /// The attributes and the pages.
    Pages { ino: Ino },
}
