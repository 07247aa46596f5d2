//! What this mount remembers of inodes, all of it safe without any push: the attributes of what never changes (blobs, links
//! of a commit), what a directory stands for, which is fixed when it is made, and what it removed itself.

use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

use lru::LruCache;

use crate::meta::{Attr, Removed, Role};
use crate::types::{Ino, Version};

const IMMUTABLE: NonZeroUsize = NonZeroUsize::new(32 * 1024).expect("not zero");
const ROLES: NonZeroUsize = NonZeroUsize::new(16 * 1024).expect("not zero");
const REMOVED: NonZeroUsize = NonZeroUsize::new(4 * 1024).expect("not zero");
const COMMITTED: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
const TOLD: NonZeroUsize = NonZeroUsize::new(64 * 1024).expect("not zero");
/// As many as programs look at while the kernel relies on a name.
const SHOWN: NonZeroUsize = NonZeroUsize::new(16 * 1024).expect("not zero");
const SENT_BACK: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// The kernel maps no page that begins at or after the end of a file.
const PAGE: u64 = 4096;

/// The memory of one mount, bounded.
#[derive(Debug)]
pub struct AttrCache {
    immutable: Mutex<LruCache<Ino, Attr>>,
    roles: Mutex<LruCache<Ino, DirFacts>>,
    /// What lost its last name here, though a program may have it open.
    removed: Mutex<LruCache<Ino, Ghost>>,
    /// Files that this mount committed lately: the version before, and the attributes after. Who read the former while
    /// the commit was under way must not show it.
    committed: Mutex<LruCache<Ino, (Version, Attr)>>,
    /// The version that the kernel's pages of a file are of.
    told: Mutex<LruCache<Ino, Version>>,
    /// The size of a file that the kernel was shown last.
    shown: Mutex<LruCache<Ino, u64>>,
    /// Which file each thread was told to look up again, and has not opened since.
    sent_back: Mutex<LruCache<(u32, Ino), ()>>,
}

#[derive(Debug)]
struct Ghost {
    attr: Attr,
    binned: bool,
}

/// What does not change about a directory while it has its place.
#[derive(Clone, Debug)]
pub struct DirFacts {
    pub role: Option<Role>,
    /// The directory above it when it was last read.
    pub parent: Ino,
}

impl Default for AttrCache {
    fn default() -> Self {
        AttrCache {
            immutable: Mutex::new(LruCache::new(IMMUTABLE)),
            roles: Mutex::new(LruCache::new(ROLES)),
            removed: Mutex::new(LruCache::new(REMOVED)),
            committed: Mutex::new(LruCache::new(COMMITTED)),
            told: Mutex::new(LruCache::new(TOLD)),
            shown: Mutex::new(LruCache::new(SHOWN)),
            sent_back: Mutex::new(LruCache::new(SENT_BACK)),
        }
    }
}

impl AttrCache {
    /// Takes note of what was read, if it is of the kind that stays.
    pub fn learn(&self, attr: &Attr) {
        if super::present::is_immutable(attr) {
            lock(&self.immutable).put(attr.ino, attr.clone());
        } else if attr.kind == crate::types::FileType::Dir {
            lock(&self.roles).put(attr.ino, DirFacts { role: attr.role.clone(), parent: attr.parent });
        }
    }

    /// The attributes, if they cannot have changed.
    pub fn immutable(&self, ino: Ino) -> Option<Attr> {
        lock(&self.immutable).get(&ino).cloned()
    }

    /// What a directory stands for, if it was read lately.
    pub fn facts(&self, dir: Ino) -> Option<DirFacts> {
        lock(&self.roles).get(&dir).cloned()
    }

    /// A name was removed. If it was the last one, the attributes stay for who has it open or works in it.
    pub fn removed(&self, removed: &Removed) {
        let attr = &removed.attr;
        self.forget(attr.ino);
        if attr.nlink == 0 {
            lock(&self.removed).put(attr.ino, Ghost { attr: attr.clone(), binned: removed.binned });
        }
    }

    /// Whether the last name of the inode was removed here, and nobody will ever give it another one.
    pub fn is_lost(&self, ino: Ino) -> bool {
        lock(&self.removed).peek(&ino).is_some_and(|ghost| !ghost.binned)
    }

    /// The attributes of what was removed here. A directory, link or fifo is gone from the metadata with its last name.
    pub fn ghost(&self, ino: Ino) -> Option<Attr> {
        lock(&self.removed).get(&ino).map(|ghost| ghost.attr.clone())
    }

    /// The kernel refers to the inode no more; true if it is lost ([`AttrCache::is_lost`]).
    pub fn released(&self, ino: Ino) -> bool {
        lock(&self.removed).pop(&ino).is_some_and(|ghost| !ghost.binned)
    }

    /// This mount committed data over the version `before`.
    pub fn committed(&self, before: Version, after: &Attr) {
        if before != after.version {
            lock(&self.committed).put(after.ino, (before, after.clone()));
        }
    }

    /// What replaced attributes that were just read, if that was this mount's own doing in the same moment.
    pub fn overtaken(&self, attr: &Attr) -> Option<Attr> {
        let committed = lock(&self.committed);
        committed
            .peek(&attr.ino)
            .filter(|(before, _)| *before == attr.version)
            .map(|(_, after)| after.clone())
    }

    /// The kernel's pages are of this version from now on. Answers which one they were of, if that is known.
    pub fn tell(&self, ino: Ino, version: Version) -> Option<Version> {
        lock(&self.told).put(ino, version)
    }

    /// The version that the kernel's pages are of, as far as that is known.
    pub fn told(&self, ino: Ino) -> Option<Version> {
        lock(&self.told).peek(&ino).copied()
    }

    /// This mount wrote the new version itself, so the kernel's pages have become that version's.
    pub fn told_moves(&self, ino: Ino, from: Version, to: Version) {
        let mut told = lock(&self.told);
        if told.peek(&ino) == Some(&from) {
            told.put(ino, to);
        }
    }

    /// The kernel is shown this size of a file.
    pub fn showed(&self, ino: Ino, size: u64) {
        lock(&self.shown).put(ino, size);
    }

    /// Whether the thread that opens a file which now has this version and size must look it up again first (ESTALE, upon
    /// which the kernel does): another mount made it longer, the kernel relies on a smaller size, and would let nobody map
    /// what is beyond, for an open brings it no size. Of one thread and file never twice in a row: who came by a path
    /// that has no names to look up is let in then.
    pub fn sends_back(&self, tid: u32, ino: Ino, version: Version, size: u64) -> bool {
        if lock(&self.sent_back).pop(&(tid, ino)).is_some() {
            return false;
        }
        // What this mount made longer itself the kernel knows from the writes.
        let unknown = lock(&self.told).peek(&ino) != Some(&version);
        let short = |shown: &u64| shown.div_ceil(PAGE) < size.div_ceil(PAGE);
        if !unknown || !lock(&self.shown).peek(&ino).is_some_and(short) {
            return false;
        }
        lock(&self.sent_back).put((tid, ino), ());
        true
    }

    /// The inode changed or is gone.
    pub fn forget(&self, ino: Ino) {
        self.forget_all(std::iter::once(ino));
    }

    /// The same for many, with few locks.
    pub fn forget_all(&self, inos: impl Iterator<Item = Ino> + Clone) {
        {
            let mut immutable = lock(&self.immutable);
            inos.clone().for_each(|ino| drop(immutable.pop(&ino)));
        }
        let mut roles = lock(&self.roles);
        inos.for_each(|ino| drop(roles.pop(&ino)));
    }

    /// Everything may have changed.
    pub fn clear(&self) {
        lock(&self.immutable).clear();
        lock(&self.roles).clear();
        lock(&self.told).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
