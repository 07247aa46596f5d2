//! Extended attributes, recorded reads, quotas, link counts.

use bytes::Bytes;
use hfmount::error::Kind;
use hfmount::meta::kv::{Key, inode_map};
use hfmount::meta::{
    Access, DataChange, LINK_MAX, Limits, Meta, RenameMode, SetAttr, SetXattr, XATTRS_MAX, Xattrs,
};
use hfmount::types::{FileType, Ino, Timestamp};

use crate::data::write;
use crate::publish::small_plan;
use crate::world::*;

const ROOT: Ino = Ino::ROOT;

async fn set(meta: &Meta, ino: Ino, name: &str, value: &[u8]) {
    meta.set_xattr(ino, name.as_bytes(), value, SetXattr::Any).await.expect("set");
}

async fn names(meta: &Meta, ino: Ino) -> Vec<Bytes> {
    meta.xattrs(ino).await.expect("read").0.into_iter().map(|(name, _)| name).collect()
}

pub async fn xattrs_are_kept(world: &World) {
    let (meta, other) = (world.mount().await, world.mount().await);
    let f = file(&meta, ROOT, "f").await;
    let made = meta.getattr(f).await.expect("getattr");
    assert!(!made.xattrs);
    assert_eq!(meta.xattrs(f).await.expect("none"), Xattrs::default());
    set(&meta, f, "user.a", b"1").await;
    let attr = other.getattr(f).await.expect("getattr");
    assert!(attr.xattrs && attr.ctime > made.ctime);
    assert_eq!((attr.version, attr.mtime), (made.version, made.mtime), "the data is what it was");
    set(&other, f, "user.b", b"\0\xff").await;
    set(&meta, f, "user.a", b"").await;
    let read = meta.xattrs(f).await.expect("read");
    assert_eq!(read.get(b"user.a").map(|v| &v[..]), Some(&b""[..]));
    assert_eq!(read.get(b"user.b").map(|v| &v[..]), Some(&b"\0\xff"[..]));
    assert_eq!(read.get(b"user"), None);

    let how = |name: &'static [u8], how| meta.set_xattr(f, name, b"x", how);
    assert_eq!(kind(how(b"user.a", SetXattr::Create).await), Kind::Exists);
    assert_eq!(kind(how(b"user.c", SetXattr::Replace).await), Kind::NoData);
    how(b"user.c", SetXattr::Create).await.expect("new");
    how(b"user.c", SetXattr::Replace).await.expect("there");
    assert_eq!(kind(other.remove_xattr(f, b"user.d").await), Kind::NoData);
    for name in [&b"user.a"[..], b"user.b", b"user.c"] {
        assert!(other.getattr(f).await.expect("getattr").xattrs);
        other.remove_xattr(f, name).await.expect("remove");
    }
    assert!(!meta.getattr(f).await.expect("getattr").xattrs);
    assert!(names(&meta, f).await.is_empty());
    // A mount that last saw it with some is not misled.
    set(&meta, f, "user.z", b"z").await;
    assert_eq!(names(&other, f).await, ["user.z"]);
    assert_eq!(kind(meta.set_xattr(Ino(1 << 50), b"user.x", b"", SetXattr::Any).await), Kind::Stale);
    assert_eq!(kind(meta.xattrs(Ino(1 << 50)).await), Kind::Stale);
}

pub async fn xattrs_are_bounded(world: &World) {
    let meta = world.mount().await;
    let f = file(&meta, ROOT, "f").await;
    let many = vec![7; XATTRS_MAX];
    set(&meta, f, "user.all", &many).await;
    assert_eq!(meta.xattrs(f).await.expect("read").get(b"user.all").map(Bytes::len), Some(XATTRS_MAX));
    assert_eq!(kind(meta.set_xattr(f, b"user.more", b"x", SetXattr::Any).await), Kind::NoSpace);
    set(&meta, f, "user.nothing", b"").await;
    assert_eq!(names(&meta, f).await, ["user.all", "user.nothing"]);
    let long = [b'n'; 256];
    assert_eq!(kind(meta.set_xattr(f, &long, b"x", SetXattr::Any).await), Kind::NameTooLong);
    let d = dir(&meta, ROOT, "d").await;
    let mut set = 0;
    // Names of 255 bytes and their ends: 256 of them.
    while {
        let name = format!("user.{set:0250}");
        meta.set_xattr(d, name.as_bytes(), b"", SetXattr::Any).await.is_ok()
    } {
        set += 1;
    }
    assert_eq!(set, XATTRS_MAX / 256);
}

pub async fn xattrs_stay_with_the_inode(world: &World) {
    let meta = world.mount().await;
    let d = dir(&meta, ROOT, "d").await;
    let f = file(&meta, d, "f").await;
    set(&meta, f, "user.kept", b"1").await;
    set(&meta, d, "user.dir", b"2").await;
    meta.rename(d, b"f", ROOT, b"g", RenameMode::Replace).await.expect("rename");
    meta.link(f, d, b"h").await.expect("link");
    write(&meta, f, 10_000).await;
    meta.setattr(f, SetAttr { mode: Some(0o600), ..SetAttr::default() }).await.expect("chmod");
    meta.unlink(ROOT, b"g").await.expect("unlink");
    assert_eq!(names(&meta, find(&meta, d, "h").await.ino).await, ["user.kept"]);
    assert_eq!(names(&meta, d).await, ["user.dir"]);
    // Without a name, but open.
    meta.unlink(d, b"h").await.expect("unlink");
    set(&meta, f, "user.late", b"3").await;
    assert_eq!(names(&meta, f).await, ["user.kept", "user.late"]);
    meta.reap_orphans(Timestamp(i64::MAX)).await.expect("reap");
    meta.rmdir(ROOT, b"d").await.expect("rmdir");
    for gone in [d, f] {
        let keys = ["a", "x", "m", "t"].map(|field| Key::new(inode_map(gone.0), field.as_bytes().to_vec()));
        assert_eq!(
            meta.kv().get(&keys).await.expect("get"),
            [None, None, None, None],
            "nothing is left of {gone}"
        );
    }
}

pub async fn two_mounts_set_xattrs_at_once(world: &World) {
    let mounts = [world.mount().await, world.mount().await];
    let f = file(&mounts[0], ROOT, "f").await;
    let tasks = (0..16).map(|n| {
        let meta = mounts[n % 2].clone();
        tokio::spawn(async move { set(&meta, f, &format!("user.{n}"), b"x").await })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("task");
    }
    assert_eq!(names(&mounts[0], f).await.len(), 16, "none is lost");
}

async fn atime(meta: &Meta, ino: Ino) -> Timestamp {
    meta.getattr(ino).await.expect("getattr").atime
}

pub async fn reads_are_recorded(world: &World) {
    let (meta, other) = (world.mount().await, world.mount().await);
    let f = file(&meta, ROOT, "f").await;
    let d = dir(&meta, ROOT, "d").await;
    let made = meta.getattr(f).await.expect("getattr");
    let later = |n: i64| Timestamp(made.atime.0 + n);
    let access = |ino, at| Access { ino, at, before: made.atime };
    let gone = access(Ino(1 << 50), later(9));
    let all = [access(f, later(10)), gone, Access { ino: d, at: later(1 << 40), before: Timestamp(0) }];
    assert_eq!(meta.record_accesses(&all).await.expect("record"), []);
    assert_eq!(meta.kv().get(&[Key::new("i1125899906842624", "t")]).await.expect("get"), [None]);
    assert_eq!((atime(&other, f).await, atime(&other, d).await), (later(10), later(1 << 40)));
    let attr = other.lookup(ROOT, b"f").await.expect("lookup").expect("there");
    assert_eq!(
        (attr.atime, attr.mtime, attr.ctime, attr.version),
        (later(10), made.mtime, made.ctime, made.version)
    );
    // It only moves forward.
    other.record_accesses(&[access(f, later(5))]).await.expect("record");
    assert_eq!(atime(&meta, f).await, later(10));
    // Set: then it is what was set, and a read from before does not count.
    let set = SetAttr { atime: Some(Timestamp(-7)), ..SetAttr::default() };
    assert_eq!(meta.setattr(f, set).await.expect("utimens").atime, Timestamp(-7));
    assert_eq!(atime(&other, f).await, Timestamp(-7));
    other.record_accesses(&[access(f, later(20))]).await.expect("record");
    assert_eq!(atime(&meta, f).await, Timestamp(-7));
    let again = Access { ino: f, at: later(30), before: Timestamp(-7) };
    other.record_accesses(&[again]).await.expect("record");
    assert_eq!(atime(&meta, f).await, later(30));
    // Nobody else's change is lost or hindered by it.
    write(&meta, f, 100).await;
    meta.setattr(f, SetAttr { mode: Some(0o600), ..SetAttr::default() }).await.expect("chmod");
    let attr = other.getattr(f).await.expect("getattr");
    assert_eq!((attr.size, attr.mode, attr.atime), (100, 0o600, later(30)));
}

pub async fn many_reads_are_recorded_while_files_change(world: &World) {
    let (meta, other) = (world.mount().await, world.mount().await);
    let mut files = Vec::new();
    for n in 0..300 {
        files.push(file(&meta, ROOT, &format!("f{n}")).await);
    }
    let at = Timestamp(Timestamp::now().0 + 1_000_000_000);
    let mut left: Vec<Access> = files.iter().map(|&ino| Access { ino, at, before: Timestamp(0) }).collect();
    let changed = files.clone();
    let changes = tokio::spawn(async move {
        for ino in changed {
            let set = SetAttr { mode: Some(0o640), ..SetAttr::default() };
            other.setattr(ino, set).await.expect("chmod");
        }
    });
    for _ in 0..100 {
        left = meta.record_accesses(&left).await.expect("record");
        if left.is_empty() {
            break;
        }
    }
    changes.await.expect("task");
    left = meta.record_accesses(&left).await.expect("record");
    assert_eq!(left, []);
    for attr in meta.getattrs(&files).await.expect("getattrs") {
        let attr = attr.expect("there");
        assert_eq!((attr.atime, attr.mode), (at, 0o640));
    }
}

pub async fn inodes_are_bounded(world: &World) {
    let (meta, other) = (world.mount().await, world.mount().await);
    let limits = Limits { inodes: Some(4), bytes: None };
    meta.set_limits(limits);
    other.set_limits(limits);
    assert_eq!(meta.limits(), limits);
    let d = dir(&meta, ROOT, "d").await;
    file(&other, d, "f").await;
    meta.make(d, b"link", new_symlink("f")).await.expect("symlink");
    for (name, kind_of) in [("x", FileType::File), ("x", FileType::Dir), ("x", FileType::Fifo)] {
        assert_eq!(kind(other.make(ROOT, name.as_bytes(), new(kind_of, 0o644)).await), Kind::NoSpace);
    }
    assert_eq!(kind(meta.make(ROOT, b"x", new_symlink("f")).await), Kind::NoSpace);
    assert!(is_absent(&meta, ROOT, "x").await);
    // What needs no inode goes on.
    meta.rename(d, b"f", ROOT, b"g", RenameMode::Replace).await.expect("rename");
    meta.link(find(&meta, ROOT, "g").await.ino, d, b"h").await.expect("link");
    assert_eq!(meta.usage().await.expect("usage").inodes, 4);
    meta.unlink(d, b"link").await.expect("unlink");
    file(&other, ROOT, "x").await;
    // A bound that was lowered stands in nobody's way who deletes.
    meta.set_limits(Limits { inodes: Some(1), bytes: Some(0) });
    for (dir, name) in [(ROOT, "x"), (ROOT, "g"), (d, "h")] {
        meta.unlink(dir, name.as_bytes()).await.expect("unlink");
    }
    meta.rmdir(ROOT, b"d").await.expect("rmdir");
    assert_eq!(meta.usage().await.expect("usage").inodes, 1);
}

pub async fn bytes_are_bounded(world: &World) {
    let meta = world.mount().await;
    meta.set_limits(Limits { bytes: Some(10_000), inodes: None });
    let (f, g) = (file(&meta, ROOT, "f").await, file(&meta, ROOT, "g").await);
    write(&meta, f, 9_000).await;
    let before = meta.getattr(g).await.expect("getattr");
    let change = |size| DataChange { size, ..DataChange::default() };
    let refused = meta.commit_data(g, before.version, change(1_001)).await;
    assert_eq!(kind(refused), Kind::NoSpace);
    assert_eq!(meta.getattr(g).await.expect("getattr"), before, "nothing half written");
    let inline = DataChange { size: 4, inline: Some(Bytes::from_static(b"data")), ..change(4) };
    let _ = meta.commit_data(g, before.version, inline).await.expect("there is room");
    assert_eq!(meta.usage().await.expect("usage").bytes, 9_004);
    assert_eq!(kind(meta.room_for(997).await), Kind::NoSpace);
    meta.room_for(996).await.expect("room");
    meta.promise(990);
    assert_eq!(kind(meta.room_for(7).await), Kind::NoSpace);
    meta.promise(-990);
    // Smaller is always possible, also when it is still too much.
    meta.set_limits(Limits { bytes: Some(100), inodes: None });
    write(&meta, f, 8_000).await;
    assert_eq!(meta.usage().await.expect("usage").bytes, 8_004);
    // An open file without a name counts no more, whatever becomes of it.
    meta.unlink(ROOT, b"f").await.expect("unlink");
    assert_eq!(meta.usage().await.expect("usage").bytes, 4);
    write(&meta, f, 1 << 40).await;
    meta.reap_orphans(Timestamp(i64::MAX)).await.expect("reap");
    assert_eq!(meta.usage().await.expect("usage").bytes, 4);
}

pub async fn quotas_hold_against_races(world: &World) {
    const FILES: u64 = 20;
    let mounts = [world.mount().await, world.mount().await];
    for meta in &mounts {
        meta.set_limits(Limits { bytes: Some(5_500), inodes: Some(1 + FILES) });
    }
    let tasks = (0..2 * FILES).map(|n| {
        let meta = mounts[n as usize % 2].clone();
        tokio::spawn(async move {
            let name = format!("f{n}");
            let made = match meta.make(ROOT, name.as_bytes(), new(FileType::File, 0o644)).await {
                Ok(attr) => attr,
                Err(e) => return assert_eq!(e.kind(), Kind::NoSpace),
            };
            let change = DataChange { size: 1_000, ..DataChange::default() };
            if let Err(e) = meta.commit_data(made.ino, made.version, change).await {
                assert_eq!(e.kind(), Kind::NoSpace);
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.expect("task");
    }
    let usage = mounts[0].usage().await.expect("usage");
    assert_eq!((usage.inodes, usage.bytes), (1 + FILES, 5_000));
    let all = list(&mounts[0], ROOT).await;
    assert_eq!(all.len() as u64, FILES);
    for name in all {
        mounts[1].unlink(ROOT, name.as_bytes()).await.expect("unlink");
    }
    let usage = mounts[0].usage().await.expect("usage");
    assert_eq!((usage.inodes, usage.bytes), (1, 0), "nothing drifts");
}

pub async fn what_the_hub_brings_counts_nothing(world: &World) {
    let meta = world.mount().await;
    meta.set_limits(Limits { bytes: Some(3), inodes: Some(2) });
    file(&meta, ROOT, "mine").await;
    for n in 1..=2 {
        meta.publish_commit(small_plan("org/name", n)).await.expect("published all the same");
    }
    let usage = meta.usage().await.expect("usage");
    assert_eq!((usage.inodes, usage.bytes), (2, 0));
    let repo = walk(&meta, "models--org--name").await;
    let refs = walk(&meta, "models--org--name/refs").await;
    meta.set_ref(refs.ino, "other", commit(9)).await.expect("ref");
    let blobs = walk(&meta, "models--org--name/blobs").await;
    let names = list(&meta, blobs.ino).await;
    let blob = find(&meta, blobs.ino, &names[0]).await;
    // Giving it away is no writing.
    let chown = SetAttr { uid: Some(7), ..SetAttr::default() };
    meta.setattr(blob.ino, chown).await.expect("chown");
    // Writing to it makes it the user's, with all of its size; its inode is not refused.
    let change = |size| DataChange { size, ..DataChange::default() };
    let refused = meta.commit_data(blob.ino, blob.version, change(4)).await;
    assert_eq!(kind(refused), Kind::NoSpace);
    let _ = meta.commit_data(blob.ino, blob.version, change(3)).await.expect("written");
    let usage = meta.usage().await.expect("usage");
    assert_eq!((usage.inodes, usage.bytes), (3, 3));
    // All of it can be deleted, and nothing drifts.
    remove_all(&meta, repo.ino).await;
    meta.rmdir(ROOT, b"models--org--name").await.expect("rmdir");
    let usage = meta.usage().await.expect("usage");
    assert_eq!((usage.inodes, usage.bytes), (2, 0));
}

async fn remove_all(meta: &Meta, dir: Ino) {
    for entry in meta.readdir(dir, 0, 10_000).await.expect("readdir") {
        if entry.kind == FileType::Dir {
            Box::pin(remove_all(meta, entry.ino)).await;
            meta.rmdir(dir, &entry.name).await.expect("rmdir");
        } else {
            meta.unlink(dir, &entry.name).await.expect("unlink");
        }
    }
}

/// Files that are nothing but holes: their sizes must not add up to what no number holds.
pub async fn huge_sizes_add_up(world: &World) {
    let meta = world.mount().await;
    for n in 0..20 {
        let f = file(&meta, ROOT, &format!("f{n}")).await;
        write(&meta, f, i64::MAX as u64).await;
    }
    for n in 0..20 {
        meta.unlink(ROOT, format!("f{n}").as_bytes()).await.expect("unlink");
    }
    assert_eq!(meta.usage().await.expect("usage").bytes, 0);
}

/// 65,536 names, and not one more. In memory only: it is a number that is tested.
#[tokio::test]
async fn an_inode_has_64_ki_links() {
    let world = World::memory();
    let meta = world.mount().await;
    let d = dir(&meta, ROOT, "d").await;
    let f = file(&meta, d, "0").await;
    for n in 1..LINK_MAX {
        meta.link(f, d, n.to_string().as_bytes()).await.expect("link");
    }
    assert_eq!(nlink(&meta, f).await, 65_536);
    assert_eq!(kind(meta.link(f, ROOT, b"one more").await), Kind::TooManyLinks);
    meta.unlink(d, b"7").await.expect("unlink");
    meta.link(f, ROOT, b"one more").await.expect("link");
}
