//! What was deleted and can be restored.

use super::*;

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
