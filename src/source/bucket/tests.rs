//! The store's contract, over a folder, over memory with faults, and against a server that is not there.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use futures::TryStreamExt;

use super::faulty::faulty_bucket;
use super::*;
use crate::source::storage::StorageOptions;
use crate::source::{Source, Want};
use crate::types::{BlobId, ObjectId, SessionId};

fn object(seq: u64) -> Object {
    Object::FileChunk(ObjectId { session: SessionId(5), seq })
}

async fn folder(dir: &std::path::Path, volume: &str) -> Bucket {
    let url = format!("file://{}/deep/er", dir.display()).parse().expect("a URL");
    Bucket::open(&url, &StorageOptions::default(), volume).await.expect("a folder opens")
}

/// What every store must do.
async fn contract(bucket: &Bucket) {
    bucket.check().await.expect("a test object");
    assert_eq!(bucket.list("", None, 10).await.expect("list"), [], "the test object is gone");

    let data = Bytes::from((0..100_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    bucket.put(&object(1), data.clone()).await.expect("put");
    assert_eq!(bucket.get(&object(1), None).await.expect("get"), data);
    assert_eq!(bucket.get(&object(1), Some(1000..3000)).await.expect("range"), data.slice(1000..3000));
    assert_eq!(bucket.get(&object(1), Some(7..7)).await.expect("nothing"), Bytes::new());
    assert_eq!(bucket.head(&object(1)).await.expect("head"), Some(400_000));
    let beyond = bucket.get(&object(1), Some(399_999..400_001)).await.expect_err("beyond the end");
    assert_eq!(beyond.kind(), Kind::Corrupt, "{beyond}");

    let missing = bucket.get(&object(2), None).await.expect_err("missing");
    assert_eq!(missing.kind(), Kind::NotFound, "{missing}");
    assert!(missing.to_string().contains("chunks/0000000000000005/2"), "{missing}");
    assert!(!bucket.exists(&object(2)).await.expect("head"));

    bucket.put(&object(2), Bytes::new()).await.expect("an empty object");
    assert_eq!(bucket.get(&object(2), None).await.expect("get"), Bytes::new());
    bucket.put(&object(10), Bytes::from_static(b"x")).await.expect("put");
    let names = |l: Vec<Listed>| l.into_iter().map(|l| l.name).collect::<Vec<_>>();
    let all = names(bucket.list("chunks", None, 10).await.expect("list"));
    let session = "chunks/0000000000000005";
    assert_eq!(all, [format!("{session}/1"), format!("{session}/10"), format!("{session}/2")]);
    let some = names(bucket.list("chunks", Some(&all[0]), 1).await.expect("list"));
    assert_eq!(some, [format!("{session}/10")]);
    assert_eq!(names(bucket.list("blobs", None, 10).await.expect("list")), Vec::<String>::new());

    for seq in [1, 1, 2, 10] {
        bucket.delete(&object(seq)).await.expect("deleting twice is no error");
    }
    assert_eq!(bucket.list("", None, 10).await.expect("list"), []);
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    contract(&Bucket::in_memory("vol")).await;
}

#[tokio::test]
async fn a_folder_keeps_the_contract() {
    let dir = tempfile::tempdir().expect("a directory");
    let bucket = folder(dir.path(), "vol").await;
    contract(&bucket).await;
    // Another process finds it again.
    bucket.put(&object(3), Bytes::from_static(b"abc")).await.expect("put");
    let again = folder(dir.path(), "vol").await;
    assert_eq!(&again.get(&object(3), None).await.expect("get")[..], b"abc");
    assert!(dir.path().join("deep/er/vol/chunks/0000000000000005/3").is_file());
}

#[tokio::test]
async fn a_prefix_belongs_to_one_volume() {
    let dir = tempfile::tempdir().expect("a directory");
    let marker =
        |uuid: &str| Marker { uuid: uuid.into(), name: "vol".into(), chunk_size: 4 << 20, loaded: None };
    let bucket = folder(dir.path(), "vol").await;
    assert_eq!(bucket.volume_marker().await.expect("none"), None);
    assert_eq!(bucket.claim(&marker("a")).await.expect("claim"), Claim::Made);
    assert_eq!(bucket.claim(&marker("a")).await.expect("claim"), Claim::Ours);
    let e = bucket.claim(&marker("b")).await.expect_err("another's");
    assert_eq!(e.kind(), Kind::Exists);
    assert!(e.to_string().contains("another volume, vol (a)"), "{e}");
    // Another name beside it is another volume.
    // Another copy of the volume's metadata takes it over, another volume does not.
    let loaded = Some(crate::types::Timestamp(7));
    bucket.hand_over(&Marker { loaded, ..marker("a") }).await.expect("handed over");
    assert_eq!(bucket.volume_marker().await.expect("read").and_then(|m| m.loaded), loaded);
    let e = bucket.hand_over(&Marker { loaded, ..marker("b") }).await.expect_err("another's");
    assert_eq!(e.kind(), Kind::Exists);
    let beside = folder(dir.path(), "vol2").await;
    assert_eq!(beside.claim(&marker("b")).await.expect("claim"), Claim::Made);
    // Objects without a marker are nobody's to take.
    let strange = folder(dir.path(), "vol3").await;
    strange.put(&object(1), Bytes::from_static(b"x")).await.expect("put");
    let e = strange.claim(&marker("c")).await.expect_err("occupied");
    assert!(e.to_string().contains("no volume"), "{e}");
}

#[tokio::test]
async fn transient_failures_are_tried_again_and_lasting_ones_reported() {
    let (bucket, faults) = faulty_bucket();
    let data = Bytes::from(vec![7; 1000]);
    faults.fail_puts.store(2, SeqCst);
    bucket.put(&object(1), data.clone()).await.expect("the third try");
    faults.lose_replies.store(1, SeqCst);
    bucket.put(&object(1), data.clone()).await.expect("again");
    faults.fail_gets.store(2, SeqCst);
    assert_eq!(bucket.get(&object(1), None).await.expect("get"), data);
    assert_eq!(bucket.stats().failed, 5);

    faults.fail_puts.store(u32::MAX, SeqCst);
    let started = Instant::now();
    let e = bucket.put(&object(2), data).await.expect_err("never");
    assert_eq!(e.kind(), Kind::Unavailable);
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(!bucket.exists(&object(2)).await.expect("head"));
}

#[tokio::test]
async fn a_broken_body_is_resumed_where_it_broke() {
    let (bucket, faults) = faulty_bucket();
    let data = Bytes::from((0..=255u8).cycle().take(1 << 16).collect::<Vec<_>>());
    bucket.put(&object(1), data.clone()).await.expect("put");
    let before = bucket.stats();
    faults.cut_bodies.store(3, SeqCst);
    assert_eq!(bucket.get(&object(1), Some(100..60_000)).await.expect("get"), data.slice(100..60_000));
    let after = bucket.stats();
    assert_eq!(after.gets - before.gets, 4);
    assert_eq!(after.bytes_down - before.bytes_down, 59_900, "no byte twice");
    faults.cut_bodies.store(1, SeqCst);
    assert_eq!(bucket.get(&object(1), None).await.expect("get"), data);
}

#[tokio::test]
async fn a_stalled_store_is_given_up() {
    let (bucket, faults) = faulty_bucket();
    faults.delay.store(60_000, SeqCst);
    let patience = Patience { progress: Duration::from_millis(50), total: Duration::from_millis(200) };
    let bucket = bucket.with_patience(patience);
    let started = Instant::now();
    for e in [
        bucket.get(&object(1), None).await.expect_err("get"),
        bucket.put(&object(1), Bytes::new()).await.expect_err("put"),
    ] {
        assert_eq!(e.kind(), Kind::TimedOut, "{e}");
    }
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    // A port that was free a moment ago.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let options = StorageOptions {
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        access_key: Some("key".into()),
        secret_key: Some("hunter2".to_owned().into()),
        ..StorageOptions::default()
    };
    let url = "s3://models/x".parse().expect("a URL");
    let bucket = Bucket::open(&url, &options, "vol").await.expect("nothing is asked yet");
    let patience = Patience { total: Duration::from_millis(300), ..Patience::short() };
    let e = bucket.with_patience(patience).check().await.expect_err("no server");
    assert_eq!(e.kind(), Kind::Unavailable, "{e}");
    assert!(e.to_string().contains(&format!("s3://models/x at http://127.0.0.1:{port}")), "{e}");
    assert!(!format!("{e:?} {bucket:?}").contains("hunter2"));
}

#[tokio::test]
async fn missing_keys_and_bad_endpoints_are_refused_at_once() {
    let url = "s3://models/x".parse().expect("a URL");
    let with = |endpoint: &str, key: Option<&str>, secret: Option<&str>| StorageOptions {
        endpoint: Some(endpoint.into()),
        access_key: key.map(Into::into),
        secret_key: secret.map(|s| s.to_owned().into()),
        ..StorageOptions::default()
    };
    for (options, word) in [
        (with("http://127.0.0.1:1", None, None), "AWS_ACCESS_KEY_ID"),
        (with("http://127.0.0.1:1", Some("k"), None), "AWS_SECRET_ACCESS_KEY"),
        (with("http://127.0.0.1:1", None, Some("s")), "AWS_ACCESS_KEY_ID"),
        (with("127.0.0.1:1", Some("k"), Some("s")), "endpoint"),
        (with("ftp://host", Some("k"), Some("s")), "http or https"),
        (with("http://user:hunter2@host", Some("k"), Some("s")), "credentials"),
    ] {
        let e = Bucket::open(&url, &options, "vol").await.expect_err(word);
        assert_eq!(e.kind(), Kind::Config, "{e}");
        assert!(e.to_string().contains(word), "{e}");
        assert!(!e.to_string().contains("hunter2"), "{e}");
    }
}

#[tokio::test]
async fn an_unwritable_folder_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("file"), b"").expect("a file");
    let url = format!("file://{}/file/sub", dir.path().display()).parse().expect("a URL");
    let e = Bucket::open(&url, &StorageOptions::default(), "vol").await.expect_err("a file in the way");
    assert!(e.to_string().contains("file/sub"), "{e}");
}

#[tokio::test]
async fn chunks_of_blobs_come_back_as_a_run() {
    let bucket = Bucket::in_memory("vol");
    let blob = BlobId::Sha256([9; 32]);
    let hash = |i: u64| [i as u8; 32];
    for i in [0u64, 1, 2, 4] {
        let len = if i == 4 { 3 } else { 8 };
        bucket.put_blob_chunk(blob, i, hash(i), Bytes::from(vec![i as u8; len])).await.expect("put");
    }
    let source = BucketSource::new(&bucket);
    let want = |first: u64, count: u64, stored: &[Option<[u8; 32]>]| Want {
        blob,
        size: 35,
        origins: Arc::from([]),
        first,
        count,
        chunk_size: 8,
        stored: Arc::from(stored),
        holders: Arc::from([]),
    };
    let fetch = async |want: Want| -> Result<Vec<u8>> {
        let pieces: Vec<Bytes> = source.fetch(&want).await?.try_collect().await?;
        Ok(pieces.concat())
    };
    let run = fetch(want(0, 3, &[Some(hash(0)), Some(hash(1)), Some(hash(2))])).await.expect("a run");
    assert_eq!(run, [[0; 8], [1; 8], [2; 8]].concat());
    assert_eq!(fetch(want(4, 9, &[Some(hash(4))])).await.expect("the last, short one"), [4; 3]);

    let gets = bucket.stats().gets;
    let e = fetch(want(3, 2, &[None, Some(hash(4))])).await.expect_err("not stored");
    assert_eq!((e.kind(), bucket.stats().gets), (Kind::NotFound, gets), "nobody was asked");
    let e = fetch(want(0, 2, &[Some(hash(0))])).await.expect_err("the second is not stored");
    assert_eq!(e.kind(), Kind::NotFound);
    let e = fetch(want(0, 1, &[Some(hash(7))])).await.expect_err("recorded, but gone");
    assert_eq!(e.kind(), Kind::NotFound);
    bucket.put_blob_chunk(blob, 3, hash(3), Bytes::from_static(b"short")).await.expect("put");
    let e = fetch(want(3, 1, &[Some(hash(3))])).await.expect_err("short");
    assert_eq!(e.kind(), Kind::Corrupt);
}
