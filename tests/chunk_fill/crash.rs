//! The process dies; what it left is checked before it is used.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hfmount::chunk::cache::{BLOB_TAG, CacheDir, CacheLimits, ContentKey, Presence};
use hfmount::meta::memory::MemoryKv;

use crate::world::{Build, CHUNK, bytes, eventually, read_all, same, world};

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
    w.chunks.shutdown(Duration::from_secs(1)).await.unwrap();
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
    w.chunks.shutdown(Duration::from_secs(1)).await.unwrap();
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

/// Fills chunks of one content over and over, in another process, until it is killed.
fn fill_for_ever(dir: &Path) -> ! {
    let limits = CacheLimits { free_ratio: 0.0, ..CacheLimits::default() };
    let cache = CacheDir::open(dir, "volume", limits).unwrap();
    let file = cache.open_content(key(), 64 * CHUNK as u64, CHUNK as u32).unwrap();
    for n in 0_u64.. {
        let (idx, data) = (n * 7 % 64, bytes(CHUNK, n * 7 % 64 + n / 64 * 1000));
        // Over what is recorded: that is cleared first.
        file.write_at(idx * CHUNK as u64, &data[..CHUNK / 2]).unwrap();
        file.write_at(idx * CHUNK as u64 + CHUNK as u64 / 2, &data[CHUNK / 2..]).unwrap();
        file.record(idx, &BLOB_TAG, blake3::hash(&data).as_bytes(), CHUNK as u32, || ()).unwrap();
    }
    unreachable!()
}

fn key() -> ContentKey {
    ContentKey::File(hfmount::types::Ino(7))
}

#[test]
fn whatever_kill_9_leaves_is_right_or_absent() {
    const VAR: &str = "HFMOUNT_TEST_FILL_DIR";
    if let Some(dir) = std::env::var_os(VAR) {
        fill_for_ever(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let me = std::env::current_exe().unwrap();
    for round in 0..4 {
        let name = "crash::whatever_kill_9_leaves_is_right_or_absent";
        let mut child = Command::new(&me).args(["--exact", name]).env(VAR, dir.path()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300 + 37 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let limits = CacheLimits { free_ratio: 0.0, ..CacheLimits::default() };
        let cache = CacheDir::open(dir.path(), "volume", limits).unwrap();
        assert_eq!(cache.path(), dir.path(), "free again");
        let file = cache.open_content(key(), 64 * CHUNK as u64, CHUNK as u32).unwrap();
        let mut kept = 0;
        for idx in 0..64 {
            assert_ne!(file.presence(idx), Presence::Present, "nothing of a killed run is believed unseen");
            if file.verify(idx).unwrap() {
                let mut data = vec![0; CHUNK];
                assert_eq!(file.read_present(idx * CHUNK as u64, &mut data).unwrap(), Some(CHUNK));
                let record = file.record_of(idx).unwrap().unwrap();
                assert_eq!(record.hash, *blake3::hash(&data).as_bytes());
                kept += 1;
            }
        }
        // The machine went on: only what was being written is missing.
        assert!(kept >= 62, "round {round}: {kept}");
    }
}
