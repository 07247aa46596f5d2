use std::net::SocketAddr;

use futures::FutureExt;

use super::*;

/// Nodes below 100 serve; the others only take.
#[derive(Debug)]
struct Nodes;

impl Directory for Nodes {
    fn now_ms(&self) -> u64 {
        0
    }
    fn holder(&self, node: NodeId) -> Option<Holder> {
        let addr = SocketAddr::from(([10, 0, 0, 7], 4000 + node.0 as u16));
        (node.0 < 100).then(|| Holder { node, addr, zone: String::new(), slots_free: 1 })
    }
    fn is_blocked(&self, _: NodeId) -> bool {
        false
    }
}

const BLOB: BlobId = BlobId::Git([7; 20]);

/// The first chunk has rules of its own.
const AFTER_FIRST: u64 = FIRST + 1;

fn sit(uploads: &Arc<Uploads>, idx: u64, node: u64) -> Result<Seated, Vec<u64>> {
    sit_at(uploads, AFTER_FIRST + idx, node)
}

fn sit_at(uploads: &Arc<Uploads>, idx: u64, node: u64) -> Result<Seated, Vec<u64>> {
    let nodes = |all: Vec<Holder>| all.iter().map(|h| h.node.0).collect();
    uploads.sit(BLOB, idx, NodeId(node), &Nodes).map_err(nodes)
}

fn others(uploads: &Uploads, idx: u64, node: u64) -> Vec<u64> {
    uploads.others(BLOB, AFTER_FIRST + idx, NodeId(node), &Nodes).iter().map(|h| h.node.0).collect()
}

#[test]
fn the_second_is_sent_to_the_first() {
    let uploads = Arc::new(Uploads::new(16));
    let first = sit(&uploads, 0, 1).expect("a seat");
    assert_eq!(sit(&uploads, 0, 2).expect_err("it is sent on"), [1]);
    let mut second_of_1 = sit(&uploads, 0, 1).expect("it sits already");
    let _other = sit(&uploads, 1, 4).expect("another chunk");
    drop(first);
    assert!(sit(&uploads, 0, 3).is_err(), "1 still asks for it");
    second_of_1.served();
    drop(second_of_1);
    let next = sit(&uploads, 0, 4).expect("the seat is free");
    assert_eq!(others(&uploads, 0, 9), [1, 4], "who got it, and who is getting it");
    drop(next);
}

#[test]
fn a_large_crowd_gets_more_seats() {
    let uploads = Arc::new(Uploads::new(16));
    let seats: Vec<u64> =
        (1..100).filter(|node| sit(&uploads, 0, *node).map(std::mem::forget).is_ok()).collect();
    assert_eq!(seats, [1, 10, 19], "after eight and after sixteen");
    assert!(uploads.lock().sent_on.get(&(BLOB, AFTER_FIRST)).is_some_and(|sent| sent.len() <= CROWD * MOST));
}

#[test]
fn who_was_sent_on_in_vain_gets_a_seat() {
    let uploads = Arc::new(Uploads::new(16));
    let _first = sit(&uploads, 0, 1).expect("a seat");
    for node in 2..5 {
        assert_eq!(sit(&uploads, 0, node).expect_err("it is sent on"), [1]);
    }
    let _back = [sit(&uploads, 0, 2).expect("it came back"), sit(&uploads, 0, 3).expect("it came back")];
    assert_eq!(sit(&uploads, 0, 4).expect_err("these are the most"), [1, 2, 3]);
    assert_eq!(sit(&uploads, 1, 4).expect("another chunk").chunk.1, AFTER_FIRST + 1);
}

#[test]
fn who_takes_nothing_is_in_nobodys_way() {
    let uploads = Arc::new(Uploads::new(16));
    let first = sit(&uploads, 0, 1).expect("a seat");
    first.given(true);
    assert_eq!(sit(&uploads, 0, 2).expect_err("1 takes it"), [1]);
    let long_ago = Instant::now().checked_sub(STUCK + Duration::from_millis(1)).expect("after the boot");
    uploads.lock().seats.get_mut(&(BLOB, AFTER_FIRST)).expect("taken")[0].given = Some(long_ago);
    let second = sit(&uploads, 0, 3).expect("1 is stuck");
    assert_eq!(sit(&uploads, 0, 4).expect_err("3 takes it"), [3]);
    first.given(false);
    drop(second);
    assert_eq!(sit(&uploads, 0, 5).expect_err("1 goes on"), [1]);
}

#[test]
fn who_only_takes_is_in_nobodys_way() {
    let uploads = Arc::new(Uploads::new(16));
    let _takers: Vec<Seated> = (100..110).map(|n| sit(&uploads, 0, n).expect("a seat")).collect();
    let _server = sit(&uploads, 0, 1).expect("a seat");
    assert_eq!(sit(&uploads, 0, 4).expect_err("one serves"), [1]);
    assert_eq!(sit(&uploads, 0, 110).expect_err("it need not be served from here either"), [1]);
    assert_eq!(others(&uploads, 0, 9), [1]);
}

#[tokio::test]
async fn a_seat_is_kept_for_who_is_to_ask_again() {
    let uploads = Arc::new(Uploads::new(16));
    sit(&uploads, 0, 1).expect("a seat").again();
    assert_eq!(sit(&uploads, 0, 4).expect_err("it comes back"), [1]);
    sit(&uploads, 0, 1).expect("its own seat").again();
    tokio::time::sleep(LINGER + Duration::from_millis(50)).await;
    drop(sit(&uploads, 0, 5).expect("it did not"));
    assert!(uploads.lock().seats.is_empty(), "nothing is left behind");
}

#[tokio::test]
async fn slots_are_given_in_the_order_of_asking() {
    let uploads = Arc::new(Uploads::new(1));
    let held = uploads.slot(None).await.expect("a slot");
    assert_eq!(uploads.free(), 0);
    assert!(uploads.slot(None).await.is_none());
    let soon = Instant::now() + Duration::from_millis(30);
    assert!(uploads.slot(Some(soon)).await.is_none(), "not in time");
    let later = Instant::now() + Duration::from_secs(30);
    let waiter = tokio::spawn({
        let uploads = uploads.clone();
        async move { uploads.slot(Some(later)).await.is_some() }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(held);
    assert!(waiter.await.expect("no panic"));
    assert_eq!(uploads.free(), 1);
}

#[test]
fn memory_is_bounded() {
    let uploads = Arc::new(Uploads::new(16));
    for idx in 0..3 * RECENT.get() as u64 {
        for node in 1..6 {
            sit(&uploads, idx, node).expect("a seat").served();
        }
        sit(&uploads, idx, 6).expect("a seat").again();
    }
    let mut state = uploads.lock();
    assert!(state.sent_on.len() <= RECENT.get());
    assert_eq!(state.recent.len(), RECENT.get());
    assert!(state.recent.iter().all(|(_, nodes)| nodes.len() == MOST));
    for seats in state.seats.values_mut().flatten() {
        seats.until = Instant::now() - Duration::from_millis(1);
    }
    drop(state);
    drop(sit(&uploads, 0, 1).expect("a seat"));
    assert!(uploads.lock().seats.len() <= 1);
}

#[tokio::test]
async fn first_chunks_go_before_the_others_for_a_while() {
    let uploads = Uploads::new(16);
    let (mut before, first) = (uploads.goes(7), uploads.goes(FIRST));
    let mut after = uploads.goes(8);
    let waits = |goes: &mut Goes| goes.wait().now_or_never().is_none();
    assert!(waits(&mut before) && waits(&mut after), "those that were being sent, too");
    assert!(!waits(&mut uploads.goes(FIRST)), "one first chunk does not wait for another");
    let begun = Instant::now();
    tokio::join!(after.wait(), async {
        sleep(LETS_PASS / 7).await;
        drop(first);
    });
    assert!((LETS_PASS / 7..LETS_PASS).contains(&begun.elapsed()), "as soon as it is sent");
    assert!(!waits(&mut before) && !waits(&mut after));
    // Who sends first chunks for ever does not stop the others.
    let _first = uploads.goes(FIRST);
    let begun = Instant::now();
    after.wait().await;
    assert!(begun.elapsed() < LETS_PASS, "what it waited before counts");
    assert!(!waits(&mut after), "it has let enough pass");
}

#[tokio::test]
async fn at_the_first_chunk_are_more_seats_and_who_is_slow_does_not_count() {
    let uploads = Arc::new(Uploads::new(16));
    let slow = [1, 2].map(|node| sit_at(&uploads, FIRST, node).expect("a seat"));
    let other = sit(&uploads, 0, 1).expect("a seat");
    slow.iter().chain([&other]).for_each(|seat| seat.given(false));
    assert_eq!(sit_at(&uploads, FIRST, 3).expect_err("it is sent on"), [1, 2]);
    sleep(SLOW_AT_FIRST + Duration::from_millis(50)).await;
    let _third = sit_at(&uploads, FIRST, 4).expect("both are slow");
    assert_eq!(sit_at(&uploads, FIRST, 5).expect_err("these are the most"), [4]);
    assert_eq!(sit(&uploads, 0, 2).expect_err("at the other chunks there is time"), [1]);
}
