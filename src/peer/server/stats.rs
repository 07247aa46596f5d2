//! What a server counts.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lru::LruCache;

use crate::peer::limits::Meter;
use crate::peer::types::NodeId;

/// Nodes that are counted one by one.
const NODES: NonZeroUsize = NonZeroUsize::new(4096).expect("above 0");

#[derive(Debug)]
pub(super) struct Counters {
    pub requests: AtomicU64,
    pub chunks: AtomicU64,
    pub absent: AtomicU64,
    pub busy: AtomicU64,
    pub redirected: AtomicU64,
    pub waits: AtomicU64,
    pub passed_on: AtomicU64,
    pub fills: AtomicU64,
    pub refused: AtomicU64,
    pub replays: AtomicU64,
    pub blocked: AtomicU64,
    pub failed: AtomicU64,
    pub cut: AtomicU64,
    up: Meter,
    nodes: Mutex<LruCache<NodeId, u64>>,
}

impl Default for Counters {
    fn default() -> Self {
        let zero = AtomicU64::default;
        Counters {
            requests: zero(),
            chunks: zero(),
            absent: zero(),
            busy: zero(),
            redirected: zero(),
            waits: zero(),
            passed_on: zero(),
            fills: zero(),
            refused: zero(),
            replays: zero(),
            blocked: zero(),
            failed: zero(),
            cut: zero(),
            up: Meter::default(),
            nodes: Mutex::new(LruCache::new(NODES)),
        }
    }
}

/// What a server did since it began. All but the last four count upwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Requests with a right MAC.
    pub requests: u64,
    /// Chunks sent to their end.
    pub chunks: u64,
    /// Bytes of chunks sent.
    pub bytes_up: u64,
    /// Answers that the chunk is not here.
    pub absent: u64,
    /// Answers that all slots are taken.
    pub busy: u64,
    /// Askers sent on because a chunk's seats were taken.
    pub redirected: u64,
    /// Requests that waited for a transfer under way.
    pub waits: u64,
    /// Chunks that were sent while they came in.
    pub passed_on: u64,
    /// Chunks fetched from the Hub for others.
    pub fills: u64,
    /// Requests without a right MAC, or with a time that is off.
    pub refused: u64,
    /// Requests that were here before.
    pub replays: u64,
    /// Requests of nodes that are put out.
    pub blocked: u64,
    /// Chunks that this node's own disk or store failed to give.
    pub failed: u64,
    /// Connections that ended badly: cut as too slow or too many, not HTTP, or broken off in an answer.
    pub cut: u64,
    /// Connections that are open now.
    pub connections: u64,
    pub slots_free: u32,
    pub slots: u32,
    /// Bytes a second, lately.
    pub up_bps: u64,
}

impl Counters {
    pub fn sent(&self, to: NodeId, bytes: usize) {
        self.up.add(bytes);
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        *nodes.get_or_insert_mut(to, || 0) += bytes as u64;
    }

    pub fn sent_to(&self) -> Vec<(NodeId, u64)> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.iter().map(|(node, bytes)| (*node, *bytes)).collect()
    }

    pub fn show(&self) -> ServerStats {
        ServerStats {
            requests: self.requests.load(Relaxed),
            chunks: self.chunks.load(Relaxed),
            bytes_up: self.up.total(),
            absent: self.absent.load(Relaxed),
            busy: self.busy.load(Relaxed),
            redirected: self.redirected.load(Relaxed),
            waits: self.waits.load(Relaxed),
            passed_on: self.passed_on.load(Relaxed),
            fills: self.fills.load(Relaxed),
            refused: self.refused.load(Relaxed),
            replays: self.replays.load(Relaxed),
            blocked: self.blocked.load(Relaxed),
            failed: self.failed.load(Relaxed),
            cut: self.cut.load(Relaxed),
            up_bps: self.up.rate(),
            ..ServerStats::default()
        }
    }
}
