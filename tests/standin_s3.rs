//! What the other tests rely on in the stand-in S3 store, seen through the client that hfmount uses.

#[path = "standin/mod.rs"]
mod standin;

use std::sync::Arc;

use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path;
use object_store::{Error, GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion};
use standin::{S3, Target};

fn client(s3: &S3) -> AmazonS3 {
    let _ = rustls::crypto::ring::default_provider().install_default();
    AmazonS3Builder::new()
        .with_endpoint(s3.endpoint())
        .with_allow_http(true)
        .with_bucket_name(s3.bucket())
        .with_region("us-east-1")
        .with_access_key_id(s3.access_key())
        .with_secret_access_key(s3.secret_key())
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .build()
        .expect("a valid configuration")
}

#[tokio::test]
async fn one_of_many_racing_creates_wins() {
    let dir = tempfile::tempdir().expect("a folder");
    let s3 = S3::start(dir.path()).expect("a free port");
    let client = Arc::new(client(&s3));
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..16 {
        let client = client.clone();
        tasks.spawn(async move {
            let mode = PutOptions { mode: PutMode::Create, ..Default::default() };
            client.put_opts(&Path::from("a/one"), format!("writer {i}").into(), mode).await
        });
    }
    let results = tasks.join_all().await;
    assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
    let lost = results.iter().filter(|r| matches!(r, Err(Error::AlreadyExists { .. }))).count();
    assert_eq!(lost, 15);
}

#[tokio::test]
async fn updates_and_reads_honour_etags() {
    let dir = tempfile::tempdir().expect("a folder");
    let s3 = S3::start(dir.path()).expect("a free port");
    let (client, path) = (client(&s3), Path::from("a/two"));
    let old = client.put(&path, "old".into()).await.expect("put");
    let update = |e_tag| PutOptions {
        mode: PutMode::Update(UpdateVersion { e_tag, version: None }),
        ..Default::default()
    };
    client.put_opts(&path, "new".into(), update(old.e_tag.clone())).await.expect("the ETag fits");
    let again = client.put_opts(&path, "newer".into(), update(old.e_tag.clone())).await;
    assert!(matches!(again, Err(Error::Precondition { .. })), "{again:?}");
    let read = GetOptions { if_match: old.e_tag, ..Default::default() };
    let read = client.get_opts(&path, read).await;
    assert!(matches!(read, Err(Error::Precondition { .. })), "{read:?}");
}

#[tokio::test]
async fn large_objects_and_ranges_come_back_and_are_counted() {
    let dir = tempfile::tempdir().expect("a folder");
    let s3 = S3::start(dir.path()).expect("a free port");
    let (client, path) = (client(&s3), Path::from("big/object"));
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    client.put(&path, bytes.clone().into()).await.expect("put");
    let whole = client.get(&path).await.expect("get").bytes().await.expect("bytes");
    assert_eq!(whole, bytes);
    let part = client.get_range(&path, 100_000..2_100_000).await.expect("range");
    assert_eq!(part, bytes[100_000..2_100_000]);
    let counts = s3.counters();
    assert_eq!((counts.of("put"), counts.of("get")), (1, 2));
    assert_eq!((counts.bytes_in, counts.bytes), (3_000_000, 5_000_000));
    assert_eq!(counts.paths["test/big/object"].requests, 2);
}

#[tokio::test]
async fn faults_hit_what_they_are_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let s3 = S3::start(dir.path()).expect("a free port");
    let (client, path) = (client(&s3), Path::from("x"));
    s3.faults(|f| (f.only, f.unavailable) = (Target::Put, 1));
    assert!(client.head(&path).await.is_err_and(|e| matches!(e, Error::NotFound { .. })));
    // object_store tries a 503 again by itself.
    client.put(&path, "x".into()).await.expect("the second try");
    assert_eq!(s3.counters().of("put"), 2);
    assert_eq!(s3.faults(|_| ()).unavailable, 0);
}
