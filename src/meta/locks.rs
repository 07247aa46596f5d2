//! flock, for the whole cluster. An owner is a session with a number of its own; the list of an inode's holders is one
//! row, changed by compare and set.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::Meta;
use super::kv::{Change, Expect, Key, Outcome, SESSIONS, Txn, session_field};
use super::retry::Tries;
use super::schema::{self, Holder};
use super::txn::Build;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{Ino, SessionId};

/// The most holders of one lock: a row stays small.
const HOLDERS_MAX: usize = 10_000;

/// How a lock excludes others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    Shared,
    Exclusive,
}

/// The lists of holders as this mount last wrote them, of the inodes that it holds locks on: guesses.
pub(super) struct HeldLocks(Mutex<HashMap<Ino, Bytes>>);

impl HeldLocks {
    pub fn new() -> Self {
        HeldLocks(Mutex::default())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Ino, Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, ino: Ino, value: Option<Bytes>) {
        match value {
            Some(value) => drop(self.lock().insert(ino, value)),
            None => drop(self.lock().remove(&ino)),
        }
    }
}

impl Meta {
    /// Takes or converts the lock of `owner` (a number of this session's choice) on an inode; answers whether it was granted.
    /// One round trip if nobody is in the way. Locks of sessions that were declared dead do not count.
    ///
    /// A conversion that is not granted loses the lock that was held, as flock(2) has it: two holders of a shared lock
    /// who both want it exclusive do not wait for each other for ever.
    pub async fn try_lock(&self, ino: Ino, owner: u64, kind: LockKind) -> Result<bool> {
        let me = Holder { session: self.session(), owner, exclusive: kind == LockKind::Exclusive };
        let key = schema::flock_key(ino);
        let words = || format!("lock of inode {ino}");
        let mut tries = Tries::new();
        // The guess: nobody has a lock but those who had one when this mount last looked.
        let mut seen = self.0.held.lock().get(&ino).cloned();
        loop {
            let holders = decode(ino, seen.as_ref())?;
            let before = holders.iter().find(|h| h.session == me.session && h.owner == owner).copied();
            if before == Some(me) && tries.fresh() {
                return Ok(true);
            }
            let mut others: Vec<Holder> =
                holders.into_iter().filter(|h| h.session != me.session || h.owner != owner).collect();
            let blocks = |h: &Holder| h.exclusive || me.exclusive;
            if others.iter().any(blocks) {
                if !tries.fresh() {
                    tries.again().await.context(words)?;
                    seen = self.read(&key).await?;
                    continue;
                }
                self.retain_living(&mut others).await?;
            }
            let granted = !others.iter().any(blocks);
            if !granted && before.is_none() {
                return Ok(false);
            }
            let weaker = before.is_some_and(|b| b.exclusive && !(granted && me.exclusive));
            if granted {
                others.push(me);
            }
            let mut build = self.build();
            let value = replace_holders(&mut build, ino, self.session(), seen.as_ref(), &others)?;
            if weaker || !granted {
                build.0.publish.push(Change::Unlocked { ino });
            }
            let outcome = self.commit(build).await;
            if !matches!(outcome, Ok(Outcome::Applied)) {
                self.0.held.note(ino, None);
            }
            if outcome.context(words)? == Outcome::Applied {
                self.0.held.note(ino, value.filter(|_| granted));
                return Ok(granted);
            }
            tries.again().await.context(words)?;
            seen = self.read(&key).await?;
        }
    }

    /// Gives up the lock of `owner`, if there is one, and tells those who wait.
    pub async fn unlock(&self, ino: Ino, owner: u64) -> Result<()> {
        let key = schema::flock_key(ino);
        let hint = self.0.held.lock().remove(&ino);
        let mut seen = match hint {
            Some(value) => Some(value),
            None => self.read(&key).await?,
        };
        let mut tries = Tries::new();
        loop {
            let mut holders = decode(ino, seen.as_ref())?;
            let count = holders.len();
            holders.retain(|h| h.session != self.session() || h.owner != owner);
            if holders.len() < count {
                let mut build = self.build();
                let value = replace_holders(&mut build, ino, self.session(), seen.as_ref(), &holders)?;
                build.0.publish.push(Change::Unlocked { ino });
                if self.commit(build).await? == Outcome::Applied {
                    let mine = holders.iter().any(|h| h.session == self.session());
                    self.0.held.note(ino, value.filter(|_| mine));
                    return Ok(());
                }
            } else if tries.fresh() {
                return Ok(());
            }
            tries.again().await.context(|| format!("lock of inode {ino}"))?;
            seen = self.read(&key).await?;
        }
    }

    /// Releases all that a session holds on an inode, without being it.
    pub(super) async fn release_locks_of(&self, session: SessionId, ino: Ino) -> Result<()> {
        let mut tries = Tries::new();
        loop {
            let seen = self.read(&schema::flock_key(ino)).await?;
            let mut holders = decode(ino, seen.as_ref())?;
            holders.retain(|h| h.session != session);
            let mut build = Build(Txn::default());
            replace_holders(&mut build, ino, session, seen.as_ref(), &holders)?;
            build.0.publish.push(Change::Unlocked { ino });
            if self.commit(build).await? == Outcome::Applied {
                return Ok(());
            }
            tries.again().await.context(|| format!("lock of inode {ino}"))?;
        }
    }

    async fn read(&self, key: &Key) -> Result<Option<Bytes>> {
        Ok(self.kv().get(std::slice::from_ref(key)).await?.pop().flatten())
    }

    /// Drops the holders whose sessions are not registered any more.
    async fn retain_living(&self, holders: &mut Vec<Holder>) -> Result<()> {
        let sessions: HashSet<SessionId> = holders.iter().map(|h| h.session).collect();
        let sessions: Vec<SessionId> = sessions.into_iter().collect();
        let keys: Vec<Key> = sessions.iter().map(|&s| Key::new(SESSIONS, session_field(s))).collect();
        let rows = self.kv().get(&keys).await?;
        let dead: HashSet<SessionId> =
            sessions.into_iter().zip(rows).filter(|(_, row)| row.is_none()).map(|(s, _)| s).collect();
        holders.retain(|h| !dead.contains(&h.session));
        Ok(())
    }
}

fn decode(ino: Ino, value: Option<&Bytes>) -> Result<Vec<Holder>> {
    value.map_or(Ok(Vec::new()), |v| schema::decode(v, || format!("locks of inode {ino}")))
}

/// Writes a new list of holders over the one that was read, and whether `session` is among them; answers the new value.
fn replace_holders(
    build: &mut Build,
    ino: Ino,
    session: SessionId,
    seen: Option<&Bytes>,
    holders: &[Holder],
) -> Result<Option<Bytes>> {
    let key = schema::flock_key(ino);
    match seen {
        Some(value) => build.equals(key.clone(), value),
        None => build.expect(Expect::Absent(key.clone())),
    };
    let held = Key::new(schema::held_map(session), schema::ino_field(ino));
    if holders.iter().any(|h| h.session == session) {
        build.set(held, Bytes::from_static(b"1"));
    } else {
        build.del(held);
    }
    if holders.is_empty() {
        build.del(key);
        return Ok(None);
    }
    if holders.len() > HOLDERS_MAX {
        return Err(Error::new(Kind::NoSpace, format!("locks of inode {ino}")));
    }
    let value = schema::encode(&holders)?;
    build.set(key, value.clone());
    Ok(Some(value))
}
