//! Making, finding, listing and removing names; attributes.

use std::time::Duration;

use bytes::Bytes;
use hfmount::error::Kind;
use hfmount::meta::kv::Change;
use hfmount::meta::{Content, New, Role, SetAttr};
use hfmount::types::{FileType, Ino, Timestamp};

use crate::decorators::Faulty;
use crate::world::*;

const ROOT: Ino = Ino::ROOT;

pub async fn what_is_made_is_found(world: &World) {
    let meta = world.mount().await;
    let root = meta.getattr(ROOT).await.expect("root");
    assert_eq!((root.kind, root.nlink, root.role), (FileType::Dir, 2, Some(Role::Root)));

    let made = meta.make(ROOT, b"f", new(FileType::File, 0o640)).await.expect("create");
    assert_eq!((made.kind, made.mode, made.nlink, made.size), (FileType::File, 0o640, 1, 0));
    assert_eq!((made.uid, made.gid, made.hub, made.content.clone()), (1000, 100, false, Content::None));
    assert_eq!(find(&meta, ROOT, "f").await, made);
    assert_eq!(meta.getattr(made.ino).await.expect("getattr"), made);

    let sub = dir(&meta, ROOT, "d").await;
    let link = meta.make(sub, b"l", new_symlink("../f")).await.expect("symlink");
    assert_eq!(link.content, Content::Symlink(Bytes::from_static(b"../f")));
    assert_eq!((link.size, find(&meta, sub, "l").await), (4, link));
    let node = New { rdev: 0x0103, ..new(FileType::CharDevice, 0o600) };
    assert_eq!(meta.make(sub, b"null", node).await.expect("mknod").rdev, 0x0103);
    for (name, kind) in [("p", FileType::Fifo), ("s", FileType::Socket)] {
        meta.make(sub, name.as_bytes(), new(kind, 0o600)).await.expect("mknod");
        assert_eq!(find(&meta, sub, name).await.kind, kind);
    }

    assert_eq!(list(&meta, ROOT).await, ["d", "f"]);
    assert_eq!(list(&meta, sub).await, ["l", "null", "p", "s"]);
    assert_eq!((nlink(&meta, ROOT).await, nlink(&meta, sub).await), (3, 2));
    assert_eq!(kind(meta.make(ROOT, b"f", new(FileType::Dir, 0o755)).await), Kind::Exists);
    assert!(is_absent(&meta, ROOT, "g").await);
    let (missing, both) = (Ino(1 << 50), [made.ino, Ino(1 << 50), sub]);
    assert_eq!(kind(meta.getattr(missing).await), Kind::Stale);
    let attrs = meta.getattrs(&both).await.expect("getattrs");
    assert_eq!(attrs.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);

    let other = world.mount().await;
    assert_eq!(find(&other, ROOT, "f").await, made);
    assert_ne!(file(&other, ROOT, "g").await, made.ino);
}

pub async fn names_that_cannot_be(world: &World) {
    let meta = world.mount().await;
    let longest = "n".repeat(255);
    file(&meta, ROOT, &longest).await;
    assert_eq!(list(&meta, ROOT).await, [longest]);
    let long = [b'n'; 256];
    assert_eq!(kind(meta.make(ROOT, &long, new(FileType::File, 0)).await), Kind::NameTooLong);
    assert_eq!(kind(meta.lookup(ROOT, &long).await), Kind::NameTooLong);
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
        assert_eq!(kind(meta.make(ROOT, name, new(FileType::File, 0)).await), Kind::Invalid);
    }
    // Anything else is a name, UTF-8 or not.
    meta.make(ROOT, b"\xff\n", new(FileType::File, 0)).await.expect("odd name");
    assert!(meta.lookup(ROOT, b"\xff\n").await.expect("lookup").is_some());
    let target = "t".repeat(4096);
    assert_eq!(kind(meta.make(ROOT, b"l", new_symlink(&target)).await), Kind::NameTooLong);
    assert_eq!(kind(meta.make(ROOT, b"l", new_symlink("")).await), Kind::Invalid);
    meta.make(ROOT, b"l", new_symlink(&target[1..])).await.expect("longest target");
}

pub async fn parents_that_cannot_be(world: &World) {
    let meta = world.mount().await;
    let f = file(&meta, ROOT, "f").await;
    let d = dir(&meta, ROOT, "d").await;
    assert_eq!(kind(meta.make(f, b"x", new(FileType::File, 0)).await), Kind::NotDirectory);
    assert_eq!(kind(meta.link(f, f, b"x").await), Kind::NotDirectory);
    meta.rmdir(ROOT, b"d").await.expect("rmdir");
    assert_eq!(kind(meta.make(d, b"x", new(FileType::File, 0)).await), Kind::Stale);
    assert_eq!(kind(meta.link(f, d, b"x").await), Kind::Stale);
    assert_eq!(kind(meta.unlink(d, b"x").await), Kind::NotFound);
    assert!(is_absent(&meta, d, "x").await);
    assert_eq!(list(&meta, d).await, [""; 0]);
}

pub async fn links_are_counted(world: &World) {
    let meta = world.mount().await;
    let d = dir(&meta, ROOT, "d").await;
    let f = file(&meta, ROOT, "f").await;
    let linked = meta.link(f, d, b"g").await.expect("link");
    assert_eq!((linked.ino, linked.nlink), (f, 2));
    assert_eq!(kind(meta.link(f, d, b"g").await), Kind::Exists);
    assert_eq!(kind(meta.link(d, ROOT, b"e").await), Kind::NotPermitted);
    assert_eq!(meta.unlink(ROOT, b"f").await.expect("unlink").attr.nlink, 1);
    assert_eq!(find(&meta, d, "g").await.nlink, 1);
    assert_eq!(meta.unlink(d, b"g").await.expect("unlink").attr.nlink, 0);
    assert_eq!(kind(meta.unlink(d, b"g").await), Kind::NotFound);
    // Who has it open still sees it; a name it does not get any more.
    assert_eq!(nlink(&meta, f).await, 0);
    assert_eq!(kind(meta.link(f, d, b"g").await), Kind::NotFound);

    let l = meta.make(d, b"l", new_symlink("x")).await.expect("symlink").ino;
    meta.link(l, d, b"m").await.expect("link of a symlink");
    meta.unlink(d, b"l").await.expect("unlink");
    assert_eq!(meta.unlink(d, b"m").await.expect("unlink").attr.nlink, 0);
    assert_eq!(kind(meta.getattr(l).await), Kind::Stale);
}

pub async fn removing_the_wrong_kind(world: &World) {
    let meta = world.mount().await;
    file(&meta, ROOT, "f").await;
    dir(&meta, ROOT, "d").await;
    assert_eq!(kind(meta.unlink(ROOT, b"d").await), Kind::IsDirectory);
    assert_eq!(kind(meta.rmdir(ROOT, b"f").await), Kind::NotDirectory);
    assert_eq!(kind(meta.rmdir(ROOT, b"g").await), Kind::NotFound);
    assert_eq!(list(&meta, ROOT).await, ["d", "f"]);
}

pub async fn directories_must_be_empty(world: &World) {
    let meta = world.mount().await;
    let d = dir(&meta, ROOT, "d").await;
    let e = dir(&meta, d, "e").await;
    assert_eq!(kind(meta.rmdir(ROOT, b"d").await), Kind::NotEmpty);
    assert_eq!(meta.rmdir(d, b"e").await.expect("rmdir").attr.nlink, 0);
    assert_eq!(kind(meta.getattr(e).await), Kind::Stale);
    assert_eq!((nlink(&meta, d).await, nlink(&meta, ROOT).await), (2, 3));
    file(&meta, d, "f").await;
    assert_eq!(kind(meta.rmdir(ROOT, b"d").await), Kind::NotEmpty);
    meta.unlink(d, b"f").await.expect("unlink");
    meta.rmdir(ROOT, b"d").await.expect("rmdir");
    assert_eq!(nlink(&meta, ROOT).await, 2);
}

/// Who has it open sees when its last name went, whatever this mount knew of it.
pub async fn a_removed_directory_keeps_its_time(world: &World) {
    let meta = world.mount().await;
    let old = Timestamp(1_000_000_000);
    for known in [true, false] {
        let d = dir(&meta, ROOT, "d").await;
        file(&meta, d, "f").await;
        meta.setattr(d, SetAttr { mtime: Some(old), ..SetAttr::default() }).await.expect("utimens");
        let remover = if known { meta.clone() } else { world.mount().await };
        assert_eq!(find(&meta, ROOT, "d").await.mtime, old);
        remover.unlink(d, b"f").await.expect("unlink");
        let changed = find(&remover, ROOT, "d").await.mtime;
        assert!(changed > old);
        if known {
            // The row is known, and when its names changed is not any more.
            meta.heard(&[Change::Entry { parent: d, name: Bytes::from_static(b"other") }]);
        }
        assert_eq!(remover.rmdir(ROOT, b"d").await.expect("rmdir").attr.mtime, changed);
    }
}

pub async fn set_group_id_is_handed_down(world: &World) {
    let meta = world.mount().await;
    let d = meta.make(ROOT, b"d", new(FileType::Dir, 0o2775)).await.expect("mkdir").ino;
    meta.setattr(d, SetAttr { gid: Some(55), ..SetAttr::default() }).await.expect("chown");
    let sub = meta.make(d, b"s", new(FileType::Dir, 0o755)).await.expect("mkdir");
    assert_eq!((sub.gid, sub.mode), (55, 0o2755));
    let f = meta.make(sub.ino, b"f", new(FileType::File, 0o644)).await.expect("create");
    assert_eq!((f.gid, f.mode), (55, 0o644));
}

pub async fn locks_are_for_everybody(world: &World) {
    let meta = world.mount().await;
    let locks = New { role: Some(Role::Locks), ..new(FileType::Dir, 0o700) };
    let locks = meta.make(ROOT, b".locks", locks).await.expect("mkdir");
    assert_eq!((locks.mode, locks.role), (0o777, Some(Role::Locks)));
    let repo = meta.make(locks.ino, b"models--a", new(FileType::Dir, 0o755)).await.expect("mkdir");
    assert_eq!((repo.mode, repo.role), (0o777, Some(Role::Locks)));
    let lock = meta.make(repo.ino, b"x.lock", new(FileType::File, 0o600)).await.expect("create");
    assert_eq!((lock.mode, lock.role), (0o666, None));
    let shared = New { role: Some(Role::SharedBlobs), ..new(FileType::Dir, 0o755) };
    let shared = meta.make(ROOT, b"blobs", shared).await.expect("mkdir").ino;
    let sub = meta.make(shared, b"e1", new(FileType::Dir, 0o755)).await.expect("mkdir");
    assert_eq!((sub.mode, sub.role), (0o777, Some(Role::SharedBlobs)));
    let blob = meta.make(sub.ino, b"b", new(FileType::File, 0o444)).await.expect("create");
    assert_eq!(blob.mode, 0o444);
}

pub async fn times_of_directories(world: &World) {
    let meta = world.mount().await;
    let made = meta.make(ROOT, b"d", new(FileType::Dir, 0o755)).await.expect("mkdir");
    let d = made.ino;
    tokio::time::sleep(Duration::from_millis(2)).await;
    file(&meta, d, "f").await;
    let after = meta.getattr(d).await.expect("getattr");
    assert!(after.mtime > made.mtime && after.ctime == after.mtime);
    // A time that was set holds until the next change, also one in the future.
    for set in [Timestamp(1_000), Timestamp(Timestamp::now().0 + 3_600_000_000_000)] {
        let change = SetAttr { mtime: Some(set), ..SetAttr::default() };
        let attr = meta.setattr(d, change).await.expect("utimens");
        assert_eq!((attr.mtime, attr.nlink), (set, 2));
        assert_eq!(meta.getattr(d).await.expect("getattr"), attr);
        assert!(attr.ctime > after.ctime && attr.ctime <= Timestamp::now());
        let name = format!("f{}", set.0);
        file(&meta, d, &name).await;
        let mtime = meta.getattr(d).await.expect("getattr").mtime;
        assert!(mtime != set && mtime <= Timestamp::now());
    }
}

pub async fn attributes_change_as_posix_says(world: &World) {
    let meta = world.mount().await;
    let made = meta.make(ROOT, b"f", new(FileType::File, 0o6755)).await.expect("create");
    let none = SetAttr::default();
    assert_eq!(meta.setattr(made.ino, none).await.expect("nothing"), made);
    let attr = meta.setattr(made.ino, SetAttr { mode: Some(0o6711), ..none }).await.expect("chmod");
    assert_eq!((attr.mode, attr.version), (0o6711, made.version));
    assert!(attr.ctime >= made.ctime && attr.mtime == made.mtime);
    // Giving it away takes the bits that lend rights.
    let attr = meta.setattr(made.ino, SetAttr { uid: Some(5), ..none }).await.expect("chown");
    assert_eq!((attr.mode, attr.uid, attr.gid), (0o711, 5, 100));
    let both = SetAttr { gid: Some(6), mode: Some(0o4700), ..none };
    assert_eq!(meta.setattr(made.ino, both).await.expect("both").mode, 0o4700);
    // Without execution by the group the bit means mandatory locking, and stays.
    meta.setattr(made.ino, SetAttr { mode: Some(0o2644), ..none }).await.expect("chmod");
    let attr = meta.setattr(made.ino, SetAttr { gid: Some(7), ..none }).await.expect("chown");
    assert_eq!((attr.mode, attr.gid), (0o2644, 7));
    let times = SetAttr { atime: Some(Timestamp(5)), mtime: Some(Timestamp(-6)), ..none };
    let attr = meta.setattr(made.ino, times).await.expect("utimens");
    assert_eq!((attr.atime, attr.mtime), (Timestamp(5), Timestamp(-6)));
    assert_eq!(find(&world.mount().await, ROOT, "f").await, attr);
    let d = meta.make(ROOT, b"d", new(FileType::Dir, 0o2775)).await.expect("mkdir");
    let attr = meta.setattr(d.ino, SetAttr { gid: Some(9), ..none }).await.expect("chown");
    assert_eq!((attr.mode, attr.gid), (0o2775, 9));
    assert_eq!(kind(meta.setattr(Ino(1 << 50), times).await), Kind::Stale);
}

pub async fn owners_of_what_is_from_the_hub(world: &World) {
    let meta = world.mount().await;
    let plan = crate::publish::small_plan("org/name", 1);
    let repo = meta.publish_commit(plan).await.expect("publish").repo_dir;
    let before = meta.getattr(repo).await.expect("getattr");
    assert!(before.hub && !before.mode_set);
    let chmod = SetAttr { mode: Some(0o700), ..SetAttr::default() };
    let attr = meta.setattr(repo, chmod).await.expect("chmod");
    assert_eq!((attr.hub, attr.mode_set, attr.mode), (true, true, 0o700));
    assert_eq!((attr.nlink, attr.role), (before.nlink, before.role));
    let chown = SetAttr { uid: Some(4), gid: Some(5), ..SetAttr::default() };
    let attr = meta.setattr(repo, chown).await.expect("chown");
    assert_eq!((attr.hub, attr.uid, attr.gid, attr.mode), (false, 4, 5, 0o700));
}

pub async fn listings_go_on_where_they_ended(world: &World) {
    let meta = world.mount().await;
    let d = dir(&meta, ROOT, "d").await;
    for n in 0..30 {
        file(&meta, d, &format!("{n:02}")).await;
    }
    let first = meta.readdir(d, 0, 10).await.expect("readdir");
    assert_eq!(first.len(), 10);
    // What was listed goes, what was not listed goes, something comes.
    for n in [3, 25] {
        meta.unlink(d, format!("{n:02}").as_bytes()).await.expect("unlink");
    }
    file(&meta, d, "new").await;
    let rest = meta.readdir(d, first[9].id, 100).await.expect("readdir");
    let mut names: Vec<_> = rest.iter().map(|e| e.name.clone()).collect();
    names.retain(|name| name != "new");
    let expected: Vec<_> = (10..30).filter(|n| *n != 25).map(|n| Bytes::from(format!("{n:02}"))).collect();
    assert_eq!(names, expected);
    assert!(rest.iter().all(|e| e.id > first[9].id && e.kind == FileType::File));
    // Replaced by a rename, an entry keeps its place.
    let before = rest[0].id;
    meta.rename(d, b"20", d, b"10", hfmount::meta::RenameMode::Replace).await.expect("rename");
    let again = meta.readdir(d, first[9].id, 1).await.expect("readdir");
    assert_eq!((again[0].id, &again[0].name[..]), (before, &b"10"[..]));
}

/// Two mounts whose events never arrive in time: the hints of one are wrong after each step of the other.
pub async fn another_mount_is_never_misled_by_hints(world: &World) {
    let (a, b) = (world.mount().await, world.mount().await);
    let d = dir(&a, ROOT, "d").await;
    let f = file(&a, d, "f").await;
    find(&a, d, "f").await;
    b.link(f, d, b"g").await.expect("link");
    assert_eq!(a.unlink(d, b"f").await.expect("unlink").attr.nlink, 1);
    find(&a, d, "g").await;
    b.unlink(d, b"g").await.expect("unlink");
    assert_eq!(kind(a.unlink(d, b"g").await), Kind::NotFound);

    let f = file(&a, d, "f").await;
    b.rename(d, b"f", d, b"h", hfmount::meta::RenameMode::Replace).await.expect("rename");
    dir(&b, d, "f").await;
    assert_eq!(kind(a.unlink(d, b"f").await), Kind::IsDirectory);
    b.setattr(f, SetAttr { mode: Some(0o600), ..SetAttr::default() }).await.expect("chmod");
    let attr = a.setattr(f, SetAttr { uid: Some(3), ..SetAttr::default() }).await.expect("chown");
    assert_eq!((attr.mode, attr.uid), (0o600, 3));
    b.rmdir(d, b"f").await.expect("rmdir");
    b.unlink(d, b"h").await.expect("unlink");
    b.rmdir(ROOT, b"d").await.expect("rmdir");
    assert_eq!(kind(a.make(d, b"x", new(FileType::File, 0)).await), Kind::Stale);
    assert_eq!(list(&a, ROOT).await, [""; 0]);
}

pub async fn usage_counts(world: &World) {
    let meta = world.mount().await;
    let count = async || {
        let usage = meta.usage().await.expect("usage");
        (usage.inodes, usage.bytes)
    };
    assert_eq!(count().await, (1, 0));
    let d = dir(&meta, ROOT, "d").await;
    let f = file(&meta, d, "f").await;
    meta.link(f, d, b"g").await.expect("link");
    crate::data::write(&meta, f, 10_000).await;
    assert_eq!(count().await, (3, 10_000));
    file(&meta, d, "h").await;
    meta.rename(d, b"h", d, b"g", hfmount::meta::RenameMode::Replace).await.expect("rename");
    assert_eq!(count().await, (4, 10_000));
    meta.unlink(d, b"f").await.expect("unlink");
    meta.unlink(d, b"g").await.expect("unlink");
    meta.rmdir(ROOT, b"d").await.expect("rmdir");
    assert_eq!(count().await, (1, 0));
}

pub async fn tombstones(world: &World) {
    let meta = world.mount().await;
    let role = Some(Role::Repo(model_repo("a/b")));
    let repo = New { role: role.clone(), ..new(FileType::Dir, 0o755) };
    let name = b"models--a--b";
    meta.make(ROOT, name, repo.clone()).await.expect("mkdir");
    assert_eq!(meta.tombstone(name).await.expect("tombstone"), None);
    meta.rmdir(ROOT, name).await.expect("rmdir");
    assert!(meta.tombstone(name).await.expect("tombstone").is_some());
    meta.make(ROOT, name, repo).await.expect("mkdir ends it");
    assert_eq!(meta.tombstone(name).await.expect("tombstone"), None);
    meta.rename(ROOT, name, ROOT, b"kept", hfmount::meta::RenameMode::NoReplace).await.expect("rename");
    assert!(meta.tombstone(name).await.expect("tombstone").is_some());
    assert_eq!(find(&meta, ROOT, "kept").await.role, role);
    meta.rename(ROOT, b"kept", ROOT, name, hfmount::meta::RenameMode::NoReplace).await.expect("back");
    assert_eq!(meta.tombstone(name).await.expect("tombstone"), None);
    meta.set_tombstone(name, Some(Timestamp(5))).await.expect("set");
    assert_eq!(meta.tombstone(name).await.expect("tombstone"), None, "it ran out");
    meta.set_tombstone_ttl(Duration::ZERO);
    meta.rmdir(ROOT, name).await.expect("rmdir");
    assert_eq!(meta.tombstone(name).await.expect("tombstone"), None);
    // What never was a repository leaves none.
    dir(&meta, ROOT, "models--c").await;
    meta.set_tombstone_ttl(Duration::from_secs(60));
    meta.rmdir(ROOT, b"models--c").await.expect("rmdir");
    assert_eq!(meta.tombstone(b"models--c").await.expect("tombstone"), None);
}

/// What the design promises: one round trip when what a verb expects is known, two otherwise.
#[tokio::test]
async fn verbs_take_one_round_trip() {
    let world = World::memory();
    let kv = Faulty::new(world.kv().await);
    let meta = mount_on(kv.clone(), Duration::from_secs(600)).await;
    let d = dir(&meta, ROOT, "d").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    kv.round_trips();
    let counted = |words: &str, trips: (u64, u64)| assert_eq!(kv.round_trips(), trips, "{words}");
    for n in 0..20 {
        file(&meta, d, &n.to_string()).await;
    }
    counted("20 creates", (0, 20));
    find(&meta, d, "1").await;
    counted("lookup", (1, 0));
    meta.unlink(d, b"1").await.expect("unlink");
    counted("unlink", (0, 1));
    meta.rename(d, b"2", d, b"3", hfmount::meta::RenameMode::Replace).await.expect("rename");
    counted("rename over a file", (0, 1));
    meta.rename(d, b"4", d, b"x", hfmount::meta::RenameMode::Replace).await.expect("rename");
    counted("rename to a free name", (1, 1));
    let f = find(&meta, d, "5").await;
    counted("lookup", (1, 0));
    meta.setattr(f.ino, SetAttr { mode: Some(0o600), ..SetAttr::default() }).await.expect("chmod");
    counted("chmod", (0, 1));
    crate::data::write(&meta, f.ino, 100_000).await;
    counted("getattr and the first data commit", (1, 1));
    meta.link(f.ino, d, b"y").await.expect("link");
    counted("link", (0, 1));
    assert!(meta.try_lock(f.ino, 1, hfmount::meta::LockKind::Exclusive).await.expect("lock"));
    meta.unlock(f.ino, 1).await.expect("unlock");
    counted("lock and unlock", (0, 2));
    let other = mount_on(world.kv().await, Duration::from_secs(600)).await;
    find(&other, d, "6").await;
    meta.rmdir(d, b"6").await.expect_err("a file");
    counted("a guess that would be an error is confirmed", (1, 0));
}
