//! Sessions: a mount registers, says again and again that it lives, and declares dead those who do not.
//!
//! A session is declared dead by taking away its row, which fences it: the engines refuse its commits from then on. Only
//! then is released what it held. Who declares must have seen it silent for a full TTL while connected itself. A mount
//! that was declared dead and lives takes another session (`identity`).

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior};

use super::clock::EngineClock;
use super::hints::Hints;
use super::identity::Identity;
use super::ids::Ids;
use super::kv::{Event, Expect, Key, Kv, Outcome, SESSIONS, Txn, Write, session_field};
use super::locks::HeldLocks;
use super::quota::Quota;
use super::recent::Recent;
use super::schema::{self, DEAD, SessionRow};
use super::settings::{TOMBSTONE_TTL, prepare};
use super::{Inner, Meta};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{SessionId, Timestamp};

/// How many rows are read at once.
const AT_ONCE: usize = 256;

/// What a mount says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    pub host: String,
    pub pid: u32,
    pub mountpoint: String,
    pub started: Timestamp,
    /// Of hfmount.
    pub version: String,
    pub read_only: bool,
}

/// A registered session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    pub id: SessionId,
    pub info: SessionInfo,
    /// Its heartbeat has not run out.
    pub alive: bool,
    /// The sessions that this mount had before. Objects that bear one of them may still be committed by it, as those that
    /// bear `id`: they are nobody's garbage.
    pub former: Vec<SessionId>,
}

/// All registered sessions. For `status`, which has none itself.
pub async fn list_sessions(kv: &dyn Kv) -> Result<Vec<SessionStatus>> {
    let mut sessions = Vec::new();
    let mut after = 0;
    loop {
        let entries = kv.scan(SESSIONS, after, AT_ONCE).await?;
        let Some(last) = entries.last() else { return Ok(sessions) };
        after = last.id;
        let mut some = Vec::with_capacity(entries.len());
        for entry in &entries {
            let id: SessionId = String::from_utf8_lossy(&entry.field).parse()?;
            let row: SessionRow = schema::decode(&entry.value, || format!("row of session {id}"))?;
            some.push((id, row.split()));
        }
        let ids: Vec<SessionId> = some.iter().map(|(id, _)| *id).collect();
        let alive = kv.alive(&ids).await?;
        let status = |((id, (info, former)), alive)| SessionStatus { id, info, alive, former };
        sessions.extend(some.into_iter().zip(alive).map(status));
    }
}

impl Meta {
    /// Registers a session, in a volume that is made if the metadata holds none, and starts its heartbeats, one every third
    /// of `ttl`. [`Kind::Config`] if the volume's layout is newer than this binary.
    ///
    /// Needs a tokio runtime. Without [`Meta::close`] the session ends when its heartbeats do and somebody notices.
    pub async fn open(kv: Arc<dyn Kv>, info: SessionInfo, ttl: Duration) -> Result<Meta> {
        prepare(&*kv).await?;
        let clock = EngineClock::read(&*kv).await?;
        let identity = Identity::register(kv, info.clone(), ttl).await?;
        let meta = Meta(Arc::new(Inner {
            identity,
            clock,
            info,
            ttl,
            hints: Hints::new(),
            recent: Recent::new(),
            ids: Ids::new(),
            held: HeldLocks::default(),
            last_version: AtomicU64::new(0),
            last_object: AtomicU64::new(0),
            tombstone_ttl: AtomicU64::new(u64::try_from(TOMBSTONE_TTL.as_nanos()).unwrap_or(u64::MAX)),
            quota: Quota::default(),
            bin_ttl: AtomicU64::new(0),
            tasks: Mutex::default(),
            listener: Mutex::default(),
        }));
        let watch = meta.kv().watch().await?;
        let live = tokio::spawn(live(Arc::downgrade(&meta.0), ttl));
        meta.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(live);
        let listen = tokio::spawn(listen(Arc::downgrade(&meta.0), watch));
        *meta.0.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(listen);
        Ok(meta)
    }

    /// Ends the session: its locks are released, its row goes, its heartbeats stop. Commits of it fail from then on
    /// with [`Kind::Fenced`].
    pub async fn close(&self) -> Result<()> {
        for task in self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
        self.0.stop_listening();
        let last = self.0.identity.close().await;
        self.bury(last).await?;
        self.clean_up(last).await
    }

    /// What this session said of itself.
    #[must_use]
    pub fn info(&self) -> &SessionInfo {
        &self.0.info
    }

    /// The session is closed; or the others have declared it dead, and it was not possible yet to take another one:
    /// nothing can be written. Noticed by the next commit or heartbeat.
    #[must_use]
    pub fn fenced(&self) -> bool {
        self.0.identity.fenced()
    }

    /// Writes this session's own row anew, as if the session had begun `later`: a commit like any other, of which nobody has
    /// to know. For measurements: an engine may leave out what changes nothing, so `later` should be another one each time.
    pub async fn rewrite_row(&self, later: Duration) -> Result<()> {
        let session = self.session();
        let nanos = i64::try_from(later.as_nanos()).unwrap_or(i64::MAX);
        let started = Timestamp(self.info().started.0.saturating_add(nanos));
        let row = SessionRow::new(&SessionInfo { started, ..self.info().clone() }, &[]);
        let write = vec![Write::Set(session_key(session), schema::encode(&row)?)];
        match self.kv().commit(Txn { session: Some(session), write, ..Txn::default() }).await? {
            Outcome::Applied => Ok(()),
            other => Err(Error::new(Kind::Internal, format!("row of session {session}: {other:?}"))),
        }
    }

    /// All registered sessions.
    pub async fn sessions(&self) -> Result<Vec<SessionStatus>> {
        list_sessions(&**self.kv()).await
    }

    /// Takes away the row of a session and notes that there is something to clean up.
    async fn bury(&self, session: SessionId) -> Result<()> {
        let key = session_key(session);
        let txn = Txn {
            expect: vec![Expect::Present(key.clone())],
            write: vec![
                Write::Del(key),
                Write::Set(Key::new(DEAD, session_field(session)), schema::time_value(self.now())),
            ],
            ..Txn::default()
        };
        // A conflict means that somebody else has done it.
        let _ = self.kv().commit(txn).await?;
        Ok(())
    }

    /// Releases what a session that is not registered any more held. Several may do so at once.
    pub async fn clean_up(&self, session: SessionId) -> Result<()> {
        let held = schema::held_map(session);
        loop {
            // What is released leaves the list.
            let entries = self.kv().scan(&held, 0, AT_ONCE).await?;
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                self.release_locks_of(session, schema::field_ino(&entry.field)?).await?;
            }
        }
        self.drop_staged_by(session).await?;
        let write = vec![Write::DelMap(held), Write::Del(Key::new(DEAD, session_field(session)))];
        // Without an expectation there is nothing to lose to.
        let _ = self.kv().commit(Txn { write, ..Txn::default() }).await?;
        Ok(())
    }

    /// One look at the other sessions.
    async fn look_around(&self, silence: &mut Silence) -> Result<()> {
        let now = Instant::now();
        let own = self.session();
        let sessions = self.sessions().await?;
        if !sessions.iter().any(|s| s.id == own) {
            // Another one may have been taken meanwhile; then this changes nothing.
            self.0.identity.renew(own).await?;
        }
        let silent = silence.since(now, self.ttl());
        silent.retain(|id, _| sessions.iter().any(|s| s.id == *id && !s.alive));
        for session in sessions.iter().filter(|s| !s.alive && !self.is_own(s.id)) {
            let since = *silent.entry(session.id).or_insert(now);
            if now.duration_since(since) >= self.ttl() {
                let SessionInfo { host, pid, mountpoint, .. } = &session.info;
                tracing::warn!(session = %session.id, host, pid, mountpoint, "a dead session is cleaned up");
                self.bury(session.id).await?;
                silent.remove(&session.id);
            }
        }
        for entry in self.kv().scan(DEAD, 0, AT_ONCE).await? {
            let id: SessionId = String::from_utf8_lossy(&entry.field).parse()?;
            self.clean_up(id).await.context(|| format!("session {id}"))?;
        }
        Ok(())
    }
}

/// Since when this mount has seen which sessions silent.
#[derive(Debug, Default)]
struct Silence {
    last_look: Option<Instant>,
    since: HashMap<SessionId, Instant>,
}

impl Silence {
    /// For a look at `now`. What was seen before this mount itself looked away for long (its node was stopped) says
    /// nothing about the time between.
    fn since(&mut self, now: Instant, ttl: Duration) -> &mut HashMap<SessionId, Instant> {
        if self.last_look.is_some_and(|last| now.duration_since(last) >= ttl) {
            self.since.clear();
        }
        self.last_look = Some(now);
        &mut self.since
    }
}

fn session_key(session: SessionId) -> Key {
    Key::new(SESSIONS, session_field(session))
}

/// Beats and looks around until the session ends.
async fn live(inner: Weak<Inner>, ttl: Duration) {
    let mut tick = tokio::time::interval((ttl / 3).max(Duration::from_millis(1)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut silence = Silence::default();
    loop {
        tick.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        let meta = Meta(inner);
        let beaten = meta.kv().beat(meta.session(), ttl).await;
        let done = match beaten {
            Ok(()) => {
                let told = meta.0.clock.set(&**meta.kv(), ttl / 4).await;
                meta.look_around(&mut silence).await.and(told)
            }
            Err(e) => Err(e),
        };
        if let Err(error) = done {
            tracing::warn!(session = %meta.session(), %error, "heartbeat");
            // Silence counts only while this mount could have heard.
            silence = Silence::default();
        }
    }
}

/// Keeps the hints near the truth.
async fn listen(inner: Weak<Inner>, mut watch: super::kv::Watch) {
    loop {
        let events = watch.next_all().await;
        let (Ok(events), Some(inner)) = (events, inner.upgrade()) else { return };
        let meta = Meta(inner);
        let mut others = Vec::new();
        for event in events {
            match event {
                Event::Changed { by: Some(by), .. } if meta.is_own(by) => {}
                Event::Changed { change, .. } => others.push(change),
                Event::Lost => meta.missed_changes().await,
            }
        }
        meta.heard(&others);
    }
}
