//! The client of the other nodes: chunks from whoever gives them best. What the wire looks like stands in
//! [`server`](super::server).
//!
//! Every call is bounded in time. Nothing that a peer sends is believed unless it is signed with the volume's key; bytes
//! are to be hashed by the caller even so, and [`Client::wrong`] tells who gave them.

mod chase;
mod request;
mod scores;
mod transfer;

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use lru::LruCache;
use tokio::time::Instant;

use super::auth::PeerKey;
use super::limits::{Limit, Meter};
use super::protocol::{Directory, FillAsk};
use super::types::{Holder, NodeId, PeerOptions};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::BlobId;
use chase::Chase;
use request::{Filled, Opened};
use scores::Scores;
use transfer::Transfer;

pub use scores::PeerStats;

/// Idle connections kept to one node. Each costs up to 400 KiB.
const IDLE: usize = 4;
/// Shorter than the server's own.
const IDLE_FOR: Duration = Duration::from_secs(20);
/// One wait for a fill.
const FILL_SLICE: Duration = Duration::from_secs(10);
/// How much later than it should be an answer may come from a node that is asked to begin with a chunk.
const LATE: Duration = Duration::from_millis(500);
/// Chunks of which is remembered who gave them.
const GIVEN: NonZeroUsize = NonZeroUsize::new(4096).expect("above 0");

/// How long others may take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub connect: Duration,
    /// For the head of an answer, beyond the wait that was asked for.
    pub answer: Duration,
    /// Without a byte, until a transfer is given up.
    pub progress: Duration,
    /// Without a byte, until another node may be asked beside it: at least.
    pub hedge: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Times {
            connect: Duration::from_secs(1),
            answer: Duration::from_secs(3),
            progress: Duration::from_secs(10),
            hedge: Duration::from_millis(50),
        }
    }
}

/// How a client is to behave.
#[derive(Clone, Debug, Default)]
pub struct ClientOptions {
    /// Nodes of this zone are preferred. Empty: none.
    pub zone: String,
    /// For all downloads together.
    pub limit: Option<Arc<Limit>>,
    pub times: Times,
}

impl From<&PeerOptions> for ClientOptions {
    fn from(options: &PeerOptions) -> Self {
        let limit = options.download_limit.map(|rate| Arc::new(Limit::new(rate)));
        ClientOptions { zone: options.zone.clone(), limit, times: Times::default() }
    }
}

/// A client of the other nodes. Cheap to clone; all clones share connections, scores and limits.
#[derive(Clone, Debug)]
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    node: NodeId,
    key: PeerKey,
    directory: Arc<dyn Directory>,
    http: reqwest::Client,
    zone: String,
    limit: Option<Arc<Limit>>,
    times: Times,
    scores: Scores,
    down: Meter,
    given: Mutex<LruCache<(BlobId, u64), Given>>,
}

/// A chunk that comes from a peer.
pub struct Got {
    /// Who gives it, to begin with: see [`Client::given`].
    pub from: NodeId,
    /// Its BLAKE3, as that node recorded it; signed. `None`: it is still coming in there, and is passed on. Its end comes when
    /// that node has compared it with the cluster's record.
    pub hash: Option<[u8; 32]>,
    /// Whether that node knows the blob to be what its name says.
    pub verified: bool,
    /// Exactly the chunk's length, or an error that names the node.
    pub bytes: BoxStream<'static, Result<Bytes>>,
}

impl fmt::Debug for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Got")
            .field("from", &self.from)
            .field("verified", &self.verified)
            .finish_non_exhaustive()
    }
}

/// Where a chunk came from, the last time it came from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// More than one if others went on where the first one stopped.
    pub nodes: Vec<NodeId>,
    /// The chunk's BLAKE3, as all of them recorded it that had it whole.
    pub hash: Option<[u8; 32]>,
    pub verified: bool,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, LruCache<(BlobId, u64), Given>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that may be asked, in the order in which to ask them.
    fn choose(&self, holders: &[Holder], len: u32) -> Vec<Holder> {
        let may = |h: &&Holder| h.node != self.node && !self.directory.is_blocked(h.node);
        self.scores.order(holders.iter().filter(may).cloned().collect(), &self.zone, len)
    }

    /// Remembers that the node gives (a part of) the chunk.
    fn note(&self, blob: BlobId, idx: u64, opened: &Opened) {
        let fresh = || Given { nodes: Vec::new(), hash: opened.hash, verified: opened.verified };
        let mut all = self.lock();
        let given = all.get_or_insert_mut((blob, idx), fresh);
        given.nodes.push(opened.holder.node);
        given.hash = given.hash.or(opened.hash);
        given.verified &= opened.verified;
    }
}

impl Client {
    /// A client that asks in the name of `node`. No connection is made yet.
    pub fn new(
        options: ClientOptions,
        node: NodeId,
        key: PeerKey,
        directory: Arc<dyn Directory>,
    ) -> Result<Self> {
        crate::tls::install_ring();
        let http = reqwest::Client::builder()
            // Peers are reached directly, whatever the environment says about the way out.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .http1_only()
            // Never used, and slim containers have none.
            .tls_certs_only([])
            .tcp_nodelay(true)
            .tcp_keepalive(Duration::from_secs(30))
            .connect_timeout(options.times.connect)
            .pool_max_idle_per_host(IDLE)
            .pool_idle_timeout(IDLE_FOR)
            .build()
            .map_err(|e| Error::with_source(Kind::Config, "HTTP client of the peers", e))?;
        Ok(Client(Arc::new(Inner {
            node,
            key,
            directory,
            http,
            zone: options.zone,
            limit: options.limit,
            times: options.times,
            scores: Scores::default(),
            down: Meter::default(),
            given: Mutex::new(LruCache::new(GIVEN)),
        })))
    }

    /// Chunk `idx`, which has `len` bytes, from one of `holders`: of two taken at random the better one, then the others, then
    /// those that they name. If all are busy they are asked to let this node wait, until `patience` is over. If one stalls,
    /// another is asked beside it, and goes on where it stopped. Nodes that are still receiving
    /// it may pass it on: then its hash is not known.
    ///
    /// # Errors
    /// [`Kind::NotFound`]: none of them has it, or may be asked. [`Kind::Unavailable`], [`Kind::TimedOut`]: they are busy, or
    /// fail.
    pub async fn fetch_live(
        &self,
        blob: BlobId,
        idx: u64,
        len: u32,
        holders: &[Holder],
        patience: Duration,
    ) -> Result<Got> {
        let chase = Chase::new(&self.0, blob, idx, len, Instant::now() + patience).live().holders(holders);
        self.get(chase).await
    }

    /// The same only from nodes that have it whole, so that there is a node's word for its hash.
    ///
    /// # Errors
    /// As [`Client::fetch_live`].
    pub async fn fetch(
        &self,
        blob: BlobId,
        idx: u64,
        len: u32,
        holders: &[Holder],
        patience: Duration,
    ) -> Result<Got> {
        let chase = Chase::new(&self.0, blob, idx, len, Instant::now() + patience).holders(holders);
        self.get(chase).await
    }

    /// The same from the node that is fetching the chunk itself, or from those that wait there already, as it comes there;
    /// the first of it within `limit`.
    ///
    /// # Errors
    /// [`Kind::NotFound`]: that node has no such transfer, or it failed. [`Kind::Unavailable`]: it cannot be reached, or does
    /// not answer. [`Kind::TimedOut`]: the transfer goes on.
    pub async fn wait(
        &self,
        blob: BlobId,
        idx: u64,
        len: u32,
        owner: &Holder,
        limit: Duration,
    ) -> Result<Got> {
        let chase = Chase::new(&self.0, blob, idx, len, Instant::now() + limit).live().owner(owner);
        self.get(chase).await
    }

    /// The same from a node that is asked to fetch the chunk, of a blob of `size` bytes, if it does not yet.
    ///
    /// # Errors
    /// As [`Client::wait`]. [`Kind::NotFound`]: it does not do it.
    pub async fn wait_begun(
        &self,
        blob: BlobId,
        size: u64,
        idx: u64,
        len: u32,
        node: &Holder,
        limit: Duration,
    ) -> Result<Got> {
        let chase = Chase::new(&self.0, blob, idx, len, Instant::now() + limit);
        let opening = self.get(chase.live().begun_there(size).owner(node));
        match tokio::time::timeout(limit + LATE, opening).await {
            Ok(got) => got,
            Err(_) => {
                self.failed(node.node);
                Err(Error::new(Kind::TimedOut, format!("{} does not answer", request::name(node))))
            }
        }
    }

    /// Whether nothing bad is known of the node lately.
    #[must_use]
    pub fn is_well(&self, node: NodeId) -> bool {
        self.0.scores.is_well(node)
    }

    async fn get(&self, chase: Chase) -> Result<Got> {
        let (blob, idx, len) = (chase.blob, chase.idx, chase.len);
        let (opened, others) = chase.open().await?;
        self.0.lock().pop(&(blob, idx));
        self.0.note(blob, idx, &opened);
        let (from, hash, verified) = (opened.holder.node, opened.hash, opened.verified);
        let transfer = Transfer::new(&self.0, blob, idx, len, opened, others);
        let bytes = stream::try_unfold(transfer, Transfer::next).boxed();
        Ok(Got { from, hash, verified, bytes })
    }

    /// Asks a node that may call the Hub to fetch a chunk of a blob of `size` bytes. When it returns, the node holds it.
    ///
    /// # Errors
    /// What the Hub said to that node ([`Kind::Access`], [`Kind::NotFound`], …), [`Kind::NotPermitted`] if it may not call the
    /// Hub either, [`Kind::TimedOut`] if `limit` is over and the fill goes on, [`Kind::Unavailable`] if it cannot be asked.
    pub async fn ask_fill(
        &self,
        node: &Holder,
        blob: BlobId,
        size: u64,
        idx: u64,
        limit: Duration,
    ) -> Result<()> {
        let ask = FillAsk { blob: blob.to_string(), size, chunk: idx };
        let body = serde_json::to_vec(&ask)
            .map_err(|e| Error::with_source(Kind::Internal, "a request to a peer", e))?;
        let body = Bytes::from(body);
        let until = Instant::now() + limit;
        loop {
            // In slices, so that a node that is frozen is found out.
            let slice = until.saturating_duration_since(Instant::now()).min(FILL_SLICE);
            let filled = self.0.fill(node, body.clone(), slice).await;
            match filled.context(|| format!("a fill by {}", request::name(node)))? {
                Filled::Done => return Ok(()),
                Filled::Underway if Instant::now() >= until => {
                    let why = format!("a fill by {} goes on", request::name(node));
                    return Err(Error::new(Kind::TimedOut, why));
                }
                Filled::Underway => {}
            }
        }
    }

    /// Who serves this volume at `addr`. [`Kind::Unavailable`] if nobody does.
    pub async fn ping(&self, addr: SocketAddr) -> Result<NodeId> {
        self.0.ping(addr).await.context(|| format!("the peer at {addr}"))
    }

    /// Where a chunk came from, if it came from a peer lately.
    #[must_use]
    pub fn given(&self, blob: BlobId, idx: u64) -> Option<Given> {
        self.0.lock().peek(&(blob, idx)).cloned()
    }

    /// The chunk's bytes were not what they should be: those who gave them are not asked for 30 s. Answers who they are;
    /// if they are several, one of them at least is at fault.
    pub fn wrong(&self, blob: BlobId, idx: u64) -> Vec<NodeId> {
        let nodes = self.0.lock().pop(&(blob, idx)).map_or_else(Vec::new, |g| g.nodes);
        for node in &nodes {
            tracing::warn!(%node, %blob, idx, "a peer gave wrong bytes; it is left alone for a while");
            self.0.scores.wrong(*node);
        }
        nodes
    }

    /// A call of another kind to the node failed: it is asked last for a while.
    pub fn failed(&self, node: NodeId) {
        self.0.scores.outcome(node, scores::Outcome::Failed);
    }

    /// Bytes that came from peers, and how many a second lately.
    #[must_use]
    pub fn received(&self) -> (u64, u64) {
        (self.0.down.total(), self.0.down.rate())
    }

    /// What each node gave; of the 4096 asked last.
    #[must_use]
    pub fn stats(&self) -> Vec<(NodeId, PeerStats)> {
        self.0.scores.show()
    }
}
