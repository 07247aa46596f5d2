//! Mounts of one volume in one process: shared metadata and a shared, faulty store; a cache each.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::kv::FaultyKv;
use crate::chunk::cache::disk::Disk;
use crate::chunk::cache::{CacheDir, CacheLimits, ContentKey};
use crate::chunk::file::{BlobReader, FileContent, Files, FilesOptions};
use crate::error::{Kind, Result};
use crate::meta::kv::{Key, Kv, Outcome, Txn, Write, inode_map};
use crate::meta::{Content, InodeRow, Meta, New, SessionInfo};
use crate::source::bucket::faulty::{Faults, faulty_bucket};
use crate::source::bucket::{Bucket, Object, Patience};
use crate::types::{BlobId, FileType, Ino, ObjectId, Timestamp};

pub const CHUNK: u32 = 64 << 10;

/// Bytes that differ everywhere and from those of another seed.
pub fn pattern(seed: u64, len: usize) -> Bytes {
    let mut out = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out.into()
}

/// As `assert_eq`, without printing all of it.
#[track_caller]
pub fn same(got: &[u8], wanted: &[u8], what: &str) {
    assert_eq!(got.len(), wanted.len(), "length, {what}");
    if let Some(at) = (0..got.len()).find(|&i| got[i] != wanted[i]) {
        let n = (at..got.len()).filter(|&i| got[i] != wanted[i]).count();
        let end = (at + 8).min(got.len());
        panic!("{what}: {n} bytes differ from {at} on: {:?} for {:?}", &got[at..end], &wanted[at..end]);
    }
}

#[derive(Debug, Default)]
pub struct BlobStore {
    blobs: Mutex<HashMap<BlobId, Bytes>>,
    reads: AtomicU64,
}

#[async_trait]
impl BlobReader for BlobStore {
    async fn read_blob(&self, blob: BlobId, size: u64, offset: u64, len: u32) -> Result<Bytes> {
        self.reads.fetch_add(1, SeqCst);
        let blobs = self.blobs.lock().expect("no panic");
        let bytes = blobs.get(&blob).ok_or(Kind::NotFound)?;
        assert_eq!(size, bytes.len() as u64);
        Ok(bytes.slice(offset as usize..offset as usize + len as usize))
    }
}

pub struct World {
    pub kv: Arc<FaultyKv>,
    pub bucket: Bucket,
    pub faults: Arc<Faults>,
    blobs: Arc<BlobStore>,
    chunk: u32,
    dir: tempfile::TempDir,
    nodes: AtomicU64,
}

pub struct Node {
    pub meta: Meta,
    pub files: Files,
    pub cache: Arc<CacheDir>,
    path: std::path::PathBuf,
    options: FilesOptions,
}

/// With the patience of a test.
pub fn options() -> FilesOptions {
    FilesOptions {
        io_timeout: Duration::from_millis(600),
        drain: Duration::from_secs(2),
        ..FilesOptions::default()
    }
}

pub fn writeback() -> FilesOptions {
    FilesOptions { writeback: true, ..options() }
}

impl World {
    pub fn new() -> Self {
        Self::with_chunk(CHUNK)
    }

    pub fn with_chunk(chunk: u32) -> Self {
        let (bucket, faults) = faulty_bucket();
        // A few more tries, not ten.
        let patience = Patience { progress: Duration::from_secs(2), total: Duration::from_millis(400) };
        let bucket = bucket.with_patience(patience);
        World {
            kv: FaultyKv::new(),
            bucket,
            faults,
            blobs: Arc::default(),
            chunk,
            dir: tempfile::tempdir().expect("a directory"),
            nodes: AtomicU64::new(0),
        }
    }

    pub async fn node(&self) -> Node {
        self.node_with(options()).await
    }

    pub async fn node_with(&self, options: FilesOptions) -> Node {
        let n = self.nodes.fetch_add(1, SeqCst);
        self.mount_with(self.dir.path().join(format!("cache{n}")), options, Disk::default()).await
    }

    /// A mount on a disk that does what the test wants.
    pub async fn node_on(&self, path: std::path::PathBuf, options: FilesOptions, disk: Disk) -> Node {
        self.mount_with(path, options, disk).await
    }

    /// A mount with its cache there.
    pub async fn node_at(&self, path: std::path::PathBuf) -> Node {
        self.mount(path).await
    }

    pub fn path(&self) -> &std::path::Path {
        self.dir.path()
    }

    async fn mount(&self, path: std::path::PathBuf) -> Node {
        self.mount_with(path, options(), Disk::default()).await
    }

    async fn mount_with(&self, path: std::path::PathBuf, options: FilesOptions, disk: Disk) -> Node {
        let info = SessionInfo {
            host: "test".into(),
            pid: 1,
            mountpoint: "/mnt".into(),
            started: Timestamp::now(),
            version: "0".into(),
            read_only: false,
        };
        let meta = Meta::open(self.kv.clone(), info, Duration::from_secs(60)).await.expect("a session");
        let limits = CacheLimits { free_ratio: 0.0, ..CacheLimits::default() };
        let cache = CacheDir::open_on(disk, &path, "vol", limits).expect("a cache");
        let (bucket, blobs) = (self.bucket.clone(), self.blobs.clone());
        let files =
            Files::with_options(meta.clone(), cache.clone(), bucket, blobs, self.chunk, options.clone());
        Node { meta, files, cache, path, options }
    }

    /// The process of the mount dies; another one, of another session, begins on its cache directory, with the journal taken
    /// over. `between` happens to the disk meanwhile.
    pub async fn crash(&self, node: Node, between: impl FnOnce()) -> (Node, u64) {
        self.crash_on(node, async || between(), Disk::default).await
    }

    pub async fn crash_on(
        &self,
        node: Node,
        between: impl AsyncFnOnce(),
        disk: impl Fn() -> Disk,
    ) -> (Node, u64) {
        let (path, options) = (node.path.clone(), node.options.clone());
        node.files.kill();
        let left = Arc::downgrade(&node.cache);
        drop(node);
        for _ in 0..3000 {
            if left.strong_count() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(left.strong_count(), 0, "the dead hold their cache");
        between().await;
        let next = self.mount_with(path.clone(), options, disk()).await;
        assert_eq!(next.cache.path(), path, "the cache directory is free");
        let resumed = next.files.resume().await.expect("resumed");
        assert!(next.cache.wait_loaded(Duration::from_secs(5)));
        (next, resumed)
    }

    /// Ends the mount cleanly and begins another on the same cache directory.
    pub async fn remount(&self, node: Node) -> Node {
        node.cache.close().expect("the cache closes");
        let path = node.path.clone();
        drop(node);
        // Its background work holds the directory a moment longer.
        for _ in 0..100 {
            let next = self.mount(path.clone()).await;
            if next.cache.path() == path {
                assert!(next.cache.wait_loaded(Duration::from_secs(5)));
                return next;
            }
            drop(next);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the cache directory stays locked");
    }

    /// A file that is a blob, and its bytes.
    pub async fn blob(&self, node: &Node, len: usize) -> (Ino, Bytes) {
        let bytes = pattern(len as u64, len);
        let id = BlobId::Sha256(*blake3::hash(&bytes).as_bytes());
        self.blobs.blobs.lock().expect("no panic").insert(id, bytes.clone());
        let ino = node.create(&format!("blob{len}")).await;
        let key = Key::new(inode_map(ino.0), &b"a"[..]);
        let raw = self.kv.get(std::slice::from_ref(&key)).await.expect("a row")[0].clone().expect("a row");
        let mut row: InodeRow = rmp_serde::from_slice(&raw).expect("a row");
        row.size = len as u64;
        row.content = Content::Blob(id);
        let raw = rmp_serde::to_vec(&row).expect("a row");
        let txn = Txn { write: vec![Write::Set(key, raw.into())], ..Txn::default() };
        assert_eq!(self.kv.commit(txn).await.expect("commit"), Outcome::Applied);
        (ino, bytes)
    }

    pub fn blob_reads(&self) -> u64 {
        self.blobs.reads.load(SeqCst)
    }

    async fn objects(&self) -> HashMap<ObjectId, u64> {
        let listed = self.bucket.list("chunks", None, 100_000).await.expect("list");
        let parse = |name: &str| {
            let mut parts = name.split('/').skip(1);
            let session = parts.next().expect("a session").parse().expect("hex");
            ObjectId { session, seq: parts.next().expect("a number").parse().expect("a number") }
        };
        listed.into_iter().map(|l| (parse(&l.name), l.size)).collect()
    }

    pub async fn object_count(&self) -> usize {
        self.objects().await.len()
    }

    /// Bytes of the bucket's objects, after everything that nobody refers to is gone; all that are left are referred to.
    pub async fn kept_bytes(&self, node: &Node, ino: Ino) -> u64 {
        self.delete_trash(node).await;
        let size = node.meta.getattr(ino).await.expect("attr").size;
        let chunks: Vec<u64> = (0..size.div_ceil(u64::from(self.chunk))).collect();
        let rows = node.meta.extents(ino, &chunks).await.expect("rows");
        let used: HashSet<ObjectId> = rows.iter().flatten().map(|e| e.object).collect();
        for _ in 0..100 {
            let objects = self.objects().await;
            if objects.keys().all(|o| used.contains(o)) {
                return objects.values().sum();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let objects = self.objects().await;
        let left: Vec<_> = objects.iter().filter(|(o, _)| !used.contains(o)).collect();
        panic!("objects are left that nobody refers to: {left:?}; the file: {rows:?}");
    }

    pub async fn delete_trash(&self, node: &Node) {
        for trashed in node.meta.trash(0, 100_000).await.expect("trash") {
            self.bucket.delete(&Object::FileChunk(trashed.object)).await.expect("delete");
        }
    }

    pub async fn delete_all_objects(&self) {
        for object in self.objects().await.into_keys() {
            self.bucket.delete(&Object::FileChunk(object)).await.expect("delete");
        }
    }
}

impl Node {
    pub async fn create(&self, name: &str) -> Ino {
        let new =
            New { kind: FileType::File, mode: 0o644, uid: 0, gid: 0, rdev: 0, target: None, role: None };
        self.meta.make(Ino::ROOT, name.as_bytes(), new).await.expect("a file").ino
    }

    /// Nobody has it open, and its time is over.
    pub async fn delete(&self, name: &str, ino: Ino) {
        self.meta.unlink(Ino::ROOT, name.as_bytes()).await.expect("unlink");
        let later = Timestamp(Timestamp::now().0 + 3_600_000_000_000);
        for _ in 0..3 {
            self.meta.reap_orphans(later).await.expect("reap");
        }
        assert_eq!(self.meta.getattr(ino).await.expect_err("gone").kind(), Kind::Stale);
    }

    /// As an open of a program does: with attributes just read.
    pub async fn open(&self, ino: Ino) -> Arc<FileContent> {
        let attr = self.meta.getattr(ino).await.expect("attr");
        self.files.open(&attr).expect("a file")
    }

    /// Waits until nothing is left in the journal.
    pub async fn drained(&self) {
        let left = self.files.drain_within(Duration::from_secs(20)).await;
        assert_eq!(left.files, 0, "not drained: {:?}", self.files.waiting());
    }

    /// In reads of the size that the kernel's have.
    pub async fn read_all(&self, file: &Arc<FileContent>) -> Bytes {
        let mut all = Vec::new();
        loop {
            let piece = file.read(all.len() as u64, 128 << 10).await.expect("read");
            if piece.is_empty() {
                return all.into();
            }
            all.extend_from_slice(&piece);
        }
    }

    pub async fn contents(&self, ino: Ino) -> Bytes {
        let file = self.open(ino).await;
        self.read_all(&file).await
    }

    /// Waits until the cache has recorded the first `chunks` chunks.
    pub async fn settled(&self, ino: Ino, chunks: u64) {
        for _ in 0..200 {
            let file = self.cache.in_use(&ContentKey::File(ino)).expect("in use");
            if file.next_absent(0, chunks).is_none() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the chunks are not recorded");
    }
}
