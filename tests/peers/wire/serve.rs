//! One node serves another: chunks, slots, waiting, fills, its end.

use super::*;
use tokio::time::Instant;

const LEN: usize = (1 << 20) + 77;
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_chunk_comes_as_it_is_held() {
    let (_, n) = nodes(2).await;
    n[0].store.put(3, content(3, LEN));
    let got = n[1].client.fetch(BLOB, 3, LEN as u32, &[n[0].holder()], SOON).await.expect("held");
    assert_eq!(got.from, n[0].id);
    assert_eq!(got.hash, Some(*blake3::hash(&content(3, LEN)).as_bytes()));
    assert!(got.verified);
    assert_eq!(collect(got).await.expect("its bytes"), content(3, LEN));
    until("the server counts it", || n[0].server.stats().chunks == 1).await;
    let stats = n[0].server.stats();
    assert_eq!((stats.bytes_up, stats.requests, stats.slots_free), (LEN as u64, 1, 16));
    assert_eq!(n[0].server.sent_to(), [(n[1].id, LEN as u64)]);
    let (node, stats) = n[1].client.stats()[0];
    assert_eq!((node, stats.bytes, stats.chunks, stats.requests), (n[0].id, LEN as u64, 1, 1));
    assert_eq!(n[1].client.received().0, LEN as u64);
    let given = n[1].client.given(BLOB, 3).expect("remembered");
    assert_eq!(given.nodes, [n[0].id]);
}

#[tokio::test]
async fn what_is_not_held_is_said_at_once_and_told_to_the_tracker() {
    let (town, n) = nodes(2).await;
    let e = n[1].client.fetch(BLOB, 3, 9, &[n[0].holder()], SOON).await.expect_err("absent");
    assert_eq!(e.kind(), Kind::NotFound);
    assert!(e.to_string().contains(&n[0].id.to_string()), "{e}");
    assert_eq!(*lock(&town.stale), [(n[0].id, 3)]);
    let e = n[1].client.fetch(BLOB, 3, 9, &[], SOON).await.expect_err("nobody");
    assert_eq!(e.kind(), Kind::NotFound);
    let e = n[1].client.fetch(BLOB, 3, 9, &[n[1].holder()], SOON).await.expect_err("itself");
    assert_eq!(e.kind(), Kind::NotFound);
}

#[tokio::test]
async fn connections_are_kept_for_the_next_request() {
    let (_, n) = nodes(2).await;
    for idx in 0..20 {
        n[0].store.put(idx, content(idx, LEN));
        let got = n[1].client.fetch(BLOB, idx, LEN as u32, &[n[0].holder()], SOON).await.expect("held");
        collect(got).await.expect("its bytes");
    }
    assert!(n[0].server.stats().connections <= 2, "{:?}", n[0].server.stats());
}

#[tokio::test]
async fn over_the_slots_it_is_busy_and_who_is_patient_gets_one() {
    let town = Arc::new(Town::default());
    let server = Node::new(&town, Plan { slots: 2, ..Plan::default() }).await;
    let asker = Node::new(&town, Plan::default()).await;
    server.store.manners(|m| m.pause = Duration::from_millis(100));
    let len = 4 * PIECE;
    for idx in 0..3 {
        server.store.put(idx, content(idx, len));
    }
    let fetch =
        async |idx, patience| asker.client.fetch(BLOB, idx, len as u32, &[server.holder()], patience).await;
    let (first, second) = (fetch(0, SOON).await.expect("a slot"), fetch(1, SOON).await.expect("a slot"));
    assert_eq!(server.server.slots_free(), 0);
    let e = fetch(2, Duration::ZERO).await.expect_err("busy");
    assert_eq!(e.kind(), Kind::Unavailable);
    assert!(e.to_string().contains("busy") && e.to_string().contains(&server.id.to_string()), "{e}");
    let (first, second, third) =
        tokio::join!(collect(first), collect(second), async { collect(fetch(2, SOON).await?).await });
    assert_eq!(first.expect("bytes"), content(0, len));
    assert_eq!(second.expect("bytes"), content(1, len));
    assert_eq!(third.expect("bytes"), content(2, len));
    assert!(server.server.stats().busy >= 1);
    until("all slots are free again", || server.server.slots_free() == 2).await;
}

#[tokio::test]
async fn a_busy_node_names_others_that_have_the_chunk() {
    let town = Arc::new(Town::default());
    let first = Node::new(&town, Plan { slots: 1, ..Plan::default() }).await;
    let (second, asker) = (Node::new(&town, Plan::default()).await, Node::new(&town, Plan::default()).await);
    for idx in 0..2 {
        first.store.put(idx, content(idx, LEN));
    }
    let got = second.client.fetch(BLOB, 0, LEN as u32, &[first.holder()], SOON).await.expect("held");
    second.store.put(0, collect(got).await.expect("bytes"));
    first.store.manners(|m| m.stall_after = Some(0));
    let _held =
        second.client.fetch(BLOB, 1, LEN as u32, &[first.holder()], SOON).await.expect("the only slot");
    let got =
        asker.client.fetch(BLOB, 0, LEN as u32, &[first.holder()], SOON).await.expect("from the second");
    assert_eq!(got.from, second.id);
    assert_eq!(collect(got).await.expect("bytes"), content(0, LEN));
}

#[tokio::test]
async fn who_waits_gets_the_chunk_when_it_lands() {
    let (_, n) = nodes(2).await;
    n[0].store.begin(5);
    let owner = n[0].holder();
    let waiting = n[1].client.wait(BLOB, 5, LEN as u32, &owner, SOON);
    let landing = async {
        until("it waits", || n[0].store.waiting.load(Relaxed) == 1).await;
        assert_eq!(n[0].server.slots_free(), 16, "who waits takes no slot");
        // Longer than one slice of the client's waiting.
        tokio::time::sleep(Duration::from_millis(2300)).await;
        n[0].store.land(5, Some(content(5, LEN)));
    };
    let (got, ()) = tokio::join!(waiting, landing);
    assert_eq!(collect(got.expect("it came")).await.expect("bytes"), content(5, LEN));
    assert_eq!(n[0].store.waiting.load(Relaxed), 0);
}

#[tokio::test]
async fn a_wait_ends_with_the_transfer_and_with_the_limit() {
    let (_, n) = nodes(2).await;
    let wait = async |limit| n[1].client.wait(BLOB, 5, LEN as u32, &n[0].holder(), limit).await;
    let e = wait(SOON).await.expect_err("no transfer");
    assert_eq!(e.kind(), Kind::NotFound);
    n[0].store.begin(5);
    let start = Instant::now();
    let e = wait(Duration::from_millis(1500)).await.expect_err("it goes on");
    assert_eq!(e.kind(), Kind::TimedOut, "{e}");
    assert!((Duration::from_millis(1200)..Duration::from_secs(10)).contains(&start.elapsed()));
    let failing = async {
        until("it waits", || n[0].store.waiting.load(Relaxed) == 1).await;
        n[0].store.land(5, None);
    };
    let (result, ()) = tokio::join!(wait(SOON), failing);
    assert_eq!(result.expect_err("it failed").kind(), Kind::NotFound);
}

#[tokio::test]
async fn an_asker_that_goes_away_leaves_nothing_behind() {
    let (_, n) = nodes(2).await;
    n[0].store.begin(5);
    let client = n[1].client.clone();
    let holder = n[0].holder();
    let waiting = tokio::spawn(async move { client.wait(BLOB, 5, 9, &holder, SOON).await.map(drop) });
    until("it waits", || n[0].store.waiting.load(Relaxed) == 1).await;
    waiting.abort();
    until("the wait is over", || n[0].store.waiting.load(Relaxed) == 0).await;
    n[0].store.put(6, content(6, 8 << 20));
    n[0].store.manners(|m| m.pause = Duration::from_millis(20));
    let got = n[1].client.fetch(BLOB, 6, 8 << 20, &[n[0].holder()], SOON).await.expect("held");
    assert_eq!(n[0].server.slots_free(), 15);
    drop(got);
    until("the slot is free", || n[0].server.slots_free() == 16).await;
}

#[tokio::test]
async fn an_owner_that_is_frozen_is_found_out() {
    let town = Arc::new(Town::default());
    let times = Times { answer: Duration::from_millis(300), ..Times::default() };
    let asker = Node::new(&town, Plan { times, ..Plan::default() }).await;
    // The kernel takes the connection and the request; nobody reads them.
    let frozen = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let addr = frozen.local_addr().expect("an address");
    let owner = Holder { node: NodeId(7), addr, zone: String::new(), slots_free: 1 };
    let start = Instant::now();
    let e = asker.client.wait(BLOB, 0, 9, &owner, Duration::from_secs(60)).await.expect_err("frozen");
    assert!(e.kind().is_transient(), "{e}");
    assert!(start.elapsed() < Duration::from_secs(10), "after one slice: {:?}", start.elapsed());
    drop(frozen);
    let start = Instant::now();
    let e = asker.client.wait(BLOB, 0, 9, &owner, Duration::from_secs(60)).await.expect_err("gone");
    assert_eq!(e.kind(), Kind::Unavailable, "{e}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn fills_are_done_by_who_may() {
    let (_, n) = nodes(2).await;
    let fill = async |limit| n[1].client.ask_fill(&n[0].holder(), BLOB, 100 << 20, 7, limit).await;
    fill(SOON).await.expect("done");
    assert_eq!(*lock(&n[0].store.fills), [(BLOB, 100 << 20, 7)]);
    for kind in [Kind::Access, Kind::NotFound, Kind::NotPermitted, Kind::Unavailable] {
        n[0].store.manners(|m| m.fill = Some((kind, "the Hub says no".into())));
        let e = fill(SOON).await.expect_err("refused");
        assert_eq!(e.kind(), kind);
        assert!(
            e.to_string().contains("the Hub says no") && e.to_string().contains(&n[0].id.to_string()),
            "{e}"
        );
    }
    n[0].store.manners(|m| m.fill_takes = Duration::from_secs(60));
    let e = fill(Duration::from_millis(200)).await.expect_err("slow");
    assert_eq!(e.kind(), Kind::TimedOut, "{e}");
}

#[tokio::test]
async fn fills_for_others_are_so_many_at_a_time() {
    let town = Arc::new(Town::default());
    let server = Node::new(&town, Plan { slots: 1, ..Plan::default() }).await;
    let asker = Node::new(&town, Plan::default()).await;
    server.store.manners(|m| m.fill_takes = Duration::from_millis(500));
    let holder = server.holder();
    let one = asker.client.ask_fill(&holder, BLOB, 100, 0, SOON);
    let two = async {
        until("the first is under way", || !lock(&server.store.fills).is_empty()).await;
        asker.client.ask_fill(&holder, BLOB, 100, 1, SOON).await
    };
    let (one, two) = tokio::join!(one, two);
    one.expect("done");
    assert_eq!(two.expect_err("no place").kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_node_that_stops_ends_what_it_began() {
    let (_, mut n) = nodes(2).await;
    let len = 6 * PIECE;
    n[0].store.put(0, content(0, len));
    n[0].store.manners(|m| m.pause = Duration::from_millis(30));
    let holder = n[0].holder();
    let got =
        n[1].client.fetch(BLOB, 0, len as u32, std::slice::from_ref(&holder), SOON).await.expect("held");
    let server = n.remove(0);
    let ((), bytes) = tokio::join!(server.server.stop(), collect(got));
    assert_eq!(bytes.expect("to its end"), content(0, len));
    let e = n[0].client.fetch(BLOB, 0, len as u32, &[holder], SOON).await.expect_err("gone");
    assert_eq!(e.kind(), Kind::Unavailable, "{e}");
}

#[tokio::test]
async fn a_node_that_stops_does_not_wait_for_ever() {
    let (_, mut n) = nodes(2).await;
    n[0].store.put(0, content(0, 8 << 20));
    n[0].store.manners(|m| m.stall_after = Some(PIECE));
    let got = n[1].client.fetch(BLOB, 0, 8 << 20, &[n[0].holder()], SOON).await.expect("held");
    let start = Instant::now();
    let ((), bytes) = tokio::join!(n.remove(0).server.stop(), collect(got));
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(bytes.expect_err("cut").kind().is_transient());
}

#[tokio::test]
async fn a_node_started_anew_at_the_same_place_is_another_one() {
    let town = Arc::new(Town::default());
    let asker = Node::new(&town, Plan::default()).await;
    let first = Node::new(&town, Plan::default()).await;
    first.store.put(0, content(0, LEN));
    let old = first.holder();
    collect(asker.client.fetch(BLOB, 0, LEN as u32, &[first.holder()], SOON).await.expect("held"))
        .await
        .expect("bytes");
    let Node { server, store, .. } = first;
    let listen = server.addr();
    server.stop().await;
    let second = Node::new(&town, Plan { listen, ..Plan::default() }).await;
    second.store.put(0, content(0, LEN));
    drop(store);
    let e = asker
        .client
        .fetch(BLOB, 0, LEN as u32, std::slice::from_ref(&old), SOON)
        .await
        .expect_err("another one");
    assert_eq!(e.kind(), Kind::NotFound, "{e}");
    assert_eq!(*lock(&town.stale), [(old.node, 0)]);
    assert_eq!(asker.client.ping(listen).await.expect("somebody"), second.id);
}

#[tokio::test]
async fn uploads_and_downloads_keep_to_their_limits() {
    for (upload, download) in [(Some(4 << 20), None), (None, Some(4 << 20))] {
        let town = Arc::new(Town::default());
        let server = Node::new(&town, Plan { upload, ..Plan::default() }).await;
        let asker = Node::new(&town, Plan { download, ..Plan::default() }).await;
        let len = 1 << 20;
        let start = Instant::now();
        let all = (0..3).map(|idx| {
            server.store.put(idx, content(idx, len));
            let (asker, holder) = (&asker, server.holder());
            async move { collect(asker.client.fetch(BLOB, idx, len as u32, &[holder], SOON).await?).await }
        });
        for (idx, bytes) in futures::future::join_all(all).await.into_iter().enumerate() {
            assert_eq!(bytes.expect("bytes"), content(idx as u64, len));
        }
        // 3 MiB at 4 MiB/s, less the burst.
        assert!(
            start.elapsed() > Duration::from_millis(600),
            "{upload:?} {download:?}: {:?}",
            start.elapsed()
        );
    }
}
