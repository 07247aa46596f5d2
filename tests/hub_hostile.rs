//! A Hub that says nonsense: captive portals, broken proxies, malice. Every answer must become an error that says so,
//! in bounded time and memory.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use futures::StreamExt;
use hfmount::error::{Error, Kind};
use hfmount::hub::{HubClient, HubOptions};
use hfmount::types::{BlobId, Commit, Origin, RepoId, RepoKind};

type Headers<'a> = &'a [(&'a str, &'a str)];

fn answer(status: u16, headers: Headers<'_>, body: impl Into<Body>) -> Response<Body> {
    let builder = headers.iter().fold(Response::builder().status(status), |b, (k, v)| b.header(*k, *v));
    builder.body(body.into()).expect("a valid answer")
}

/// A client of a server that answers everything with `f`, and the number of requests.
async fn facing(
    f: impl Fn(&Request<Body>) -> Response<Body> + Send + Sync + 'static,
) -> (HubClient, Arc<AtomicU32>) {
    let listener =
        tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let (count, f) = (Arc::new(AtomicU32::new(0)), Arc::new(f));
    let counted = count.clone();
    let app = Router::new().fallback(move |request: Request<Body>| {
        counted.fetch_add(1, Ordering::Relaxed);
        let response = f(&request);
        async move { response }
    });
    // Ends with the test's runtime.
    tokio::spawn(async move { axum::serve(listener, app).await });
    let client = HubClient::new(HubOptions {
        endpoint: format!("http://{address}/prefix/"),
        connect_timeout: Duration::from_secs(1),
        read_timeout: Duration::from_secs(1),
        deadline: Duration::from_secs(3),
        ..HubOptions::default()
    });
    (client.expect("valid options"), count)
}

fn repo() -> RepoId {
    RepoId { kind: RepoKind::Model, id: "acme/m".to_owned() }
}

async fn revision(headers: Headers<'static>, body: &'static str) -> Error {
    let (client, _) = facing(move |_| answer(200, headers, body)).await;
    client.revision(&repo(), "main").await.expect_err("nonsense")
}

#[tokio::test]
async fn a_revision_that_is_none() {
    for body in [
        "<html>Please log in</html>",
        "",
        "[]",
        "{}",
        r#"{"sha": "main"}"#,
        r#"{"sha": "ABABABABABABABABABABABABABABABABABABABAB"}"#,
    ] {
        let error = revision(&[], body).await;
        assert_eq!(error.kind(), Kind::Corrupt, "{body}: {error}");
        assert!(error.to_string().contains("acme/m revision main"), "{error}");
    }
}

#[tokio::test]
async fn a_canonical_id_that_is_no_repository_is_not_taken() {
    let sha = "ab".repeat(20);
    let body = format!(r#"{{"id": "../../etc", "sha": "{sha}", "gated": "auto", "lastModified": "soon"}}"#);
    let (client, _) = facing(move |_| answer(200, &[], body.clone())).await;
    let info = client.revision(&repo(), "main").await.expect("the commit is what counts");
    assert_eq!((info.canonical_id.as_str(), info.gated, info.last_modified.0), ("acme/m", true, 0));
}

#[tokio::test]
async fn redirects_in_a_circle_and_to_nowhere() {
    let (client, count) = facing(|r| answer(307, &[("location", &r.uri().to_string())], "")).await;
    let error = client.revision(&repo(), "main").await.expect_err("a circle");
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    assert!(count.load(Ordering::Relaxed) <= 6);
    let (client, _) = facing(|_| answer(302, &[], "")).await;
    let error = client.revision(&repo(), "main").await.expect_err("nowhere");
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_tree_with_names_that_cannot_be_and_without_an_end() {
    let oid = "ab".repeat(20);
    let entry =
        move |path: &str| format!(r#"{{"type": "file", "oid": "{oid}", "size": 1, "path": "{path}"}}"#);
    let names =
        ["ok", "../up", "/etc/passwd", "a//b", "a/./b", "nul\\u0000", ""].map(entry.clone()).join(",");
    let (client, _) = facing(move |_| answer(200, &[], format!("[{names}]"))).await;
    let files = client.tree_files(&repo(), Commit([1; 20])).await.expect("what can be");
    assert_eq!(files.iter().map(|f| f.path.as_str()).collect::<Vec<_>>(), ["ok"]);

    let link = ("link", "<https://elsewhere.example/x?cursor=same>; rel=\"next\"");
    let page = format!("[{}]", entry("a"));
    let (client, count) = facing(move |_| answer(200, &[link], page.clone())).await;
    let error = client.tree_files(&repo(), Commit([1; 20])).await.expect_err("no end");
    assert_eq!((error.kind(), count.load(Ordering::Relaxed)), (Kind::Corrupt, 2), "{error}");
}

#[tokio::test]
async fn an_answer_without_an_end() {
    let (client, _) = facing(|_| {
        let spaces = bytes::Bytes::from(vec![b' '; 1 << 20]);
        answer(
            200,
            &[],
            Body::from_stream(futures::stream::repeat(Ok::<_, std::convert::Infallible>(spaces))),
        )
    })
    .await;
    let error = client.revision(&repo(), "main").await.expect_err("no end");
    assert!(matches!(error.kind(), Kind::Corrupt | Kind::TimedOut), "{error}");
}

/// Bytes 10..20 of a file of 100 bytes, from a server that answers this.
async fn range(status: u16, headers: Headers<'static>, body: &'static str) -> Result<Vec<u8>, Error> {
    let (client, _) = facing(move |r| {
        assert!(r.uri().path().starts_with("/prefix/acme/m/resolve/"), "{}", r.uri());
        assert_eq!(r.headers()["range"], "bytes=10-19");
        answer(status, headers, body)
    })
    .await;
    let origin = Origin { repo: repo(), commit: Commit([1; 20]), path: "x".to_owned() };
    let mut stream = client.open_range(&origin, BlobId::Git([1; 20]), 100, 10..20).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

#[tokio::test]
async fn bytes_that_are_not_what_was_asked_for() {
    const HERE: (&str, &str) = ("content-range", "bytes 10-19/100");
    assert_eq!(range(206, &[HERE], "0123456789").await.expect("as it should be"), b"0123456789");
    const SAME: (&str, &str) = ("etag", "\"0101010101010101010101010101010101010101\"");
    assert!(range(206, &[HERE, SAME], "0123456789").await.is_ok());
    const OTHER: (&str, &str) = ("etag", "W/\"0202020202020202020202020202020202020202\"");
    let cases: [(u16, Headers<'static>, &str, Kind); 9] = [
        (206, &[HERE, OTHER], "0123456789", Kind::Corrupt),
        (206, &[("content-range", "bytes 0-9/100")], "0123456789", Kind::Corrupt),
        (206, &[("content-range", "bytes 10-19/101")], "0123456789", Kind::Corrupt),
        (206, &[], "0123456789", Kind::Corrupt),
        (206, &[HERE], "01234", Kind::Unavailable),
        (206, &[HERE, ("content-encoding", "gzip")], "0123456789", Kind::Unavailable),
        (200, &[], "0123456789", Kind::Corrupt),
        (416, &[], "", Kind::Corrupt),
        (204, &[], "", Kind::Corrupt),
    ];
    for (status, headers, body, kind) in cases {
        let error = range(status, headers, body).await.expect_err("nonsense");
        assert_eq!(error.kind(), kind, "{status} {headers:?}: {error}");
    }
}
