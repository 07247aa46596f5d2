//! The nodes as one of them sees them, and its leases.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use hfmount::error::{Error, Kind, Result};
use hfmount::peer::tracker::{HubBucket, State, Target, bitmap};
use hfmount::peer::{
    Beat, Claim, Decision, Directory, Leases, NodeId, PeerOptions, Ping, Registry, Role, Token,
};

use crate::redis_server::RedisServer;
use crate::world::{Node, address, blob, held, leased, server, short, until};

fn brief() -> PeerOptions {
    PeerOptions { timing: short(), ..PeerOptions::default() }
}

/// A node with heartbeats.
async fn beating(server: &RedisServer, number: u8, options: &PeerOptions) -> (Node, Arc<Registry>) {
    beating_with(server, number, options, None).await
}

async fn beating_with(
    server: &RedisServer,
    number: u8,
    options: &PeerOptions,
    ping: Option<Arc<dyn Ping>>,
) -> (Node, Arc<Registry>) {
    let node = Node::silent(server, number, options).await;
    let registry = Registry::new(node.tracker.clone());
    let beats = AtomicU32::new(0);
    let beat = move || Beat { slots_free: beats.fetch_add(1, Ordering::Relaxed), ..Beat::default() };
    registry.start(node.info.clone(), Arc::new(beat), ping).await;
    (node, registry)
}

fn names(registry: &Registry) -> Vec<NodeId> {
    let mut live: Vec<_> =
        registry.live(blob(0), 0, |_| true).into_iter().map(|holder| holder.node).collect();
    live.sort_unstable();
    live
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_tell_who_is_there() {
    let server = server();
    let (a, of_a) = beating(&server, 0, &brief()).await;
    assert_eq!(names(&of_a), []);
    let (b, of_b) = beating(&server, 1, &PeerOptions { hub: false, ..brief() }).await;
    let (_, of_leech) = beating(&server, 2, &PeerOptions { role: Role::Leech, ..brief() }).await;
    assert_eq!(names(&of_b), [a.id()]);
    until("a hears of b", || async { names(&of_a) == [b.id()] }).await;
    assert_eq!(of_a.live(blob(0), 0, |node| node.hub), []);
    assert_eq!(names(&of_leech), [a.id(), b.id()], "it asks, and is not asked");
    assert_eq!(of_a.holder(b.id()).expect("known").addr, address(1));
    assert_eq!(of_a.holder(NodeId(99)), None);
    // They go on beating, with news each time.
    until("news", || async { of_a.holder(b.id()).is_some_and(|b| b.slots_free > 5) }).await;
    assert!(of_a.away().is_none());
    let apart = of_a.now_ms().abs_diff(of_b.now_ms());
    assert!(apart < 5_000, "one clock: {apart} ms");

    of_b.leave().await;
    of_a.refresh().await.expect("refresh");
    assert_eq!(names(&of_a), []);
    drop(of_leech);
    until("the other one is stale", || async {
        of_a.roster().nodes.iter().any(|node| node.info.role == Role::Leech && node.state == State::Stale)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_chunk_has_its_own_order() {
    let server = server();
    let (_, registry) = beating(&server, 0, &PeerOptions::default()).await;
    for number in 1..9 {
        Node::steady(&server, number).await;
    }
    registry.refresh().await.expect("refresh");
    let mut first = std::collections::HashSet::new();
    for idx in 0..64 {
        let live = registry.live(blob(0), idx, |_| true);
        assert_eq!(live.len(), 8);
        assert_eq!(live, registry.live(blob(0), idx, |_| true), "and keeps it");
        first.insert(live[0].node);
    }
    assert_eq!(first.len(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_blocked_is_not_asked() {
    let server = server();
    let (a, of_a) = beating(&server, 0, &PeerOptions::default()).await;
    let (b, of_b) = beating(&server, 1, &PeerOptions::default()).await;
    let (c, of_c) = beating(&server, 2, &PeerOptions::default()).await;
    let (bad, _bad) = beating(&server, 3, &PeerOptions::default()).await;
    of_a.refresh().await.expect("refresh");
    assert_eq!(names(&of_a), [b.id(), c.id(), bad.id()]);
    for registry in [&of_a, &of_b, &of_c] {
        assert!(!registry.is_blocked(bad.id()));
        registry.report(bad.id(), blob(0), 3).await.expect("report");
    }
    assert!(of_c.is_blocked(bad.id()), "who made it three knows at once");
    of_a.refresh().await.expect("refresh");
    assert!(of_a.is_blocked(bad.id()) && !of_a.is_blocked(b.id()));
    assert_eq!((names(&of_a), of_a.holder(bad.id())), (vec![b.id(), c.id()], None));
    // By its address, whoever is there; and only for its time.
    let target = Target::Addr(b.info.addr);
    a.tracker.block(&target, "test", Duration::from_secs(3)).await.expect("block");
    of_a.refresh().await.expect("refresh");
    assert!(of_a.is_blocked(b.id()));
    until("it is over, also without news", || async { !of_a.is_blocked(b.id()) }).await;
    assert_eq!(names(&of_a), [b.id(), c.id()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_without_its_data_is_told_again() {
    let mut server = server();
    let (a, of_a) = beating(&server, 0, &brief()).await;
    let (b, of_b) = beating(&server, 1, &brief()).await;
    let mut forgotten = of_a.forgotten();
    let bits = bitmap([1]);
    a.tracker.advertise(&[(blob(0), bits.clone())]).await.expect("advertise");
    assert_eq!(held(&b.look(&[1]).await[0]), [a.id()]);
    assert!(!forgotten.has_changed().expect("open"));

    server.ask(&["FLUSHALL"]);
    tokio::time::timeout(Duration::from_secs(60), forgotten.changed()).await.expect("in time").expect("open");
    a.tracker.advertise(&[(blob(0), bits.clone())]).await.expect("advertise");
    until("b is told", || async { matches!(b.look(&[1]).await[0], Decision::Held(_)) }).await;
    until("they know of each other", || async { names(&of_a) == [b.id()] && names(&of_b) == [a.id()] }).await;
    until("once", || async { !forgotten.has_changed().expect("open") }).await;

    // Another server, with or without data.
    forgotten.mark_unchanged();
    server.restart();
    tokio::time::timeout(Duration::from_secs(60), forgotten.changed()).await.expect("in time").expect("open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_that_kept_the_data_is_told_too() {
    let mut server = RedisServer::start();
    let (a, of_a) = beating(&server, 0, &PeerOptions { timing: short(), ..PeerOptions::default() }).await;
    let mut forgotten = of_a.forgotten();
    server.restart();
    assert_eq!(server.ask(&["HEXISTS", "{hfmount}@p:nodes", &a.id().to_string()]), ":1");
    tokio::time::timeout(Duration::from_secs(60), forgotten.changed()).await.expect("in time").expect("open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn possession_is_told_again_before_it_runs_out() {
    let server = server();
    let mut options = brief();
    options.timing.possession = Duration::from_secs(2);
    let (_, registry) = beating(&server, 0, &options).await;
    let mut forgotten = registry.forgotten();
    for _ in 0..2 {
        tokio::time::timeout(Duration::from_secs(60), forgotten.changed())
            .await
            .expect("in time")
            .expect("open");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_redis_is_away_the_others_are_known() {
    let mut server = server();
    let (_, of_a) = beating(&server, 0, &brief()).await;
    let (b, _of_b) = beating(&server, 1, &brief()).await;
    until("a hears of b", || async { names(&of_a) == [b.id()] }).await;
    of_a.refresh().await.expect("refresh");
    let before = of_a.server_time();
    server.kill();
    until("it is away", || async { of_a.away().is_some() }).await;
    assert_eq!(names(&of_a), [b.id()]);
    assert!(of_a.server_time() > before, "the clock goes on");
    server.restart();
    until("it is back", || async { of_a.away().is_none() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pauses_and_needs_come_with_heartbeats() {
    let server = server();
    let (a, of_a) = beating(&server, 0, &PeerOptions::default()).await;
    assert_eq!(of_a.paused("https://hub", HubBucket::Api), None);
    a.tracker.pause("https://hub", HubBucket::Api, Duration::from_secs(3)).await.expect("pause");
    a.tracker
        .need(&hfmount::peer::tracker::Need { blob: blob(0), size: 1, chunks: vec![0] })
        .await
        .expect("need");
    of_a.refresh().await.expect("refresh");
    assert!(of_a.paused("https://hub", HubBucket::Api).expect("paused") <= Duration::from_secs(3));
    assert_eq!(of_a.paused("https://hub", HubBucket::Resolvers), None);
    assert_eq!(of_a.needs(), 1);
    until("it ends, also without news", || async { of_a.paused("https://hub", HubBucket::Api).is_none() })
        .await;
}

/// Knows who is where.
struct Places(Mutex<Vec<(SocketAddr, NodeId)>>);

#[async_trait]
impl Ping for Places {
    async fn ping(&self, addr: SocketAddr) -> Result<NodeId> {
        let places = self.0.lock().expect("lock");
        let found = places.iter().find(|(place, _)| *place == addr);
        found.map(|(_, node)| *node).ok_or_else(|| Error::new(Kind::Unavailable, "nobody is there"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_redis_does_not_know_are_asked() {
    let server = server();
    let b = Node::new(&server, 1, &brief()).await;
    let places = vec![(address(7), NodeId(70)), (address(1), b.id()), (address(0), NodeId(1))];
    let places = Arc::new(Places(Mutex::new(places)));
    let (a, of_a) = beating_with(&server, 0, &brief(), Some(places.clone())).await;
    for place in ["10.0.0.7:9000", "10.0.0.8:9000", "10.0.0.1:9000", "10.0.0.0:9000"] {
        a.tracker.add(&place.parse().expect("address")).await.expect("add");
    }
    until("it answers", || async { of_a.added().len() == 1 }).await;
    let found = of_a.added().remove(0);
    assert_eq!((found.node, found.addr), (NodeId(70), address(7)));
    assert_eq!(of_a.holder(NodeId(70)), Some(found));
    assert!(!of_a.is_blocked(NodeId(70)));
    // It does not answer any more.
    places.0.lock().expect("lock").clear();
    until("it is given up", || async { of_a.added().is_empty() }).await;
    places.0.lock().expect("lock").push((address(7), NodeId(71)));
    until("another one answers", || async { of_a.holder(NodeId(71)).is_some() }).await;
    a.tracker.take_away(&"10.0.0.7:9000".parse().expect("address")).await.expect("take away");
    until("it was taken away", || async { of_a.added().is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_kept_until_they_are_done() {
    let server = server();
    let (a, of_a) = beating(&server, 0, &brief()).await;
    let (b, _of_b) = beating(&server, 1, &brief()).await;
    let leases = Leases::new(a.tracker.clone());
    let claim = Claim::fill(blob(0), vec![0, 1, 2], 3);
    let claimed = leases.claim(&claim).await.expect("claim");
    assert!(claimed.decisions.iter().all(|decision| matches!(decision, Decision::Granted(_))));
    leases.keep_granted(&claim, &claimed);
    assert_eq!(leases.count(), 3);
    assert!(leases.is_ours(blob(0), 0) && !leases.is_ours(blob(0), 3) && !leases.is_ours(blob(1), 0));
    // For much longer than one lasts.
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(leased(&b.look(&[0]).await[0]), a.id());
        assert!(leases.is_ours(blob(0), 0));
    }
    // One of which nothing is told runs out.
    let token = leases.done(blob(0), 0).expect("kept");
    assert_eq!(Decision::Granted(token), claimed.decisions[0]);
    assert!(!leases.is_ours(blob(0), 0) && leases.done(blob(0), 0).is_none());
    until("it runs out", || async { b.look(&[0]).await[0] == Decision::Free }).await;
    assert_eq!(leased(&b.look(&[1]).await[0]), a.id());
    // An old answer that comes late is no newer lease.
    let old = hfmount::peer::Claimed { decisions: vec![Decision::Granted(Token(1))], ..claimed };
    leases.keep_granted(&Claim::fill(blob(0), vec![1], 1), &old);
    assert_ne!(leases.done(blob(0), 1), Some(Token(1)));

    leases.end().await;
    assert_eq!((leases.count(), b.look(&[2]).await), (0, vec![Decision::Free]));
    of_a.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_that_are_lost_are_not_acted_on() {
    let mut server = server();
    let (a, _of_a) = beating(&server, 0, &brief()).await;
    let (b, _of_b) = beating(&server, 1, &brief()).await;
    let leases = Leases::new(a.tracker.clone());
    leases.claim(&Claim::fill(blob(0), vec![0, 1], 2)).await.expect("claim");
    // Somebody else's now.
    server.ask(&[
        "HSET",
        &format!("{{hfmount}}@p:l:{}", blob(0).etag()),
        "0",
        &format!("{}|9|99999999999999", b.id()),
    ]);
    until("it is told", || async { !leases.is_ours(blob(0), 0) }).await;
    assert!(leases.is_ours(blob(0), 1));
    assert_eq!(leases.done(blob(0), 0), None);
    // Nobody can say whose it is.
    server.kill();
    until("too long without renewal", || async { !leases.is_ours(blob(0), 1) }).await;
    server.restart();
    until("the server has forgotten it", || async { leases.count() == 0 }).await;
}
