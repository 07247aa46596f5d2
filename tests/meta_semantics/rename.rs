//! rename(2), in all its modes.

use hfmount::error::{Kind, Result};
use hfmount::meta::RenameMode::{Exchange, NoReplace, Replace};
use hfmount::meta::{Meta, RenameMode, Renamed};
use hfmount::types::{FileType, Ino};

use crate::world::*;

const ROOT: Ino = Ino::ROOT;

async fn rename(meta: &Meta, from: Ino, name: &str, to: Ino, new: &str, mode: RenameMode) -> Result<Renamed> {
    meta.rename(from, name.as_bytes(), to, new.as_bytes(), mode).await
}

pub async fn to_a_free_name(world: &World) {
    let meta = world.mount().await;
    let d = dir(&meta, ROOT, "d").await;
    let f = file(&meta, ROOT, "f").await;
    for mode in [Replace, NoReplace] {
        let done = rename(&meta, ROOT, "f", d, "g", mode).await.expect("rename");
        assert_eq!((done.moved.ino, done.replaced), (f, None));
        assert!(is_absent(&meta, ROOT, "f").await);
        assert_eq!(find(&meta, d, "g").await, done.moved);
        rename(&meta, d, "g", ROOT, "f", mode).await.expect("back");
    }
    assert_eq!(kind(rename(&meta, ROOT, "none", d, "g", Replace).await), Kind::NotFound);
    assert_eq!(kind(rename(&meta, ROOT, "f", Ino(1 << 50), "g", Replace).await), Kind::Stale);
    assert_eq!(kind(rename(&meta, ROOT, "f", f, "g", Replace).await), Kind::NotDirectory);
    assert_eq!(kind(rename(&meta, ROOT, "f", d, &"n".repeat(256), Replace).await), Kind::NameTooLong);
}

pub async fn over_what_is_there(world: &World) {
    let meta = world.mount().await;
    let a = file(&meta, ROOT, "a").await;
    let b = file(&meta, ROOT, "b").await;
    let done = rename(&meta, ROOT, "a", ROOT, "b", Replace).await.expect("file over file");
    let replaced = done.replaced.expect("replaced").attr;
    assert_eq!((done.moved.ino, replaced.ino, replaced.nlink), (a, b, 0));
    assert_eq!(nlink(&meta, b).await, 0);

    // The way of a shared blob: a symlink over the blob.
    let link = meta.make(ROOT, b".b.shared", new_symlink("x")).await.expect("symlink").ino;
    rename(&meta, ROOT, ".b.shared", ROOT, "b", Replace).await.expect("symlink over file");
    assert_eq!(find(&meta, ROOT, "b").await.ino, link);
    let c = file(&meta, ROOT, "c").await;
    rename(&meta, ROOT, "c", ROOT, "b", Replace).await.expect("file over symlink");
    assert_eq!((find(&meta, ROOT, "b").await.ino, kind(meta.getattr(link).await)), (c, Kind::Stale));

    let d = dir(&meta, ROOT, "d").await;
    let e = dir(&meta, ROOT, "e").await;
    assert_eq!(kind(rename(&meta, ROOT, "b", ROOT, "d", Replace).await), Kind::IsDirectory);
    assert_eq!(kind(rename(&meta, ROOT, "d", ROOT, "b", Replace).await), Kind::NotDirectory);
    file(&meta, e, "f").await;
    assert_eq!(kind(rename(&meta, ROOT, "d", ROOT, "e", Replace).await), Kind::NotEmpty);
    let done = rename(&meta, ROOT, "e", ROOT, "d", Replace).await.expect("over an empty directory");
    assert_eq!((done.moved.ino, done.replaced.expect("replaced").attr.ino), (e, d));
    assert_eq!(kind(meta.getattr(d).await), Kind::Stale);
    assert_eq!(
        (list(&meta, ROOT).await, nlink(&meta, ROOT).await),
        (vec!["b".to_owned(), "d".to_owned()], 3)
    );
    assert_eq!(list(&meta, e).await, ["f"]);
}

pub async fn onto_itself(world: &World) {
    let meta = world.mount().await;
    let f = file(&meta, ROOT, "f").await;
    dir(&meta, ROOT, "d").await;
    for name in ["f", "d"] {
        let done = rename(&meta, ROOT, name, ROOT, name, Replace).await.expect("nothing");
        assert_eq!(done.replaced, None);
        rename(&meta, ROOT, name, ROOT, name, Exchange).await.expect("nothing");
        assert_eq!(kind(rename(&meta, ROOT, name, ROOT, name, NoReplace).await), Kind::Exists);
    }
    assert_eq!((find(&meta, ROOT, "f").await.ino, nlink(&meta, ROOT).await), (f, 3));
}

pub async fn without_replacing(world: &World) {
    let meta = world.mount().await;
    let a = file(&meta, ROOT, "a").await;
    let b = file(&meta, ROOT, "b").await;
    dir(&meta, ROOT, "d").await;
    for target in ["b", "d"] {
        assert_eq!(kind(rename(&meta, ROOT, "a", ROOT, target, NoReplace).await), Kind::Exists);
    }
    assert_eq!((find(&meta, ROOT, "a").await.ino, find(&meta, ROOT, "b").await.ino), (a, b));
}

pub async fn in_exchange(world: &World) {
    let meta = world.mount().await;
    let d = dir(&meta, ROOT, "d").await;
    let sub = dir(&meta, d, "sub").await;
    let inner = file(&meta, sub, "inner").await;
    let f = file(&meta, ROOT, "f").await;
    let done = rename(&meta, ROOT, "f", d, "sub", Exchange).await.expect("exchange");
    assert_eq!((done.moved.ino, done.replaced), (f, None));
    assert_eq!((find(&meta, ROOT, "f").await.ino, find(&meta, d, "sub").await.ino), (sub, f));
    assert_eq!((nlink(&meta, ROOT).await, nlink(&meta, d).await), (4, 2));
    assert_eq!(meta.getattr(sub).await.expect("getattr").parent, ROOT);
    assert_eq!(walk(&meta, "f/inner").await.ino, inner);
    assert_eq!(kind(rename(&meta, ROOT, "f", d, "none", Exchange).await), Kind::NotFound);
    // Two directories, neither of them empty.
    file(&meta, d, "x").await;
    rename(&meta, ROOT, "d", ROOT, "f", Exchange).await.expect("exchange");
    assert_eq!((find(&meta, ROOT, "d").await.ino, find(&meta, ROOT, "f").await.ino), (sub, d));
    assert_eq!(nlink(&meta, ROOT).await, 4);
}

pub async fn directories_keep_their_parents_and_counts(world: &World) {
    let meta = world.mount().await;
    let a = dir(&meta, ROOT, "a").await;
    let b = dir(&meta, ROOT, "b").await;
    let c = dir(&meta, a, "c").await;
    let e = dir(&meta, c, "e").await;
    let moved = rename(&meta, a, "c", b, "c2", Replace).await.expect("rename").moved;
    assert_eq!((moved.ino, moved.parent, moved.nlink), (c, b, 3));
    assert_eq!(meta.getattr(c).await.expect("getattr"), moved);
    assert_eq!((nlink(&meta, a).await, nlink(&meta, b).await), (2, 3));
    assert_eq!(walk(&meta, "b/c2/e").await.ino, e);
    // Over an empty one of another parent.
    dir(&meta, a, "x").await;
    rename(&meta, b, "c2", a, "x", Replace).await.expect("rename");
    assert_eq!((nlink(&meta, a).await, nlink(&meta, b).await, nlink(&meta, ROOT).await), (3, 2, 4));
    // Within one directory, as `datasets` does it.
    rename(&meta, a, "x", a, "y", Replace).await.expect("rename");
    assert_eq!((nlink(&meta, a).await, find(&meta, a, "y").await.parent), (3, a));
}

pub async fn never_into_itself(world: &World) {
    let meta = world.mount().await;
    let a = dir(&meta, ROOT, "a").await;
    let b = dir(&meta, a, "b").await;
    let c = dir(&meta, b, "c").await;
    let f = file(&meta, b, "f").await;
    for (to, name) in [(a, "x"), (b, "x"), (c, "x")] {
        assert_eq!(kind(rename(&meta, ROOT, "a", to, name, Replace).await), Kind::Invalid);
    }
    assert_eq!(kind(rename(&meta, ROOT, "a", b, "c", Exchange).await), Kind::Invalid);
    assert_eq!(kind(rename(&meta, b, "c", ROOT, "a", Exchange).await), Kind::Invalid);
    assert_eq!(kind(rename(&meta, b, "f", ROOT, "a", Exchange).await), Kind::Invalid);
    assert_eq!(kind(rename(&meta, b, "c", ROOT, "a", Replace).await), Kind::NotEmpty);
    assert_eq!((walk(&meta, "a/b/c").await.ino, walk(&meta, "a/b/f").await.ino), (c, f));
    // Up is no problem.
    rename(&meta, b, "c", ROOT, "c", Replace).await.expect("up");
    rename(&meta, ROOT, "a", c, "a", Replace).await.expect("below its former child");
    assert_eq!(walk(&meta, "c/a/b/f").await.ino, f);
}

pub async fn between_two_links_of_one_file(world: &World) {
    let meta = world.mount().await;
    let f = file(&meta, ROOT, "f").await;
    meta.link(f, ROOT, b"g").await.expect("link");
    for mode in [Replace, Exchange] {
        let done = rename(&meta, ROOT, "f", ROOT, "g", mode).await.expect("nothing happens");
        assert_eq!((done.moved.nlink, done.replaced), (2, None));
    }
    assert_eq!(list(&meta, ROOT).await, ["f", "g"]);
    assert_eq!(kind(rename(&meta, ROOT, "f", ROOT, "g", NoReplace).await), Kind::Exists);
    let other = meta.make(ROOT, b"h", new(FileType::File, 0o644)).await.expect("create").ino;
    let done = rename(&meta, ROOT, "h", ROOT, "g", Replace).await.expect("rename");
    assert_eq!((done.moved.ino, done.replaced.expect("replaced").attr.nlink), (other, 1));
    assert_eq!(nlink(&meta, f).await, 1);
}
