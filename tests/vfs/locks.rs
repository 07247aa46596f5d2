//! flock across nodes.

use std::time::{Duration, Instant};

use hfmount::error::Kind;
use hfmount::vfs::Flock;

use crate::node::{Cluster, Node};

async fn open(node: &Node, path: &str) -> u64 {
    let ino = node.walk(path).await.expect("walk").stat.ino;
    node.vfs.open(ino, libc::O_RDWR).await.expect("open").fh
}

#[tokio::test]
async fn one_holder_in_the_cluster_and_the_next_is_woken() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    a.put("f", b"").await.expect("put");
    let (x, y) = (open(&a, "f").await, open(&b, "f").await);
    a.vfs.flock(x, 1, Flock::Exclusive, false, async {}).await.expect("free");
    let busy =
        b.vfs.flock(y, 1, Flock::Exclusive, false, async {}).await.expect_err("held on the other node");
    assert_eq!(busy.kind(), Kind::WouldBlock);
    let waiter = {
        let vfs = b.vfs.clone();
        tokio::spawn(async move {
            vfs.flock(y, 1, Flock::Exclusive, true, async {}).await.map(|()| Instant::now())
        })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiter.is_finished());
    let released = Instant::now();
    a.vfs.flock(x, 1, Flock::Unlock, false, async {}).await.expect("unlock");
    let taken = waiter.await.expect("join").expect("woken");
    assert!(taken.duration_since(released) < Duration::from_millis(500));
}

#[tokio::test]
async fn shared_holders_exclude_writers_until_the_last_close() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    a.put("f", b"").await.expect("put");
    let (x, y) = (open(&a, "f").await, open(&b, "f").await);
    a.vfs.flock(x, 1, Flock::Shared, false, async {}).await.expect("shared");
    b.vfs.flock(y, 1, Flock::Shared, false, async {}).await.expect("shared");
    let z = open(&a, "f").await;
    assert_eq!(
        a.vfs.flock(z, 2, Flock::Exclusive, false, async {}).await.expect_err("held").kind(),
        Kind::WouldBlock
    );
    b.vfs.flock(y, 1, Flock::Unlock, false, async {}).await.expect("unlock");
    a.vfs.release(x, Some(1)).await.expect("close releases");
    a.vfs.flock(z, 2, Flock::Exclusive, false, async {}).await.expect("free");
}

#[tokio::test]
async fn who_locks_sees_what_the_last_holder_wrote() {
    let cluster = Cluster::new(|_| {});
    let (a, b) = (cluster.node().await, cluster.node().await);
    a.put("counter", b"0").await.expect("put");
    let (x, y) = (open(&a, "counter").await, open(&b, "counter").await);
    for round in 0..10u32 {
        let (node, fh) = if round % 2 == 0 { (&a, x) } else { (&b, y) };
        node.vfs.flock(fh, 9, Flock::Exclusive, true, async {}).await.expect("lock");
        let text = node.vfs.read(fh, 0, 10).await.expect("read");
        let count: u32 = std::str::from_utf8(&text).expect("utf-8").trim().parse().expect("number");
        assert_eq!(count, round);
        node.vfs.write(fh, 0, (count + 1).to_string().into()).await.expect("write");
        node.vfs.flock(fh, 9, Flock::Unlock, false, async {}).await.expect("unlock");
    }
}
