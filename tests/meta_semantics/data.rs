//! What a file's data is to the metadata; files without names; the trash.

use bytes::Bytes;
use hfmount::error::Kind;
use hfmount::meta::{Attr, Committed, Content, DataChange, Meta};
use hfmount::types::{Extent, FileType, Ino, ObjectId, Timestamp};

use crate::world::*;

const ROOT: Ino = Ino::ROOT;
/// Later than any hold.
const LATER: Timestamp = Timestamp(i64::MAX);

fn extent(object: ObjectId) -> Extent {
    Extent { start: 0, len: 100, object, object_offset: 0, sum: None }
}

/// Commits one chunk with a new object as the whole content.
pub async fn write(meta: &Meta, ino: Ino, size: u64) -> (Attr, ObjectId) {
    let object = meta.next_object();
    let change = DataChange { size, chunks: vec![(0, vec![extent(object)])], ..DataChange::default() };
    let base = meta.getattr(ino).await.expect("getattr").version;
    (applied(meta.commit_data(ino, base, change).await), object)
}

#[track_caller]
fn applied(committed: hfmount::error::Result<Committed>) -> Attr {
    match committed.expect("commit") {
        Committed::Applied(attr) => attr,
        Committed::Conflict(attr) => panic!("conflict with {attr:?}"),
    }
}

async fn trash(meta: &Meta) -> Vec<ObjectId> {
    let mut objects: Vec<_> =
        meta.trash(0, 100_000).await.expect("trash").into_iter().map(|t| t.object).collect();
    objects.sort();
    objects
}

pub async fn commits_are_conditional(world: &World) {
    let (meta, other) = (world.mount().await, world.mount().await);
    let made = meta.make(ROOT, b"f", new(FileType::File, 0o6755)).await.expect("create");
    let change = |size| DataChange {
        size,
        chunks: vec![(2, vec![extent(meta.next_object())])],
        mtime: Some(Timestamp(77)),
        ..DataChange::default()
    };
    let first = applied(meta.commit_data(made.ino, made.version, change(9_000)).await);
    assert_eq!((first.size, first.mtime, first.content.clone()), (9_000, Timestamp(77), Content::Extents));
    assert_ne!(first.version, made.version);
    assert_eq!((first.mode, first.ctime >= made.ctime), (0o6755, true));
    assert_eq!(meta.getattr(made.ino).await.expect("getattr"), first);

    let refused = other.commit_data(made.ino, made.version, change(5)).await.expect("conflict");
    assert_eq!(refused, Committed::Conflict(first.clone()));
    // Attributes in between are no conflict.
    let set = hfmount::meta::SetAttr { mode: Some(0o6700), ..Default::default() };
    other.setattr(made.ino, set).await.expect("chmod");
    let change = DataChange { clear_suid: true, mtime: None, ..change(9_001) };
    let second = applied(meta.commit_data(made.ino, first.version, change).await);
    assert_eq!((second.size, second.mode, second.mtime), (9_001, 0o2700, Timestamp(77)));

    let d = dir(&meta, ROOT, "d").await;
    let none = DataChange::default();
    assert_eq!(kind(meta.commit_data(d, made.version, none.clone()).await), Kind::Invalid);
    assert_eq!(kind(meta.commit_data(Ino(1 << 50), made.version, none).await), Kind::Stale);
}

pub async fn content_follows_the_change(world: &World) {
    let meta = world.mount().await;
    let made = meta.make(ROOT, b"f", new(FileType::File, 0o644)).await.expect("create");
    let f = made.ino;
    let small = Bytes::from_static(b"hello");
    let change = DataChange { size: 5, inline: Some(small.clone()), ..DataChange::default() };
    let attr = applied(meta.commit_data(f, made.version, change).await);
    assert_eq!((attr.size, attr.content), (5, Content::Inline(small)));

    let objects = [meta.next_object(), meta.next_object()];
    let chunks = vec![(0, vec![extent(objects[0])]), (5, vec![extent(objects[1])])];
    let change = DataChange { size: 600, chunks, ..DataChange::default() };
    let attr = applied(meta.commit_data(f, attr.version, change).await);
    assert_eq!(attr.content, Content::Extents);
    let lists = meta.extents(f, &[0, 1, 5]).await.expect("extents");
    assert_eq!(lists, [vec![extent(objects[0])], vec![], vec![extent(objects[1])]]);

    // A hole again.
    let change = DataChange { size: 600, chunks: vec![(5, vec![])], ..DataChange::default() };
    let attr = applied(meta.commit_data(f, attr.version, change).await);
    assert_eq!(meta.extents(f, &[5]).await.expect("extents"), [vec![]]);
    // Nothing at all: the rows go without being listed.
    let attr = applied(meta.commit_data(f, attr.version, DataChange::default()).await);
    assert_eq!((attr.size, attr.content), (0, Content::None));
    assert_eq!(meta.extents(f, &[0]).await.expect("extents"), [vec![]]);
    // A size without bytes is a hole.
    let change = DataChange { size: 1 << 40, ..DataChange::default() };
    let attr = applied(meta.commit_data(f, attr.version, change).await);
    assert_eq!((attr.size, attr.content), (1 << 40, Content::Extents));
    assert_eq!(trash(&meta).await, objects);
}

pub async fn replaced_objects_go_to_the_trash(world: &World) {
    let meta = world.mount().await;
    let f = file(&meta, ROOT, "f").await;
    let (_, first) = write(&meta, f, 100).await;
    assert_eq!(trash(&meta).await, []);
    // Kept beside a newer one: still referred to.
    let second = meta.next_object();
    let chunks = vec![(0, vec![extent(first), extent(second)])];
    let base = meta.getattr(f).await.expect("getattr").version;
    let change = DataChange { size: 200, chunks, ..DataChange::default() };
    applied(meta.commit_data(f, base, change).await);
    assert_eq!(trash(&meta).await, []);
    let (_, third) = write(&meta, f, 300).await;
    assert_eq!(trash(&meta).await, [first, second]);
    meta.forget_trash(&[first, third]).await.expect("forget");
    assert_eq!(trash(&meta).await, [second]);
    let listed = meta.trash(0, 10).await.expect("trash")[0];
    assert!(listed.since <= Timestamp::now());
    assert_eq!(meta.trash(listed.id, 10).await.expect("trash"), []);
}

pub async fn inline_bytes_are_bounded(world: &World) {
    let meta = world.mount().await;
    let made = meta.make(ROOT, b"f", new(FileType::File, 0o644)).await.expect("create");
    for (len, size, ok) in [(4096, 4096, true), (4097, 4097, false), (10, 9, false), (10, 5000, true)] {
        let version = meta.getattr(made.ino).await.expect("getattr").version;
        let inline = Some(Bytes::from(vec![1; len]));
        let done =
            meta.commit_data(made.ino, version, DataChange { size, inline, ..Default::default() }).await;
        assert_eq!(done.is_ok(), ok, "{len} of {size}");
    }
}

pub async fn orphans_live_while_held(world: &World) {
    let (meta, other) = (world.mount().await, world.mount().await);
    let (f, g) = (file(&meta, ROOT, "f").await, file(&meta, ROOT, "g").await);
    let (_, object) = write(&meta, f, 100).await;
    meta.unlink(ROOT, b"f").await.expect("unlink");
    meta.unlink(ROOT, b"g").await.expect("unlink");
    let now = Timestamp::now();
    assert_eq!(meta.reap_orphans(now).await.expect("reap"), []);
    let until = Timestamp(now.0 + 121_000_000_000);
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    other.hold_orphans(&[Ino(1), f]).await.expect("hold");
    let reaped = meta.reap_orphans(until).await.expect("reap");
    assert_eq!(reaped.iter().map(|r| r.ino).collect::<Vec<_>>(), [g]);
    assert_eq!((nlink(&meta, f).await, kind(meta.getattr(g).await)), (0, Kind::Stale));

    let reaped = meta.reap_orphans(LATER).await.expect("reap");
    assert_eq!((reaped[0].ino, &reaped[0].objects[..], reaped.len()), (f, &[object][..], 1));
    assert_eq!(kind(meta.getattr(f).await), Kind::Stale);
    assert_eq!(trash(&meta).await, [object]);
    assert_eq!(meta.extents(f, &[0]).await.expect("extents"), [vec![]]);
    assert_eq!(meta.reap_orphans(LATER).await.expect("reap"), []);
    // Too late, and no harm.
    other.hold_orphans(&[f]).await.expect("hold");
}

pub async fn orphans_take_data(world: &World) {
    let meta = world.mount().await;
    let f = file(&meta, ROOT, "f").await;
    meta.unlink(ROOT, b"f").await.expect("unlink");
    // tempfile: made, unlinked, then written.
    let (attr, object) = write(&meta, f, 4_000_000).await;
    assert_eq!((attr.nlink, attr.size), (0, 4_000_000));
    let usage = meta.usage().await.expect("usage");
    assert_eq!((usage.inodes, usage.bytes), (1, 0));
    assert_eq!(meta.reap_orphans(LATER).await.expect("reap")[0].objects, [object]);
}

pub async fn big_orphans_are_reaped_in_pieces(world: &World) {
    let meta = world.mount().await;
    let f = file(&meta, ROOT, "f").await;
    let objects: Vec<_> = (0..2_500).map(|_| meta.next_object()).collect();
    let chunks = (0..).zip(&objects).map(|(n, object)| (n, vec![extent(*object)])).collect();
    let base = meta.getattr(f).await.expect("getattr").version;
    applied(meta.commit_data(f, base, DataChange { size: 1 << 33, chunks, ..Default::default() }).await);
    for n in 0..300 {
        file(&meta, ROOT, &n.to_string()).await;
        meta.unlink(ROOT, n.to_string().as_bytes()).await.expect("unlink");
    }
    meta.unlink(ROOT, b"f").await.expect("unlink");
    let other = world.mount().await;
    let (a, b) = tokio::join!(meta.reap_orphans(LATER), other.reap_orphans(LATER));
    let reaped = [a.expect("reap"), b.expect("reap")].concat();
    let mut inos: Vec<_> = reaped.iter().map(|r| r.ino).collect();
    inos.sort();
    inos.dedup();
    assert_eq!(inos.len(), 301);
    assert_eq!(trash(&meta).await, objects);
    meta.forget_trash(&objects).await.expect("forget");
    assert_eq!(trash(&meta).await, []);
}
