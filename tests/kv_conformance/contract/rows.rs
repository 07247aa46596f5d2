//! Rows: what is written, what is expected, what is read.

use bytes::Bytes;
use hfmount::error::Kind;
use hfmount::meta::kv::{Expect, Followed, Key, Outcome, Txn, Write, inode_map, number};

use crate::world::{World, attempt, del, key, scan_all, set, value, write};

pub async fn empty_requests_are_answered(world: &dyn World) {
    let kv = world.open().await;
    assert_eq!(kv.get(&[]).await.expect("get"), []);
    assert!(kv.alive(&[]).await.expect("alive").is_empty());
    assert_eq!(kv.scan("d1/", 0, 10).await.expect("scan"), []);
    assert_eq!(kv.commit(Txn::default()).await.expect("commit"), Outcome::Applied);
    assert_eq!(kv.scan("d1", 0, 10).await.expect_err("unordered").kind(), Kind::Internal);
}

pub async fn values_are_byte_strings(world: &dyn World) {
    let kv = world.open().await;
    let field: Vec<u8> = (0..=255).collect();
    let big = vec![0xA5; 1 << 20];
    write(&*kv, vec![set("m", &field, &big), set("m", "", ""), set("m", "a\r\n", "\0\r\n")]).await;
    let values =
        kv.get(&[key("m", &field), key("m", ""), key("m", "a\r\n"), key("m", "b")]).await.expect("get");
    let want = [Some(Bytes::from(big)), Some(Bytes::new()), Some(Bytes::from_static(b"\0\r\n")), None];
    assert!(values == want, "values differ");
}

pub async fn a_map_exists_while_it_holds_a_field(world: &dyn World) {
    let kv = world.open().await;
    let empty = |map: &str| vec![Expect::MapEmpty(map.to_owned())];
    for map in ["m", "d1/"] {
        assert_eq!(
            attempt(&*kv, empty(map), vec![set(map, "a", "1")]).await.expect("commit"),
            Outcome::Applied
        );
        assert_eq!(attempt(&*kv, empty(map), vec![]).await.expect("commit"), Outcome::Conflict(0));
        write(&*kv, vec![del(map, "a"), del(map, "never")]).await;
        assert_eq!(attempt(&*kv, empty(map), vec![]).await.expect("commit"), Outcome::Applied);
        write(&*kv, vec![set(map, "a", "1"), set(map, "b", "2")]).await;
        write(&*kv, vec![Write::DelMap(map.to_owned())]).await;
        assert_eq!(attempt(&*kv, empty(map), vec![]).await.expect("commit"), Outcome::Applied);
        assert_eq!(value(&*kv, map, "a").await, None);
    }
    assert_eq!(kv.scan("d1/", 0, 10).await.expect("scan"), []);
}

pub async fn expectations_hold_or_nothing_happens(world: &dyn World) {
    let kv = world.open().await;
    write(&*kv, vec![set("m", "a", "1")]).await;
    let equals =
        |field: &str, v: &'static str| Expect::Equals(key("m", field), Bytes::from_static(v.as_bytes()));
    let cases = [
        (Expect::Absent(key("m", "b")), true),
        (Expect::Absent(key("m", "a")), false),
        (Expect::Absent(key("nowhere", "a")), true),
        (Expect::Present(key("m", "a")), true),
        (Expect::Present(key("m", "b")), false),
        (equals("a", "1"), true),
        (equals("a", "2"), false),
        (equals("a", ""), false),
        (equals("b", ""), false),
        (Expect::MapEmpty("nowhere".to_owned()), true),
        (Expect::MapEmpty("m".to_owned()), false),
    ];
    for (n, (expect, holds)) in cases.into_iter().enumerate() {
        // Behind one that holds: the index is the second's.
        let expectations = vec![Expect::Present(key("m", "a")), expect.clone()];
        let field = format!("out{n}");
        let outcome = attempt(&*kv, expectations, vec![set("w", &field, "x"), set("d9/", &field, "x")]).await;
        let want = if holds { Outcome::Applied } else { Outcome::Conflict(1) };
        assert_eq!(outcome.expect("commit"), want, "{expect:?}");
        assert_eq!(value(&*kv, "w", &field).await.is_some(), holds, "{expect:?}");
        assert_eq!(value(&*kv, "d9/", &field).await.is_some(), holds, "{expect:?}");
    }
    let seen = scan_all(&*kv, "d9/", 100).await;
    assert_eq!(seen.len(), 5);
}

pub async fn writes_apply_in_order(world: &dyn World) {
    let kv = world.open().await;
    write(&*kv, vec![set("d1/", "old", "x"), set("n", "old", "7")]).await;
    write(
        &*kv,
        vec![
            set("m", "a", "1"),
            set("m", "a", "2"),
            set("m", "b", "1"),
            del("m", "b"),
            del("m", "c"),
            set("m", "c", "1"),
            Write::DelMap("d1/".to_owned()),
            set("d1/", "new", "y"),
            Write::DelMap("n".to_owned()),
            Write::Add(key("n", "old"), 3),
            Write::Add(key("n", "old"), 4),
            set("n", "x", "10"),
            Write::Max(key("n", "x"), 9),
            Write::Add(key("n", "x"), -1),
            del("n", "y"),
            Write::Max(key("n", "y"), 5),
        ],
    )
    .await;
    assert_eq!(value(&*kv, "m", "a").await.as_deref(), Some("2"));
    assert_eq!(value(&*kv, "m", "b").await, None);
    assert_eq!(value(&*kv, "m", "c").await.as_deref(), Some("1"));
    let names: Vec<Bytes> = scan_all(&*kv, "d1/", 10).await.into_iter().map(|entry| entry.field).collect();
    assert_eq!(names, ["new"]);
    assert_eq!(value(&*kv, "n", "old").await.as_deref(), Some("7"));
    assert_eq!(value(&*kv, "n", "x").await.as_deref(), Some("9"));
    assert_eq!(value(&*kv, "n", "y").await.as_deref(), Some("5"));
}

pub async fn a_late_failure_leaves_nothing(world: &dyn World) {
    let kv = world.open().await;
    write(
        &*kv,
        vec![set("d1/", "kept", "1"), set("d1/", "second", "2"), set("m", "a", "1"), set("m", "n", "x")],
    )
    .await;
    let before = scan_all(&*kv, "d1/", 10).await;
    let change = |last: Write| {
        vec![
            set("m", "a", "2"),
            del("d1/", "kept"),
            set("d1/", "third", "3"),
            Write::DelMap("d1/".to_owned()),
            set("d1/", "second", "4"),
            Write::Add(key("v", "bytes"), 5),
            last,
        ]
    };
    let full = attempt(&*kv, vec![], change(Write::AddBounded(key("v", "inodes"), 2, 1))).await;
    assert_eq!(full.expect("commit"), Outcome::Full);
    let corrupt = attempt(&*kv, vec![], change(Write::Add(key("m", "n"), 1))).await;
    assert_eq!(corrupt.expect_err("no number").kind(), Kind::Corrupt);
    assert_eq!(scan_all(&*kv, "d1/", 10).await, before);
    assert_eq!(value(&*kv, "m", "a").await.as_deref(), Some("1"));
    assert_eq!(value(&*kv, "v", "bytes").await, None);
}

pub async fn numbers_are_exact(world: &dyn World) {
    let kv = world.open().await;
    let max = |n: u64| Write::Max(key("i1", "m"), n);
    let add = |field: &str, n: i64| Write::Add(key("v", field), n);
    // Nanoseconds of this decade differ in digits that a double does not have.
    let now = 1_795_000_000_123_456_789;
    for (n, want) in [(now, now), (now - 1, now), (now + 1, now + 1), (0, now + 1), (u64::MAX, u64::MAX)] {
        write(&*kv, vec![max(n)]).await;
        assert_eq!(value(&*kv, "i1", "m").await, Some(want.to_string()));
    }
    write(&*kv, vec![Write::Max(key("i1", "zero"), 0)]).await;
    assert_eq!(value(&*kv, "i1", "zero").await.as_deref(), Some("0"));
    write(&*kv, vec![add("s", -5), Write::Max(key("v", "s"), 0), add("s", -1)]).await;
    assert_eq!(value(&*kv, "v", "s").await.as_deref(), Some("-1"));
    let steps =
        [1, 999_999_999, 1, -1, 1 << 53, 1, -(1 << 53), (1 << 62) - 7, 6, -(1 << 62), -3, 2_000_000_000, -1];
    let mut sum = 0_i64;
    for step in steps {
        sum += step;
        write(&*kv, vec![add("sum", step)]).await;
        assert_eq!(value(&*kv, "v", "sum").await, Some(sum.to_string()), "after {step}");
    }
    let read = kv.get(&[key("v", "sum"), key("v", "none")]).await.expect("get");
    assert_eq!(number(read[0].as_ref()).expect("number"), sum);
    assert_eq!(number(read[1].as_ref()).expect("number"), 0);
}

pub async fn numbers_that_are_none_are_corrupt(world: &dyn World) {
    let kv = world.open().await;
    write(&*kv, vec![set("v", "n", "12x"), set("v", "big", i64::MAX.to_string())]).await;
    for bad in [
        Write::Add(key("v", "n"), 1),
        Write::Max(key("v", "n"), 1),
        Write::AddBounded(key("v", "n"), 1, 9),
        Write::Add(key("v", "big"), 1),
    ] {
        let error =
            attempt(&*kv, vec![], vec![set("v", "trace", "x"), bad.clone()]).await.expect_err("no number");
        assert_eq!(error.kind(), Kind::Corrupt, "{bad:?}");
        assert!(error.to_string().contains("\"v\""), "{error}");
    }
    assert_eq!(value(&*kv, "v", "trace").await, None);
    assert_eq!(value(&*kv, "v", "big").await, Some(i64::MAX.to_string()));
}

pub async fn bounds_are_met_or_nothing_happens(world: &dyn World) {
    let kv = world.open().await;
    let limit = (1 << 60) + 1;
    let add = |n: i64| vec![set("w", n.to_string(), "x"), Write::AddBounded(key("v", "bytes"), n, limit)];
    let go = async |n| attempt(&*kv, vec![], add(n)).await.expect("commit");
    assert_eq!(go(1 << 60).await, Outcome::Applied);
    assert_eq!(go(2).await, Outcome::Full);
    assert_eq!(value(&*kv, "w", "2").await, None);
    assert_eq!(go(1).await, Outcome::Applied);
    assert_eq!(go(1).await, Outcome::Full);
    assert_eq!(go(-1).await, Outcome::Applied);
    assert_eq!(value(&*kv, "v", "bytes").await, Some((limit - 1).to_string()));
    // Each bound is looked at after the writes before it.
    let twice = |n| Write::AddBounded(key("v", "two"), n, 10);
    assert_eq!(attempt(&*kv, vec![], vec![twice(6), twice(6)]).await.expect("commit"), Outcome::Full);
    assert_eq!(attempt(&*kv, vec![], vec![twice(6), twice(4)]).await.expect("commit"), Outcome::Applied);
}

pub async fn get_reads_many_maps_in_order(world: &dyn World) {
    let kv = world.open().await;
    let n = 3_000;
    let writes = (0..n).map(|i| set(&format!("i{i}"), "a", i.to_string())).collect();
    write(&*kv, writes).await;
    let keys: Vec<Key> = (0..n).rev().flat_map(|i| [key(&format!("i{i}"), "a"), key("i7", "none")]).collect();
    let values = kv.get(&keys).await.expect("get");
    assert_eq!(values.len(), keys.len());
    for (i, pair) in (0..n).rev().zip(values.chunks(2)) {
        assert_eq!(pair[0].as_deref(), Some(i.to_string().as_bytes()));
        assert_eq!(pair[1], None);
    }
    // Thousands of fields of one map, beside another map.
    write(&*kv, (0..n).map(|i| set("i1", format!("c{i}"), i.to_string())).collect()).await;
    let mut keys: Vec<Key> = (0..n).map(|i| key("i1", format!("c{i}"))).collect();
    keys.push(key("i2", "a"));
    let values = kv.get(&keys).await.expect("get");
    assert!(values.iter().enumerate().take(n).all(|(i, v)| v.as_deref() == Some(i.to_string().as_bytes())));
    assert_eq!(values[n].as_deref(), Some(&b"2"[..]));
}

pub async fn follow_reads_the_inode_behind_a_name(world: &dyn World) {
    let kv = world.open().await;
    let ino: u64 = (1 << 53) - 1;
    let mut dirent = ino.to_be_bytes().to_vec();
    dirent.push(7);
    let fields = ["a", "none", "m"].map(Bytes::from);
    write(&*kv, vec![set("d1/", "name", &dirent), set("d1/", "short", "1234567")]).await;
    let dangling = kv.follow(&key("d1/", "name"), &fields).await.expect("follow");
    assert_eq!(dangling, Some(Followed { value: dirent.clone().into(), fields: vec![None; 3] }));
    write(&*kv, vec![set(&inode_map(ino), "a", "row"), set(&inode_map(ino), "m", "12")]).await;
    let found = kv.follow(&key("d1/", "name"), &fields).await.expect("follow").expect("present");
    assert_eq!(found.value, dirent);
    assert_eq!(found.fields, [Some("row".into()), None, Some("12".into())]);
    let bare = kv.follow(&key("d1/", "name"), &[]).await.expect("follow").expect("present");
    assert_eq!(bare.fields, []);
    assert_eq!(kv.follow(&key("d1/", "other"), &fields).await.expect("follow"), None);
    let short = kv.follow(&key("d1/", "short"), &fields).await;
    assert_eq!(short.expect_err("short").kind(), Kind::Corrupt);
}
