//! Leases and possession.

use std::collections::HashMap;
use std::time::Duration;

use hfmount::error::Kind;
use hfmount::peer::tracker::{Target, bitmap};
use hfmount::peer::{Claim, Decision, NodeId, PeerOptions, Role, Timing, Token};

use crate::world::{Node, address, blob, held, leased, server, short, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_is_granted_then_awaited_then_held() {
    let server = server();
    let (a, b) = (Node::steady(&server, 0).await, Node::steady(&server, 1).await);
    assert_eq!(a.look(&[7]).await, [Decision::Free]);
    let token = a.take(7).await;
    // Asking again is harmless, and a question answers in its order.
    assert_eq!(a.fill(&[7]).await, [Decision::Granted(token)]);
    assert_eq!(a.look(&[7]).await, [Decision::Granted(token)]);
    let answers = b.look(&[8, 7, 9]).await;
    assert_eq!((&answers[0], leased(&answers[1]), &answers[2]), (&Decision::Free, a.id(), &Decision::Free));
    let Decision::Leased { owner, left } = &answers[1] else { panic!() };
    assert_eq!((owner.addr, owner.slots_free), (address(0), 4));
    assert!(*left <= Duration::from_secs(15) && *left > Duration::from_secs(5), "{left:?}");

    a.tracker.landed(blob(0), &[(7, Some(token))]).await.expect("landed");
    assert_eq!(held(&b.fill(&[7]).await[0]), [a.id()]);
    // Of itself a node is never told: who asks does not have it.
    assert_ne!(a.take(7).await, token);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_are_granted_as_are_asked_for() {
    let server = server();
    let a = Node::steady(&server, 0).await;
    let claim = Claim::fill(blob(0), vec![5, 3, 9, 1], 2);
    let answers = a.ask(&claim).await;
    assert!(
        matches!(answers[..2], [Decision::Granted(Token(one)), Decision::Granted(Token(two))] if one < two)
    );
    assert_eq!(answers[2..], [Decision::Free, Decision::Free]);
    // What is this node's already does not count.
    let again = a.ask(&claim).await;
    assert_eq!(again[..2], answers[..2]);
    assert!(matches!(again[2..], [Decision::Granted(_), Decision::Granted(_)]));
    // Other blobs are other chunks.
    let other = a.ask(&Claim { blob: blob(1), ..claim.clone() }).await;
    assert!(matches!(other[0], Decision::Granted(token) if !again.contains(&Decision::Granted(token))));
    assert!(matches!(a.ask(&Claim { grant: false, ..claim }).await[0], Decision::Granted(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn grants_are_exclusive_under_concurrency() {
    let server = server();
    let mut tasks = Vec::new();
    for number in 0..8 {
        let node = Node::steady(&server, number).await;
        tasks.push(tokio::spawn(async move {
            let mut granted = Vec::new();
            for first in (0..1024).step_by(64) {
                // Each in an order of its own.
                let mut chunks: Vec<u64> = (first..first + 64).collect();
                chunks.rotate_left(usize::from(number) * 8);
                for (chunk, decision) in
                    chunks.iter().zip(node.ask(&Claim::fill(blob(0), chunks.clone(), 8)).await)
                {
                    if let Decision::Granted(token) = decision {
                        granted.push((*chunk, token));
                    }
                }
            }
            granted
        }));
    }
    let mut owners = HashMap::new();
    let mut tokens = std::collections::HashSet::new();
    for task in tasks {
        for (chunk, token) in task.await.expect("task") {
            assert!(owners.insert(chunk, token).is_none(), "chunk {chunk} twice");
            assert!(tokens.insert(token), "{token:?} twice");
        }
    }
    assert_eq!(owners.len(), 1024);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_runs_out_is_another_ones() {
    let server = server();
    let brief = PeerOptions { timing: short(), ..PeerOptions::default() };
    let (a, b) = (Node::new(&server, 0, &brief).await, Node::new(&server, 1, &brief).await);
    let old = a.take(0).await;
    assert_eq!(leased(&b.fill(&[0]).await[0]), a.id());
    // It lives, and renews nothing.
    let mut new = None;
    for _ in 0..600 {
        a.beat().await;
        b.beat().await;
        if let Decision::Granted(token) = b.fill(&[0]).await[0] {
            new = Some(token);
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let new = new.expect("taken over");
    assert!(new > old, "fencing tokens grow");

    // The one before is told so, and can neither end nor release the new lease.
    assert_eq!(a.tracker.renew(&[(blob(0), 0, old)]).await.expect("renewal"), [false]);
    a.tracker.release(blob(0), &[(0, old)]).await.expect("release");
    assert_eq!(b.tracker.renew(&[(blob(0), 0, new)]).await.expect("renewal"), [true]);
    // What it has it may tell all the same.
    a.beat().await;
    a.tracker.landed(blob(0), &[(0, Some(old))]).await.expect("landed");
    assert_eq!(b.tracker.renew(&[(blob(0), 0, new)]).await.expect("renewal"), [true]);
    assert_eq!(held(&b.look(&[0]).await[0]), [a.id()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_renewed_stays() {
    let server = server();
    let brief = PeerOptions { timing: short(), ..PeerOptions::default() };
    let (a, b) = (Node::new(&server, 0, &brief).await, Node::new(&server, 1, &brief).await);
    let claim = Claim::fill(blob(1), vec![4], 1);
    let Decision::Granted(other) = a.ask(&claim).await[0] else { panic!() };
    let leases = [(blob(0), 0, a.take(0).await), (blob(0), 1, a.take(1).await), (blob(1), 4, other)];
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        a.beat().await;
        b.beat().await;
        assert_eq!(a.tracker.renew(&leases).await.expect("renewal"), [true, true, true]);
    }
    assert_eq!(leased(&b.fill(&[1]).await[0]), a.id());
    // Only what is this node's, by its own token.
    let wrong = [(blob(0), 0, Token(1)), leases[1], (blob(2), 0, leases[0].2)];
    assert_eq!(a.tracker.renew(&wrong).await.expect("renewal"), [false, true, false]);
    assert_eq!(b.tracker.renew(&leases).await.expect("renewal"), [false; 3]);
    assert_eq!(a.tracker.renew(&[]).await.expect("renewal"), [false; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dead_hold_nothing() {
    let server = server();
    let (a, b) = (Node::steady(&server, 0).await, Node::steady(&server, 1).await);
    let token = a.take(0).await;
    a.tracker.landed(blob(0), &[(1, None)]).await.expect("landed");
    // Its lease would last for seconds still.
    server.ask(&["DEL", &format!("{{hfmount}}@p:node:{}", a.id())]);
    assert!(matches!(b.fill(&[0, 1]).await[..], [Decision::Granted(_), Decision::Granted(_)]));
    assert_eq!(a.tracker.renew(&[(blob(0), 0, token)]).await.expect("renewal"), [false]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_is_not_asked_any_more() {
    let server = server();
    let (a, b) = (Node::steady(&server, 0).await, Node::steady(&server, 1).await);
    a.take(0).await;
    a.tracker.landed(blob(0), &[(1, None)]).await.expect("landed");
    a.tracker.leave().await.expect("leave");
    assert!(matches!(b.fill(&[0, 1]).await[..], [Decision::Granted(_), Decision::Granted(_)]));
    // What it told is forgotten by and by.
    assert_eq!(server.ask(&["EXISTS", &format!("{{hfmount}}@p:p:{}:{}", blob(0).etag(), a.id())]), ":0");
    let error = a.tracker.claim(&Claim::look(blob(0), vec![0])).await.expect_err("it left");
    assert_eq!(error.kind(), Kind::Invalid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_released_is_free_at_once() {
    let server = server();
    let (a, b) = (Node::steady(&server, 0).await, Node::steady(&server, 1).await);
    let (one, two) = (a.take(1).await, a.take(2).await);
    a.tracker.release(blob(0), &[(1, one), (2, Token(two.0 + 1))]).await.expect("release");
    let answers = b.fill(&[1, 2]).await;
    assert!(matches!(answers[0], Decision::Granted(_)));
    assert_eq!(leased(&answers[1]), a.id(), "that was not its token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_adverts_are_taken_back() {
    let server = server();
    let (a, b, c) =
        (Node::steady(&server, 0).await, Node::steady(&server, 1).await, Node::steady(&server, 2).await);
    for node in [&a, &b] {
        node.tracker.landed(blob(0), &[(0, None), (9, None), (200, None)]).await.expect("landed");
    }
    assert_eq!(held(&c.look(&[9]).await[0]), [a.id(), b.id()]);
    c.tracker.not_held(blob(0), 9, a.id()).await.expect("not held");
    // For what it never said it held nothing grows.
    c.tracker.not_held(blob(0), 1 << 24, a.id()).await.expect("not held");
    let bits = format!("{{hfmount}}@p:p:{}:{}", blob(0).etag(), a.id());
    assert_eq!(server.ask(&["STRLEN", &bits]), ":26");
    let answers = c.look(&[0, 9, 200]).await;
    assert_eq!(held(&answers[0]), [a.id(), b.id()]);
    assert_eq!(held(&answers[1]), [b.id()]);

    b.tracker.withdraw(blob(0), &[9, 0]).await.expect("withdraw");
    assert_eq!(c.look(&[9]).await, [Decision::Free]);
    assert_eq!(held(&c.look(&[0]).await[0]), [a.id()]);
    a.tracker.withdraw_all(blob(0)).await.expect("withdraw");
    b.tracker.withdraw(blob(0), &[200]).await.expect("withdraw");
    assert_eq!(c.look(&[0, 9, 200]).await, [Decision::Free, Decision::Free, Decision::Free]);
    assert_eq!(server.ask(&["EXISTS", &bits]), ":0");
    assert_eq!(server.ask(&["EXISTS", &format!("{{hfmount}}@p:who:{}", blob(0).etag())]), ":0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_it_is_advertised_at_once() {
    let server = server();
    let (a, b) = (Node::steady(&server, 0).await, Node::steady(&server, 1).await);
    a.tracker.landed(blob(0), &[(1, None)]).await.expect("landed");
    let calls = server.calls("evalsha");
    let mut held_by_a: Vec<_> = (0..=255).map(|n| (blob(n), bitmap([n.into(), 2399]))).collect();
    a.tracker.advertise(&held_by_a).await.expect("advertise");
    assert!(server.calls("evalsha") - calls <= 4, "a few calls");
    for n in [0, 255] {
        let answers = b.ask(&Claim::look(blob(n), vec![n.into(), 2399, 1000])).await;
        assert_eq!(
            (held(&answers[0]), held(&answers[1]), &answers[2]),
            (vec![a.id()], vec![a.id()], &Decision::Free)
        );
    }
    assert_eq!(held(&b.look(&[1]).await[0]), [a.id()], "what was told before stays");
    let holdings = b.tracker.holdings(blob(0)).await.expect("holdings");
    assert_eq!(holdings.iter().map(|h| (h.holder.node, h.chunks)).collect::<Vec<_>>(), [(a.id(), 3)]);
    held_by_a.clear();
    a.tracker.advertise(&held_by_a).await.expect("nothing to say");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_holders_are_named_and_all_have_their_turn() {
    let server = server();
    let here = PeerOptions { zone: "here".into(), ..PeerOptions::default() };
    let me = Node::new(&server, 100, &here).await;
    let mut ids = Vec::new();
    for number in 0..10 {
        let node = Node::steady(&server, number).await;
        node.tracker.landed(blob(0), &[(3, None), (1 << 20, None)]).await.expect("landed");
        ids.push(node.id());
    }
    let mut met = std::collections::BTreeSet::new();
    for _ in 0..60 {
        let answers = me.look(&[3]).await;
        assert_eq!(held(&answers[0]).len(), 3);
        met.extend(held(&answers[0]));
    }
    assert_eq!(met.into_iter().collect::<Vec<_>>(), ids, "all of them serve");
    // Chunks that lie far apart are found all the same.
    let far = me.look(&[3, 1 << 20, 4]).await;
    assert_eq!((held(&far[0]).len(), held(&far[1]).len(), &far[2]), (3, 3, &Decision::Free));

    // One of the same zone is among them whenever it is found.
    let near = Node::new(&server, 50, &here).await;
    near.tracker.landed(blob(0), &[(3, None)]).await.expect("landed");
    for _ in 0..20 {
        assert!(held(&me.look(&[3]).await[0]).contains(&near.id()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_fetch_know_of_each_other() {
    let server = server();
    let (a, b) = (Node::steady(&server, 0).await, Node::steady(&server, 1).await);
    let denied = Node::new(&server, 2, &PeerOptions { hub: false, ..PeerOptions::default() }).await;
    let brief = Timing { participant: Duration::from_millis(500), ..Timing::default() };
    let quick = Node::new(&server, 3, &PeerOptions { timing: brief, ..PeerOptions::default() }).await;
    let ask = async |node: &Node| {
        let claimed = node.tracker.claim(&Claim::look(blob(0), vec![0])).await.expect("claim");
        assert!(claimed.server_time.0 > 1_700_000_000_000_000_000);
        claimed.participants
    };
    assert_eq!(ask(&denied).await, [], "it may not call the Hub");
    assert_eq!(ask(&b).await, [b.id()]);
    a.tracker.landed(blob(0), &[(0, None)]).await.expect("landed");
    assert_eq!(ask(&b).await, [a.id(), b.id()]);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(ask(&quick).await, [quick.id()], "the others asked longer ago");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_serves_nobody_binds_nobody() {
    let server = server();
    let (a, leech) = (Node::steady(&server, 0).await, Node::with_role(&server, 1, Role::Leech).await);
    let token = leech.take(0).await;
    assert_eq!(leech.fill(&[0]).await, [Decision::Granted(token)]);
    let of_a = a.take(0).await;
    assert_ne!(of_a, token);
    // Its own one goes on all the same, and ends without a trace.
    assert_eq!(leech.tracker.renew(&[(blob(0), 0, token)]).await.expect("renewal"), [true]);
    leech.tracker.landed(blob(0), &[(0, Some(token))]).await.expect("landed");
    leech.tracker.advertise(&[(blob(0), bitmap([0]))]).await.expect("advertise");
    assert_eq!(leech.tracker.renew(&[(blob(0), 0, token)]).await.expect("renewal"), [false]);
    assert_eq!(a.fill(&[0]).await, [Decision::Granted(of_a)]);
    // It waits for others as everybody does, and takes what they have.
    assert_eq!(leased(&leech.fill(&[0]).await[0]), a.id());
    a.tracker.landed(blob(0), &[(0, Some(of_a))]).await.expect("landed");
    assert_eq!(held(&leech.fill(&[0]).await[0]), [a.id()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_blocked_works_alone() {
    let server = server();
    let (a, bad) = (Node::steady(&server, 0).await, Node::steady(&server, 1).await);
    let before = bad.take(0).await;
    bad.tracker.landed(blob(0), &[(1, None)]).await.expect("landed");
    a.tracker.landed(blob(0), &[(2, None)]).await.expect("landed");
    let target = Target::Node(bad.id());
    assert!(a.tracker.block(&target, "it lies", Duration::from_mins(1)).await.expect("block"));
    // Neither its leases nor its bytes count.
    let answers = a.fill(&[0, 1]).await;
    assert!(matches!(answers[..], [Decision::Granted(_), Decision::Granted(_)]), "{answers:?}");
    // It is served by nobody, so it is to fetch for itself.
    let claimed = bad.tracker.claim(&Claim::fill(blob(0), vec![0, 1, 2], 9)).await.expect("claim");
    assert!(claimed.blocked);
    assert!(claimed.decisions.iter().all(|d| matches!(d, Decision::Granted(token) if *token != before)));
    assert_eq!(leased(&Node::steady(&server, 2).await.fill(&[0]).await[0]), a.id());

    assert!(a.tracker.unblock(&target).await.expect("unblock"));
    assert!(!a.tracker.unblock(&target).await.expect("unblock"));
    assert_eq!(held(&bad.look(&[2]).await[0]), [a.id()]);
    // The same by its address.
    assert!(a.tracker.block(&Target::Addr(address(1)), "", Duration::from_mins(1)).await.expect("block"));
    assert!(bad.tracker.claim(&Claim::look(blob(0), vec![2])).await.expect("claim").blocked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_one_command() {
    let server = server();
    let a = Node::steady(&server, 0).await;
    let warm = async |from: u64| {
        let chunks: Vec<u64> = (from..from + 64).collect();
        let tokens = a.fill(&chunks).await.into_iter().map(|decision| match decision {
            Decision::Granted(token) => token,
            other => panic!("{other:?}"),
        });
        let leases: Vec<_> = chunks.iter().copied().zip(tokens).collect();
        let landed: Vec<_> = leases.iter().map(|(chunk, token)| (*chunk, Some(*token))).collect();
        let renewed: Vec<_> = leases.iter().map(|(chunk, token)| (blob(0), *chunk, *token)).collect();
        a.tracker.renew(&renewed).await.expect("renewal");
        a.tracker.landed(blob(0), &landed).await.expect("landed");
        a.tracker.withdraw(blob(0), &chunks).await.expect("withdraw");
        a.tracker.not_held(blob(0), from, NodeId(9)).await.expect("not held");
        a.beat().await;
        a.tracker.nodes().await.expect("nodes");
    };
    warm(0).await;
    let calls = |name: &str| server.calls(name);
    let (scripts, loads) = (calls("evalsha"), calls("script|load"));
    warm(64).await;
    assert_eq!((calls("evalsha") - scripts, calls("script|load") - loads), (7, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_much_is_refused() {
    let server = server();
    let a = Node::steady(&server, 0).await;
    for chunks in [vec![], (0..65).collect(), vec![1 << 25]] {
        let error = a.tracker.claim(&Claim::look(blob(0), chunks)).await.expect_err("refused");
        assert_eq!(error.kind(), Kind::Invalid);
    }
    assert_eq!(a.look(&[(1 << 25) - 1]).await, [Decision::Free]);
    let error = a.tracker.landed(blob(0), &[(1 << 25, None)]).await.expect_err("refused");
    assert_eq!(error.kind(), Kind::Invalid);
    // Many leases are renewed in several calls.
    let many: Vec<_> = (0..1100).map(|chunk| (blob(0), chunk, Token(1))).collect();
    assert_eq!(a.tracker.renew(&many).await.expect("renewal"), vec![false; 1100]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_key_expires_and_no_dump_sees_it() {
    let server = server();
    let (a, b) = (Node::steady(&server, 0).await, Node::steady(&server, 1).await);
    let token = a.take(0).await;
    b.take(1).await;
    a.tracker.landed(blob(0), &[(0, Some(token)), (5, None)]).await.expect("landed");
    a.tracker.block(&Target::Node(NodeId(77)), "x", Duration::from_mins(1)).await.expect("block");
    a.tracker.add(&"10.0.0.9:1".parse().expect("address")).await.expect("add");
    a.tracker.report(NodeId(78)).await.expect("report");
    let keys = server.ask(&["EVAL", "return table.concat(redis.call('KEYS', '*'), ' ')", "0"]);
    assert!(keys.split(' ').count() >= 9, "{keys}");
    for key in keys.split(' ') {
        assert!(key.starts_with("{hfmount}@p:"), "{key}");
        let ttl = server.ask(&["TTL", key]);
        assert!(ttl[1..].parse::<i64>().expect("seconds") >= 0, "{key} stays for ever: {ttl}");
    }
    use hfmount::meta::kv::Kv;
    let mut export = a.kv.export().await.expect("export");
    assert!(export.next().await.expect("piece").is_none(), "nothing that a dump has");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_does_not_answer_holds_nobody_up() {
    let mut server = server();
    let a = Node::steady(&server, 0).await;
    a.take(0).await;
    server.freeze(true);
    let began = std::time::Instant::now();
    let error = a.tracker.claim(&Claim::look(blob(0), vec![0])).await.expect_err("frozen");
    server.freeze(false);
    assert!(matches!(error.kind(), Kind::TimedOut | Kind::Unavailable), "{error}");
    assert!(began.elapsed() < Duration::from_secs(20), "two seconds, on a busy machine more");
    until("it answers", || async { a.tracker.claim(&Claim::look(blob(0), vec![0])).await.is_ok() }).await;

    // It comes back empty: the node makes itself known and goes on.
    let forgotten = a.tracker.forgotten();
    server.restart();
    until("it answers", || async { a.tracker.claim(&Claim::look(blob(0), vec![0])).await.is_ok() }).await;
    assert_eq!(*forgotten.borrow(), 1);
    assert_eq!(a.look(&[0]).await, [Decision::Free]);
}
