//! Who is there.

use std::time::Duration;

use hfmount::peer::tracker::{Roster, State, Target};
use hfmount::peer::{Decision, NodeId, PeerOptions, Role, Timing};

use crate::world::{Node, address, server, short, until};

async fn roster(node: &Node) -> Roster {
    node.tracker.nodes().await.expect("nodes")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_known_by_their_heartbeats() {
    let server = server();
    let seed = Node::with_role(&server, 1, Role::Seed).await;
    let a = Node::new(&server, 0, &PeerOptions { zone: "rack 7".into(), ..PeerOptions::default() }).await;
    let all = roster(&a).await;
    assert_eq!(all.nodes.iter().map(|n| n.info.clone()).collect::<Vec<_>>(), [a.info.clone(), seed.info]);
    assert!(all.nodes.iter().all(|n| n.state == State::Active && n.last <= all.server_time));
    assert_eq!(all.nodes[0].beat.expect("heartbeat").held_bytes, 3);
    assert!(all.known && all.alive);

    server.ask(&["DEL", &format!("{{hfmount}}@p:node:{}", a.id())]);
    let all = roster(&a).await;
    assert_eq!((all.nodes[0].state.clone(), all.nodes[0].beat), (State::Stale, None));
    assert!(all.known && !all.alive);
    // What another version says of itself, or a liar of another, is no node.
    server.ask(&[
        "HSET",
        "{hfmount}@p:nodes",
        "zz",
        "12|{}",
        "00000000000000aa",
        "5|{\"id\":\"00000000000000ab\",\"addr\":\"1.2.3.4:5\"}",
    ]);
    assert_eq!(roster(&a).await.nodes.len(), 2);
    a.tracker.leave().await.expect("leave");
    assert_eq!(roster(&a).await.nodes.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_silent_is_dead_and_then_forgotten() {
    let server = server();
    let a = Node::steady(&server, 0).await;
    let brief = PeerOptions { timing: short(), ..PeerOptions::default() };
    let b = Node::new(&server, 1, &brief).await;
    until("it is stale", || async { roster(&a).await.nodes[1].state == State::Stale }).await;
    b.beat().await;
    assert_eq!(roster(&a).await.nodes[1].state, State::Active);
    // An hour and more ago.
    let row = server.ask(&["HGET", "{hfmount}@p:nodes", &b.id().to_string()]);
    let (ms, rest) = row.split_once('|').expect("row");
    let old = ms.parse::<u64>().expect("ms") - 3_700_000;
    server.ask(&["HSET", "{hfmount}@p:nodes", &b.id().to_string(), &format!("{old}|{rest}")]);
    server.ask(&["DEL", &format!("{{hfmount}}@p:node:{}", b.id())]);
    assert_eq!(roster(&a).await.nodes.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_listen_and_missed_a_heartbeat_is_dead_at_once() {
    let server = server();
    let timing = Timing { beat: Duration::from_secs(1), ttl: Duration::from_mins(1), ..Timing::default() };
    let options = PeerOptions { timing, ..PeerOptions::default() };
    let (a, b) = (Node::new(&server, 0, &options).await, Node::new(&server, 1, &options).await);
    let token = b.take(0).await;
    let refused = async || a.tracker.refused(b.id()).await.expect("refused");
    // It lives, only it cannot be reached from there.
    assert!(!refused().await);
    assert_eq!(roster(&a).await.nodes[1].state, State::Active);
    assert!(matches!(a.fill(&[0]).await[0], Decision::Leased { .. }));
    tokio::time::sleep(Duration::from_millis(600)).await;
    b.beat().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!refused().await, "one heartbeat may be late");
    until("it is dead", refused).await;
    assert!(!a.tracker.refused(b.id()).await.expect("refused"), "and is so once");
    assert_eq!(roster(&a).await.nodes[1].state, State::Stale);
    assert!(a.take(0).await > token);
    // It was only away for a moment.
    b.beat().await;
    assert_eq!(roster(&a).await.nodes[1].state, State::Active);
    assert!(matches!(b.fill(&[0]).await[0], Decision::Leased { .. }), "what it lost is the other's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_reports_block_a_node() {
    let server = server();
    let (a, b, c) =
        (Node::steady(&server, 0).await, Node::steady(&server, 1).await, Node::steady(&server, 2).await);
    let bad = Node::steady(&server, 3).await;
    for _ in 0..5 {
        assert!(!a.tracker.report(bad.id()).await.expect("report"), "one node alone does not do");
    }
    assert!(!b.tracker.report(bad.id()).await.expect("report"));
    // A report counts for ten minutes.
    let reports = format!("{{hfmount}}@p:rep:{}", bad.id());
    server.ask(&["ZADD", &reports, "1", &b.id().to_string()]);
    assert!(!c.tracker.report(bad.id()).await.expect("report"));
    assert_eq!(roster(&a).await.blocks, []);
    assert!(b.tracker.report(bad.id()).await.expect("report"));
    let all = roster(&a).await;
    let State::Blocked(block) = &all.nodes[3].state else { panic!("{all:?}") };
    assert_eq!(block.target, Target::Node(bad.id()));
    assert!(block.why.contains("wrong bytes"), "{}", block.why);
    let lasts = block.until.0 - all.server_time.0;
    assert!((3_500..=3_600).contains(&(lasts / 1_000_000_000)), "{lasts}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blocks_end_and_are_bounded() {
    let server = server();
    let a = Node::steady(&server, 0).await;
    let target = Target::Addr(address(9));
    assert!(a.tracker.block(&target, "two\nlines", Duration::from_secs(2)).await.expect("block"));
    assert_eq!(roster(&a).await.blocks[0].why, "twolines");
    until("it ends", || async { roster(&a).await.blocks.is_empty() }).await;
    for n in 0..1030 {
        let done =
            a.tracker.block(&Target::Node(NodeId(n)), "", Duration::from_mins(1)).await.expect("block");
        assert_eq!(done, n < 1024, "{n}");
    }
    // What is blocked already may be blocked for longer.
    assert!(a.tracker.block(&Target::Node(NodeId(5)), "more", Duration::from_mins(9)).await.expect("block"));
    assert_eq!(roster(&a).await.blocks.len(), 1024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_added_and_taken_away() {
    let server = server();
    let a = Node::steady(&server, 0).await;
    let places = ["node-9:9000", "[::1]:80"].map(|place| place.parse().expect("address"));
    for place in &places {
        assert!(a.tracker.add(place).await.expect("add"));
    }
    assert_eq!(
        roster(&a).await.added.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["[::1]:80", "node-9:9000"]
    );
    assert!(a.tracker.take_away(&places[0]).await.expect("take away"));
    assert!(!a.tracker.take_away(&places[0]).await.expect("take away"));
    assert_eq!(roster(&a).await.added.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_nodes_are_a_bounded_list() {
    let server = server();
    let a = Node::steady(&server, 0).await;
    let now = roster(&a).await.server_time.0 / 1_000_000;
    let script = "for n = 1, 3000 do redis.call('HSET', '{hfmount}@p:nodes', string.format('%016x', n + 99), ARGV[1] .. '|{}') end";
    server.ask(&["EVAL", script, "0", &now.to_string()]);
    assert_eq!(roster(&a).await.nodes.len(), 1, "of too many the silent ones go");
    assert_eq!(server.ask(&["HLEN", "{hfmount}@p:nodes"]), ":1");
}
