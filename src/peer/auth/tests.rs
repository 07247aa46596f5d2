use proptest::prelude::*;

use super::*;

fn key(byte: u8) -> PeerKey {
    PeerKey::new(&[byte; 32])
}

const ASK: Signed<'static> = Signed { method: "GET", target: "/v1/blobs/ab/3?wait=5", body: None };

fn pass(time_ms: u64) -> Pass {
    Pass::issue(&key(1), NodeId(1), NodeId(2), time_ms, &ASK)
}

#[test]
fn a_pass_is_good_for_its_request_only() {
    let pass = pass(5);
    let read = Pass::parse(&pass.header()).expect("a header");
    assert_eq!(read, pass);
    assert!(read.is_for(&key(1), &ASK));
    assert!(!read.is_for(&key(2), &ASK), "another volume's key");
    for other in [
        Signed { method: "POST", ..ASK },
        Signed { target: "/v1/blobs/ab/3?wait=6", ..ASK },
        Signed { body: Some([0; 32]), ..ASK },
    ] {
        assert!(!read.is_for(&key(1), &other), "{other:?}");
    }
    for other in [
        Pass { node: NodeId(3), ..read },
        Pass { to: NodeId(3), ..read },
        Pass { time_ms: 6, ..read },
        Pass { nonce: [9; 16], ..read },
    ] {
        assert!(!other.is_for(&key(1), &ASK), "{other:?}");
    }
}

/// The text that the documentation promises: somebody else's client computes the same.
#[test]
fn macs_are_made_as_described() {
    let pass = pass(7);
    let derived = blake3::derive_key("hfmount 2026 peer requests v1", &[1; 32]);
    let nonce = hex::encode(pass.nonce);
    let text = format!(
        "hfm1 request\nGET\n/v1/blobs/ab/3?wait=5\n0000000000000001\n0000000000000002\n7\n{nonce}\n-"
    );
    let mac = blake3::keyed_hash(&derived, text.as_bytes()).to_hex();
    assert_eq!(pass.header(), format!("HFM1 0000000000000001 0000000000000002 7 {nonce} {mac}"));

    let answer = Answer { nonce: [3; 16], status: 200, node: NodeId(2), len: 9, hash: None, verified: None };
    let derived = blake3::derive_key("hfmount 2026 peer answers v1", &[1; 32]);
    let text = format!("hfm1 answer\n{}\n200\n0000000000000002\n9\n-\n-", "03".repeat(16));
    assert_eq!(answer.mac(&key(1)), blake3::keyed_hash(&derived, text.as_bytes()).to_hex().as_str());
}

#[test]
fn an_answer_is_for_its_request() {
    let answer = Answer {
        nonce: [3; 16],
        status: 200,
        node: NodeId(2),
        len: 9,
        hash: Some([7; 32]),
        verified: Some(true),
    };
    let mac = answer.mac(&key(1));
    assert!(answer.has_mac(&key(1), &mac));
    assert!(!answer.has_mac(&key(2), &mac));
    for other in [
        Answer { nonce: [4; 16], ..answer },
        Answer { status: 404, ..answer },
        Answer { node: NodeId(3), ..answer },
        Answer { len: 8, ..answer },
        Answer { hash: Some([8; 32]), ..answer },
        Answer { hash: None, ..answer },
        Answer { verified: Some(false), ..answer },
        Answer { verified: None, ..answer },
    ] {
        assert!(!other.has_mac(&key(1), &mac), "{other:?}");
    }
}

#[test]
fn requests_pass_once_and_within_a_minute() {
    let window = Window::default();
    let now = 1_700_000_000_000;
    let p = pass(now - 1000);
    assert_eq!(window.admit(&p, now), Ok(()));
    assert_eq!(window.admit(&p, now), Err(Refused::Replay));
    assert_eq!(window.admit(&p, now + 58_000), Err(Refused::Replay), "as long as it could pass");
    assert_eq!(window.admit(&p, now + 60_000), Err(Refused::Time));
    assert_eq!(window.admit(&pass(now + SKEW_MS), now), Ok(()));
    assert_eq!(window.admit(&pass(now + SKEW_MS + 1), now), Err(Refused::Time));
    assert_eq!(window.admit(&pass(now - SKEW_MS - 1), now), Err(Refused::Time));
}

#[test]
fn a_clock_that_goes_back_opens_nothing_again() {
    let window = Window::default();
    let now = 1_700_000_000_000;
    let p = pass(now);
    assert_eq!(window.admit(&p, now), Ok(()));
    assert_eq!(window.admit(&pass(now + 200_000), now + 200_000), Ok(()));
    assert_eq!(window.admit(&p, now), Err(Refused::Replay), "it was forgotten, and so was its time");
}

#[test]
fn memory_of_requests_is_bounded_and_none_passes_twice() {
    let window = Window::default();
    let now = 1_700_000_000_000;
    let mut first = None;
    for i in 0..3 * NONCES as u64 {
        let mut p =
            Pass { node: NodeId(1), to: NodeId(2), time_ms: now + i / 10, nonce: [0; 16], mac: [0; 32] };
        p.nonce[..8].copy_from_slice(&i.to_le_bytes());
        assert_eq!(window.admit(&p, p.time_ms), Ok(()), "request {i}");
        first.get_or_insert(p);
    }
    let seen = window.0.lock().expect("a lock");
    assert!(seen.count <= NONCES);
    assert_eq!(seen.count, seen.seconds.values().map(HashSet::len).sum::<usize>());
    drop(seen);
    let first = first.expect("one");
    assert_eq!(
        window.admit(&first, now + 19_000),
        Err(Refused::Replay),
        "forgotten, and refused by its time"
    );
}

#[test]
fn keys_come_from_the_settings_and_never_show() {
    let shown = format!("{:?}", PeerKey::from_hex(&"1f".repeat(32)).expect("a key"));
    assert_eq!(shown, "<key>");
    assert_eq!(PeerKey::from_hex(&"01".repeat(32)).expect("a key"), key(1));
    for bad in ["", "1f", &"zz".repeat(32), &"1f".repeat(33)] {
        let e = PeerKey::from_hex(bad).expect_err("no key");
        assert_eq!(e.kind(), Kind::Corrupt);
        assert!(bad.is_empty() || !e.to_string().contains(bad), "{e}");
    }
}

proptest! {
    #[test]
    fn nothing_that_is_sent_is_too_much(header in "\\PC{0,200}|HFM1 [ 0-9a-fx+-]{0,200}") {
        if let Some(pass) = Pass::parse(&header) {
            prop_assert_eq!(pass.header(), header);
        }
    }

    #[test]
    fn every_pass_is_read_back_and_no_changed_one_is_good(
        node in 0..u64::MAX, to in 0..u64::MAX, time in 0..u64::MAX, at in 0usize..150, byte in 0x20u8..0x7f,
    ) {
        let pass = Pass::issue(&key(1), NodeId(node), NodeId(to), time, &ASK);
        let header = pass.header();
        prop_assert_eq!(Pass::parse(&header), Some(pass));
        let mut changed = header.clone().into_bytes();
        let at = at % changed.len();
        changed[at] = byte;
        let changed = String::from_utf8(changed).expect("ascii");
        if changed != header {
            prop_assert!(!Pass::parse(&changed).is_some_and(|p| p.is_for(&key(1), &ASK)));
        }
    }
}
