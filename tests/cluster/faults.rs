//! Nodes that die, freeze, lie and forget; a tracker that goes away.

use std::iter::once;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use hfmount::peer::{Claim, Decision, PeerOptions, RedisDown};

use crate::source::{Fault, Memory};
use crate::world::{CHUNK, Cluster, Setup, eventually, same};

/// A Hub of its own for one node, which never answers: that node takes leases and does nothing with them.
fn stuck() -> Arc<Memory> {
    let hub = Memory::new("hub");
    hub.set_always(Fault::Hang);
    Arc::new(hub)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_node_was_fetching_another_one_fetches() {
    let cluster = Cluster::new();
    let mut doomed = cluster.node_apart(Setup { hub: Some(stuck()), ..Setup::brief("a") }).await;
    let other = cluster.node_with(Setup::brief("b")).await;
    let (id, bytes) = cluster.blob(&other, 20 * CHUNK, 1).await;
    let blob = doomed.node().open(id, &bytes).await;
    let reader = tokio::spawn({
        let blob = blob.clone();
        async move { blob.read(0, 10).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let claimed = other.peers.tracker().claim(&Claim::look(id, vec![0])).await.expect("claim");
    assert!(matches!(claimed.decisions[0], Decision::Leased { .. }), "{:?}", claimed.decisions);
    // Killed: no farewell, its server is gone.
    let begun = std::time::Instant::now();
    reader.abort();
    doomed.kill();
    other.read(id, &bytes).await;
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    let times = cluster.hub.times();
    assert!(times.len() == 20 && times.iter().all(|t| *t == 1), "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_is_known_to_be_dead_before_its_lease_is_over() {
    let cluster = Cluster::new();
    let mut doomed = cluster.node_apart(Setup { hub: Some(stuck()), ..Setup::new("a") }).await;
    let other = cluster.node_with(Setup::new("b")).await;
    let (id, bytes) = cluster.blob(&other, 4 * CHUNK, 1).await;
    let blob = doomed.node().open(id, &bytes).await;
    let reader = tokio::spawn(async move { blob.read(0, 10).await });
    eventually("it has a lease", || doomed.node().peers.leases().count() > 0).await;
    reader.abort();
    doomed.kill();
    // Since its machine says that nobody listens there, and it sends no more heartbeats. A lease lasts for 15 s.
    let begun = std::time::Instant::now();
    other.read(id, &bytes).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let times = cluster.hub.times();
    assert!(times.len() == 4 && times.iter().all(|t| *t == 1), "{times:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_node_loses_its_leases_and_is_right_when_it_goes_on() {
    let cluster = Cluster::new();
    let slow = Arc::new(Memory::new("hub"));
    let sleeper = cluster.node_apart(Setup { hub: Some(slow.clone()), ..Setup::brief("a") }).await;
    let other = cluster.node_with(Setup::brief("b")).await;
    let (id, bytes) = cluster.blob(&other, 20 * CHUNK, 1).await;
    slow.put(id, bytes.clone());
    *slow.pace.lock().unwrap() = Duration::from_millis(300);
    let blob = sleeper.node().open(id, &bytes).await;
    let reader = sleeper.spawn({
        let bytes = bytes.clone();
        async move {
            for at in (0..bytes.len()).step_by(CHUNK) {
                same(&blob.read(at as u64, CHUNK as u32).await.expect("read"), &bytes[at..at + CHUNK]);
            }
        }
    });
    eventually("it is at it", || slow.chunks_asked() > 0).await;
    let frozen = sleeper.freeze().await;
    let asked = slow.chunks_asked();
    let begun = std::time::Instant::now();
    other.read(id, &bytes).await;
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    assert_eq!(slow.chunks_asked(), asked, "it stood still");
    let times = cluster.hub.times();
    assert!(times.len() == 20 && times.iter().all(|t| *t == 1), "{times:?}");
    drop(frozen);
    tokio::time::timeout(Duration::from_secs(40), reader).await.expect("in time").expect("the right bytes");
    assert!(slow.chunks_asked() <= asked + 4, "the rest came from the other one: {:?}", slow.requests());
    for node in [sleeper.node(), &other] {
        let stats = node.chunks.stats();
        assert_eq!((stats.chunks_wrong, stats.mismatches), (0, 0), "what came late was the same");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tracker_that_starts_again_with_its_data_only_takes_time() {
    let mut cluster = Cluster::new();
    let nodes = cluster.nodes(2).await;
    let (id, bytes) = cluster.blob(&nodes[0], 60 * CHUNK, 1).await;
    *cluster.hub.pace.lock().unwrap() = Duration::from_millis(30);
    let hub = cluster.hub.clone();
    let reading = join_all(nodes.iter().map(|node| node.read(id, &bytes)));
    let restart = async {
        eventually("half of it came", || hub.chunks_asked() > 20).await;
        cluster.redis.kill();
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.redis.restart();
    };
    tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(reading, restart) })
        .await
        .expect("in time");
    let times = hub.times();
    assert!(times.iter().all(|t| (1..=2).contains(t)), "{times:?}");
    let twice = times.iter().filter(|t| **t == 2).count();
    assert!(twice <= 32, "only what was on its way then: {times:?}");
    for node in &nodes {
        assert_eq!(node.chunks.stats().chunks_wrong, 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_tracker_what_known_nodes_hold_is_still_read() {
    let mut cluster = Cluster::new();
    let nodes = cluster.nodes(2).await;
    let (id, bytes) = cluster.blob(&nodes[0], 30 * CHUNK, 1).await;
    nodes[0].read(id, &bytes).await;
    let blob = nodes[1].open(id, &bytes).await;
    same(&blob.read(0, 100).await.expect("read"), &bytes[..100]);
    let asked = cluster.hub.chunks_asked();
    cluster.redis.kill();
    let at = 20 * CHUNK;
    let got = tokio::time::timeout(Duration::from_secs(25), blob.read(at as u64, 1000)).await;
    same(&got.expect("in time").expect("read"), &bytes[at..at + 1000]);
    assert_eq!(cluster.hub.chunks_asked(), asked);
    // What is here is read in any case.
    same(&blob.read(0, 100).await.expect("read"), &bytes[..100]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_tracker_new_fills_wait_or_go_on_as_told() {
    let mut cluster = Cluster::new();
    let peers = PeerOptions { redis_down: RedisDown::Direct, ..Setup::new("a").peers };
    let direct = cluster.node_with(Setup { peers, ..Setup::new("a") }).await;
    let waits = cluster.node("b").await;
    let (id, bytes) = cluster.blob(&direct, 30 * CHUNK, 1).await;
    let (one, two) = (direct.open(id, &bytes).await, waits.open(id, &bytes).await);
    // The first read makes the blob known to both.
    join_all([one.read(0, 10), two.read(0, 10)]).await.into_iter().for_each(|r| _ = r.expect("read"));
    cluster.redis.kill();
    let at = 20 * CHUNK;
    let got = tokio::time::timeout(Duration::from_secs(25), one.read(at as u64, 1000)).await;
    same(&got.expect("in time").expect("direct"), &bytes[at..at + 1000]);
    let far = 25 * CHUNK as u64;
    assert!(tokio::time::timeout(Duration::from_secs(6), two.read(far, 10)).await.is_err(), "it waits");
    cluster.redis.restart();
    let got = tokio::time::timeout(Duration::from_secs(25), two.read(far, 10)).await;
    same(&got.expect("in time").expect("read"), &bytes[far as usize..far as usize + 10]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tracker_that_forgot_everything_is_told_again() {
    let cluster = Cluster::new();
    let nodes = [cluster.node_with(Setup::brief("a")).await, cluster.node_with(Setup::brief("b")).await];
    let (id, bytes) = cluster.blob(&nodes[0], 30 * CHUNK, 1).await;
    nodes[0].read(id, &bytes).await;
    let asked = cluster.hub.chunks_asked();
    // All that the tracker keeps, and nothing of the metadata.
    let forget =
        "for _, key in ipairs(redis.call('KEYS', '*@p:*')) do redis.call('DEL', key) end return 'done'";
    assert_eq!(cluster.redis.ask(&["EVAL", forget, "0"]), "done");
    let mut held = 0;
    for _ in 0..300 {
        held = nodes[1].peers.tracker().holdings(id).await.map_or(0, |h| h.iter().map(|h| h.chunks).sum());
        if held == 30 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(held, 30);
    nodes[1].read(id, &bytes).await;
    assert_eq!(cluster.hub.chunks_asked(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_advertisement_without_its_bytes_is_taken_back() {
    let cluster = Cluster::new();
    let nodes = cluster.nodes(2).await;
    let (id, bytes) = cluster.blob(&nodes[0], 10 * CHUNK, 1).await;
    // It says that it holds all of it, and has nothing.
    nodes[1].peers.tell(id, once(0..10)).await.expect("told");
    nodes[0].read(id, &bytes).await;
    let times = cluster.hub.times();
    assert!(times.len() == 10 && times.iter().all(|t| *t == 1), "{times:?}");
    let claimed = nodes[0].peers.tracker().claim(&Claim::look(id, (0..10).collect())).await.expect("claim");
    let held = claimed.decisions.iter().filter(|d| matches!(d, Decision::Held(_))).count();
    assert_eq!(held, 0, "nobody else is said to hold it: {:?}", claimed.decisions);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_other_bytes_than_verified_ones_is_found_out_and_put_out() {
    let cluster = Cluster::new();
    let nodes = cluster.nodes(5).await;
    let (id, bytes) = cluster.blob(&nodes[0], 8 * CHUNK, 1).await;
    nodes[0].read(id, &bytes).await;
    let first = nodes[0].open(id, &bytes).await;
    eventually("verified", || first.is_verified()).await;
    // All of them have it from a node whose disk is bad, or who lies.
    nodes[0].spoil(id, 3);
    for node in &nodes[1..4] {
        // Nobody else is to have it.
        for other in &nodes[1..4] {
            other.peers.withdraw(id, None).await;
        }
        nodes[0].peers.tell(id, once(0..8)).await.expect("told");
        node.read(id, &bytes).await;
        let stats = node.chunks.stats();
        assert!(stats.chunks_wrong >= 1, "it was noticed");
    }
    let me = nodes[4].peers.registry();
    me.refresh().await.expect("roster");
    let blocked = &me.roster().blocks;
    assert!(
        blocked.iter().any(|b| b.target.to_string() == nodes[0].peers.me().to_string()),
        "three different nodes said so: {blocked:?}"
    );
    // From now on it is asked for nothing.
    for node in &nodes[1..4] {
        node.peers.withdraw(id, None).await;
    }
    nodes[0].peers.tell(id, once(0..8)).await.expect("told");
    nodes[4].read(id, &bytes).await;
    let given = nodes[4].peers.client().stats();
    assert!(
        given.iter().all(|(node, stats)| *node != nodes[0].peers.me() || stats.requests == 0),
        "{given:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_from_outside_that_many_nodes_have_are_dropped_everywhere() {
    let cluster = Cluster::new();
    let nodes = cluster.nodes(3).await;
    let (id, bytes) = cluster.blob(&nodes[0], 12 * CHUNK, 1).await;
    // The first to bring it in is given something else, and nobody can tell before the whole is here.
    cluster.hub.fault(&[Fault::Wrong(77)]);
    let first = nodes[0].open(id, &bytes).await;
    let wrong = first.read(0, 1000).await.expect("read");
    assert_ne!(wrong[..], bytes[..1000], "the fault was used");
    for node in &nodes {
        let blob = node.open(id, &bytes).await;
        for at in (0..bytes.len() as u64).step_by(CHUNK) {
            blob.read(at, 100).await.expect("read");
        }
    }
    for node in &nodes {
        let blob = node.open(id, &bytes).await;
        let begun = std::time::Instant::now();
        while !blob.is_verified() {
            assert!(begun.elapsed() < Duration::from_secs(40), "right in the end");
            // Readers go on; what was dropped comes again.
            for at in (0..bytes.len() as u64).step_by(CHUNK) {
                blob.read(at, 100).await.expect("read");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        node.read(id, &bytes).await;
    }
    assert_eq!(nodes.iter().map(|node| node.chunks.stats().mismatches).sum::<u64>(), 1, "found out once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_over_a_cut_network_is_fetched_alone() {
    let cluster = Cluster::new();
    let mut nodes = cluster.nodes(2).await;
    let (id, bytes) = cluster.blob(&nodes[0], 10 * CHUNK, 1).await;
    nodes[0].read(id, &bytes).await;
    // It goes on saying that it lives and what it holds.
    nodes[0].cut_off().await;
    let begun = std::time::Instant::now();
    nodes[1].read(id, &bytes).await;
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert_eq!(cluster.hub.chunks_asked(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_node_held_is_fetched_again_by_one_of_the_others() {
    let cluster = Cluster::new();
    let mut nodes = cluster.nodes(4).await;
    let (id, bytes) = cluster.blob(&nodes[0], 10 * CHUNK, 1).await;
    nodes[0].read(id, &bytes).await;
    // Dead, but nobody has noticed: it is still said to have all of it.
    nodes[0].cut_off().await;
    futures::future::join_all(nodes[1..].iter().map(|node| node.read(id, &bytes))).await;
    let asked = cluster.hub.chunks_asked();
    assert!((20..=22).contains(&asked), "{asked}: not once for each of the three");
}
