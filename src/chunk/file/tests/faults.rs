//! Stores and metadata that fail, and mounts that get in each other's way.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;

use super::world::{CHUNK, World, pattern, same};
use crate::error::Kind;
use crate::meta::SetAttr;

const C: usize = CHUNK as usize;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_flush_keeps_the_data_and_the_next_one_brings_it() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let data = pattern(1, 2 * C + 100);
    {
        let file = a.open(ino).await;
        world.faults.fail_puts.store(u32::MAX, SeqCst);
        file.write(0, data.clone()).await.expect("the disk takes it");
        let e = file.flush().await.expect_err("the bucket is down");
        assert_eq!(e.kind(), Kind::Unavailable, "{e}");
        assert!(e.to_string().contains(&format!("inode {ino}")), "{e}");
        assert!(file.is_dirty());
        same(&a.read_all(&file).await, &data, "contents");
    }
    // Nobody has it open; it is still there, and nothing was committed.
    assert_eq!(a.files.dirty_count(), 1);
    same(&b.contents(ino).await, &Bytes::new(), "contents");
    same(&a.contents(ino).await, &data, "contents");
    world.faults.fail_puts.store(0, SeqCst);
    a.files.flush_all().await.expect("the bucket is back");
    assert_eq!(a.files.dirty_count(), 0);
    same(&b.contents(ino).await, &data, "contents");
    assert_eq!(
        world.kept_bytes(&b, ino).await,
        data.len() as u64,
        "every object that is kept is referred to"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_ahead_that_fail_are_made_good_at_flush() {
    let world = World::new();
    let a = world.node().await;
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    world.faults.fail_puts.store(30, SeqCst);
    let data = pattern(1, 4 * C);
    file.write(0, data.clone()).await.expect("write");
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.faults.fail_puts.store(0, SeqCst);
    file.flush().await.expect("flush");
    same(&world.node().await.contents(ino).await, &data, "contents");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_two_mounts_wrote_at_once_is_merged() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let base = pattern(1, 2 * C);
    let (fa, fb) = (a.open(ino).await, b.open(ino).await);
    fa.write(0, base.clone()).await.expect("write");
    fa.flush().await.expect("flush");
    let fb = {
        drop(fb);
        b.open(ino).await
    };
    fa.write(100, pattern(2, 50)).await.expect("write");
    fb.write(C as u64 + 7, pattern(3, 60)).await.expect("write");
    fb.write(2 * C as u64, pattern(4, 5)).await.expect("one's file grows");
    fa.flush().await.expect("the first");
    fb.flush().await.expect("merges");
    let mut wanted = base.to_vec();
    wanted[100..150].copy_from_slice(&pattern(2, 50));
    wanted[C + 7..C + 67].copy_from_slice(&pattern(3, 60));
    wanted.extend_from_slice(&pattern(4, 5));
    same(&b.read_all(&fb).await, &wanted, "the merger sees both");
    same(&a.contents(ino).await, &wanted, "contents");
    same(&world.node().await.contents(ino).await, &wanted, "contents");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_that_fails_keeps_the_data_dirty() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    file.write(0, pattern(1, C + 5)).await.expect("write");
    world.kv.fail_commits(1000);
    let e = file.flush().await.expect_err("no metadata");
    assert_eq!(e.kind(), Kind::Unavailable, "{e}");
    file.write(3, pattern(2, 10)).await.expect("one goes on writing");
    world.kv.fail_commits(0);
    file.flush().await.expect("flush");
    let mut wanted = pattern(1, C + 5).to_vec();
    wanted[3..13].copy_from_slice(&pattern(2, 10));
    same(&b.contents(ino).await, &wanted, "another mount");
    assert_eq!(a.files.dirty_count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_whose_reply_was_lost_is_made_good() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let (fa, data) = (a.open(ino).await, pattern(1, C + 5));
    fa.write(0, data.clone()).await.expect("write");
    world.kv.lose_replies(1);
    fa.flush().await.expect_err("the reply is lost");
    same(&b.contents(ino).await, &data, "it was applied all the same");
    let bytes = world.faults.put_bytes.load(SeqCst);
    fa.flush().await.expect("again");
    assert_eq!(world.faults.put_bytes.load(SeqCst), bytes, "nothing is uploaded twice");
    same(&b.contents(ino).await, &data, "the same");
    assert_eq!(world.kept_bytes(&a, ino).await, data.len() as u64);

    // Between the lost reply and the second try somebody replaces what it committed. Its objects are in the trash by
    // then: naming them again would lose the data with the next sweep.
    fa.write(0, pattern(2, C)).await.expect("write");
    world.kv.lose_replies(1);
    fa.flush().await.expect_err("the reply is lost");
    let fb = b.open(ino).await;
    fb.write(0, pattern(3, C)).await.expect("write");
    fb.flush().await.expect("flush");
    fa.flush().await.expect("the later flush wins");
    a.files.sweep(Duration::ZERO).await.expect("sweep");
    let mut wanted = data.to_vec();
    wanted[..C].copy_from_slice(&pattern(2, C));
    same(&world.node().await.contents(ino).await, &wanted, "after the sweep");
}

/// As before, and then this mount changes the mode: that the last change is its own says nothing of what it had committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_what_others_replaced_is_not_named_again_whoever_was_the_last() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let fa = a.open(ino).await;
    fa.write(0, pattern(1, C)).await.expect("write");
    world.kv.lose_replies(1);
    fa.flush().await.expect_err("the reply is lost");
    let fb = b.open(ino).await;
    fb.write(0, pattern(2, C)).await.expect("write");
    fb.flush().await.expect("flush");
    a.meta.setattr(ino, SetAttr { mode: Some(0o600), ..SetAttr::default() }).await.expect("chmod");
    fa.flush().await.expect("the later flush wins");
    a.files.sweep(Duration::ZERO).await.expect("sweep");
    same(&world.node().await.contents(ino).await, &pattern(1, C), "after the sweep");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attributes_that_were_read_too_early_take_nothing_back() {
    let world = World::new();
    let a = world.node().await;
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    file.write(0, pattern(1, 6000)).await.expect("write");
    file.flush().await.expect("flush");
    let early = a.meta.getattr(ino).await.expect("attr");
    file.write(0, pattern(2, 7000)).await.expect("write");
    file.flush().await.expect("flush");
    // An open that read the attributes before the flush and arrives after it.
    let same_file = a.files.open(&early).expect("open");
    same(&a.read_all(&same_file).await, &pattern(2, 7000), "one's own writes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_gone_says_so() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    file.write(0, pattern(1, 5000)).await.expect("write");
    b.delete("f", ino).await;
    let e = file.flush().await.expect_err("gone");
    assert_eq!(e.kind(), Kind::Stale, "{e}");
    assert_eq!(a.files.dirty_count(), 0, "it is not kept for ever");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_end_nothing_touches_the_cache() {
    let world = World::new();
    let a = world.node().await;
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    file.write(0, pattern(1, 3 * C + 1)).await.expect("write");
    a.files.close(Duration::from_secs(5)).await.expect("everything is flushed");
    assert_eq!(file.write(0, Bytes::from_static(b"x")).await.expect_err("closed").kind(), Kind::Unavailable);
    same(&world.node().await.contents(ino).await, &pattern(1, 3 * C + 1), "another mount");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_bytes_copied_to_fill_a_chunk_are_not_laid_over_newer_ones() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let fa = a.open(ino).await;
    // In the row; b's flush must copy it out.
    fa.write(0, pattern(1, 1000)).await.expect("write");
    fa.flush().await.expect("flush");
    let fb = b.open(ino).await;
    fb.write(5000, pattern(2, 1000)).await.expect("write");
    fa.write(0, pattern(3, 1000)).await.expect("write");
    fa.flush().await.expect("flush");
    fb.flush().await.expect("merges");
    let mut wanted = vec![0; 6000];
    wanted[..1000].copy_from_slice(&pattern(3, 1000));
    wanted[5000..].copy_from_slice(&pattern(2, 1000));
    same(&b.read_all(&fb).await, &wanted, "the merger");
    same(&world.node().await.contents(ino).await, &wanted, "a third mount");

    // The same when a chunk with too many extents is rewritten as a whole.
    drop(fa);
    let fa = a.open(ino).await;
    for i in 0..9 {
        fb.write(7000 + i * 200, pattern(4 + i, 100)).await.expect("write");
    }
    fa.write(0, pattern(20, 1000)).await.expect("write");
    fa.flush().await.expect("flush");
    fb.flush().await.expect("merges");
    wanted.resize(7000 + 1700, 0);
    wanted[..1000].copy_from_slice(&pattern(20, 1000));
    for i in 0..9 {
        let at = 7000 + i * 200;
        wanted[at..at + 100].copy_from_slice(&pattern(4 + i as u64, 100));
    }
    same(&b.read_all(&fb).await, &wanted, "the merger");
    same(&world.node().await.contents(ino).await, &wanted, "a third mount");
}
