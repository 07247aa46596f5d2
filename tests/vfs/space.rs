//! Holes and copies, on two nodes.

use hfmount::error::Kind;

use crate::node::{CHUNK, Cluster, Node};

const C: u64 = CHUNK as u64;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

async fn open(node: &Node, path: &str, flags: i32) -> u64 {
    let ino = node.walk(path).await.expect(path).stat.ino;
    node.vfs.open(ino, flags).await.expect(path).fh
}

async fn close(node: &Node, fh: u64) {
    node.vfs.flush(fh).await.expect("flush");
    node.vfs.release(fh, None).await.expect("release");
}

#[tokio::test]
async fn holes_that_one_node_makes_the_other_finds() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    let data: Vec<u8> = (0..3 * C).map(|i| (i % 251) as u8).collect();
    a.put("f", &data).await.expect("put");
    let fh = open(&a, "f", libc::O_RDWR).await;
    a.vfs.fallocate(fh, C, C, PUNCH).await.expect("punch");
    a.vfs.fallocate(fh, 3 * C, C, 0).await.expect("allocate");
    for (mode, len, kind) in [(libc::FALLOC_FL_COLLAPSE_RANGE, C, Kind::NotSupported), (0, 0, Kind::Invalid)]
    {
        assert_eq!(a.vfs.fallocate(fh, 0, len, mode).await.expect_err("refused").kind(), kind);
    }
    close(&a, fh).await;
    let mut expected = data;
    expected[C as usize..2 * C as usize].fill(0);
    expected.resize(4 * C as usize, 0);
    assert!(b.cat("f").await.expect("cat") == expected);
    let stat = b.walk("f").await.expect("walk").stat;
    assert_eq!((stat.size, stat.blocks), (4 * C, 2 * C / 512));
    let fh = open(&b, "f", libc::O_RDONLY).await;
    let (data, hole) = (libc::SEEK_DATA, libc::SEEK_HOLE);
    for (at, whence, found) in [
        (0, data, Some(0)),
        (0, hole, Some(C)),
        (C, data, Some(2 * C)),
        (C + 5, hole, Some(C + 5)),
        (2 * C, hole, Some(3 * C)),
        (3 * C, data, None),
        (3 * C, hole, Some(3 * C)),
        (4 * C, hole, None),
    ] {
        let at_byte = i64::try_from(at).expect("small");
        match found {
            Some(found) => assert_eq!(b.vfs.lseek(fh, at_byte, whence).await.expect("found"), found),
            None => {
                assert_eq!(b.vfs.lseek(fh, at_byte, whence).await.expect_err("none").kind(), Kind::Beyond)
            }
        }
    }
    assert_eq!(b.vfs.fallocate(fh, 0, 1, PUNCH).await.expect_err("for reading").kind(), Kind::BadHandle);
    close(&b, fh).await;
}

#[tokio::test]
async fn a_copy_has_what_the_other_node_committed_and_what_is_new_here() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    let data: Vec<u8> = (0..3 * C + 100).map(|i| (i % 241) as u8).collect();
    a.put("f", &data).await.expect("put");
    b.put("g", b"").await.expect("put");
    let (from, to) = (open(&b, "f", libc::O_RDWR).await, open(&b, "g", libc::O_RDWR).await);
    b.vfs.write(from, 7, "dirty".into()).await.expect("write");
    let mut done = 0;
    loop {
        let copied = b.vfs.copy_file_range((from, done), (to, done), 1 << 40).await.expect("copy");
        if copied == 0 {
            break;
        }
        done += u64::from(copied);
    }
    assert_eq!(done, 3 * C + 100);
    let overlap = b.vfs.copy_file_range((to, 0), (to, 99), 100).await;
    assert_eq!(overlap.expect_err("overlap").kind(), Kind::Invalid);
    close(&b, to).await;
    let mut expected = data;
    expected[7..12].copy_from_slice(b"dirty");
    assert!(a.cat("g").await.expect("cat") == expected);
    // Each is its own.
    b.vfs.write(from, 0, vec![9; 3 * C as usize].into()).await.expect("write");
    close(&b, from).await;
    assert!(a.cat("g").await.expect("cat") == expected);
}
