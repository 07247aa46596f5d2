//! Each kind of damage is found, told by path or inode, repaired if that is possible, and then gone.

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
async fn chunks_against_the_file() {
    let world = volume().await;
    let data = ino(&world, "data").await;
    let path = format!("/data (inode {data}): ");
    world.change_row(data, |row| row.chunks = 1).await;
    let what = format!("{path}it has a row for chunk 1 and says that there are 1 [--repair: counts them]");
    repairs(&world, &[&what]).await;

    // Two over each other: they stand for the same bytes in order.
    let raw = world.get(&map(data), b"c0").await.expect("a row");
    let list: Vec<Extent> = rmp_serde::from_slice(&raw).expect("decoded");
    let piece = pattern(9, 10);
    let object = world.meta.next_object();
    world.put(object, &piece).await;
    world.set_row(&map(data), b"c0", &vec![list[0], extent(object, 50, &piece)]).await;
    world.change_row(data, |row| row.layout.data = Some(1134)).await;
    let what =
        format!("{path}chunk 0: its extents overlap or are not in order [--repair: puts them in order]");
    repairs(&world, &[&what]).await;
    let raw = world.get(&map(data), b"c0").await.expect("a row");
    let ordered: Vec<Extent> = rmp_serde::from_slice(&raw).expect("decoded");
    assert_eq!(ordered.iter().map(|e| (e.start, e.len)).collect::<Vec<_>>(), [(0, 50), (50, 10), (60, 964)]);

    world.change_row(data, |row| row.size = 1100).await;
    let usage = world.look().await;
    let what = format!("{path}chunk 1: it has 100 bytes, and 76 are the file's");
    assert_eq!(usage[0], what);
    world.change_row(data, |row| row.size = 1124).await;

    let past = Extent { len: CHUNK, start: 10, ..list[0] };
    world.set_row(&map(data), b"c0", &vec![past]).await;
    stays(&world, &[&format!("{path}chunk 0: an extent of 1024 bytes at 10 in 1024 bytes")]).await;

    world.set(&map(data), b"c0", Bytes::from_static(b"\xc1")).await;
    let found = world.look().await;
    assert!(found.len() == 1 && found[0].starts_with(&format!("{path}chunk 0: ")), "{found:?}");
}

#[tokio::test]
async fn objects_that_several_files_name() {
    let world = volume().await;
    let (a, objects) = world.file("a", &[pattern(3, 1024), pattern(4, 1024)]).await;
    // As a copy by reference writes it.
    let b = world.make(Ino::ROOT, "b", FileType::File).await;
    let (attr, rows) = world.meta.attr_and_chunk_rows(a, &[0]).await.expect("read");
    let copy = DataChange {
        size: 1024,
        chunks: vec![(0, rows[0].clone().expect("a row"))],
        source: Some((a, attr.version)),
        ..DataChange::default()
    };
    let done = world.meta.commit_data(b.ino, b.version, copy).await.expect("commit");
    assert!(matches!(done, Committed::Applied(_)), "{done:?}");
    assert_eq!(world.look_deep().await, Vec::<String>::new());

    let field = [objects[0].session.0.to_be_bytes(), objects[0].seq.to_be_bytes()].concat();
    assert_eq!(world.get("shared/", &field).await.as_deref(), Some(&b"1"[..]));
    world.del("shared/", &field).await;
    let what = format!(
        "/a (inode {a}): {} is named by 2 chunks, and 1 are counted [--repair: counts them]",
        Object::FileChunk(objects[0])
    );
    repairs(&world, &[&what]).await;
    assert_eq!(world.get("shared/", &field).await.as_deref(), Some(&b"1"[..]));

    // The first file that goes does not take it along.
    world.meta.unlink(Ino::ROOT, b"a").await.expect("unlink");
    world.meta.reap_orphans(crate::types::Timestamp(i64::MAX)).await.expect("reaped");
    assert_eq!(
        world.gc(true).await.garbage(),
        super::super::gc::Sum::default(),
        "in the trash for its grace"
    );
    assert_eq!(world.look_deep().await, Vec::<String>::new());
}

#[tokio::test]
async fn bytes_of_chunks() {
    let world = volume().await;
    let data = ino(&world, "data").await;
    world.change_row(data, |row| row.layout.data = Some(3)).await;
    let what = "its chunks give 1124 bytes, and it says 3 [--repair: counts them]";
    repairs(&world, &[&format!("/data (inode {data}): {what}")]).await;
    world.change_row(data, |row| row.layout.data = None).await;
    assert_eq!(world.look().await, Vec::<String>::new(), "by a version that did not count");
}

#[tokio::test]
async fn chunks_far_out() {
    let world = volume().await;
    let made = world.make(Ino::ROOT, "far", FileType::File).await;
    let far = (1_u64 << 57) / u64::from(CHUNK) - 1;
    let (object, data) = (world.meta.next_object(), pattern(4, 100));
    world.put(object, &data).await;
    let change = DataChange {
        size: far * u64::from(CHUNK) + 100,
        chunks: vec![(far, vec![extent(object, 0, &data)])],
        ..DataChange::default()
    };
    let done = world.meta.commit_data(made.ino, made.version, change).await.expect("commit");
    assert!(matches!(done, Committed::Applied(_)));
    assert_eq!(world.look_deep().await, Vec::<String>::new());
    world.place.bucket.delete(&Object::FileChunk(object)).await.expect("deleted");
    let found = world.look().await;
    assert!(
        found.len() == 1 && found[0].starts_with("/far ") && found[0].ends_with("is not there"),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_blob_under_a_file() {
    let world = volume().await;
    let data = ino(&world, "data").await;
    let under = crate::meta::Under { blob: BlobId::Git([1; 20]), size: 5000, len: 1124 };
    world.change_row(data, |row| row.layout.under = Some(under)).await;
    let found = world.look().await;
    assert!(found.len() == 1 && found[0].ends_with("nothing is known of it"), "{found:?}");
    world.meta.blobs().introduce(under.blob, under.size, None).await.expect("introduced");
    assert_eq!(world.look().await, Vec::<String>::new());
}

#[tokio::test]
async fn objects_that_are_gone_short_or_wrong() {
    let world = volume().await;
    let (data, objects) = world.file("more", &[pattern(3, 1024), pattern(4, 1024), pattern(5, 1024)]).await;
    let path = format!("/more (inode {data}): ");
    let name = |at: usize| Object::FileChunk(objects[at]).to_string();
    world.place.bucket.delete(&Object::FileChunk(objects[0])).await.expect("deleted");
    world.put(objects[1], &pattern(4, 1000)).await;
    world.put(objects[2], &pattern(6, 1024)).await;
    let gone = format!("{path}bytes 0 to 1023: {} is not there", name(0));
    let short = format!("{path}bytes 1024 to 2047: {} has 1000 bytes, and 1024 are needed", name(1));
    let wrong = format!("{path}bytes 2048 to 3071: {} holds other bytes than were stored", name(2));
    let mut found = world.look().await;
    found.sort();
    assert_eq!(found, [gone.clone(), short.clone()], "a look at the lengths");
    let mut found = world.look_deep().await;
    found.sort();
    assert_eq!(found, [gone, short, wrong], "a look at the bytes");
    assert_eq!(world.repair().await.len(), 3, "nobody has them any more");
}

#[tokio::test]
async fn objects_without_a_checksum_are_measured() {
    let world = volume().await;
    let (data, objects) = world.file("old", &[pattern(3, 1024)]).await;
    let old = Extent { start: 0, len: 1024, object: objects[0], object_offset: 0, sum: None };
    world.set_row(&map(data), b"c0", &vec![old]).await;
    assert_eq!(world.look_deep().await, Vec::<String>::new());
    world.put(objects[0], &pattern(3, 1023)).await;
    assert_eq!(world.look().await.len(), 1);
}

#[tokio::test]
async fn blobs_against_the_bucket() {
    let world = volume().await;
    let data = pattern(8, 2500);
    let mut digest = crate::chunk::digest::Digest::new(&BlobId::Sha256([0; 32]), 2500);
    digest.update(&data);
    let id = digest.finish();
    let objects = world.hub_file(id, &data).await;
    assert_eq!(world.look_deep().await, Vec::<String>::new());

    let again = "[--repair: has it fetched again from the Hub]";
    world.place.bucket.delete(&objects[0]).await.expect("deleted");
    world.place.bucket.put(&objects[2], pattern(8, 3)).await.expect("put");
    let found = world.look().await;
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with(&format!("/models--a/blobs/{} ", id.etag())), "{found:?}");
    assert!(found[0].ends_with(&format!("chunk 0 is said to be in the bucket, and is not there {again}")));
    assert!(found[1].ends_with(&format!("chunk 2 has 3 bytes in the bucket instead of 452 {again}")));
    assert_eq!(world.repair().await, Vec::<String>::new());
    assert_eq!(world.look_deep().await, Vec::<String>::new());
    assert_eq!(world.get(&format!("b{id}"), b"s0").await, None, "the Hub is asked again");

    let objects = world.fill(id, &data).await;
    world.place.bucket.put(&objects[1], pattern(9, 1024)).await.expect("put");
    assert_eq!(world.look().await, Vec::<String>::new(), "of the right length");
    let found = world.look_deep().await;
    assert!(found.len() == 1 && found[0].contains("chunk 1 holds other bytes"), "{found:?}");
    assert_eq!(world.repair().await, Vec::<String>::new());

    // All as recorded, and together not what the name says.
    world.fill(id, &pattern(9, 2500)).await;
    let found = world.look_deep().await;
    assert!(found.len() == 1 && found[0].contains("together they are not what its name says"), "{found:?}");
    assert_eq!(world.repair().await, Vec::<String>::new());
    assert_eq!(world.look_deep().await, Vec::<String>::new());
    assert_eq!(world.get(&format!("b{id}"), b"h1").await, None);

    world.del(&format!("b{id}"), b"a").await;
    let found = world.look().await;
    assert!(found.len() == 1 && found[0].contains("nothing is known of it"), "{found:?}");
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

/// A volume with a file, a link and a directory in the bin, and the numbers of all three.
async fn with_bin() -> (World, Ino, Ino, Ino) {
    let world = volume().await;
    world.meta.set_bin_ttl(std::time::Duration::from_secs(86_400));
    let (file, _) = world.file("removed", &[pattern(9, 700)]).await;
    let dir = world.make(Ino::ROOT, "removed-dir", FileType::Dir).await.ino;
    let link = world.make(dir, "link", FileType::Symlink).await.ino;
    world.change_row(link, |row| (row.mtime, row.ctime) = (Timestamp(5), Timestamp(5))).await;
    let fresh = mount(&world.kv).await;
    fresh.set_bin_ttl(std::time::Duration::from_secs(86_400));
    assert!(fresh.unlink_keeping(dir, b"link", Keep::Yes).await.expect("unlink").binned);
    assert!(fresh.unlink_keeping(Ino::ROOT, b"removed", Keep::Yes).await.expect("unlink").binned);
    assert!(fresh.rmdir_keeping(Ino::ROOT, b"removed-dir", Keep::Yes).await.expect("rmdir").binned);
    (world, file, dir, link)
}

async fn bin_row(world: &World, ino: Ino) -> Binned {
    let (row, _) = world.place.survey.bin_and_inode(ino).await.expect("read");
    row.expect("in the bin").item.expect("a row")
}

#[tokio::test]
async fn what_can_be_restored_is_sound() {
    let (world, file, dir, link) = with_bin().await;
    assert_eq!(world.look_deep().await, Vec::<String>::new(), "kept, counted for nothing, no longer named");
    assert_eq!(world.gc(true).await.garbage().objects, 0);
    for ino in [file, dir, link] {
        bin_row(&world, ino).await;
    }
    let at = bin_row(&world, file).await;
    world.meta.unbin(&at, Ino::ROOT, b"back").await.expect("restored");
    assert_eq!(world.look_deep().await, Vec::<String>::new());
    let (_, found) = world.run(FsckOptions { deep: true, ..FsckOptions::default() }).await;
    assert_eq!(found, []);
}

#[tokio::test]
async fn what_cannot_be_restored() {
    let (world, file, dir, link) = with_bin().await;
    let off = "[--repair: takes it off the list]";
    // Without its inode.
    let raw = world.get(&map(file), b"a").await.expect("a row");
    world.del(&map(file), b"a").await;
    let what = format!(
        "inode {file}: it can be restored, and is not there: deleted as \"removed\" in inode 1 {off}"
    );
    assert_eq!(world.look().await, [what]);
    // With a name.
    world.set(&map(file), b"a", raw).await;
    world.set("d1/", b"named", entry(file, 0)).await;
    let found = world.look().await;
    assert!(found.len() == 1 && found[0].contains("it has 1 names and says 0"), "{found:?}");
    assert_eq!(world.repair().await, Vec::<String>::new());
    assert_eq!(world.look_deep().await, Vec::<String>::new(), "off the list as well");
    let (row, inode) = world.place.survey.bin_and_inode(file).await.expect("read");
    assert!(row.is_none() && inode.is_some());

    // A link of which nothing is left, and a directory that is there.
    let at = bin_row(&world, link).await;
    let without = (at.parent, at.name, at.kind, at.size, at.deleted, at.until, None::<()>, None::<()>);
    world.set_row("bin/", &link.0.to_be_bytes(), &without).await;
    let sub = ino(&world, "dir/sub").await;
    let there = world.get(&map(sub), b"a").await.expect("a row");
    world.set(&map(dir), b"a", there).await;
    world.set("d1/", b"anew", entry(dir, 1)).await;
    let found = world.look().await;
    let says =
        |ino: Ino, what: &str| found.iter().any(|f| f.contains(&format!("inode {ino}")) && f.contains(what));
    assert!(says(link, "nobody knows what it was: deleted as \"link\""), "{found:?}");
    assert!(says(dir, "list of what can be restored, and is there"), "{found:?}");
    assert_eq!(world.repair().await, Vec::<String>::new());
    assert_eq!(world.look().await, Vec::<String>::new());
    assert!(world.place.survey.bin_page(0).await.expect("read").is_empty());
}

#[tokio::test]
async fn what_was_to_go_long_ago() {
    const WEEK: i64 = 7 * 86_400 * 1_000_000_000;
    let (world, file, _, _) = with_bin().await;
    let old = bin_row(&world, file).await;
    let long_ago = Timestamp(Timestamp::now().0 - 2 * WEEK);
    let row = (old.parent, old.name, old.kind, old.size, long_ago, long_ago, None::<()>, None::<()>);
    world.set_row("bin/", &file.0.to_be_bytes(), &row).await;
    assert_eq!(world.look().await, Vec::<String>::new(), "nobody was there to let go of it");
    let info = crate::meta::SessionInfo { started: long_ago, ..world.meta.info().clone() };
    let _old =
        Meta::open(world.kv.clone(), info, std::time::Duration::from_secs(60)).await.expect("a session");
    let what =
        "1 deleted things were to go more than a week ago, and are there still [--repair: lets go of them]";
    repairs(&world, &[what]).await;
    assert!(world.place.survey.orphans().await.expect("read").iter().any(|o| o.ino == file), "it goes now");
}
