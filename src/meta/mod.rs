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
mod apply;
mod attr;
mod blobs;
mod data;
mod events;
mod gc;
mod hints;
mod hub_rows;
mod ids;
pub mod kv;
mod link;
mod locks;
mod lookup;
mod make;
#[doc(hidden)]
pub mod memory;
mod orphans;
mod publish;
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
mod txn;
mod unlink;
pub mod url;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use self::hints::Hints;
use self::ids::Ids;
use self::kv::{Change, Kv, Watch};
use self::locks::HeldLocks;
use self::recent::Recent;
use crate::error::{Error, Kind, Result};
use crate::types::{Ino, ObjectId, SessionId, Version};

pub use self::attr::Attr;
pub use self::blobs::{BlobRow, Blobs, ChunkRow, Recorded};
pub use self::data::{Committed, DataChange};
pub use self::gc::Trashed;
pub use self::locks::LockKind;
pub use self::lookup::DirEntry;
pub use self::make::New;
pub use self::orphans::Reaped;
pub use self::publish::{CommitPlan, InodeContent, PlanFile, Published};
pub use self::refs::RefTarget;
pub use self::rename::{RenameMode, Renamed};
pub use self::schema::{
    Content, INLINE_MAX, InodeRow, LINK_MAX, NAME_MAX, Role, SCHEMA, SchemaRow, TARGET_MAX,
};
pub use self::session::{SessionInfo, SessionStatus, list_sessions};
pub use self::setattr::SetAttr;
pub use self::settings::{Settings, Usage, read_settings, write_settings};
pub use self::unlink::Removed;

/// One mount's access to the metadata. Cheap to clone; the clones are the same session.
#[derive(Clone)]
pub struct Meta(Arc<Inner>);

struct Inner {
    kv: Arc<dyn Kv>,
    session: SessionId,
    info: SessionInfo,
    ttl: Duration,
    hints: Hints,
    recent: Recent,
    ids: Ids,
    held: HeldLocks,
    /// Seen without a row.
    fenced: AtomicBool,
    last_version: AtomicU64,
    last_object: AtomicU64,
    /// Nanoseconds.
    tombstone_ttl: AtomicU64,
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
            .field("session", &self.0.session)
            .field("kv", &self.0.kv)
            .finish_non_exhaustive()
    }
}

impl Meta {
    /// The session that this mount's commits bear.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.0.session
    }

    /// The engine below.
    #[must_use]
    pub fn kv(&self) -> &Arc<dyn Kv> {
        &self.0.kv
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
        ObjectId { session: self.0.session, seq }
    }

    /// The rows about blobs.
    #[must_use]
    pub fn blobs(&self) -> Blobs {
        Blobs::new(Arc::clone(&self.0.kv), self.0.session)
    }

    fn next_version(&self) -> Version {
        let seq = self.0.last_version.fetch_add(1, Ordering::Relaxed) + 1;
        Version { session: self.0.session, seq }
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

    /// Another mount made this change.
    pub fn heard(&self, change: &Change) {
        self.0.hints.heard(change);
        self.0.recent.heard(change);
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
    use crate::types::{BlobId, Commit, Timestamp};

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
        spawnable(|m| m.extents(INO, &[0]));
        spawnable(|m| m.commit_data(INO, m.next_version(), DataChange::default()));
        spawnable(|m| m.try_lock(INO, 0, LockKind::Shared));
        spawnable(|m| m.unlock(INO, 0));
        spawnable(|m| m.hold_orphans(&[INO]));
        spawnable(|m| m.reap_orphans(Timestamp(0)));
        spawnable(|m| m.trash(0, 1));
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
