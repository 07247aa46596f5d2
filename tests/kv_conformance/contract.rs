//! The contract of `Kv`, case by case.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hfmount::error::Kind;
use hfmount::meta::kv::{
    Change, Event, Expect, Followed, Key, Kv, Outcome, SESSIONS, Txn, Write, inode_map, number, session_field,
};
use hfmount::types::{Ino, SessionId};

use crate::world::{World, attempt, del, key, next, scan_all, set, silence, txn, value, write};

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

pub async fn scan_pages_in_the_order_of_ids(world: &dyn World) {
    let kv = world.open().await;
    let n = 2_500;
    // Neither the names nor the order of hashing is the order of creation.
    for batch in 0..5 {
        let range = (batch * 500)..(batch * 500 + 500);
        write(
            &*kv,
            range.map(|i| set("d1/", format!("{:05}", (i * 7919) % 10_007), i.to_string())).collect(),
        )
        .await;
    }
    write(&*kv, vec![set("d2/", "elsewhere", "x")]).await;
    for page in [1_000, 999, 10_000] {
        let all = scan_all(&*kv, "d1/", page).await;
        let values: Vec<String> =
            all.iter().map(|e| String::from_utf8_lossy(&e.value).into_owned()).collect();
        assert_eq!(values, (0..n).map(|i| i.to_string()).collect::<Vec<_>>(), "page {page}");
        assert!(all.windows(2).all(|pair| pair[0].id < pair[1].id));
        assert!(all.iter().all(|entry| entry.id > 0 && entry.id < 1 << 53));
    }
    assert_eq!(kv.scan("d1/", 0, 0).await.expect("scan"), []);
    assert_eq!(kv.scan("d1/", u64::MAX, 10).await.expect("scan"), []);
    let all = scan_all(&*kv, "d1/", 1000).await;
    let tail = kv.scan("d1/", all[n - 3].id, 10).await.expect("scan");
    assert_eq!(tail, all[n - 2..]);
}

pub async fn entry_ids_stay_and_are_not_reused(world: &dyn World) {
    let kv = world.open().await;
    write(&*kv, vec![set("d1/", "a", "1"), set("d1/", "b", "1"), set("d1/", "c", "1")]).await;
    let first = scan_all(&*kv, "d1/", 10).await;
    write(&*kv, vec![set("d1/", "a", "2")]).await;
    let second = scan_all(&*kv, "d1/", 10).await;
    assert_eq!((second[0].id, &second[0].value[..]), (first[0].id, &b"2"[..]));
    write(&*kv, vec![del("d1/", "c"), set("d1/", "d", "1"), del("d1/", "b"), set("d1/", "b", "1")]).await;
    let third = scan_all(&*kv, "d1/", 10).await;
    let old: BTreeSet<u64> = first.iter().map(|entry| entry.id).collect();
    assert_eq!(third[0].id, first[0].id);
    assert_eq!(third.iter().map(|entry| &entry.field[..]).collect::<Vec<_>>(), [b"a", b"d", b"b"]);
    assert!(third[1..].iter().all(|entry| !old.contains(&entry.id)));
    let other = world.open().await;
    assert_eq!(scan_all(&*other, "d1/", 10).await, third);
}

pub async fn scan_sees_what_stays_exactly_once(world: &dyn World) {
    let kv = world.open().await;
    write(&*kv, (0..600).map(|i| set("d1/", format!("stay{i}"), "s")).collect()).await;
    let churn = {
        let kv = world.open().await;
        tokio::spawn(async move {
            for round in 0..60 {
                let come = (0..10).map(|i| set("d1/", format!("come{round}-{i}"), "c"));
                let touch = (0..10).map(|i| set("d1/", format!("stay{}", round * 10 + i), "t"));
                write(&*kv, come.chain(touch).collect()).await;
                write(&*kv, (0..10).map(|i| del("d1/", format!("come{round}-{i}"))).collect()).await;
            }
        })
    };
    while !churn.is_finished() {
        let all = scan_all(&*kv, "d1/", 37).await;
        let names: Vec<&[u8]> = all.iter().map(|entry| &entry.field[..]).collect();
        let stayed = names.iter().filter(|name| name.starts_with(b"stay")).count();
        assert_eq!(stayed, 600);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "seen twice");
    }
    churn.await.expect("churn");
}

pub async fn big_transactions(world: &dyn World) {
    let kv = world.open().await;
    let n = 5_000;
    let expect = (0..n).map(|i| Expect::Absent(key("d1/", format!("n{i}")))).collect::<Vec<_>>();
    let writes = || {
        (0..n)
            .flat_map(|i| [set("d1/", format!("n{i}"), "x"), set(&format!("i{i}"), "a", vec![7; 200])])
            .collect()
    };
    assert_eq!(attempt(&*kv, expect.clone(), writes()).await.expect("commit"), Outcome::Applied);
    assert_eq!(scan_all(&*kv, "d1/", 1000).await.len(), n);
    assert_eq!(attempt(&*kv, expect, writes()).await.expect("commit"), Outcome::Conflict(0));
    let mut gone: Vec<Write> = (0..n).map(|i| Write::DelMap(format!("i{i}"))).collect();
    gone.push(Write::DelMap("d1/".to_owned()));
    let present = (0..n).map(|i| Expect::Present(key("d1/", format!("n{i}")))).collect();
    assert_eq!(attempt(&*kv, present, gone).await.expect("commit"), Outcome::Applied);
    assert_eq!(scan_all(&*kv, "d1/", 1000).await, []);
    assert_eq!(value(&*kv, "i4999", "a").await, None);
}

pub async fn increments_from_many_tasks(world: &dyn World) {
    let handles = [world.open().await, world.open().await];
    let tasks: Vec<_> = (0..40)
        .map(|i| {
            let kv = handles[i % 2].clone();
            tokio::spawn(async move {
                for n in 0..25_u64 {
                    let count = vec![
                        Write::Add(key("v", "count"), 1),
                        Write::Max(key("v", "max"), i as u64 * 100 + n),
                        Write::Add(key("v", "below"), -2),
                    ];
                    write(&*kv, count).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("task");
    }
    assert_eq!(value(&*handles[0], "v", "count").await.as_deref(), Some("1000"));
    assert_eq!(value(&*handles[1], "v", "below").await.as_deref(), Some("-2000"));
    assert_eq!(value(&*handles[1], "v", "max").await.as_deref(), Some("3924"));
}

pub async fn creates_from_many_tasks_do_not_collide(world: &dyn World) {
    let handles = [world.open().await, world.open().await];
    write(&*handles[0], vec![set("i1", "a", "dir")]).await;
    let tasks: Vec<_> = (0..30)
        .map(|i| {
            let kv = handles[i % 2].clone();
            tokio::spawn(async move {
                for n in 0..20 {
                    let name = format!("{i}-{n}");
                    let expect = vec![Expect::Present(key("i1", "a")), Expect::Absent(key("d1/", &name))];
                    let change = vec![set("d1/", &name, "x"), Write::Add(key("i1", "n"), 1)];
                    assert_eq!(attempt(&*kv, expect, change).await.expect("commit"), Outcome::Applied);
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("task");
    }
    assert_eq!(scan_all(&*handles[1], "d1/", 100).await.len(), 600);
    assert_eq!(value(&*handles[0], "i1", "n").await.as_deref(), Some("600"));
}

pub async fn one_creator_wins(world: &dyn World) {
    let handles = [world.open().await, world.open().await];
    for round in 0..10 {
        let name = format!("n{round}");
        let tasks: Vec<_> = (0..16)
            .map(|i| {
                let (kv, name) = (handles[i % 2].clone(), name.clone());
                tokio::spawn(async move {
                    let expect = vec![Expect::Absent(key("d1/", &name))];
                    attempt(&*kv, expect, vec![set("d1/", &name, i.to_string())]).await.expect("commit")
                })
            })
            .collect();
        let mut winners = 0;
        for task in tasks {
            winners += usize::from(task.await.expect("task") == Outcome::Applied);
        }
        assert_eq!(winners, 1);
    }
}

pub async fn a_moment_is_never_half_a_transaction(world: &dyn World) {
    let kv = world.open().await;
    let state = |n: u64| {
        let mut dirent = (n % 2 + 5).to_be_bytes().to_vec();
        dirent.extend(n.to_string().bytes());
        let row = n.to_string();
        vec![set("d1/", "x", dirent), set("i5", "a", &row), set("i6", "a", &row), set("other", "a", &row)]
    };
    write(&*kv, state(0)).await;
    let writer = {
        let kv = world.open().await;
        tokio::spawn(async move {
            for n in 1..200 {
                write(&*kv, state(n)).await;
            }
        })
    };
    let keys = [key("i5", "a"), key("other", "a"), key("i6", "a")];
    while !writer.is_finished() {
        let values = kv.get(&keys).await.expect("get");
        assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
        let followed = kv.follow(&key("d1/", "x"), &["a".into()]).await.expect("follow").expect("present");
        assert_eq!(Some(followed.value.slice(8..)), followed.fields[0]);
    }
    writer.await.expect("writer");
}

pub async fn the_fence_keeps_the_dead_out(world: &dyn World) {
    let kv = world.open().await;
    let session = SessionId::random();
    let as_session = |write: Vec<Write>, publish: Vec<Change>| Txn {
        session: Some(session),
        write,
        publish,
        expect: vec![],
    };
    let other = world.open().await;
    let mut watch = other.watch().await.expect("watch");
    let inode = vec![Change::Inode { ino: Ino(5) }];
    let early = kv.commit(as_session(vec![set("m", "a", "1")], inode.clone())).await;
    assert_eq!(early.expect_err("not registered").kind(), Kind::Fenced);
    let register = Write::Set(Key::new(SESSIONS, session_field(session)), "row".into());
    write(&*kv, vec![register]).await;
    assert_eq!(
        kv.commit(as_session(vec![set("m", "a", "2")], inode.clone())).await.expect("commit"),
        Outcome::Applied
    );
    assert_eq!(
        next(&mut watch).await,
        Event::Changed { change: inode[0].clone(), by: Some(session) },
        "the fenced commit must publish nothing"
    );
    // A session takes itself out last.
    let leave = vec![set("m", "left", "1"), Write::Del(Key::new(SESSIONS, session_field(session)))];
    assert_eq!(kv.commit(as_session(leave, vec![])).await.expect("commit"), Outcome::Applied);
    let late = kv.commit(as_session(vec![set("m", "a", "3")], inode)).await;
    let error = late.expect_err("fenced");
    assert_eq!(error.kind(), Kind::Fenced);
    assert!(error.to_string().contains(&session.to_string()));
    assert_eq!(value(&*kv, "m", "a").await.as_deref(), Some("2"));
    silence(&mut watch).await;
}

pub async fn watchers_hear_commits_of_all_handles(world: &dyn World) {
    let (one, two) = (world.open().await, world.open().await);
    let mut watches = [one.watch().await.expect("watch"), two.watch().await.expect("watch")];
    let session = SessionId::random();
    write(&*one, vec![Write::Set(Key::new(SESSIONS, session_field(session)), "row".into())]).await;
    let changes = vec![
        Change::Entry { parent: Ino(1), name: Bytes::from_static(b"n\xff\0me") },
        Change::Inode { ino: Ino(7) },
        Change::Unlocked { ino: Ino(8) },
    ];
    for (kv, by) in [(&one, Some(session)), (&two, None)] {
        let txn =
            Txn { session: by, write: vec![set("m", "a", "1")], publish: changes.clone(), expect: vec![] };
        assert_eq!(kv.commit(txn).await.expect("commit"), Outcome::Applied);
        for watch in &mut watches {
            for change in &changes {
                assert_eq!(next(watch).await, Event::Changed { change: change.clone(), by });
            }
        }
    }
    // A watcher hears nothing from before its time.
    let mut late = two.watch().await.expect("watch");
    silence(&mut late).await;
    // A commit with nothing but news is one as well.
    let news = Txn { publish: vec![changes[1].clone()], ..Txn::default() };
    assert_eq!(one.commit(news).await.expect("commit"), Outcome::Applied);
    assert_eq!(next(&mut late).await, Event::Changed { change: changes[1].clone(), by: None });
}

pub async fn conflicts_publish_nothing(world: &dyn World) {
    let kv = world.open().await;
    let mut watch = kv.watch().await.expect("watch");
    let publish = vec![Change::Inode { ino: Ino(5) }];
    let conflict = Txn {
        publish: publish.clone(),
        ..txn(vec![Expect::Present(key("m", "a"))], vec![set("m", "b", "1")])
    };
    assert_eq!(kv.commit(conflict).await.expect("commit"), Outcome::Conflict(0));
    let full = Txn { publish, ..txn(vec![], vec![Write::AddBounded(key("v", "b"), 2, 1)]) };
    assert_eq!(kv.commit(full).await.expect("commit"), Outcome::Full);
    silence(&mut watch).await;
}

pub async fn slow_watchers_hear_lost(world: &dyn World) {
    let kv = world.open().await;
    let mut watch = kv.watch().await.expect("watch");
    let publish: Vec<Change> = (0..1000).map(|i| Change::Inode { ino: Ino(i) }).collect();
    for _ in 0..10 {
        let txn = Txn { publish: publish.clone(), ..Txn::default() };
        assert_eq!(kv.commit(txn).await.expect("commit"), Outcome::Applied);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(next(&mut watch).await, Event::Lost);
    assert!(matches!(next(&mut watch).await, Event::Changed { .. }));
}

pub async fn heartbeats_run_out(world: &dyn World) {
    let (one, two) = (world.open().await, world.open().await);
    let [a, b, c] = [SessionId::random(), SessionId(0), SessionId::random()];
    one.beat(a, Duration::from_millis(300)).await.expect("beat");
    two.beat(b, Duration::from_secs(60)).await.expect("beat");
    assert_eq!(two.alive(&[a, c, b]).await.expect("alive"), [true, false, true]);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(two.alive(&[a, c, b]).await.expect("alive"), [false, false, true]);
    one.beat(a, Duration::from_secs(60)).await.expect("beat");
    one.beat(b, Duration::from_secs(60)).await.expect("beat");
    assert_eq!(one.alive(&[b, a]).await.expect("alive"), [true, true]);
}

pub async fn info_names_the_engine(world: &dyn World) {
    let kv: Arc<dyn Kv> = world.open().await;
    let info = kv.info().await.expect("info");
    let (name, version) = info.name.split_once(' ').unwrap_or((&info.name, "0"));
    assert!(["memory", "sqlite", "redis", "valkey"].contains(&name), "{name}");
    assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{version}");
    assert!(format!("{kv:?}").contains("Kv"));
}
