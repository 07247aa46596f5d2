//! Publication of commits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hfmount::error::Kind;
use hfmount::meta::kv::{Change, Event, Kv};
use hfmount::meta::{CommitPlan, Content, InodeContent, Meta, New, PlanFile, Published, RenameMode, Role};
use hfmount::types::{Extent, FileType, Ino, Timestamp};

use crate::decorators::Faulty;
use crate::races::check_counts;
use crate::world::*;

const ROOT: Ino = Ino::ROOT;

/// A file at `path` whose content is the blob number `n`.
fn plan_file(path: &str, n: u32) -> PlanFile {
    PlanFile {
        path: path.split('/').map(|part| Bytes::copy_from_slice(part.as_bytes())).collect(),
        blob: sha256(n),
        size: u64::from(n) * 10,
        repo_path: path.to_owned(),
    }
}

fn plan(repo: &str, n: u8, files: Vec<PlanFile>) -> CommitPlan {
    CommitPlan {
        repo: model_repo(repo),
        folder: Bytes::from(model_repo(repo).folder()),
        repo_ino: None,
        commit: commit(n),
        last_modified: Timestamp(1_600_000_000_000_000_000),
        restricted: false,
        files,
        trees_json: InodeContent::Inline(Bytes::from_static(b"{}")),
        refs: vec!["main".to_owned()],
    }
}

/// Two files in the root of the repository and one below; `n` makes commits differ.
pub fn small_plan(repo: &str, n: u8) -> CommitPlan {
    let files = vec![
        plan_file("config.json", 1),
        plan_file("model.safetensors", 100 + u32::from(n)),
        plan_file("onnx/model.onnx", 3),
    ];
    plan(repo, n, files)
}

async fn publish(meta: &Meta, plan: CommitPlan) -> Published {
    meta.publish_commit(plan).await.expect("publish")
}

/// That the commit `n` of the repository at `folder` is there with all its files.
async fn check(meta: &Meta, folder: &str, plan: &CommitPlan) {
    let snapshot = walk(meta, &format!("{folder}/snapshots/{}", plan.commit)).await;
    assert_eq!(snapshot.role, Some(Role::Snapshot { repo: plan.repo.clone(), commit: plan.commit }));
    for file in &plan.files {
        let pointer = walk(meta, &format!("{folder}/snapshots/{}/{}", plan.commit, file.repo_path)).await;
        let up = "../".repeat(file.path.len() + 1);
        let target = format!("{up}blobs/{}", file.blob.etag());
        assert_eq!(pointer.content, Content::Symlink(target.into()));
        let blob = walk(meta, &format!("{folder}/blobs/{}", file.blob.etag())).await;
        assert_eq!((blob.size, blob.content), (file.size, Content::Blob(file.blob)));
        let row = meta.blobs().get(file.blob).await.expect("blob").expect("row");
        // Of a content that is there twice, one path will do.
        let has_it = |path: &str| plan.files.iter().any(|f| f.blob == file.blob && f.repo_path == path);
        let origin = row.origins.iter().any(|o| o.repo == plan.repo && has_it(&o.path));
        assert!(row.size == file.size && origin, "{row:?}");
    }
    for name in &plan.refs {
        let refs = walk(meta, &format!("{folder}/refs")).await.ino;
        assert_eq!(meta.read_ref(refs, name).await.expect("read").expect("ref").commit, plan.commit);
    }
}

pub async fn a_new_repository(world: &World) {
    let (meta, other) = (world.mount().await, world.mount().await);
    let mut watch = other.kv().watch().await.expect("watch");
    let reserved = meta.reserve_ino().await.expect("number");
    let plan = CommitPlan { repo_ino: Some(reserved), restricted: true, ..small_plan("org/name", 1) };
    let published = publish(&meta, plan.clone()).await;
    assert_eq!((published.repo_dir, published.created), (reserved, true));
    check(&other, "models--org--name", &plan).await;

    let id = || plan.repo.clone();
    let repo = walk(&other, "models--org--name").await;
    assert_eq!((repo.ino, repo.nlink, repo.role), (reserved, 7, Some(Role::Repo(id()))));
    assert_eq!(list(&other, reserved).await, [".no_exist", "blobs", "refs", "snapshots", "trees"]);
    let roles = [
        (".no_exist", Role::NoExist(id())),
        ("blobs", Role::Blobs(id())),
        ("refs", Role::Refs { repo: id(), prefix: String::new() }),
        ("snapshots", Role::Snapshots(id())),
        ("trees", Role::Trees(id())),
    ];
    for (name, role) in roles {
        let attr = find(&other, reserved, name).await;
        assert!(attr.hub && attr.restricted && attr.role == Some(role) && attr.parent == reserved);
    }
    let snapshot = walk(&other, &format!("models--org--name/snapshots/{}", plan.commit)).await;
    assert_eq!((snapshot.ino, snapshot.nlink), (published.snapshot, 3));
    let blob = walk(&other, &format!("models--org--name/blobs/{}", sha256(1).etag())).await;
    assert_eq!((blob.mode, blob.mtime, blob.nlink), (0o444, plan.last_modified, 1));
    assert!(blob.hub && blob.restricted);
    let trees = walk(&other, &format!("models--org--name/trees/{}.json", plan.commit)).await;
    assert_eq!((trees.mode, trees.content), (0o644, Content::Inline(Bytes::from_static(b"{}"))));
    check_counts(&other).await;

    // One event.
    let event = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("in time");
    let change = Change::Entry { parent: ROOT, name: plan.folder };
    assert_eq!(event.expect("event"), Event::Changed { change, by: Some(meta.session()) });
    assert!(tokio::time::timeout(Duration::from_millis(100), watch.next()).await.is_err());
}

pub async fn nested_refs_and_paths(world: &World) {
    let meta = world.mount().await;
    let files = vec![
        plan_file("a/b/c/deep.bin", 1),
        plan_file("a/b/with space #?.txt", 2),
        plan_file("a/same.bin", 1),
        plan_file("ünïcode", 0),
    ];
    let refs = ["main", "v1.0", "refs/pr/1", "refs/pr/2", "feature/x"].map(str::to_owned).to_vec();
    let plan = CommitPlan { refs, ..plan("gpt2", 1, files) };
    publish(&meta, plan.clone()).await;
    check(&meta, "models--gpt2", &plan).await;
    let refs = walk(&meta, "models--gpt2/refs").await;
    assert_eq!(
        (list(&meta, refs.ino).await, refs.nlink),
        (vec!["feature".into(), "main".into(), "refs".into(), "v1.0".into()], 4)
    );
    let pr = walk(&meta, "models--gpt2/refs/refs/pr").await;
    assert_eq!(pr.role, Some(Role::Refs { repo: model_repo("gpt2"), prefix: "refs/pr/".to_owned() }));
    assert_eq!(list(&meta, walk(&meta, "models--gpt2/blobs").await.ino).await.len(), 3);
    assert_eq!(walk(&meta, "models--gpt2/refs/main").await.content, Content::Inline("01".repeat(20).into()));
    check_counts(&meta).await;
}

pub async fn another_commit(world: &World) {
    let (meta, other) = (world.mount().await, world.mount().await);
    let (first, second) = (small_plan("org/name", 1), small_plan("org/name", 2));
    let one = publish(&meta, first.clone()).await;
    // The directory may have another name by now.
    meta.rename(ROOT, b"models--org--name", ROOT, b"mine", RenameMode::Replace).await.expect("rename");
    let two = publish(&other, CommitPlan { repo_ino: Some(one.repo_dir), ..second.clone() }).await;
    assert!(two.created && two.repo_dir == one.repo_dir && two.snapshot != one.snapshot);
    check(&meta, "mine", &second).await;
    check(&meta, "mine", &CommitPlan { refs: vec![], ..first }).await;
    let snapshots = walk(&meta, "mine/snapshots").await;
    assert_eq!((list(&meta, snapshots.ino).await.len(), snapshots.nlink), (2, 4));
    assert_eq!(list(&meta, walk(&meta, "mine/blobs").await.ino).await.len(), 4);
    assert_eq!(list(&meta, walk(&meta, "mine/trees").await.ino).await.len(), 2);
    // A directory that somebody removed is made again.
    meta.rename(one.repo_dir, b"trees", ROOT, b"away", RenameMode::Replace).await.expect("rename");
    let third = CommitPlan { repo_ino: Some(one.repo_dir), ..small_plan("org/name", 3) };
    publish(&meta, third.clone()).await;
    check(&other, "mine", &third).await;
    check_counts(&other).await;
}

pub async fn the_same_commit_again(world: &World) {
    let (meta, other) = (world.mount().await, world.mount().await);
    let plan = small_plan("org/name", 1);
    let first = publish(&meta, plan.clone()).await;
    let refs = vec!["main".to_owned(), "v1".to_owned()];
    let again = publish(&other, CommitPlan { refs, ..plan.clone() }).await;
    assert_eq!(again, Published { created: false, ..first });
    check(&meta, "models--org--name", &CommitPlan { refs: vec!["v1".to_owned()], ..plan }).await;
    check_counts(&meta).await;
}

pub async fn two_publish_the_same_repository(world: &World) {
    let mounts = [world.mount().await, world.mount().await];
    for round in 0..5 {
        let id = format!("org/r{round}");
        let mut tasks = Vec::new();
        for n in 0..4 {
            let meta = mounts[n % 2].clone();
            let repo_ino = meta.reserve_ino().await.expect("number");
            let plan = CommitPlan { repo_ino: Some(repo_ino), ..small_plan(&id, 1) };
            tasks.push(tokio::spawn(async move { publish(&meta, plan).await }));
        }
        let mut all = Vec::new();
        for task in tasks {
            all.push(task.await.expect("task"));
        }
        assert_eq!(all.iter().filter(|p| p.created).count(), 1);
        assert!(all.iter().all(|p| p.repo_dir == all[0].repo_dir && p.snapshot == all[0].snapshot));
        check(&mounts[0], &model_repo(&id).folder(), &small_plan(&id, 1)).await;
    }
    check_counts(&mounts[0]).await;
    assert_no_staging(&mounts[0]).await;
}

pub async fn many_publish_many_commits(world: &World) {
    let mounts = [world.mount().await, world.mount().await];
    let mut tasks = Vec::new();
    for n in 0..8 {
        let meta = mounts[usize::from(n) % 2].clone();
        // Each commit by two.
        tasks.push(tokio::spawn(async move { publish(&meta, small_plan("org/name", n / 2)).await }));
    }
    let mut created = 0;
    for task in tasks {
        created += usize::from(task.await.expect("task").created);
    }
    assert_eq!(created, 4);
    for n in 0..4 {
        let plan = CommitPlan { refs: vec![], ..small_plan("org/name", n) };
        check(&mounts[0], "models--org--name", &plan).await;
    }
    check_counts(&mounts[1]).await;
    assert_no_staging(&mounts[0]).await;
}

pub async fn the_trees_file_may_be_large(world: &World) {
    let meta = world.mount().await;
    let objects = [meta.next_object(), meta.next_object()];
    let extent = |object| Extent { start: 0, len: 4 << 20, object, object_offset: 0, sum: None };
    let chunks = vec![(0, vec![extent(objects[0])]), (1, vec![extent(objects[1])])];
    let large = InodeContent::Extents { size: 5 << 20, chunks };
    let plan = CommitPlan { trees_json: large.clone(), ..small_plan("org/name", 1) };
    publish(&meta, plan.clone()).await;
    let trees = walk(&meta, &format!("models--org--name/trees/{}.json", plan.commit)).await;
    assert_eq!((trees.size, trees.content), (5 << 20, Content::Extents));
    assert_eq!(meta.extents(trees.ino, &[1]).await.expect("extents"), [vec![extent(objects[1])]]);
    assert_eq!(meta.usage().await.expect("usage").bytes, 0, "what the Hub brings counts nothing");
    // Published again, its upload was in vain.
    let other = meta.next_object();
    let chunks = vec![(0, vec![extent(other)])];
    publish(&meta, CommitPlan { trees_json: InodeContent::Extents { size: 9, chunks }, ..plan }).await;
    assert_eq!(meta.trash(0, 10).await.expect("trash").iter().map(|t| t.object).collect::<Vec<_>>(), [other]);
    let too_long = InodeContent::Inline(Bytes::from(vec![0; 4097]));
    let refused = meta.publish_commit(CommitPlan { trees_json: too_long, ..small_plan("org/b", 1) }).await;
    assert_eq!(kind(refused), Kind::Invalid);
}

pub async fn plans_that_cannot_be(world: &World) {
    let meta = world.mount().await;
    let bad = [
        vec![plan_file("a", 1), plan_file("a", 2)],
        vec![plan_file("a", 1), plan_file("a/b", 2)],
        vec![plan_file("a/b", 1), plan_file("a", 2)],
        vec![plan_file("../a", 1)],
        vec![plan_file("a//b", 1)],
        vec![PlanFile { path: vec![], ..plan_file("a", 1) }],
    ];
    for files in bad {
        assert_eq!(kind(meta.publish_commit(plan("org/name", 1, files)).await), Kind::Invalid);
    }
    let two_sizes = vec![plan_file("a", 1), PlanFile { size: 11, ..plan_file("b", 1) }];
    assert_eq!(kind(meta.publish_commit(plan("org/name", 1, two_sizes)).await), Kind::Corrupt);
    assert_eq!(list(&meta, ROOT).await, [""; 0]);
    assert_no_staging(&meta).await;
    // A number that was not reserved may have been an inode's.
    let plan_of_gone = CommitPlan { repo_ino: Some(Ino(1 << 50)), ..small_plan("org/name", 1) };
    assert_eq!(kind(meta.publish_commit(plan_of_gone).await), Kind::Stale);
    let empty = plan("org/name", 1, vec![]);
    publish(&meta, empty.clone()).await;
    check(&meta, "models--org--name", &empty).await;
}

pub async fn what_users_put_there_stays(world: &World) {
    let meta = world.mount().await;
    dir(&meta, ROOT, "models--org--name").await;
    assert_eq!(kind(meta.publish_commit(small_plan("org/name", 1)).await), Kind::Exists);
    file(&meta, ROOT, "models--org--file").await;
    assert_eq!(kind(meta.publish_commit(small_plan("org/file", 1)).await), Kind::Exists);
    assert_no_staging(&meta).await;

    let repo = publish(&meta, small_plan("org/b", 1)).await.repo_dir;
    let blobs = find(&meta, repo, "blobs").await.ino;
    let own = file(&meta, blobs, &sha256(102).etag()).await;
    let trees = find(&meta, repo, "trees").await.ino;
    let own_tree = file(&meta, trees, &format!("{}.json", commit(2))).await;
    let published = publish(&meta, small_plan("org/b", 2)).await;
    assert!(published.created);
    assert_eq!(find(&meta, blobs, &sha256(102).etag()).await.ino, own);
    assert_eq!(find(&meta, trees, &format!("{}.json", commit(2))).await.ino, own_tree);
    check_counts(&meta).await;
}

pub async fn a_tombstone_stands_in_the_way(world: &World) {
    let meta = world.mount().await;
    let name = b"models--org--name";
    publish(&meta, small_plan("org/name", 1)).await;
    meta.rename(ROOT, name, ROOT, b"x", RenameMode::Replace).await.expect("rename");
    assert_eq!(kind(meta.publish_commit(small_plan("org/name", 1)).await), Kind::NotFound);
    assert_eq!(list(&meta, ROOT).await, ["x"]);
    // It ran out.
    meta.set_tombstone(name, Some(Timestamp(1))).await.expect("set");
    publish(&meta, small_plan("org/name", 1)).await;
    check(&meta, "models--org--name", &small_plan("org/name", 1)).await;
    check_counts(&meta).await;
    assert_no_staging(&meta).await;
}

/// A plan of some batches.
fn middling_plan(id: &str, n: u8) -> CommitPlan {
    let files = (0..700).map(|k| plan_file(&format!("d{}/f{k}", k % 7), 1_000 * u32::from(n) + k));
    plan(id, n, files.collect())
}

/// What crashes half way leaves a tree without a trace of it, and can be repeated.
pub async fn a_failure_anywhere_leaves_nothing(world: &World) {
    let faulty = Faulty::new(world.kv().await);
    let meta = mount_on(faulty.clone(), Duration::from_secs(600)).await;
    publish(&meta, small_plan("org/old", 1)).await;
    let before = meta.usage().await.expect("usage");
    for existing in [false, true] {
        let id = if existing { "org/old" } else { "org/new" };
        let mut failures = 0;
        loop {
            faulty.set_fuse(failures);
            let done = meta.publish_commit(middling_plan(id, 2)).await;
            faulty.set_fuse(-1);
            if done.is_ok() {
                break;
            }
            assert_eq!(kind(done), Kind::Unavailable);
            if existing {
                let snapshots = walk(&meta, "models--org--old/snapshots").await;
                let count = list(&meta, snapshots.ino).await.len();
                assert_eq!(snapshots.nlink as usize, 2 + count);
                if count == 2 {
                    // The snapshot is there, and it was the ref, the last of all, that failed.
                    let refs = walk(&meta, "models--org--old/refs").await.ino;
                    let main = meta.read_ref(refs, "main").await.expect("read").expect("main");
                    assert_eq!(main.commit, commit(1));
                }
            } else {
                assert_eq!(list(&meta, ROOT).await, ["models--org--old"]);
                assert_eq!(meta.usage().await.expect("usage"), before);
            }
            check_counts(&meta).await;
            failures += 1;
            assert!(failures < 100);
        }
        assert!(failures > 4, "{failures} commits cannot have been all");
        let folder = model_repo(id).folder();
        check(&meta, &folder, &middling_plan(id, 2)).await;
    }
    // What the broken engine did not let it drop goes when the session does.
    meta.close().await.expect("close");
    let other = world.mount().await;
    assert_no_staging(&other).await;
    assert_no_stray_inodes(world, &other).await;
}

pub async fn a_lost_reply_at_the_end_is_no_harm(world: &World) {
    let faulty = Faulty::after_apply(world.kv().await);
    let meta = mount_on(faulty.clone(), Duration::from_secs(600)).await;
    for n in 0..20 {
        let id = format!("org/r{n}");
        faulty.set_fuse(n);
        let done = meta.publish_commit(small_plan(&id, 1)).await;
        faulty.set_fuse(-1);
        publish(&meta, small_plan(&id, 1)).await;
        check(&meta, &model_repo(&id).folder(), &small_plan(&id, 1)).await;
        check_counts(&meta).await;
        if done.is_ok() {
            assert!(n > 3);
            assert_no_staging(&meta).await;
            return assert_no_stray_inodes(world, &meta).await;
        }
        assert_eq!(kind(done), Kind::Unavailable);
    }
    panic!("20 commits for three files");
}

pub async fn the_staging_of_the_dead_is_swept(world: &World) {
    let ttl = Duration::from_millis(900);
    let faulty = Faulty::new(world.kv().await);
    let dead = mount_on(faulty.clone(), ttl).await;
    faulty.set_fuse(5);
    dead.publish_commit(middling_plan("org/name", 1)).await.expect_err("cut off");
    faulty.mute();
    let meta = mount_on(world.kv().await, ttl).await;
    assert_eq!(meta.kv().scan("staging/", 0, 10).await.expect("scan").len(), 1);
    let deadline = Instant::now() + ttl * 15;
    while !meta.kv().scan("staging/", 0, 10).await.expect("scan").is_empty() {
        assert!(Instant::now() < deadline, "nobody sweeps");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_no_stray_inodes(world, &meta).await;
    publish(&meta, middling_plan("org/name", 1)).await;
    check_counts(&meta).await;
}

pub async fn ten_thousand_files(world: &World) {
    let meta = world.mount().await;
    let files: Vec<_> = (0..10_000).map(|k| plan_file(&format!("data/{:02}/part-{k}", k % 50), k)).collect();
    let started = Instant::now();
    let published = publish(&meta, plan("org/big", 1, files.clone())).await;
    let first = started.elapsed();
    let started = Instant::now();
    let later = files.into_iter().map(|f| PlanFile {
        blob: sha256(f.size as u32 / 10 + 5_000),
        size: f.size + 50_000,
        ..f
    });
    publish(&meta, plan("org/big", 2, later.collect())).await;
    println!("10,000 files: {first:?}, another commit with 5,000 new blobs: {:?}", started.elapsed());
    assert!(first < Duration::from_secs(60));
    let data = find(&meta, published.snapshot, "data").await;
    assert_eq!(data.nlink, 52);
    let blobs = walk(&meta, "models--org--big/blobs").await.ino;
    let mut count = 0;
    let mut after = 0;
    while let Some(last) = meta.readdir(blobs, after, 1_000).await.expect("readdir").last() {
        count = last.id;
        after = last.id;
    }
    assert!(count > 0);
    assert_no_staging(&meta).await;
}

async fn assert_no_staging(meta: &Meta) {
    assert_eq!(meta.kv().scan("staging/", 0, 10).await.expect("scan"), []);
}

/// That no inode has a row but those that have a name, and orphans.
async fn assert_no_stray_inodes(world: &World, meta: &Meta) {
    let mut reachable = std::collections::HashSet::from([ROOT]);
    let mut queue = vec![ROOT];
    while let Some(dir) = queue.pop() {
        for entry in meta.readdir(dir, 0, 100_000).await.expect("readdir") {
            reachable.insert(entry.ino);
            if entry.kind == FileType::Dir {
                queue.push(entry.ino);
            }
        }
    }
    let kv: Arc<dyn Kv> = world.kv().await;
    let orphans = kv.scan("orphans/", 0, 100_000).await.expect("scan");
    reachable
        .extend(orphans.iter().map(|e| Ino(u64::from_be_bytes(e.field[..].try_into().expect("number")))));
    let last = meta.reserve_ino().await.expect("number").0;
    let all: Vec<_> = (1..last).map(Ino).collect();
    for some in all.chunks(1_000) {
        for (ino, attr) in some.iter().zip(meta.getattrs(some).await.expect("getattrs")) {
            assert!(attr.is_none() || reachable.contains(ino), "inode {ino} is astray: {attr:?}");
            if attr.is_none() {
                assert_eq!(meta.readdir(*ino, 0, 1).await.expect("readdir"), [], "entries of {ino}");
            }
        }
    }
}

/// One commit, hence one event and no half-built tree for anybody: seen from another mount, the folder is absent or whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sees_half_a_repository() {
    let world = World::memory();
    let (meta, other) = (world.mount().await, world.mount().await);
    let plan = middling_plan("org/name", 1);
    let watcher = tokio::spawn(async move {
        loop {
            if let Some(repo) = other.lookup(ROOT, b"models--org--name").await.expect("lookup") {
                check(&other, "models--org--name", &middling_plan("org/name", 1)).await;
                return repo.ino;
            }
            tokio::task::yield_now().await;
        }
    });
    let published = publish(&meta, plan).await;
    assert_eq!(watcher.await.expect("task"), published.repo_dir);
}

/// A repository folder that a client made itself and gave away keeps its role.
#[tokio::test]
async fn a_directory_with_another_repository_is_in_the_way() {
    let world = World::memory();
    let meta = world.mount().await;
    let role = Some(Role::Repo(model_repo("org/other")));
    meta.make(ROOT, b"models--org--name", New { role, ..new(FileType::Dir, 0o755) }).await.expect("mkdir");
    assert_eq!(kind(meta.publish_commit(small_plan("org/name", 1)).await), Kind::Exists);
}
