//! What programs delete goes into the bin and comes back, on one node and on two.

use std::fs;
use std::path::Path;
use std::time::Duration;

use hfmount::error::Kind;
use hfmount::meta::{Lost, Wanted};
use hfmount::source::bucket::Object;
use hfmount::types::{Ino, Timestamp};

use crate::node::{CHUNK, Cluster, Node, ROOT};

const DAY: Duration = Duration::from_secs(86_400);
const LATER: Timestamp = Timestamp(i64::MAX);

async fn node(cluster: &Cluster) -> Node {
    let node = cluster.node().await;
    node.meta.set_bin_ttl(DAY);
    node
}

async fn rm(node: &Node, path: &str) {
    let (dir, name) = node.parent(path).await.expect("parent");
    node.vfs.unlink(&ROOT, dir, name).await.expect("unlink");
}

async fn rm_r(node: &Node, path: &str) {
    for name in node.ls(path).await.expect("ls") {
        let path = format!("{path}/{name}");
        match node.walk(&path).await.expect("walk").stat.kind {
            hfmount::types::FileType::Dir => Box::pin(rm_r(node, &path)).await,
            _ => rm(node, &path).await,
        }
    }
    let (dir, name) = node.parent(path).await.expect("parent");
    node.vfs.rmdir(&ROOT, dir, name).await.expect("rmdir");
}

async fn binned(node: &Node) -> Vec<String> {
    let mut found = Vec::new();
    node.meta.lost(&Wanted::default(), |lost: Lost| found.push(lost.shown())).await.expect("the bin");
    found.sort();
    found
}

/// Everything, to where it was.
async fn restore(node: &Node) -> Vec<String> {
    let mut done = Vec::new();
    let each = |one: hfmount::meta::Restored| {
        one.result.as_ref().expect("restored");
        done.push(one.shown());
    };
    node.meta.restore(&Wanted::default(), None, false, each).await.expect("restore");
    done
}

fn pattern(len: u32) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[tokio::test]
async fn one_node_deletes_and_another_restores() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (node(&cluster).await, node(&cluster).await);
    let data = pattern(2 * CHUNK + 5);
    a.mkdir("dir").await.expect("mkdir");
    a.put("dir/big", &data).await.expect("put");
    a.put("dir/small", b"x").await.expect("put");
    assert_eq!(b.cat("dir/small").await.expect("cat"), &b"x"[..]);
    rm_r(&a, "dir").await;
    assert_eq!(b.walk("dir").await.expect_err("gone").kind(), Kind::NotFound);
    assert_eq!(restore(&b).await, ["dir", "dir/big", "dir/small"]);
    for node in [&a, &b] {
        assert_eq!(node.cat("dir/big").await.expect("cat"), data);
        assert_eq!(node.ls("dir").await.expect("ls"), ["big", "small"]);
        assert_eq!(node.walk("dir/big").await.expect("walk").stat.nlink, 1);
    }
    a.put("dir/small", b"as any other").await.expect("put");
    assert_eq!(b.cat("dir/small").await.expect("cat"), &b"as any other"[..]);
}

#[tokio::test]
async fn what_is_open_goes_on_and_is_kept_with_what_is_written() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (node(&cluster).await, node(&cluster).await);
    a.put("f", b"0123456789").await.expect("put");
    let ino = a.walk("f").await.expect("walk").stat.ino;
    let (writer, reader) = (
        a.vfs.open(ino, libc::O_RDWR).await.expect("open"),
        b.vfs.open(ino, libc::O_RDONLY).await.expect("open"),
    );
    a.vfs.write(writer.fh, 0, "before".into()).await.expect("write");
    rm(&a, "f").await;
    assert_eq!(binned(&b).await, ["f"]);
    assert_eq!(b.vfs.read(reader.fh, 0, 100).await.expect("read"), &b"0123456789"[..]);
    a.vfs.write(writer.fh, 6, "+after".into()).await.expect("write");
    assert_eq!(a.vfs.read(writer.fh, 0, 100).await.expect("read"), &b"before+after"[..]);
    // Restored while it is open: whose close comes later is not lost.
    assert_eq!(restore(&b).await, ["f"]);
    assert_eq!(b.cat("f").await.expect("cat"), &b"0123456789"[..], "what was closed");
    a.vfs.flush(writer.fh).await.expect("flush");
    a.vfs.release(writer.fh, None).await.expect("release");
    b.vfs.release(reader.fh, None).await.expect("release");
    assert_eq!(b.cat("f").await.expect("cat"), &b"before+after"[..]);

    // Closed before it is restored.
    let writer = a.vfs.open(ino, libc::O_WRONLY | libc::O_APPEND).await.expect("open");
    rm(&b, "f").await;
    a.vfs.write(writer.fh, 0, "!".into()).await.expect("write");
    a.vfs.flush(writer.fh).await.expect("flush");
    a.vfs.release(writer.fh, None).await.expect("release");
    restore(&b).await;
    assert_eq!(a.cat("f").await.expect("cat"), &b"before+after!"[..]);
    assert_eq!(a.meta.usage().await.expect("usage").bytes, 13);
}

#[tokio::test]
async fn a_file_that_another_one_replaced() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (node(&cluster).await, node(&cluster).await);
    let old = pattern(CHUNK + 1);
    a.put("f", &old).await.expect("put");
    let reader = b.vfs.open(b.walk("f").await.expect("walk").stat.ino, libc::O_RDONLY).await.expect("open");
    a.put("f.new", b"new").await.expect("put");
    a.vfs.rename(&ROOT, (Ino::ROOT, b"f.new"), (Ino::ROOT, b"f"), 0).await.expect("rename");
    assert_eq!(b.cat("f").await.expect("cat"), &b"new"[..]);
    assert_eq!(b.vfs.read(reader.fh, CHUNK.into(), 100).await.expect("read"), old[CHUNK as usize..]);
    assert_eq!(binned(&a).await, ["f"]);
    rm(&a, "f").await;
    assert_eq!(binned(&a).await, ["f", "f"]);
    assert_eq!(restore(&a).await, ["f"]);
    assert_eq!(b.cat("f").await.expect("cat"), &b"new"[..]);
    b.vfs.release(reader.fh, None).await.expect("release");
    // A temporary name is not worth it, wherever it came from.
    a.put("f.tmp", b"1").await.expect("put");
    a.put("g", b"2").await.expect("put");
    a.vfs.rename(&ROOT, (Ino::ROOT, b"g"), (Ino::ROOT, b"f.tmp"), 0).await.expect("rename");
    rm(&a, "f.tmp").await;
    assert_eq!(binned(&a).await, ["f"]);
}

#[tokio::test]
async fn after_its_time_the_objects_leave_the_store() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (node(&cluster).await, node(&cluster).await);
    a.put("f", &pattern(CHUNK + 1)).await.expect("put");
    let ino = a.walk("f").await.expect("walk").stat.ino;
    let objects: Vec<_> =
        a.meta.extents(ino, &[0, 1]).await.expect("extents").iter().map(|list| list[0].object).collect();
    let stored = async || {
        let mut stored = 0;
        for object in &objects {
            stored += usize::from(cluster.bucket.exists(&Object::FileChunk(*object)).await.expect("head"));
        }
        stored
    };
    assert_eq!((objects.len(), stored().await), (2, 2));
    rm(&a, "f").await;
    let now = a.meta.now();
    assert_eq!(b.meta.expire_bin(Timestamp(now.0 + 86_000_000_000_000)).await.expect("expire"), 0);
    b.meta.reap_orphans(LATER).await.expect("reap");
    b.files.sweep(Duration::ZERO).await.expect("sweep");
    assert_eq!(stored().await, 2, "its time is not over");
    assert_eq!(b.meta.expire_bin(Timestamp(now.0 + 90_000_000_000_000)).await.expect("expire"), 1);
    assert_eq!(b.meta.reap_orphans(LATER).await.expect("reap").len(), 1);
    b.files.sweep(Duration::ZERO).await.expect("sweep");
    assert_eq!((stored().await, binned(&a).await.len()), (0, 0));
}

fn repository(root: &Path) {
    let dir = root.join("models/org/tiny/main");
    fs::create_dir_all(dir.join("sub")).expect("mkdir");
    fs::write(dir.join("config.json"), b"{\"a\": 1}").expect("write");
    fs::write(dir.join("sub/model.safetensors"), pattern(3 << 20)).expect("write");
}

/// As `hf cache rm` does, and as somebody who wrote into it.
#[tokio::test]
async fn what_the_hub_has_is_not_kept() {
    let cluster = Cluster::new(repository);
    let node = node(&cluster).await;
    let repo = "models--org--tiny";
    let commit = String::from_utf8(node.cat(&format!("{repo}/refs/main")).await.expect("ref").to_vec());
    let snapshot = format!("{repo}/snapshots/{}", commit.expect("utf-8"));
    node.cat(&format!("{snapshot}/sub/model.safetensors")).await.expect("cat");
    rm_r(&node, repo).await;
    assert_eq!(binned(&node).await, [""; 0]);

    // A client that downloads by itself: the blob is known by its name.
    let etag = "0b".repeat(32);
    node.mkdir("models--org--mine").await.expect("mkdir");
    for dir in ["blobs", "snapshots", "work"] {
        node.mkdir(&format!("models--org--mine/{dir}")).await.expect("mkdir");
    }
    for path in [format!("blobs/{etag}"), format!("blobs/{etag}.incomplete"), "work/notes".to_owned()] {
        node.put(&format!("models--org--mine/{path}"), b"bytes").await.expect("put");
    }
    node.put(&etag, b"a file of a user that is called so").await.expect("put");
    rm_r(&node, "models--org--mine").await;
    rm(&node, &etag).await;
    let mine = ["", "/blobs", "/snapshots", "/work", "/work/notes"].map(|p| format!("models--org--mine{p}"));
    assert_eq!(binned(&node).await, [&[etag][..], &mine[..]].concat());
}
