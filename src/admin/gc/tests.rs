//! What is collected, and above all what is not.

use bytes::Bytes;

use super::*;
use crate::admin::world::{CHUNK, World, extent, mount, pattern};
use crate::error::Kind;
use crate::meta::{Committed, DataChange, New};
use crate::types::{FileType, Ino};

/// Objects that nothing names, of a session that ended.
async fn garbage(world: &World, n: u8) -> Vec<ObjectId> {
    let crashed = mount(&world.kv).await;
    let mut objects = Vec::new();
    for i in 0..n {
        let object = crashed.next_object();
        world.put(object, &pattern(i, 100)).await;
        objects.push(object);
    }
    crashed.close().await.expect("closed");
    objects
}

fn sum(objects: u64, bytes: u64) -> Sum {
    Sum { objects, bytes }
}

#[tokio::test]
async fn what_a_crash_left_goes_and_nothing_else() {
    let world = World::new().await;
    let (_, kept) = world.file("kept", &[pattern(1, 1024), pattern(2, 10)]).await;
    let ended = mount(&world.kv).await;
    let (_, of_ended) = world.file_by(&ended, "of-ended", &[pattern(3, 50)]).await;
    ended.close().await.expect("closed");
    let gone = garbage(&world, 3).await;

    let report = world.gc(false).await;
    assert_eq!((report.chunks, report.garbage(), report.deleted), (sum(3, 300), sum(3, 300), sum(0, 0)));
    assert!(world.has(gone[0]).await, "a dry run");
    assert_eq!(world.get("collected/", gone[0].session.to_string().as_bytes()).await, None);

    let report = world.gc(true).await;
    assert_eq!((report.chunks, report.deleted, report.failed), (sum(3, 300), sum(3, 300), 0));
    for object in gone {
        assert!(!world.has(object).await);
    }
    for object in kept.into_iter().chain(of_ended) {
        assert!(world.has(object).await);
    }
    assert_eq!(world.gc(true).await.garbage(), Sum::default());
    assert_eq!(world.look_deep().await, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_uploaded_and_not_committed_yet_stays() {
    let world = World::new().await;
    let live = mount(&world.kv).await;
    let object = live.next_object();
    world.put(object, &pattern(1, 100)).await;
    let report = world.gc(true).await;
    assert_eq!((report.left, report.garbage()), (sum(1, 100), Sum::default()));
    assert!(world.has(object).await);

    // A journal that waits for its mount to come back.
    live.register_journal(live.session(), "/cache").await.expect("registered");
    live.close().await.expect("closed");
    assert_eq!(world.gc(true).await.left, sum(1, 100));
    world.meta.end_journal(object.session).await.expect("ended");
    assert_eq!(world.gc(true).await.deleted, sum(1, 100));
}

#[tokio::test]
async fn what_is_younger_than_the_grace_stays() {
    let world = World::new().await;
    let gone = garbage(&world, 2).await;
    let options = GcOptions { delete: Some(world.meta.clone()), grace: Duration::from_secs(3600) };
    let report = gc(&world.place, options, &|_| {}).await.expect("gc");
    assert_eq!(
        (report.left, report.garbage(), report.deleted),
        (sum(2, 200), Sum::default(), Sum::default())
    );
    assert!(world.has(gone[1]).await);
}

#[tokio::test]
async fn a_mount_that_lost_its_session_keeps_what_it_uploaded() {
    let world = World::new().await;
    let away = mount(&world.kv).await;
    let object = away.next_object();
    let data = pattern(1, 100);
    world.put(object, &data).await;
    let made = world.make(Ino::ROOT, "f", FileType::File).await;
    let change =
        DataChange { size: 100, chunks: vec![(0, vec![extent(object, 0, &data)])], ..DataChange::default() };

    // Declared dead, and back under another session before anything was collected.
    world.del("sessions/", object.session.to_string().as_bytes()).await;
    let done = away.commit_data(made.ino, made.version, DataChange { size: 0, ..change.clone() }).await;
    assert!(matches!(done, Ok(Committed::Applied(_))), "{done:?}");
    assert_ne!(away.session(), object.session);
    assert_eq!(world.gc(true).await.left, sum(1, 100), "of a former session");
    assert!(world.has(object).await);
}

#[tokio::test]
async fn a_mount_that_comes_back_too_late_is_refused() {
    let world = World::new().await;
    let away = mount(&world.kv).await;
    let object = away.next_object();
    let data = pattern(1, 100);
    world.put(object, &data).await;
    let made = world.make(Ino::ROOT, "f", FileType::File).await;
    world.del("sessions/", object.session.to_string().as_bytes()).await;
    assert_eq!(world.gc(true).await.deleted, sum(1, 100));
    let change =
        DataChange { size: 100, chunks: vec![(0, vec![extent(object, 0, &data)])], ..DataChange::default() };
    let refused = away.commit_data(made.ino, made.version, change).await.expect_err("its object is gone");
    assert_eq!(refused.kind(), Kind::Fenced, "{refused}");
    assert!(refused.to_string().contains("mount again"), "{refused}");
    assert_eq!(world.look_deep().await, Vec::<String>::new());
}

#[tokio::test]
async fn sessions_without_garbage_may_come_back() {
    let world = World::new().await;
    let away = mount(&world.kv).await;
    world.file_by(&away, "f", &[pattern(1, 100)]).await;
    let lost = away.session();
    world.del("sessions/", lost.to_string().as_bytes()).await;
    garbage(&world, 1).await;
    assert_eq!(world.gc(true).await.deleted, sum(1, 100));
    assert_eq!(world.get("collected/", lost.to_string().as_bytes()).await, None);
    away.make(Ino::ROOT, b"g", New::plain(FileType::File, 0o644, 0, 0)).await.expect("it goes on");
    assert_ne!(away.session(), lost);
}

#[tokio::test]
async fn deleted_files_that_somebody_has_open_stay() {
    let world = World::new().await;
    let other = mount(&world.kv).await;
    let (ino, objects) = world.file_by(&other, "open", &[pattern(1, 100)]).await;
    other.close().await.expect("closed");
    world.meta.unlink(Ino::ROOT, b"open").await.expect("unlink");
    assert_eq!(world.gc(true).await.garbage(), Sum::default());
    assert!(world.has(objects[0]).await);

    // Nobody says any more that it is open; the trash is for readers that go by an older list.
    let row = (0_i64, 0_i64, None::<u64>);
    world.set_row("orphans/", &ino.0.to_be_bytes(), &row).await;
    let since = world.meta.now().0.to_be_bytes();
    assert_eq!(world.gc(true).await.deleted, sum(1, 100), "deleted in 1970, by its row");
    assert_eq!(world.place.survey.orphans().await.expect("list"), []);
    assert_eq!(world.place.survey.trash().await.expect("list"), [], "its row in the trash went with it");

    let object = garbage(&world, 1).await[0];
    let field = [object.session.0.to_be_bytes(), object.seq.to_be_bytes()].concat();
    world.set("trash/", &field, since.to_vec()).await;
    assert_eq!(world.gc(true).await.garbage(), Sum::default(), "in its grace");
    assert!(world.has(object).await);
}

#[tokio::test]
async fn an_inode_in_the_bin_keeps_its_objects() {
    let world = World::new().await;
    let other = mount(&world.kv).await;
    let (ino, objects) = world.file_by(&other, "binned", &[pattern(1, 100)]).await;
    other.close().await.expect("closed");
    // As it lies there: no name, no orphan row.
    world.del("d1/", b"binned").await;
    world.change_row(ino, |row| row.nlink = 0).await;
    world.set("bin/", &ino.0.to_be_bytes(), Bytes::from_static(b"x")).await;
    assert_eq!(world.gc(true).await.garbage(), Sum::default());
    assert!(world.has(objects[0]).await);
}

#[tokio::test]
async fn hub_files_that_were_deleted_everywhere() {
    let world = World::new().await;
    let (named, unnamed) = (BlobId::Sha256([1; 32]), BlobId::Sha256([2; 32]));
    let data = pattern(1, CHUNK as usize + 10);
    let kept = world.hub_file(named, &data).await;
    let gone = world.fill(unnamed, &data).await;
    let strays = world.fill(BlobId::Sha256([3; 32]), &data).await;
    // Introduced by a version that did not note when.
    let origins: Vec<crate::types::Origin> = Vec::new();
    world.set_row(&format!("b{unnamed}"), b"a", &(data.len() as u64, origins)).await;
    world.meta.blobs().introduce(BlobId::Sha256([4; 32]), data.len() as u64, None).await.expect("introduced");
    let young = world.fill(BlobId::Sha256([4; 32]), &data).await;

    let report = world.gc(true).await;
    let len = data.len() as u64;
    assert_eq!((report.blobs, report.blob_chunks, report.left), (2, sum(4, 2 * len), sum(2, len)));
    let bucket = &world.place.bucket;
    for object in gone.iter().chain(&strays) {
        assert!(!bucket.exists(object).await.expect("head"), "{object}");
    }
    for object in kept.iter().chain(&young) {
        assert!(bucket.exists(object).await.expect("head"), "{object}");
    }
    assert_eq!(world.get(&format!("b{unnamed}"), b"a").await, None);
    assert_eq!(world.get(&format!("b{unnamed}"), b"s0").await, None);
    assert!(world.get(&format!("b{named}"), b"s0").await.is_some());
}

#[tokio::test]
async fn what_shows_under_a_file_and_what_lies_far_out_stays() {
    let world = World::new().await;
    let blob = BlobId::Sha256([2; 32]);
    let data = pattern(1, 100);
    let shown = world.fill(blob, &data).await;
    let origins: Vec<crate::types::Origin> = Vec::new();
    world.set_row(&format!("b{blob}"), b"a", &(100_u64, origins)).await;
    let other = mount(&world.kv).await;
    let made = world.make(Ino::ROOT, "f", FileType::File).await;
    let (object, far) = (other.next_object(), 1_u64 << 40);
    world.put(object, &data).await;
    let change = DataChange {
        size: far * u64::from(CHUNK) + 100,
        chunks: vec![(far, vec![extent(object, 0, &data)])],
        under: Some(crate::meta::Under { blob, size: 100, len: 100 }),
        ..DataChange::default()
    };
    let done = other.commit_data(made.ino, made.version, change).await.expect("commit");
    assert!(matches!(done, Committed::Applied(_)));
    other.close().await.expect("closed");
    assert_eq!(world.gc(true).await.garbage(), Sum::default());
    assert!(world.has(object).await && world.place.bucket.exists(&shown[0]).await.expect("head"));
}

#[tokio::test]
async fn what_broke_off() {
    let world = World::new().await;
    let first = world.meta.reserve_ino().await.expect("a number");
    world.set_row("staging/", b"t", &(7_u64, 0_i64, first.0, 1_u64, None::<u64>, false)).await;
    world.set("tombstones/", b"old", 1_i64.to_be_bytes().to_vec()).await;
    let later = world.meta.now().0 + 3_600_000_000_000;
    world.set("tombstones/", b"young", later.to_be_bytes().to_vec()).await;
    let report = world.gc(false).await;
    assert_eq!((report.staged, report.tombstones), (1, 1));
    assert!(world.get("staging/", b"t").await.is_some());
    world.gc(true).await;
    assert_eq!(world.get("staging/", b"t").await, None);
    assert_eq!(world.get("tombstones/", b"old").await, None);
    assert!(world.get("tombstones/", b"young").await.is_some());
}

#[tokio::test]
async fn rows_that_cannot_be_read_stop_it() {
    let world = World::new().await;
    let (ino, _) = world.file("f", &[pattern(1, 100)]).await;
    let gone = garbage(&world, 1).await;
    let options = || GcOptions { delete: Some(world.meta.clone()), grace: Duration::ZERO };
    world.set(&format!("i{ino}"), b"c0", Bytes::from_static(b"\xc1")).await;
    let error = gc(&world.place, options(), &|_| {}).await.expect_err("who knows what it names");
    assert!(error.kind() == Kind::Corrupt && error.to_string().contains("hfmount fsck"), "{error}");
    world.set(&format!("i{ino}"), b"a", Bytes::from_static(b"\xc1")).await;
    assert_eq!(gc(&world.place, options(), &|_| {}).await.expect_err("nor here").kind(), Kind::Corrupt);
    assert!(world.has(gone[0]).await);
}

#[tokio::test]
async fn names_of_others_are_never_touched() {
    let world = World::new().await;
    let store = std::sync::Arc::new(object_store::memory::InMemory::new());
    let place = Place {
        bucket: crate::source::bucket::Bucket::in_store(store.clone(), "vol"),
        ..world.place.clone()
    };
    for name in ["vol/notes.txt", "vol/chunks/0000000000000005/x", "other/chunks/0000000000000005/1"] {
        let path = object_store::path::Path::from(name);
        object_store::ObjectStoreExt::put(&*store, &path, "x".into()).await.expect("put");
    }
    let options = GcOptions { delete: Some(world.meta.clone()), grace: Duration::ZERO };
    let report = gc(&place, options, &|_| {}).await.expect("gc");
    assert_eq!((report.seen, report.strange, report.deleted), (sum(2, 2), sum(2, 2), Sum::default()));
}

/// Mounts that write, overwrite, rename and delete, and come and go, while everything that may be is collected all the time.
#[tokio::test]
async fn nothing_that_is_needed_goes_while_mounts_work() {
    let world = World::new().await;
    let work = async {
        for round in 0..12_u8 {
            let meta = mount(&world.kv).await;
            for n in 0..25_u8 {
                let name = format!("f{}", n % 7);
                if n % 3 == 0 {
                    // Never committed.
                    world.put(meta.next_object(), &pattern(n, 70)).await;
                }
                if let Some(old) = meta.lookup(Ino::ROOT, name.as_bytes()).await.expect("lookup") {
                    let data = pattern(n ^ round, 300);
                    let object = meta.next_object();
                    world.put(object, &data).await;
                    tokio::task::yield_now().await;
                    let change = DataChange {
                        size: 300,
                        chunks: vec![(0, vec![extent(object, 0, &data)]), (1, Vec::new())],
                        ..DataChange::default()
                    };
                    let done = meta.commit_data(old.ino, old.version, change).await.expect("commit");
                    assert!(matches!(done, Committed::Applied(_)));
                    if n % 5 == 0 {
                        meta.unlink(Ino::ROOT, name.as_bytes()).await.expect("unlink");
                    }
                } else {
                    world.file_by(&meta, &name, &[pattern(n, 1024), pattern(round, 40)]).await;
                }
                tokio::task::yield_now().await;
            }
            meta.close().await.expect("closed");
        }
    };
    let collect = async {
        let mut deleted = 0;
        for _ in 0..40 {
            deleted += world.gc(true).await.deleted.objects;
            tokio::task::yield_now().await;
        }
        deleted
    };
    let ((), deleted) = tokio::join!(work, collect);
    let last = world.gc(true).await.deleted.objects;
    assert!(deleted + last >= 12 * 9, "{deleted} and {last}");
    assert_eq!(world.look_deep().await, Vec::<String>::new());
    assert_eq!(world.gc(true).await.garbage(), Sum::default());
}

#[tokio::test]
async fn what_was_in_the_bin_for_its_time_goes() {
    let world = World::new().await;
    world.meta.set_bin_ttl(Duration::from_secs(60));
    let (file, objects) = world.file("f", &[pattern(1, 1024), pattern(2, 10)]).await;
    let removed = world.meta.unlink_keeping(Ino::ROOT, b"f", crate::meta::Keep::Yes).await.expect("unlink");
    assert!(removed.binned);
    // Whoever wrote it is long gone.
    let ended = world.meta.clone();
    let world = World { meta: mount(&world.kv).await, ..world };
    ended.close().await.expect("closed");
    assert_eq!(world.gc(true).await.garbage(), Sum::default(), "it can be restored");

    let later = |seconds: i64| Timestamp(Timestamp::now().0 + seconds * 1_000_000_000);
    assert_eq!(world.meta.expire_bin(later(70)).await.expect("expired"), 1);
    assert_eq!(world.look().await, Vec::<String>::new(), "an orphan now");
    assert_eq!(world.gc(true).await.garbage(), Sum::default(), "somebody may have it open");
    assert_eq!(world.meta.reap_orphans(later(7 * 86_400)).await.expect("reaped").len(), 1);
    assert!(world.place.survey.inode(file).await.expect("read").is_none());
    assert_eq!(world.gc(true).await.garbage(), Sum::default(), "somebody may be reading by an older list");
    for &object in &objects {
        let field = [object.session.0.to_be_bytes(), object.seq.to_be_bytes()].concat();
        let long_ago = Bytes::copy_from_slice(&later(-3600).0.to_be_bytes());
        assert!(world.get("trash/", &field).await.is_some());
        world.set("trash/", &field, long_ago).await;
    }
    assert_eq!(world.gc(true).await.deleted, sum(2, 1034));
    assert!(!world.has(objects[0]).await && !world.has(objects[1]).await);
    assert_eq!(world.look_deep().await, Vec::<String>::new());
}
