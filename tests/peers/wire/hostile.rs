//! Garbage, oversized, slow and half-open connections cost little and are cut.

use super::raw::{Raw, answer, connect, is_closed, send};
use super::*;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

const LEN: usize = 1000;
const SOON: Duration = Duration::from_secs(10);

fn hasty() -> Plan {
    let ms = Duration::from_millis;
    Plan { patience: Patience { head: ms(400), idle: ms(800), write: ms(600) }, ..Plan::default() }
}

async fn server(plan: Plan) -> (Arc<Town>, Node) {
    let town = Arc::new(Town::default());
    let node = Node::new(&town, plan).await;
    node.store.put(0, content(0, LEN));
    (town, node)
}

async fn still_serves(n: &Node) {
    assert_eq!(send(n, &Raw::chunk(n, 0).text()).await.0, 200, "it still serves");
}

#[tokio::test]
async fn garbage_is_cut() {
    let (_, n) = server(hasty()).await;
    let good = Raw::chunk(&n, 0).text();
    let mut cases: Vec<Vec<u8>> = vec![
        b"\0\0\0\0".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"GET http://other/v1/ping HTTP/1.1\r\nHost: other\r\n\r\n".to_vec(),
        b"GET /v1/ping HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n".to_vec(),
        b"POST /v1/fill HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n".to_vec(),
        [&b"GET /v1/ping HTTP/1.1\r\n"[..], &b"A: b\r\n".repeat(200), b"\r\n"].concat(),
    ];
    let mut runner = TestRunner::deterministic();
    for _ in 0..60 {
        let noise = proptest::collection::vec(proptest::num::u8::ANY, 1..200);
        cases.push(noise.new_tree(&mut runner).expect("a value").current());
        // A good request with a byte changed.
        let (at, byte) =
            (0..good.len(), proptest::num::u8::ANY).new_tree(&mut runner).expect("a value").current();
        let mut changed = good.clone();
        changed[at] = byte;
        cases.push(changed);
    }
    let streams = cases.iter().map(async |case| {
        let mut stream = connect(&n).await;
        // It may be closed before all is written.
        let _ = stream.write_all(case).await;
        assert!(is_closed(&mut stream, SOON).await, "{:?}", String::from_utf8_lossy(case));
    });
    futures::future::join_all(streams).await;
    until("no connection is left", || n.server.stats().connections == 0).await;
    still_serves(&n).await;
}

#[tokio::test]
async fn heads_have_an_end() {
    let (_, n) = server(hasty()).await;
    for line in ["A: ".to_owned() + &"b".repeat(1000) + "\r\n", "x".repeat(1000)] {
        let mut stream = connect(&n).await;
        let mut sent = 0;
        let head = b"GET /v1/ping HTTP/1.1\r\n";
        stream.write_all(head).await.expect("sent");
        while sent < 4 << 20 {
            match stream.write(line.as_bytes()).await {
                Ok(n) if n > 0 => sent += n,
                _ => break,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(sent < 1 << 20, "{sent} bytes of one head were taken");
        assert!(is_closed(&mut stream, SOON).await);
    }
    still_serves(&n).await;
}

#[tokio::test]
async fn who_says_nothing_or_says_it_slowly_is_cut() {
    let (_, n) = server(hasty()).await;
    let start = Instant::now();
    let mut silent = connect(&n).await;
    assert!(is_closed(&mut silent, SOON).await);
    assert!(start.elapsed() >= Duration::from_millis(700), "not before its time: {:?}", start.elapsed());

    let start = Instant::now();
    let mut slow = connect(&n).await;
    for byte in Raw::chunk(&n, 0).text() {
        if slow.write_all(&[byte]).await.is_err() || start.elapsed() > SOON {
            break;
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "byte by byte it would take 9 s: {:?}",
        start.elapsed()
    );
    assert!(is_closed(&mut slow, SOON).await);

    // A body that does not come.
    let fill =
        Raw { method: "POST", target: "/v1/fill?wait=5".into(), body: vec![b' '; 100], ..Raw::chunk(&n, 0) };
    let mut text = fill.text();
    text.truncate(text.len() - 50);
    let mut half = connect(&n).await;
    half.write_all(&text).await.expect("sent");
    assert!(is_closed(&mut half, SOON).await);
    until("no connection is left", || n.server.stats().connections == 0).await;
    assert!(n.server.stats().cut >= 1, "{:?}", n.server.stats());
    still_serves(&n).await;
}

#[tokio::test]
async fn who_does_not_take_the_answer_is_cut_and_its_slot_is_free() {
    let (_, n) = server(hasty()).await;
    n.store.put(1, content(1, 32 << 20));
    let mut stream = connect(&n).await;
    stream.write_all(&Raw::chunk(&n, 1).text()).await.expect("sent");
    until("it is being sent", || n.server.slots_free() == 15).await;
    let start = Instant::now();
    until("it is cut", || n.server.slots_free() == 16).await;
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert_eq!(n.server.stats().chunks, 0);
    drop(stream);
}

#[tokio::test]
async fn who_takes_it_slowly_but_takes_it_is_served() {
    // A busy machine may take the reader's turn away for a second.
    let ms = Duration::from_millis;
    let patience = Patience { head: ms(3000), idle: ms(3000), write: ms(3000) };
    let (_, n) = server(Plan { patience, ..Plan::default() }).await;
    let len = 8 << 20;
    n.store.put(1, content(1, len));
    let mut stream = connect(&n).await;
    stream.write_all(&Raw::chunk(&n, 1).text()).await.expect("sent");
    let mut all = 0;
    let mut buf = vec![0; 64 << 10];
    let start = Instant::now();
    while all < len && start.elapsed() < Duration::from_secs(60) {
        use tokio::io::AsyncReadExt;
        match stream.read(&mut buf).await.expect("not cut") {
            0 => break,
            n => all += n,
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert!(all >= len, "{all} of {len}");
    assert!(start.elapsed() > Duration::from_millis(3500), "longer than any one bound");
}

#[tokio::test]
async fn a_kept_connection_may_rest_between_requests() {
    let (_, n) = server(hasty()).await;
    let mut stream = connect(&n).await;
    for _ in 0..3 {
        stream.write_all(&Raw::chunk(&n, 0).text()).await.expect("sent");
        assert_eq!(answer(&mut stream).await.0, 200);
        // Longer than a head may take.
        tokio::time::sleep(Duration::from_millis(550)).await;
    }
    assert!(is_closed(&mut stream, SOON).await, "but not for ever");
}

#[tokio::test]
async fn connections_are_bounded_and_strangers_go_first() {
    let plan = Plan { connections: Some(8), ..Plan::default() };
    let (town, n) = server(plan).await;
    let friend = Node::new(&town, Plan::default()).await;
    let fetch = async || collect(friend.client.fetch(BLOB, 0, LEN as u32, &[n.holder()], SOON).await?).await;
    fetch().await.expect("served");
    let mut crowd: Vec<TcpStream> = Vec::new();
    for _ in 0..60 {
        crowd.push(connect(&n).await);
    }
    until("all were seen", || n.server.stats().cut >= 52).await;
    assert!(n.server.stats().connections <= 8);
    for _ in 0..5 {
        assert_eq!(fetch().await.expect("served"), content(0, LEN));
    }
    let closed =
        futures::future::join_all(crowd.iter_mut().map(|s| is_closed(s, Duration::from_millis(200)))).await;
    assert!(closed.iter().filter(|c| **c).count() >= 50);
}

#[tokio::test]
async fn those_that_are_being_answered_are_not_cut_for_others() {
    let plan = Plan { connections: Some(3), ..Plan::default() };
    let (town, n) = server(plan).await;
    n.store.put(1, content(1, 12 * PIECE));
    n.store.manners(|m| m.pause = Duration::from_millis(60));
    let friends = [Node::new(&town, Plan::default()).await, Node::new(&town, Plan::default()).await];
    let mut gets = Vec::new();
    for friend in &friends {
        let got = friend.client.fetch(BLOB, 1, 12 * PIECE as u32, &[n.holder()], SOON).await;
        gets.push(collect(got.expect("served")));
    }
    let storm = async {
        for _ in 0..40 {
            let _stream = connect(&n).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let (all, ()) = tokio::join!(futures::future::join_all(gets), storm);
    for bytes in all {
        assert_eq!(bytes.expect("to its end"), content(1, 12 * PIECE));
    }
}

#[tokio::test]
async fn requests_in_a_row_without_waiting_are_answered_in_order() {
    let (_, n) = server(hasty()).await;
    let mut stream = connect(&n).await;
    let both = [Raw::chunk(&n, 0).text(), Raw::chunk(&n, 9).text()].concat();
    stream.write_all(&both).await.expect("sent");
    let mut all = Vec::new();
    let read = async {
        use tokio::io::AsyncReadExt;
        let mut buf = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buf).await {
            all.extend_from_slice(&buf[..n]);
        }
    };
    tokio::time::timeout(SOON, read).await.expect("closed in time");
    let text = String::from_utf8_lossy(&all);
    assert!(text.starts_with("HTTP/1.1 200"), "{text:.40}");
    assert_eq!(text.matches("HTTP/1.1 404").count(), 1);
}

/// The memory of a server that is shouted at: what the process has, before and after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn noise_costs_no_memory() {
    let (_, n) = server(Plan::default()).await;
    let rss = || {
        let text = std::fs::read_to_string("/proc/self/statm").expect("statm");
        text.split(' ').nth(1).and_then(|p| p.parse::<u64>().ok()).expect("pages") * 4096
    };
    let before = rss();
    let noise = vec![b'x'; 7 << 10];
    for _ in 0..5 {
        let all = (0..200).map(async |_| {
            let mut stream = connect(&n).await;
            let _ = stream.write_all(&noise).await;
            stream
        });
        let _open = futures::future::join_all(all).await;
        assert!(n.server.stats().connections <= 128, "{:?}", n.server.stats());
    }
    let grown = rss().saturating_sub(before);
    // Other tests run in this process too: a loose bound, far below 1000 × what hyper would take without one.
    assert!(grown < 128 << 20, "{grown} bytes");
    still_serves(&n).await;
}
