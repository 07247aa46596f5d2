//! What the cases are written with.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hfmount::error::{Kind, Result};
use hfmount::meta::kv::Kv;
use hfmount::meta::memory::MemoryKv;
use hfmount::meta::redis::{RedisAddress, RedisKv, RedisOptions};
use hfmount::meta::sqlite::{Missing, SqliteKv};
use hfmount::meta::{Attr, Meta, New, SessionInfo};
use hfmount::types::{BlobId, Commit, FileType, Ino, RepoId, Timestamp};
use tempfile::TempDir;

use crate::decorators::Yielding;
use crate::redis_server::RedisServer;

/// Long enough that nothing runs out during a case.
const TTL: Duration = Duration::from_secs(60);

/// A volume of some engine, empty at first.
pub enum World {
    Memory(Arc<MemoryKv>),
    Sqlite(TempDir),
    Redis(RedisServer),
}

impl World {
    pub fn memory() -> Self {
        World::Memory(MemoryKv::new())
    }

    pub fn sqlite() -> Self {
        World::Sqlite(TempDir::with_prefix("hfmount-meta-").expect("temporary folder"))
    }

    /// Without an append-only file: it is the semantics that are tested.
    pub fn redis() -> Self {
        World::Redis(RedisServer::start_with(&[]))
    }

    /// A handle on the volume, as another process would have one where the engine allows that.
    pub async fn kv(&self) -> Arc<dyn Kv> {
        match self {
            World::Memory(kv) => Arc::new(Yielding(kv.clone())),
            World::Sqlite(dir) => {
                SqliteKv::open(dir.path().join("volume.db"), Missing::Create).await.expect("open")
            }
            World::Redis(server) => {
                let (host, port) = (server.address().ip().to_string(), server.port());
                let options = RedisOptions::new(RedisAddress::Tcp { host, port, tls: false });
                RedisKv::open(options).await.expect("open")
            }
        }
    }

    /// Another mount.
    pub async fn mount(&self) -> Meta {
        mount_on(self.kv().await, TTL).await
    }
}

pub async fn mount_on(kv: Arc<dyn Kv>, ttl: Duration) -> Meta {
    Meta::open(kv, info("node"), ttl).await.expect("open the metadata")
}

pub fn info(host: &str) -> SessionInfo {
    SessionInfo {
        host: host.to_owned(),
        pid: 7,
        mountpoint: "/mnt/hf".to_owned(),
        started: Timestamp::now(),
        version: "0.1.0".to_owned(),
        read_only: false,
    }
}

pub fn new(kind: FileType, mode: u16) -> New {
    New { kind, mode, uid: 1000, gid: 100, rdev: 0, target: None, role: None }
}

pub fn new_symlink(target: &str) -> New {
    New { target: Some(Bytes::copy_from_slice(target.as_bytes())), ..new(FileType::Symlink, 0o777) }
}

pub async fn file(meta: &Meta, dir: Ino, name: &str) -> Ino {
    meta.make(dir, name.as_bytes(), new(FileType::File, 0o644)).await.expect("create").ino
}

pub async fn dir(meta: &Meta, parent: Ino, name: &str) -> Ino {
    meta.make(parent, name.as_bytes(), new(FileType::Dir, 0o755)).await.expect("mkdir").ino
}

/// What the name refers to, which must be there.
pub async fn find(meta: &Meta, dir: Ino, name: &str) -> Attr {
    meta.lookup(dir, name.as_bytes()).await.expect("lookup").unwrap_or_else(|| panic!("no {name}"))
}

/// What the path from the root refers to, which must be there.
pub async fn walk(meta: &Meta, path: &str) -> Attr {
    let mut at = meta.getattr(Ino::ROOT).await.expect("root");
    for name in path.split('/').filter(|name| !name.is_empty()) {
        at = find(meta, at.ino, name).await;
    }
    at
}

pub async fn is_absent(meta: &Meta, dir: Ino, name: &str) -> bool {
    meta.lookup(dir, name.as_bytes()).await.expect("lookup").is_none()
}

/// The names in a directory, sorted; read in small pages.
pub async fn list(meta: &Meta, dir: Ino) -> Vec<String> {
    let mut names = Vec::new();
    let mut after = 0;
    loop {
        let page = meta.readdir(dir, after, 7).await.expect("readdir");
        let Some(last) = page.last() else { break };
        after = last.id;
        names.extend(page.iter().map(|e| String::from_utf8(e.name.to_vec()).expect("UTF-8")));
    }
    names.sort();
    names
}

/// The kind of the error that must be there.
#[track_caller]
pub fn kind<T: std::fmt::Debug>(result: Result<T>) -> Kind {
    result.expect_err("an error").kind()
}

pub async fn nlink(meta: &Meta, ino: Ino) -> u32 {
    meta.getattr(ino).await.expect("getattr").nlink
}

pub fn model_repo(id: &str) -> RepoId {
    RepoId { kind: hfmount::types::RepoKind::Model, id: id.to_owned() }
}

pub fn commit(n: u8) -> Commit {
    Commit([n; 20])
}

pub fn sha256(n: u32) -> BlobId {
    let mut id = [7; 32];
    id[..4].copy_from_slice(&n.to_be_bytes());
    BlobId::Sha256(id)
}
