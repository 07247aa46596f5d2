//! The disk cache: a directory with one sparse data file and one index file per content.
//!
//! It promises that what it calls present is what was recorded: written before its record, checked again after a crash
//! ([`epoch`]). It knows nothing of where bytes come from and what they mean.
//!
//! ```text
//! <dir>/lock                       held by one daemon
//! <dir>/state                      epochs: which runs stopped cleanly
//! <dir>/journal/<ino>              what is acknowledged and not in the bucket yet
//! <dir>/blobs/<aa>/<etag>[.idx]    blobs, by what the Hub calls them
//! <dir>/files/<aa>/<ino>[.idx]     file data, by inode number (hex)
//! ```

mod bits;
mod dir;
pub(crate) mod disk;
mod epoch;
mod evict;
mod file;
mod index;
mod journal;
mod layout;
mod peek;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use dir::{CacheDir, CacheStats, Departures, Seen};
pub use file::{CacheFile, Presence};
pub use index::{BLOB_TAG, Record, Tag};
pub use journal::{Journal, Kept, Waiting};
pub use peek::{Peek, siblings};

use crate::types::{BlobId, Ino};

/// Names one content of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ContentKey {
    Blob(BlobId),
    File(Ino),
}

impl ContentKey {
    /// Where its data file lies below the cache directory.
    fn path(&self) -> PathBuf {
        let (kind, name) = match self {
            ContentKey::Blob(id) => ("blobs", id.etag()),
            ContentKey::File(ino) => ("files", format!("{:016x}", ino.0)),
        };
        // The first digits of a hash and the last ones of a counter spread evenly.
        let fan = match self {
            ContentKey::Blob(_) => name[..2].to_owned(),
            ContentKey::File(_) => name[14..].to_owned(),
        };
        PathBuf::from(kind).join(fan).join(name)
    }

    /// The content that a file name below `kind` stands for.
    fn parse(kind: &str, name: &str) -> Option<Self> {
        match kind {
            "blobs" => BlobId::from_etag(name).map(ContentKey::Blob),
            "files" if name.len() == 16 => {
                u64::from_str_radix(name, 16).ok().map(|n| ContentKey::File(Ino(n)))
            }
            _ => None,
        }
    }
}

impl fmt::Display for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ContentKey::Blob(id) => write!(f, "blob {id}"),
            ContentKey::File(ino) => write!(f, "file {ino}"),
        }
    }
}

/// Which contents go first when the cache is too large.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Those not used for longest.
    #[default]
    Lru,
    /// Those that came first.
    Fifo,
    /// Those that take most space.
    LargeFirst,
}

/// What a cache directory may take.
#[derive(Clone, Debug)]
pub struct CacheLimits {
    /// Bytes on the disk, data and index.
    pub max_bytes: u64,
    /// The part of the disk, 0 to 1, that is left free, whoever fills it.
    pub free_ratio: f64,
    /// Contents, each of which costs two inodes of the disk and about 150 bytes of memory.
    pub max_contents: usize,
    pub policy: Policy,
}

impl Default for CacheLimits {
    /// 100 GiB, a tenth of the disk left free, 200,000 contents, LRU.
    fn default() -> Self {
        CacheLimits { max_bytes: 100 << 30, free_ratio: 0.1, max_contents: 200_000, policy: Policy::Lru }
    }
}

// A panic while one of these is held leaves no half-made change that matters: each section is one small step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}
