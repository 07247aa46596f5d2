//! Files that users write, on one node and on two.

use hfmount::error::Kind;
use hfmount::types::Ino;
use hfmount::vfs::{Invalidation, SetAttr};

use crate::node::{Cluster, ROOT};

#[tokio::test]
async fn what_one_node_closed_the_other_opens() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    a.mkdir("dir").await.expect("mkdir");
    let data: Vec<u8> = (0..2_500_000u32).map(|i| (i / 7) as u8).collect();
    for (path, bytes) in [("dir/big", &data[..]), ("dir/small", b"x"), ("dir/empty", b"")] {
        a.put(path, bytes).await.expect(path);
        assert_eq!(b.cat(path).await.expect(path), bytes, "{path}");
    }
    b.put("dir/small", b"longer than before").await.expect("overwrite");
    assert_eq!(a.cat("dir/small").await.expect("cat"), &b"longer than before"[..]);
    assert_eq!(a.ls("dir").await.expect("ls"), ["big", "empty", "small"]);
}

#[tokio::test]
async fn a_handle_that_never_wrote_overwrites_nothing() {
    let cluster = Cluster::new(|_| {});
    let node = cluster.node().await;
    node.put("f", b"old").await.expect("put");
    let ino = node.walk("f").await.expect("walk").stat.ino;
    let idle = node.vfs.open(ino, libc::O_WRONLY | libc::O_TRUNC).await.expect("open");
    let busy = node.vfs.open(ino, libc::O_WRONLY).await.expect("open");
    node.vfs.write(busy.fh, 0, "new data".into()).await.expect("write");
    for fh in [busy.fh, idle.fh] {
        node.vfs.flush(fh).await.expect("flush");
        node.vfs.release(fh, None).await.expect("release");
    }
    assert_eq!(node.cat("f").await.expect("cat"), &b"new data"[..]);
}

#[tokio::test]
async fn regression_who_only_reads_does_not_write_out_what_another_is_writing() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    a.put("f", b"old").await.expect("put");
    let ino = a.walk("f").await.expect("walk").stat.ino;
    let writer = a.vfs.open(ino, libc::O_WRONLY | libc::O_TRUNC).await.expect("open");
    a.vfs.write(writer.fh, 0, "half".into()).await.expect("write");
    assert_eq!(a.cat("f").await.expect("cat"), &b"half"[..], "here it shows at once");
    assert_eq!(b.cat("f").await.expect("cat"), &b"old"[..], "elsewhere when it is closed");
    a.vfs.flush(writer.fh).await.expect("flush");
    assert_eq!(b.cat("f").await.expect("cat"), &b"half"[..]);
}

#[tokio::test]
async fn appends_from_two_handles_lose_nothing() {
    let cluster = Cluster::new(|_| {});
    let node = cluster.node().await;
    node.put("log", b"").await.expect("put");
    let ino = node.walk("log").await.expect("walk").stat.ino;
    let flags = libc::O_WRONLY | libc::O_APPEND;
    let (a, b) = (node.vfs.open(ino, flags).await.expect("a"), node.vfs.open(ino, flags).await.expect("b"));
    for _ in 0..10 {
        // The kernel's idea of the end may be old: both say 0.
        node.vfs.write(a.fh, 0, "aaa\n".into()).await.expect("write");
        node.vfs.write(b.fh, 0, "bbb\n".into()).await.expect("write");
    }
    for fh in [a.fh, b.fh] {
        node.vfs.flush(fh).await.expect("flush");
        node.vfs.release(fh, None).await.expect("release");
    }
    assert_eq!(node.cat("log").await.expect("cat"), "aaa\nbbb\n".repeat(10).as_bytes());
}

#[tokio::test]
async fn truncate_up_and_down_by_path() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    a.put("f", b"0123456789").await.expect("put");
    let ino = a.walk("f").await.expect("walk").stat.ino;
    for (size, expected) in [(4, &b"0123"[..]), (8, b"0123\0\0\0\0"), (0, b"")] {
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        let (stat, _) = a.vfs.setattr(ino, None, set).await.expect("truncate");
        assert_eq!(stat.size, size);
        assert_eq!(b.cat("f").await.expect("cat"), expected);
    }
}

#[tokio::test]
async fn the_root_and_the_locks_keep_their_modes() {
    let cluster = Cluster::new(|_| {});
    let node = cluster.node().await;
    let chmod = SetAttr { mode: Some(0o700), ..SetAttr::default() };
    let (stat, _) = node.vfs.setattr(Ino::ROOT, None, chmod).await.expect("chmod is no error");
    assert_eq!(stat.mode, 0o777);
    node.mkdir(".locks").await.expect("mkdir");
    assert_eq!(node.mkdir(".locks/models--a--b").await.expect("mkdir").stat.mode, 0o777);
    node.put(".locks/models--a--b/x.lock", b"").await.expect("put");
    let lock = node.walk(".locks/models--a--b/x.lock").await.expect("walk").stat;
    assert_eq!(lock.mode, 0o666);
    let (stat, _) = node.vfs.setattr(lock.ino, None, chmod).await.expect("chmod is no error");
    assert_eq!(stat.mode, 0o666);
}

#[tokio::test]
async fn the_hidden_hub_is_the_root() {
    let cluster = Cluster::new(|_| {});
    let node = cluster.node().await;
    let hub = node.walk("hub").await.expect("hub").stat;
    assert_eq!(node.vfs.readlink(hub.ino).await.expect("readlink"), "."[..]);
    assert_eq!(node.ls("").await.expect("ls"), [""; 0]);
    assert_eq!(node.mkdir("hub").await.expect_err("taken").kind(), Kind::NotPermitted);
}

#[tokio::test]
async fn a_deleted_file_is_readable_while_it_is_open() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    let data = vec![7; 2_000_000];
    a.put("f", &data).await.expect("put");
    let ino = a.walk("f").await.expect("walk").stat.ino;
    let open = a.vfs.open(ino, libc::O_RDWR).await.expect("open");
    b.vfs.unlink(&ROOT, Ino::ROOT, b"f").await.expect("unlink");
    assert_eq!(a.walk("f").await.expect_err("gone").kind(), Kind::NotFound);
    assert_eq!(a.vfs.read(open.fh, 1_999_990, 100).await.expect("read"), vec![7; 10]);
    a.vfs.write(open.fh, 0, "still writable".into()).await.expect("write");
    a.vfs.flush(open.fh).await.expect("flush");
    assert_eq!(a.vfs.read(open.fh, 0, 5).await.expect("read"), "still"[..]);
    a.vfs.release(open.fh, None).await.expect("release");
}

#[tokio::test]
async fn pages_are_dropped_when_a_flush_merged_what_another_node_wrote() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    a.put("f", &[b'.'; 8192]).await.expect("put");
    let ino = a.walk("f").await.expect("walk").stat.ino;
    let open = a.vfs.open(ino, libc::O_RDWR).await.expect("open");
    a.vfs.write(open.fh, 0, "aaaa".into()).await.expect("write");
    let other = b.vfs.open(ino, libc::O_RDWR).await.expect("open");
    b.vfs.write(other.fh, 4096, "bbbb".into()).await.expect("write");
    b.vfs.flush(other.fh).await.expect("flush");
    let dropped = |node: &crate::node::Node| {
        node.invalidations.take().into_iter().any(|order| order == Invalidation::Pages { ino })
    };
    assert!(!dropped(&a));
    a.vfs.flush(open.fh).await.expect("flush merges");
    assert!(dropped(&a), "the kernel may hold pages without the other node's bytes");
    let merged = a.cat("f").await.expect("cat");
    assert_eq!((&merged[..4], &merged[4096..4100]), (&b"aaaa"[..], &b"bbbb"[..]));
    assert_eq!(b.cat("f").await.expect("cat"), merged);
    // Alone, a flush keeps the pages.
    a.vfs.write(open.fh, 8, "cccc".into()).await.expect("write");
    a.vfs.flush(open.fh).await.expect("flush");
    assert!(!dropped(&a));
    let again = a.vfs.open(ino, libc::O_RDONLY).await.expect("open");
    assert!(again.keep_cache || again.drop_attrs);
}

/// The kernel's pages have what was written here, not what the commit brought in of another mount.
#[tokio::test]
async fn regression_pages_are_dropped_after_a_merge() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    a.put("f", &vec![b'.'; 10_000]).await.expect("put");
    let ino = a.walk("f").await.expect("walk").stat.ino;
    let here = a.vfs.open(ino, libc::O_RDWR).await.expect("open");
    a.vfs.read(here.fh, 0, 10_000).await.expect("read");
    let there = b.vfs.open(ino, libc::O_RDWR).await.expect("open");
    b.vfs.write(there.fh, 0, "there".into()).await.expect("write");
    b.vfs.flush(there.fh).await.expect("flush");
    a.vfs.write(here.fh, 9_000, "here".into()).await.expect("write");
    a.vfs.flush(here.fh).await.expect("flush");
    let again = a.vfs.open(ino, libc::O_RDONLY).await.expect("open");
    assert!(!again.keep_cache, "the first page is of the first version");
    assert_eq!(a.vfs.read(again.fh, 0, 5).await.expect("read"), "there"[..]);
    a.vfs.write(here.fh, 9_000, "more".into()).await.expect("write");
    a.vfs.flush(here.fh).await.expect("flush");
    let third = a.vfs.open(ino, libc::O_RDONLY).await.expect("open");
    assert!(third.keep_cache, "all that is new was written here");
}

/// The kernel would let anybody in: what is created is the caller's own.
#[tokio::test]
async fn regression_create_never_opens_what_another_made() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    a.put("secret", b"x").await.expect("put");
    for (flags, kind) in [(libc::O_CREAT, Kind::Stale), (libc::O_CREAT | libc::O_EXCL, Kind::Exists)] {
        let made = b.vfs.create(&ROOT, Ino::ROOT, b"secret", 0o644, flags | libc::O_RDWR).await;
        assert_eq!(made.expect_err("it is there").kind(), kind);
    }
    assert_eq!(b.cat("secret").await.expect("cat"), b"x"[..]);
}

/// The list of a chunk is read when it is needed. If the file was replaced by something small meanwhile there is none, which
/// does not mean zeros.
#[tokio::test]
async fn regression_who_has_a_file_open_never_reads_zeros_that_nobody_wrote() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    a.put("f", &[1; 10_000]).await.expect("put");
    let ino = a.walk("f").await.expect("walk").stat.ino;
    let (reader, writer) = (
        b.vfs.open(ino, libc::O_RDONLY).await.expect("open"),
        b.vfs.open(ino, libc::O_RDWR).await.expect("open"),
    );
    a.put("f", &[2; 100]).await.expect("replace");
    let read = b.vfs.read(reader.fh, 0, 50).await.expect("read");
    assert!(read == vec![1; 50] || read == vec![2; 50], "{read:?}");
    // The same with something new in it.
    a.put("f", &[3; 10_000]).await.expect("replace");
    b.vfs.open(ino, libc::O_RDONLY).await.expect("looks anew");
    b.vfs.write(writer.fh, 0, "new".into()).await.expect("write");
    a.put("f", &[4; 100]).await.expect("replace");
    let read = b.vfs.read(reader.fh, 3, 47).await.expect("read");
    assert!(read == vec![3; 47] || read == vec![4; 47], "{read:?}");
    b.vfs.flush(writer.fh).await.expect("flush");
    let merged = a.cat("f").await.expect("cat");
    assert_eq!((&merged[..3], &merged[3..]), (&b"new"[..], &[4; 97][..]));
}
