//! Each kind of damage is found, told by path or inode, repaired if that is possible, and then gone.

mod bin;
mod content;

use bytes::Bytes;

use super::*;
use crate::admin::world::{CHUNK, World, extent, mount, pattern};
use crate::meta::faulty::FaultyKv;
use crate::meta::survey::Survey;
use crate::meta::{Binned, Committed, Content, DataChange, Keep, New};
use crate::source::bucket::Object;
use crate::types::{Extent, Timestamp};

fn entry(ino: Ino, kind: u8) -> Bytes {
    let mut value = ino.0.to_be_bytes().to_vec();
    value.push(kind);
    value.into()
}

fn map(ino: Ino) -> String {
    format!("i{ino}")
}

fn dir_map(ino: Ino) -> String {
    format!("d{ino}/")
}

/// Some of everything.
async fn volume() -> World {
    let world = World::new().await;
    let dir = world.make(Ino::ROOT, "dir", FileType::Dir).await.ino;
    let sub = world.make(dir, "sub", FileType::Dir).await.ino;
    let file = world.make(sub, "file", FileType::File).await.ino;
    world.meta.link(file, dir, b"link").await.expect("link");
    world.make(dir, "symlink", FileType::Symlink).await;
    world.make(Ino::ROOT, "fifo", FileType::Fifo).await;
    world.file("data", &[pattern(1, CHUNK as usize), pattern(2, 100)]).await;
    let small = world.make(Ino::ROOT, "small", FileType::File).await;
    let inline = DataChange { size: 3, inline: Some(Bytes::from_static(b"abc")), ..DataChange::default() };
    let done = world.meta.commit_data(small.ino, small.version, inline).await.expect("commit");
    assert!(matches!(done, Committed::Applied(_)));
    world
}

async fn ino(world: &World, path: &str) -> Ino {
    crate::admin::find(&world.place.survey, path.as_bytes(), false).await.expect("read").expect(path)
}

/// That `expected` is all that is found, that it is repaired, and that nothing is wrong then.
async fn repairs(world: &World, expected: &[&str]) {
    assert_eq!(world.look().await, expected);
    assert_eq!(world.repair().await, Vec::<String>::new());
    assert_eq!(world.look_deep().await, Vec::<String>::new());
}

/// That `expected` is all that is found, and that repairing leaves it.
async fn stays(world: &World, expected: &[&str]) {
    assert_eq!(world.look().await, expected);
    assert_eq!(world.repair().await, expected);
    assert_eq!(world.look().await, expected);
}

#[tokio::test]
async fn a_sound_volume_is_clean() {
    let world = volume().await;
    world.hub_file(BlobId::Sha256([7; 32]), &Bytes::new()).await;
    let open = world.make(Ino::ROOT, "open", FileType::File).await;
    world.meta.unlink(Ino::ROOT, b"open").await.expect("unlink");
    let options = FsckOptions { deep: true, ..FsckOptions::default() };
    let (report, found) = world.run(options).await;
    assert_eq!(found, []);
    assert_eq!((report.files, report.read), (1, u64::from(CHUNK) + 100), "{report:?}");
    assert!(!report.uncounted && report.restless == 0, "{report:?}");
    assert!(world.place.survey.inode(open.ino).await.expect("read").is_some(), "kept for who has it open");
}

#[tokio::test]
async fn names_that_lead_nowhere() {
    let world = volume().await;
    let file = world.make(Ino::ROOT, "gone", FileType::File).await.ino;
    let dir = world.make(Ino::ROOT, "gone-dir", FileType::Dir).await.ino;
    world.del_map(&map(file)).await;
    world.del_map(&map(dir)).await;
    let found = world.look().await;
    assert_eq!(
        found[..2],
        [
            format!("/gone: it leads to inode {file}, which is not there [--repair: removes the name]"),
            format!("/gone-dir: it leads to inode {dir}, which is not there [--repair: removes the name]")
        ]
    );
    // Two inodes that are gone are counted still.
    assert!(found[2].contains("the volume holds"), "{found:?}");
    assert_eq!(world.repair().await, Vec::<String>::new());
    assert_eq!(world.look().await, Vec::<String>::new());
    assert!(world.meta.lookup(Ino::ROOT, b"gone").await.expect("lookup").is_none());
}

#[tokio::test]
async fn a_name_that_cannot_be_read_stays() {
    let world = volume().await;
    let dir = ino(&world, "dir").await;
    world.set(&dir_map(dir), b"odd\n", Bytes::from_static(b"x")).await;
    let found = world.look().await;
    assert!(found.len() == 1 && found[0].starts_with("/dir/odd\\n: it cannot be read"), "{found:?}");
    assert_eq!(world.repair().await, found);
}

#[tokio::test]
async fn a_name_that_says_the_wrong_kind() {
    let world = volume().await;
    let fifo = ino(&world, "fifo").await;
    world.set("d1/", b"fifo", entry(fifo, 0)).await;
    let what =
        format!("/fifo: it says that inode {fifo} is a File, and that is a Fifo [--repair: says what it is]");
    repairs(&world, &[&what]).await;
    world.set("d1/", b"fifo", entry(fifo, 1)).await;
    assert!(world.look().await.contains(&what.replace("a File", "a Dir")), "{:?}", world.look().await);
    assert_eq!(world.repair().await, Vec::<String>::new());
    assert_eq!(world.look().await, Vec::<String>::new());
}

#[tokio::test]
async fn what_has_no_name_gets_one() {
    let world = volume().await;
    let (dir, sub) = (ino(&world, "dir").await, ino(&world, "dir/sub").await);
    let data = ino(&world, "data").await;
    world.del("d1/", b"data").await;
    world.del(&dir_map(dir), b"sub").await;
    world.set(&map(dir), b"n", Bytes::from_static(b"0")).await;
    let lost =
        |ino, what: &str| format!("inode {ino}: {what} has no name [--repair: gives it one in lost+found]");
    let expected = [lost(sub, "a Dir of 0 bytes"), lost(data, "a File of 1124 bytes")];
    assert_eq!(world.look().await, expected);
    assert_eq!(world.repair().await, Vec::<String>::new());
    assert_eq!(world.look_deep().await, Vec::<String>::new());
    assert_eq!(ino(&world, &format!("lost+found/{data}")).await, data);
    assert!(ino(&world, &format!("lost+found/{sub}/file")).await.0 > 0, "with all that is in it");
    // The next one comes beside them.
    world.del("d1/", b"small").await;
    assert_eq!(world.repair().await, Vec::<String>::new());
    assert_eq!(world.look().await, Vec::<String>::new());
}

#[tokio::test]
async fn counts_and_places() {
    let world = volume().await;
    let (dir, sub) = (ino(&world, "dir").await, ino(&world, "dir/sub").await);
    let file = ino(&world, "dir/sub/file").await;
    world.change_row(file, |row| row.nlink = 1).await;
    let what = format!("/dir/link (inode {file}): it has 2 names and says 1 [--repair: counts them]");
    let other = what.replace("/dir/link", "/dir/sub/file");
    let found = world.look().await;
    assert!(found == [what] || found == [other], "{found:?}");
    assert_eq!(world.repair().await, Vec::<String>::new());

    world.change_row(sub, |row| row.parent = Ino::ROOT).await;
    let what = format!(
        "/dir/sub (inode {sub}): it lies in inode {dir} and says in inode 1 [--repair: says where it lies]"
    );
    repairs(&world, &[&what]).await;

    world.set(&map(dir), b"n", Bytes::from_static(b"5")).await;
    let what = format!("/dir (inode {dir}): it has 1 subdirectories and says 5 [--repair: counts them]");
    repairs(&world, &[&what]).await;

    let usage = ["v:bytes", "v:inodes"].map(|key| key.split_once(':').expect("two parts"));
    world.set(usage[0].0, usage[0].1.as_bytes(), Bytes::from_static(b"12")).await;
    let found = world.look().await;
    assert!(found.len() == 1 && found[0].contains("1127 bytes and says 8 and 12"), "{found:?}");
    assert_eq!(world.repair().await, Vec::<String>::new());
    assert_eq!(world.look().await, Vec::<String>::new());
    assert_eq!(world.get("v", b"bytes").await.as_deref(), Some(&b"1127"[..]));
}

#[tokio::test]
async fn directories_in_themselves() {
    let world = volume().await;
    let (dir, sub) = (ino(&world, "dir").await, ino(&world, "dir/sub").await);
    // `dir` moves into `sub`.
    world.del("d1/", b"dir").await;
    world.set(&dir_map(sub), b"dir", entry(dir, 1)).await;
    world.change_row(dir, |row| row.parent = sub).await;
    world.set("i1", b"n", Bytes::from_static(b"0")).await;
    world.set(&map(sub), b"n", Bytes::from_static(b"1")).await;
    stays(&world, &[&format!("inode {dir}: it lies in itself: no path leads to it")]).await;
}

#[tokio::test]
async fn a_directory_with_two_names_stays() {
    let world = volume().await;
    let sub = ino(&world, "dir/sub").await;
    world.set("d1/", b"again", entry(sub, 1)).await;
    world.set("i1", b"n", Bytes::from_static(b"2")).await;
    let found = world.look().await;
    assert!(found.len() == 1 && found[0].ends_with(": a directory with 2 names"), "{found:?}");
    assert_eq!(world.repair().await, found);
}

#[tokio::test]
async fn rows_that_make_no_sense_stay() {
    let world = volume().await;
    let (file, small) = (ino(&world, "dir/sub/file").await, ino(&world, "small").await);
    world.set(&map(file), b"a", Bytes::from_static(b"\xc1")).await;
    world.change_row(small, |row| row.kind = FileType::Socket).await;
    let found = world.look().await;
    assert!(found[0].starts_with("inode ") || found[0].starts_with("/dir/"), "{found:?}");
    assert!(found[0].contains(&format!("inode {file}")), "{found:?}");
    let odd = format!("/small (inode {small}): a Socket of 3 bytes cannot have 3 bytes in its row");
    assert!(found.contains(&odd), "{found:?}");
    let left = world.repair().await;
    assert!(left.iter().any(|l| l.contains(&format!("inode {file}"))) && left.contains(&odd), "{left:?}");
}

#[tokio::test]
async fn what_dead_sessions_left() {
    let world = volume().await;
    let file = ino(&world, "dir/sub/file").await;
    world.set_row(&format!("l{file}"), b"flock", &vec![(7_u64, 1_u64, true)]).await;
    let found = world.look().await;
    assert!(
        found.len() == 1 && found[0].contains("its lock is held by session 0000000000000007"),
        "{found:?}"
    );
    assert_eq!(world.repair().await, Vec::<String>::new());
    assert!(world.meta.try_lock(file, 3, crate::meta::LockKind::Exclusive).await.expect("free"));
    assert_eq!(world.look().await, Vec::<String>::new(), "that of a session that lives");

    // Numbers that a publication had reserved.
    let first = world.meta.reserve_ino().await.expect("a number");
    world.set_row("staging/", b"t", &(7_u64, 0_i64, first.0, 1_u64, None::<u64>, false)).await;
    let found = world.look().await;
    assert!(found.len() == 1 && found[0].contains("left a publication of 1 inodes"), "{found:?}");
    assert_eq!(world.repair().await, Vec::<String>::new());
    assert_eq!(world.look().await, Vec::<String>::new());
    assert_eq!(world.get("staging/", b"t").await, None);
}

#[tokio::test]
async fn deleted_files_that_are_kept() {
    let world = volume().await;
    let file = ino(&world, "dir/sub/file").await;
    let nobody = world.meta.reserve_ino().await.expect("a number");
    let row = (0_i64, i64::MAX, None::<u64>);
    world.set_row("orphans/", &file.0.to_be_bytes(), &row).await;
    world.set_row("orphans/", &nobody.0.to_be_bytes(), &row).await;
    let found = world.look().await;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().any(|l| l.contains("is on the list of deleted files, and has a name")), "{found:?}");
    assert!(found.iter().any(|l| l.contains("is kept for who has it open, and is not there")), "{found:?}");
    assert_eq!(world.repair().await, Vec::<String>::new());
    assert_eq!(world.look().await, Vec::<String>::new());
    assert!(world.meta.lookup(Ino::ROOT, b"dir").await.expect("lookup").is_some());
}

#[tokio::test]
async fn what_works_meanwhile_is_no_fault() {
    let world = volume().await;
    let other = mount(&world.kv).await;
    let busy = async {
        for n in 0..400_u32 {
            let (a, b) = (format!("a{n}"), format!("b{n}"));
            let dir = New::plain(FileType::Dir, 0o755, 0, 0);
            let made = other.make(Ino::ROOT, a.as_bytes(), dir).await.expect("mkdir");
            let data = pattern(n as u8, 100);
            let object = other.next_object();
            world.put(object, &data).await;
            let file = New::plain(FileType::File, 0o644, 0, 0);
            let file = other.make(made.ino, b"f", file).await.expect("create");
            let change = DataChange {
                size: 100,
                chunks: vec![(0, vec![extent(object, 0, &data)])],
                ..DataChange::default()
            };
            let done = other.commit_data(file.ino, file.version, change).await.expect("commit");
            assert!(matches!(done, Committed::Applied(_)));
            let to = crate::meta::RenameMode::Replace;
            other.rename(Ino::ROOT, a.as_bytes(), Ino::ROOT, b.as_bytes(), to).await.expect("rename");
            if n % 2 == 0 {
                other.unlink(made.ino, b"f").await.expect("unlink");
                other.rmdir(Ino::ROOT, b.as_bytes()).await.expect("rmdir");
            }
            tokio::task::yield_now().await;
        }
    };
    let look = async {
        let mut found = Vec::new();
        for _ in 0..20 {
            found.extend(world.look_deep().await);
        }
        found
    };
    let (found, ()) = tokio::join!(look, busy);
    assert_eq!(found, Vec::<String>::new());
    assert_eq!(world.look_deep().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_part_of_the_tree() {
    let world = volume().await;
    let dir = ino(&world, "dir").await;
    world.set(&map(dir), b"n", Bytes::from_static(b"5")).await;
    let below = |top| FsckOptions { below: Some(top), ..FsckOptions::default() };
    let (report, found) = world.run(below(dir)).await;
    assert_eq!((report.inodes, found.len()), (4, 1), "{found:?}");
    let (_, found) = world.run(below(ino(&world, "data").await)).await;
    assert_eq!(found, []);
}

#[tokio::test]
async fn a_file_of_the_hub_that_nobody_knows() {
    let world = volume().await;
    let data = ino(&world, "data").await;
    world.change_row(data, |row| row.content = Content::Blob(BlobId::Git([1; 20]))).await;
    let found = world.look().await;
    assert!(
        found.iter().any(|l| l.contains("blob git:") && l.contains("nothing is known of it")),
        "{found:?}"
    );
}

/// After a restart of the server, or a load, millions of numbers are left out.
#[tokio::test]
async fn numbers_far_apart_cost_nothing() {
    let world = volume().await;
    world.set("ids", b"ino", Bytes::from((1u64 << 40).to_string())).await;
    let fresh = mount(&world.kv).await;
    let far = fresh.make(Ino::ROOT, b"far", New::plain(FileType::Dir, 0o755, 0, 0)).await.expect("made");
    assert!(far.ino.0 > 1 << 40);
    // What was in doubt is counted again, with what was made since.
    let dir = ino(&world, "dir").await;
    world.change_row(far.ino, |row| row.parent = dir).await;
    let kv = FaultyKv::new(world.kv.clone());
    let place = Place { survey: Survey::new(kv.clone()), ..world.place.clone() };
    let mut found = Vec::new();
    let mut out = |finding: &Finding| found.push(finding.class);
    let report = fsck(&place, FsckOptions::default(), &|_| {}, &mut out).await.expect("fsck");
    assert_eq!((report.inodes, found), (9, vec!["parent"]));
    let (reads, _) = kv.round_trips();
    assert!(reads < 100, "{reads} reads");
    let options = crate::admin::gc::GcOptions { delete: None, grace: std::time::Duration::ZERO };
    let report = crate::admin::gc::gc(&place, options, &|_| {}).await.expect("gc");
    assert_eq!(report.garbage().objects, 0);
    let (reads, _) = kv.round_trips();
    assert!(reads < 50, "{reads} reads");
}
