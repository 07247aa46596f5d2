//! Random operations on two mounts against a plain array of bytes.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::world::{Node, World, pattern, same};
use crate::chunk::file::{Allocate, FileContent};
use crate::types::Ino;

/// One mount's view of the file, while it has it open.
struct Handle {
    file: Arc<FileContent>,
    /// What it must read.
    view: Vec<u8>,
    dirty: bool,
}

fn write(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}

/// `HFMOUNT_SEEDS=100..200` looks further than an ordinary run.
pub fn seeds(usual: u64) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("HFMOUNT_SEEDS") else { return 0..usual };
    let (first, end) = text.split_once("..").expect("HFMOUNT_SEEDS=first..end");
    first.parse().expect("a number")..end.parse().expect("a number")
}

/// What is said to be a hole must be zeros, and one is found where there is no data.
async fn seek(h: &Handle, at: usize, what: &str) {
    let data = h.file.next_data(at as u64).await.expect(what).map(|d| d as usize);
    let hole = h.file.next_hole(at as u64).await.expect(what).map(|d| d as usize);
    if at >= h.view.len() {
        assert_eq!((data, hole), (None, None), "{what}");
        return;
    }
    let end = data.unwrap_or(h.view.len());
    assert!(at <= end && h.view[at..end].iter().all(|b| *b == 0), "{what}: data from {data:?} on");
    let hole = hole.expect(what);
    assert!(at <= hole && hole <= h.view.len(), "{what}");
    if data == Some(at) {
        assert!(hole > at, "{what}");
        assert_eq!(h.file.next_data(hole as u64 - 1).await.expect(what), Some(hole as u64 - 1), "{what}");
    } else {
        assert_eq!(hole, at, "{what}");
    }
}

/// Mounts take turns: one writes and flushes, then the other opens (close-to-open). Everything else is random: sizes,
/// places, cuts, failing uploads and reads, remounts, reads in between.
async fn turns(seed: u64, chunk: u32, steps: usize) {
    let mut rng = StdRng::seed_from_u64(seed);
    let world = World::with_chunk(chunk);
    let mut nodes: Vec<Node> = vec![world.node().await, world.node().await];
    let span = 5 * chunk as usize;
    let (ino, mut committed): (Ino, Vec<u8>) = if seed % 4 == 3 {
        let (ino, bytes) = world.blob(&nodes[0], span - 1234).await;
        (ino, bytes.to_vec())
    } else {
        (nodes[0].create("f").await, Vec::new())
    };
    let mut handle: Option<(usize, Handle)> = None;
    for step in 0..steps {
        let what = format!("seed {seed} step {step}");
        let (node, h) = match &mut handle {
            Some((n, h)) => (*n, h),
            None => {
                let n = rng.random_range(0..2);
                if rng.random_bool(0.1) {
                    let gone = nodes.remove(n);
                    let again = world.remount(gone).await;
                    nodes.insert(n, again);
                }
                let file = nodes[n].open(ino).await;
                let (_, h) = handle.insert((n, Handle { file, view: committed.clone(), dirty: false }));
                (n, h)
            }
        };
        let trace = |op: std::fmt::Arguments<'_>| {
            if std::env::var_os("HFMOUNT_TRACE").is_some() {
                eprintln!("{what} on {node}: {op}");
            }
        };
        match rng.random_range(0..100) {
            0..30 => {
                let at = rng.random_range(0..span);
                let len = match rng.random_range(0..4) {
                    0 => rng.random_range(1..50),
                    1 => rng.random_range(1..5000),
                    2 => chunk as usize - at % chunk as usize,
                    _ => rng.random_range(1..2 * chunk as usize),
                };
                let data = pattern(seed * 1000 + step as u64, len);
                trace(format_args!("write {at} + {len}"));
                h.file.write(at as u64, data.clone()).await.expect("write");
                write(&mut h.view, at, &data);
                h.dirty = true;
            }
            30..40 => {
                let at = rng.random_range(0..span);
                let len = match rng.random_range(0..3) {
                    0 => rng.random_range(1..5000),
                    1 => 2 * chunk as usize,
                    _ => rng.random_range(1..span),
                };
                let how = Allocate { zero: rng.random_bool(0.8), keep_size: rng.random_bool(0.7) };
                trace(format_args!("allocate {at} + {len} {how:?}"));
                h.file.allocate(at as u64, len as u64, how).await.expect("allocate");
                if !how.keep_size && at + len > h.view.len() {
                    h.view.resize(at + len, 0);
                }
                if how.zero {
                    let end = (at + len).min(h.view.len());
                    h.view[at.min(end)..end].fill(0);
                }
                h.dirty = true;
            }
            40..48 => {
                let data = pattern(seed * 1000 + step as u64, rng.random_range(1..3000));
                trace(format_args!("append {}", data.len()));
                let at = h.file.append(data.clone()).await.expect("append");
                assert_eq!(at as usize, h.view.len(), "{what}");
                h.view.extend_from_slice(&data);
                h.dirty = true;
            }
            48..58 => {
                let size = match rng.random_range(0..4) {
                    0 => 0,
                    1 => rng.random_range(0..4200),
                    _ => rng.random_range(0..span),
                };
                trace(format_args!("truncate {size}"));
                h.file.truncate(size as u64).await.expect("truncate");
                h.view.resize(size, 0);
                h.dirty = true;
            }
            58..62 => seek(h, rng.random_range(0..span), &what).await,
            62..75 => {
                let at = rng.random_range(0..span);
                let len = rng.random_range(1..span);
                let end = (at + len).min(h.view.len());
                let wanted = h.view.get(at..end.max(at)).unwrap_or(&[]);
                trace(format_args!("read {at} + {len}"));
                if rng.random_bool(0.2) {
                    nodes[node].cache.make_room(1 << 30);
                }
                let (fail, cut) = (rng.random_bool(0.2), rng.random_bool(0.2));
                world.faults.fail_gets.store(u32::from(fail), SeqCst);
                world.faults.cut_bodies.store(u32::from(cut && !fail), SeqCst);
                let got = h.file.read(at as u64, len as u32).await.expect(&what);
                same(&got, wanted, &what);
                let mut buf = vec![0; len.min(5000)];
                if let Some(n) = h.file.try_read(at as u64, &mut buf) {
                    same(&buf[..n], &wanted[..wanted.len().min(buf.len())], &what);
                }
            }
            75..77 => {
                trace(format_args!("flush that fails"));
                world.faults.fail_puts.store(200, SeqCst);
                let failed = h.file.flush().await.is_err();
                world.faults.fail_puts.store(0, SeqCst);
                if !failed {
                    committed.clone_from(&h.view);
                    h.dirty = false;
                }
            }
            77..90 => {
                trace(format_args!("flush"));
                if rng.random_bool(0.3) {
                    // Whether it was applied is not known; the next one makes it good.
                    world.kv.lose_replies(1);
                    let _ = h.file.flush().await;
                    world.kv.lose_replies(0);
                }
                h.file.flush().await.expect(&what);
                committed.clone_from(&h.view);
                h.dirty = false;
            }
            _ => {
                trace(format_args!("close"));
                if h.dirty {
                    h.file.flush().await.expect(&what);
                    committed.clone_from(&h.view);
                }
                handle = None;
                nodes[node].cache.make_room(if rng.random_bool(0.3) { 1 << 20 } else { 0 });
                for n in &nodes {
                    same(&n.contents(ino).await, &committed, &what);
                }
            }
        }
    }
    if let Some((_, h)) = handle {
        h.file.flush().await.expect("flush");
        committed = h.view;
    }
    same(&world.node().await.contents(ino).await, &committed, &format!("seed {seed} at the end"));
    world.kept_bytes(&nodes[0], ino).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_of_two_mounts_agree_with_an_array() {
    for seed in seeds(12) {
        turns(seed, [4, 16, 64][seed as usize % 3] << 10, 120).await;
    }
}

/// Both mounts have the file open all the time and write their own halves of it, byte runs in the same chunks: nothing that
/// either flushed may be lost.
async fn at_once(seed: u64) {
    let chunk = 16u32 << 10;
    let world = World::with_chunk(chunk);
    let first = world.node().await;
    let ino = first.create("f").await;
    let lanes = 8usize;
    let run = 1000usize;
    let write_lanes = async |node: Node, parity: usize| {
        let mut rng = StdRng::seed_from_u64(seed * 2 + parity as u64);
        let file = node.open(ino).await;
        let mut mine = vec![None; 2 * lanes];
        for i in 0..30u64 {
            let lane = 2 * rng.random_range(0..lanes) + parity;
            let data = pattern(seed * 10_000 + i * 2 + parity as u64, run);
            file.write((lane * run * 5) as u64, data.clone()).await.expect("write");
            mine[lane] = Some(data);
            if rng.random_bool(0.4) {
                file.flush().await.expect("flush");
            }
        }
        file.flush().await.expect("flush");
        (node, mine)
    };
    let second = world.node().await;
    let ((a, mine_a), (b, mine_b)) = tokio::join!(write_lanes(first, 0), write_lanes(second, 1));
    let third = world.node().await;
    for (who, node) in [("a third", &third), ("the first", &a), ("the second", &b)] {
        let file = node.open(ino).await;
        for (lane, data) in mine_a.iter().zip(&mine_b).map(|(a, b)| a.as_ref().or(b.as_ref())).enumerate() {
            let Some(data) = data else { continue };
            let got = file.read((lane * run * 5) as u64, run as u32).await.expect("read");
            same(&got, data, &format!("seed {seed} lane {lane} on {who}"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_either_mount_flushed_is_there() {
    for seed in seeds(10) {
        at_once(seed).await;
    }
}

/// Writers, readers and flushers of one content at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_one_mount_do_not_disturb_each_other() {
    let chunk = 16u32 << 10;
    let world = World::with_chunk(chunk);
    let node = world.node().await;
    let ino = node.create("f").await;
    let lane = 40_000u64;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..6u64 {
        let file = node.open(ino).await;
        tasks.spawn(async move {
            let mut rng = StdRng::seed_from_u64(n);
            let mut view = vec![0u8; lane as usize];
            for i in 0..60u64 {
                let at = rng.random_range(0..lane as usize - 1);
                let len = rng.random_range(1..=(lane as usize - at).min(9000));
                let data = pattern(n * 1000 + i, len);
                file.write(n * lane + at as u64, data.clone()).await.expect("write");
                view[at..at + len].copy_from_slice(&data);
                if rng.random_bool(0.2) {
                    file.flush().await.expect("flush");
                }
                let got = file.read(n * lane, lane as u32).await.expect("read");
                same(&got, &view[..got.len()], &format!("lane {n} after {i}"));
            }
            file.flush().await.expect("flush");
            (n, view)
        });
    }
    let mut wanted = vec![0; 6 * lane as usize];
    for (n, view) in tasks.join_all().await {
        wanted[(n * lane) as usize..((n + 1) * lane) as usize].copy_from_slice(&view);
    }
    let got = world.node().await.contents(ino).await;
    same(&got, &wanted[..got.len()], "another mount");
    assert!(wanted[got.len()..].iter().all(|b| *b == 0));
}
