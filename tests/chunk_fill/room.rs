//! Too little room: limits of the cache, a full disk.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hfmount::chunk::ChunksOptions;
use hfmount::chunk::cache::{CacheLimits, ContentKey, Policy};

use crate::world::{Build, CHUNK, World, eventually, read_all, same};

fn limited(chunks: usize) -> CacheLimits {
    let max_bytes = (chunks * CHUNK) as u64;
    CacheLimits { max_bytes, free_ratio: 0.0, max_contents: 1000, policy: Policy::Lru }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_more_than_the_cache_holds_get_right_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let w = Arc::new(Build { limits: limited(60), ..Build::default() }.at(dir.path()).await);
    let readers: Vec<_> = (0..6)
        .map(|seed| {
            let w: Arc<World> = w.clone();
            tokio::spawn(async move {
                for _ in 0..2 {
                    let (blob, data) = w.blob(40 * CHUNK, seed).await;
                    same(&read_all(&blob, 20_000).await, &data);
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    // All are idle now: the evictor can keep to its limit.
    let limit = (60 * CHUNK) as u64;
    eventually("within the limit", || w.chunks.stats().cache.bytes <= limit).await;
    let stats = w.chunks.stats();
    assert!(stats.cache.evicted > 0 && stats.chunks_wrong == 0 && stats.mismatches == 0, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_blob_larger_than_the_cache_is_read_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    let w = Build { limits: limited(40), ..Build::default() }.at(dir.path()).await;
    let (blob, data) = w.blob(200 * CHUNK, 1).await;
    same(&read_all(&blob, 32 << 10).await, &data);
    let stats = w.chunks.stats();
    assert!(stats.cache.punched_bytes > (100 * CHUNK) as u64, "{stats:?}");
    assert!(stats.chunks_filled < 260, "not again and again: {}", stats.chunks_filled);
    assert_eq!((stats.chunks_wrong, stats.mismatches), (0, 0));
}

/// What is evicted before it is read is fetched for its reader alone, after a few tries: a read does not go on for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_read_ends_though_all_is_evicted_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let w = Arc::new(Build { limits: limited(2), ..Build::default() }.at(dir.path()).await);
    let stop = Arc::new(AtomicBool::new(false));
    let evictors: Vec<_> = (0..2)
        .map(|_| {
            let (cache, stop) = (w.chunks.cache().clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    cache.make_room(u64::MAX / 2);
                    std::thread::yield_now();
                }
            })
        })
        .collect();
    let (blob, data) = w.blob(40 * CHUNK, 1).await;
    let readers: Vec<_> = (0..24_usize)
        .map(|reader| {
            let (blob, data) = (blob.clone(), data.clone());
            tokio::spawn(async move {
                for n in 0..12 {
                    // Pieces of one, two and three chunks.
                    let at = (reader * 7919 + n * 104_729) % (37 * CHUNK);
                    let len = [1_000, CHUNK, 2 * CHUNK][(reader + n) % 3];
                    same(&blob.read(at as u64, len as u32).await.expect("read"), &data[at..at + len]);
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    evictors.into_iter().for_each(|evictor| evictor.join().unwrap());
    let stats = w.chunks.stats();
    assert!(stats.cache.punched_bytes > 0 && (stats.chunks_wrong, stats.mismatches) == (0, 0), "{stats:?}");
}

/// As many places in memory as one chunk takes: who reads two at once does not wait for itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_one_place_in_memory_serves_readers_of_two_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Tmpfs::mount(dir.path(), "2m");
    // Three eighths of 8 MiB are 3 MiB.
    let options = ChunksOptions { chunk_size: 2 << 20, memory: 0, ..Build::default().options };
    let w = Build { options, ..Build::default() }.at(dir.path()).await;
    let (blob, data) = w.blob(8 << 20, 1).await;
    blob.cache_file().set_dirty(true);
    let room = rustix::fs::statvfs(dir.path()).unwrap();
    std::fs::write(dir.path().join("filler"), vec![1; (room.f_bavail * room.f_frsize) as usize - 9000])
        .unwrap();
    let border = |n: usize| (n << 21) - 1000;
    let reads = (0..12).map(|n| blob.read(border(n % 3 + 1) as u64, 2000));
    for (n, read) in futures::future::join_all(reads).await.into_iter().enumerate() {
        same(&read.expect("read"), &data[border(n % 3 + 1)..][..2000]);
    }
    assert!(w.chunks.stats().from_memory >= 2, "{:?}", w.chunks.stats());
    drop(blob);
    w.crash().await;
    drop(disk);
}

/// A file system of its own for a cache directory; needs root.
struct Tmpfs<'a>(&'a Path);

impl<'a> Tmpfs<'a> {
    fn mount(path: &'a Path, size: &str) -> Self {
        let options = format!("size={size},mode=0700");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path).status();
        assert!(done.expect("mount").success(), "this test mounts a tmpfs and needs root");
        Tmpfs(path)
    }
}

impl Drop for Tmpfs<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_reads_go_on_without_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Tmpfs::mount(dir.path(), "2m");
    // The limit is far away: only the disk says no.
    let w = Build::default().at(dir.path()).await;
    let filler = dir.path().join("filler");
    std::fs::write(&filler, vec![1; (2 << 20) - 5 * CHUNK]).unwrap();
    let (blob, data) = w.blob(30 * CHUNK, 1).await;
    same(&read_all(&blob, 16 << 10).await, &data);
    let stats = w.chunks.stats();
    assert!(stats.from_memory >= 1 || stats.cache.punched_bytes > 0, "{stats:?}");

    // Nothing to evict at all.
    let first = ContentKey::Blob(blob.id());
    drop(blob);
    eventually("idle", || w.chunks.stats().open_blobs == 0).await;
    w.chunks.cache().remove(&first).unwrap();
    std::fs::remove_file(&filler).unwrap();
    let (small, _) = w.blob(CHUNK, 2).await;
    small.cache_file().set_dirty(true);
    small.read(0, 10).await.unwrap();
    let (blob, data) = w.blob(30 * CHUNK, 3).await;
    blob.cache_file().set_dirty(true);
    let room = rustix::fs::statvfs(dir.path()).unwrap();
    std::fs::write(&filler, vec![1; (room.f_bavail * room.f_frsize) as usize - CHUNK / 2]).unwrap();
    let before = w.chunks.stats().from_memory;
    same(&read_all(&blob, 16 << 10).await, &data);
    let stats = w.chunks.stats();
    assert!(stats.from_memory - before >= 29, "{stats:?}");
    assert!(stats.from_memory - before <= 40, "each small read again: {stats:?}");
    drop((blob, small));
    w.crash().await;
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_makes_room_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Tmpfs::mount(dir.path(), "4m");
    let w = Build::default().at(dir.path()).await;
    for seed in 0..4 {
        let (blob, data) = w.blob(30 * CHUNK, seed).await;
        same(&read_all(&blob, 16 << 10).await, &data);
    }
    let stats = w.chunks.stats();
    // Of the one that was closed just before there may be only chunks to give, or nothing yet.
    let freed = stats.cache.evicted_bytes + stats.cache.punched_bytes;
    let passed = freed + stats.from_memory * CHUNK as u64;
    assert!(freed > 0 && passed >= (120 * CHUNK - (4 << 20)) as u64, "{stats:?}");
    w.crash().await;
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_beyond_the_process_limit_are_a_clear_error() {
    // In a child: the limit holds for the whole process.
    if std::env::var_os("HFMOUNT_TEST_FSIZE").is_none() {
        let test = "room::blobs_beyond_the_process_limit_are_a_clear_error";
        let me = std::env::current_exe().unwrap();
        let script = format!("ulimit -f 1024; exec '{}' --exact {test} --nocapture", me.display());
        let child =
            Command::new("bash").args(["-c", &script]).env("HFMOUNT_TEST_FSIZE", "1").output().unwrap();
        let text =
            String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let w = Build::default().at(dir.path()).await;
    let e = w.chunks.open_blob(crate::world::sha256(b"large"), 1 << 30).await.unwrap_err();
    assert_eq!(e.kind(), hfmount::error::Kind::TooLarge, "{e}");
    assert!(e.to_string().contains("ulimit"), "{e}");
    let file =
        w.chunks.cache().open_content(ContentKey::File(hfmount::types::Ino(5)), 100, CHUNK as u32).unwrap();
    assert!(file.write_at(2 << 20, b"beyond").is_err());
}
