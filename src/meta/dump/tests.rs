use super::line::{Reader, decode, encode};
use super::*;
use crate::meta::kv::{Key, Outcome, Txn, Write};
use crate::meta::memory::MemoryKv;
use crate::meta::settings::write_settings;

#[test]
fn byte_strings_come_back_and_text_stays_text() {
    for bytes in
        [&b""[..], b"a name", "grüße".as_bytes(), b"b64:x", b"\xff\x00", b"two\nlines", b"{\"a\": 1}"]
    {
        assert_eq!(decode(encode(bytes)).expect("decode"), bytes);
    }
    assert_eq!(encode("config (1).json".as_bytes()), "config (1).json");
    assert!(encode(b"\xff").starts_with("b64:"));
    assert_eq!(decode("b64:no base64!".to_owned()).expect_err("bad").kind(), Kind::Corrupt);
}

#[test]
fn what_is_of_the_moment() {
    for map in ["sessions/", "dead/", "held00ff/", "l17", "jobs", "journals/"] {
        assert!(is_momentary(map), "{map}");
    }
    for map in ["i1", "d1/", "v", "ids", "staging/", "orphans/", "trash/", "bin/", "tombstones/", "bgit:00"] {
        assert!(!is_momentary(map), "{map}");
    }
}

async fn volume(rows: usize) -> std::sync::Arc<MemoryKv> {
    let kv = MemoryKv::new();
    let settings = serde_json::json!({ "name": "team", "uuid": "00ff" });
    assert!(write_settings(&*kv, None, &settings).await.expect("settings"));
    let write = (0..rows).map(|n| Write::Set(Key::new("d1/", format!("n{n}")), vec![0xff, n as u8].into()));
    let txn = Txn { write: write.collect(), ..Txn::default() };
    assert_eq!(kv.commit(txn).await.expect("commit"), Outcome::Applied);
    kv
}

async fn dumped(kv: &MemoryKv) -> Vec<u8> {
    let mut out = Vec::new();
    dump(kv, &mut out, |_| {}).await.expect("dump");
    out
}

#[tokio::test]
async fn every_cut_and_every_changed_byte_is_noticed() {
    let whole = dumped(&*volume(20).await).await;
    assert_eq!(check(&mut &whole[..], |_| {}).expect("whole").volume, "team");
    for len in 0..whole.len() {
        let e = check(&mut &whole[..len], |_| {}).expect_err("cut");
        assert!(matches!(e.kind(), Kind::Corrupt | Kind::Config), "{len}: {e}");
    }
    for at in (0..whole.len()).step_by(7) {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        assert!(check(&mut &changed[..], |_| {}).is_err(), "byte {at}");
    }
    let mut longer = whole.clone();
    longer.extend_from_slice(b"{}\n");
    assert!(check(&mut &longer[..], |_| {}).is_err());
}

#[tokio::test]
async fn a_dump_for_newer_programs_is_refused() {
    let text = b"{\"hfmount_dump\":2,\"what\":\"follows is new\"}\n";
    let e = check(&mut &text[..], |_| {}).expect_err("newer");
    assert!(e.kind() == Kind::Config && e.to_string().contains("use a newer"), "{e}");
    assert_eq!(check(&mut &b"PK\x03\x04"[..], |_| {}).expect_err("a zip").kind(), Kind::Config);
    assert_eq!(check(&mut &b""[..], |_| {}).expect_err("nothing").kind(), Kind::Config);
}

#[tokio::test]
async fn later_lines_correct_earlier_ones() {
    let source = volume(0).await;
    let text = String::from_utf8(dumped(&source).await).expect("UTF-8");
    let (head, end) = text.trim_end().rsplit_once('\n').expect("lines");
    let more = [
        r#"{"map":"m","set":[["a","1"],["b","1"],["c","1"]]}"#,
        r#"{"map":"m","del":["a"]}"#,
        r#"{"map":"m","set":[["b","2"]]}"#,
        r#"{"map":"x/","set":[["a","1"]]}"#,
        r#"{"map":"x/","drop":true}"#,
        r#"{"map":"x/","set":[["z","1"]]}"#,
        r#"{"map":"l7","set":[["flock","1"]]}"#,
        r#"{"map":"v","set":[["bytes","7"]]}"#,
        r#"{"map":"v","del":["bytes"]}"#,
    ];
    let old: End = serde_json::from_str(end).expect("end");
    let lines = format!("{head}\n{}\n", more.join("\n"));
    let hash = blake3::hash(lines.as_bytes()).to_hex().to_string();
    let end = End { lines: old.lines + 9, rows: old.rows + 8, blake3: hash };
    let end = serde_json::to_string(&end).expect("end");
    let whole = format!("{lines}{end}\n");
    let kv = MemoryKv::new();
    let loaded = load(&*kv, &mut whole.as_bytes(), |_| {}).await.expect("load");
    assert_eq!((loaded.lines, loaded.replaced), (old.lines + 10, false));
    let rows = kv.dump();
    let of = |map: &str| {
        let rows = rows.get(map).into_iter().flatten();
        rows.map(|(f, v)| format!("{}={}", f.escape_ascii(), v.escape_ascii())).collect::<Vec<_>>()
    };
    assert_eq!((of("m"), of("x/"), of("l7")), (vec!["b=2".into(), "c=1".into()], vec!["z=1".into()], vec![]));
    assert!(rows["v"].contains_key(&b"settings"[..]) && !rows["v"].contains_key(&b"bytes"[..]));
    assert!(!rows["v"].contains_key(&b"loading"[..]));
    assert_eq!(rows["ids"][&b"ino"[..]], ((1 << 24) + 1).to_string());
}

#[tokio::test]
async fn half_a_load_is_no_volume_and_is_replaced() {
    let whole = dumped(&*volume(3000).await).await;
    let kv = MemoryKv::new();
    let half = &whole[..whole.len() * 2 / 3];
    let e = load(&*kv, &mut &half[..], |_| {}).await.expect_err("cut off");
    assert_eq!(e.kind(), Kind::Corrupt);
    assert!(read_settings::<Value>(&*kv).await.expect("read").is_none());
    let e = write_settings(&*kv, None, &serde_json::json!({})).await.expect_err("no place to format");
    assert!(e.to_string().contains("load it again"), "{e}");
    // Another dump, which has less: nothing of the first stays.
    let small = dumped(&*volume(5).await).await;
    let loaded = load(&*kv, &mut &small[..], |_| {}).await.expect("load");
    assert!(loaded.replaced);
    assert_eq!(kv.dump()["d1/"].len(), 5);
    assert!(read_settings::<Value>(&*kv).await.expect("read").is_some());
    let e = load(&*kv, &mut &small[..], |_| {}).await.expect_err("a volume is there");
    assert_eq!(e.kind(), Kind::Exists);
}

#[tokio::test]
async fn what_is_no_volume_is_not_overwritten() {
    let whole = dumped(&*volume(1).await).await;
    let kv = MemoryKv::new();
    let txn = Txn { write: vec![Write::Set(Key::new("mine", "a"), "1".into())], ..Txn::default() };
    assert_eq!(kv.commit(txn).await.expect("commit"), Outcome::Applied);
    let before = kv.dump();
    assert_eq!(load(&*kv, &mut &whole[..], |_| {}).await.expect_err("taken").kind(), Kind::Exists);
    assert_eq!(kv.dump(), before);
    let empty = MemoryKv::new();
    let e = dump(&*empty, &mut Vec::new(), |_| {}).await.expect_err("nothing to dump");
    assert_eq!(e.kind(), Kind::Config);
}

#[test]
fn lines_are_read_one_at_a_time() {
    let mut text: &[u8] = b"{\"hfmount_dump\":1,\"volume\":\"v\",\"uuid\":\"u\",\"time\":5,\"engine\":\"e\",\"version\":\"0\"}\nx\n";
    let mut reader = Reader::open(&mut text).expect("header");
    assert_eq!((reader.header.uuid.as_str(), reader.header.time), ("u", Timestamp(5)));
    let Err(e) = reader.next() else { panic!("x is no line") };
    assert!(e.to_string().contains("line 2"), "{e}");
}
