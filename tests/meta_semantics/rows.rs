//! Rows about blobs, and refs.

use hfmount::error::Kind;
use hfmount::meta::{ChunkRow, Recorded, Role};
use hfmount::types::{Ino, Origin, Timestamp};

use crate::world::*;

pub async fn hashes_are_recorded_once(world: &World) {
    let (a, b) = (world.mount().await.blobs(), world.mount().await.blobs());
    let blob = sha256(1);
    assert_eq!(a.record(blob, 3, [1; 32]).await.expect("record"), Recorded::New);
    assert_eq!(b.record(blob, 3, [1; 32]).await.expect("record"), Recorded::Agreed);
    assert_eq!(b.record(blob, 3, [2; 32]).await.expect("record"), Recorded::Conflict([1; 32]));
    let some = [(2, [5; 32]), (3, [6; 32]), (4, [7; 32])];
    let answers = b.record_all(blob, &some).await.expect("record");
    assert_eq!(answers, [Recorded::New, Recorded::Conflict([1; 32]), Recorded::New]);
    assert_eq!(b.record_all(blob, &[]).await.expect("nothing"), []);
    let rows = a.chunks(blob, 2, 4).await.expect("chunks");
    let hashes: Vec<_> = rows.iter().map(|r| r.hash).collect();
    assert_eq!(hashes, [Some([5; 32]), Some([1; 32]), Some([7; 32]), None]);

    a.forget_hash(blob, 3, [9; 32]).await.expect("another one");
    assert_eq!(a.record(blob, 3, [2; 32]).await.expect("record"), Recorded::Conflict([1; 32]));
    a.mark_stored(blob, 3).await.expect("mark");
    a.forget_hash(blob, 3, [1; 32]).await.expect("forget");
    assert_eq!(a.chunks(blob, 3, 1).await.expect("chunks"), [ChunkRow::default()]);
    assert_eq!(b.record(blob, 3, [2; 32]).await.expect("record"), Recorded::New);

    let mut tasks = Vec::new();
    for n in 0..8 {
        let rows = if n % 2 == 0 { a.clone() } else { b.clone() };
        tasks.push(tokio::spawn(async move { rows.record(blob, 100, [n; 32]).await.expect("record") }));
    }
    let mut first = 0;
    for task in tasks {
        first += usize::from(task.await.expect("task") == Recorded::New);
    }
    assert_eq!(first, 1);
}

pub async fn marks_of_blobs(world: &World) {
    let rows = world.mount().await.blobs();
    let blob = sha256(1);
    assert_eq!(rows.get(blob).await.expect("get"), None);
    rows.introduce(blob, 10, None).await.expect("introduce");
    assert!(!rows.get(blob).await.expect("get").expect("row").verified);
    rows.mark_verified(blob).await.expect("mark");
    assert!(rows.get(blob).await.expect("get").expect("row").verified);
    rows.mark_all_stored(blob, &[0, 2]).await.expect("mark");
    rows.mark_stored(blob, 2).await.expect("again");
    rows.unmark_stored(blob, 0).await.expect("unmark");
    let stored: Vec<_> = rows.chunks(blob, 0, 3).await.expect("chunks").iter().map(|r| r.stored).collect();
    assert_eq!(stored, [false, false, true]);
}

pub async fn origins_are_kept(world: &World) {
    let rows = world.mount().await.blobs();
    let blob = sha256(1);
    let origin = |repo: &str, n, path: &str| {
        Some(Origin { repo: model_repo(repo), commit: commit(n), path: path.to_owned() })
    };
    rows.introduce(blob, 10, origin("a", 1, "x")).await.expect("introduce");
    rows.introduce(blob, 10, origin("a", 1, "y")).await.expect("introduce");
    rows.introduce(blob, 10, origin("a", 2, "x")).await.expect("a later commit");
    let row = rows.get(blob).await.expect("get").expect("row");
    assert_eq!(row.origins, [origin("a", 2, "x").expect("some"), origin("a", 1, "y").expect("some")]);
    for n in 0..10 {
        rows.introduce(blob, 10, origin(&format!("r{n}"), 1, "x")).await.expect("introduce");
    }
    assert_eq!(rows.get(blob).await.expect("get").expect("row").origins.len(), 8);
    assert_eq!(kind(rows.introduce(blob, 11, None).await), Kind::Corrupt);
}

pub async fn refs_are_replaced(world: &World) {
    let meta = world.mount().await;
    let plan = crate::publish::small_plan("org/name", 1);
    meta.publish_commit(plan).await.expect("publish");
    let refs = walk(&meta, "models--org--name/refs").await;
    let main = meta.read_ref(refs.ino, "main").await.expect("read").expect("main");
    assert_eq!((main.commit, main.attr.size, main.attr.hub), (commit(1), 40, true));
    // The same again says only when.
    let before = Timestamp::now();
    let touched = meta.set_ref(refs.ino, "main", commit(1)).await.expect("set");
    assert_eq!((touched.ino, touched.version), (main.attr.ino, main.attr.version));
    assert!(touched.mtime >= before);
    let moved = meta.set_ref(refs.ino, "main", commit(2)).await.expect("set");
    assert_ne!(moved.ino, main.attr.ino);
    assert_eq!(meta.read_ref(refs.ino, "main").await.expect("read").expect("main").commit, commit(2));
    assert_eq!(nlink(&meta, main.attr.ino).await, 0);

    assert_eq!(meta.read_ref(refs.ino, "refs/pr/1").await.expect("read"), None);
    meta.set_ref(refs.ino, "refs/pr/1", commit(3)).await.expect("set");
    assert_eq!(meta.read_ref(refs.ino, "refs/pr/1").await.expect("read").expect("pr").commit, commit(3));
    let pr = walk(&meta, "models--org--name/refs/refs/pr").await;
    let prefix = "refs/pr/".to_owned();
    assert_eq!(pr.role, Some(Role::Refs { repo: model_repo("org/name"), prefix }));
    assert_eq!(nlink(&meta, refs.ino).await, 3);
    assert_eq!(kind(meta.set_ref(refs.ino, "refs/pr", commit(3)).await), Kind::IsDirectory);
    assert_eq!(kind(meta.set_ref(refs.ino, "main/x", commit(3)).await), Kind::NotDirectory);
    assert_eq!(kind(meta.set_ref(refs.ino, "", commit(3)).await), Kind::Invalid);
    assert_eq!(kind(meta.set_ref(Ino(1 << 50), "main", commit(3)).await), Kind::Stale);
    // What holds no commit is no ref.
    file(&meta, refs.ino, "empty").await;
    assert_eq!(meta.read_ref(refs.ino, "empty").await.expect("read"), None);
}
