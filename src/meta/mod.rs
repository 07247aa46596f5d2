//! File-system semantics, written once over [`kv::Kv`].
//!
//! Each verb reads what it needs, builds one transaction that says what it took for granted, and commits it: the
//! verbs are atomic for all mounts at once. What was read before is remembered as a *hint*: a guess that the
//! transaction checks, so that most verbs take one round trip, and a wrong guess costs another. Parallel changes of one
//! directory do not collide: its times and its number of subdirectories are fields of their own that are only
//! maximised and added to.
//!
//! This layer knows inode numbers, names and rows. It does not know paths, permissions (the kernel checks them), the
//! Hub, or the bytes of files.
mod accessed;
mod apply;
mod attr;
mod bin;
mod blobs;
mod clock;
mod data;
pub mod dump;
mod events;
mod export;
#[doc(hidden)]
pub mod faulty;
mod gc;
mod groups;
mod hints;
mod hub_rows;
mod identity;
mod ids;
mod journals;
pub mod kv;
mod link;
mod locks;
mod lookup;
mod make;
#[doc(hidden)]
pub mod memory;
pub mod metered;
mod orphans;
mod proven;
mod publish;
mod quota;
mod recent;
pub mod redis;
mod refs;
mod rename;
mod retry;
mod schema;
mod session;
mod setattr;
mod settings;
pub mod sqlite;
pub mod survey;
mod txn;
mod unlink;
pub mod url;
mod watchers;
mod xattr;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::clock::EngineClock;
use self::hints::Hints;
use self::identity::Identity;
use self::ids::Ids;
use self::kv::{Change, Kv, Watch};
use self::locks::HeldLocks;
use self::quota::Quota;
use self::recent::Recent;
use crate::error::{Error, Kind, Result};
use crate::types::{Ino, ObjectId, SessionId, Timestamp, Version};

pub use self::accessed::Access;
pub use self::attr::Attr;
pub use self::bin::{BinUsage, Binned, Keep, Lost, Restored, Wanted, bin_usage, is_temporary};
pub use self::blobs::{BlobRow, Blobs, ChunkRow, Recorded};
pub use self::data::{ChunkExtents, Committed, DataChange};
pub use self::gc::Trashed;
pub use self::groups::needs_groups;
pub use self::journals::{JournalMark, JournalRow, list_journals};
pub use self::locks::LockKind;
pub use self::lookup::DirEntry;
pub use self::make::New;
pub use self::orphans::Reaped;
pub use self::publish::{CommitPlan, InodeContent, PlanFile, Published};
pub use self::quota::Limits;
pub use self::refs::RefTarget;
pub use self::rename::{RenameMode, Renamed};
pub use self::schema::JOURNALS;
pub use self::schema::{
    Content, INLINE_MAX, InodeRow, LINK_MAX, Layout, NAME_MAX, Proven, Role, SCHEMA, SchemaRow, TARGET_MAX,
    Under, XATTRS_MAX,
};
pub use self::session::{SessionInfo, SessionStatus, list_sessions};
pub use self::setattr::SetAttr;
pub use self::settings::{Settings, Usage, read_settings, read_usage, write_settings};
pub use self::unlink::Removed;
pub use self::xattr::{SetXattr, Xattrs};

/// One mount's access to the metadata. Cheap to clone; the clones are the same session.
#[derive(Clone)]
pub struct Meta(Arc<Inner>);

struct Inner {
    identity: Arc<Identity>,
    clock: EngineClock,
    info: SessionInfo,
    ttl: Duration,
    hints: Hints,
    recent: Recent,
    ids: Ids,
    held: HeldLocks,
    last_version: AtomicU64,
    last_object: AtomicU64,
    /// Nanoseconds.
    tombstone_ttl: AtomicU64,
    /// Nanoseconds; 0: there is no bin.
    bin_ttl: AtomicU64,
    quota: Quota,
    /// Heartbeats and the sweeping up after dead sessions.
    tasks: Mutex<Vec<JoinHandle<()>>>,
    /// Hears of changes, until [`Meta::watch`].
    listener: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
        self.stop_listening();
    }
}

impl Inner {
    fn stop_listening(&self) {
        if let Some(task) = self.listener.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

impl fmt::Debug for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meta")
            .field("session", &self.session())
            .field("kv", self.kv())
            .finish_non_exhaustive()
    }
}

impl Meta {
    /// The session that this mount's commits bear now. It changes when it is lost; see [`Meta::is_own`].
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.0.identity.id()
    }

    /// Whether it is this mount's session, or was before that was lost: what bears it was written here.
    #[must_use]
    pub fn is_own(&self, session: SessionId) -> bool {
        self.0.identity.is_own(session)
    }

    /// Counts how often the session was lost and another one taken. All locks that were held under the one before may be
    /// others' by then.
    #[must_use]
    pub fn renewals(&self) -> watch::Receiver<u64> {
        self.0.identity.renewals()
    }

    /// The time by the engine's clock, which is the same for all mounts. No round trip.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    /// The engine below.
    #[must_use]
    pub fn kv(&self) -> &Arc<dyn Kv> {
        self.0.identity.kv()
    }

    /// How long a session may be silent before the others take it for dead.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.0.ttl
    }

    /// A name for an object of file data that no other object ever had. No round trip.
    #[must_use]
    pub fn next_object(&self) -> ObjectId {
        let seq = self.0.last_object.fetch_add(1, Ordering::Relaxed) + 1;
        ObjectId { session: self.session(), seq }
    }

    /// The rows about blobs.
    #[must_use]
    pub fn blobs(&self) -> Blobs {
        Blobs::of(Arc::clone(&self.0.identity))
    }

    /// A version that no inode ever had.
    #[must_use]
    pub(crate) fn next_version(&self) -> Version {
        let seq = self.0.last_version.fetch_add(1, Ordering::Relaxed) + 1;
        Version { session: self.session(), seq }
    }

    fn hints(&self) -> &Hints {
        &self.0.hints
    }

    /// The attributes of an inode if this mount read or made them less than `age` ago and has not heard of a change since,
    /// and how old they are. What this mount committed is in them. No round trip. The content of a file is left out.
    #[must_use]
    pub fn recent(&self, ino: Ino, age: Duration) -> Option<(Attr, Duration)> {
        self.0.recent.get(ino, age)
    }

    /// What changes from now on, for one who tells this session of it: [`Meta::heard`] for what others did, before acting
    /// on it, and [`Meta::missed_changes`]. Until then the session listens by itself; twice would cost each mount twice.
    pub async fn watch(&self) -> Result<Watch> {
        let watch = self.kv().watch().await?;
        self.0.stop_listening();
        // What the listener had not come to.
        self.missed_changes().await;
        Ok(watch)
    }

    /// Other mounts made these changes.
    pub fn heard(&self, changes: &[Change]) {
        self.0.hints.heard(changes);
        self.0.recent.heard(changes);
    }

    /// Changes may have been missed, or the server's memory may have gone back.
    pub async fn missed_changes(&self) {
        self.0.hints.clear();
        self.0.recent.clear();
        self.0.ids.forget().await;
    }
}

/// Whether `name` can be the name of an entry.
fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > NAME_MAX {
        return Err(Error::new(Kind::NameTooLong, format!("a name of {} bytes", name.len())));
    }
    if matches!(name, b"" | b"." | b"..") || name.iter().any(|&b| b == b'/' || b == 0) {
        return Err(Error::new(Kind::Invalid, format!("name {:?}", name.escape_ascii().to_string())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{BlobId, Commit};

    /// The layers above spawn every verb.
    #[test]
    fn all_verbs_can_be_spawned() {
        fn spawnable<F: Future + Send>(_: impl FnOnce(&'static Meta) -> F) {}
        const INO: Ino = Ino::ROOT;
        spawnable(|m| m.lookup(INO, b"x"));
        spawnable(|m| m.getattr(INO));
        spawnable(|m| m.getattrs(&[INO]));
        spawnable(|m| m.readdir(INO, 0, 1));
        spawnable(|m| m.link(INO, INO, b"x"));
        spawnable(|m| m.unlink(INO, b"x"));
        spawnable(|m| m.rmdir(INO, b"x"));
        spawnable(|m| m.rename(INO, b"x", INO, b"y", RenameMode::Replace));
        spawnable(|m| m.setattr(INO, SetAttr::default()));
        spawnable(|m| m.xattrs(INO));
        spawnable(|m| m.set_xattr(INO, b"user.x", b"", SetXattr::Any));
        spawnable(|m| m.remove_xattr(INO, b"user.x"));
        spawnable(|m| m.record_accesses(&[]));
        spawnable(|m| m.room_for(1));
        spawnable(|m| m.extents(INO, &[0]));
        spawnable(|m| m.commit_data(INO, m.next_version(), DataChange::default()));
        spawnable(|m| m.try_lock(INO, 0, LockKind::Shared));
        spawnable(|m| m.unlock(INO, 0));
        spawnable(|m| m.hold_orphans(&[INO]));
        spawnable(|m| m.reap_orphans(Timestamp(0)));
        spawnable(|m| m.trash(0, 1));
        spawnable(|m| async { m.restore(&Wanted::default(), None, true, |_| {}).await });
        spawnable(|m| m.expire_bin(Timestamp(0)));
        spawnable(|m| m.set_ref(INO, "main", Commit([0; 20])));
        spawnable(|m| m.read_ref(INO, "main"));
        spawnable(|m| m.reserve_ino());
        spawnable(|m| m.usage());
        spawnable(|m| m.tombstone(b"x"));
        spawnable(|m| m.elect("x", Duration::ZERO));
        spawnable(|m| m.sessions());
        spawnable(|m| m.close());
        spawnable(|m| async { m.blobs().get(BlobId::Git([0; 20])).await });
    }

    #[test]
    fn names() {
        assert!(check_name(b"a").is_ok() && check_name(&[b'a'; 255]).is_ok() && check_name(b"...").is_ok());
        assert_eq!(check_name(&[b'a'; 256]).expect_err("long").kind(), Kind::NameTooLong);
        for name in [&b""[..], b".", b"..", b"a/b", b"\0"] {
            assert_eq!(check_name(name).expect_err("no name").kind(), Kind::Invalid);
        }
    }
}
