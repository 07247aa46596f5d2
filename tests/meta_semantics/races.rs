//! Many at once, from two mounts: whatever the order, names, counts and listings agree in the end.

use std::collections::HashMap;

use hfmount::error::Kind;
use hfmount::meta::{Meta, RenameMode};
use hfmount::types::{FileType, Ino};
use tokio::task::JoinSet;

use crate::world::*;

const ROOT: Ino = Ino::ROOT;

/// That all counts are what the names say, from the root down.
pub async fn check_counts(meta: &Meta) {
    let mut links: HashMap<Ino, u32> = HashMap::new();
    let mut queue = vec![ROOT];
    // What the Hub brought does not count.
    let mut inodes = 1;
    while let Some(dir) = queue.pop() {
        let entries = meta.readdir(dir, 0, 100_000).await.expect("readdir");
        let mut subdirs = 0;
        for entry in entries {
            let attr = find(meta, dir, std::str::from_utf8(&entry.name).expect("UTF-8")).await;
            assert_eq!((attr.ino, attr.kind), (entry.ino, entry.kind));
            if attr.kind == FileType::Dir {
                assert_eq!(attr.parent, dir, "parent of {}", attr.ino);
                subdirs += 1;
                queue.push(attr.ino);
                inodes += u64::from(!attr.uncounted);
            } else {
                let count = links.entry(attr.ino).or_default();
                inodes += u64::from(*count == 0 && !attr.uncounted);
                *count += 1;
            }
        }
        assert_eq!(nlink(meta, dir).await, 2 + subdirs, "links of directory {dir}");
    }
    for (ino, count) in links {
        assert_eq!(nlink(meta, ino).await, count, "links of {ino}");
    }
    assert_eq!(meta.usage().await.expect("usage").inodes, inodes);
}

async fn all(mut tasks: JoinSet<()>) {
    while let Some(done) = tasks.join_next().await {
        done.expect("task");
    }
}

async fn two(world: &World) -> [Meta; 2] {
    [world.mount().await, world.mount().await]
}

pub async fn creates_in_one_directory(world: &World) {
    let mounts = two(world).await;
    let d = dir(&mounts[0], ROOT, "d").await;
    let mut tasks = JoinSet::new();
    for task in 0..16 {
        let meta = mounts[task % 2].clone();
        tasks.spawn(async move {
            for n in 0..10 {
                let kind = if n % 2 == 0 { FileType::Dir } else { FileType::File };
                meta.make(d, format!("{task}-{n}").as_bytes(), new(kind, 0o755)).await.expect("make");
                if n % 3 == 0 {
                    let name = format!("{task}-{n}");
                    match kind {
                        FileType::Dir => meta.rmdir(d, name.as_bytes()).await.expect("rmdir"),
                        _ => meta.unlink(d, name.as_bytes()).await.expect("unlink"),
                    };
                }
            }
        });
    }
    all(tasks).await;
    assert_eq!(list(&mounts[0], d).await.len(), 16 * 6);
    check_counts(&mounts[1]).await;
}

pub async fn one_of_many_creates_a_name(world: &World) {
    let mounts = two(world).await;
    for round in 0..10 {
        let name = format!("n{round}");
        let makers = (0..8).map(|n| {
            let (meta, name) = (mounts[n % 2].clone(), name.clone());
            tokio::spawn(async move { meta.make(ROOT, name.as_bytes(), new(FileType::File, 0o644)).await })
        });
        let mut made = 0;
        for maker in makers.collect::<Vec<_>>() {
            match maker.await.expect("task") {
                Ok(_) => made += 1,
                Err(e) => assert_eq!(e.kind(), Kind::Exists),
            }
        }
        assert_eq!(made, 1);
    }
    check_counts(&mounts[0]).await;
}

pub async fn links_of_one_file(world: &World) {
    let mounts = two(world).await;
    let f = file(&mounts[0], ROOT, "f").await;
    let mut tasks = JoinSet::new();
    for task in 0..10 {
        let meta = mounts[task % 2].clone();
        tasks.spawn(async move {
            for n in 0..5 {
                let name = format!("{task}-{n}");
                meta.link(f, ROOT, name.as_bytes()).await.expect("link");
                if n % 2 == 0 {
                    meta.unlink(ROOT, name.as_bytes()).await.expect("unlink");
                }
            }
        });
    }
    all(tasks).await;
    assert_eq!(nlink(&mounts[0], f).await, 21);
    check_counts(&mounts[0]).await;
}

pub async fn creates_against_rmdir(world: &World) {
    let mounts = two(world).await;
    for round in 0..15 {
        let name = format!("d{round}");
        let d = dir(&mounts[0], ROOT, &name).await;
        let (a, b) = (mounts[0].clone(), mounts[1].clone());
        let maker = tokio::spawn(async move { a.make(d, b"f", new(FileType::File, 0o644)).await });
        let remover = tokio::spawn(async move { b.rmdir(ROOT, name.as_bytes()).await });
        let (made, removed) = (maker.await.expect("task"), remover.await.expect("task"));
        match (made, removed) {
            (Ok(_), Err(e)) => assert_eq!(e.kind(), Kind::NotEmpty),
            (Err(e), Ok(_)) => assert_eq!(e.kind(), Kind::Stale),
            (made, removed) => panic!("both or none: {made:?}, {removed:?}"),
        }
    }
    check_counts(&mounts[0]).await;
}

pub async fn renames_among_few_names(world: &World) {
    let mounts = two(world).await;
    let dirs = [dir(&mounts[0], ROOT, "x").await, dir(&mounts[0], ROOT, "y").await];
    let mut tasks = JoinSet::new();
    for task in 0..8_usize {
        let meta = mounts[task % 2].clone();
        tasks.spawn(async move {
            for n in 0..15_usize {
                let seed = task * 31 + n * 17;
                let (from, to) = (dirs[seed % 2], dirs[(seed / 2) % 2]);
                let (name, other) = (format!("{}", seed % 3), format!("{}", (seed / 3) % 3));
                let kind = if seed % 5 == 0 { FileType::Dir } else { FileType::File };
                let mode = [RenameMode::Replace, RenameMode::Exchange, RenameMode::NoReplace][seed % 3];
                // Any of these may find nothing or the wrong thing: that is the point.
                let _ = meta.make(from, name.as_bytes(), new(kind, 0o755)).await;
                let _ = meta.rename(from, name.as_bytes(), to, other.as_bytes(), mode).await;
                if n % 4 == 3 {
                    let _ = meta.unlink(to, other.as_bytes()).await;
                    let _ = meta.rmdir(to, name.as_bytes()).await;
                }
            }
        });
    }
    all(tasks).await;
    check_counts(&mounts[0]).await;
    check_counts(&mounts[1]).await;
}

pub async fn moves_of_directories_make_no_cycle(world: &World) {
    let mounts = two(world).await;
    for round in 0..8 {
        let a = dir(&mounts[0], ROOT, &format!("a{round}")).await;
        let b = dir(&mounts[0], ROOT, &format!("b{round}")).await;
        let (one, two) = (mounts[0].clone(), mounts[1].clone());
        let first = tokio::spawn(async move {
            one.rename(ROOT, format!("a{round}").as_bytes(), b, b"in", RenameMode::Replace).await
        });
        let second = tokio::spawn(async move {
            two.rename(ROOT, format!("b{round}").as_bytes(), a, b"in", RenameMode::Replace).await
        });
        let done = [first.await.expect("task"), second.await.expect("task")];
        assert_eq!(done.iter().filter(|d| d.is_ok()).count(), 1, "{done:?}");
        let error = done.into_iter().find_map(Result::err).expect("one error");
        // The other's directory is in its own by now, or its name is gone from the root.
        assert!(matches!(error.kind(), Kind::Invalid | Kind::NotFound), "{error}");
    }
    check_counts(&mounts[0]).await;
}
