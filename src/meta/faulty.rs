//! An engine that fails when a test says so, around one that works. For tests; nothing else uses it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::kv::{EngineInfo, Entry, Event, Followed, InodePage, Key, Kv, Outcome, Txn, Watch};
use super::watchers::Watchers;
use crate::error::{Error, Kind, Result};
use crate::types::{SessionId, Timestamp};

/// Which operations a fault befalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// `get`, `follow`, `scan` and `inodes`.
    Read,
    Commit,
    /// `beat` and `alive`.
    Beat,
    Any,
}

/// What befalls an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not done.
    Fail(Kind),
    /// It is done, and answered with an error: a reply that was lost for good.
    FailAfter(Kind),
    /// It is done later.
    Delay(Duration),
}

#[derive(Clone, Copy, Debug)]
struct Rule {
    on: On,
    /// Operations that it lets pass before.
    skip: u64,
    times: u64,
    fault: Fault,
}

/// The decorator. Faults are taken in the order in which they were set, each as often as it says.
#[derive(Debug)]
pub struct FaultyKv {
    inner: Arc<dyn Kv>,
    rules: Mutex<VecDeque<Rule>>,
    frozen: watch::Sender<bool>,
    /// How long an operation may last while the engine is frozen, nanoseconds.
    bound: AtomicU64,
    events: Arc<Events>,
    /// What the engine's clock is off by, nanoseconds.
    skew: AtomicI64,
    reads: AtomicU64,
    commits: AtomicU64,
    incarnation: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Events {
    sender: Watchers,
    dropping: AtomicBool,
    doubling: AtomicBool,
    /// When events began to be dropped.
    deaf_since: Mutex<Option<Instant>>,
}

impl FaultyKv {
    /// Does what `inner` does until told otherwise.
    #[must_use]
    pub fn new(inner: Arc<dyn Kv>) -> Arc<Self> {
        let events = Events {
            sender: Watchers::default(),
            dropping: AtomicBool::new(false),
            doubling: AtomicBool::new(false),
            deaf_since: Mutex::default(),
        };
        Arc::new(FaultyKv {
            inner,
            rules: Mutex::default(),
            frozen: watch::Sender::new(false),
            bound: AtomicU64::new(u64::MAX),
            events: Arc::new(events),
            skew: AtomicI64::new(0),
            reads: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            incarnation: Mutex::default(),
        })
    }

    /// The next `times` operations meet `fault`.
    pub fn next(&self, on: On, times: u64, fault: Fault) {
        self.after(0, on, times, fault);
    }

    /// `times` operations after `skip` others meet `fault`.
    pub fn after(&self, skip: u64, on: On, times: u64, fault: Fault) {
        lock(&self.rules).push_back(Rule { on, skip, times, fault });
    }

    /// No faults any more; the frozen go on.
    pub fn heal(&self) {
        lock(&self.rules).clear();
        self.frozen.send_replace(false);
        self.drop_events(false);
        self.events.doubling.store(false, Ordering::SeqCst);
    }

    /// While frozen nothing is done; operations wait for [`FaultyKv::heal`], at most for `bound`.
    pub fn freeze(&self, bound: Duration) {
        self.bound.store(u64::try_from(bound.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
        self.frozen.send_replace(true);
    }

    /// Watchers hear nothing, and nobody tells them so.
    pub fn drop_events(&self, dropping: bool) {
        let since = dropping.then(Instant::now);
        *lock(&self.events.deaf_since) = since;
        self.events.dropping.store(dropping, Ordering::SeqCst);
    }

    /// Watchers hear everything twice.
    pub fn double_events(&self) {
        self.events.doubling.store(true, Ordering::SeqCst);
    }

    /// Watchers hear that they missed something.
    pub fn lose_events(&self) {
        self.events.sender.tell(Event::Lost);
    }

    /// The engine's clock is off by so many seconds.
    pub fn skew(&self, seconds: i64) {
        self.skew.store(seconds * 1_000_000_000, Ordering::SeqCst);
    }

    /// The engine says that it is another server now.
    pub fn become_another(&self, name: &str) {
        *lock(&self.incarnation) = Some(name.to_owned());
    }

    /// Reads and commits that were asked for since the last call.
    pub fn round_trips(&self) -> (u64, u64) {
        (self.reads.swap(0, Ordering::SeqCst), self.commits.swap(0, Ordering::SeqCst))
    }

    /// What befalls this operation.
    fn fault(&self, is: On) -> Option<Fault> {
        let mut rules = lock(&self.rules);
        let at = rules.iter().position(|rule| rule.on == is || rule.on == On::Any)?;
        let rule = &mut rules[at];
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        let fault = rule.fault;
        rule.times -= 1;
        if rule.times == 0 {
            rules.remove(at);
        }
        Some(fault)
    }

    async fn meet<T>(&self, is: On, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
        if *self.frozen.borrow() {
            let bound = Duration::from_nanos(self.bound.load(Ordering::SeqCst));
            let mut frozen = self.frozen.subscribe();
            if timeout(bound, frozen.wait_for(|frozen| !frozen)).await.is_err() {
                return Err(broken(Kind::TimedOut));
            }
        }
        match self.fault(is) {
            None => work.await,
            Some(Fault::Fail(kind)) => Err(broken(kind)),
            Some(Fault::FailAfter(kind)) => {
                work.await?;
                Err(broken(kind))
            }
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                work.await
            }
        }
    }
}

fn broken(kind: Kind) -> Error {
    Error::new(kind, "the engine, as the test wants it")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn forward(mut from: Watch, events: std::sync::Weak<Events>) {
    while let Ok(event) = from.next().await {
        let Some(events) = events.upgrade() else { return };
        if events.dropping.load(Ordering::SeqCst) {
            continue;
        }
        if events.doubling.load(Ordering::SeqCst) {
            events.sender.tell(event.clone());
        }
        events.sender.tell(event);
    }
}

#[async_trait]
impl Kv for FaultyKv {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Bytes>>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.meet(On::Read, self.inner.get(keys)).await
    }

    async fn follow(&self, key: &Key, fields: &[Bytes]) -> Result<Option<Followed>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.meet(On::Read, self.inner.follow(key, fields)).await
    }

    async fn scan(&self, map: &str, after: u64, limit: usize) -> Result<Vec<Entry>> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.meet(On::Read, self.inner.scan(map, after, limit)).await
    }

    async fn inodes(&self, from: Option<&Bytes>) -> Result<InodePage> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.meet(On::Read, self.inner.inodes(from)).await
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        self.meet(On::Commit, self.inner.commit(txn)).await
    }

    async fn watch(&self) -> Result<Watch> {
        // One subscription below is enough, and every one would double what is heard.
        let first = self.events.sender.is_empty();
        let watch = self.events.sender.subscribe();
        if first {
            tokio::spawn(forward(self.inner.watch().await?, Arc::downgrade(&self.events)));
        }
        Ok(watch)
    }

    async fn beat(&self, session: SessionId, ttl: Duration) -> Result<()> {
        self.meet(On::Beat, self.inner.beat(session, ttl)).await
    }

    async fn alive(&self, sessions: &[SessionId]) -> Result<Vec<bool>> {
        self.meet(On::Beat, self.inner.alive(sessions)).await
    }

    async fn info(&self) -> Result<EngineInfo> {
        self.inner.info().await
    }

    async fn now(&self) -> Result<Timestamp> {
        let now = self.inner.now().await?;
        Ok(Timestamp(now.0.saturating_add(self.skew.load(Ordering::SeqCst))))
    }

    fn heard_until(&self) -> Option<Instant> {
        let inner = self.inner.heard_until()?;
        Some(lock(&self.events.deaf_since).map_or(inner, |since| since.min(inner)))
    }

    fn incarnation(&self) -> Option<String> {
        lock(&self.incarnation).clone().or_else(|| self.inner.incarnation())
    }
}
