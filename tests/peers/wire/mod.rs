//! The wire: real servers on loopback, real clients, and shelves that hold what the test puts there.

mod auth;
mod bench;
mod client;
mod crowd;
mod hostile;
mod raw;
mod serve;
mod source;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use hfmount::error::{Error, Kind, Result};
use hfmount::peer::auth::PeerKey;
use hfmount::peer::client::Times;
use hfmount::peer::server::Patience;
use hfmount::peer::{
    Client, ClientOptions, Directory, Got, Holder, NodeId, Server, ServerOptions, Shelf, Shelved, Waited,
};
use hfmount::types::BlobId;
use tokio::sync::watch;

pub const BLOB: BlobId = BlobId::Sha256([0xab; 32]);
pub const PIECE: usize = 256 << 10;
/// Bytes of a chunk that is fed as it comes.
pub const LIVE: usize = 1 << 20;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn key() -> PeerKey {
    PeerKey::new(&[42; 32])
}

/// Bytes that differ from chunk to chunk.
pub fn content(idx: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    let mut reader = blake3::Hasher::new().update(&idx.to_le_bytes()).finalize_xof();
    reader.fill(&mut bytes);
    bytes.into()
}

/// All that the nodes know of each other.
#[derive(Debug, Default)]
pub struct Town {
    holders: Mutex<HashMap<NodeId, Holder>>,
    blocked: Mutex<HashSet<NodeId>>,
    pub stale: Mutex<Vec<(NodeId, u64)>>,
    /// Those at whose place nobody listens.
    pub refused: Mutex<Vec<NodeId>>,
    /// Who has which chunk by now.
    have: Mutex<HashMap<u64, Vec<Holder>>>,
}

/// The town, seen by one node.
#[derive(Debug)]
pub struct View {
    town: Arc<Town>,
    /// How far this node's clock is off, milliseconds.
    pub skew: AtomicI64,
}

pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

impl Directory for View {
    fn now_ms(&self) -> u64 {
        now_ms().saturating_add_signed(self.skew.load(Relaxed))
    }
    fn holder(&self, node: NodeId) -> Option<Holder> {
        lock(&self.town.holders).get(&node).cloned()
    }
    fn is_blocked(&self, node: NodeId) -> bool {
        lock(&self.town.blocked).contains(&node)
    }
    fn not_held(&self, node: NodeId, _: BlobId, idx: u64) {
        lock(&self.town.stale).push((node, idx));
    }
    fn refused(&self, node: NodeId) {
        lock(&self.town.refused).push(node);
    }
    fn holders(&self, _: BlobId, idx: u64) -> BoxFuture<'_, Vec<Holder>> {
        Box::pin(async move { lock(&self.town.have).get(&idx).cloned().unwrap_or_default() })
    }
}

impl Town {
    pub fn block(&self, node: NodeId) {
        lock(&self.blocked).insert(node);
    }
    /// The node has the chunk, as the others can find out.
    pub fn tell(&self, idx: u64, holder: Holder) {
        lock(&self.have).entry(idx).or_default().push(holder);
    }
    /// The node serves nobody any more, as far as others know.
    pub fn forget(&self, node: NodeId) {
        lock(&self.holders).remove(&node);
    }
}

/// How a shelf misbehaves.
#[derive(Clone, Debug, Default)]
pub struct Manners {
    /// Before each piece.
    pub pause: Duration,
    /// Gives no more after so many bytes.
    pub stall_after: Option<usize>,
    /// Fails after so many bytes.
    pub cut_after: Option<usize>,
    /// Says that the chunk is so much longer than it is.
    pub longer: u32,
    /// Has other bytes, and a hash that goes with them.
    pub different: bool,
    /// Has other bytes than its hash says.
    pub rotten: bool,
    /// Never answers.
    pub hangs: bool,
    /// Begins with what it is asked for.
    pub begins: bool,
    /// What a fill comes to, and how long it takes.
    pub fill: Option<(Kind, String)>,
    pub fill_takes: Duration,
}

/// Bytes and their hash.
type Hashed = (Bytes, [u8; 32]);

#[derive(Debug, Default)]
pub struct Store {
    chunks: Mutex<HashMap<(BlobId, u64), Hashed>>,
    /// What has come so far.
    flights: Mutex<HashMap<(BlobId, u64), watch::Sender<Bytes>>>,
    pub manners: Mutex<Manners>,
    pub waiting: AtomicU32,
    pub asked: AtomicU64,
    pub fills: Mutex<Vec<(BlobId, u64, u64)>>,
    pub begun: Mutex<Vec<(BlobId, u64, u64)>>,
}

impl Store {
    pub fn put(&self, idx: u64, bytes: Bytes) {
        let hash = *blake3::hash(&bytes).as_bytes();
        lock(&self.chunks).insert((BLOB, idx), (bytes, hash));
    }
    /// A transfer begins.
    pub fn begin(&self, idx: u64) {
        lock(&self.flights).insert((BLOB, idx), watch::Sender::new(Bytes::new()));
    }
    /// So much of it has come: the first `come`.
    pub fn feed(&self, idx: u64, come: Bytes) {
        lock(&self.flights).get(&(BLOB, idx)).expect("begun").send_replace(come);
    }
    /// It ends: well if there are bytes.
    pub fn land(&self, idx: u64, bytes: Option<Bytes>) {
        if let Some(bytes) = bytes {
            self.put(idx, bytes);
        }
        lock(&self.flights).remove(&(BLOB, idx));
    }
    pub fn manners(&self, change: impl FnOnce(&mut Manners)) {
        change(&mut lock(&self.manners));
    }
}

#[async_trait]
impl Shelf for Store {
    async fn chunk(&self, blob: BlobId, idx: u64) -> Result<Option<Shelved>> {
        self.asked.fetch_add(1, Relaxed);
        let manners = lock(&self.manners).clone();
        if manners.hangs {
            std::future::pending::<()>().await;
        }
        let Some((mut bytes, mut hash)) = lock(&self.chunks).get(&(blob, idx)).cloned() else {
            return Ok(None);
        };
        if manners.different || manners.rotten {
            let mut other = BytesMut::from(&bytes[..]);
            other[0] ^= 1;
            bytes = other.freeze();
        }
        if manners.different {
            hash = *blake3::hash(&bytes).as_bytes();
        }
        let len = bytes.len() as u32 + manners.longer;
        let pieces = stream::unfold((bytes, 0), move |(mut left, done)| {
            let manners = manners.clone();
            async move {
                if left.is_empty() {
                    return None;
                }
                if !manners.pause.is_zero() {
                    tokio::time::sleep(manners.pause).await;
                }
                if manners.stall_after.is_some_and(|after| done >= after) {
                    std::future::pending::<()>().await;
                }
                if manners.cut_after.is_some_and(|after| done >= after) {
                    return Some((Err(Error::new(Kind::Disk, "as the test wants it")), (Bytes::new(), done)));
                }
                let piece = left.split_to(PIECE.min(left.len()));
                let done = done + piece.len();
                Some((Ok(piece), (left, done)))
            }
        });
        Ok(Some(Shelved { len, hash: Some(hash), verified: true, bytes: pieces.boxed() }))
    }

    async fn wait(&self, blob: BlobId, idx: u64, live: bool) -> Waited {
        let Some(flight) = lock(&self.flights).get(&(blob, idx)).map(watch::Sender::subscribe) else {
            return Waited::Absent;
        };
        self.waiting.fetch_add(1, Relaxed);
        struct Waiting<'a>(&'a AtomicU32);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Relaxed);
            }
        }
        let _waiting = Waiting(&self.waiting);
        // Its sender goes when the transfer ends.
        let mut flight = flight;
        loop {
            let come = flight.borrow_and_update().clone();
            if live && !come.is_empty() {
                let bytes = stream::unfold((flight, 0), |(mut flight, at)| async move {
                    loop {
                        let come = flight.borrow_and_update().clone();
                        if come.len() > at {
                            return Some((Ok(come.slice(at..)), (flight, come.len())));
                        }
                        // The last of it is fed when it has landed.
                        if flight.changed().await.is_err() {
                            return (at < LIVE)
                                .then(|| (Err(Error::from(Kind::Unavailable)), (flight, LIVE)));
                        }
                    }
                });
                return Waited::Coming(Shelved {
                    len: LIVE as u32,
                    hash: None,
                    verified: false,
                    bytes: bytes.boxed(),
                });
            }
            if flight.changed().await.is_err() {
                return Waited::Landed;
            }
        }
    }

    async fn begin(&self, blob: BlobId, size: u64, idx: u64) -> Result<()> {
        lock(&self.begun).push((blob, size, idx));
        if lock(&self.manners).begins && lock(&self.flights).get(&(blob, idx)).is_none() {
            Store::begin(self, idx);
        }
        Ok(())
    }

    async fn fill(&self, blob: BlobId, size: u64, idx: u64) -> Result<()> {
        lock(&self.fills).push((blob, size, idx));
        let manners = lock(&self.manners).clone();
        tokio::time::sleep(manners.fill_takes).await;
        match manners.fill {
            Some((kind, text)) => Err(Error::new(kind, text)),
            None => Ok(()),
        }
    }
}

/// How a node is to be.
#[derive(Clone, Debug)]
pub struct Plan {
    pub slots: u32,
    pub patience: Patience,
    pub times: Times,
    pub connections: Option<usize>,
    pub upload: Option<u64>,
    pub download: Option<u64>,
    pub key: PeerKey,
    pub listen: SocketAddr,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            slots: 16,
            patience: Patience::default(),
            times: Times::default(),
            connections: None,
            upload: None,
            download: None,
            key: key(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }
}

#[derive(Debug)]
pub struct Node {
    pub id: NodeId,
    pub server: Server,
    pub client: Client,
    pub store: Arc<Store>,
    pub view: Arc<View>,
}

impl Node {
    pub async fn new(town: &Arc<Town>, plan: Plan) -> Node {
        let id = NodeId::random();
        let store = Arc::new(Store::default());
        let view = Arc::new(View { town: town.clone(), skew: AtomicI64::new(0) });
        let limit = |rate: Option<u64>| rate.map(|r| Arc::new(hfmount::peer::limits::Limit::new(r)));
        let mut options = ServerOptions::new(Some(plan.listen), plan.slots);
        options.patience = plan.patience;
        options.limit = limit(plan.upload);
        options.connections = plan.connections.unwrap_or(options.connections);
        let shelf: Weak<dyn Shelf> = Arc::downgrade(&(store.clone() as Arc<dyn Shelf>));
        let server =
            Server::start(options, id, plan.key.clone(), shelf, view.clone()).await.expect("a server");
        let options = ClientOptions { zone: String::new(), limit: limit(plan.download), times: plan.times };
        let client = Client::new(options, id, plan.key, view.clone()).expect("a client");
        let holder = Holder { node: id, addr: server.addr(), zone: String::new(), slots_free: plan.slots };
        lock(&town.holders).insert(id, holder);
        Node { id, server, client, store, view }
    }

    pub fn holder(&self) -> Holder {
        Holder { node: self.id, addr: self.server.addr(), zone: String::new(), slots_free: 16 }
    }
}

/// Nodes of one volume with ordinary settings.
pub async fn nodes(count: usize) -> (Arc<Town>, Vec<Node>) {
    let town = Arc::new(Town::default());
    let mut all = Vec::new();
    for _ in 0..count {
        all.push(Node::new(&town, Plan::default()).await);
    }
    (town, all)
}

/// All bytes of a chunk.
pub async fn collect(got: Got) -> Result<Bytes> {
    let mut all = BytesMut::new();
    let mut bytes = got.bytes;
    while let Some(piece) = bytes.next().await {
        all.extend_from_slice(&piece?);
    }
    Ok(all.freeze())
}

/// Waits until something is so, not for ever.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never came to this: {what}");
}
