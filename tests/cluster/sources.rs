//! Where chunks come from when several nodes read: the one that is to fetch it, whoever is just receiving it, disks, mirrors.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use hfmount::chunk::ChunksOptions;
use hfmount::chunk::digest::Digest;
use hfmount::error::Kind;
use hfmount::peer::{Directory, PeerOptions};
use hfmount::source::Source;
use hfmount::source::seed::Seed;
use hfmount::types::BlobId;

use crate::source::{Fault, Memory};
use crate::world::{CHUNK, Cluster, Node, Setup, eventually, same};

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
async fn who_is_behind_begins_nothing_for_who_is_ahead() {
    let cluster = Cluster::new();
    let hub = Arc::new(Memory::new("hub"));
    let behind = cluster.node_with(Setup { hub: Some(hub.clone()), ..Setup::new("a") }).await;
    let ahead = cluster.node("b").await;
    let (next, wanted) = cluster.blob(&ahead, 20 * CHUNK, 2).await;
    let (id, bytes) = cluster.blob(&behind, 300 * CHUNK, 1).await;
    hub.put(next, wanted.clone());
    hub.put(id, bytes.clone());
    let holder = ahead.peers.registry().holder(behind.peers.me()).expect("known");
    let (client, size, soon) = (ahead.peers.client(), wanted.len() as u64, Duration::from_secs(5));
    let ask = async |idx| client.wait_begun(next, size, idx, CHUNK as u32, &holder, soon).await.map(drop);
    ask(3).await.expect("it has nothing else to do");
    let before = hub.chunks_asked();
    // Its reader is at another blob, of which much is on its way.
    *hub.pace.lock().unwrap() = Duration::from_millis(50);
    let reading = behind.read(id, &bytes);
    let asking = async {
        eventually("it reads ahead", || hub.chunks_asked() > before + 10).await;
        assert_eq!(ask(7).await.expect_err("it is behind").kind(), Kind::NotFound);
        ahead.read(next, &wanted).await;
    };
    tokio::select! {
        () = reading => panic!("it had less to read than was thought"),
        () = asking => {}
    }
    let times = cluster.hub.times();
    assert!(times.len() == 20 && times.iter().all(|t| *t <= 1), "{times:?}");
}

/// A node with a folder of blobs: this one.
async fn seeded(cluster: &Cluster, id: BlobId, bytes: &[u8], setup: Setup) -> Node {
    let root = cluster.dir.path().join(format!("{}-old", setup.name));
    let blobs = root.join("models--acme--m/blobs");
    std::fs::create_dir_all(&blobs).expect("a folder");
    std::fs::write(blobs.join(id.etag()), bytes).expect("write");
    let seed = Seed::open(&root).await.expect("a seed");
    seed.listed().await;
    let before = vec![Arc::new(seed) as Arc<dyn Source>];
    cluster.node_with(Setup { before, ..setup }).await
}

/// Waits until one node hears that another one holds so many chunks of the blob.
async fn hears(node: &Node, of: &Node, id: BlobId, chunks: u64) {
    let begun = std::time::Instant::now();
    loop {
        let held = node.peers.tracker().holdings(id).await.unwrap_or_default();
        let told = held.iter().find(|held| held.holder.node == of.peers.me()).map_or(0, |held| held.chunks);
        if told == chunks {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "{told} of {chunks}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_on_a_disk_and_nobody_has_read_is_given_to_the_others() {
    let cluster = Cluster::new();
    let plain = cluster.node("a").await;
    let (id, bytes) = cluster.blob(&plain, 30 * CHUNK - 7, 1).await;
    // None of them but the first could have it from elsewhere.
    let deny =
        |name| Setup { peers: PeerOptions { hub: false, ..Setup::new(name).peers }, ..Setup::new(name) };
    let seed = seeded(&cluster, id, &bytes, deny("b")).await;
    let unable = cluster.node_with(deny("c")).await;
    let nodes = [seed, unable, plain];
    meet(&nodes).await;
    hears(&nodes[1], &nodes[0], id, 30).await;
    assert_eq!(nodes[0].chunks.stats().chunks_filled, 0, "nothing was taken from it yet");
    join_all(nodes[1..].iter().map(|node| node.read(id, &bytes))).await;
    assert_eq!(cluster.hub.chunks_asked(), 0, "it was on a disk");
    let given: u64 = nodes[1..].iter().map(|node| node.given_by_peers()).sum();
    assert_eq!(given, 2 * bytes.len() as u64);
    assert_eq!(nodes[0].chunks.stats().chunks_filled, 30, "each was read and checked there once");

    // It is not in the cache there any more, and still on the disk.
    let late = cluster.node_with(deny("d")).await;
    for node in &nodes[1..] {
        node.peers.withdraw(id, None).await;
    }
    let content = nodes[0].open(id, &bytes).await;
    content.cache_file().clear(0, 30).expect("cleared");
    assert!(!content.is_complete());
    late.read(id, &bytes).await;
    assert_eq!(cluster.hub.chunks_asked(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_that_is_something_else_or_gone_costs_nothing_but_a_question() {
    let cluster = Cluster::new();
    let plain = cluster.node("a").await;
    let (id, bytes) = cluster.blob(&plain, 12 * CHUNK, 1).await;
    // The volume knows better by now, as far as the first chunk goes.
    same(&plain.open(id, &bytes).await.read(0, 10).await.expect("read"), &bytes[..10]);
    let mut wrong = bytes.to_vec();
    wrong.iter_mut().step_by(CHUNK).for_each(|byte| *byte ^= 1);
    let liar = seeded(&cluster, id, &wrong, Setup::new("b")).await;
    hears(&plain, &liar, id, 12).await;
    let late = cluster.node("c").await;
    plain.peers.withdraw(id, None).await;
    same(&late.open(id, &bytes).await.read(0, 10).await.expect("read"), &bytes[..10]);
    assert!(liar.chunks.stats().chunks_wrong > 0, "it was asked, and found out");
    assert_eq!(liar.peers.client().stats().len(), 0, "and asked nobody else for it");
    let (gone, gone_bytes) = cluster.blob(&plain, 5 * CHUNK, 2).await;
    let seed = seeded(&cluster, gone, &gone_bytes, Setup::new("d")).await;
    hears(&plain, &seed, gone, 5).await;
    let file = cluster.dir.path().join("d-old/models--acme--m/blobs").join(gone.etag());
    std::fs::remove_file(file).expect("gone");
    plain.read(gone, &gone_bytes).await;
    assert_eq!(seed.chunks.stats().chunks_filled, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_is_no_blob_of_the_volume_nothing_is_given() {
    let cluster = Cluster::new();
    let plain = cluster.node("a").await;
    let secret = crate::world::bytes(3 * CHUNK, 9);
    let id = Digest::of(&BlobId::Sha256([0; 32]), &secret);
    let seed = seeded(&cluster, id, &secret, Setup::new("b")).await;
    hears(&plain, &seed, id, 3).await;
    let got = tokio::time::timeout(Duration::from_secs(5), plain.open(id, &secret).await.read(0, 10)).await;
    assert!(!got.is_ok_and(|read| read.is_ok()), "it is in the folder, and not in the volume");
    assert_eq!(seed.chunks.stats().chunks_filled, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn for_a_reader_who_has_stopped_the_others_fetch_no_more() {
    let cluster = Cluster::new();
    let hubs: Vec<Arc<Memory>> = (0..2).map(|_| Arc::new(Memory::new("hub"))).collect();
    let mut nodes = Vec::new();
    for (name, hub) in ["a", "b"].into_iter().zip(&hubs) {
        nodes.push(cluster.node_with(Setup { hub: Some(hub.clone()), ..Setup::new(name) }).await);
    }
    meet(&nodes).await;
    let (id, bytes) = cluster.blob(&nodes[0], 600 * CHUNK, 1).await;
    for hub in &hubs {
        hub.put(id, bytes.clone());
        hub.set_delay(Duration::from_millis(20));
    }
    // The other one looked at its head, and reads no more of it.
    same(&nodes[1].open(id, &bytes).await.read(0, 10).await.expect("read"), &bytes[..10]);
    let blob = nodes[0].open(id, &bytes).await;
    let mut at = 0;
    // Who begins with what is chance.
    while hubs[1].chunks_asked() < 2 {
        assert!(at < bytes.len() / 2, "it does its share");
        same(&blob.read(at as u64, CHUNK as u32 / 2).await.expect("read"), &bytes[at..at + CHUNK / 2]);
        at += CHUNK / 2;
    }
    drop(blob);
    let asked = || hubs.iter().map(|hub| hub.chunks_asked()).sum::<u64>();
    // What is on its way comes to its end.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = asked();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(asked(), before, "nobody reads");
    assert!(before < 600, "{before}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_by_itself_asks_the_hub_for_no_more_at_a_time_than_that_bears() {
    let cluster = Cluster::new();
    let mut hub = Memory::new("hub");
    hub.ahead = Some(3);
    let hub = Arc::new(hub);
    hub.set_delay(Duration::from_millis(10));
    let node = cluster.node_with(Setup { hub: Some(hub.clone()), ..Setup::new("a") }).await;
    let (id, bytes) = cluster.blob(&node, 100 * CHUNK, 1).await;
    hub.put(id, bytes.clone());
    node.read(id, &bytes).await;
    let most = hub.most_open.load(std::sync::atomic::Ordering::SeqCst);
    assert!(most <= 4, "and the reader's own: {most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_on_a_disk_of_one_node_is_given_to_the_others() {
    let cluster = Cluster::new();
    let plain = cluster.node("a").await;
    let (id, bytes) = cluster.blob(&plain, 30 * CHUNK, 1).await;
    let nodes = [seeded(&cluster, id, &bytes, Setup::new("b")).await, plain];
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
