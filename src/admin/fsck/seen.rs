//! What is remembered of each inode: little, since there may be hundreds of millions.

use crate::meta::survey::Surveyed;
use crate::meta::{Content, InodeRow};
use crate::types::{FileType, Ino};

/// One inode, and what its names say of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub ino: u64,
    /// As its row says; of directories where it lies.
    pub parent: u64,
    /// Where a name of it was seen; `parent` before that.
    pub dir: u64,
    /// As its row says.
    pub nlink: u32,
    /// As it says itself.
    pub subdirs: u32,
    /// Entries that name it.
    pub names: u32,
    /// Entries of directories in it.
    pub dirs: u32,
    /// `None`: its row cannot be read.
    pub kind: Option<FileType>,
    /// Has chunk rows, perhaps.
    pub chunks: bool,
}

impl Seen {
    pub fn new(inode: &Surveyed) -> Self {
        let subdirs = inode.subdirs.as_ref().map_or(u32::MAX, |n| u32::try_from(*n).unwrap_or(u32::MAX));
        let seen = Seen {
            ino: inode.ino.0,
            parent: Ino::ROOT.0,
            dir: Ino::ROOT.0,
            nlink: 0,
            subdirs,
            names: 0,
            dirs: 0,
            kind: None,
            chunks: false,
        };
        match &inode.row {
            Ok(row) => Seen {
                parent: row.parent.0,
                dir: row.parent.0,
                nlink: row.nlink,
                kind: Some(row.kind),
                chunks: row.content == Content::Extents || row.chunks > 0,
                ..seen
            },
            Err(_) => seen,
        }
    }

    pub fn is_dir(&self) -> bool {
        self.kind == Some(FileType::Dir)
    }

    /// Whether what it says of itself is not what its names say. `kept`: it may be without a name.
    pub fn is_doubtful(&self, kept: bool) -> bool {
        let Some(kind) = self.kind else { return false };
        if kind == FileType::Dir {
            let top = self.ino == Ino::ROOT.0;
            let named = match self.names {
                0 => top || kept,
                1 => !top && self.parent == self.dir,
                _ => false,
            };
            !named || self.subdirs != self.dirs
        } else if self.names == 0 {
            !kept
        } else {
            self.nlink != self.names
        }
    }
}

/// Why a row is none that this program writes; `None`: it may be.
pub(super) fn objection(ino: Ino, row: &InodeRow) -> Option<String> {
    use crate::meta::{INLINE_MAX, Role};
    let fits = match (row.kind, &row.content) {
        (FileType::File, Content::None) => row.size == 0,
        (FileType::File, Content::Inline(bytes)) => {
            bytes.len() <= INLINE_MAX && bytes.len() as u64 <= row.size
        }
        (FileType::File, Content::Extents | Content::Blob(_)) => true,
        (FileType::Symlink, Content::Symlink(target)) => target.len() as u64 == row.size,
        (FileType::File | FileType::Symlink, _) => false,
        (_, content) => *content == Content::None,
    };
    if !fits {
        let content = match &row.content {
            Content::None => "no content".to_owned(),
            Content::Inline(bytes) => format!("{} bytes in its row", bytes.len()),
            Content::Extents => "chunks".to_owned(),
            Content::Blob(id) => format!("blob {id}"),
            Content::Symlink(target) => format!("a target of {} bytes", target.len()),
        };
        return Some(format!("a {:?} of {} bytes cannot have {content}", row.kind, row.size));
    }
    match &row.role {
        None if ino == Ino::ROOT => Some("the root does not say that it is the root".to_owned()),
        Some(Role::Root) if ino != Ino::ROOT => Some("it says that it is the root".to_owned()),
        Some(role) if row.kind != FileType::Dir => Some(format!("a {:?} stands for {role:?}", row.kind)),
        _ => None,
    }
}
