//! Open files and directories of this mount.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::chunk::{Backing, BlobContent, FileContent};
use crate::error::{Error, Kind, Result};
use crate::meta::Attr;
use crate::types::{BlobId, Ino, Version};

/// What a handle reads and writes.
#[derive(Clone, Debug)]
pub enum Data {
    /// A blob of the Hub, or a file that has the bytes of one, read-only.
    Blob(Arc<BlobContent>),
    /// What users wrote.
    File(Arc<FileContent>),
    /// A file of one user on this node.
    Private(Arc<File>),
    /// The file that says "not in this commit".
    Empty,
}

/// An open file.
#[derive(Debug)]
pub struct Handle {
    pub ino: Ino,
    /// The flags of open(2).
    pub flags: i32,
    pub data: Data,
    /// What a blob's inode was when it was opened.
    pub attr: Option<Arc<Attr>>,
    /// The blob is a file's, which may be written to.
    pub backed: Option<Backed>,
}

/// That a file is read as a blob.
#[derive(Debug)]
pub struct Backed {
    /// The version of the file that is the blob.
    pub version: Version,
    /// Keeps the file's bytes at hand for the blob.
    pub _backing: Backing,
}

impl Handle {
    /// A handle that knows no more of its inode than its data does.
    pub fn new(ino: Ino, flags: i32, data: Data) -> Self {
        Handle { ino, flags, data, attr: None, backed: None }
    }

    /// Whether the file may be changed by it: opened for writing, or emptied by the open.
    #[must_use]
    pub fn writable(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY || self.flags & libc::O_TRUNC != 0
    }
}

/// All open files of a mount. As many as programs keep open.
#[derive(Debug, Default)]
pub struct Handles {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<Handle>>>,
}

impl Handles {
    /// Keeps the handle and gives it its number.
    pub fn insert(&self, handle: Handle) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(fh, Arc::new(handle));
        fh
    }

    /// The handle of a number; [`Kind::BadHandle`] if it is not open.
    pub fn get(&self, fh: u64) -> Result<Arc<Handle>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&fh).cloned().ok_or_else(|| Error::new(Kind::BadHandle, format!("handle {fh}")))
    }

    /// Takes the handle out.
    pub fn remove(&self, fh: u64) -> Option<Arc<Handle>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&fh)
    }

    /// The inodes of the metadata that are open as files, each once.
    pub fn open_inodes(&self) -> Vec<Ino> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let mut inos: Vec<Ino> = open.values().map(|h| h.ino).filter(|i| !i.is_virtual()).collect();
        inos.sort_unstable();
        inos.dedup();
        inos
    }

    /// Whether anybody has the inode open.
    pub fn is_open(&self, ino: Ino) -> bool {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.values().any(|h| h.ino == ino)
    }

    /// Whether the file may be changed by who has it open.
    pub fn is_open_to_write(&self, ino: Ino) -> bool {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.values().any(|h| h.ino == ino && h.writable())
    }

    /// What an inode that is open was when it was last seen, with what was written here since.
    pub fn last_seen(&self, ino: Ino) -> Option<Attr> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.values().filter(|h| h.ino == ino).find_map(|h| match &h.data {
            Data::File(file) => Some(file.attr()),
            _ => h.attr.as_deref().cloned(),
        })
    }

    /// The inodes through which a blob (`None`: any blob) is open.
    pub fn open_blobs(&self, wanted: Option<BlobId>) -> Vec<Ino> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        let of_blob = |h: &&Arc<Handle>| match &h.data {
            Data::Blob(blob) => wanted.is_none_or(|id| blob.id() == id),
            _ => false,
        };
        open.values().filter(of_blob).map(|h| h.ino).collect()
    }
}
