//! Extended attributes, times of last access and quotas, on one node and on two.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use hfmount::error::Kind;
use hfmount::meta::Limits;
use hfmount::types::{FileType, Ino, Timestamp};
use hfmount::vfs::{Caller, SetAttr, TimeOrNow};

use crate::node::{CHUNK, Cluster, Node, ROOT, Settings};

fn tiny(root: &Path) {
    let dir = root.join("models/org/tiny/main");
    fs::create_dir_all(&dir).expect("mkdir");
    fs::write(dir.join("config.json"), b"{\"a\": 1}").expect("write");
    fs::write(dir.join("model.safetensors"), vec![3; 3 << 20]).expect("write");
}

async fn value(node: &Node, ino: Ino, name: &[u8]) -> Result<Bytes, Kind> {
    node.vfs.getxattr(ino, name).await.map_err(|e| e.kind())
}

#[tokio::test]
async fn xattrs_follow_from_node_to_node() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    a.put("f", b"data").await.expect("put");
    let ino = a.walk("f").await.expect("walk").stat.ino;
    // Both have seen it without any.
    b.walk("f").await.expect("walk");
    for node in [&a, &b] {
        assert_eq!(value(node, ino, b"user.x").await, Err(Kind::NoData));
        assert_eq!(node.vfs.listxattr(&ROOT, ino).await.expect("list"), "");
    }
    a.vfs.setxattr(ino, b"user.x", b"1", 0).await.expect("set");
    a.vfs.setxattr(ino, b"trusted.y", b"2", libc::XATTR_CREATE).await.expect("set");
    assert_eq!(value(&a, ino, b"user.x").await, Ok("1".into()), "at once here");
    // An open looks, as it does at attributes.
    let opened = b.vfs.open(ino, libc::O_RDONLY).await.expect("open");
    assert_eq!(value(&b, ino, b"user.x").await, Ok("1".into()));
    b.vfs.release(opened.fh, None).await.expect("release");
    assert_eq!(b.vfs.listxattr(&ROOT, ino).await.expect("list"), "user.x\0trusted.y\0");
    let user = Caller { uid: 1000, gid: 1000, pid: 0 };
    assert_eq!(b.vfs.listxattr(&user, ino).await.expect("list"), "user.x\0");
    b.vfs.removexattr(ino, b"user.x").await.expect("remove");
    b.put("f", b"other data").await.expect("put");
    assert_eq!(b.vfs.listxattr(&ROOT, ino).await.expect("list"), "trusted.y\0", "kept by who writes");
    let refused = async |name: &[u8]| a.vfs.setxattr(ino, name, b"", 0).await.expect_err("refused").kind();
    assert_eq!(refused(b"security.capability").await, Kind::NotSupported);
    assert_eq!(refused(b"system.posix_acl_access").await, Kind::NotSupported);
    assert_eq!(refused(b"user.").await, Kind::Invalid);
    assert_eq!(value(&a, ino, b"security.capability").await, Err(Kind::NoData));
}

#[tokio::test]
async fn xattrs_of_what_is_not_quite_a_file() {
    let cluster = Cluster::new(tiny);
    let node = cluster.node().await;
    let commit = cluster.hub.commit("models", "org/tiny", "main").expect("commit");
    let repo = "models--org--tiny";
    // What the Hub brought has them as anything else.
    for path in ["refs/main".to_owned(), format!("snapshots/{commit}"), "blobs".into()] {
        let ino = node.walk(&format!("{repo}/{path}")).await.expect("walk").stat.ino;
        node.vfs.setxattr(ino, b"user.note", b"n", 0).await.expect("set");
        assert_eq!(value(&node, ino, b"user.note").await, Ok("n".into()));
    }
    let name = &node.ls(&format!("{repo}/blobs")).await.expect("ls")[0];
    let blob = node.walk(&format!("{repo}/blobs/{name}")).await.expect("walk").stat.ino;
    node.vfs.setxattr(blob, b"user.note", b"n", 0).await.expect("set");
    assert_eq!(value(&node, blob, b"user.note").await, Ok("n".into()));
    assert_eq!(value(&cluster.node().await, blob, b"user.note").await, Ok("n".into()));
    // A blob that is written to keeps them.
    let opened = node.vfs.open(blob, libc::O_RDWR).await.expect("open");
    node.vfs.write(opened.fh, 0, "X".into()).await.expect("write");
    node.vfs.flush(opened.fh).await.expect("flush");
    node.vfs.release(opened.fh, None).await.expect("release");
    assert_eq!(value(&node, blob, b"user.note").await, Ok("n".into()));
    // What exists in this mount only has none and takes none.
    let absent = node.walk(&format!("{repo}/.no_exist/{commit}/no.such")).await.expect("walk").stat.ino;
    assert_eq!(value(&node, absent, b"user.note").await, Err(Kind::NoData));
    assert_eq!(node.vfs.listxattr(&ROOT, absent).await.expect("list"), "");
    let refused = node.vfs.setxattr(absent, b"user.note", b"", 0).await.expect_err("refused");
    assert_eq!(refused.kind(), Kind::NotSupported);
    // A private file has those of the local disk.
    node.put("token", b"hf_secret").await.expect("put");
    let token = node.walk("token").await.expect("walk").stat.ino;
    node.vfs.setxattr(token, b"user.note", b"local", 0).await.expect("set");
    assert_eq!(value(&node, token, b"user.note").await, Ok("local".into()));
    assert_eq!(node.vfs.listxattr(&ROOT, token).await.expect("list"), "user.note\0");
    let create = node.vfs.setxattr(token, b"user.note", b"", libc::XATTR_CREATE).await.expect_err("there");
    assert_eq!(create.kind(), Kind::Exists);
    node.vfs.removexattr(token, b"user.note").await.expect("remove");
    assert_eq!(value(&node, token, b"user.note").await, Err(Kind::NoData));
    // A directory that is open and removed.
    let dir = node.mkdir("d").await.expect("mkdir").stat.ino;
    node.vfs.rmdir(&ROOT, Ino::ROOT, b"d").await.expect("rmdir");
    assert_eq!(node.vfs.listxattr(&ROOT, dir).await.expect("list"), "");
}

async fn relatime(cluster: &Cluster) -> Node {
    cluster.node_with(Settings { relatime: true, ..Settings::default() }).await
}

async fn atime(node: &Node, path: &str) -> Timestamp {
    node.walk(path).await.expect("walk").stat.atime
}

/// A time of last access a week ago, later than the last change but for ctime.
async fn age(node: &Node, path: &str) -> Timestamp {
    let week = Timestamp(Timestamp::now().0 - 7 * 24 * 3600 * 1_000_000_000);
    let ino = node.walk(path).await.expect("walk").stat.ino;
    let set = SetAttr { atime: Some(TimeOrNow::Time(week)), ..SetAttr::default() };
    node.vfs.setattr(ino, None, set).await.expect("utimens");
    week
}

#[tokio::test]
async fn reads_move_the_time_of_last_access_if_they_are_to() {
    let cluster = Cluster::new(tiny);
    let (on, off) = (relatime(&cluster).await, cluster.node().await);
    on.put("f", b"data").await.expect("put");
    on.mkdir("d").await.expect("mkdir");
    let dir = on.walk("d").await.expect("walk").stat.ino;
    on.vfs.symlink(&ROOT, Ino::ROOT, b"l", b"f").await.expect("symlink");
    let link = on.walk("l").await.expect("walk").stat.ino;
    for path in ["f", "d", "l"] {
        age(&on, path).await;
    }
    let old = atime(&on, "f").await;
    off.cat("f").await.expect("cat");
    off.ls("d").await.expect("ls");
    off.vfs.readlink(link).await.expect("readlink");
    off.vfs.record_accesses(Duration::from_secs(5)).await;
    assert_eq!((atime(&off, "f").await, atime(&on, "f").await), (old, old), "noatime");

    let before = Timestamp::now();
    on.cat("f").await.expect("cat");
    on.vfs.readdir(dir, 0, true, 100).await.expect("readdir");
    on.vfs.readlink(link).await.expect("readlink");
    let mut seen = Vec::new();
    for path in ["f", "d", "l"] {
        seen.push(atime(&on, path).await);
        assert!(seen[seen.len() - 1] >= before, "{path} shows at once");
        assert!(atime(&off, path).await < before, "{path} is not recorded yet");
    }
    on.vfs.record_accesses(Duration::from_secs(5)).await;
    for (path, seen) in ["f", "d", "l"].into_iter().zip(seen) {
        assert_eq!((atime(&on, path).await, atime(&off, path).await), (seen, seen), "{path} for all");
    }
    // Younger than the last change, and than a day: it stays.
    let now = atime(&on, "f").await;
    on.cat("f").await.expect("cat");
    assert_eq!(atime(&on, "f").await, now);
    // Changed: the next read counts. O_NOATIME does not.
    on.put("f", b"changed").await.expect("put");
    let ino = on.walk("f").await.expect("walk").stat.ino;
    let opened = on.vfs.open(ino, libc::O_RDONLY | libc::O_NOATIME).await.expect("open");
    on.vfs.read(opened.fh, 0, 10).await.expect("read");
    on.vfs.release(opened.fh, None).await.expect("release");
    assert_eq!(atime(&on, "f").await, now);
    on.cat("f").await.expect("cat");
    assert!(atime(&on, "f").await > now);
    // What is set is what shows, though a read is noted and not recorded.
    let week = age(&on, "f").await;
    assert_eq!(atime(&on, "f").await, week);
    on.vfs.record_accesses(Duration::from_secs(5)).await;
    assert_eq!((atime(&on, "f").await, atime(&off, "f").await), (week, week));
}

#[tokio::test]
async fn blobs_and_open_files_have_times_of_last_access() {
    let cluster = Cluster::new(tiny);
    let (node, other) = (relatime(&cluster).await, cluster.node().await);
    let commit = cluster.hub.commit("models", "org/tiny", "main").expect("commit");
    let target = format!("models--org--tiny/snapshots/{commit}/model.safetensors");
    let link = node.walk(&target).await.expect("walk").stat.ino;
    let name = node.vfs.readlink(link).await.expect("readlink");
    let name = String::from_utf8(name.to_vec()).expect("UTF-8").replace("../../", "models--org--tiny/");
    let week = age(&node, &name).await;
    node.cat(&name).await.expect("cat");
    let seen = atime(&node, &name).await;
    assert!(seen > week);
    node.vfs.record_accesses(Duration::from_secs(5)).await;
    assert_eq!(atime(&other, &name).await, seen);

    // Through one handle: written, read, set, read.
    node.put("f", b"data").await.expect("put");
    let ino = node.walk("f").await.expect("walk").stat.ino;
    let opened = node.vfs.open(ino, libc::O_RDWR).await.expect("open");
    node.vfs.write(opened.fh, 0, "more".into()).await.expect("write");
    node.vfs.read(opened.fh, 0, 4).await.expect("read");
    let read = atime(&node, "f").await;
    assert!(read >= node.walk("f").await.expect("walk").stat.mtime);
    let week = age(&node, "f").await;
    assert_eq!(atime(&node, "f").await, week);
    node.vfs.read(opened.fh, 0, 4).await.expect("read");
    assert!(atime(&node, "f").await > read);
    node.vfs.flush(opened.fh).await.expect("flush");
    node.vfs.release(opened.fh, None).await.expect("release");
    let seen = atime(&node, "f").await;
    node.vfs.record_accesses(Duration::from_secs(5)).await;
    assert_eq!(atime(&other, "f").await, seen);
}

fn limit(node: &Node, bytes: Option<u64>) {
    node.meta.set_limits(Limits { bytes, inodes: None });
}

#[tokio::test]
async fn a_write_beyond_the_capacity_fails_at_once_and_whole() {
    let cluster = Cluster::new(|_| {});
    let node = cluster.node().await;
    limit(&node, Some(3 << 20));
    let data = vec![7; 1 << 20];
    node.put("a", &data).await.expect("put");
    let (entry, opened) = node.vfs.create(&ROOT, Ino::ROOT, b"b", 0o644, libc::O_RDWR).await.expect("create");
    let write = async |at: u64, data: &[u8]| {
        node.vfs.write(opened.fh, at, Bytes::copy_from_slice(data)).await.map_err(|e| e.kind())
    };
    assert_eq!(write(0, &data).await, Ok(1 << 20));
    assert_eq!(write(1 << 20, &data).await, Ok(1 << 20));
    assert_eq!(write(2 << 20, b"x").await, Err(Kind::NoSpace));
    let size = async || node.vfs.getattr(entry.stat.ino, None).await.expect("getattr").0.size;
    assert_eq!(size().await, 2 << 20, "nothing of it was written");
    let extend = SetAttr { size: Some((2 << 20) + 1), ..SetAttr::default() };
    let refused = node.vfs.setattr(entry.stat.ino, Some(opened.fh), extend).await;
    assert_eq!((refused.expect_err("full").kind(), size().await), (Kind::NoSpace, 2 << 20));
    // Over what is there one can write.
    assert_eq!(write(5, b"over").await, Ok(4));
    node.vfs.flush(opened.fh).await.expect("flush");
    let df = node.vfs.statfs().await.expect("statfs");
    assert_eq!((df.bavail, df.blocks * u64::from(df.frsize)), (0, 3 << 20));
    // Room again: by deleting, and by cutting.
    node.vfs.unlink(&ROOT, Ino::ROOT, b"a").await.expect("unlink");
    assert_eq!(write(2 << 20, b"x").await, Ok(1));
    let cut = SetAttr { size: Some(0), ..SetAttr::default() };
    node.vfs.setattr(entry.stat.ino, Some(opened.fh), cut).await.expect("cut");
    node.vfs.flush(opened.fh).await.expect("flush");
    node.vfs.release(opened.fh, None).await.expect("release");
    node.put("c", &vec![1; 3 << 20]).await.expect("all of it again");
    assert_eq!(node.meta.usage().await.expect("usage").bytes, 3 << 20);
    let refused = node.put("d", b"x").await.expect_err("full");
    assert_eq!(refused.kind(), Kind::NoSpace);
    // What is written and forgotten claims nothing for ever.
    node.vfs.unlink(&ROOT, Ino::ROOT, b"c").await.expect("unlink");
    for _ in 0..5 {
        let (entry, opened) =
            node.vfs.create(&ROOT, Ino::ROOT, b"t", 0o644, libc::O_RDWR).await.expect("create");
        node.vfs.write(opened.fh, 0, vec![1; 2 << 20].into()).await.expect("write");
        node.vfs.unlink(&ROOT, Ino::ROOT, b"t").await.expect("unlink");
        node.vfs.flush(opened.fh).await.expect("flush");
        node.vfs.release(opened.fh, None).await.expect("release");
        node.vfs.forget(entry.stat.ino, 1);
        // Forgetting goes on behind.
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while node.meta.room_for(3 << 20).await.is_err() {
            assert!(std::time::Instant::now() < end, "claimed for ever");
        }
    }
}

#[tokio::test]
async fn two_nodes_share_the_capacity() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    limit(&a, Some(2 << 20));
    limit(&b, Some(2 << 20));
    let (_, mine) = a.vfs.create(&ROOT, Ino::ROOT, b"a", 0o644, libc::O_RDWR).await.expect("create");
    let (_, theirs) = b.vfs.create(&ROOT, Ino::ROOT, b"b", 0o644, libc::O_RDWR).await.expect("create");
    // Neither knows of the other's bytes yet.
    a.vfs.write(mine.fh, 0, vec![1; 3 << 19].into()).await.expect("write");
    b.vfs.write(theirs.fh, 0, vec![2; 3 << 19].into()).await.expect("write");
    a.vfs.flush(mine.fh).await.expect("flush");
    // The later one is told at its close, and nobody else sees a part of it.
    let refused = b.vfs.flush(theirs.fh).await.expect_err("full");
    assert_eq!(refused.kind(), Kind::NoSpace);
    assert_eq!(a.cat("b").await.expect("cat"), "");
    assert_eq!(a.meta.usage().await.expect("usage").bytes, 3 << 19);
    // Once there is room the same bytes can be stored.
    a.vfs.unlink(&ROOT, Ino::ROOT, b"a").await.expect("unlink");
    b.vfs.flush(theirs.fh).await.expect("flush");
    assert_eq!(a.cat("b").await.expect("cat"), vec![2; 3 << 19]);
    assert_eq!(a.meta.usage().await.expect("usage").bytes, 3 << 19);
}

#[tokio::test]
async fn the_hub_is_there_though_the_volume_is_full() {
    let cluster = Cluster::new(tiny);
    let node = cluster.node().await;
    node.put("mine", b"1234").await.expect("put");
    node.meta.set_limits(Limits { bytes: Some(4), inodes: Some(2) });
    let commit = cluster.hub.commit("models", "org/tiny", "main").expect("commit");
    let snapshot = format!("models--org--tiny/snapshots/{commit}");
    assert_eq!(node.cat(&format!("{snapshot}/config.json")).await.expect("cat"), "{\"a\": 1}");
    assert_eq!(node.cat(&format!("{snapshot}/model.safetensors")).await.expect("cat").len(), 3 << 20);
    let usage = node.meta.usage().await.expect("usage");
    assert_eq!((usage.bytes, usage.inodes), (4, 2));
    let refused = node.mkdir("dir").await.expect_err("full");
    assert_eq!(refused.kind(), Kind::NoSpace);
    let df = node.vfs.statfs().await.expect("statfs");
    assert_eq!((df.files, df.ffree, df.bfree), (2, 0, 0));
    assert_eq!(node.walk("mine").await.expect("walk").stat.kind, FileType::File);
    assert_eq!(CHUNK, 1 << 20, "as the figures above take it");
}
