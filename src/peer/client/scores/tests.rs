use std::net::SocketAddr;

use super::*;

const LEN: u32 = 4 << 20;

fn holder(n: u64, zone: &str, slots_free: u32) -> Holder {
    let addr = SocketAddr::from(([10, 0, 0, 7], 4000 + n as u16));
    Holder { node: NodeId(n), addr, zone: zone.into(), slots_free }
}

fn holders(n: u64) -> Vec<Holder> {
    (1..=n).map(|n| holder(n, "", 5)).collect()
}

fn sample(scores: &Scores, node: u64, rate: u64) {
    for _ in 0..20 {
        scores.began(NodeId(node), Some(Duration::from_millis(1)));
        scores.ended(NodeId(node), rate, Duration::from_secs(1), true, false);
    }
}

fn firsts(scores: &Scores, of: &[Holder], zone: &str) -> Vec<u64> {
    (0..200).map(|_| scores.order(of.to_vec(), zone, LEN)[0].node.0).collect()
}

#[test]
fn everybody_is_in_the_order_once() {
    let scores = Scores::default();
    for n in 0..6 {
        for _ in 0..50 {
            let mut nodes: Vec<u64> = scores.order(holders(n), "", LEN).iter().map(|h| h.node.0).collect();
            nodes.sort_unstable();
            assert_eq!(nodes, (1..=n).collect::<Vec<_>>());
        }
    }
}

#[test]
fn the_fast_are_asked_first_and_the_slowest_never() {
    let scores = Scores::default();
    for (node, rate) in [(1, 100_000_000), (2, 200_000_000), (3, 10_000_000)] {
        sample(&scores, node, rate);
    }
    let first = firsts(&scores, &holders(3), "");
    let count = |n| first.iter().filter(|f| **f == n).count();
    assert_eq!(count(3), 0, "the worst loses every choice of two");
    assert!(count(2) > count(1) && count(1) > 0, "{} {}", count(2), count(1));
    let two = firsts(&scores, &holders(2), "");
    assert!(two.iter().all(|n| *n == 2), "of two, the better one");
}

#[test]
fn zones_slots_and_load_count() {
    let scores = Scores::default();
    let far = [holder(1, "east", 5), holder(2, "west", 5)];
    assert!(firsts(&scores, &far, "west").iter().all(|n| *n == 2));
    let full = [holder(1, "", 0), holder(2, "", 1)];
    assert!(firsts(&scores, &full, "").iter().all(|n| *n == 2));
    scores.began(NodeId(1), None);
    assert!(firsts(&scores, &holders(2), "").iter().all(|n| *n == 2), "1 is giving something already");
}

#[test]
fn who_failed_is_asked_last_and_who_was_wrong_not_at_all() {
    let scores = Scores::default();
    scores.outcome(NodeId(1), Outcome::Failed);
    for _ in 0..50 {
        assert_eq!(scores.order(holders(3), "", LEN)[2].node, NodeId(1));
    }
    scores.began(NodeId(1), None);
    scores.ended(NodeId(1), 0, Duration::ZERO, false, false);
    assert!(firsts(&scores, &holders(3), "").contains(&1), "it answered again");
    scores.wrong(NodeId(2));
    for _ in 0..50 {
        assert!(scores.order(holders(3), "", LEN).iter().all(|h| h.node != NodeId(2)));
    }
    assert!(scores.order(vec![holder(2, "", 5)], "", LEN).is_empty());
    let (_, stats) = scores.show().into_iter().find(|(n, _)| *n == NodeId(2)).expect("known");
    assert!(stats.blocked && stats.wrong == 1);
}

#[test]
fn a_stall_is_what_nine_of_ten_do_not_do() {
    let scores = Scores::default();
    let (least, most) = (Duration::from_millis(50), Duration::from_secs(3));
    assert_eq!(scores.stall(least, most), 4 * least, "nothing is known yet");
    for i in 0..PAUSES as u64 {
        scores.paused(Duration::from_millis(if i % 20 == 0 { 5000 } else { 10 }));
    }
    assert_eq!(scores.stall(least, most), least);
    for _ in 0..PAUSES {
        scores.paused(Duration::from_millis(700));
    }
    assert_eq!(scores.stall(least, most), Duration::from_millis(700), "a slow network is not stalled");
    for _ in 0..PAUSES {
        scores.paused(Duration::from_secs(60));
    }
    assert_eq!(scores.stall(least, most), most);
}

#[test]
fn second_transfers_are_few() {
    let scores = Scores::default();
    let all = (0..100).filter(|_| scores.may_hedge()).count();
    assert_eq!(all, 5);
    for _ in 0..20 {
        scores.order(holders(2), "", LEN);
    }
    assert_eq!((0..100).filter(|_| scores.may_hedge()).count(), 2, "one for ten");
}

#[test]
fn memory_is_bounded() {
    let scores = Scores::default();
    for n in 0..3 * NODES.get() as u64 {
        scores.asked(NodeId(n));
        scores.paused(Duration::ZERO);
    }
    assert_eq!(scores.show().len(), NODES.get());
    assert_eq!(scores.lock().pauses.len(), PAUSES);
}
