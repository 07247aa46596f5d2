//! A local disk that fails: programs notice nothing as long as the bucket answers.

use std::sync::atomic::Ordering::SeqCst;

use super::world::{CHUNK, World, options, pattern, same, writeback};
use crate::chunk::cache::disk::{Disk, sim::Sim};
use crate::chunk::file::Saved;
use crate::error::Kind;

const C: usize = CHUNK as usize;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_disk_fails_files_go_on_in_memory() {
    for options in [options(), writeback()] {
        let world = World::new();
        let path = world.path().join("cache");
        let sim = Sim::new(&path);
        let a = world.node_on(path, options, Disk::simulated(sim.clone())).await;
        let b = world.node().await;
        let (f, g, h) = (a.create("f").await, a.create("g").await, a.create("h").await);
        let mut wanted = pattern(1, 4 * C + 9).to_vec();
        let (fa, ga) = (a.open(f).await, a.open(g).await);
        fa.write(0, wanted.clone().into()).await.expect("write");
        fa.flush().await.expect("flush");
        // Not stored, and readable once more when the disk can no longer be written.
        fa.write(C as u64, pattern(2, 100)).await.expect("write");
        wanted[C..C + 100].copy_from_slice(&pattern(2, 100));
        sim.fail_writes.store(u32::MAX, SeqCst);
        sim.fail_syncs.store(u32::MAX, SeqCst);
        fa.write(2 * C as u64 + 5, pattern(3, 100)).await.expect("memory takes it");
        wanted[2 * C + 5..2 * C + 105].copy_from_slice(&pattern(3, 100));
        assert!(a.cache.aside().expect("put aside").contains("Input/output"), "{:?}", a.cache.aside());
        sim.broken.store(true, SeqCst);
        same(&a.read_all(&fa).await, &wanted, "one's own writes");
        ga.write(0, pattern(4, 2 * C)).await.expect("one that was never on the disk");
        same(&a.read_all(&ga).await, &pattern(4, 2 * C), "one's own writes");
        for (file, ino, wanted) in [(&fa, f, &wanted[..]), (&ga, g, &pattern(4, 2 * C)[..])] {
            assert!(matches!(file.save().await.expect("save"), Saved::Stored(_)), "nothing is safe here");
            same(&b.contents(ino).await, wanted, "another mount");
            same(&a.contents(ino).await, wanted, "this one");
        }
        let theirs = b.open(h).await;
        theirs.write(0, pattern(5, 5 * C)).await.expect("write");
        theirs.flush().await.expect("flush");
        same(&a.contents(h).await, &pattern(5, 5 * C), "what others wrote");
        assert!(a.cache.stats().in_memory > 0);
        drop((fa, ga));
        a.files.close(std::time::Duration::from_secs(5)).await.expect("close");
        a.cache.close().expect("nothing to say on a disk that is gone");
        assert_eq!(a.cache.stats().in_memory, 0, "memory is given back");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_the_dead_disk_had_is_told_once() {
    let world = World::new();
    let path = world.path().join("cache");
    let sim = Sim::new(&path);
    let a = world.node_on(path, options(), Disk::simulated(sim.clone())).await;
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    file.write(0, pattern(1, 3 * C)).await.expect("write");
    file.flush().await.expect("flush");
    file.write(100, pattern(2, 500)).await.expect("write");
    sim.broken.store(true, SeqCst);
    let e = file.flush().await.expect_err("nobody can have these bytes");
    assert_eq!(e.kind(), Kind::Disk, "{e}");
    file.flush().await.expect("that was said");
    same(&world.node().await.contents(ino).await, &pattern(1, 3 * C), "what was committed");
    file.write(100, pattern(3, 500)).await.expect("write");
    file.flush().await.expect("flush");
    let mut wanted = pattern(1, 3 * C).to_vec();
    wanted[100..600].copy_from_slice(&pattern(3, 500));
    same(&world.node().await.contents(ino).await, &wanted, "written again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_of_a_dead_disk_are_answered_from_the_bucket() {
    let world = World::new();
    let path = world.path().join("cache");
    let sim = Sim::new(&path);
    let a = world.node_on(path, options(), Disk::simulated(sim.clone())).await;
    let ino = a.create("f").await;
    let data = pattern(1, 6 * C);
    let file = a.open(ino).await;
    file.write(0, data.clone()).await.expect("write");
    file.flush().await.expect("flush");
    a.settled(ino, 6).await;
    sim.fail_reads.store(u32::MAX, SeqCst);
    same(&a.read_all(&file).await, &data, "open before");
    drop(file);
    same(&a.contents(ino).await, &data, "opened after");
}
