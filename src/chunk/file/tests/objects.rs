//! What comes back from the bucket is what was put there, or an error.

use std::sync::atomic::Ordering::SeqCst;

use super::room::Tmpfs;
use super::world::{CHUNK, World, pattern, same};
use crate::error::Kind;
use crate::meta::kv::{Key, Kv, Outcome, Txn, Write, inode_map};
use crate::types::{Extent, Ino, ObjectId, ObjectSum, SessionId};

const C: usize = CHUNK as usize;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_says_what_its_objects_are_held_to() {
    let world = World::new();
    let a = world.node().await;
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    let data = pattern(1, C + 5000);
    file.write(0, data.clone()).await.expect("write");
    file.flush().await.expect("flush");
    file.write(100, pattern(2, 50)).await.expect("write");
    file.flush().await.expect("flush");
    let rows = a.meta.extents(ino, &[0, 1]).await.expect("rows");
    let sum = |e: &Extent| e.sum.expect("a checksum");
    assert_eq!(rows[0].len(), 3, "{rows:?}");
    // The parts of the object that was written over keep the sum of all of it.
    assert_eq!(sum(&rows[0][0]), ObjectSum::of(&data[..C]));
    assert_eq!(sum(&rows[0][2]), ObjectSum::of(&data[..C]));
    assert_eq!(sum(&rows[0][1]), ObjectSum::of(&pattern(2, 50)));
    assert_eq!(sum(&rows[1][0]), ObjectSum::of(&data[C..]));

    let put = a.files.put(data.clone()).await.expect("put");
    assert_eq!(sum(&put[1].1[0]), ObjectSum::of(&data[C..]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_changed_on_the_way_are_asked_for_again() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    let data = pattern(1, 2 * C);
    file.write(0, data.clone()).await.expect("write");
    file.flush().await.expect("flush");
    world.faults.flip_bodies.store(1, SeqCst);
    same(&b.contents(ino).await, &data, "contents");
    assert_eq!(world.faults.flip_bodies.load(SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_changed_in_the_bucket_reach_nobody() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    let data = pattern(1, C);
    file.write(0, data.clone()).await.expect("write");
    // A second object in the chunk, so that a part of the first is all that is needed of it.
    file.flush().await.expect("flush");
    file.write(0, pattern(2, C / 2)).await.expect("write");
    file.flush().await.expect("flush");
    let rows = a.meta.extents(ino, &[0]).await.expect("rows");
    let spoiled = rows[0][1].object;

    world.faults.flip_bodies.store(u32::MAX, SeqCst);
    let reader = b.open(ino).await;
    // The byte that differs lies in the middle of an object; no byte of it is given out.
    let e = reader.read(0, 10).await.expect_err("spoiled");
    assert_eq!(e.kind(), Kind::Corrupt, "{e}");
    let e = reader.read(C as u64 - 10, 10).await.expect_err("spoiled");
    assert_eq!(e.kind(), Kind::Corrupt, "{e}");
    assert!(e.to_string().contains("chunks/"), "names the object: {e}");
    assert!(e.to_string().contains("BLAKE3"), "{e}");
    assert!(rows[0].iter().any(|row| e.to_string().contains(&format!("/{}", row.object.seq))), "{e}");

    // Nothing of it stayed in the cache either, and the bytes come once the bucket has them.
    world.faults.flip_bodies.store(0, SeqCst);
    let mut wanted = data.to_vec();
    wanted[..C / 2].copy_from_slice(&pattern(2, C / 2));
    same(&b.read_all(&reader).await, &wanted, "contents");

    // Too short is as wrong as different.
    let short = crate::source::bucket::Object::FileChunk(spoiled);
    world.bucket.put(&short, data.slice(..C - 1)).await.expect("put");
    let e = world.node().await.open(ino).await.read(C as u64 - 10, 10).await.expect_err("short");
    assert_eq!(e.kind(), Kind::Corrupt, "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_disk_that_cannot_keep_them_is_no_way_round_the_checksum() {
    let world = World::new();
    let disk = Tmpfs::mount(&world.path().join("small"), "1m");
    let (a, b) = (world.node().await, world.node_at(disk.0.join("cache")).await);
    disk.fill();
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    let data = pattern(1, C);
    file.write(0, data.clone()).await.expect("write");
    file.flush().await.expect("flush");
    let reader = b.open(ino).await;
    world.faults.flip_bodies.store(u32::MAX, SeqCst);
    assert_eq!(reader.read(0, 10).await.expect_err("spoiled").kind(), Kind::Corrupt);
    world.faults.flip_bodies.store(0, SeqCst);
    let gets = world.faults.gets.load(SeqCst);
    same(&b.read_all(&reader).await, &data, "contents");
    let first = world.faults.gets.load(SeqCst) - gets;
    same(&reader.read(77, 1000).await.expect("read"), &data[77..1077], "a piece");
    let again = world.faults.gets.load(SeqCst) - gets - first;
    assert!(first <= 2, "{first}: one for the disk in vain, one for the reader");
    assert_eq!(again, 0, "an object that was checked just now serves the next reads too");
}

/// A list as 0.1.0 wrote it: without the last field.
async fn set_old_row(world: &World, ino: Ino, rows: &[(u32, u32, ObjectId, u32)]) {
    let raw = rmp_serde::to_vec(rows).expect("encode");
    let key = Key::new(inode_map(ino.0), "c0");
    let txn = Txn { write: vec![Write::Set(key, raw.into())], ..Txn::default() };
    assert_eq!(world.kv.commit(txn).await.expect("commit"), Outcome::Applied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_checksum_are_read_as_before() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    let data = pattern(1, C);
    file.write(0, data.clone()).await.expect("write");
    file.flush().await.expect("flush");
    let e = a.meta.extents(ino, &[0]).await.expect("rows")[0][0];
    set_old_row(&world, ino, &[(e.start, e.len, e.object, e.object_offset)]).await;
    assert_eq!(a.meta.extents(ino, &[0]).await.expect("rows")[0], [Extent { sum: None, ..e }]);
    let reader = b.open(ino).await;
    same(&b.read_all(&reader).await, &data, "contents");
    // What is written from now on has one, beside what has none.
    reader.write(5, pattern(2, 10)).await.expect("write");
    reader.flush().await.expect("flush");
    let rows = b.meta.extents(ino, &[0]).await.expect("rows");
    assert_eq!(rows[0].iter().map(|e| e.sum.is_some()).collect::<Vec<_>>(), [false, true, false]);
    let mut wanted = data.to_vec();
    wanted[5..15].copy_from_slice(&pattern(2, 10));
    same(&world.node().await.contents(ino).await, &wanted, "contents");
}

#[test]
fn a_checksum_takes_few_bytes() {
    let object = ObjectId { session: SessionId::random(), seq: 1000 };
    let with = Extent { start: 0, len: 4 << 20, object, object_offset: 0, sum: Some(ObjectSum::of(b"x")) };
    let len = |e: &Extent| rmp_serde::to_vec(e).expect("encode").len();
    assert!(len(&with) <= len(&Extent { sum: None, ..with }) + 24);
}
