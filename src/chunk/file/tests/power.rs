//! The power goes at any moment. What was saved is there, whatever the disk kept of the rest.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;
use rand::RngExt;

use super::world::{Node, World, options, pattern, writeback};
use crate::chunk::cache::disk::{Disk, sim::Sim};
use crate::chunk::file::FilesOptions;
use crate::types::Ino;

const CHUNK: u32 = 16 << 10;
const LARGEST: usize = 5 * CHUNK as usize;

/// What a file may be after a power loss: what it was when it was last made safe, and what it became since, mixed byte by byte.
struct Model {
    ino: Ino,
    /// The first one is safe.
    history: VecDeque<Vec<u8>>,
}

impl Model {
    fn now(&self) -> Vec<u8> {
        self.history.back().cloned().expect("never empty")
    }

    fn safe(&mut self) {
        while self.history.len() > 1 {
            self.history.pop_front();
        }
    }

    #[track_caller]
    fn check(&self, got: &[u8], what: &str) {
        assert!(
            self.history.iter().any(|h| h.len() == got.len()),
            "{what}: {} bytes for {:?}",
            got.len(),
            self.history.iter().map(Vec::len).collect::<Vec<_>>()
        );
        for (i, byte) in got.iter().enumerate() {
            let was = |h: &Vec<u8>| h.get(i).copied().unwrap_or(0) == *byte;
            assert!(self.history.iter().any(was), "{what}: byte {i} of {} was never {byte}", got.len());
        }
    }
}

async fn change(node: &Node, model: &mut Model, seed: u64) {
    let file = node.open(model.ino).await;
    let mut now = model.now();
    let steps = rand::rng().random_range(1..4);
    for step in 0..steps {
        match rand::rng().random_range(0..10) {
            0 => {
                let size = rand::rng().random_range(0..=now.len());
                file.truncate(size as u64).await.expect("truncate");
                now.truncate(size);
            }
            1..4 => {
                let len =
                    rand::rng().random_range(1..CHUNK as usize).min(LARGEST - now.len().min(LARGEST - 1));
                let data = pattern(seed * 10 + step, len);
                file.append(data.clone()).await.expect("append");
                now.extend_from_slice(&data);
            }
            _ => {
                let at = rand::rng().random_range(0..=now.len().min(LARGEST - 1));
                let len = rand::rng().random_range(1..2 * CHUNK as usize).min(LARGEST - at);
                let data: Bytes = pattern(seed * 10 + step, len);
                file.write(at as u64, data.clone()).await.expect("write");
                now.resize(now.len().max(at + len), 0);
                now[at..at + len].copy_from_slice(&data);
            }
        }
        model.history.push_back(now.clone());
    }
    if rand::random_bool(0.6) {
        file.save().await.expect("save");
        model.safe();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_saved_outlives_a_power_loss() {
    losses(writeback()).await;
}

/// Without writeback nothing that was committed needs the disk; and what the disk kept, whole or torn, is never taken for
/// what is there now, though another mount wrote while this one was down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_cache_after_a_power_loss_shows_what_is_not_so() {
    losses(options()).await;
}

async fn losses(options: FilesOptions) {
    // A small file is committed at once, after its drain's try of a bucket that is down: on a busy machine that takes a while.
    let options = FilesOptions { io_timeout: Duration::from_secs(10), ..options };
    let rounds = std::env::var("HFMOUNT_TEST_POWER_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(25);
    let writeback = options.writeback;
    let world = World::with_chunk(CHUNK);
    let path = world.path().join("cache");
    let sim = std::cell::RefCell::new(Sim::new(&path));
    let disk = Disk::simulated(sim.borrow().clone());
    let mut node = world.node_on(path.clone(), options, disk).await;
    let mut models = Vec::new();
    for n in 0..3 {
        let ino = node.create(&format!("f{n}")).await;
        models.push(Model { ino, history: VecDeque::from([Vec::new()]) });
    }
    let mut seed = 0;
    for round in 0..rounds {
        // The bucket is there, or not, or slow: entries are drained, or not, or just being.
        let bucket = round % 3;
        world.faults.fail_puts.store(if bucket == 1 && writeback { u32::MAX } else { 0 }, SeqCst);
        world.faults.delay.store(if bucket == 2 { 30 } else { 0 }, SeqCst);
        for _ in 0..rand::rng().random_range(1..12) {
            seed += 1;
            let n = rand::rng().random_range(0..models.len());
            change(&node, &mut models[n], seed).await;
            if rand::random_bool(0.2) {
                // Into the cache's index.
                node.contents(models[n].ino).await;
            }
            if rand::random_bool(0.1) {
                tokio::time::sleep(Duration::from_millis(rand::rng().random_range(0..400))).await;
            }
        }
        let lost = sim.borrow().clone();
        lost.cut();
        let other = world.node().await;
        let powered = async || {
            lost.power_loss();
            *sim.borrow_mut() = Sim::new(&path);
            if writeback || round % 2 == 0 {
                return;
            }
            world.faults.fail_puts.store(0, SeqCst);
            for model in models.iter_mut().filter(|model| model.history.len() == 1) {
                seed += 1;
                change(&other, model, seed).await;
                other.open(model.ino).await.flush().await.expect("flush");
                model.safe();
            }
            world.faults.fail_puts.store(u32::MAX, SeqCst);
        };
        let disk = || Disk::simulated(sim.borrow().clone());
        world.faults.fail_puts.store(u32::MAX, SeqCst);
        world.faults.delay.store(0, SeqCst);
        let (next, _) = world.crash_on(node, powered, disk).await;
        node = next;
        let mut found = Vec::new();
        for model in &models {
            let got = node.contents(model.ino).await;
            model.check(&got, &format!("round {round}, inode {}", model.ino));
            if model.history.len() == 1 {
                super::world::same(&got, &model.history[0], &format!("round {round}, nothing newer"));
            }
            found.push(got);
        }
        world.faults.fail_puts.store(0, SeqCst);
        node.drained().await;
        for (model, found) in models.iter_mut().zip(found) {
            super::world::same(
                &other.contents(model.ino).await,
                &found,
                "what this mount showed is what all see",
            );
            model.history = VecDeque::from([found.to_vec()]);
        }
    }
}
