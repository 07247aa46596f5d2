//! Metadata whose commits fail on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::{Error, Kind, Result};
use crate::meta::kv::{EngineInfo, Entry, Followed, Key, Kv, Outcome, Txn, Watch};
use crate::meta::memory::MemoryKv;
use crate::types::SessionId;

#[derive(Debug)]
pub struct FaultyKv {
    inner: Arc<MemoryKv>,
    fail: AtomicU32,
    lose: AtomicU32,
    /// While a test holds it, commits are on their way.
    pub gate: tokio::sync::Mutex<()>,
}

fn broken() -> Error {
    Error::new(Kind::Unavailable, "the metadata engine, as the test wants it")
}

fn take(n: &AtomicU32) -> bool {
    n.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok()
}

impl FaultyKv {
    pub fn new() -> Arc<Self> {
        Arc::new(FaultyKv {
            inner: MemoryKv::new(),
            fail: AtomicU32::new(0),
            lose: AtomicU32::new(0),
            gate: tokio::sync::Mutex::default(),
        })
    }

    /// This many next commits fail and change nothing.
    pub fn fail_commits(&self, n: u32) {
        self.fail.store(n, SeqCst);
    }

    /// This many next commits are applied, and their replies lost.
    pub fn lose_replies(&self, n: u32) {
        self.lose.store(n, SeqCst);
    }
}

#[async_trait]
impl Kv for FaultyKv {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Bytes>>> {
        self.inner.get(keys).await
    }
    async fn follow(&self, key: &Key, fields: &[Bytes]) -> Result<Option<Followed>> {
        self.inner.follow(key, fields).await
    }
    async fn scan(&self, map: &str, after: u64, limit: usize) -> Result<Vec<Entry>> {
        self.inner.scan(map, after, limit).await
    }
    async fn commit(&self, txn: Txn) -> Result<Outcome> {
        if take(&self.fail) {
            return Err(broken());
        }
        let _gate = self.gate.lock().await;
        let outcome = self.inner.commit(txn).await?;
        if take(&self.lose) { Err(broken()) } else { Ok(outcome) }
    }
    async fn watch(&self) -> Result<Watch> {
        self.inner.watch().await
    }
    async fn beat(&self, session: SessionId, ttl: Duration) -> Result<()> {
        self.inner.beat(session, ttl).await
    }
    async fn alive(&self, sessions: &[SessionId]) -> Result<Vec<bool>> {
        self.inner.alive(sessions).await
    }
    async fn info(&self) -> Result<EngineInfo> {
        self.inner.info().await
    }
}
