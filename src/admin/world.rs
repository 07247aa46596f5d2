//! A volume in memory whose rows can be damaged at will: for the tests of the tools.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use super::Place;
use super::fsck::{Finding, FsckOptions, FsckReport, fsck};
use super::gc::{GcOptions, GcReport, gc};
use crate::meta::kv::{Key, Kv, Outcome, Txn, Write};
use crate::meta::memory::MemoryKv;
use crate::meta::survey::Survey;
use crate::meta::{
    Attr, CommitPlan, Committed, DataChange, InodeContent, InodeRow, Meta, New, PlanFile, SessionInfo,
};
use crate::source::bucket::{Bucket, Object};
use crate::types::{BlobId, Commit, Extent, FileType, Ino, ObjectId, ObjectSum, RepoId, Timestamp};

pub(super) const CHUNK: u32 = 1024;

pub(super) struct World {
    pub kv: Arc<MemoryKv>,
    pub meta: Meta,
    pub place: Place,
}

/// Another mount of the volume.
pub(super) async fn mount(kv: &Arc<MemoryKv>) -> Meta {
    let info = SessionInfo {
        host: "node".into(),
        pid: 1,
        mountpoint: "/mnt".into(),
        started: Timestamp::now(),
        version: "0".into(),
        read_only: false,
    };
    Meta::open(kv.clone(), info, Duration::from_secs(30)).await.expect("a session")
}

/// Bytes that differ from those of another seed.
pub(super) fn pattern(seed: u8, len: usize) -> Bytes {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut out);
    out.into()
}

/// All of an object.
pub(super) fn extent(object: ObjectId, start: u32, data: &Bytes) -> Extent {
    let len = u32::try_from(data.len()).expect("small");
    Extent { start, len, object, object_offset: 0, sum: Some(ObjectSum::of(data)) }
}

impl World {
    pub async fn new() -> Self {
        let kv = MemoryKv::new();
        let meta = mount(&kv).await;
        let place =
            Place { survey: Survey::new(kv.clone()), bucket: Bucket::in_memory("vol"), chunk_size: CHUNK };
        World { kv, meta, place }
    }

    pub async fn put(&self, object: ObjectId, data: &Bytes) {
        self.place.bucket.put(&Object::FileChunk(object), data.clone()).await.expect("put");
    }

    pub async fn has(&self, object: ObjectId) -> bool {
        self.place.bucket.exists(&Object::FileChunk(object)).await.expect("head")
    }

    pub async fn make(&self, dir: Ino, name: &str, kind: FileType) -> Attr {
        let mut new = New::plain(kind, 0o755, 0, 0);
        if kind == FileType::Symlink {
            new.target = Some(Bytes::from_static(b"there"));
        }
        self.meta.make(dir, name.as_bytes(), new).await.expect("made")
    }

    /// A file with data, by the mount `meta`; its objects too.
    pub async fn file_by(&self, meta: &Meta, name: &str, chunks: &[Bytes]) -> (Ino, Vec<ObjectId>) {
        let new = New::plain(FileType::File, 0o644, 0, 0);
        let made = meta.make(Ino::ROOT, name.as_bytes(), new).await.expect("made");
        let mut change = DataChange::default();
        let mut objects = Vec::new();
        for (index, data) in (0..).zip(chunks) {
            let object = meta.next_object();
            self.put(object, data).await;
            objects.push(object);
            change.chunks.push((index, vec![extent(object, 0, data)]));
            change.size = index * u64::from(CHUNK) + data.len() as u64;
        }
        let done = meta.commit_data(made.ino, made.version, change).await.expect("commit");
        assert!(matches!(done, Committed::Applied(_)), "{done:?}");
        (made.ino, objects)
    }

    pub async fn file(&self, name: &str, chunks: &[Bytes]) -> (Ino, Vec<ObjectId>) {
        self.file_by(&self.meta, name, chunks).await
    }

    /// A file of the Hub, with all its chunks in the bucket; its path is `/models--a/blobs/<id>`.
    pub async fn hub_file(&self, id: BlobId, data: &Bytes) -> Vec<Object> {
        let repo: RepoId = RepoId::from_folder("models--a").expect("a repository");
        let file = PlanFile {
            path: vec![Bytes::from_static(b"f.bin")],
            blob: id,
            size: data.len() as u64,
            repo_path: "f.bin".into(),
        };
        let plan = CommitPlan {
            folder: Bytes::from_static(b"models--a"),
            repo,
            repo_ino: None,
            commit: Commit([3; 20]),
            last_modified: Timestamp(0),
            restricted: false,
            files: vec![file],
            trees_json: InodeContent::Inline(Bytes::from_static(b"{}")),
            refs: vec!["main".into()],
        };
        self.meta.publish_commit(plan).await.expect("published");
        self.fill(id, data).await
    }

    /// Puts the chunks of a blob into the bucket, and says so.
    pub async fn fill(&self, id: BlobId, data: &Bytes) -> Vec<Object> {
        let mut objects = Vec::new();
        for (index, start) in (0..).zip((0..data.len()).step_by(CHUNK as usize)) {
            let piece = data.slice(start..data.len().min(start + CHUNK as usize));
            let hash = *blake3::hash(&piece).as_bytes();
            let object = Object::BlobChunk { blob: id, index, hash };
            self.place.bucket.put(&object, piece).await.expect("put");
            let map = format!("b{id}");
            self.set(&map, format!("h{index}").as_bytes(), Bytes::copy_from_slice(&hash)).await;
            self.set(&map, format!("s{index}").as_bytes(), Bytes::from_static(b"1")).await;
            objects.push(object);
        }
        objects
    }

    async fn write(&self, write: Write) {
        let txn = Txn { write: vec![write], ..Txn::default() };
        assert_eq!(self.kv.commit(txn).await.expect("commit"), Outcome::Applied);
    }

    pub async fn set(&self, map: &str, field: &[u8], value: impl Into<Bytes>) {
        let key = Key::new(map, Bytes::copy_from_slice(field));
        self.write(Write::Set(key, value.into())).await;
    }

    pub async fn set_row<T: Serialize>(&self, map: &str, field: &[u8], row: &T) {
        self.set(map, field, rmp_serde::to_vec(row).expect("encoded")).await;
    }

    pub async fn del(&self, map: &str, field: &[u8]) {
        self.write(Write::Del(Key::new(map, Bytes::copy_from_slice(field)))).await;
    }

    pub async fn del_map(&self, map: &str) {
        self.write(Write::DelMap(map.to_owned())).await;
    }

    pub async fn get(&self, map: &str, field: &[u8]) -> Option<Bytes> {
        let key = Key::new(map, Bytes::copy_from_slice(field));
        self.kv.get(&[key]).await.expect("get").pop().flatten()
    }

    pub async fn change_row(&self, ino: Ino, change: impl FnOnce(&mut InodeRow)) {
        let map = format!("i{ino}");
        let raw = self.get(&map, b"a").await.expect("a row");
        let mut row: InodeRow = rmp_serde::from_slice(&raw).expect("decoded");
        change(&mut row);
        self.set_row(&map, b"a", &row).await;
    }

    pub async fn run(&self, options: FsckOptions) -> (FsckReport, Vec<Finding>) {
        let mut found = Vec::new();
        let mut out = |finding: &Finding| found.push(finding.clone());
        let report = fsck(&self.place, options, &|_| {}, &mut out).await.expect("fsck");
        assert_eq!(report.found, found.len() as u64);
        (report, found)
    }

    /// What is wrong, each as it is printed.
    pub async fn look(&self) -> Vec<String> {
        self.run(FsckOptions::default()).await.1.iter().map(ToString::to_string).collect()
    }

    pub async fn look_deep(&self) -> Vec<String> {
        let options = FsckOptions { deep: true, ..FsckOptions::default() };
        self.run(options).await.1.iter().map(ToString::to_string).collect()
    }

    /// Repairs; what could not be.
    pub async fn repair(&self) -> Vec<String> {
        let options = FsckOptions { repair: Some(self.meta.clone()), deep: true, below: None };
        let (report, found) = self.run(options).await;
        let left: Vec<String> =
            found.iter().map(ToString::to_string).filter(|line| !line.ends_with("[repaired]")).collect();
        assert_eq!(report.left(), left.len() as u64, "{found:?}");
        left
    }

    /// Collects; everything is old enough.
    pub async fn gc(&self, delete: bool) -> GcReport {
        let delete = delete.then(|| self.meta.clone());
        let options = GcOptions { delete, grace: Duration::ZERO };
        gc(&self.place, options, &|_| {}).await.expect("gc")
    }
}
