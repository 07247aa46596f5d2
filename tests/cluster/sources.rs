//! Where chunks come from when several nodes read: the one that is to fetch it, whoever is just receiving it, disks, mirrors.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use hfmount::chunk::ChunksOptions;
use hfmount::peer::PeerOptions;
use hfmount::source::Source;
use hfmount::source::seed::Seed;

use crate::source::{Fault, Memory};
use crate::world::{CHUNK, Cluster, Node, Setup, same};

async fn meet(nodes: &[Node]) {
    for node in nodes {
        node.peers.registry().refresh().await.expect("roster");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_is_passed_on_while_it_comes_from_the_hub() {
    let cluster = Cluster::new();
    let nodes = cluster.nodes(4).await;
    let (id, bytes) = cluster.blob(&nodes[0], CHUNK, 1).await;
    // A chunk takes 0.7 s; from one to the next, as a whole, it would take four times as long.
    *cluster.hub.pace.lock().unwrap() = Duration::from_millis(100);
    join_all(nodes.iter().map(|node| node.read(id, &bytes))).await;
    assert_eq!(cluster.hub.times(), [1]);
    let passed_on: u64 = nodes.iter().map(Node::passed_on).sum();
    assert_eq!(passed_on, 3, "nobody waited until another one had it whole");
    for node in &nodes {
        let stats = node.chunks.stats();
        assert_eq!((stats.chunks_filled, stats.chunks_wrong), (1, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_passed_on_and_turns_out_wrong_is_shown_to_nobody_and_nobody_is_blamed() {
    let cluster = Cluster::new();
    let nodes = cluster.nodes(3).await;
    // One chunk: that it is wrong is seen when it has come.
    let (id, bytes) = cluster.blob(&nodes[0], CHUNK - 5, 1).await;
    *cluster.hub.pace.lock().unwrap() = Duration::from_millis(50);
    cluster.hub.fault(&[Fault::Wrong(CHUNK - 6), Fault::Break(40_000)]);
    join_all(nodes.iter().map(|node| node.read(id, &bytes))).await;
    assert!(nodes.iter().map(Node::passed_on).sum::<u64>() > 0, "it was passed on");
    for node in &nodes {
        for (_, stats) in node.peers.client().stats() {
            assert_eq!(stats.wrong, 0, "who passes on what it was given does not lie");
        }
        node.peers.registry().refresh().await.expect("roster");
        assert!(node.peers.registry().roster().blocks.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_who_is_ahead_has_the_others_fetch_their_share() {
    let cluster = Cluster::new();
    let mut nodes = Vec::new();
    let hubs: Vec<Arc<Memory>> = (0..3).map(|_| Arc::new(Memory::new("hub"))).collect();
    for (name, hub) in ["a", "b", "c"].into_iter().zip(&hubs) {
        nodes.push(cluster.node_with(Setup { hub: Some(hub.clone()), ..Setup::new(name) }).await);
    }
    meet(&nodes).await;
    let (id, bytes) = cluster.blob(&nodes[0], 90 * CHUNK, 1).await;
    for hub in &hubs {
        hub.put(id, bytes.clone());
        hub.set_delay(Duration::from_millis(10));
    }
    // Two look at its head and no further.
    for node in &nodes[1..] {
        same(&node.open(id, &bytes).await.read(0, 10).await.expect("read"), &bytes[..10]);
    }
    nodes[0].read(id, &bytes).await;
    let asked: Vec<u64> = hubs.iter().map(|hub| hub.chunks_asked()).collect();
    assert_eq!(asked.iter().sum::<u64>(), 90, "each once: {asked:?}");
    assert!(asked.iter().all(|n| *n >= 10), "by all of them: {asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_to_begin_and_does_not_answer_is_not_waited_for() {
    let cluster = Cluster::new();
    let mut nodes = cluster.nodes(3).await;
    let (id, bytes) = cluster.blob(&nodes[0], 60 * CHUNK, 1).await;
    for node in &nodes {
        same(&node.open(id, &bytes).await.read(0, 10).await.expect("read"), &bytes[..10]);
    }
    // It takes part, as far as the others know, and nobody reaches it.
    nodes[2].cut_off().await;
    let begun = std::time::Instant::now();
    nodes[0].read(id, &bytes).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let times = cluster.hub.times();
    assert!(times.iter().all(|t| *t <= 2), "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_on_a_disk_of_one_node_is_given_to_the_others() {
    let cluster = Cluster::new();
    let plain = cluster.node("a").await;
    let (id, bytes) = cluster.blob(&plain, 30 * CHUNK, 1).await;
    let blobs = cluster.dir.path().join("old/models--acme--m/blobs");
    std::fs::create_dir_all(&blobs).expect("a folder");
    std::fs::write(blobs.join(id.etag()), &bytes).expect("write");
    let seed = Seed::open(&cluster.dir.path().join("old")).await.expect("a seed");
    seed.listed().await;
    let seeded = Setup { before: vec![Arc::new(seed) as Arc<dyn Source>], ..Setup::new("b") };
    let nodes = [cluster.node_with(seeded).await, plain];
    meet(&nodes).await;
    nodes[0].read(id, &bytes).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    nodes[1].read(id, &bytes).await;
    assert_eq!(cluster.hub.chunks_asked(), 0, "it was there already");
    assert_eq!(nodes[1].given_by_peers(), bytes.len() as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_gives_one_copy_too_and_its_lies_reach_nobody() {
    let cluster = Cluster::new();
    let mirror = Arc::new(Memory::new("mirror"));
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        let before = vec![mirror.clone() as Arc<dyn Source>];
        nodes.push(cluster.node_with(Setup { before, ..Setup::new(name) }).await);
    }
    meet(&nodes).await;
    let (id, bytes) = cluster.blob(&nodes[0], 40 * CHUNK, 1).await;
    mirror.put(id, bytes.clone());
    join_all(nodes.iter().map(|node| node.read(id, &bytes))).await;
    assert_eq!((mirror.chunks_asked(), cluster.hub.chunks_asked()), (40, 0));

    // Of a small blob it is seen at once, of a large one when all of it is here: it comes from the Hub then.
    let (small, small_bytes) = cluster.blob(&nodes[0], CHUNK - 1, 2).await;
    mirror.put(small, small_bytes.clone());
    mirror.set_always(Fault::Wrong(3));
    join_all(nodes.iter().map(|node| node.read(small, &small_bytes))).await;
    assert_eq!(cluster.hub.chunks_asked(), 1, "the Hub was asked once for all of them");
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_nodes_read_the_same_at_once() {
    let cluster = Cluster::new();
    let mut nodes = Vec::new();
    for name in ["a", "b", "c"] {
        let setup = Setup::new(name);
        let options = ChunksOptions { strict: true, ..setup.options.clone() };
        nodes.push(cluster.node_with(Setup { options, ..setup }).await);
    }
    meet(&nodes).await;
    let (id, bytes) = cluster.blob(&nodes[0], 30 * CHUNK + 1, 1).await;
    join_all(nodes.iter().map(|node| node.read(id, &bytes))).await;
    let times = cluster.hub.times();
    assert!(times.len() == 31 && times.iter().all(|t| *t == 1), "{times:?}");
    for node in &nodes {
        let blob = node.open(id, &bytes).await;
        assert!(blob.is_verified(), "its end was read");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_only_take_are_served_and_asked_for_nothing() {
    let cluster = Cluster::new();
    let peers = PeerOptions { role: hfmount::peer::Role::Leech, ..Setup::new("b").peers };
    let nodes = [
        cluster.node("a").await,
        cluster.node_with(Setup { peers, ..Setup::new("b") }).await,
        cluster.node("c").await,
    ];
    meet(&nodes).await;
    let (id, bytes) = cluster.blob(&nodes[0], 40 * CHUNK, 1).await;
    join_all(nodes.iter().map(|node| node.read(id, &bytes))).await;
    let times = cluster.hub.times();
    assert!(
        times.iter().all(|t| (1..=2).contains(t)),
        "once for those that share, once at most for the other: {times:?}"
    );
    assert!(nodes[1].given_by_peers() > 0);
    assert_eq!(nodes[1].passed_on(), 0);
}
