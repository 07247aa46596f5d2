//! The bucket and file data over a real S3 protocol: faults of the server, wrong settings, and two mounts.

#[path = "standin/mod.rs"]
mod standin;

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use hfmount::chunk::cache::{CacheDir, CacheLimits};
use hfmount::chunk::file::{BlobReader, Files};
use hfmount::error::{Kind, Result};
use hfmount::meta::memory::MemoryKv;
use hfmount::meta::{Meta, New, SessionInfo};
use hfmount::source::bucket::{Bucket, BucketSource, Claim, Marker, Object, Patience};
use hfmount::source::storage::StorageOptions;
use hfmount::source::{Source, Want};
use hfmount::types::{BlobId, FileType, Ino, ObjectId, SessionId, Timestamp};
use standin::{S3, S3Options, Target};

fn options(s3: &S3) -> StorageOptions {
    StorageOptions {
        endpoint: Some(s3.endpoint().to_owned()),
        access_key: Some(s3.access_key().to_owned()),
        secret_key: Some(s3.secret_key().to_owned().into()),
        ..StorageOptions::default()
    }
}

async fn open(url: &str, options: &StorageOptions) -> Bucket {
    let url = url.parse().expect("a storage URL");
    Bucket::open(&url, options, "vol").await.expect("nothing is asked yet").with_patience(patience())
}

fn patience() -> Patience {
    Patience { progress: Duration::from_secs(1), total: Duration::from_secs(3) }
}

fn object(seq: u64) -> Object {
    Object::FileChunk(ObjectId { session: SessionId(9), seq })
}

fn pattern(seed: u8, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes.into()
}

#[tokio::test]
async fn a_server_keeps_the_contract() {
    let dir = tempfile::tempdir().expect("a folder");
    let s3 = S3::start(dir.path()).expect("a free port");
    let bucket = open("s3://test/some/prefix", &options(&s3)).await;
    bucket.check().await.expect("a test object");
    assert_eq!(bucket.list("", None, 10).await.expect("list"), [], "and it is gone");
    let marker =
        |uuid: &str| Marker { uuid: uuid.into(), name: "vol".into(), chunk_size: 4 << 20, loaded: None };
    assert_eq!(bucket.claim(&marker("a")).await.expect("claim"), Claim::Made);
    assert_eq!(bucket.claim(&marker("a")).await.expect("claim"), Claim::Ours);
    assert_eq!(bucket.claim(&marker("b")).await.expect_err("another's").kind(), Kind::Exists);

    let data = pattern(1, 3 << 20);
    bucket.put(&object(1), data.clone()).await.expect("put");
    assert!(bucket.get(&object(1), None).await.expect("get") == data);
    assert!(
        bucket.get(&object(1), Some(1_000_000..2_000_001)).await.expect("get") == data[1_000_000..2_000_001]
    );
    assert_eq!(bucket.head(&object(1)).await.expect("head"), Some(3 << 20));
    let beyond = bucket.get(&object(1), Some((3 << 20)..(3 << 20) + 5)).await.expect_err("beyond the end");
    assert_eq!(beyond.kind(), Kind::Corrupt, "{beyond}");
    assert_eq!(bucket.get(&object(2), None).await.expect_err("missing").kind(), Kind::NotFound);
    assert!(!bucket.exists(&object(2)).await.expect("head"));
    assert!(dir.path().join("test/some/prefix/vol/chunks/0000000000000009/1").is_file());

    for seq in 2..30 {
        bucket.put(&object(seq), Bytes::from_static(b"x")).await.expect("put");
    }
    let mut names = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = bucket.list("chunks", after.as_deref(), 7).await.expect("list");
        let Some(last) = page.last() else { break };
        after = Some(last.name.clone());
        names.extend(page.into_iter().map(|l| l.name));
    }
    assert_eq!(names.len(), 29);
    assert!(names.is_sorted());
    bucket.delete(&object(1)).await.expect("delete");
    bucket.delete(&object(1)).await.expect("deleting twice is no error");
    assert_eq!(bucket.get(&object(1), None).await.expect_err("deleted").kind(), Kind::NotFound);
}

#[tokio::test]
async fn faults_that_pass_are_waited_out() {
    let dir = tempfile::tempdir().expect("a folder");
    let s3 = S3::start(dir.path()).expect("a free port");
    let bucket = open("s3://test", &options(&s3)).await;
    let data = pattern(2, 2 << 20);

    s3.faults(|f| f.unavailable = 3);
    bucket.put(&object(1), data.clone()).await.expect("503");
    s3.faults(|f| f.too_many = 2);
    bucket.put(&object(2), data.clone()).await.expect("429");
    s3.faults(|f| f.lost_reply = 1);
    bucket.put(&object(3), data.clone()).await.expect("a lost reply");
    s3.faults(|f| (f.only, f.hang) = (Target::Put, 1));
    bucket.put(&object(4), pattern(3, 1000)).await.expect("a server that hangs, once");
    s3.faults(|f| (f.only, f.unavailable) = (Target::Get, 2));
    assert!(bucket.get(&object(1), None).await.expect("503") == data);

    s3.reset();
    s3.faults(|f| (f.cut, f.cut_after) = (3, 300_000));
    assert!(bucket.get(&object(2), Some(5..2_000_000)).await.expect("cut bodies") == data[5..2_000_000]);
    let bytes = s3.counters().bytes;
    assert!(bytes < 2_500_000, "{bytes}: it goes on where it broke");
    s3.faults(|f| (f.stall, f.stall_after) = (1, 100_000));
    let started = Instant::now();
    assert!(bucket.get(&object(3), None).await.expect("a body that stalls") == data);
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_server_that_stays_away_is_reported_in_time_and_by_name() {
    let dir = tempfile::tempdir().expect("a folder");
    // An address of its own: on that of the other tests' servers one of them may get the port as soon as it is free.
    let own = S3Options { listen: ([127, 83, 51, 7], 0).into(), ..S3Options::default() };
    let s3 = S3::start_with(dir.path(), own).expect("a free port");
    let patience = Patience { progress: Duration::from_millis(400), total: Duration::from_millis(800) };
    let bucket = open("s3://test", &options(&s3)).await.with_patience(patience);
    bucket.put(&object(1), pattern(1, 1000)).await.expect("put");
    for fault in ["unavailable", "hang", "refuse"] {
        s3.faults(|f| match fault {
            "unavailable" => f.unavailable = u32::MAX,
            "hang" => f.hang = u32::MAX,
            _ => f.refuse = true,
        });
        let started = Instant::now();
        let errors = [
            bucket.get(&object(1), None).await.expect_err(fault),
            bucket.put(&object(2), pattern(1, 1000)).await.expect_err(fault),
            bucket.head(&object(1)).await.expect_err(fault),
            bucket.list("", None, 1).await.expect_err(fault),
            bucket.delete(&object(1)).await.expect_err(fault),
        ];
        // Tries for 0.8 s each, and the last one of 0.4 s.
        assert!(started.elapsed() < Duration::from_secs(10), "{fault}: {:?}", started.elapsed());
        for e in errors {
            assert!(matches!(e.kind(), Kind::Unavailable | Kind::TimedOut), "{fault}: {e}");
        }
        s3.faults(|f| *f = standin::Faults::default());
    }
    assert!(bucket.get(&object(1), None).await.expect("it is back") == pattern(1, 1000));
    let endpoint = s3.endpoint().to_owned();
    drop(s3);
    let e = bucket.get(&object(1), None).await.expect_err("nobody listens");
    assert_eq!(e.kind(), Kind::Unavailable);
    assert!(e.to_string().contains(&endpoint), "{e}");
}

#[tokio::test]
async fn wrong_settings_are_told_apart() {
    let dir = tempfile::tempdir().expect("a folder");
    let s3 = S3::start(dir.path()).expect("a free port");
    let right = options(&s3);
    let wrong_secret = StorageOptions { secret_key: Some("hunter2".to_owned().into()), ..right.clone() };
    let wrong_key = StorageOptions { access_key: Some("somebody".into()), ..right.clone() };
    for (url, options, words) in [
        ("s3://test", &wrong_secret, "AWS_SECRET_ACCESS_KEY"),
        ("s3://test", &wrong_key, "AWS_ACCESS_KEY_ID"),
    ] {
        let started = Instant::now();
        let e = open(url, options).await.check().await.expect_err(words);
        assert_eq!(e.kind(), Kind::Config, "{e}");
        assert!(e.to_string().contains(words), "{e}");
        assert!(e.to_string().contains(s3.endpoint()), "{e}");
        assert!(!e.to_string().contains("hunter2"), "{e}");
        assert!(started.elapsed() < Duration::from_secs(2), "what is wrong stays wrong: no new tries");
        // A reader is not told that there is no such object.
        let e = open(url, options).await.get(&object(1), None).await.expect_err(words);
        assert_eq!(e.kind(), Kind::Config, "{e}");
    }
}

#[tokio::test]
async fn blob_chunks_come_back_as_a_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let s3 = S3::start(dir.path()).expect("a free port");
    let bucket = open("s3://test", &options(&s3)).await;
    let (blob, chunk) = (BlobId::Sha256([7; 32]), 1usize << 20);
    let data = pattern(4, 3 * chunk + 5);
    let mut stored = Vec::new();
    for (i, piece) in data.chunks(chunk).enumerate() {
        let hash = *blake3::hash(piece).as_bytes();
        bucket.put_blob_chunk(blob, i as u64, hash, Bytes::copy_from_slice(piece)).await.expect("put");
        stored.push(Some(hash));
    }
    let want = Want {
        blob,
        size: data.len() as u64,
        origins: [].into(),
        first: 0,
        count: 4,
        chunk_size: chunk as u32,
        stored: stored.into(),
        holders: [].into(),
    };
    s3.faults(|f| (f.only, f.unavailable, f.cut, f.cut_after) = (Target::Get, 1, 1, 1000));
    let source = BucketSource::new(&bucket);
    let pieces: Vec<Bytes> =
        source.fetch(&want).await.expect("begins").try_collect().await.expect("all of it");
    assert!(pieces.concat() == data);
}

#[derive(Debug)]
struct NoBlobs;

#[async_trait]
impl BlobReader for NoBlobs {
    async fn read_blob(&self, _: BlobId, _: u64, _: u64, _: u32) -> Result<Bytes> {
        Err(Kind::NotFound.into())
    }
}

struct Mount {
    meta: Meta,
    files: Files,
    _cache: tempfile::TempDir,
}

async fn mount(kv: &Arc<MemoryKv>, bucket: &Bucket, chunk_size: u32) -> Mount {
    let info = SessionInfo {
        host: "test".into(),
        pid: 1,
        mountpoint: "/mnt".into(),
        started: Timestamp::now(),
        version: "0".into(),
        read_only: false,
    };
    let meta = Meta::open(kv.clone(), info, Duration::from_secs(60)).await.expect("a session");
    let cache = tempfile::tempdir().expect("a directory");
    let limits = CacheLimits { free_ratio: 0.0, ..CacheLimits::default() };
    let dir = CacheDir::open(cache.path(), "vol", limits).expect("a cache");
    let files = Files::new(meta.clone(), dir, bucket.clone(), Arc::new(NoBlobs), chunk_size);
    Mount { meta, files, _cache: cache }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_mounts_share_a_file_over_a_bad_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let s3 = S3::start(dir.path()).expect("a free port");
    let bucket = open("s3://test/p", &options(&s3)).await;
    let kv = MemoryKv::new();
    let (a, b) = (mount(&kv, &bucket, 1 << 20).await, mount(&kv, &bucket, 1 << 20).await);
    let new = New { kind: FileType::File, mode: 0o644, uid: 0, gid: 0, rdev: 0, target: None, role: None };
    let ino: Ino = a.meta.make(Ino::ROOT, b"model", new).await.expect("a file").ino;
    let attr = a.meta.getattr(ino).await.expect("attr");
    let file = a.files.open(&attr).expect("open");
    let data = pattern(6, (20 << 20) + 12_345);
    s3.faults(|f| (f.only, f.unavailable, f.lost_reply) = (Target::Put, 5, 2));
    for (i, piece) in data.chunks(128 << 10).enumerate() {
        file.write((i as u64) << 17, Bytes::copy_from_slice(piece)).await.expect("write");
    }
    let attr = file.flush().await.expect("flush");
    assert_eq!(attr.size, data.len() as u64);

    s3.faults(|f| (f.only, f.unavailable, f.cut, f.cut_after) = (Target::Get, 3, 3, 50_000));
    s3.reset();
    let file = b.files.open(&b.meta.getattr(ino).await.expect("attr")).expect("open");
    let mut at = 0u64;
    while at < attr.size {
        let piece = file.read(at, 128 << 10).await.expect("read");
        assert!(piece == data[at as usize..at as usize + piece.len()], "bytes from {at} on");
        at += piece.len() as u64;
    }
    let bytes = s3.counters().bytes;
    assert!(bytes < data.len() as u64 + 400_000, "{bytes}: each object once");
}
