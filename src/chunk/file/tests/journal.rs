//! What entries of the journal rely on, and what the metadata knows of them: through crashes, lost sessions, dead disks.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::world::{CHUNK, Node, World, options, pattern, same, writeback};
use crate::chunk::cache::disk::{Disk, sim::Sim};
use crate::chunk::cache::{CacheDir, CacheLimits};
use crate::chunk::file::Saved;
use crate::error::Kind;
use crate::meta::kv::{Key, Kv, SESSIONS, Txn, Write, session_field};
use crate::types::{Ino, SessionId};

const C: usize = CHUNK as usize;

fn down(world: &World, down: bool) {
    world.faults.fail_puts.store(if down { u32::MAX } else { 0 }, SeqCst);
}

async fn write_and_save(node: &Node, ino: Ino, seed: u64, len: usize) {
    let file = node.open(ino).await;
    file.write(0, pattern(seed, len)).await.expect("write");
    assert!(matches!(file.save().await.expect("save"), Saved::Here), "kept on the local disk");
}

/// Has a file in the journal, so that the session is on the list already.
async fn registered(world: &World) -> (Node, Ino) {
    let node = world.node_with(writeback()).await;
    let ino = node.create("first").await;
    down(world, true);
    write_and_save(&node, ino, 77, 2 * C).await;
    (node, ino)
}

/// Puts the session on the list of those with a journal, for when no commit succeeds any more.
async fn on_the_list(node: &Node) {
    node.meta.register_journal(node.meta.session(), "here").await.expect("on the list");
    node.files.0.registered.lock().await.insert(node.meta.session());
}

async fn objects(world: &World, wanted: usize) {
    for _ in 0..500 {
        if world.object_count().await >= wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{} objects for {wanted}", world.object_count().await);
}

/// Chunks that were uploaded ahead, then saved, then written over: the entry names objects that nothing else does any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_that_an_entry_names_stay_until_it_is_replaced() {
    let world = World::new();
    let (a, first) = registered(&world).await;
    let ino = a.create("f").await;
    down(&world, false);
    a.drained().await;
    let there = world.object_count().await;
    // Uploaded but for the last bytes, and never committed.
    world.kv.fail_commits(u32::MAX);
    let file = a.open(ino).await;
    file.write(0, pattern(1, 3 * C + 10)).await.expect("write");
    objects(&world, there + 3).await;
    assert!(matches!(file.save().await.expect("save"), Saved::Here));
    file.write(0, pattern(2, 3 * C)).await.expect("write");
    objects(&world, there + 6).await;
    // Whoever would delete has had the time to.
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(file);
    let (a, resumed) = world.crash(a, || world.kv.fail_commits(0)).await;
    assert_eq!(resumed, 1);
    a.drained().await;
    let b = world.node().await;
    same(&b.contents(ino).await, &pattern(1, 3 * C + 10), "what was saved");

    // With the entry replaced they go.
    write_and_save(&a, ino, 3, 3 * C + 10).await;
    a.drained().await;
    same(&b.contents(ino).await, &pattern(3, 3 * C + 10), "others");
    same(&b.contents(first).await, &pattern(77, 2 * C), "the other file");
}

/// An entry that names objects which are committed already, because the answer was lost: who goes on with it deletes none of
/// them while the rows of the file are what others read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_objects_that_rows_name_are_not_deleted_by_who_resumes() {
    let world = World::new();
    let (a, b) = (world.node_with(writeback()).await, world.node().await);
    let ino = a.create("f").await;
    let file = a.open(ino).await;
    file.write(0, pattern(1, 3 * C)).await.expect("write");
    world.kv.lose_replies(1);
    file.flush_now().await.expect_err("the reply is lost");
    let committed = a.meta.getattr(ino).await.expect("attr");
    assert_eq!(committed.size, 3 * C as u64, "it was applied");
    // The next try hears of it, and gets no further.
    world.kv.fail_commits(u32::MAX);
    file.flush_now().await.expect_err("no metadata");
    assert_eq!(file.version(), committed.version);
    world.kv.fail_commits(0);
    on_the_list(&a).await;
    world.kv.fail_commits(u32::MAX);
    file.save_here().await.expect("an entry");
    drop(file);
    let (a, resumed) = world.crash(a, || world.kv.fail_commits(0)).await;
    assert_eq!(resumed, 1);
    on_the_list(&a).await;
    world.kv.fail_commits(u32::MAX);
    let there = world.object_count().await;
    let file = a.open(ino).await;
    for seed in 2..4 {
        file.write(0, pattern(seed, 3 * C)).await.expect("write");
        objects(&world, there + 3).await;
        // Into the journal, in the place of what was there.
        file.save_here().await.expect("an entry");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    same(&b.contents(ino).await, &pattern(1, 3 * C), "what is committed");
    world.kv.fail_commits(0);
    a.drained().await;
    file.flush().await.expect("flush");
    same(&world.node().await.contents(ino).await, &pattern(3, 3 * C), "others");
}

/// What is uploaded may be evicted, but for the bytes that an entry still points at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_an_entry_speaks_of_stay_in_the_cache_though_they_are_uploaded() {
    let world = World::new();
    let (a, first) = registered(&world).await;
    let there = world.object_count().await;
    world.kv.fail_commits(u32::MAX);
    down(&world, false);
    objects(&world, there + 2).await;
    let file = a.open(first).await;
    for _ in 0..100 {
        if file.state().to_upload().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(file.state().to_upload().is_empty(), "all of it is in the bucket");
    a.cache.make_room(1 << 40);
    a.cache.make_room(1 << 40);
    drop(file);
    // Not even the objects: the entry does not know them.
    world.delete_all_objects().await;
    let (a, resumed) = world.crash(a, || world.kv.fail_commits(0)).await;
    assert_eq!(resumed, 1);
    let file = a.open(first).await;
    same(&a.read_all(&file).await, &pattern(77, 2 * C), "before it is uploaded");
    a.drained().await;
    same(&world.node().await.contents(first).await, &pattern(77, 2 * C), "others");
    // And then it is the evictor's.
    a.settled(first, 2).await;
}

/// The others declare the mount dead, which goes on under another session with what it saved under the one before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_session_loses_nothing_of_its_journal() {
    for crash in [false, true] {
        let world = World::new();
        let (mut a, first) = registered(&world).await;
        let lost = a.meta.session();
        let write = vec![Write::Del(Key::new(SESSIONS, session_field(lost)))];
        let _ = world.kv.commit(Txn { write, ..Txn::default() }).await.expect("declared dead");
        let second = a.create("second").await;
        assert_ne!(a.meta.session(), lost, "it took another one");
        write_and_save(&a, second, 5, 3 * C).await;
        // An entry of the first session, replaced by one of the next.
        let file = a.open(first).await;
        file.write(C as u64, pattern(6, 100)).await.expect("write");
        assert!(matches!(file.save().await.expect("save"), Saved::Here));
        drop(file);
        let listed = |list: Vec<(SessionId, _)>| list.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
        assert!(listed(a.meta.journals().await.expect("list")).contains(&lost));
        if crash {
            let (next, resumed) = world.crash(a, || {}).await;
            assert_eq!(resumed, 2);
            a = next;
        }
        down(&world, false);
        a.drained().await;
        let mut wanted = pattern(77, 2 * C).to_vec();
        wanted[C..C + 100].copy_from_slice(&pattern(6, 100));
        let b = world.node().await;
        same(&b.contents(first).await, &wanted, "of both sessions");
        same(&b.contents(second).await, &pattern(5, 3 * C), "of the second");
        a.files.0.unregister().await.expect("unregister");
        assert!(a.meta.journals().await.expect("list").is_empty(), "both are off the list");
    }
}

/// An entry of the lost session was committed under the next one; a power loss brings it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_of_a_lost_session_is_not_committed_twice() {
    let world = World::new();
    let (a, first) = registered(&world).await;
    let lost = a.meta.session();
    let write = vec![Write::Del(Key::new(SESSIONS, session_field(lost)))];
    let _ = world.kv.commit(Txn { write, ..Txn::default() }).await.expect("declared dead");
    let path = a.cache.path().join(format!("journal/{:016x}", first.0));
    let left = std::fs::read(&path).expect("an entry");
    down(&world, false);
    a.drained().await;
    assert_ne!(a.meta.session(), lost);
    let b = world.node().await;
    let theirs = b.open(first).await;
    theirs.write(0, pattern(8, C)).await.expect("write");
    theirs.flush().await.expect("flush");
    let (a, resumed) = world.crash(a, || std::fs::write(&path, left).expect("brought back")).await;
    assert_eq!(resumed, 0);
    let mut wanted = pattern(77, 2 * C).to_vec();
    wanted[..C].copy_from_slice(&pattern(8, C));
    same(&a.contents(first).await, &wanted, "theirs is the latest");
}

/// A crash after the last entry went, and before the list was told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_whose_journal_is_empty_does_not_stay_on_the_list() {
    let world = World::new();
    let (a, _) = registered(&world).await;
    down(&world, false);
    a.drained().await;
    assert_eq!(a.meta.journals().await.expect("list").len(), 1);
    let (a, resumed) = world.crash(a, || {}).await;
    assert_eq!(resumed, 0);
    a.files.0.unregister().await.expect("unregister");
    assert!(a.meta.journals().await.expect("list").is_empty());
}

/// A mount that always has something in its journal leaves no trace of each file that it ever had there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_metadata_knows_of_entries_goes_after_them() {
    let world = World::new();
    let (a, first) = registered(&world).await;
    let session = a.meta.session();
    down(&world, false);
    a.drained().await;
    down(&world, true);
    let second = a.create("second").await;
    write_and_save(&a, second, 1, 2 * C).await;
    assert!(a.meta.journalled(session, first).await.expect("a mark") > 0);
    a.files.0.forget_ended().await.expect("forget");
    assert_eq!(a.meta.journalled(session, first).await.expect("no mark"), 0);
    a.files.0.unregister().await.expect("unregister");
    assert_eq!(a.meta.journals().await.expect("list").len(), 1, "the second still waits");
}

/// The disk dies with entries on it. What they speak of is uploaded all the same; should the disk come back one day, they are not
/// committed again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_on_a_dead_disk_are_not_committed_when_it_comes_back() {
    let world = World::new();
    let path = world.path().join("cache");
    let sim = Sim::new(&path);
    let a = world.node_on(path, writeback(), Disk::simulated(sim.clone())).await;
    let ino = a.create("f").await;
    down(&world, true);
    write_and_save(&a, ino, 1, 2 * C + 5).await;
    sim.fail_writes.store(u32::MAX, SeqCst);
    sim.fail_syncs.store(u32::MAX, SeqCst);
    sim.fail_changes.store(u32::MAX, SeqCst);
    let file = a.open(ino).await;
    file.write(5, pattern(2, 10)).await.expect("memory takes it");
    assert!(a.cache.aside().is_some());
    down(&world, false);
    a.drained().await;
    let mut wanted = pattern(1, 2 * C + 5).to_vec();
    wanted[5..15].copy_from_slice(&pattern(2, 10));
    file.flush().await.expect("flush");
    let b = world.node().await;
    same(&b.contents(ino).await, &wanted, "another mount");
    a.files.0.unregister().await.expect("unregister");
    assert_eq!(a.meta.journals().await.expect("list").len(), 1, "the entry may be there still");
    let theirs = b.open(ino).await;
    theirs.write(0, pattern(3, 30)).await.expect("write");
    theirs.flush().await.expect("flush");
    wanted[..30].copy_from_slice(&pattern(3, 30));
    drop(file);
    let (a, resumed) = world.crash(a, || {}).await;
    assert_eq!((resumed, a.files.waiting().0.files), (0, 0));
    same(&a.contents(ino).await, &wanted, "theirs is the latest");
    a.files.0.unregister().await.expect("unregister");
    assert!(a.meta.journals().await.expect("list").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_nothing_is_uploaded_is_told_as_long_as_one_file_is_not() {
    let world = World::new();
    let (a, first) = registered(&world).await;
    for _ in 0..500 {
        if a.files.waiting().1.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    a.files.0.note_error(Ino(9999), None);
    let told = a.files.waiting().1.expect("an error");
    assert!(told.contains(&format!("inode {first}")), "{told}");
    assert!(told.contains("chunks/"), "it names the object: {told}");
    down(&world, false);
    a.drained().await;
    assert_eq!(a.files.waiting().1, None);
}

/// The cache directory of another volume is no place to look for one's own journal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_directory_of_another_volume_is_refused_and_left() {
    let world = World::new();
    let (a, first) = registered(&world).await;
    let path = a.cache.path().to_owned();
    let entry = path.join(format!("journal/{:016x}", first.0));
    let (a, _) = world
        .crash(a, || {
            let e = CacheDir::open(&path, "another", CacheLimits::default()).expect_err("not its own");
            assert_eq!(e.kind(), Kind::Config, "{e}");
            assert!(entry.exists());
        })
        .await;
    down(&world, false);
    a.drained().await;
    same(&world.node_with(options()).await.contents(first).await, &pattern(77, 2 * C), "others");
}
