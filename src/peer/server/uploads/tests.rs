use std::net::SocketAddr;

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

fn sit(uploads: &Arc<Uploads>, idx: u64, node: u64) -> Result<Seated, Vec<u64>> {
    let nodes = |all: Vec<Holder>| all.iter().map(|h| h.node.0).collect();
    uploads.sit(BLOB, idx, NodeId(node), &Nodes).map_err(nodes)
}

fn others(uploads: &Uploads, idx: u64, node: u64) -> Vec<u64> {
    uploads.others(BLOB, idx, NodeId(node), &Nodes).iter().map(|h| h.node.0).collect()
}

#[test]
fn the_fourth_is_sent_to_the_three() {
    let uploads = Arc::new(Uploads::new(16));
    let first = sit(&uploads, 0, 1).expect("a seat");
    let _two = [sit(&uploads, 0, 2).expect("a seat"), sit(&uploads, 0, 3).expect("a seat")];
    assert_eq!(sit(&uploads, 0, 4).expect_err("three sit"), [1, 2, 3]);
    let mut second_of_1 = sit(&uploads, 0, 1).expect("it sits already");
    let _other = sit(&uploads, 1, 4).expect("another chunk");
    drop(first);
    assert!(sit(&uploads, 0, 4).is_err(), "1 still asks for it");
    second_of_1.served();
    drop(second_of_1);
    let fourth = sit(&uploads, 0, 4).expect("a seat is free");
    assert_eq!(others(&uploads, 0, 4), [1, 2, 3], "who got it, and who is getting it");
    drop(fourth);
}

#[test]
fn who_only_takes_is_in_nobodys_way() {
    let uploads = Arc::new(Uploads::new(16));
    let _takers: Vec<Seated> = (100..110).map(|n| sit(&uploads, 0, n).expect("a seat")).collect();
    let _servers: Vec<Seated> = (1..4).map(|n| sit(&uploads, 0, n).expect("a seat")).collect();
    assert_eq!(sit(&uploads, 0, 4).expect_err("three serve"), [1, 2, 3]);
    assert_eq!(sit(&uploads, 0, 110).expect_err("it need not be served from here either"), [1, 2, 3]);
    assert_eq!(others(&uploads, 0, 9), [1, 2, 3]);
}

#[tokio::test]
async fn a_seat_is_kept_for_who_is_to_ask_again() {
    let uploads = Arc::new(Uploads::new(16));
    for node in 1..4 {
        sit(&uploads, 0, node).expect("a seat").again();
    }
    assert_eq!(sit(&uploads, 0, 4).expect_err("they come back"), [1, 2, 3]);
    sit(&uploads, 0, 2).expect("its own seat").again();
    tokio::time::sleep(LINGER + Duration::from_millis(50)).await;
    drop(sit(&uploads, 0, 4).expect("they did not"));
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
    assert_eq!(state.recent.len(), RECENT.get());
    assert!(state.recent.iter().all(|(_, nodes)| nodes.len() == FAN_OUT));
    for seats in state.seats.values_mut().flatten() {
        seats.until = Instant::now() - Duration::from_millis(1);
    }
    drop(state);
    drop(sit(&uploads, 0, 1).expect("a seat"));
    assert!(uploads.lock().seats.len() <= 1);
}
