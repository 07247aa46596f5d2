//! Data that was acknowledged before it was uploaded.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use bytes::Bytes;

use super::world::{CHUNK, Node, World, options, pattern, same, writeback};
use crate::chunk::cache::ContentKey;
use crate::chunk::cache::disk::{Disk, sim::Sim};
use crate::chunk::file::{FileContent, FilesOptions, Saved};
use crate::types::{Ino, Timestamp};

const C: usize = CHUNK as usize;

async fn saved(file: &std::sync::Arc<FileContent>) {
    assert!(matches!(file.save().await.expect("save"), Saved::Here), "kept on the local disk");
}

fn down(world: &World, down: bool) {
    world.faults.fail_puts.store(if down { u32::MAX } else { 0 }, SeqCst);
}

fn entry(node: &Node, ino: Ino) -> std::path::PathBuf {
    node.cache.path().join(format!("journal/{:016x}", ino.0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn saved_data_is_here_at_once_and_elsewhere_when_it_is_drained() {
    let world = World::new();
    let (a, b) = (world.node_with(writeback()).await, world.node().await);
    let ino = a.create("f").await;
    down(&world, true);
    let data = pattern(1, 3 * C + 100);
    let file = a.open(ino).await;
    file.write(0, data.clone()).await.expect("write");
    let mut commits = a.files.commits();
    saved(&file).await;
    drop(file);
    assert_eq!(a.files.waiting().0.files, 1);
    assert_eq!(a.files.waiting().0.bytes, data.len() as u64);
    same(&a.contents(ino).await, &data, "this mount");
    assert_eq!(a.files.in_use(ino).expect("kept").attr().size, data.len() as u64);
    same(&b.contents(ino).await, &Bytes::new(), "another mount, as before");
    assert_eq!(a.meta.journals().await.expect("list").len(), 1, "its objects are not to be collected");
    for _ in 0..200 {
        if a.files.waiting().1.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(a.files.waiting().1.expect("an error").contains("503"), "{:?}", a.files.waiting());
    down(&world, false);
    a.drained().await;
    same(&b.contents(ino).await, &data, "another mount");
    assert_eq!(a.files.waiting(), (Default::default(), None));
    assert_eq!(commits.recv().await.expect("told").attr.size, data.len() as u64);
    assert_eq!(a.files.dirty_count(), 0);
    assert_eq!(world.kept_bytes(&b, ino).await, data.len() as u64);
    a.files.0.unregister().await.expect("unregister");
    assert!(a.meta.journals().await.expect("list").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_the_next_mount_goes_on() {
    let world = World::new();
    let (a, b) = (world.node_with(writeback()).await, world.node().await);
    let (f, g) = (a.create("f").await, a.create("g").await);
    let old = pattern(9, 4 * C);
    let file = a.open(g).await;
    file.write(0, old.clone()).await.expect("write");
    file.flush().await.expect("flush");
    down(&world, true);
    file.write(C as u64 + 10, pattern(2, 500)).await.expect("write");
    saved(&file).await;
    let new = a.open(f).await;
    let data = pattern(1, 2 * C + 7);
    new.write(0, data.clone()).await.expect("write");
    saved(&new).await;
    // Over what was saved, and not saved itself: it may vanish.
    new.write(2 * C as u64 + 7, pattern(3, 50)).await.expect("write");
    drop((file, new));
    let mut wanted = old.to_vec();
    wanted[C + 10..C + 510].copy_from_slice(&pattern(2, 500));

    let dead = a.meta.session();
    let (a, resumed) = world.crash(a, || {}).await;
    assert_eq!(resumed, 2);
    assert_ne!(a.meta.session(), dead);
    same(&a.contents(f).await, &data, "before it is uploaded");
    same(&a.contents(g).await, &wanted, "before it is uploaded");
    same(&b.contents(g).await, &old, "others see what was committed");
    assert_eq!(a.meta.journals().await.expect("list")[0].0, dead);
    down(&world, false);
    a.drained().await;
    same(&b.contents(f).await, &data, "others");
    same(&b.contents(g).await, &wanted, "others");
    a.files.0.unregister().await.expect("unregister");
    assert!(a.meta.journals().await.expect("list").is_empty(), "the dead session's too");
    let (a, resumed) = world.crash(a, || {}).await;
    assert_eq!(resumed, 0);
    same(&a.contents(f).await, &data, "again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_deleted_meanwhile_is_dropped() {
    let world = World::new();
    let (a, b) = (world.node_with(writeback()).await, world.node().await);
    let ino = a.create("f").await;
    down(&world, true);
    let file = a.open(ino).await;
    file.write(0, pattern(1, 2 * C)).await.expect("write");
    saved(&file).await;
    drop(file);
    b.delete("f", ino).await;
    let (a, resumed) = world.crash(a, || {}).await;
    assert_eq!((resumed, a.files.waiting().0.files), (0, 0));
    assert!(!a.cache.knows(&ContentKey::File(ino)));

    // The same while the mount lives.
    let ino = a.create("g").await;
    let file = a.open(ino).await;
    file.write(0, pattern(1, 2 * C)).await.expect("write");
    saved(&file).await;
    drop(file);
    b.delete("g", ino).await;
    down(&world, false);
    a.drained().await;
    assert_eq!(a.files.dirty_count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_mount_wrote_meanwhile_is_kept_where_only_it_wrote() {
    let world = World::new();
    let (a, b) = (world.node_with(writeback()).await, world.node().await);
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    let base = pattern(1, 3 * C);
    file.write(0, base.clone()).await.expect("write");
    file.flush().await.expect("flush");
    down(&world, true);
    file.write(100, pattern(2, 200)).await.expect("write");
    saved(&file).await;
    drop(file);
    let dead = (a, ino);
    down(&world, false);
    // Before the other goes on, somebody else writes: partly where the journal has something, partly not.
    let (a, ino) = dead;
    down(&world, true);
    let theirs = b.open(ino).await;
    theirs.write(200, pattern(3, 200)).await.expect("write");
    theirs.write(2 * C as u64, pattern(4, 50)).await.expect("write");
    a.files.kill();
    down(&world, false);
    theirs.flush().await.expect("flush");
    let (a, resumed) = world.crash(a, || {}).await;
    assert_eq!(resumed, 1);
    a.drained().await;
    let mut wanted = base.to_vec();
    wanted[200..400].copy_from_slice(&pattern(3, 200));
    wanted[2 * C..2 * C + 50].copy_from_slice(&pattern(4, 50));
    wanted[100..300].copy_from_slice(&pattern(2, 200));
    same(&world.node().await.contents(ino).await, &wanted, "the later flush lies over the earlier");
    same(&a.contents(ino).await, &wanted, "the merger");
}

/// A crash between the commit and the removal of the entry, and then another mount's write: the entry is not laid over it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_that_was_committed_is_never_committed_again() {
    let world = World::new();
    let (a, b) = (world.node_with(writeback()).await, world.node().await);
    let ino = a.create("f").await;
    down(&world, true);
    let file = a.open(ino).await;
    file.write(0, pattern(1, 2 * C)).await.expect("write");
    saved(&file).await;
    drop(file);
    let path = entry(&a, ino);
    let left = std::fs::read(&path).expect("an entry");
    down(&world, false);
    a.drained().await;
    let theirs = b.open(ino).await;
    theirs.write(0, pattern(2, C)).await.expect("write");
    theirs.flush().await.expect("flush");
    let (a, resumed) = world.crash(a, || std::fs::write(&path, left).expect("brought back")).await;
    assert_eq!((resumed, a.files.waiting().0.files), (0, 0));
    let mut wanted = pattern(1, 2 * C).to_vec();
    wanted[..C].copy_from_slice(&pattern(2, C));
    same(&a.contents(ino).await, &wanted, "theirs is the latest");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_of_journalled_data_is_journalled() {
    let world = World::new();
    let a = world.node_with(writeback()).await;
    let ino = a.create("f").await;
    down(&world, true);
    let file = a.open(ino).await;
    file.write(0, pattern(1, 3 * C)).await.expect("write");
    saved(&file).await;
    file.truncate(C as u64 + 5).await.expect("cut");
    // Where something was cut off: not saved.
    file.write(C as u64 + 5, pattern(2, C)).await.expect("write");
    drop(file);
    let (a, _) = world.crash(a, || {}).await;
    same(&a.contents(ino).await, &pattern(1, 3 * C)[..C + 5], "cut, and no mixture");
    down(&world, false);
    a.drained().await;
    same(&world.node().await.contents(ino).await, &pattern(1, 3 * C)[..C + 5], "others");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_that_were_set_are_not_set_back_by_what_is_uploaded_later() {
    let world = World::new();
    let a = world.node_with(writeback()).await;
    let ino = a.create("f").await;
    down(&world, true);
    let file = a.open(ino).await;
    file.write(0, pattern(1, 2 * C)).await.expect("write");
    saved(&file).await;
    let set = crate::meta::SetAttr { mtime: Some(Timestamp(77)), ..Default::default() };
    file.set_times(a.meta.setattr(ino, set)).await.expect("times");
    drop(file);
    let (a, _) = world.crash(a, || {}).await;
    down(&world, false);
    a.drained().await;
    assert_eq!(a.meta.getattr(ino).await.expect("attr").mtime, Timestamp(77));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_disk_cannot_keep_is_written_through() {
    let world = World::new();
    let path = world.path().join("cache");
    let sim = Sim::new(&path);
    let a = world.node_on(path, writeback(), Disk::simulated(sim.clone())).await;
    let b = world.node().await;
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    sim.errno.store(libc::ENOSPC, SeqCst);
    // Less than a chunk: of a whole one the upload begins at once, and would write into the index.
    for (seed, halves) in [(1, 0), (2, 1)] {
        file.write(0, pattern(seed, C - 1)).await.expect("write");
        // The entry finds no room, or breaks off half-way.
        sim.fail_writes.store(1 - halves, SeqCst);
        sim.halves.store(halves, SeqCst);
        assert!(matches!(file.save().await.expect("save"), Saved::Stored(_)));
        same(&b.contents(ino).await, &pattern(seed, C - 1), "another mount at once");
        assert_eq!(a.files.waiting().0.files, 0);
    }
    assert!(a.cache.aside().is_none(), "a full disk is no failed one");

    // So is what fits into the metadata, and what is too much.
    let small = a.create("small").await;
    let file = a.open(small).await;
    file.write(0, pattern(1, 100)).await.expect("write");
    assert!(matches!(file.save().await.expect("save"), Saved::Stored(_)));
    let options = FilesOptions { backlog: Some(C as u64), ..writeback() };
    let c = world.node_with(options).await;
    world.faults.delay.store(300, SeqCst);
    let (one, two) = (c.create("one").await, c.create("two").await);
    let (one, two) = (c.open(one).await, c.open(two).await);
    one.write(0, pattern(1, 2 * C)).await.expect("write");
    saved(&one).await;
    two.write(0, pattern(2, C)).await.expect("write");
    assert!(matches!(two.save().await.expect("save"), Saved::Stored(_)), "beyond the backlog");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_end_cannot_upload_waits_for_the_next_mount() {
    for writeback in [writeback(), options()] {
        let world = World::new();
        let a = world.node_with(writeback.clone()).await;
        let ino = a.create("f").await;
        down(&world, true);
        let file = a.open(ino).await;
        file.write(0, pattern(1, 2 * C + 9)).await.expect("write");
        if writeback.writeback {
            saved(&file).await;
        }
        drop(file);
        a.files.close(Duration::from_secs(1)).await.expect("nothing is lost");
        a.cache.close().expect("close");
        a.meta.close().await.expect("the session ends");
        assert_eq!(crate::chunk::cache::Waiting::in_dir(a.cache.path()).expect("read").files, 1);
        let (a, resumed) = world.crash(a, || {}).await;
        assert_eq!(resumed, 1);
        same(&a.contents(ino).await, &pattern(1, 2 * C + 9), "this mount");
        down(&world, false);
        a.drained().await;
        same(&world.node().await.contents(ino).await, &pattern(1, 2 * C + 9), "others");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_cannot_be_used_are_kept_and_their_data_too() {
    let world = World::new();
    let a = world.node_with(writeback()).await;
    let (f, g) = (a.create("f").await, a.create("g").await);
    down(&world, true);
    for ino in [f, g] {
        let file = a.open(ino).await;
        file.write(0, pattern(1, 2 * C)).await.expect("write");
        saved(&file).await;
    }
    let (torn, index) =
        (entry(&a, f), a.cache.path().join(format!("files/{:02x}/{:016x}.idx", g.0 & 255, g.0)));
    let (a, resumed) = world
        .crash(a, || {
            std::fs::write(&torn, b"hfmjnl\0\x01 and no more").expect("damage");
            std::fs::remove_file(&index).expect("an index that is gone can be had again");
        })
        .await;
    assert_eq!(resumed, 1);
    same(&a.contents(g).await, &pattern(1, 2 * C), "found again");
    assert!(torn.with_extension("bad").exists());
    assert!(!a.cache.make_room(1 << 40) || a.cache.knows(&ContentKey::File(f)), "its data is not given up");
    assert!(a.cache.path().join(format!("files/{:02x}/{:016x}", f.0 & 255, f.0)).exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_evictor_leaves_what_waits() {
    let world = World::new();
    let a = world.node_with(writeback()).await;
    let ino = a.create("f").await;
    down(&world, true);
    let data = pattern(1, 20 * C);
    let file = a.open(ino).await;
    file.write(0, data.clone()).await.expect("write");
    saved(&file).await;
    drop(file);
    a.cache.make_room(1 << 40);
    same(&a.contents(ino).await, &data, "in the run that wrote it");
    let (a, _) = world.crash(a, || {}).await;
    a.cache.make_room(1 << 40);
    same(&a.contents(ino).await, &data, "in the next");
    assert_eq!(a.files.waiting().0.files, 1);
}

/// Objects of a session with a journal stay, though they are in the trash: an entry may name them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sweep_leaves_objects_of_a_journal() {
    let world = World::new();
    let (a, b) = (world.node_with(writeback()).await, world.node().await);
    let (f, g) = (a.create("f").await, a.create("g").await);
    let file = a.open(f).await;
    for seed in 0..2 {
        file.write(0, pattern(seed, C)).await.expect("write");
        file.flush().await.expect("flush");
    }
    down(&world, true);
    let waits = a.open(g).await;
    waits.write(0, pattern(1, C)).await.expect("write");
    saved(&waits).await;
    assert_eq!(b.files.sweep(Duration::ZERO).await.expect("sweep"), 0);
    down(&world, false);
    a.drained().await;
    a.files.0.unregister().await.expect("unregister");
    assert_eq!(b.files.sweep(Duration::ZERO).await.expect("sweep"), 1);
}
