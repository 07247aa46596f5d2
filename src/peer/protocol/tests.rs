use proptest::prelude::*;

use super::*;

fn holder(n: u64) -> Holder {
    let addr = SocketAddr::from(([10, 0, 0, 7], 4000 + n as u16));
    Holder { node: NodeId(n), addr, zone: "a".into(), slots_free: 3 }
}

#[test]
fn requests_are_spelled_and_read() {
    let blob = BlobId::Sha256([0xab; 32]);
    let chunk = ChunkAsk { blob, idx: 7, from: 0, wait: None, live: false, size: None };
    let ab = "ab".repeat(32);
    for (method, route, target) in [
        ("GET", Route::Ping, "/v1/ping".to_owned()),
        ("POST", Route::Fill(Duration::from_millis(1500)), "/v1/fill?wait=1500".into()),
        ("GET", Route::Chunk(chunk), format!("/v1/blobs/{ab}/7")),
        ("GET", Route::Chunk(ChunkAsk { from: 9, ..chunk }), format!("/v1/blobs/{ab}/7?from=9")),
        (
            "GET",
            Route::Chunk(ChunkAsk { from: 9, wait: Some(Duration::from_secs(2)), ..chunk }),
            format!("/v1/blobs/{ab}/7?from=9&wait=2000"),
        ),
        (
            "GET",
            Route::Chunk(ChunkAsk { wait: Some(Duration::from_secs(2)), live: true, ..chunk }),
            format!("/v1/blobs/{ab}/7?wait=2000&live=1"),
        ),
        (
            "GET",
            Route::Chunk(ChunkAsk { wait: Some(Duration::ZERO), live: true, size: Some(99), ..chunk }),
            format!("/v1/blobs/{ab}/7?wait=0&live=1&size=99"),
        ),
        (
            "GET",
            Route::Chunk(ChunkAsk { blob: BlobId::Git([1; 20]), wait: Some(Duration::ZERO), ..chunk }),
            format!("/v1/blobs/{}/7?wait=0", "01".repeat(20)),
        ),
    ] {
        assert_eq!(route.target(), target);
        assert_eq!(Route::parse(method, &target), Some(route));
        assert_eq!(Route::parse("PUT", &target), None);
    }
    assert!(Route::parse("GET", &format!("/v1/blobs/{ab}/7?wait=1&from=2")).is_some(), "in any order");
    for bad in [
        "/",
        "/v1/",
        "/v2/ping",
        "/v1/ping?",
        "/v1/ping?wait=1",
        "/v1/ping/",
        &format!("/v1/blobs/{ab}"),
        &format!("/v1/blobs/{ab}/"),
        &format!("/v1/blobs/{ab}/07"),
        &format!("/v1/blobs/{ab}/-1"),
        &format!("/v1/blobs/{ab}/7/"),
        &format!("/v1/blobs/{ab}/7?"),
        &format!("/v1/blobs/{ab}/7?wait"),
        &format!("/v1/blobs/{ab}/7?wait="),
        &format!("/v1/blobs/{ab}/7?wait=1&wait=1"),
        &format!("/v1/blobs/{ab}/7?live=1"),
        &format!("/v1/blobs/{ab}/7?wait=1&live=0"),
        &format!("/v1/blobs/{ab}/7?wait=1&size=9"),
        &format!("/v1/blobs/{ab}/7?from=4294967296"),
        &format!("/v1/blobs/{ab}/7?other=1"),
        &format!("/v1/blobs/{ab}/99999999999999999999"),
        &format!("/v1/blobs/{}/7", "AB".repeat(32)),
        "/v1/blobs/../7",
    ] {
        assert_eq!(Route::parse("GET", bad), None, "{bad}");
    }
}

#[test]
fn holders_go_over_the_wire() {
    let holders: Vec<Holder> = (1..=3).map(holder).collect();
    let body = serde_json::to_vec(&Elsewhere::of(&holders)).expect("json");
    assert_eq!(
        String::from_utf8_lossy(&body[..90]),
        r#"{"holders":[{"node":"0000000000000001","addr":"10.0.0.7:4001","zone":"a","slots":3},{"node":"#
            [..90]
    );
    assert_eq!(Elsewhere::parse(&body), holders);
    let many: Vec<Holder> = (0..100).map(holder).collect();
    assert_eq!(Elsewhere::of(&many).holders.len(), MAX_HOLDERS);
    let wide = Holder { zone: "zö".repeat(100), ..holder(1) };
    let body = serde_json::to_vec(&Elsewhere::of(&[wide])).expect("json");
    assert_eq!(Elsewhere::parse(&body)[0].zone, "zö".repeat(21) + "z", "64 bytes");
}

#[test]
fn nobody_is_sent_to_nowhere() {
    for addr in ["10.0.0.7:0", "0.0.0.0:80", "[::]:80"] {
        let body = format!(r#"{{"holders":[{{"node":"0000000000000001","addr":"{addr}"}}]}}"#);
        assert_eq!(Elsewhere::parse(body.as_bytes()), [], "{addr}");
    }
    let long = format!(
        r#"{{"holders":[{{"node":"0000000000000001","addr":"1.2.3.4:5","zone":"{}"}}]}}"#,
        "z".repeat(65)
    );
    assert_eq!(Elsewhere::parse(long.as_bytes()), []);
}

#[test]
fn errors_are_told_by_kind() {
    let told = |e: &Error| Failure::parse(&serde_json::to_vec(&Failure::of(e)).expect("json"));
    for (_, kind) in KINDS {
        let e = told(&Error::new(kind, "blob sha256:ab"));
        assert_eq!(e.kind(), kind);
        assert!(e.to_string().contains("blob sha256:ab"), "{e}");
    }
    assert_eq!(told(&Error::new(Kind::Disk, "x")).kind(), Kind::Unavailable);
    let long = told(&Error::new(Kind::Access, format!("a\nb{}", "x".repeat(9000)))).to_string();
    assert!(long.len() < 400 && !long.contains('\n'), "{long}");
    assert_eq!(Failure::parse(b"what?").kind(), Kind::Unavailable);
    assert_eq!(Failure::parse(br#"{"kind":"fenced","message":""}"#).kind(), Kind::Unavailable);
}

proptest! {
    #[test]
    fn what_is_read_as_a_request_has_one_meaning(
        target in "\\PC{0,80}|/v1/(blobs/([0-9a-f]{40}|[0-9a-f]{64})/[0-9]{1,21}|fill|ping)(\\?(wait|from)=[0-9]{0,21}(&(wait|from)=[0-9]{0,12})?)?",
    ) {
        for method in ["GET", "POST"] {
            if let Some(route) = Route::parse(method, &target) {
                prop_assert_eq!(Route::parse(method, &route.target()), Some(route));
            }
        }
    }

    #[test]
    fn no_body_is_too_much(body in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Elsewhere::parse(&body).len() <= MAX_HOLDERS);
        prop_assert!(Failure::parse(&body).to_string().len() < 2000);
    }

    #[test]
    fn no_list_of_holders_is_too_much(
        text in r#"\{"holders":\[(\{"node":"[0-9a-f]{15,17}","addr":"[0-9.:\[\]]{0,20}","zone":"\PC{0,70}","slots":-?[0-9]{1,11}\},?){0,12}\]\}"#,
    ) {
        let holders = Elsewhere::parse(text.as_bytes());
        prop_assert!(holders.len() <= MAX_HOLDERS);
        for h in holders {
            prop_assert!(h.zone.len() <= MAX_ZONE && h.addr.port() > 0);
        }
    }

    #[test]
    fn hashes_are_64_small_digits(text in "[0-9a-fA-F]{60,68}|\\PC{64}") {
        if let Some(hash) = parse_hash(&text) {
            prop_assert_eq!(hex::encode(hash), text);
        }
    }
}
