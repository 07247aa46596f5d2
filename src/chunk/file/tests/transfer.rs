//! What moves between the disk, the bucket and the metadata, and how much of it.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;

use super::world::{CHUNK, World, options, pattern, same};
use crate::chunk::file::FilesOptions;
use crate::chunk::file::state::Part;
use crate::error::Kind;

const C: usize = CHUNK as usize;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn complete_chunks_go_ahead_of_the_flush() {
    let world = World::new();
    let a = world.node().await;
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    // 128 KiB at a time, as the kernel does.
    let total = 16 << 20;
    for i in 0..total / (128 << 10) {
        file.write(i * (128 << 10), pattern(i, 128 << 10)).await.expect("write");
    }
    for _ in 0..100 {
        if world.faults.put_bytes.load(SeqCst) == total {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.faults.put_bytes.load(SeqCst), total, "before anybody flushed, each byte once");
    let puts = world.faults.puts.load(SeqCst);
    assert_eq!(puts, total / u64::from(CHUNK));
    file.write(5, Bytes::from_static(b"again")).await.expect("write");
    file.flush().await.expect("flush");
    assert_eq!(world.faults.put_bytes.load(SeqCst), total + 5, "what changed, and no more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_change_is_committed_in_steps() {
    let world = World::with_chunk(4096);
    // Thousands of objects on a busy machine take their time.
    let patient = FilesOptions { io_timeout: Duration::from_secs(60), ..options() };
    let (a, b) = (world.node_with(patient).await, world.node().await);
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    let data = pattern(1, 2500 * 4096 + 5);
    for (i, piece) in data.chunks(1 << 20).enumerate() {
        file.write((i as u64) << 20, Bytes::copy_from_slice(piece)).await.expect("write");
    }
    file.flush().await.expect("flush");
    same(&b.contents(ino).await, &data, "contents");
    // Cut to nothing and written anew, shorter.
    file.truncate(0).await.expect("cut");
    let data = pattern(2, 1200 * 4096 + 1);
    file.write(0, data.clone()).await.expect("write");
    file.flush().await.expect("flush");
    same(&b.contents(ino).await, &data, "contents");
    let rows = a.meta.extents(ino, &(1201..2501).collect::<Vec<_>>()).await.expect("rows");
    assert!(rows.iter().all(Vec::is_empty), "no row beyond the end");
    file.truncate(100_000).await.expect("cut");
    file.flush().await.expect("flush");
    same(&b.contents(ino).await, &data[..100_000], "contents");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_readers_fetch_a_chunk_once() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let fa = a.open(ino).await;
    fa.write(0, pattern(1, C)).await.expect("write");
    fa.flush().await.expect("flush");
    world.faults.delay.store(20, SeqCst);
    let gets = world.faults.gets.load(SeqCst);
    let fb = b.open(ino).await;
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..50u64 {
        let fb = fb.clone();
        tasks.spawn(async move { fb.read(i * 100, 100).await.expect("read") });
    }
    tasks.join_all().await;
    assert_eq!(world.faults.gets.load(SeqCst) - gets, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_version_keeps_the_chunks_that_did_not_change() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let fa = a.open(ino).await;
    fa.write(0, pattern(1, 3 * C)).await.expect("write");
    fa.flush().await.expect("flush");
    same(&b.contents(ino).await, &pattern(1, 3 * C), "contents");
    let gets = world.faults.gets.load(SeqCst);
    fa.write(C as u64, pattern(2, 10)).await.expect("write");
    fa.flush().await.expect("flush");
    let mut wanted = pattern(1, 3 * C).to_vec();
    wanted[C..C + 10].copy_from_slice(&pattern(2, 10));
    same(&b.contents(ino).await, &wanted, "contents");
    let fetched = world.faults.gets.load(SeqCst) - gets;
    assert!(fetched <= 3, "{fetched} objects for one changed chunk");
    same(&b.contents(ino).await, &wanted, "contents");
    assert_eq!(world.faults.gets.load(SeqCst) - gets, fetched, "all is on the disk");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_serves_what_was_written_and_read_after_a_remount() {
    let world = World::new();
    let a = world.node().await;
    let ino = a.create("f").await;
    let data = pattern(1, 2 * C + 9);
    let fa = a.open(ino).await;
    fa.write(0, data.clone()).await.expect("write");
    fa.flush().await.expect("flush");
    a.settled(ino, 3).await;
    drop(fa);
    let a = world.remount(a).await;
    world.delete_all_objects().await;
    same(&a.contents(ino).await, &data, "without the bucket");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replaced_objects_are_looked_up_again_and_lost_ones_reported() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let fa = a.open(ino).await;
    fa.write(0, pattern(1, C)).await.expect("write");
    fa.flush().await.expect("flush");
    // b knows the old list, then the object behind it is replaced and deleted.
    let fb = b.open(ino).await;
    fb.write(50 * C as u64, Bytes::from_static(b"x")).await.expect("keeps b from adopting the new version");
    fa.write(0, pattern(2, C)).await.expect("write");
    fa.flush().await.expect("flush");
    world.delete_trash(&a).await;
    same(&fb.read(0, C as u32).await.expect("read"), &pattern(2, C), "the new object");

    world.delete_all_objects().await;
    let e = world.node().await.open(ino).await.read(0, 10).await.expect_err("lost");
    assert_eq!(e.kind(), Kind::Corrupt, "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_file_is_dropped() {
    let world = World::new();
    let a = world.node().await;
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    file.write(0, pattern(1, 2 * C)).await.expect("write");
    a.files.forget(ino).await;
    assert_eq!(a.files.dirty_count(), 0);
    drop(file);
    for _ in 0..100 {
        if world.object_count().await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} objects are left", world.object_count().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_during_a_fetch_stays() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let fa = a.open(ino).await;
    fa.write(0, pattern(1, C)).await.expect("write");
    fa.flush().await.expect("flush");
    world.faults.delay.store(100, SeqCst);
    let fb = b.open(ino).await;
    let reader = tokio::spawn({
        let fb = fb.clone();
        async move { fb.read(0, 10).await.expect("read") }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    fb.write(500, pattern(2, 1000)).await.expect("write");
    reader.await.expect("read");
    let mut wanted = pattern(1, C).to_vec();
    wanted[500..1500].copy_from_slice(&pattern(2, 1000));
    same(&b.read_all(&fb).await, &wanted, "the write over what was fetched");

    // The same for a cut.
    drop(fa);
    let c = world.node().await;
    let fc = c.open(ino).await;
    let reader = tokio::spawn({
        let fc = fc.clone();
        async move { fc.read(0, 10).await.expect("read") }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    fc.truncate(700).await.expect("cut");
    fc.truncate(C as u64).await.expect("longer");
    reader.await.expect("read");
    let mut wanted = pattern(1, C).to_vec();
    wanted[700..].fill(0);
    same(&c.read_all(&fc).await, &wanted, "zeros over what was fetched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scattered_writes_become_few_objects() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    let mut wanted = pattern(1, 2 * C).to_vec();
    file.write(0, pattern(1, 2 * C)).await.expect("write");
    file.flush().await.expect("flush");
    let puts = world.faults.puts.load(SeqCst);
    for i in 0..300usize {
        let at = (i * 7919 * 16) % (2 * C - 20);
        file.write(at as u64, pattern(i as u64, 20)).await.expect("write");
        wanted[at..at + 20].copy_from_slice(&pattern(i as u64, 20));
    }
    file.flush().await.expect("flush");
    assert!(world.faults.puts.load(SeqCst) - puts <= 4, "a chunk with many changes is written as a whole");
    let rows = a.meta.extents(ino, &[0, 1]).await.expect("rows");
    assert!(rows.iter().all(|r| r.len() <= 8));
    same(&b.contents(ino).await, &wanted, "another mount");
    assert_eq!(world.kept_bytes(&b, ino).await, 2 * C as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_evictor_takes_what_can_be_fetched_again_and_nothing_else() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let (clean, dirty) = (a.create("clean").await, a.create("dirty").await);
    let fa = a.open(clean).await;
    fa.write(0, pattern(1, 4 * C)).await.expect("write");
    fa.flush().await.expect("flush");

    let (fc, fd) = (b.open(clean).await, b.open(dirty).await);
    same(&b.read_all(&fc).await, &pattern(1, 4 * C), "filled");
    b.settled(clean, 4).await;
    world.faults.fail_puts.store(u32::MAX, SeqCst);
    fd.write(0, pattern(2, 4 * C)).await.expect("write");
    let _ = fd.flush().await.expect_err("no bucket");
    assert!(b.cache.make_room(1 << 30), "the clean one gives its chunks back, although it is in use");
    world.faults.fail_puts.store(0, SeqCst);
    let gets = world.faults.gets.load(SeqCst);
    same(&b.read_all(&fc).await, &pattern(1, 4 * C), "fetched again");
    assert!(world.faults.gets.load(SeqCst) > gets);
    same(&b.read_all(&fd).await, &pattern(2, 4 * C), "what is nowhere else stays");
    fd.flush().await.expect("flush");
    same(&a.contents(dirty).await, &pattern(2, 4 * C), "another mount");
}

/// A read that began when the bytes were the content's own, and looks at the disk when the evictor has them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_what_is_handed_to_the_index_and_evicted_under_a_read_is_read_again() {
    let world = World::new();
    let a = world.node().await;
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    // Complete chunks are the index's as soon as the bucket has them.
    world.faults.fail_puts.store(u32::MAX, SeqCst);
    file.write(0, pattern(1, 4 * C)).await.expect("write");
    let (len, parts) = file.parts(0, 2 * C).expect("known");
    assert!(parts.iter().all(|(_, _, part)| matches!(part, Part::Local(_))), "{parts:?}");
    let all = file.gather(len, parts.clone()).await.expect("gather").expect("there");
    same(&all, &pattern(1, 4 * C)[..2 * C], "on the disk");
    world.faults.fail_puts.store(0, SeqCst);
    file.flush().await.expect("flush");
    a.settled(ino, 4).await;
    assert!(a.cache.make_room(1 << 30));
    assert_eq!(file.gather(len, parts).await.expect("gather"), None, "it is gone");
    same(&a.read_all(&file).await, &pattern(1, 4 * C), "fetched again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_in_order_finds_the_next_chunks_there() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let fa = a.open(ino).await;
    fa.write(0, pattern(1, 40 * C)).await.expect("write");
    fa.flush().await.expect("flush");
    let fb = b.open(ino).await;
    for i in 0..8u64 {
        fb.read(i * 16_384, 16_384).await.expect("read");
    }
    b.settled(ino, 10).await;
    // A reader of one place does not pull the rest.
    let c = world.node().await;
    let fc = c.open(ino).await;
    for _ in 0..3 {
        fc.read(38 * C as u64, 100).await.expect("read");
        fc.read(5 * C as u64, 100).await.expect("read");
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let cache = c.cache.in_use(&crate::chunk::cache::ContentKey::File(ino)).expect("in use");
    assert!(cache.filled_bytes() <= 4 * C as u64, "{}", cache.filled_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trash_is_emptied_after_its_grace() {
    let world = World::new();
    let a = world.node().await;
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    for seed in 0..3 {
        file.write(0, pattern(seed, 2 * C)).await.expect("write");
        file.flush().await.expect("flush");
    }
    assert_eq!(a.files.sweep(Duration::from_secs(60)).await.expect("sweep"), 0, "not yet");
    assert_eq!(world.object_count().await, 6);
    assert_eq!(a.files.sweep(Duration::ZERO).await.expect("sweep"), 4);
    assert_eq!(world.object_count().await, 2);
    assert_eq!(a.files.sweep(Duration::ZERO).await.expect("sweep"), 0);
    same(&world.node().await.contents(ino).await, &pattern(2, 2 * C), "what is referred to stays");
}
