//! How a mount shows an inode: who owns what the Hub brought, which modes it has, and how long the kernel may rely on it.

use std::time::Duration;

use super::VfsOptions;
use super::types::{Entry, Stat};
use super::virtual_ino;
use crate::meta::{Attr, Content};
use crate::types::{FileType, Ino, Timestamp};

/// The shortest time to live with which anything is granted for longer: it takes about that long to notice that the push
/// is silent.
pub const SHORTEST: Duration = Duration::from_secs(1);

/// The root is always writable for all: each user makes repositories in it, and nobody may lock the others out.
pub const ROOT_MODE: u16 = 0o777;

/// Shows `attr` on this mount.
///
/// What the Hub brought is owned by `--uid` and `--gid`, its mode cut by `--umask` until somebody sets it; a private or
/// gated repository is for owner and group only, whatever the umask. What users made is shown as it is.
#[must_use]
pub fn stat(attr: &Attr, opts: &VfsOptions) -> Stat {
    let (mut mode, mut uid, mut gid) = (attr.mode, attr.uid, attr.gid);
    if attr.hub {
        (uid, gid) = (opts.uid, opts.gid);
        if !attr.mode_set {
            mode &= !opts.umask;
        }
        if attr.restricted {
            mode &= 0o750;
        }
    }
    if attr.ino == Ino::ROOT {
        mode = ROOT_MODE;
    }
    if attr.kind == FileType::Symlink {
        mode = 0o777;
    }
    Stat {
        ino: attr.ino,
        kind: attr.kind,
        mode,
        uid,
        gid,
        nlink: attr.nlink,
        rdev: attr.rdev,
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
    }
}

/// Whether the inode stays as it is for as long as its name does: a blob, a link of a commit.
#[must_use]
pub fn is_immutable(attr: &Attr) -> bool {
    attr.hub && matches!(attr.content, Content::Blob(_) | Content::Symlink(_))
}

/// Whether the kernel may rely on a name that stands for `attr` for long, and on its attributes, should the push be known
/// to arrive. Below [`SHORTEST`] the user wants names asked for, whatever they are. The directories of a repository have their names
/// until somebody deletes or moves them; their attributes change with what is in them.
#[must_use]
pub fn may_last(attr: &Attr, opts: &VfsOptions) -> (bool, bool) {
    let name = is_immutable(attr) || (attr.hub && attr.kind == FileType::Dir && attr.role.is_some());
    (name && opts.entry_ttl >= SHORTEST, is_immutable(attr) && opts.attr_ttl >= SHORTEST)
}

/// The entry for a name that stands for `attr`, to be relied on as long as any.
#[must_use]
pub fn entry(attr: &Attr, opts: &VfsOptions) -> Entry {
    Entry { stat: stat(attr, opts), entry_ttl: opts.entry_ttl, attr_ttl: opts.attr_ttl }
}

/// The hidden link `hub` → `.`.
#[must_use]
pub fn hub_link(opts: &VfsOptions) -> Stat {
    Stat { size: 1, kind: FileType::Symlink, mode: 0o777, ..made_up(virtual_ino::HUB_LINK, opts) }
}

/// The empty file that says that a commit does not have a name.
#[must_use]
pub fn absent_file(opts: &VfsOptions) -> Stat {
    Stat { mode: 0o666 & !opts.umask, ..made_up(virtual_ino::ABSENT_FILE, opts) }
}

/// A directory of such files.
#[must_use]
pub fn absent_dir(ino: Ino, opts: &VfsOptions) -> Stat {
    Stat { kind: FileType::Dir, mode: 0o777 & !opts.umask, nlink: 2, ..made_up(ino, opts) }
}

/// A directory whose repository is still being asked for.
#[must_use]
pub fn provisional_dir(ino: Ino, opts: &VfsOptions) -> Stat {
    absent_dir(ino, opts)
}

fn made_up(ino: Ino, opts: &VfsOptions) -> Stat {
    let zero = Timestamp(0);
    Stat {
        ino,
        kind: FileType::File,
        mode: 0,
        uid: opts.uid,
        gid: opts.gid,
        nlink: 1,
        rdev: 0,
        size: 0,
        blocks: 0,
        atime: zero,
        mtime: zero,
        ctime: zero,
    }
}
