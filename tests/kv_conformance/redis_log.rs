//! How commits tell one another in Redis what they changed: a log that is read in pieces, and a bell.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hfmount::meta::kv::{Change, Event, Kv, Outcome, Txn};
use hfmount::meta::redis::RedisKv;
use hfmount::types::{Ino, SessionId};

use crate::redis_server::RedisServer;
use crate::world::{next, redis_options, silence};

async fn tell(kv: &dyn Kv, by: Option<SessionId>, change: Change) {
    let txn = Txn { session: by, publish: vec![change], ..Txn::default() };
    assert_eq!(kv.commit(txn).await.expect("commit"), Outcome::Applied);
}

fn inode(ino: u64) -> Change {
    Change::Inode { ino: Ino(ino) }
}

fn heard(ino: u64) -> Event {
    Event::Changed { change: inode(ino), by: None }
}

/// How often the server was asked to publish, by scripts too.
fn rung(server: &RedisServer) -> u64 {
    server.calls("publish")
}

/// Several engines tell more than one log holds; nobody is woken for each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_is_heard_whole_and_in_order() {
    const EACH: u64 = 3000;
    let server = RedisServer::start();
    let reader = RedisKv::open(redis_options(server.address())).await.expect("open");
    let mut watches = [reader.watch().await.expect("watch"), reader.watch().await.expect("watch")];
    let before = rung(&server);
    let mut tellers = Vec::new();
    for teller in 0..3_u64 {
        let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
        tellers.push(tokio::spawn(async move {
            for n in 0..EACH {
                let name = Bytes::from(format!("{n:0255}"));
                tell(&*kv, None, Change::Entry { parent: Ino(teller), name }).await;
            }
        }));
    }
    for watch in &mut watches {
        let mut expected = [0; 3];
        while expected != [EACH; 3] {
            let Event::Changed { change: Change::Entry { parent, name }, by: None } = next(watch).await
            else {
                panic!("something else after {expected:?}");
            };
            let teller = usize::try_from(parent.0).expect("small");
            assert_eq!(name, format!("{:0255}", expected[teller]));
            expected[teller] += 1;
        }
        silence(watch).await;
    }
    for teller in tellers {
        teller.await.expect("task");
    }
    let rung = rung(&server) - before;
    println!("{} changes, rung {rung} times", 3 * EACH);
    assert!(rung < EACH, "{rung}");
    // The log before this one, and the one before that: more was told than the server keeps.
    let kept = server.ask(&[
        "EVAL",
        "return redis.call('STRLEN', KEYS[1]) + redis.call('STRLEN', KEYS[2])",
        "2",
        "{hfmount}@log",
        "{hfmount}@log.before",
    ]);
    let kept: u64 = kept.trim_start_matches(':').parse().expect("number");
    assert!((1 << 20..=2_200_000).contains(&kept), "{kept}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_quiet_moment_a_change_is_heard_at_once() {
    let server = RedisServer::start();
    let (kv, other) = (
        RedisKv::open(redis_options(server.address())).await.expect("open"),
        RedisKv::open(redis_options(server.address())).await.expect("open"),
    );
    let mut watch = kv.watch().await.expect("watch");
    let mut lags = Vec::new();
    for n in 0..30 {
        tokio::time::sleep(Duration::from_millis(n)).await;
        tell(&*other, None, inode(n)).await;
        let told = Instant::now();
        assert_eq!(next(&mut watch).await, heard(n));
        lags.push(told.elapsed());
    }
    lags.sort();
    println!("median {:?}, worst {:?}", lags[15], lags[29]);
    assert!(lags[15] < Duration::from_millis(50), "{lags:?}");
}

/// A commit rings only if a reader may be asleep, or if somebody may be waiting for a lock.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bell_rings_for_sleepers_and_for_locks() {
    let server = RedisServer::start();
    let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
    let ring = async |change: Change| {
        let before = rung(&server);
        tell(&*kv, None, change).await;
        rung(&server) - before
    };
    assert_eq!(ring(inode(1)).await, 1);
    for _ in 0..3 {
        assert_eq!(ring(inode(1)).await, 0, "all are awake by now");
        assert_eq!(ring(Change::Unlocked { ino: Ino(1) }).await, 1);
    }
    // Who comes falls asleep.
    let mut watch = kv.watch().await.expect("watch");
    assert_eq!(ring(inode(2)).await, 1);
    assert_eq!(next(&mut watch).await, heard(2));
}

/// A reader that slept too long, a server that lost the end of its log or all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_gone_from_the_log_is_lost() {
    let server = RedisServer::start();
    let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
    let mut watch = kv.watch().await.expect("watch");
    // The first log begins after the reader did.
    tell(&*kv, None, inode(1)).await;
    assert_eq!(next(&mut watch).await, heard(1));
    let log = "local log, before = '{hfmount}@log', '{hfmount}@log.before' ";
    let another =
        "redis.call('RENAME', log, before) redis.call('SET', log, string.format('%-64s', ARGV[1])) ";
    let ring = "redis.call('PUBLISH', '{hfmount}@events:0', '.')";
    let changes = [
        (format!("{log}{another}{ring}"), false),
        (format!("{log}{another}{another}{ring}"), true),
        (format!("{log}redis.call('SET', log, redis.call('GETRANGE', log, 0, 63)){ring}"), true),
        (format!("{log}redis.call('DEL', log, before){ring}"), true),
        (format!("{log}redis.call('APPEND', log, 'from the future'){ring}"), true),
    ];
    for (n, (change, lost)) in (2..).step_by(2).zip(changes) {
        tell(&*kv, None, inode(n)).await;
        assert_eq!(next(&mut watch).await, heard(n));
        let answer = server.ask(&["EVAL", &change, "0", &format!("log {n}")]);
        assert_eq!(answer, "", "{change}");
        if lost {
            assert_eq!(next(&mut watch).await, Event::Lost, "{change}");
        }
        tell(&*kv, None, inode(n + 1)).await;
        assert_eq!(next(&mut watch).await, heard(n + 1), "after {change}");
    }
    silence(&mut watch).await;
}

/// Somebody who asks whether all was heard hears it, although the bell never rang.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bell_that_nobody_hears_is_made_up_for() {
    let server = RedisServer::start();
    let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
    let mut watch = kv.watch().await.expect("watch");
    for n in 0..3 {
        silence(&mut watch).await;
        // As if another reader were awake: nobody rings for this one.
        assert_eq!(server.ask(&["SET", "{hfmount}@awake", "1"]), "+OK");
        tell(&*kv, None, inode(n)).await;
        let told = tokio::time::Instant::now();
        while kv.heard_until().is_none_or(|until| until < told) {
            assert!(told.elapsed() < Duration::from_secs(20), "it is never known that all was heard");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(watch.try_next(), Some(heard(n)));
    }
}

/// Mounts of versions that knew no log told their changes over the channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_older_versions_are_heard() {
    let server = RedisServer::start();
    let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
    let mut watch = kv.watch().await.expect("watch");
    let message =
        r"redis.call('PUBLISH', '{hfmount}@events:0', string.rep('\255', 8) .. '\0\0\0\1\2\0\0\0\0\0\0\0\7')";
    assert_eq!(server.ask(&["EVAL", message, "0"]), "");
    assert_eq!(next(&mut watch).await, heard(7));
}
