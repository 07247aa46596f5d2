//! POSIX behaviour: names, open files, reads, writes, locks. Answers values and errors, never kernel replies, so that all
//! of the file system can be tested without a kernel.
//!
//! | file | what |
//! |---|---|
//! | `lookup` | names and attributes; a missing name may be the Hub's |
//! | `lazy` | asking the Hub, once, and publishing what it has |
//! | `shards` | which files are read one after the other |
//! | `change` | make, link, unlink, rename, setattr |
//! | `adopt` | files that clients downloaded become blobs |
//! | `open`, `io`, `handles` | open files |
//! | `outage` | open files while the metadata do not answer |
//! | `dirs` | listings |
//! | `xattr`, `atime` | extended attributes; times of last access |
//! | `locks` | flock for the whole cluster |
//! | `private` | what belongs to one user on one node |
//! | `virtual_ino`, `present` | inodes of this mount only; how inodes are shown |
//! | `push`, `attr_cache`, `long`, `orders` | what is remembered, and when it is dropped |

mod adopt;
mod atime;
mod attr_cache;
mod change;
mod dirs;
mod handles;
mod io;
pub mod lazy;
mod locks;
mod long;
mod lookup;
mod open;
mod orders;
mod outage;
mod present;
mod private;
mod push;
mod shards;
mod space;
mod statfs;
pub mod types;
mod upkeep;
mod virtual_ino;
mod xattr;

use std::sync::Arc;
use std::time::Duration;

pub use dirs::OpenedDir;
pub use open::NativeFile;
pub use orders::{Invalidations, Orders};
pub use private::Private;
pub use shards::Shards;
pub use types::*;

use crate::chunk::{Chunks, Files};
use crate::meta::Meta;

/// How one mount shows the volume.
#[derive(Clone, Debug)]
pub struct VfsOptions {
    /// Owner of what the Hub brought.
    pub uid: u32,
    pub gid: u32,
    /// Bits that the modes of what the Hub brought do not have.
    pub umask: u16,
    /// Nothing may be changed through this mount.
    pub read_only: bool,
    /// How long the kernel may rely on names. Pushed changes come earlier.
    pub entry_ttl: Duration,
    /// How long the kernel may rely on attributes; an open asks in any case.
    pub attr_ttl: Duration,
    /// How long a repository, commit or branch that was deleted does not come back from the Hub by itself.
    pub tombstone_ttl: Duration,
    /// Reads move the time of last access (never with `read_only`).
    pub relatime: bool,
    /// Where the bytes are kept, for the figures of `df`: a local folder's disk, or `None` for a bucket without a limit.
    pub store_path: Option<std::path::PathBuf>,
}

/// The file system of one mount.
#[derive(Debug)]
pub struct Vfs {
    meta: Meta,
    chunks: Arc<Chunks>,
    files: Files,
    /// `None`: this mount never asks the Hub.
    lazy: Option<Arc<lazy::Lazy>>,
    private: Private,
    handles: handles::Handles,
    attrs: attr_cache::AttrCache,
    atimes: atime::Atimes,
    locks: locks::Locks,
    long: long::LongLived,
    outage: outage::Outage,
    adoption: Arc<adopt::Adoption>,
    invalidations: Invalidations,
    opts: VfsOptions,
}

impl Vfs {
    /// The file system over its layers. Its tasks (they follow what others change, and keep what is open alive) run on the
    /// current runtime until it is dropped.
    #[must_use]
    pub fn new(
        meta: Meta,
        chunks: Arc<Chunks>,
        files: Files,
        lazy: Option<Arc<lazy::Lazy>>,
        private: Private,
        invalidations: Invalidations,
        opts: VfsOptions,
    ) -> Arc<Self> {
        chunks.read_files_of(&files);
        let vfs = Arc::new(Vfs {
            meta,
            chunks,
            files,
            lazy,
            private,
            handles: handles::Handles::default(),
            attrs: attr_cache::AttrCache::default(),
            atimes: atime::Atimes::new(opts.relatime && !opts.read_only),
            locks: locks::Locks::default(),
            long: long::LongLived::default(),
            outage: outage::Outage::default(),
            adoption: Arc::default(),
            invalidations,
            opts,
        });
        vfs.start_upkeep();
        vfs
    }

    /// The two ends of the queue of what the kernel must forget; the orders are carried out by threads of their own.
    #[must_use]
    pub fn invalidation_queue() -> (Invalidations, Orders) {
        Invalidations::channel()
    }

    /// The kernel forgot `n` lookups of the inode. Inodes of the metadata need no count: their numbers are
    /// their own.
    pub fn forget(&self, ino: crate::types::Ino, n: u64) {
        if virtual_ino::which(ino) == virtual_ino::Which::Private {
            self.private.forget(ino, n);
        } else if self.attrs.released(ino) {
            // Nobody can open it any more. Its room in the local cache is for others, and what was not written out of it
            // never need be.
            self.files.forget_behind(ino);
        }
    }
}
