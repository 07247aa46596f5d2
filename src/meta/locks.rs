//! flock, for the whole cluster. An owner is a session with a number of its own; the list of an inode's holders is one
//! row, changed by compare and set. Who has waited for long takes a ticket, which lies beside it: nobody else is let in
//! before him, so that a program that locks again and again starves nobody.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::Meta;
use super::kv::{Change, Expect, Key, Outcome, SESSIONS, Txn, session_field};
use super::retry::Tries;
use super::schema::{self, Holder, Ticket};
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

/// What this mount last wrote of locks: guesses.
#[derive(Default)]
pub(super) struct HeldLocks {
    /// The lists of holders of the inodes that it holds locks on.
    lists: Mutex<HashMap<Ino, Bytes>>,
    /// The tickets of its own owners.
    tickets: Mutex<HashMap<(Ino, u64), Bytes>>,
}

impl HeldLocks {
    fn lock(&self) -> MutexGuard<'_, HashMap<Ino, Bytes>> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tickets(&self) -> MutexGuard<'_, HashMap<(Ino, u64), Bytes>> {
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// One round trip if nobody is in the way. Locks of sessions that were declared dead do not count; who has waited long
    /// ([`Meta::queue_for_lock`]) comes first.
    ///
    /// A conversion that is not granted loses the lock that was held, as flock(2) has it: two holders of a shared lock
    /// who both want it exclusive do not wait for each other for ever.
    pub async fn try_lock(&self, ino: Ino, owner: u64, kind: LockKind) -> Result<bool> {
        let words = || format!("lock of inode {ino}");
        let mut tries = Tries::new();
        // The guess: nobody has a lock but those who had one when this mount last looked.
        let mut seen =
            Row { holders: self.0.held.lock().get(&ino).cloned(), ticket: self.own_ticket(ino, owner) };
        loop {
            let me = Holder { session: self.session(), owner, exclusive: kind == LockKind::Exclusive };
            match self.try_lock_once(ino, me, &seen, tries.fresh()).await.context(words)? {
                Some(granted) => return Ok(granted),
                None => tries.again().await.context(words)?,
            }
            seen = self.read_row(ino).await?;
        }
    }

    /// `None`: what was seen is not so, look again.
    async fn try_lock_once(&self, ino: Ino, me: Holder, seen: &Row, fresh: bool) -> Result<Option<bool>> {
        let same = |h: &Holder| h.session == me.session && h.owner == me.owner;
        let holders = decode(ino, seen.holders.as_ref())?;
        let before = holders.iter().find(|h| same(h)).copied();
        if before == Some(me) && fresh {
            return Ok(Some(true));
        }
        let mut others: Vec<Holder> = holders.into_iter().filter(|h| !same(h)).collect();
        let mut first = match &seen.ticket {
            Some(raw) => {
                Some(decode_ticket(ino, raw)?).filter(|t| t.session != me.session || t.owner != me.owner)
            }
            None => None,
        };
        let blocks = |h: &Holder| h.exclusive || me.exclusive;
        if others.iter().any(blocks) || first.is_some() {
            if !fresh {
                return Ok(None);
            }
            self.retain_living(&mut others, &mut first).await?;
        }
        // Who has it exclusive may always be content with less.
        let down = before.is_some_and(|b| b.exclusive) && !me.exclusive;
        let granted = down || (first.is_none() && !others.iter().any(blocks));
        if !granted && before.is_none() {
            return Ok(Some(false));
        }
        if granted {
            others.push(me);
        }
        let mut build = self.build();
        build.0.session = Some(me.session);
        let value = replace_holders(&mut build, ino, me.session, seen.holders.as_ref(), &others)?;
        if granted && !down {
            match &seen.ticket {
                Some(raw) => {
                    build.equals(schema::ticket_key(ino), raw);
                    build.del(schema::ticket_key(ino));
                }
                None => drop(build.expect(Expect::Absent(schema::ticket_key(ino)))),
            }
        }
        // Those who share it with who was first in line may come in now.
        let opened = granted && !me.exclusive && seen.ticket.is_some();
        if down || !granted || opened {
            build.0.publish.push(Change::Unlocked { ino });
        }
        let outcome = self.commit_as_it_is(build).await;
        if !matches!(outcome, Ok(Outcome::Applied)) {
            self.0.held.note(ino, None);
        }
        match outcome {
            Ok(Outcome::Applied) => {
                self.0.held.note(ino, value.filter(|_| granted));
                if granted && !down {
                    self.0.held.tickets().remove(&(ino, me.owner));
                }
                Ok(Some(granted))
            }
            Ok(_) => Ok(None),
            // The lock would be nobody's: its holder is dead. Another try is under the next session.
            Err(e) if e.kind() == Kind::Fenced => {
                self.0.identity.renew(me.session).await?;
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Puts `owner` first in line for the lock of an inode: from now on all others, of this mount too, are refused until it
    /// has had its turn. To be called by who waits, and again as long as it waits. If somebody else is first, answers
    /// its ticket; one that has not changed for long is of somebody who went away, and is torn up by calling with it.
    pub async fn queue_for_lock(&self, ino: Ino, owner: u64, stale: Option<&Bytes>) -> Result<Option<Bytes>> {
        let key = schema::ticket_key(ino);
        let seen = self.read_row(ino).await?.ticket;
        let session = self.session();
        let ticket = match &seen {
            None => Ticket { session, owner, turn: 1 },
            Some(raw) => match decode_ticket(ino, raw)? {
                own if own.session == session && own.owner == owner => Ticket { turn: own.turn + 1, ..own },
                _ if stale == Some(raw) => Ticket { session, owner, turn: 1 },
                _ => return Ok(Some(raw.clone())),
            },
        };
        let mut build = self.build();
        build.0.session = Some(session);
        match &seen {
            Some(raw) => build.equals(key.clone(), raw),
            None => build.expect(Expect::Absent(key.clone())),
        };
        let raw = schema::encode(&ticket)?;
        build.set(key, raw.clone());
        if self.commit_as_it_is(build).await? == Outcome::Applied {
            self.0.held.tickets().insert((ino, owner), raw);
        }
        Ok(None)
    }

    fn own_ticket(&self, ino: Ino, owner: u64) -> Option<Bytes> {
        self.0.held.tickets().get(&(ino, owner)).cloned()
    }

    /// Gives up the lock of `owner`, if there is one, or its place in the line, and tells those who wait.
    pub async fn unlock(&self, ino: Ino, owner: u64) -> Result<()> {
        let ticket = self.0.held.tickets().remove(&(ino, owner));
        if let Some(raw) = ticket {
            let mut build = self.build();
            build.equals(schema::ticket_key(ino), &raw);
            build.del(schema::ticket_key(ino));
            build.0.publish.push(Change::Unlocked { ino });
            // A conflict means that it is not there any more.
            let _ = self.commit(build).await?;
        }
        let hint = self.0.held.lock().remove(&ino);
        let mut seen = match hint {
            Some(value) => Some(value),
            None => self.read_row(ino).await?.holders,
        };
        let mut tries = Tries::new();
        loop {
            let session = self.session();
            let mut holders = decode(ino, seen.as_ref())?;
            let count = holders.len();
            holders.retain(|h| h.session != session || h.owner != owner);
            if holders.len() < count {
                let mut build = self.build();
                build.0.session = Some(session);
                let value = replace_holders(&mut build, ino, session, seen.as_ref(), &holders)?;
                build.0.publish.push(Change::Unlocked { ino });
                match self.commit_as_it_is(build).await {
                    Ok(Outcome::Applied) => {
                        let mine = holders.iter().any(|h| h.session == session);
                        self.0.held.note(ino, value.filter(|_| mine));
                        return Ok(());
                    }
                    Ok(_) => {}
                    // It went with its session.
                    Err(e) if e.kind() == Kind::Fenced => self.0.identity.renew(session).await?,
                    Err(e) => return Err(e),
                }
            } else if tries.fresh() {
                return Ok(());
            }
            tries.again().await.context(|| format!("lock of inode {ino}"))?;
            seen = self.read_row(ino).await?.holders;
        }
    }

    /// Releases all that a session holds on an inode, without being it.
    pub(super) async fn release_locks_of(&self, session: SessionId, ino: Ino) -> Result<()> {
        let mut tries = Tries::new();
        loop {
            let seen = self.read_row(ino).await?.holders;
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

    async fn read_row(&self, ino: Ino) -> Result<Row> {
        let mut values = self.kv().get(&[schema::flock_key(ino), schema::ticket_key(ino)]).await?;
        let (ticket, holders) = (values.pop().flatten(), values.pop().flatten());
        Ok(Row { holders, ticket })
    }

    /// Drops the holders, and who is first in line, whose sessions are not registered any more.
    async fn retain_living(&self, holders: &mut Vec<Holder>, first: &mut Option<Ticket>) -> Result<()> {
        let sessions = holders.iter().map(|h| h.session).chain(first.iter().map(|t| t.session));
        let sessions: HashSet<SessionId> = sessions.collect();
        let sessions: Vec<SessionId> = sessions.into_iter().collect();
        let keys: Vec<Key> = sessions.iter().map(|&s| Key::new(SESSIONS, session_field(s))).collect();
        let rows = self.kv().get(&keys).await?;
        let dead: HashSet<SessionId> =
            sessions.into_iter().zip(rows).filter(|(_, row)| row.is_none()).map(|(s, _)| s).collect();
        holders.retain(|h| !dead.contains(&h.session));
        *first = first.filter(|t| !dead.contains(&t.session));
        Ok(())
    }
}

/// What the metadata says of an inode's lock.
struct Row {
    holders: Option<Bytes>,
    ticket: Option<Bytes>,
}

fn decode_ticket(ino: Ino, value: &[u8]) -> Result<Ticket> {
    schema::decode(value, || format!("line for the lock of inode {ino}"))
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
