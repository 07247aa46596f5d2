//! Without faults: each chunk leaves the Hub once, whoever reads what when.

use std::time::Duration;

use futures::future::join_all;
use hfmount::chunk::ChunksOptions;
use hfmount::peer::PeerOptions;
use hfmount::source::bucket::Bucket;

use crate::source::Memory;
use crate::world::{CHUNK, Cluster, Node, Setup, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_read_the_same_at_once_cost_the_hub_one_copy() {
    for n in [2, 4, 8] {
        let cluster = Cluster::new();
        cluster.hub.set_delay(Duration::from_millis(30));
        let nodes = cluster.nodes(n).await;
        let (id, bytes) = cluster.blob(&nodes[0], 100 * CHUNK + 99, n as u64).await;
        join_all(nodes.iter().map(|node| node.read(id, &bytes))).await;
        let times = cluster.hub.times();
        assert!(times.len() == 101 && times.iter().all(|t| *t == 1), "{n} nodes: {times:?}");
        for node in &nodes {
            let blob = node.open(id, &bytes).await;
            eventually("whole and verified", || blob.is_complete() && blob.is_verified()).await;
            let stats = node.chunks.stats();
            assert_eq!((stats.chunks_filled, stats.chunks_wrong, stats.mismatches), (101, 0, 0));
        }
        let given: u64 = nodes.iter().map(|node| node.given_by_peers()).sum();
        assert_eq!(given, (n as u64 - 1) * bytes.len() as u64, "all else came from the others, once");
        let fetched = nodes.iter().filter(|node| node.given_by_peers() < bytes.len() as u64).count();
        assert!(fetched > 1, "more than one node took part in fetching");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_node_beside_a_warm_one_asks_the_hub_for_nothing() {
    let cluster = Cluster::new();
    let nodes = cluster.nodes(2).await;
    let (id, bytes) = cluster.blob(&nodes[0], 60 * CHUNK, 1).await;
    nodes[0].read(id, &bytes).await;
    let before = cluster.hub.requests().len();
    // What the last batch of advertisements says is on its way for a moment.
    tokio::time::sleep(Duration::from_millis(500)).await;
    nodes[1].read(id, &bytes).await;
    assert_eq!(cluster.hub.requests().len(), before);
    assert_eq!(nodes[1].given_by_peers(), bytes.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_run_left_is_told_to_the_others() {
    let cluster = Cluster::new();
    let first = cluster.node("a").await;
    let (id, bytes) = cluster.blob(&first, 40 * CHUNK, 1).await;
    first.read(id, &bytes).await;
    first.chunks.shutdown(Duration::from_secs(5)).await.expect("a clean end");
    first.peers.leave().await;
    drop(first);
    let again = cluster.node("a").await;
    let other = cluster.node("b").await;
    let asked = cluster.hub.chunks_asked();
    let mut held = 0;
    for _ in 0..1500 {
        held = other.peers.tracker().holdings(id).await.expect("holdings").iter().map(|h| h.chunks).sum();
        if held == 40 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(held, 40);
    other.read(id, &bytes).await;
    assert_eq!(cluster.hub.chunks_asked(), asked, "not fetched again");
    drop(again);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_chunk_is_put_into_the_bucket_once_and_leaves_it_once() {
    let cluster = Cluster::new();
    let bucket = Bucket::in_memory("volume");
    let setup = |name, hub| {
        let setup = Setup::new(name);
        let options = ChunksOptions { store_hub_blobs: true, ..setup.options.clone() };
        let peers = PeerOptions { hub, ..setup.peers.clone() };
        Setup { options, peers, bucket: Some(bucket.clone()), ..setup }
    };
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        nodes.push(cluster.node_with(setup(name, true)).await);
    }
    for node in &nodes {
        node.peers.registry().refresh().await.expect("roster");
    }
    let (id, bytes) = cluster.blob(&nodes[0], 50 * CHUNK, 1).await;
    join_all(nodes.iter().map(|node| node.read(id, &bytes))).await;
    let done = || nodes.iter().map(|node| node.chunks.stats().uploads_done).sum::<u64>();
    eventually("all stored", || done() == 50).await;
    assert_eq!(bucket.stats().puts, 50);

    // Those who have it go; who comes next may not even call the Hub.
    for node in nodes {
        node.chunks.shutdown(Duration::from_secs(5)).await.expect("end");
        node.peers.leave().await;
    }
    let (one, two) = (cluster.node_with(setup("d", false)).await, cluster.node_with(setup("e", false)).await);
    one.peers.registry().refresh().await.expect("roster");
    tokio::join!(one.read(id, &bytes), two.read(id, &bytes));
    let from_bucket = |node: &Node| {
        let stats = node.chunks.stats();
        stats.sources.iter().find(|s| s.name == "bucket").expect("counted").bytes
    };
    assert_eq!(from_bucket(&one) + from_bucket(&two), bytes.len() as u64, "one copy for both");
    assert_eq!(bucket.stats().puts, 50);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_may_not_call_the_hub_has_it_done() {
    let cluster = Cluster::new();
    let able = cluster.node("a").await;
    let peers = PeerOptions { hub: false, ..Setup::new("b").peers };
    let unable = cluster.node_with(Setup { peers, ..Setup::new("b") }).await;
    unable.peers.registry().refresh().await.expect("roster");
    let (id, bytes) = cluster.blob(&able, 30 * CHUNK, 1).await;
    unable.read(id, &bytes).await;
    let times = cluster.hub.times();
    assert!(times.len() == 30 && times.iter().all(|t| *t == 1), "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_by_the_hub_gets_it_from_one_who_is_not() {
    use crate::source::Fault;
    use hfmount::error::Kind;
    let cluster = Cluster::new();
    let member = cluster.node("a").await;
    let (id, bytes) = cluster.blob(&member, 20 * CHUNK, 1).await;
    let closed = Memory::new("hub");
    closed.set_always(Fault::Refuse(Kind::Access));
    let stranger = Setup { hub: Some(closed.into()), ..Setup::new("b") };
    let stranger = cluster.node_with(stranger).await;
    stranger.peers.registry().refresh().await.expect("roster");
    stranger.read(id, &bytes).await;
    let times = cluster.hub.times();
    assert!(times.len() == 20 && times.iter().all(|t| *t == 1), "{times:?}");

    // Where all are refused, the reader hears of it, alone or not.
    let closed = Memory::new("hub");
    closed.set_always(Fault::Refuse(Kind::Access));
    let another = cluster.node_with(Setup { hub: Some(closed.into()), ..Setup::new("c") }).await;
    let (other, other_bytes) = cluster.blob(&member, 5 * CHUNK, 2).await;
    member.chunks.shutdown(Duration::from_secs(1)).await.expect("end");
    member.peers.leave().await;
    drop(member);
    for node in [&stranger, &another] {
        node.peers.registry().refresh().await.expect("roster");
    }
    let (one, two) = (stranger.open(other, &other_bytes).await, another.open(other, &other_bytes).await);
    let begun = std::time::Instant::now();
    let (one, two) = tokio::join!(one.read(0, 10), two.read(0, 10));
    assert_eq!(one.expect_err("refused").kind(), Kind::Access);
    assert_eq!(two.expect_err("refused").kind(), Kind::Access);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
