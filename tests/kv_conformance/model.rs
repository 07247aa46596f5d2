//! Random transactions on all engines at once: they must agree with the one in memory on every outcome and every row.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use hfmount::error::Kind;
use hfmount::meta::kv::{Expect, Key, Kv, Outcome, SESSIONS, Txn, Write, session_field};
use hfmount::meta::memory::MemoryKv;
use hfmount::meta::redis::{RedisKv, RedisOptions};
use hfmount::meta::sqlite::{Missing, SqliteKv};
use hfmount::types::SessionId;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestRunner};

use crate::redis_server::RedisServer;
use crate::world::{redis_options, scan_all};

const MAPS: [&str; 5] = ["i1", "i2", "d1/", "d2/", SESSIONS];
const FIELDS: [&str; 4] = ["a", "b", "", "0000000000000007"];
const NUMBERS: [i64; 12] = [
    0,
    1,
    -1,
    999_999_999,
    1_000_000_000,
    -1_000_000_001,
    (1 << 53) + 1,
    1 << 62,
    i64::MAX,
    i64::MAX - 1,
    i64::MIN,
    i64::MIN + 1,
];

fn key() -> impl Strategy<Value = Key> {
    (select(&MAPS[..]), select(&FIELDS[..])).prop_map(|(map, field)| Key::new(map, field))
}

fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        5 => select(&NUMBERS[..]).prop_map(|n| Bytes::from(n.to_string())),
        2 => select(&["", "x", "-", "-0", "007", "+5", "5 ", "99999999999999999999", "-99999999999999999999",
            "999999999999999999999", "18446744073709551615", "1e3", "\0"][..]).prop_map(Bytes::from),
        1 => vec(any::<u8>(), 0..20).prop_map(Bytes::from),
    ]
}

fn expect() -> impl Strategy<Value = Expect> {
    prop_oneof![
        key().prop_map(Expect::Absent),
        key().prop_map(Expect::Present),
        (key(), value()).prop_map(|(key, value)| Expect::Equals(key, value)),
        select(&MAPS[..]).prop_map(|map| Expect::MapEmpty(map.to_owned())),
    ]
}

fn write() -> impl Strategy<Value = Write> {
    let number = || select(&NUMBERS[..]);
    prop_oneof![
        4 => (key(), value()).prop_map(|(key, value)| Write::Set(key, value)),
        2 => key().prop_map(Write::Del),
        1 => select(&MAPS[..]).prop_map(|map| Write::DelMap(map.to_owned())),
        2 => (key(), number()).prop_map(|(key, n)| Write::Max(key, n.cast_unsigned())),
        3 => (key(), number()).prop_map(|(key, n)| Write::Add(key, n)),
        2 => (key(), key(), value()).prop_map(|(counter, otherwise, v)| Write::Release(counter, otherwise, v)),
        2 => (key(), number(), number()).prop_map(|(key, n, bound)| Write::AddBounded(key, n, bound)),
    ]
}

fn txn() -> impl Strategy<Value = Txn> {
    let session = prop_oneof![3 => Just(None), 1 => Just(Some(SessionId(7)))];
    // Mostly few expectations: more of them rarely all hold.
    let expect = prop_oneof![4 => vec(expect(), 0..1), 2 => vec(expect(), 1..2), 1 => vec(expect(), 2..4)];
    (session, expect, vec(write(), 0..6)).prop_map(|(session, expect, write)| Txn {
        session,
        expect,
        write,
        publish: Vec::new(),
    })
}

async fn rows(kv: &dyn Kv) -> (Vec<Option<Bytes>>, Vec<Vec<(Bytes, Bytes)>>) {
    let keys: Vec<Key> =
        MAPS.iter().flat_map(|map| FIELDS.iter().map(|field| Key::new(*map, *field))).collect();
    let mut ordered = Vec::new();
    for map in MAPS.iter().filter(|map| map.ends_with('/')) {
        let entries = scan_all(kv, map, 2).await;
        assert!(entries.windows(2).all(|pair| pair[0].id < pair[1].id));
        ordered.push(entries.into_iter().map(|entry| (entry.field, entry.value)).collect());
    }
    (kv.get(&keys).await.expect("get"), ordered)
}

async fn outcome(kv: &dyn Kv, txn: &Txn) -> Result<Outcome, Kind> {
    kv.commit(txn.clone()).await.map_err(|e| e.kind())
}

#[test]
fn engines_agree_on_random_transactions() {
    let server = RedisServer::start_with(&[]);
    let dir = tempfile::tempdir().expect("temporary folder");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    let round = AtomicU64::new(0);
    let applied = AtomicU64::new(0);
    let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    let result = runner.run(&vec(txn(), 1..60), |txns| {
        let n = round.fetch_add(1, Ordering::Relaxed);
        runtime.block_on(async {
            let prefix = format!("round{n}");
            let options = RedisOptions { prefix, ..redis_options(server.address()) };
            let file = dir.path().join(format!("{n}.db"));
            let reference: Arc<dyn Kv> = MemoryKv::new();
            let engines: [(&str, Arc<dyn Kv>); 2] = [
                ("redis", RedisKv::open(options).await.expect("open")),
                ("sqlite", SqliteKv::open(file, Missing::Create).await.expect("open")),
            ];
            for txn in &txns {
                let want = outcome(&*reference, txn).await;
                applied.fetch_add(u64::from(want == Ok(Outcome::Applied)), Ordering::Relaxed);
                let want_rows = rows(&*reference).await;
                for (name, kv) in &engines {
                    prop_assert_eq!(outcome(&**kv, txn).await, want, "{} on {:?}", name, txn);
                    prop_assert_eq!(&rows(&**kv).await, &want_rows, "{} after {:?}", name, txn);
                }
            }
            Ok(())
        })
    });
    if let Err(e) = result {
        panic!("{e}");
    }
    // Else nothing was tried.
    assert!(applied.load(Ordering::Relaxed) > 200);
    assert_eq!(session_field(SessionId(7)), FIELDS[3]);
}
