//! The client among several nodes: who is asked, who goes on when one stalls, fails or lies.

use super::*;
use tokio::time::Instant;

const LEN: usize = 8 * PIECE;
const SOON: Duration = Duration::from_secs(20);

/// One that asks, and some that hold chunk 0.
async fn world(holders: usize, times: Times) -> (Arc<Town>, Node, Vec<Node>) {
    let town = Arc::new(Town::default());
    let asker = Node::new(&town, Plan { times, ..Plan::default() }).await;
    let mut all = Vec::new();
    for _ in 0..holders {
        let node = Node::new(&town, Plan::default()).await;
        node.store.put(0, content(0, LEN));
        all.push(node);
    }
    (town, asker, all)
}

fn holders(nodes: &[Node]) -> Vec<Holder> {
    nodes.iter().map(Node::holder).collect()
}

async fn fetch(asker: &Node, from: &[Node]) -> Result<Bytes> {
    collect(asker.client.fetch(BLOB, 0, LEN as u32, &holders(from), SOON).await?).await
}

fn stats(asker: &Node, of: &Node) -> hfmount::peer::PeerStats {
    asker.client.stats().into_iter().find(|(n, _)| *n == of.id).map(|(_, s)| s).unwrap_or_default()
}

#[tokio::test]
async fn when_one_stalls_another_goes_on() {
    let (_, asker, n) = world(2, Times::default()).await;
    // Whoever is asked first stalls.
    n.iter().for_each(|n| n.store.manners(|m| m.stall_after = Some(3 * PIECE)));
    let got = asker.client.fetch(BLOB, 0, LEN as u32, &holders(&n), SOON).await.expect("held");
    let (slow, quick) = if got.from == n[0].id { (&n[0], &n[1]) } else { (&n[1], &n[0]) };
    quick.store.manners(|m| m.stall_after = None);
    let start = Instant::now();
    assert_eq!(collect(got).await.expect("bytes"), content(0, LEN));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "long before the transfer is given up: {:?}",
        start.elapsed()
    );
    let sent = quick.server.stats().bytes_up;
    assert!(sent >= (LEN - 3 * PIECE) as u64 && sent < LEN as u64, "only the rest came from it: {sent}");
    assert_eq!(asker.client.given(BLOB, 0).expect("remembered").nodes, [slow.id, quick.id]);
    until("the slow one's slot is free", || slow.server.slots_free() == 16).await;
}

#[tokio::test]
async fn when_the_only_one_stalls_who_has_got_it_since_goes_on() {
    let (town, asker, n) = world(2, Times::default()).await;
    let (first, later) = (&n[0], &n[1]);
    first.store.manners(|m| m.stall_after = Some(3 * PIECE));
    let got = asker.client.fetch(BLOB, 0, LEN as u32, &[first.holder()], SOON).await.expect("held");
    // The one that gives it is named as well, as the tracker would.
    town.tell(0, first.holder());
    let news = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        town.tell(0, later.holder());
    };
    let start = Instant::now();
    let (bytes, ()) = tokio::join!(collect(got), news);
    assert_eq!(bytes.expect("bytes"), content(0, LEN));
    assert!(start.elapsed() < Duration::from_secs(8), "long before it is given up: {:?}", start.elapsed());
    assert_eq!(asker.client.given(BLOB, 0).expect("remembered").nodes, [first.id, later.id]);
}

#[tokio::test]
async fn who_does_not_listen_is_told_of_and_who_is_silent_is_not() {
    let times = Times { answer: Duration::from_millis(300), ..Times::default() };
    let (town, asker, n) = world(1, times).await;
    let gone = Node::new(&town, Plan::default()).await;
    let (id, holder) = (gone.id, gone.holder());
    drop(gone);
    let port = holder.addr;
    until("nobody listens there", || std::net::TcpStream::connect(port).is_err()).await;
    n[0].store.manners(|m| m.hangs = true);
    fetch(&asker, &n).await.expect_err("silent");
    assert_eq!(*lock(&town.refused), []);
    asker.client.fetch(BLOB, 0, LEN as u32, &[holder], SOON).await.map(drop).expect_err("gone");
    assert_eq!(*lock(&town.refused), [id]);
}

#[tokio::test]
async fn when_one_does_not_answer_another_does() {
    let (_, asker, n) = world(2, Times::default()).await;
    n.iter().for_each(|n| n.store.manners(|m| m.hangs = true));
    let all = holders(&n);
    let get = asker.client.fetch(BLOB, 0, LEN as u32, &all, SOON);
    let wake = async {
        until("one is asked", || n.iter().any(|n| n.store.asked.load(Relaxed) == 1)).await;
        n.iter()
            .filter(|n| n.store.asked.load(Relaxed) == 0)
            .for_each(|n| n.store.manners(|m| m.hangs = false));
    };
    let start = Instant::now();
    let (got, ()) = tokio::join!(get, wake);
    assert_eq!(collect(got.expect("from the other")).await.expect("bytes"), content(0, LEN));
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "before the first one's time is over: {:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn when_one_fails_another_goes_on_and_without_another_the_error_names_it() {
    let (_, asker, n) = world(2, Times::default()).await;
    n.iter().for_each(|n| n.store.manners(|m| m.cut_after = Some(5 * PIECE)));
    let got = asker.client.fetch(BLOB, 0, LEN as u32, &holders(&n), SOON).await.expect("held");
    let other = if got.from == n[0].id { &n[1] } else { &n[0] };
    other.store.manners(|m| m.cut_after = None);
    assert_eq!(collect(got).await.expect("bytes"), content(0, LEN));

    let lonely = Node::new(&asker_town(&asker), Plan::default()).await;
    let bad = if other.id == n[0].id { &n[1] } else { &n[0] };
    let e = fetch(&lonely, std::slice::from_ref(bad)).await.expect_err("cut");
    assert!(e.kind().is_transient(), "{e}");
    assert!(e.to_string().contains(&bad.id.to_string()), "{e}");
    assert_eq!(stats(&lonely, bad).failures, 1);
}

fn asker_town(node: &Node) -> Arc<Town> {
    node.view.town.clone()
}

#[tokio::test]
async fn a_dead_holder_is_passed_over_and_asked_last_next_time() {
    let (_, asker, mut n) = world(3, Times::default()).await;
    let dead = n.remove(0);
    let mut all = holders(&n);
    all.insert(0, dead.holder());
    dead.server.stop().await;
    for _ in 0..10 {
        let got = asker.client.fetch(BLOB, 0, LEN as u32, &all, SOON).await.expect("held by two others");
        assert_eq!(collect(got).await.expect("bytes"), content(0, LEN));
    }
    let (_, stats) = asker
        .client
        .stats()
        .into_iter()
        .find(|(id, _)| *id == dead.id)
        .unwrap_or((dead.id, Default::default()));
    assert!(stats.requests <= 3, "{stats:?}");
}

#[tokio::test]
async fn two_that_have_different_bytes_are_never_mixed() {
    let (_, asker, n) = world(2, Times::default()).await;
    n.iter().for_each(|n| n.store.manners(|m| m.cut_after = Some(2 * PIECE)));
    let got = asker.client.fetch(BLOB, 0, LEN as u32, &holders(&n), SOON).await.expect("held");
    let other = if got.from == n[0].id { &n[1] } else { &n[0] };
    other.store.manners(|m| (m.cut_after, m.different) = (None, true));
    let e = collect(got).await.expect_err("the other has something else");
    assert!(e.kind().is_transient(), "{e}");
}

#[tokio::test]
async fn a_chunk_of_another_length_is_no_chunk() {
    let (_, asker, n) = world(2, Times::default()).await;
    let wrong = |node: &Node| node.store.manners(|m| m.longer = 1);
    n.iter().for_each(wrong);
    let e = fetch(&asker, &n).await.expect_err("none is right");
    assert!(e.kind().is_transient(), "what peers say is no proof: {e}");
    assert!(n.iter().all(|n| stats(&asker, n).blocked));
    let e = fetch(&asker, &n).await.expect_err("both are left alone");
    assert_eq!(e.kind(), Kind::NotFound);

    let fresh = Node::new(&asker_town(&asker), Plan::default()).await;
    n[1].store.manners(|m| m.longer = 0);
    assert_eq!(fetch(&fresh, &n).await.expect("from the other"), content(0, LEN));
}

#[tokio::test]
async fn who_gave_wrong_bytes_is_left_alone() {
    let (_, asker, n) = world(2, Times::default()).await;
    n[0].store.manners(|m| m.rotten = true);
    let got = asker.client.fetch(BLOB, 0, LEN as u32, &[n[0].holder()], SOON).await.expect("held");
    let hash = got.hash;
    let bytes = collect(got).await.expect("bytes");
    assert_ne!(Some(*blake3::hash(&bytes).as_bytes()), hash, "the caller sees it");
    assert_eq!(asker.client.wrong(BLOB, 0), [n[0].id]);
    for _ in 0..5 {
        assert_eq!(fetch(&asker, &n).await.expect("from the other"), content(0, LEN));
    }
    assert_eq!(n[0].server.stats().requests, 1);
    assert_eq!(asker.client.wrong(BLOB, 7), [], "of which nothing is known");
}

#[tokio::test]
async fn a_transfer_that_gives_nothing_ends() {
    let times = Times { progress: Duration::from_millis(600), ..Times::default() };
    let (_, asker, n) = world(1, times).await;
    n[0].store.manners(|m| m.stall_after = Some(PIECE));
    let start = Instant::now();
    let e = fetch(&asker, &n).await.expect_err("stalled");
    assert_eq!(e.kind(), Kind::TimedOut);
    assert!(e.to_string().contains(&n[0].id.to_string()), "{e}");
    assert!(
        (Duration::from_millis(500)..Duration::from_secs(6)).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test]
async fn a_reader_that_rests_loses_nothing() {
    let times = Times { progress: Duration::from_millis(500), ..Times::default() };
    let (_, asker, n) = world(1, times).await;
    let mut got = asker.client.fetch(BLOB, 0, LEN as u32, &holders(&n), SOON).await.expect("held");
    let mut all = BytesMut::new();
    while let Some(piece) = got.bytes.next().await {
        all.extend_from_slice(&piece.expect("a piece"));
        if all.len() < 4 * PIECE {
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    }
    assert_eq!(all, content(0, LEN));
}

#[tokio::test]
async fn many_chunks_come_from_many_nodes() {
    let (_, asker, n) = world(3, Times::default()).await;
    for idx in 0..60 {
        n.iter().for_each(|n| n.store.put(idx, content(idx, PIECE)));
        let got = asker.client.fetch(BLOB, idx, PIECE as u32, &holders(&n), SOON).await.expect("held");
        assert_eq!(collect(got).await.expect("bytes"), content(idx, PIECE));
    }
    let sent: Vec<u64> = n.iter().map(|n| n.server.stats().chunks).collect();
    assert!(sent.iter().filter(|s| **s >= 5).count() >= 2, "not all from one: {sent:?}");
}

#[tokio::test]
async fn a_holder_that_is_free_goes_before_those_that_a_busy_one_names() {
    let town = Arc::new(Town::default());
    let busy = Node::new(&town, Plan { slots: 1, ..Plan::default() }).await;
    let (free, named) = (Node::new(&town, Plan::default()).await, Node::new(&town, Plan::default()).await);
    let asker = Node::new(&town, Plan::default()).await;
    busy.store.put(0, content(0, LEN));
    free.store.put(0, content(0, LEN));
    busy.store.manners(|m| m.stall_after = Some(PIECE));
    named.store.begin(0);
    let got = named.client.fetch(BLOB, 0, LEN as u32, &[busy.holder()], SOON).await.expect("the only slot");
    // The better one by its word is asked first.
    let all = [busy.holder(), Holder { slots_free: 0, ..free.holder() }];
    let other = asker.client.fetch(BLOB, 0, LEN as u32, &all, SOON).await.expect("from the free one");
    let stats = busy.server.stats();
    assert_eq!((other.from, stats.busy + stats.redirected), (free.id, 1));
    drop(got);
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_is_no_failure() {
    let town = Arc::new(Town::default());
    let server = Node::new(&town, Plan { connections: Some(1), ..Plan::default() }).await;
    let (one, two) = (Node::new(&town, Plan::default()).await, Node::new(&town, Plan::default()).await);
    server.store.put(0, content(0, LEN));
    // Each takes the place of the other's connection.
    for _ in 0..20 {
        for asker in [&one, &two] {
            until("the connection may be cut", || server.server.slots_free() == 16).await;
            assert_eq!(fetch(asker, std::slice::from_ref(&server)).await.expect("served"), content(0, LEN));
        }
    }
    assert!([&one, &two].iter().all(|n| stats(n, &server).failures == 0));
}
