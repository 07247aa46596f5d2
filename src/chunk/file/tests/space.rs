//! Holes, far places, and chunks that files share.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::world::{CHUNK, Node, World, pattern, same, writeback};
use crate::chunk::file::{Allocate, FileContent, MAX_SIZE};
use crate::error::Kind;
use crate::types::Ino;

const C: u64 = CHUNK as u64;
const PUNCH: Allocate = Allocate { zero: true, keep_size: true };
const GROW: Allocate = Allocate { zero: false, keep_size: false };

/// A file of whole chunks that is committed.
async fn stored(node: &Node, name: &str, seed: u64, chunks: u64) -> (Ino, Arc<FileContent>, Bytes) {
    let ino = node.create(name).await;
    let file = node.open(ino).await;
    let data = pattern(seed, (chunks * C) as usize);
    file.write(0, data.clone()).await.expect("write");
    file.flush().await.expect("flush");
    (ino, file, data)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_punched_hole_gives_its_objects_back() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let (ino, file, data) = stored(&a, "f", 1, 4).await;
    let puts = world.faults.put_bytes.load(SeqCst);
    file.allocate(C - 10, 2 * C + 20, PUNCH).await.expect("punch");
    let mut expected = data.to_vec();
    expected[C as usize - 10..3 * C as usize + 10].fill(0);
    same(&a.read_all(&file).await, &expected, "before the flush");
    assert_eq!(file.next_data(C - 10).await.expect("data"), Some(3 * C + 10));
    assert_eq!(file.next_hole(0).await.expect("hole"), Some(C - 10));
    let attr = file.flush().await.expect("flush");
    assert_eq!((attr.size, attr.blocks), (4 * C, (2 * C - 20).div_ceil(512)));
    assert_eq!(world.faults.put_bytes.load(SeqCst), puts, "nothing is uploaded for a hole");
    same(&b.contents(ino).await, &expected, "on another mount");
    assert_eq!(world.kept_bytes(&a, ino).await, 2 * C, "the objects of the two chunks are gone");
    // The same again and what lies beyond the end change nothing.
    file.allocate(C, C, PUNCH).await.expect("again");
    file.allocate(4 * C, C, PUNCH).await.expect("beyond");
    file.allocate(5 * C, 7, GROW).await.expect("grow");
    file.write(2 * C, pattern(2, 100)).await.expect("write into the hole");
    file.flush().await.expect("flush");
    expected[2 * C as usize..][..100].copy_from_slice(&pattern(2, 100));
    expected.resize(5 * C as usize + 7, 0);
    same(&b.contents(ino).await, &expected, "grown");
}

/// The commit brings bytes that the file did not have before; the hole in them is nowhere but in the bookkeeping.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_hole_made_while_a_commit_is_on_its_way_stays() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    for (name, len, hole) in [("row", 100, 10..50), ("chunk", C, 10..50), ("chunks", 3 * C, C / 2..2 * C + 7)]
    {
        for heard in [true, false] {
            let ino = a.create(&format!("{name}-{heard}")).await;
            let file = a.open(ino).await;
            let mut expected = pattern(3, len as usize).to_vec();
            file.write(0, Bytes::copy_from_slice(&expected)).await.expect("write");
            let gate = world.kv.gate.lock().await;
            world.kv.lose_replies(u32::from(!heard));
            let flush = tokio::spawn({
                let file = Arc::clone(&file);
                async move { file.flush().await }
            });
            while file.state().committing.is_none() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            if heard {
                file.allocate(hole.start, hole.end - hole.start, PUNCH).await.expect("punch");
            }
            drop(gate);
            assert_eq!(flush.await.expect("task").is_ok(), heard);
            if !heard {
                file.allocate(hole.start, hole.end - hole.start, PUNCH).await.expect("punch");
            }
            expected[hole.start as usize..hole.end as usize].fill(0);
            same(&a.read_all(&file).await, &expected, name);
            file.flush().await.expect("flush");
            same(&a.read_all(&file).await, &expected, name);
            same(&b.contents(ino).await, &expected, name);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holes_and_writes_of_two_mounts_are_merged() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let (ino, file, data) = stored(&a, "f", 1, 3).await;
    let other = b.open(ino).await;
    file.allocate(0, C + 5, PUNCH).await.expect("punch");
    other.write(2 * C, pattern(5, 100)).await.expect("write");
    other.flush().await.expect("flush");
    file.flush().await.expect("flush over it");
    let mut expected = data.to_vec();
    expected[..C as usize + 5].fill(0);
    expected[2 * C as usize..][..100].copy_from_slice(&pattern(5, 100));
    same(&world.node().await.contents(ino).await, &expected, "both");
    world.kept_bytes(&a, ino).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hole_outlives_a_crash_with_the_journal() {
    for (crash_before, seed) in [(true, 1), (false, 2)] {
        let world = World::new();
        let a = world.node_with(writeback()).await;
        let (ino, file, data) = stored(&a, "f", seed, 3).await;
        // Journalled, and nothing of it can be uploaded.
        world.faults.fail_puts.store(u32::MAX, SeqCst);
        file.write(C / 2, pattern(7, C as usize)).await.expect("write");
        file.save().await.expect("save");
        // Goes through what waits and what is committed; the entry is corrected at once.
        file.allocate(C, C, PUNCH).await.expect("punch");
        file.write(C + 100, pattern(8, 50)).await.expect("write into the hole");
        if !crash_before {
            file.save().await.expect("save");
        }
        drop(file);
        let (a, resumed) = world.crash(a, || ()).await;
        assert_eq!(resumed, 1);
        world.faults.fail_puts.store(0, SeqCst);
        let mut expected = data.to_vec();
        expected[C as usize / 2..][..C as usize].copy_from_slice(&pattern(7, C as usize));
        expected[C as usize..][..C as usize].fill(0);
        if !crash_before {
            expected[C as usize + 100..][..50].copy_from_slice(&pattern(8, 50));
        }
        let there = a.contents(ino).await;
        same(&there, &expected, "resumed");
        a.drained().await;
        same(&world.node().await.contents(ino).await, &expected, "drained");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_may_reach_far() {
    let world = World::with_chunk(4 << 20);
    let (a, b) = (world.node().await, world.node().await);
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    file.truncate(MAX_SIZE).await.expect("to the end of what there is");
    for (result, what) in [
        (file.truncate(MAX_SIZE + 1).await, "cut"),
        (file.allocate(MAX_SIZE - 1, 2, GROW).await, "allocate"),
        (file.write(MAX_SIZE, pattern(1, 1)).await.map(drop), "write"),
    ] {
        assert_eq!(result.expect_err(what).kind(), Kind::TooLarge, "{what}");
    }
    assert_eq!(file.write(MAX_SIZE - 3, pattern(1, 10)).await.expect("what fits"), 3);
    let places = [0, 5 << 40, (5 << 40) + (9 << 20), MAX_SIZE / 2, MAX_SIZE - 3];
    for at in &places[..4] {
        file.write(*at, pattern(*at, 5000)).await.expect("write");
    }
    file.flush().await.expect("flush");
    for file in [&file, &b.open(ino).await] {
        let mut at = 0;
        for place in places {
            assert_eq!(file.next_data(at).await.expect("data"), Some(place));
            let len = if place == MAX_SIZE - 3 { 3 } else { 5000 };
            let seed = if len == 3 { 1 } else { place };
            same(&file.read(place, 5000).await.expect("read"), &pattern(seed, len), &place.to_string());
            at = file.next_hole(place).await.expect("hole").expect("a hole");
            assert_eq!(at, place + len as u64);
            assert_eq!(file.read(place.saturating_sub(100).max(5000), 50).await.expect("read"), vec![0; 50]);
        }
        assert_eq!((file.next_data(at).await.expect("none"), at), (None, MAX_SIZE));
    }
    // Far holes, and cuts through what is far.
    let other = b.open(ino).await;
    other.allocate(1 << 41, MAX_SIZE - (1 << 42), PUNCH).await.expect("punch");
    other.flush().await.expect("flush");
    let file = a.open(ino).await;
    assert_eq!(file.next_data(5000).await.expect("data"), Some(MAX_SIZE - 3));
    file.truncate(6 << 40).await.expect("cut");
    assert_eq!(file.next_data(5000).await.expect("data"), None);
    file.flush().await.expect("flush");
    same(&b.open(ino).await.read(0, 5000).await.expect("read"), &pattern(0, 5000), "the near end");
    drop((file, other));
    a.delete("f", ino).await;
    world.delete_trash(&a).await;
    assert_eq!(world.object_count().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_objects_stay_as_long_as_somebody_has_them() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    let (ino, file, data) = stored(&a, "f", 1, 4).await;
    let puts = world.faults.put_bytes.load(SeqCst);
    let (copy, twice) = (a.create("copy").await, a.create("twice").await);
    for (to, times) in [(copy, 1), (twice, 2)] {
        let to = a.open(to).await;
        for n in 0..times {
            assert_eq!(to.copy_from(&file, 0, 4 * n * C, u64::MAX / 4).await.expect("copy"), 4 * C);
        }
        assert_eq!(to.copy_from(&file, 4 * C, 0, 1).await.expect("at the end"), 0);
    }
    assert_eq!(world.faults.put_bytes.load(SeqCst), puts, "nothing is uploaded");
    assert_eq!(world.object_count().await, 4);
    same(&b.contents(copy).await, &data, "the copy");
    same(&b.contents(twice).await, &[&data[..], &data[..]].concat(), "both copies");
    // One after the other lets go of them.
    file.write(0, pattern(2, data.len())).await.expect("write");
    file.flush().await.expect("flush");
    let twin = a.open(twice).await;
    twin.allocate(0, 5 * C, PUNCH).await.expect("punch");
    twin.flush().await.expect("flush");
    drop(twin);
    a.delete("copy", copy).await;
    world.delete_trash(&a).await;
    let mut expected = vec![0; 5 * C as usize];
    expected.extend_from_slice(&data[C as usize..]);
    same(&world.node().await.contents(twice).await, &expected, "what the last one has");
    same(&world.node().await.contents(ino).await, &pattern(2, data.len()), "what was written anew");
    assert_eq!(world.object_count().await, 7);
    a.delete("twice", twice).await;
    world.delete_trash(&a).await;
    assert_eq!(world.object_count().await, 4);
    world.kept_bytes(&a, ino).await;
}

/// Two files that two mounts write, punch and copy from each other, in turns; what is in the trash goes at once.
async fn copies(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let chunk = [4u32, 16][seed as usize % 2] << 10;
    let unit = chunk as usize;
    let world = World::with_chunk(chunk);
    let nodes = [world.node().await, world.node().await];
    let span = 8 * unit;
    let inos = [nodes[0].create("f").await, nodes[0].create("g").await];
    let mut bytes: [Vec<u8>; 2] = [Vec::new(), Vec::new()];
    for step in 0..80 {
        let what = format!("seed {seed} step {step}");
        let node = &nodes[rng.random_range(0..2)];
        let files = [node.open(inos[0]).await, node.open(inos[1]).await];
        for _ in 0..rng.random_range(1..6) {
            let n = rng.random_range(0..2);
            let (at, len) = (rng.random_range(0..span), rng.random_range(1..4 * unit));
            let file = &files[n];
            let grow = |bytes: &mut Vec<u8>, end: usize| {
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
            };
            match rng.random_range(0..10) {
                0..3 => {
                    let data = pattern(seed * 1000 + step, len);
                    file.write(at as u64, data.clone()).await.expect(&what);
                    grow(&mut bytes[n], at + len);
                    bytes[n][at..at + len].copy_from_slice(&data);
                }
                3 => {
                    file.allocate(at as u64, len as u64, PUNCH).await.expect(&what);
                    let end = (at + len).min(bytes[n].len());
                    bytes[n][at.min(end)..end].fill(0);
                }
                4 => {
                    file.truncate(at as u64).await.expect(&what);
                    bytes[n].resize(at, 0);
                }
                _ => {
                    let m = rng.random_range(0..2);
                    // Mostly as programs do: the same place within a chunk.
                    let from = match rng.random_bool(0.8) {
                        true => at % unit + rng.random_range(0..8) * unit,
                        false => rng.random_range(0..span),
                    };
                    let (at, len) =
                        if rng.random_bool(0.3) { (at / unit * unit, 3 * unit) } else { (at, len) };
                    let from = if at % unit == 0 { from / unit * unit } else { from };
                    if n == m && from.abs_diff(at) < len {
                        continue;
                    }
                    let expected = len.min(bytes[m].len().saturating_sub(from));
                    // Within one file the copy may make more to copy.
                    let len = if n == m { len.min(expected.max(1)) } else { len };
                    let mut done = 0;
                    loop {
                        let (from, to) = ((from + done) as u64, (at + done) as u64);
                        let more = file.copy_from(&files[m], from, to, (len - done) as u64).await;
                        match more.expect(&what) {
                            0 => break,
                            more => done += more as usize,
                        }
                        if done == len {
                            break;
                        }
                    }
                    assert_eq!(done, expected, "{what}");
                    if done > 0 {
                        let data = bytes[m][from..from + done].to_vec();
                        grow(&mut bytes[n], at + done);
                        bytes[n][at..at + done].copy_from_slice(&data);
                    }
                }
            }
            same(&node.read_all(file).await, &bytes[n], &what);
        }
        for file in &files {
            file.flush().await.expect(&what);
        }
        world.delete_trash(node).await;
        drop(files);
        for (ino, bytes) in inos.iter().zip(&bytes) {
            same(&nodes[rng.random_range(0..2)].contents(*ino).await, bytes, &what);
        }
    }
    let fresh = world.node().await;
    for (ino, bytes) in inos.iter().zip(&bytes) {
        same(&fresh.contents(*ino).await, bytes, &format!("seed {seed} at the end"));
    }
    for (name, ino) in ["f", "g"].iter().zip(inos) {
        nodes[0].delete(name, ino).await;
    }
    world.delete_trash(&fresh).await;
    for _ in 0..100 {
        if world.object_count().await == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("seed {seed}: {} objects are left", world.object_count().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_agree_with_arrays() {
    for seed in super::model::seeds(8) {
        copies(seed).await;
    }
}
