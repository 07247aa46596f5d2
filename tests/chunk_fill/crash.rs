//! The process dies; what it left is checked before it is used.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use hfmount::meta::memory::MemoryKv;

use crate::world::{Build, CHUNK, eventually, read_all, same, world};

#[tokio::test(flavor = "multi_thread")]
async fn damaged_chunks_are_fetched_again_and_the_others_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let kv = MemoryKv::new();
    let w = Build { kv: kv.clone(), ..Build::default() }.at(dir.path()).await;
    let (blob, data) = w.blob(10 * CHUNK, 1).await;
    same(&read_all(&blob, CHUNK as u32).await, &data);
    eventually("verified", || blob.is_verified()).await;
    let (etag, id) = (blob.id().etag(), blob.id());
    drop(blob);
    w.crash().await;
    // What did not get to the disk.
    let path = dir.path().join("blobs").join(&etag[..2]).join(&etag);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 4096], 3 * CHUNK as u64).unwrap();
    file.write_all_at(b"x", 8 * CHUNK as u64 - 1).unwrap();

    let w = Build { kv, ..Build::default() }.at(dir.path()).await;
    w.hub.put(id, data.clone());
    let blob = w.chunks.open_blob(id, data.len() as u64).await.unwrap();
    assert_eq!(blob.try_read(0, &mut [0; 16]), None, "suspect");
    let readers = (0..8).map(|_| read_all(&blob, 5000));
    for got in futures::future::join_all(readers).await {
        same(&got, &data);
    }
    assert_eq!(w.hub.times(), [0, 0, 0, 1, 0, 0, 0, 1]);
    let stats = w.chunks.stats().cache;
    assert_eq!((stats.verified, stats.dropped), (8, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cluster_took_back_meanwhile_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let kv = MemoryKv::new();
    let w = Build { kv: kv.clone(), ..Build::default() }.at(dir.path()).await;
    let (blob, data) = w.blob(10 * CHUNK, 1).await;
    for idx in [0, 2, 4] {
        blob.read(idx * CHUNK as u64, 100).await.unwrap();
    }
    let hash = *blake3::hash(&data[2 * CHUNK..3 * CHUNK]).as_bytes();
    let id = blob.id();
    w.chunks.shutdown(std::time::Duration::from_secs(1)).await.unwrap();
    w.blobs.forget_hash(id, 2, hash).await.unwrap();
    drop(blob);
    w.crash().await;

    let w = Build { kv, ..Build::default() }.at(dir.path()).await;
    w.hub.put(id, data.clone());
    let blob = w.chunks.open_blob(id, data.len() as u64).await.unwrap();
    for idx in [0_usize, 2, 4] {
        let got = blob.read((idx * CHUNK) as u64, 100).await.unwrap();
        same(&got, &data[idx * CHUNK..idx * CHUNK + 100]);
    }
    assert_eq!(w.hub.requests(), [(2, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_complete_blob_of_an_earlier_run_is_verified_when_it_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let kv = MemoryKv::new();
    let w = Build { kv: kv.clone(), ..Build::default() }.at(dir.path()).await;
    let (blob, data) = w.blob(10 * CHUNK, 1).await;
    same(&read_all(&blob, CHUNK as u32).await, &data);
    eventually("verified", || blob.is_verified()).await;
    let file = blob.cache_file().clone();
    tokio::task::spawn_blocking(move || file.set_verified(false)).await.unwrap().unwrap();
    let id = blob.id();
    w.chunks.shutdown(std::time::Duration::from_secs(1)).await.unwrap();
    drop(blob);
    w.crash().await;
    let w = Build { kv, ..Build::default() }.at(dir.path()).await;
    let blob = w.chunks.open_blob(id, data.len() as u64).await.unwrap();
    same(&blob.read(0, 10).await.unwrap(), &data[..10]);
    eventually("verified again", || blob.is_verified()).await;
    assert!(w.hub.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_left_its_directory_free() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..3 {
        let w = world(dir.path()).await;
        let (blob, data) = w.blob(3 * CHUNK, seed).await;
        same(&read_all(&blob, CHUNK as u32).await, &data);
        drop(blob);
        w.crash().await;
    }
}
