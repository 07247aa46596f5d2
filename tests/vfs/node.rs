//! Nodes of a cluster in one process: each has its own session, cache and file system; they share one metadata engine, one
//! bucket and one stand-in Hub.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hfmount::chunk::cache::{CacheDir, CacheLimits};
use hfmount::chunk::file::FilesOptions;
use hfmount::chunk::{Chunks, ChunksOptions, Files};
use hfmount::error::{Kind, Result};
use hfmount::hub::{HubClient, HubOptions, Token};
use hfmount::meta::kv::Kv;
use hfmount::meta::memory::MemoryKv;
use hfmount::meta::{Meta, SessionInfo};
use hfmount::source::Source;
use hfmount::source::bucket::{Bucket, BucketSource};
use hfmount::source::hub::HubSource;
use hfmount::types::{FileType, Ino, Timestamp};
use hfmount::vfs::lazy::{Lazy, LazyOptions};
use hfmount::vfs::{Caller, Entry, Lookup, Private, Vfs, VfsOptions};
use tempfile::TempDir;

use crate::standin::{Options, StandIn};

pub const CHUNK: u32 = 1 << 20;
pub const ROOT: Caller = Caller { uid: 0, gid: 0, pid: 0 };

/// What all nodes share.
pub struct Cluster {
    pub hub: StandIn,
    pub kv: Arc<dyn Kv>,
    pub bucket: Bucket,
    dir: TempDir,
}

/// One mount without a kernel.
pub struct Node {
    pub vfs: Arc<Vfs>,
    pub meta: Meta,
    pub chunks: Arc<Chunks>,
    pub files: Files,
    pub invalidations: hfmount::vfs::Orders,
    _cache: TempDir,
}

/// How a node differs from the default.
#[derive(Clone, Debug)]
pub struct Settings {
    pub offline: bool,
    pub store_hub_blobs: bool,
    pub ref_ttl: Duration,
    pub hub_deadline: Duration,
    pub tombstone_ttl: Duration,
    pub token: Option<&'static str>,
    pub relatime: bool,
    pub writeback: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            offline: false,
            store_hub_blobs: false,
            ref_ttl: Duration::from_secs(600),
            hub_deadline: Duration::from_secs(10),
            tombstone_ttl: Duration::from_secs(3600),
            token: None,
            relatime: false,
            writeback: false,
        }
    }
}

impl Cluster {
    /// Repositories are made by `make` in the folder that it is given.
    pub fn new(make: impl FnOnce(&Path)) -> Self {
        Self::with_hub(Options::default(), make)
    }

    pub fn with_hub(options: Options, make: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        make(dir.path());
        let hub = StandIn::start(dir.path(), options).expect("stand-in hub");
        Cluster { hub, kv: MemoryKv::new(), bucket: Bucket::in_memory("test"), dir }
    }

    /// The folder of the Hub's repositories.
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub async fn node(&self) -> Node {
        self.node_with(Settings::default()).await
    }

    pub async fn node_with(&self, settings: Settings) -> Node {
        let cache_dir = tempfile::tempdir().expect("temp dir");
        let info = SessionInfo {
            host: "test".into(),
            pid: std::process::id(),
            mountpoint: "/test".into(),
            started: Timestamp::now(),
            version: "test".into(),
            read_only: false,
        };
        let meta = Meta::open(self.kv.clone(), info, Duration::from_secs(60)).await.expect("meta");
        let limits = CacheLimits { free_ratio: 0.0, ..CacheLimits::default() };
        let cache = CacheDir::open(&cache_dir.path().join("cache"), "test", limits).expect("cache");
        let hub = HubClient::new(HubOptions {
            endpoint: self.hub.endpoint().to_owned(),
            offline: settings.offline,
            token: settings.token.map(|t| Token::new(t).expect("token").expect("not empty")),
            deadline: settings.hub_deadline,
            ..HubOptions::default()
        })
        .expect("hub client");
        let sources: Vec<Arc<dyn Source>> =
            vec![Arc::new(BucketSource::new(&self.bucket)), Arc::new(HubSource::new(hub.clone()))];
        let options = ChunksOptions {
            chunk_size: CHUNK,
            io_timeout: Duration::from_secs(20),
            store_hub_blobs: settings.store_hub_blobs,
            ..ChunksOptions::default()
        };
        let chunks =
            Arc::new(Chunks::new(options, cache.clone(), meta.blobs(), sources, Some(self.bucket.clone())));
        let behind = FilesOptions { writeback: settings.writeback, ..FilesOptions::default() };
        let (bucket, blobs) = (self.bucket.clone(), chunks.clone());
        let files = Files::with_options(meta.clone(), cache, bucket, blobs, CHUNK, behind);
        let (orders, invalidations) = Vfs::invalidation_queue();
        let lazy_options = LazyOptions { ref_ttl: settings.ref_ttl, io_timeout: Duration::from_secs(20) };
        let lazy = (!settings.offline)
            .then(|| Lazy::new(meta.clone(), files.clone(), hub, lazy_options, orders.clone()));
        let private = Private::open(cache_dir.path().join("private")).expect("private");
        let opts = VfsOptions {
            uid: 0,
            gid: 0,
            umask: 0,
            read_only: false,
            entry_ttl: Duration::from_secs(1),
            attr_ttl: Duration::from_secs(1),
            tombstone_ttl: settings.tombstone_ttl,
            relatime: settings.relatime,
            store_path: None,
        };
        let vfs = Vfs::new(meta.clone(), chunks.clone(), files.clone(), lazy, private, orders, opts);
        Node { vfs, meta, chunks, files, invalidations, _cache: cache_dir }
    }
}

/// What programs do, by path.
impl Node {
    /// Walks `path` from the root as the kernel does, following no links.
    pub async fn walk(&self, path: &str) -> Result<Entry> {
        let mut at = Ino::ROOT;
        let mut entry = None;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            match self.vfs.lookup(&ROOT, at, name.as_bytes()).await? {
                Lookup::Found(found) => {
                    at = found.stat.ino;
                    entry = Some(found);
                }
                Lookup::Absent { .. } => return Err(Kind::NotFound.into()),
            }
        }
        Ok(entry.expect("a path with a name"))
    }

    /// The directory of a path, and the last name.
    pub async fn parent<'a>(&self, path: &'a str) -> Result<(Ino, &'a [u8])> {
        match path.rsplit_once('/') {
            Some((dir, name)) => Ok((self.walk(dir).await?.stat.ino, name.as_bytes())),
            None => Ok((Ino::ROOT, path.as_bytes())),
        }
    }

    /// The bytes of a file, through relative links.
    pub async fn cat(&self, path: &str) -> Result<Bytes> {
        let mut path = path.to_owned();
        loop {
            let entry = self.walk(&path).await?;
            if entry.stat.kind != FileType::Symlink {
                return self.read_all(entry.stat.ino).await;
            }
            let target = self.vfs.readlink(entry.stat.ino).await?;
            let mut parts: Vec<&str> = path.split('/').collect();
            parts.pop();
            let target = String::from_utf8(target.to_vec()).expect("utf-8 target");
            for part in target.split('/') {
                match part {
                    ".." => parts.truncate(parts.len() - 1),
                    _ => parts.push(part),
                }
            }
            path = parts.join("/");
        }
    }

    pub async fn read_all(&self, ino: Ino) -> Result<Bytes> {
        let opened = self.vfs.open(ino, libc::O_RDONLY).await?;
        let mut bytes = Vec::new();
        loop {
            let piece = self.vfs.read(opened.fh, bytes.len() as u64, 128 << 10).await?;
            if piece.is_empty() {
                break;
            }
            bytes.extend_from_slice(&piece);
        }
        self.vfs.release(opened.fh, None).await?;
        Ok(bytes.into())
    }

    /// Writes a whole file and closes it.
    pub async fn put(&self, path: &str, data: &[u8]) -> Result<()> {
        let (dir, name) = self.parent(path).await?;
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        let opened = match self.vfs.lookup(&ROOT, dir, name).await? {
            Lookup::Found(entry) => self.vfs.open(entry.stat.ino, flags).await?,
            Lookup::Absent { .. } => self.vfs.create(&ROOT, dir, name, 0o644, flags).await?.1,
        };
        for (i, piece) in data.chunks(128 << 10).enumerate() {
            let offset = (i * (128 << 10)) as u64;
            self.vfs.write(opened.fh, offset, Bytes::copy_from_slice(piece)).await?;
        }
        self.vfs.flush(opened.fh).await?;
        self.vfs.release(opened.fh, None).await
    }

    pub async fn mkdir(&self, path: &str) -> Result<Entry> {
        let (dir, name) = self.parent(path).await?;
        self.vfs.mkdir(&ROOT, dir, name, 0o755).await
    }

    /// The names in a directory, without `.` and `..`, sorted.
    pub async fn ls(&self, path: &str) -> Result<Vec<String>> {
        let ino = if path.is_empty() { Ino::ROOT } else { self.walk(path).await?.stat.ino };
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let items = self.vfs.readdir(ino, offset, true, 100).await?;
            let Some(last) = items.last() else { break };
            offset = last.offset;
            names.extend(items.iter().map(|i| String::from_utf8_lossy(&i.name).into_owned()));
        }
        names.retain(|n| n != "." && n != "..");
        names.sort();
        Ok(names)
    }
}
