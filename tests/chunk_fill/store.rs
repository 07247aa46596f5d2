//! Blobs that came from the Hub go into the bucket, and come from there next time.

use std::sync::Arc;
use std::time::Duration;

use hfmount::chunk::ChunksOptions;
use hfmount::meta::memory::MemoryKv;
use hfmount::source::bucket::{Bucket, BucketSource};

use crate::world::{Build, CHUNK, World, eventually, read_all, same};

async fn storing(kv: &Arc<MemoryKv>, bucket: &Bucket, dir: &std::path::Path) -> World {
    let options = ChunksOptions { store_hub_blobs: true, ..Build::default().options };
    let before: Vec<Arc<dyn hfmount::source::Source>> = vec![Arc::new(BucketSource::new(bucket))];
    Build { kv: kv.clone(), options, before, bucket: Some(bucket.clone()), ..Build::default() }.at(dir).await
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_are_stored_once_and_serve_another_mount_without_the_hub() {
    let (kv, bucket) = (MemoryKv::new(), Bucket::in_memory("volume"));
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let w = storing(&kv, &bucket, here.path()).await;
    let (blob, data) = w.blob(21 * CHUNK + 5, 1).await;
    same(&read_all(&blob, CHUNK as u32).await, &data);
    eventually("all stored", || w.chunks.stats().uploads_done == 22).await;
    let rows = w.blobs.chunks(blob.id(), 0, 22).await.unwrap();
    assert!(rows.iter().all(|r| r.stored));
    assert_eq!(bucket.stats().puts, 22);

    let other = storing(&kv, &bucket, there.path()).await;
    let copy = other.chunks.open_blob(blob.id(), blob.size()).await.unwrap();
    same(&read_all(&copy, CHUNK as u32).await, &data);
    assert!(other.hub.requests().is_empty());
    eventually("verified", || copy.is_verified()).await;
    other.chunks.shutdown(Duration::from_secs(5)).await.unwrap();
    assert_eq!(bucket.stats().puts, 22, "what came from there does not go there again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_stored_before_the_end_is_stored_after_the_next_opening() {
    let (kv, bucket) = (MemoryKv::new(), Bucket::in_memory("volume"));
    let dir = tempfile::tempdir().unwrap();
    let w = Build { kv: kv.clone(), ..Build::default() }.at(dir.path()).await;
    let (blob, data) = w.blob(5 * CHUNK, 1).await;
    same(&read_all(&blob, CHUNK as u32).await, &data);
    let id = blob.id();
    w.chunks.shutdown(Duration::from_secs(1)).await.unwrap();
    drop(blob);
    w.crash().await;

    let w = storing(&kv, &bucket, dir.path()).await;
    let blob = w.chunks.open_blob(id, data.len() as u64).await.unwrap();
    eventually("all stored", || w.chunks.stats().uploads_done == 5).await;
    w.chunks.shutdown(Duration::from_secs(5)).await.unwrap();
    assert!(w.hub.requests().is_empty());
    drop(blob);
    w.crash().await;
    let w = storing(&kv, &bucket, dir.path()).await;
    let _blob = w.chunks.open_blob(id, data.len() as u64).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((w.chunks.stats().uploads_waiting, bucket.stats().puts), (0, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_waits_for_uploads_and_a_missing_object_falls_back_to_the_hub() {
    let (kv, bucket) = (MemoryKv::new(), Bucket::in_memory("volume"));
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let w = storing(&kv, &bucket, here.path()).await;
    let (blob, data) = w.blob(9 * CHUNK, 1).await;
    same(&read_all(&blob, CHUNK as u32).await, &data);
    w.chunks.shutdown(Duration::from_secs(10)).await.unwrap();
    assert_eq!(bucket.stats().puts, 9);

    // The rows say that they are there, but it is another bucket.
    let other = storing(&kv, &Bucket::in_memory("volume"), there.path()).await;
    other.hub.put(blob.id(), data.clone());
    let copy = other.chunks.open_blob(blob.id(), blob.size()).await.unwrap();
    same(&read_all(&copy, CHUNK as u32).await, &data);
    assert!(!other.hub.requests().is_empty());
}
