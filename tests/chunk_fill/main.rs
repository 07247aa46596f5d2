//! Blobs: fetched once, checked, kept; through faults of sources, of the disk and of the process.

mod bench;
#[path = "../support/blobs.rs"]
mod blobs;
mod crash;
mod faults;
mod follow;
mod room;
mod source;
mod store;
mod world;

use std::time::{Duration, Instant};

use hfmount::chunk::BlobEvent;
use hfmount::error::Kind;

use source::Memory;
use world::{Build, CHUNK, bytes, eventually, git, read_all, same, sha256, world};

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_readers_of_one_chunk_cause_one_request() {
    let dir = tempfile::tempdir().unwrap();
    let w = world(dir.path()).await;
    w.hub.set_delay(Duration::from_millis(100));
    let (blob, data) = w.blob(20 * CHUNK, 1).await;
    let readers: Vec<_> = (0..64_u64)
        .map(|i| {
            let blob = blob.clone();
            tokio::spawn(async move { blob.read(5 * CHUNK as u64 + i * 100, 100).await })
        })
        .collect();
    for (i, reader) in readers.into_iter().enumerate() {
        let at = 5 * CHUNK + i * 100;
        same(&reader.await.unwrap().unwrap(), &data[at..at + 100]);
    }
    assert_eq!(w.hub.requests(), [(5, 1)]);
    assert_eq!(blob.filled_bytes(), CHUNK as u64);
    // Now it is in memory.
    let mut buf = [0; 64];
    assert_eq!(blob.try_read(5 * CHUNK as u64, &mut buf), Some(64));
    same(&buf, &data[5 * CHUNK..5 * CHUNK + 64]);
    assert_eq!(blob.try_read(6 * CHUNK as u64 - 1, &mut buf), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_a_header_fetches_at_most_two_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let w = world(dir.path()).await;
    let (blob, data) = w.blob(500 * CHUNK, 1).await;
    same(&blob.read(0, 8).await.unwrap(), &data[..8]);
    same(&blob.read(8, 40_000).await.unwrap(), &data[8..40_008]);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(w.hub.chunks_asked() <= 2, "{:?}", w.hub.requests());
    assert!(blob.filled_bytes() <= 2 * CHUNK as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_read_through_is_fetched_once_in_parallel_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let w = world(dir.path()).await;
    w.hub.set_delay(Duration::from_millis(10));
    let mut events = w.chunks.events();
    let (blob, data) = w.blob(300 * CHUNK + 77, 1).await;
    same(&read_all(&blob, 32 << 10).await, &data);
    let times = w.hub.times();
    assert!(times.len() == 301 && times.iter().all(|n| *n == 1), "{times:?}");
    assert!(w.hub.most_open.load(std::sync::atomic::Ordering::SeqCst) >= 4, "not one after the other");
    assert!(w.hub.requests().len() < 150, "runs: {:?}", w.hub.requests());
    assert_eq!(events.recv().await.unwrap(), BlobEvent::Verified(blob.id()));
    assert!(blob.is_complete() && blob.is_verified());
    let row = w.blobs.get(blob.id()).await.unwrap().unwrap();
    assert!(row.verified);
    let rows = w.blobs.chunks(blob.id(), 0, 301).await.unwrap();
    assert!(rows.iter().all(|r| r.hash.is_some()));
    assert_eq!(w.chunks.filled_bytes(&blob.id(), blob.size()), blob.size());
    let stats = w.chunks.stats();
    assert_eq!((stats.chunks_filled, stats.chunks_wrong, stats.mismatches), (301, 0, 0));
    assert_eq!(stats.sources[0].bytes, blob.size());
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_a_mapping_out_of_order_by_several_readers_fetch_each_chunk_once() {
    let dir = tempfile::tempdir().unwrap();
    let w = world(dir.path()).await;
    w.hub.set_delay(Duration::from_millis(3));
    let (blob, data) = w.blob(64 * CHUNK, 1).await;
    let window = 8 << 10;
    let readers: Vec<_> = (0..4_u64)
        .map(|r| {
            let (blob, data) = (blob.clone(), data.clone());
            tokio::spawn(async move {
                for i in 0..(64 * CHUNK / window) as u64 {
                    // Near each other, in no order, each reader a little apart.
                    let slot = (i / 32 * 32) + (i * 13 + r * 5) % 32;
                    let at = slot * window as u64;
                    let got = blob.read(at, window as u32).await.unwrap();
                    same(&got, &data[at as usize..at as usize + window]);
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    let times = w.hub.times();
    assert!(times.len() == 64 && times.iter().all(|n| *n == 1), "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn random_small_reads_do_not_pull_the_blob() {
    let dir = tempfile::tempdir().unwrap();
    let w = world(dir.path()).await;
    let (blob, data) = w.blob(1000 * CHUNK, 1).await;
    let mut seed = 5_u64;
    for _ in 0..100 {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let at = (seed >> 20) as usize % (1000 * CHUNK - 4096);
        same(&blob.read(at as u64, 4096).await.unwrap(), &data[at..at + 4096]);
    }
    assert!(w.hub.chunks_asked() <= 130, "{}", w.hub.chunks_asked());
}

#[tokio::test(flavor = "multi_thread")]
async fn small_empty_and_last_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let w = world(dir.path()).await;
    let empty = w.chunks.open_blob(git(b""), 0).await.unwrap();
    assert_eq!(empty.read(0, 100).await.unwrap().len(), 0);
    assert_eq!(empty.try_read(0, &mut [0; 8]), Some(0));

    let text = bytes(300, 4);
    let id = git(&text);
    w.hub.put(id, text.clone());
    let small = w.chunks.open_blob(id, 300).await.unwrap();
    same(&small.read(200, 1000).await.unwrap(), &text[200..]);
    assert_eq!(small.read(300, 10).await.unwrap().len(), 0);
    assert_eq!(small.read(u64::MAX, 10).await.unwrap().len(), 0);
    eventually("a single chunk is verified as it comes", || small.is_verified()).await;
    let mut buf = [0; 400];
    assert_eq!(small.try_read(0, &mut buf), Some(300));
    assert_eq!(w.hub.requests(), [(0, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_goes_away_leaves_the_transfer_to_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let w = world(dir.path()).await;
    w.hub.set_delay(Duration::from_millis(200));
    let (blob, data) = w.blob(4 * CHUNK, 1).await;
    let first = tokio::spawn({
        let blob = blob.clone();
        async move { blob.read(0, 100).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let second = tokio::spawn({
        let blob = blob.clone();
        async move { blob.read(0, 100).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    first.abort();
    same(&second.await.unwrap().unwrap(), &data[..100]);
    // Alone and gone: the transfer ends by itself, and its chunk is kept.
    let alone = tokio::spawn({
        let blob = blob.clone();
        async move { blob.read(2 * CHUNK as u64, 100).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    alone.abort();
    eventually("the chunk came", || blob.filled_bytes() >= 2 * CHUNK as u64).await;
    assert_eq!(w.hub.times()[0], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_content_for_all_who_have_it_open() {
    let dir = tempfile::tempdir().unwrap();
    let w = world(dir.path()).await;
    let (one, _) = w.blob(2 << 20, 1).await;
    let two = w.chunks.open_blob(one.id(), one.size()).await.unwrap();
    assert!(std::sync::Arc::ptr_eq(&one, &two));
    let e = w.chunks.open_blob(one.id(), 5).await.unwrap_err();
    assert_eq!(e.kind(), Kind::Corrupt);
    assert_eq!(w.chunks.stats().open_blobs, 1);
    drop((one, two));
    eventually("closed", || w.chunks.stats().open_blobs == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_blobs_stay_open_a_while_and_not_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let w = world(dir.path()).await;
    for n in 0..150 {
        drop(w.blob(100 + n, n as u64).await);
    }
    eventually("the oldest closed", || w.chunks.stats().open_blobs == 128).await;
    w.chunks.shutdown(Duration::from_secs(1)).await.unwrap();
    eventually("all closed", || w.chunks.stats().open_blobs == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_fetched_ahead_for_readers_that_left() {
    let dir = tempfile::tempdir().unwrap();
    let w = world(dir.path()).await;
    w.hub.set_delay(Duration::from_millis(30));
    let (blob, _) = w.blob(3000 * CHUNK, 1).await;
    for at in (0..12 * CHUNK).step_by(CHUNK / 2) {
        blob.read(at as u64, CHUNK as u32 / 2).await.unwrap();
    }
    drop(blob);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let asked = w.hub.chunks_asked();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(w.hub.chunks_asked(), asked);
    assert!(asked < 1500, "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_are_bounded_however_much_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let build = Build { hub: Memory::new("hub"), ..Build::default() };
    let w = build.at(dir.path()).await;
    w.hub.set_delay(Duration::from_millis(5));
    let blobs = futures::future::join_all((0..8).map(|i| w.blob(100 * CHUNK, i))).await;
    let reads = blobs.iter().map(|(blob, data)| async move { same(&read_all(blob, 16 << 10).await, data) });
    futures::future::join_all(reads).await;
    // 64 MiB for transfers: forty of them.
    assert!(w.hub.most_open.load(std::sync::atomic::Ordering::SeqCst) <= 40);
    assert_eq!(w.hub.chunks_asked(), 800);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_ordered_and_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let kv = hfmount::meta::memory::MemoryKv::new();
    let w = Build { kv: kv.clone(), ..Build::default() }.at(dir.path()).await;
    let (blob, data) = w.blob(40 * CHUNK, 1).await;
    blob.read(0, 100).await.unwrap();
    w.hub.set_always(source::Fault::Hang);
    let waiting = tokio::spawn({
        let blob = blob.clone();
        async move { blob.read(9 * CHUNK as u64, 10).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let start = Instant::now();
    w.chunks.shutdown(Duration::from_secs(1)).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(3));
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(blob.read(20 * CHUNK as u64, 10).await.unwrap_err().kind(), Kind::Unavailable);
    assert!(w.chunks.open_blob(sha256(&data), data.len() as u64).await.is_err());
    drop(blob);
    w.crash().await;

    let w = Build { kv, ..Build::default() }.at(dir.path()).await;
    let (blob, data) = w.blob(40 * CHUNK, 1).await;
    same(&blob.read(0, 100).await.unwrap(), &data[..100]);
    assert!(w.hub.requests().is_empty(), "a clean stop keeps what was there: {:?}", w.chunks.stats());
    assert_eq!(w.chunks.stats().cache.verified, 0);
}
