//! A node: one mount without a kernel, in a runtime of its own, so that it can be killed like a process.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use hfmount::chunk::cache::{CacheDir, CacheLimits};
use hfmount::chunk::file::FilesOptions;
use hfmount::chunk::{Chunks, ChunksOptions, Files};
use hfmount::error::{Kind, Result};
use hfmount::hub::{HubClient, HubOptions};
use hfmount::meta::faulty::{Fault, FaultyKv, On};
use hfmount::meta::kv::Kv;
use hfmount::meta::memory::MemoryKv;
use hfmount::meta::redis::{RedisAddress, RedisKv, RedisOptions};
use hfmount::meta::sqlite::{Missing, SqliteKv};
use hfmount::meta::{Meta, SessionInfo};
use hfmount::source::Source;
use hfmount::source::bucket::faulty::{Faults, around};
use hfmount::source::bucket::{Bucket, BucketSource};
use hfmount::source::hub::HubSource;
use hfmount::types::{Ino, Timestamp};
use hfmount::vfs::{Caller, Orders, Private, Vfs, VfsOptions};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use crate::op::Trouble;
use crate::redis_server::RedisServer;

/// Small, so that small files have several.
pub const CHUNK: u32 = 16 << 10;
pub const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0 };
/// The longest that a flush tries again while the store does not answer.
const IO_TIMEOUT: Duration = Duration::from_secs(2);
const ATTR_TTL: Duration = Duration::from_secs(1);
/// How long a session may be silent: longer than any case takes, so that nobody is declared dead by mistake.
const TTL: Duration = Duration::from_secs(120);

/// What keeps the metadata of a cluster.
pub enum Engine<'a> {
    Memory(Arc<MemoryKv>),
    Sqlite(TempDir),
    Redis(&'a RedisServer),
}

impl Engine<'_> {
    pub fn memory() -> Self {
        Engine::Memory(MemoryKv::new())
    }

    pub fn sqlite() -> Self {
        Engine::Sqlite(TempDir::with_prefix("hfmount-model-").expect("temporary folder"))
    }

    async fn open(&self) -> Result<Arc<dyn Kv>> {
        Ok(match self {
            Engine::Memory(kv) => kv.clone(),
            Engine::Sqlite(dir) => SqliteKv::open(dir.path().join("volume.db"), Missing::Create).await?,
            Engine::Redis(server) => {
                let (host, port) = (server.address().ip().to_string(), server.port());
                RedisKv::open(RedisOptions::new(RedisAddress::Tcp { host, port, tls: false })).await?
            }
        })
    }
}

/// What all nodes share, and the disks of those that there were.
pub struct Cluster<'a> {
    engine: Engine<'a>,
    bucket: Bucket,
    disks: TempDir,
}

impl<'a> Cluster<'a> {
    pub fn new(engine: Engine<'a>) -> Self {
        let disks = TempDir::with_prefix("hfmount-model-").expect("temporary folder");
        Cluster { engine, bucket: Bucket::in_memory("model"), disks }
    }

    /// How long what one node did may be unseen by another that knew it otherwise: until the push arrives, which for SQLite is
    /// a poll that a busy machine holds up.
    pub fn push(&self) -> Duration {
        match self.engine {
            Engine::Sqlite(_) => ATTR_TTL + Duration::from_millis(100),
            _ => Duration::ZERO,
        }
    }

    /// How long the attributes of an open file may be those of before another node changed them: until the push arrives, which
    /// a busy machine holds up with every engine, and for no longer than attributes are relied on.
    pub fn lag(&self) -> Duration {
        ATTR_TTL + Duration::from_millis(100)
    }

    /// A node that keeps its cache in the folder `disk` of the cluster's.
    pub fn node(&self, disk: &str) -> Node {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
        let path = self.disks.path().join(disk);
        let parts = runtime.block_on(self.layers(path)).expect("a node starts");
        Node { runtime: Some(runtime), parts: Some(parts) }
    }

    async fn layers(&self, disk: PathBuf) -> Result<Parts> {
        let info = SessionInfo {
            host: "model".into(),
            pid: std::process::id(),
            mountpoint: disk.display().to_string(),
            started: Timestamp::now(),
            version: "test".into(),
            read_only: false,
        };
        let kv = FaultyKv::new(self.engine.open().await?);
        let (bucket, store) = around(&self.bucket);
        let meta = Meta::open(kv.clone(), info, TTL).await?;
        let limits = CacheLimits { free_ratio: 0.0, ..CacheLimits::default() };
        std::fs::create_dir_all(&disk).expect("disk");
        let cache = CacheDir::open(&disk.join("cache"), "model", limits)?;
        let hub = HubClient::new(HubOptions {
            endpoint: "http://127.0.0.1:9".into(),
            offline: true,
            ..HubOptions::default()
        })?;
        let sources: Vec<Arc<dyn Source>> =
            vec![Arc::new(BucketSource::new(&bucket)), Arc::new(HubSource::new(hub))];
        let options = ChunksOptions {
            chunk_size: CHUNK,
            io_timeout: Duration::from_secs(20),
            store_hub_blobs: false,
            ..ChunksOptions::default()
        };
        let chunks =
            Arc::new(Chunks::new(options, cache.clone(), meta.blobs(), sources, Some(bucket.clone())));
        let options = FilesOptions { io_timeout: IO_TIMEOUT, ..FilesOptions::default() };
        let files = Files::with_options(meta.clone(), cache, bucket, chunks.clone(), CHUNK, options);
        let (orders, invalidations) = Vfs::invalidation_queue();
        let private = Private::open(disk.join("private"))?;
        let opts = VfsOptions {
            uid: 0,
            gid: 0,
            umask: 0,
            read_only: false,
            entry_ttl: Duration::from_secs(1),
            attr_ttl: ATTR_TTL,
            tombstone_ttl: Duration::from_secs(3600),
            relatime: false,
            store_path: None,
        };
        let vfs = Vfs::new(meta.clone(), chunks.clone(), files.clone(), None, private, orders, opts);
        Ok(Parts { vfs, files, chunks, meta, kv, store, _invalidations: invalidations })
    }
}

struct Parts {
    vfs: Arc<Vfs>,
    files: Files,
    chunks: Arc<Chunks>,
    meta: Meta,
    kv: Arc<FaultyKv>,
    store: Arc<Faults>,
    _invalidations: Orders,
}

/// One node. Dropped, it is killed.
pub struct Node {
    runtime: Option<Runtime>,
    parts: Option<Parts>,
}

impl Node {
    fn parts(&self) -> &Parts {
        self.parts.as_ref().expect("running")
    }

    /// Its file system.
    pub fn vfs(&self) -> &Arc<Vfs> {
        &self.parts().vfs
    }

    /// Its way to the metadata.
    pub fn kv(&self) -> &Arc<FaultyKv> {
        &self.parts().kv
    }

    /// Its way to the bucket.
    pub fn store(&self) -> &Arc<Faults> {
        &self.parts().store
    }

    /// Runs `work` in the node's runtime, and waits for it.
    pub fn run<F>(&self, work: F) -> F::Output
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        let runtime = self.runtime.as_ref().expect("running");
        runtime.block_on(runtime.spawn(work)).expect("no panic on the node")
    }

    /// Starts `work` in the node's runtime.
    pub fn start<F>(&self, work: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future<Output: Send + 'static> + Send + 'static,
    {
        self.runtime.as_ref().expect("running").spawn(work)
    }

    /// Waits for what was started.
    pub fn join<T>(&self, task: tokio::task::JoinHandle<T>) -> T {
        self.runtime.as_ref().expect("running").block_on(task).expect("no panic on the node")
    }

    /// Something fails from now on.
    pub fn trouble(&self, trouble: Trouble) {
        let (kv, store) = (self.kv(), self.store());
        let fail = Fault::Fail(Kind::Unavailable);
        match trouble {
            Trouble::Commits(n) => kv.next(On::Commit, n.into(), fail),
            Trouble::LostReply(skip) => {
                kv.after(skip.into(), On::Commit, 1, Fault::FailAfter(Kind::Unavailable))
            }
            Trouble::Reads(skip, n) => kv.after(skip.into(), On::Read, n.into(), fail),
            Trouble::Puts(n) => store.fail_puts.store(n.into(), SeqCst),
            Trouble::LostPuts(n) => store.lose_replies.store(n.into(), SeqCst),
            Trouble::Gets(n) => store.fail_gets.store(n.into(), SeqCst),
            Trouble::Cut(n) => store.cut_bodies.store(n.into(), SeqCst),
            Trouble::Flipped(n) => store.flip_bodies.store(n.into(), SeqCst),
        }
    }

    /// Drops from the local disk all that need not be there.
    pub fn evict(&self) {
        self.parts().chunks.cache().make_room(1 << 40);
    }

    /// Ends in order, as SIGTERM does.
    pub fn stop(mut self) -> Result<()> {
        let runtime = self.runtime.take().expect("running");
        let Parts { vfs, files, chunks, meta, .. } = self.parts.take().expect("running");
        let ended = runtime.block_on(async {
            let flushed = files.close(Duration::from_secs(5)).await;
            let cached = chunks.shutdown(Duration::from_secs(5)).await;
            let closed = meta.close().await;
            flushed.and(cached).and(closed)
        });
        drop((vfs, files, chunks, meta));
        runtime.shutdown_timeout(Duration::from_secs(5));
        ended
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Tasks end where they wait; nobody says goodbye. Blocking work that has begun is waited for, as the disk would.
        if let Some(runtime) = self.runtime.take() {
            let entered = runtime.enter();
            drop(self.parts.take());
            drop(entered);
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

/// The bytes of a file from its beginning to its end.
pub async fn read_all(vfs: Arc<Vfs>, ino: Ino) -> Result<Bytes> {
    let opened = vfs.open(ino, libc::O_RDONLY).await?;
    let mut bytes = Vec::new();
    let read = loop {
        match vfs.read(opened.fh, bytes.len() as u64, 24 << 10).await {
            Ok(piece) if piece.is_empty() => break Ok(bytes.into()),
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(e) => break Err(e),
        }
    };
    vfs.release(opened.fh, None).await?;
    read
}
