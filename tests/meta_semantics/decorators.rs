//! Engines that behave worse than they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hfmount::error::{Error, Kind, Result};
use hfmount::meta::kv::{EngineInfo, Entry, Followed, Key, Kv, Outcome, Txn, Watch};
use hfmount::types::SessionId;

/// Lets others go first now and then: the engine in memory never waits by itself.
#[derive(Debug)]
pub struct Yielding<K>(pub Arc<K>);

async fn let_others_go() {
    for _ in 0..rand::random::<u8>() % 4 {
        tokio::task::yield_now().await;
    }
}

#[async_trait]
impl<K: Kv> Kv for Yielding<K> {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Bytes>>> {
        let_others_go().await;
        self.0.get(keys).await
    }
    async fn follow(&self, key: &Key, fields: &[Bytes]) -> Result<Option<Followed>> {
        let_others_go().await;
        self.0.follow(key, fields).await
    }
    async fn scan(&self, map: &str, after: u64, limit: usize) -> Result<Vec<Entry>> {
        let_others_go().await;
        self.0.scan(map, after, limit).await
    }
    async fn commit(&self, txn: Txn) -> Result<Outcome> {
        let_others_go().await;
        self.0.commit(txn).await
    }
    async fn watch(&self) -> Result<Watch> {
        self.0.watch().await
    }
    async fn beat(&self, session: SessionId, ttl: Duration) -> Result<()> {
        self.0.beat(session, ttl).await
    }
    async fn alive(&self, sessions: &[SessionId]) -> Result<Vec<bool>> {
        self.0.alive(sessions).await
    }
    async fn info(&self) -> Result<EngineInfo> {
        self.0.info().await
    }
}

/// Counts round trips, fails a commit on demand, can be cut off.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Kv>,
    reads: AtomicU64,
    commits: AtomicU64,
    /// Commits until the one that fails; below 0: none does.
    fuse: AtomicI64,
    /// Whether the failing commit is applied before its reply is lost.
    apply: bool,
    /// Heartbeats are swallowed.
    mute: std::sync::atomic::AtomicBool,
}

impl Faulty {
    pub fn new(inner: Arc<dyn Kv>) -> Arc<Self> {
        Self::build(inner, false)
    }

    /// The commit that fails is applied, and its reply lost.
    pub fn after_apply(inner: Arc<dyn Kv>) -> Arc<Self> {
        Self::build(inner, true)
    }

    fn build(inner: Arc<dyn Kv>, apply: bool) -> Arc<Self> {
        Arc::new(Faulty {
            inner,
            reads: AtomicU64::new(0),
            commits: AtomicU64::new(0),
            fuse: AtomicI64::new(-1),
            apply,
            mute: false.into(),
        })
    }

    /// The commit after `n` more, and all later ones until the fuse is drawn out (-1), fail.
    pub fn set_fuse(&self, n: i64) {
        self.fuse.store(n, Ordering::SeqCst);
    }

    pub fn mute(&self) {
        self.mute.store(true, Ordering::SeqCst);
    }

    /// Reads and commits since the last call.
    pub fn round_trips(&self) -> (u64, u64) {
        (self.reads.swap(0, Ordering::SeqCst), self.commits.swap(0, Ordering::SeqCst))
    }

    fn read(&self) {
        self.reads.fetch_add(1, Ordering::SeqCst);
    }
}

fn broken() -> Error {
    Error::new(Kind::Unavailable, "the engine, as the test wants it")
}

#[async_trait]
impl Kv for Faulty {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Bytes>>> {
        self.read();
        self.inner.get(keys).await
    }
    async fn follow(&self, key: &Key, fields: &[Bytes]) -> Result<Option<Followed>> {
        self.read();
        self.inner.follow(key, fields).await
    }
    async fn scan(&self, map: &str, after: u64, limit: usize) -> Result<Vec<Entry>> {
        self.read();
        self.inner.scan(map, after, limit).await
    }
    async fn commit(&self, txn: Txn) -> Result<Outcome> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        match self.fuse.load(Ordering::SeqCst) {
            -1 => self.inner.commit(txn).await,
            0 if self.apply => {
                self.set_fuse(-1);
                let _ = self.inner.commit(txn).await?;
                Err(broken())
            }
            0 => Err(broken()),
            n => {
                self.set_fuse(n - 1);
                self.inner.commit(txn).await
            }
        }
    }
    async fn watch(&self) -> Result<Watch> {
        self.inner.watch().await
    }
    async fn beat(&self, session: SessionId, ttl: Duration) -> Result<()> {
        if self.mute.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.inner.beat(session, ttl).await
    }
    async fn alive(&self, sessions: &[SessionId]) -> Result<Vec<bool>> {
        self.inner.alive(sessions).await
    }
    async fn info(&self) -> Result<EngineInfo> {
        self.inner.info().await
    }
}
