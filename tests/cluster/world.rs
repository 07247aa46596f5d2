//! Nodes, each with a store of chunks, a server for the others and a cache of its own.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use hfmount::chunk::cache::{CacheDir, CacheLimits};
use hfmount::chunk::digest::Digest;
use hfmount::chunk::{BlobContent, BlobShelf, Chunks, ChunksOptions};
use hfmount::meta::Blobs;
use hfmount::meta::kv::{Key, Kv, Outcome, SESSIONS, Txn, Write, session_field};
use hfmount::meta::redis::{RedisAddress, RedisKv, RedisOptions};
use hfmount::peer::auth::PeerKey;
use hfmount::peer::tracker::Tracker;
use hfmount::peer::{
    Beat, Client, ClientOptions, Leases, NodeId, NodeInfo, PeerOptions, Peers, Registry, Server,
    ServerOptions, Shelf, Timing,
};
use hfmount::source::Source;
use hfmount::source::bucket::{Bucket, BucketSource};
use hfmount::types::{BlobId, SessionId, Timestamp};
use tempfile::TempDir;
use tokio::task::JoinHandle;

pub use crate::blobs::{bytes, eventually, same};
use crate::redis::RedisServer;
use crate::source::Memory;

pub const CHUNK: usize = 64 << 10;
const KEY: [u8; 32] = [7; 32];

/// A volume.
pub struct Cluster {
    pub redis: RedisServer,
    pub hub: Arc<Memory>,
    pub dir: TempDir,
}

/// How a node differs from the others.
pub struct Setup {
    pub name: &'static str,
    pub peers: PeerOptions,
    pub hub: Option<Arc<Memory>>,
    pub bucket: Option<Bucket>,
    /// Asked before the Hub.
    pub before: Vec<Arc<dyn Source>>,
    pub options: ChunksOptions,
}

/// One node. Dropping it is a crash: it says no farewell.
pub struct Node {
    pub chunks: Arc<Chunks>,
    pub peers: Arc<Peers>,
    pub blobs: Blobs,
    server: Option<Server>,
    pub cache: PathBuf,
    _shelf: Arc<BlobShelf>,
}

impl Setup {
    pub fn new(name: &'static str) -> Self {
        let options = ChunksOptions {
            chunk_size: CHUNK as u32,
            segment: 4 * CHUNK as u64,
            io_timeout: Duration::from_secs(30),
            source_timeout: Duration::from_secs(5),
            ..ChunksOptions::default()
        };
        let peers = PeerOptions { listen: Some((Ipv4Addr::LOCALHOST, 0).into()), ..PeerOptions::default() };
        Setup { name, peers, hub: None, bucket: None, before: Vec::new(), options }
    }
}

impl Setup {
    /// Dead after three seconds of silence, so that a test need not wait longer for it. A busy machine is silent for as long:
    /// such nodes may fetch twice.
    pub fn brief(name: &'static str) -> Self {
        let timing =
            Timing { beat: Duration::from_millis(500), ttl: Duration::from_secs(3), ..Timing::default() };
        let setup = Setup::new(name);
        Setup { peers: PeerOptions { timing, ..setup.peers }, ..setup }
    }
}

impl Cluster {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        Cluster { redis: RedisServer::start(), hub: Arc::new(Memory::new("hub")), dir }
    }

    pub async fn node(&self, name: &'static str) -> Node {
        self.node_with(Setup::new(name)).await
    }

    pub async fn node_with(&self, setup: Setup) -> Node {
        build(self.redis.port(), self.hub.clone(), self.dir.path().to_owned(), setup).await
    }

    /// A node with a runtime of its own: that it is gone is all that is seen of its end.
    pub async fn node_apart(&self, setup: Setup) -> Doomed {
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let task = build(self.redis.port(), self.hub.clone(), self.dir.path().to_owned(), setup);
        let node = runtime.spawn(task).await.expect("built");
        Doomed { node: Some(node), runtime: Some(runtime) }
    }

    /// `n` nodes that know each other.
    pub async fn nodes(&self, n: usize) -> Vec<Node> {
        const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let mut nodes = Vec::new();
        for name in &NAMES[..n] {
            nodes.push(self.node(name).await);
        }
        for node in &nodes {
            node.peers.registry().refresh().await.expect("roster");
        }
        nodes
    }

    /// A blob that the Hub has and the volume knows.
    pub async fn blob(&self, node: &Node, len: usize, seed: u64) -> (BlobId, Bytes) {
        let bytes = bytes(len, seed);
        let id = Digest::of(&BlobId::Sha256([0; 32]), &bytes);
        self.hub.put(id, bytes.clone());
        node.blobs.introduce(id, len as u64, None).await.expect("introduce");
        (id, bytes)
    }
}

impl Node {
    pub async fn open(&self, id: BlobId, bytes: &Bytes) -> Arc<BlobContent> {
        self.chunks.open_blob(id, bytes.len() as u64).await.expect("open")
    }

    /// Reads the blob from its beginning to its end, as a program does.
    pub async fn read(&self, id: BlobId, bytes: &Bytes) {
        let blob = self.open(id, bytes).await;
        let mut at = 0;
        while at < bytes.len() {
            let piece = blob.read(at as u64, 32 << 10).await.expect("read");
            assert!(!piece.is_empty());
            same(&piece, &bytes[at..at + piece.len()]);
            at += piece.len();
        }
    }

    /// Nobody reaches it any more, though it lives and says so.
    pub async fn cut_off(&mut self) {
        self.server.take().expect("not yet").stop().await;
    }

    /// Changes a byte of a chunk on the disk, as a bad disk or a bad hand does.
    pub fn spoil(&self, id: BlobId, chunk: usize) {
        use std::os::unix::fs::FileExt;
        let etag = id.etag();
        let path = self.cache.join("blobs").join(&etag[..2]).join(&etag);
        let file = std::fs::File::options().read(true).write(true).open(path).expect("cached");
        let at = (chunk * CHUNK + 1000) as u64;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("read");
        file.write_all_at(&[byte[0] ^ 1], at).expect("write");
    }

    /// Chunks that it sent while they came in.
    pub fn passed_on(&self) -> u64 {
        self.server.as_ref().expect("not cut off").stats().passed_on
    }

    pub fn given_by_peers(&self) -> u64 {
        self.chunks.stats().sources.iter().find(|s| s.name == "peer").expect("counted").bytes
    }
}

async fn build(redis: u16, hub: Arc<Memory>, dir: PathBuf, setup: Setup) -> Node {
    let options = RedisOptions {
        total_timeout: Duration::from_secs(3),
        ..RedisOptions::new(RedisAddress::Tcp { host: "127.0.0.1".into(), port: redis, tls: false })
    };
    let kv = RedisKv::open(options).await.expect("redis");
    let session = SessionId::random();
    let write = vec![Write::Set(Key::new(SESSIONS, session_field(session)), Bytes::from_static(b"test"))];
    let registered = kv.commit(Txn { write, ..Txn::default() }).await.expect("commit");
    assert_eq!(registered, Outcome::Applied);
    let blobs = Blobs::new(kv.clone(), session);
    let cache_path = dir.join(setup.name);
    let limits = CacheLimits { free_ratio: 0.0, ..CacheLimits::default() };
    let cache = CacheDir::open(&cache_path, "volume", limits).expect("cache directory");
    assert_eq!(cache.path(), cache_path, "the directory is free");
    let mut sources: Vec<Arc<dyn Source>> = Vec::new();
    if let Some(bucket) = &setup.bucket {
        sources.push(Arc::new(BucketSource::new(bucket)));
    }
    sources.extend(setup.before);
    if setup.peers.hub {
        sources.push(setup.hub.unwrap_or(hub));
    }

    let me = NodeId::random();
    let tracker = Tracker::new(&*kv, me, &setup.peers).expect("an engine with a tracker");
    let registry = Registry::new(tracker.clone());
    let key = PeerKey::new(&KEY);
    let client =
        Client::new(ClientOptions::from(&setup.peers), me, key.clone(), registry.clone()).expect("client");
    let leases = Leases::new(tracker.clone());
    let peers = Peers::new(tracker, registry.clone(), leases, client, setup.peers.clone());
    let chunks = Arc::new(Chunks::among(
        setup.options,
        cache,
        blobs.clone(),
        sources,
        setup.bucket,
        Some(peers.clone()),
    ));
    let shelf = Arc::new(chunks.shelf());
    let weak: Weak<dyn Shelf> = Arc::downgrade(&(shelf.clone() as Arc<dyn Shelf>));
    let server = Server::start(ServerOptions::from(&setup.peers), me, key, weak, registry.clone())
        .await
        .expect("server");
    let info = NodeInfo {
        id: me,
        addr: server.addr(),
        zone: String::new(),
        role: setup.peers.role,
        hub: setup.peers.hub,
        host: setup.name.into(),
        version: String::new(),
        started: Timestamp::now(),
    };
    registry.start(info, Arc::new(|| Beat { slots_free: 16, ..Beat::default() }), None).await;
    Node { chunks, peers, blobs, server: Some(server), cache: cache_path, _shelf: shelf }
}

/// A node that can be killed.
pub struct Doomed {
    pub node: Option<Node>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Doomed {
    pub fn node(&self) -> &Node {
        self.node.as_ref().expect("alive")
    }

    /// A task that shares its fate.
    pub fn spawn<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.runtime.as_ref().expect("alive").spawn(task)
    }

    /// Nothing of it goes on until the answer is dropped; it does not know.
    pub async fn freeze(&self) -> Frozen {
        let runtime = self.runtime.as_ref().expect("alive");
        let threads = runtime.metrics().num_workers();
        let stopped = Arc::new(AtomicUsize::new(0));
        let mut held = Vec::new();
        for _ in 0..threads {
            let (hold, held_up) = std::sync::mpsc::sync_channel::<()>(1);
            let stopped = stopped.clone();
            runtime.spawn(async move {
                stopped.fetch_add(1, SeqCst);
                let _ = held_up.recv();
            });
            held.push(hold);
        }
        eventually("frozen", || stopped.load(SeqCst) == threads).await;
        Frozen(held)
    }

    /// All that it does ends at once, and nobody is told.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A node whose threads all stand still.
pub struct Frozen(#[allow(dead_code, reason = "what counts is when they are dropped")] Vec<SyncSender<()>>);

impl Drop for Doomed {
    fn drop(&mut self) {
        self.kill();
        std::mem::forget(self.node.take());
    }
}
