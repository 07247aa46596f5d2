//! A bucket that does not answer: for one file, for a while, or for good.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::world::{CHUNK, World, options, pattern, same};
use crate::chunk::file::FilesOptions;
use crate::source::bucket::Patience;

const C: usize = CHUNK as usize;

/// Of six places for uploads one file's take no more than four, and after a moment none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stalled_file_keeps_no_other_waiting() {
    let mut world = World::new();
    world.bucket = world
        .bucket
        .with_patience(Patience { progress: Duration::from_secs(30), total: Duration::from_secs(30) });
    let options = FilesOptions {
        uploads: 6 * C,
        stall: Duration::from_millis(200),
        io_timeout: Duration::from_secs(30),
        ..options()
    };
    let a = world.node_with(options).await;
    let (slow, other) = (a.create("slow").await, a.create("other").await);
    world.faults.hang_at.store(C as u64, SeqCst);
    let stalled = a.open(slow).await;
    let data = pattern(1, 40 * C);
    stalled.write(0, data.clone()).await.expect("nobody waits for the bucket yet");
    let waits = tokio::spawn({
        let stalled = stalled.clone();
        async move { stalled.flush().await }
    });
    let began = Instant::now();
    for seed in 0..10 {
        let file = a.open(other).await;
        file.write(0, pattern(seed, C - 1)).await.expect("write");
        file.flush().await.expect("the other goes on");
        same(&a.contents(other).await, &pattern(seed, C - 1), "and is read");
    }
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert!(!waits.is_finished());
    world.faults.hang_at.store(0, SeqCst);
    waits.await.expect("task").expect("the bucket answers again");
    same(&world.node().await.contents(slow).await, &data, "all of it");
}

/// A writer waits for the uploads of its own file, and for no others'.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_comes_back_in_time_costs_no_error() {
    let world = World::new();
    let a = world.node_with(FilesOptions { io_timeout: Duration::from_secs(30), ..options() }).await;
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    world.faults.fail_puts.store(u32::MAX, SeqCst);
    file.write(0, pattern(1, 2 * C)).await.expect("write");
    let flush = tokio::spawn({
        let file = file.clone();
        async move { file.flush().await }
    });
    // Longer than the bucket's own patience.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!flush.is_finished());
    world.faults.fail_puts.store(0, SeqCst);
    flush.await.expect("task").expect("within the io_timeout");
    let b = world.node_with(FilesOptions { io_timeout: Duration::from_secs(30), ..options() }).await;
    world.faults.fail_gets.store(u32::MAX, SeqCst);
    let other = b.open(ino).await;
    let read = tokio::spawn(async move { other.read(0, 100).await });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!read.is_finished());
    world.faults.fail_gets.store(0, SeqCst);
    same(&read.await.expect("task").expect("read"), &pattern(1, 2 * C)[..100], "contents");
}

/// The close fails, the data stays, goes by itself when the bucket is back, and a second close has nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_bucket_ends_a_close_in_time_and_the_data_goes_later() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    world.faults.fail_puts.store(u32::MAX, SeqCst);
    file.write(0, pattern(1, 3 * C)).await.expect("write");
    let began = Instant::now();
    let e = file.flush().await.expect_err("the bucket is dead");
    assert_eq!(e.kind().errno(), libc::EIO, "{e}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(file.flush().await.is_err(), "as long as it is not there, every close says so");
    drop(file);
    assert_eq!(a.files.dirty_count(), 1, "kept");
    world.faults.fail_puts.store(0, SeqCst);
    // Nobody closes it again.
    let began = Instant::now();
    while a.files.dirty_count() > 0 {
        assert!(began.elapsed() < Duration::from_secs(40), "not tried again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    same(&b.contents(ino).await, &pattern(1, 3 * C), "others");
    assert!(a.open(ino).await.flush().await.is_ok(), "a second close");
    assert_eq!(world.kept_bytes(&b, ino).await, 3 * C as u64);
}

/// Uploads that were applied though their answer was lost leave nothing behind that nobody refers to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_lost_do_no_harm() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    world.faults.lose_replies.store(6, SeqCst);
    world.faults.delay.store(5, SeqCst);
    file.write(0, pattern(1, 5 * C + 3)).await.expect("write");
    file.flush().await.expect("flush");
    world.faults.cut_bodies.store(3, SeqCst);
    same(&b.contents(ino).await, &pattern(1, 5 * C + 3), "bodies that break off are gone on with");
    assert_eq!(world.kept_bytes(&b, ino).await, 5 * C as u64 + 3);
    assert_eq!(a.open(ino).await.flush().await.expect("nothing new").size, 5 * C as u64 + 3);
}
