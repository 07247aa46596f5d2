//! Who this mount is to the others: a session, and another one after it if the first is lost.
//!
//! A mount that was silent for too long (its node was stopped, or cut off) finds its session declared dead, and a server
//! that failed over may have forgotten a session that was just registered. Either way what was under it is gone or may be
//! another's now: its locks. Nothing else need be: transactions say what they take for granted, so what they say under a
//! new session is as true as under the old one. So the mount registers anew, by itself, and goes on.
//!
//! Numbers within a session (of versions, of objects) go on counting over all of them, and the ids of the sessions before
//! are kept: a version or an object of any of them is this mount's own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::apply::fenced;
use super::kv::{Expect, Key, Kv, Outcome, SESSIONS, Txn, Write, session_field};
use super::schema::{self, SessionRow};
use super::session::SessionInfo;
use crate::error::{Error, Kind, Result};
use crate::types::SessionId;

/// How many lost sessions a mount remembers. One may be lost in every TTL.
const FORMER: usize = 1000;

/// The session of a mount. Shared by all that commits for it.
pub(super) struct Identity {
    kv: Arc<dyn Kv>,
    /// What the mount says of itself; `None`: a session of somebody else's making, which is never replaced.
    info: Option<SessionInfo>,
    ttl: Duration,
    current: AtomicU64,
    former: Mutex<Vec<SessionId>>,
    /// Found without a row and not replaced yet, or closed.
    fenced: AtomicBool,
    closed: AtomicBool,
    /// Held while the session is replaced: when, and how that last failed.
    renewing: tokio::sync::Mutex<Option<(Instant, Error)>>,
    renewed: watch::Sender<u64>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("session", &self.id()).finish_non_exhaustive()
    }
}

impl Identity {
    fn new(kv: Arc<dyn Kv>, info: Option<SessionInfo>, ttl: Duration, session: SessionId) -> Self {
        Identity {
            kv,
            info,
            ttl,
            current: AtomicU64::new(session.0),
            former: Mutex::default(),
            fenced: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            renewing: tokio::sync::Mutex::default(),
            renewed: watch::Sender::new(0),
        }
    }

    /// A session that somebody else registered.
    pub fn fixed(kv: Arc<dyn Kv>, session: SessionId) -> Arc<Self> {
        Arc::new(Self::new(kv, None, Duration::ZERO, session))
    }

    /// Registers a session.
    pub async fn register(kv: Arc<dyn Kv>, info: SessionInfo, ttl: Duration) -> Result<Arc<Self>> {
        let session = enroll(&*kv, &info, &[], ttl).await?;
        Ok(Arc::new(Self::new(kv, Some(info), ttl, session)))
    }

    pub fn kv(&self) -> &Arc<dyn Kv> {
        &self.kv
    }

    pub fn id(&self) -> SessionId {
        SessionId(self.current.load(Ordering::Acquire))
    }

    /// Whether it is this mount's session, or was.
    pub fn is_own(&self, session: SessionId) -> bool {
        session == self.id() || self.former().contains(&session)
    }

    pub fn fenced(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
    }

    /// Counts how often the session was replaced.
    pub fn renewals(&self) -> watch::Receiver<u64> {
        self.renewed.subscribe()
    }

    /// Commits under the session of the moment. If that turns out to be lost, under the next one: a transaction that was
    /// fenced was not applied, and is not now unless all that it expects still holds. Not for what names the session in its
    /// rows as the holder of something.
    pub async fn commit(&self, mut txn: Txn) -> Result<Outcome> {
        if txn.session.is_none() {
            return self.kv.commit(txn).await;
        }
        let before = self.id();
        txn.session = Some(before);
        match self.kv.commit(txn.clone()).await {
            Err(e) if e.kind() == Kind::Fenced => {}
            done => return done,
        }
        self.renew(before).await?;
        txn.session = Some(self.id());
        self.kv.commit(txn).await
    }

    /// Replaces the session `lost`, unless somebody has done it. [`Kind::Fenced`] after [`Identity::close`].
    pub async fn renew(&self, lost: SessionId) -> Result<()> {
        let began = Instant::now();
        let mut last = self.renewing.lock().await;
        if self.id() != lost {
            return Ok(());
        }
        self.fenced.store(true, Ordering::Relaxed);
        let (Some(info), false) = (&self.info, self.closed.load(Ordering::Acquire)) else {
            return Err(fenced(lost));
        };
        // Who waited for somebody else's try takes its failure instead of making those behind wait for another.
        if let Some((when, error)) = &*last
            && *when > began
        {
            return Err(error.share());
        }
        let mut former = self.former().clone();
        former.push(lost);
        if former.len() > FORMER {
            former.remove(0);
        }
        let session = match enroll(&*self.kv, info, &former, self.ttl).await {
            Ok(session) => session,
            Err(e) => {
                let e = e.context(format!("session {lost} is lost, and there is no other yet"));
                *last = Some((Instant::now(), e.share()));
                return Err(e);
            }
        };
        // First known as a former one: nobody may take its versions for another mount's in between.
        *self.former() = former;
        self.current.store(session.0, Ordering::Release);
        self.fenced.store(false, Ordering::Relaxed);
        tracing::error!(
            %lost,
            %session,
            "this mount's session was declared dead by other mounts, or lost by the server: it goes on under another one"
        );
        self.renewed.send_modify(|times| *times += 1);
        Ok(())
    }

    /// No session follows this one. Answers the last.
    pub async fn close(&self) -> SessionId {
        let _none = self.renewing.lock().await;
        self.closed.store(true, Ordering::Release);
        self.id()
    }

    fn former(&self) -> MutexGuard<'_, Vec<SessionId>> {
        self.former.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Registers a new session.
async fn enroll(kv: &dyn Kv, info: &SessionInfo, former: &[SessionId], ttl: Duration) -> Result<SessionId> {
    let session = SessionId::random();
    // Before it is registered, so that nobody ever sees it silent.
    kv.beat(session, ttl).await?;
    let key = Key::new(SESSIONS, session_field(session));
    let row = SessionRow::new(info, former);
    let write = vec![Write::Set(key.clone(), schema::encode(&row)?)];
    // What was uploaded under a former session and is not committed yet must still be there.
    let collected: Vec<Key> = former.iter().map(|&session| schema::collected_key(session)).collect();
    let mut expect = vec![Expect::Absent(key)];
    expect.extend(collected.iter().cloned().map(Expect::Absent));
    if kv.commit(Txn { expect, write, ..Txn::default() }).await? == Outcome::Applied {
        return Ok(session);
    }
    let gone = match collected.is_empty() {
        true => Vec::new(),
        false => kv.get(&collected).await?,
    };
    match former.iter().zip(gone).find(|(_, gone)| gone.is_some()) {
        Some((lost, _)) => Err(Error::with_source(
            Kind::Fenced,
            format!("session {lost}"),
            "it was lost for so long that `hfmount gc` deleted what it had uploaded: mount again",
        )),
        None => Err(Error::new(Kind::Internal, format!("session {session} is registered already"))),
    }
}
