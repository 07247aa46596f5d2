//! Who has not the key gets nothing and learns nothing.

use super::raw::{Raw, answer, connect, send};
use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LEN: usize = 1000;
const SOON: Duration = Duration::from_secs(10);

async fn server() -> (Arc<Town>, Node) {
    let (town, mut n) = nodes(1).await;
    n[0].store.put(0, content(0, LEN));
    (town, n.remove(0))
}

#[tokio::test]
async fn a_client_by_the_description_is_served() {
    let (_, n) = server().await;
    let (status, head, body) = send(&n, &Raw::chunk(&n, 0).text()).await;
    assert_eq!(status, 200);
    assert_eq!(body, content(0, LEN));
    let hash = blake3::hash(&body).to_hex();
    assert!(head.contains(&format!("hfm-hash: {hash}")), "{head}");
    assert!(head.contains("hfm-verified: 1") && head.contains("hfm-mac: "), "{head}");
    assert!(head.contains(&format!("hfm-node: {}", n.id)), "{head}");
    let part = Raw { target: format!("{}?from=900", Raw::chunk(&n, 0).target), ..Raw::chunk(&n, 0) };
    let (status, head, body) = send(&n, &part.text()).await;
    assert_eq!((status, &body[..]), (200, &content(0, LEN)[900..]));
    assert!(head.contains(&format!("hfm-hash: {hash}")), "of the whole chunk: {head}");
    let beyond = Raw { target: format!("{}?from=1000", Raw::chunk(&n, 0).target), ..Raw::chunk(&n, 0) };
    assert_eq!(send(&n, &beyond.text()).await.0, 400);
    assert_eq!(send(&n, &Raw::chunk(&n, 1).text()).await.0, 404);
}

#[tokio::test]
async fn to_strangers_all_requests_look_alike() {
    let (town, n) = server().await;
    let good = Raw::chunk(&n, 0);
    let strange = PeerKey::new(&[43; 32]);
    let nothing = b"HTTP/1.1 401 Unauthorized\r\n";
    let mut answers = Vec::new();
    let mut texts = vec![
        ("no pass", format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", good.target).into_bytes()),
        ("no such path", b"GET /etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("ping", b"GET /v1/ping HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("a basic pass", b"GET /v1/ping HTTP/1.1\r\nHost: x\r\nAuthorization: Basic eDp5\r\n\r\n".to_vec()),
        ("another key", Raw { key: strange.clone(), ..good.clone() }.text()),
        ("another key, not held", Raw { key: strange, ..Raw::chunk(&n, 9) }.text()),
        ("old", Raw { time_ms: now_ms() - 61_500, ..good.clone() }.text()),
        ("from the future", Raw { time_ms: now_ms() + 61_500, ..good.clone() }.text()),
    ];
    let text = String::from_utf8(good.text()).expect("ascii");
    texts.push(("another target", text.replace("/0 ", "/1 ").into_bytes()));
    texts.push(("another method", text.replacen("GET", "POST", 1).into_bytes()));
    texts.push(("two spaces", text.replace("HFM1 ", "HFM1  ").into_bytes()));
    texts.push(("a body unsaid", text.replace("\r\n\r\n", "\r\nhfm-body: 00\r\n\r\n").into_bytes()));
    let count = texts.len() as u64;
    for (what, text) in texts {
        let mut stream = connect(&n).await;
        stream.write_all(&text).await.expect("sent");
        let mut all = Vec::new();
        tokio::time::timeout(SOON, stream.read_to_end(&mut all))
            .await
            .expect("closed at once")
            .expect("its end");
        assert!(all.starts_with(nothing), "{what}: {}", String::from_utf8_lossy(&all));
        answers.push(all);
    }
    assert!(
        answers.iter().all(|a| a == &answers[0]),
        "{:?}",
        answers.iter().map(|a| String::from_utf8_lossy(a))
    );
    assert!(!String::from_utf8_lossy(&answers[0]).contains("hfm"));
    assert_eq!(n.server.stats().refused, count);
    assert_eq!((n.server.stats().requests, n.store.asked.load(Relaxed)), (0, 0), "nothing was looked at");
    drop(town);
}

#[tokio::test]
async fn a_request_is_good_once() {
    let (_, n) = server().await;
    let text = Raw::chunk(&n, 0).text();
    assert_eq!(send(&n, &text).await.0, 200);
    for _ in 0..3 {
        assert_eq!(send(&n, &text).await.0, 401);
    }
    assert_eq!(n.server.stats().replays, 3);
    assert_eq!(send(&n, &Raw::chunk(&n, 0).text()).await.0, 200, "a fresh one is");
}

#[tokio::test]
async fn a_request_is_good_at_one_node() {
    let (town, n) = server().await;
    let other = Node::new(&town, Plan::default()).await;
    other.store.put(0, content(0, LEN));
    let text = Raw::chunk(&other, 0).text();
    let (status, head, body) = send(&n, &text).await;
    assert_eq!((status, body.len()), (421, 0), "{head}");
    let anybody = Raw { to: NodeId(0), ..Raw::chunk(&n, 0) };
    assert_eq!(send(&n, &anybody.text()).await.0, 421, "only a ping may be for whoever it is");
    let ping = Raw { target: "/v1/ping".into(), ..anybody };
    let (status, _, body) = send(&n, &ping.text()).await;
    assert_eq!((status, &body[..]), (200, &br#"{"slots":16}"#[..]));
}

#[tokio::test]
async fn a_node_that_is_put_out_gets_nothing() {
    let (town, n) = server().await;
    let asker = Node::new(&town, Plan::default()).await;
    town.block(asker.id);
    let e = asker.client.fetch(BLOB, 0, LEN as u32, &[n.holder()], SOON).await.expect_err("put out");
    assert!(e.kind().is_transient() && e.to_string().contains("put out"), "{e}");
    assert_eq!((n.server.stats().blocked, n.store.asked.load(Relaxed)), (1, 0));
    town.block(n.id);
    let third = Node::new(&town, Plan::default()).await;
    let e = third.client.fetch(BLOB, 0, LEN as u32, &[n.holder()], SOON).await.expect_err("not asked");
    assert_eq!(e.kind(), Kind::NotFound);
    assert_eq!(n.server.stats().requests, 1, "who is put out is not asked either");
}

#[tokio::test]
async fn nodes_of_other_volumes_do_not_hear_of_each_other() {
    let (town, n) = server().await;
    let stranger = Node::new(&town, Plan { key: PeerKey::new(&[43; 32]), ..Plan::default() }).await;
    for (asker, asked) in [(&stranger, &n), (&n, &stranger)] {
        let e =
            asker.client.fetch(BLOB, 0, LEN as u32, &[asked.holder()], SOON).await.expect_err("another key");
        assert_eq!(e.kind(), Kind::Unavailable);
        let text = format!("{e} {e:?}");
        assert!(!text.contains("HFM1") && !text.contains("2a2a") && !text.contains(&BLOB.etag()), "{text}");
        assert_eq!(asker.client.ping(asked.server.addr()).await.expect_err("no").kind(), Kind::Unavailable);
    }
}

#[tokio::test]
async fn clocks_may_be_a_little_off() {
    let (town, n) = server().await;
    let asker = Node::new(&town, Plan::default()).await;
    let fetch = async || asker.client.fetch(BLOB, 0, LEN as u32, &[n.holder()], SOON).await.map(drop);
    for (skew, good) in [(50_000, true), (-50_000, true), (70_000, false), (-70_000, false)] {
        asker.view.skew.store(skew, Relaxed);
        let fetched = fetch().await;
        assert_eq!(fetched.is_ok(), good, "{skew} ms: {fetched:?}");
    }
}

/// Somebody else listens where a node was: nothing that it says is believed.
#[tokio::test]
async fn answers_without_the_key_are_not_believed() {
    let (town, n) = server().await;
    let hash = "00".repeat(32);
    let mac = "11".repeat(32);
    let node = n.id;
    let signed = format!("hfm-node: {node}\r\nhfm-hash: {hash}\r\nhfm-verified: 1\r\nhfm-mac: {mac}\r\n");
    let elsewhere = r#"{"holders":[{"node":"0000000000000009","addr":"127.0.0.1:9"}]}"#;
    for said in [
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcd".to_owned(),
        format!("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n{signed}\r\nabcd"),
        format!("HTTP/1.1 503 Busy\r\nContent-Length: {}\r\n{signed}\r\n{elsewhere}", elsewhere.len()),
        format!("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nhfm-node: {node}\r\nhfm-mac: {mac}\r\n\r\n"),
        "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n".to_owned(),
        "SSH-2.0-OpenSSH_9.6\r\n".to_owned(),
        String::new(),
        "x".repeat(2 << 20),
    ] {
        let liar = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let holder = Holder { addr: liar.local_addr().expect("an address"), ..n.holder() };
        let text = said.clone();
        let lying = tokio::spawn(async move {
            while let Ok((mut stream, _)) = liar.accept().await {
                let mut buf = [0; 4096];
                let _ = stream.read(&mut buf).await;
                let _ = stream.write_all(text.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        // A client of its own: after a failure the node would be asked last, not anew.
        let asker = Node::new(&town, Plan::default()).await;
        let e =
            asker.client.fetch(BLOB, 0, 4, std::slice::from_ref(&holder), SOON).await.expect_err("a liar");
        assert_eq!(e.kind(), Kind::Unavailable, "{said:.60}: {e}");
        let e = asker.client.ask_fill(&holder, BLOB, 4, 0, SOON).await.expect_err("a liar");
        assert_eq!(e.kind(), Kind::Unavailable, "{said:.60}: {e}");
        lying.abort();
    }
}

#[tokio::test]
async fn the_body_of_a_fill_is_what_was_signed() {
    let (_, n) = server().await;
    let blob = BLOB.to_string();
    let body =
        |size: u64, chunk: u64| format!(r#"{{"blob":"{blob}","size":{size},"chunk":{chunk}}}"#).into_bytes();
    let fill =
        Raw { method: "POST", target: "/v1/fill?wait=5000".into(), body: body(100, 3), ..Raw::chunk(&n, 0) };
    assert_eq!(send(&n, &fill.text()).await.0, 200);
    assert_eq!(*lock(&n.store.fills), [(BLOB, 100, 3)]);
    let cases: [(&str, Raw); 6] = [
        ("another body", Raw { body_hash: Some([1; 32]), ..fill.clone() }),
        ("no body", Raw { body: Vec::new(), ..fill.clone() }),
        ("beyond the blob", Raw { body: body(3, 3), ..fill.clone() }),
        ("no JSON", Raw { body: b"blob=1".to_vec(), ..fill.clone() }),
        ("too long", Raw { body: [body(100, 3), vec![b' '; 5000]].concat(), ..fill.clone() }),
        ("no blob", Raw { body: br#"{"blob":"sha256:..","size":9,"chunk":1}"#.to_vec(), ..fill.clone() }),
    ];
    for (what, raw) in cases {
        assert_eq!(send(&n, &raw.text()).await.0, 400, "{what}");
    }
    assert_eq!(lock(&n.store.fills).len(), 1);
    // And the connection of a fill that was good goes on.
    let mut stream = connect(&n).await;
    for _ in 0..2 {
        stream.write_all(&fill.text()).await.expect("sent");
        assert_eq!(answer(&mut stream).await.0, 200);
    }
}
