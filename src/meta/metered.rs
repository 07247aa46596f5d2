//! An engine that counts what it is asked, around one that works. To count costs 0.2 µs, where a round trip costs 40 and more.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::export::Export;
use super::kv::{EngineInfo, Entry, Followed, InodePage, Key, Kv, Outcome, Txn, Watch};
use super::redis::RedisKv;
use crate::error::Result;
use crate::metrics::Histogram;
use crate::types::{SessionId, Timestamp};

/// Operations of an engine by kind. What fails because somebody else was faster (a commit whose conditions do not hold) is
/// no failure.
#[derive(Debug, Default)]
pub struct KvStats {
    get: Histogram,
    follow: Histogram,
    scan: Histogram,
    commit: Histogram,
    beat: Histogram,
    other: Histogram,
}

impl KvStats {
    /// With their names.
    #[must_use]
    pub fn by_op(&self) -> [(&'static str, &Histogram); 6] {
        [
            ("get", &self.get),
            ("follow", &self.follow),
            ("scan", &self.scan),
            ("commit", &self.commit),
            ("beat", &self.beat),
            ("other", &self.other),
        ]
    }
}

/// The decorator.
#[derive(Debug)]
pub struct MeteredKv {
    inner: Arc<dyn Kv>,
    stats: Arc<KvStats>,
}

impl MeteredKv {
    /// Does what `inner` does, and counts it.
    #[must_use]
    pub fn new(inner: Arc<dyn Kv>) -> Self {
        MeteredKv { inner, stats: Arc::default() }
    }

    #[must_use]
    pub fn stats(&self) -> &Arc<KvStats> {
        &self.stats
    }
}

async fn timed<T>(histogram: &Histogram, work: impl Future<Output = Result<T>> + Send) -> Result<T> {
    let begun = Instant::now();
    let result = work.await;
    histogram.note(begun.elapsed(), result.is_err());
    result
}

#[async_trait]
impl Kv for MeteredKv {
    async fn get(&self, keys: &[Key]) -> Result<Vec<Option<Bytes>>> {
        timed(&self.stats.get, self.inner.get(keys)).await
    }

    async fn follow(&self, key: &Key, fields: &[Bytes]) -> Result<Option<Followed>> {
        timed(&self.stats.follow, self.inner.follow(key, fields)).await
    }

    async fn scan(&self, map: &str, after: u64, limit: usize) -> Result<Vec<Entry>> {
        timed(&self.stats.scan, self.inner.scan(map, after, limit)).await
    }

    async fn commit(&self, txn: Txn) -> Result<Outcome> {
        timed(&self.stats.commit, self.inner.commit(txn)).await
    }

    async fn watch(&self) -> Result<Watch> {
        timed(&self.stats.other, self.inner.watch()).await
    }

    async fn beat(&self, session: SessionId, ttl: Duration) -> Result<()> {
        timed(&self.stats.beat, self.inner.beat(session, ttl)).await
    }

    async fn alive(&self, sessions: &[SessionId]) -> Result<Vec<bool>> {
        timed(&self.stats.other, self.inner.alive(sessions)).await
    }

    async fn info(&self) -> Result<EngineInfo> {
        timed(&self.stats.other, self.inner.info()).await
    }

    async fn now(&self) -> Result<Timestamp> {
        timed(&self.stats.other, self.inner.now()).await
    }

    fn heard_until(&self) -> Option<Instant> {
        self.inner.heard_until()
    }

    fn incarnation(&self) -> Option<String> {
        self.inner.incarnation()
    }

    fn redis(&self) -> Option<&RedisKv> {
        self.inner.redis()
    }

    async fn inodes(&self, from: Option<&Bytes>) -> Result<InodePage> {
        timed(&self.stats.other, self.inner.inodes(from)).await
    }

    async fn export(&self) -> Result<Export> {
        self.inner.export().await
    }
}
