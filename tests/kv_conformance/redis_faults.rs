//! Redis when things go wrong: lost requests and replies, restarts, failovers, servers that hang.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hfmount::error::Kind;
use hfmount::meta::kv::{Change, Event, Expect, Kv, Outcome, Txn, Watch, Write};
use hfmount::meta::redis::{RedisKv, RedisOptions};
use hfmount::types::{Ino, SessionId};

use crate::proxy::{Fault, Proxy};
use crate::redis_server::RedisServer;
use crate::world::{attempt, del, key, next, redis_options, set, txn, value, write};

/// Options of somebody who gives up soon.
fn hasty(server: &RedisServer) -> RedisOptions {
    let (try_timeout, total_timeout) = (Duration::from_millis(500), Duration::from_secs(2));
    RedisOptions { try_timeout, total_timeout, ..redis_options(server.address()) }
}

/// The next event but `Lost`, and whether there was one before it.
async fn heard(watch: &mut Watch) -> (bool, Event) {
    let mut lost = false;
    loop {
        match next(watch).await {
            Event::Lost => lost = true,
            event => return (lost, event),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_reply_applies_once() {
    let server = RedisServer::start();
    let proxy = Proxy::before(server.address()).await;
    let kv = RedisKv::open(redis_options(proxy.address)).await.expect("open");
    write(&*kv, vec![Write::Add(key("v", "n"), 0)]).await;
    for fault in [Fault::LoseReply, Fault::LoseRequest] {
        for n in 0..20 {
            proxy.set(fault, 1, 1);
            let name = format!("{fault:?}{n}");
            let expect = vec![Expect::Absent(key("d1/", &name))];
            let change = vec![set("d1/", &name, "x"), Write::Add(key("v", "n"), 1)];
            // A repetition that looked at the world again would find the name there.
            assert_eq!(attempt(&*kv, expect, change).await.expect("commit"), Outcome::Applied, "{name}");
        }
    }
    assert_eq!(proxy.faults(), 40);
    assert_eq!(value(&*kv, "v", "n").await.as_deref(), Some("40"));
    assert_eq!(kv.scan("d1/", 0, 100).await.expect("scan").len(), 40);
}

/// A copy of a request that arrives after its repetition was answered does nothing, whatever the answer was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_copy_does_nothing() {
    let server = RedisServer::start();
    let proxy = Proxy::before(server.address()).await;
    let options = RedisOptions { try_timeout: Duration::from_millis(300), ..redis_options(proxy.address) };
    let kv = RedisKv::open(options).await.expect("open");
    let other = RedisKv::open(redis_options(server.address())).await.expect("open");
    write(&*kv, vec![set("v", "bytes", "5")]).await;
    let create = |name: &str| {
        let expect = vec![Expect::Absent(key("d1/", name)), Expect::Absent(key("d1/", "bar"))];
        attempt(&*kv, expect, vec![set("d1/", name, "x"), Write::AddBounded(key("v", "bytes"), 1, 6)])
    };

    proxy.set(Fault::HoldRequest, 1, 1);
    assert_eq!(create("applied").await.expect("commit"), Outcome::Applied);
    write(&*other, vec![del("d1/", "applied"), set("v", "bytes", "6")]).await;
    proxy.set(Fault::HoldRequest, 1, 1);
    assert_eq!(create("full").await.expect("commit"), Outcome::Full);
    write(&*other, vec![set("v", "bytes", "0"), set("d1/", "bar", "x")]).await;
    proxy.set(Fault::HoldRequest, 1, 1);
    assert_eq!(create("conflict").await.expect("commit"), Outcome::Conflict(1));
    write(&*other, vec![del("d1/", "bar")]).await;

    assert_eq!(proxy.faults(), 3);
    // Now every one of them would succeed.
    let evals = server.calls("evalsha");
    proxy.release();
    let deadline = Instant::now() + Duration::from_secs(5);
    while server.calls("evalsha") < evals + 3 {
        assert!(Instant::now() < deadline, "the late copies never arrived");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(other.scan("d1/", 0, 10).await.expect("scan"), []);
    assert_eq!(value(&*other, "v", "bytes").await.as_deref(), Some("0"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_commits_survive_a_bad_network() {
    let server = RedisServer::start();
    let proxy = Proxy::before(server.address()).await;
    let kv = RedisKv::open(redis_options(proxy.address)).await.expect("open");
    for (round, fault) in [Fault::LoseReply, Fault::LoseRequest].into_iter().enumerate() {
        proxy.set(fault, 97, u64::MAX);
        let tasks: Vec<_> = (0..30)
            .map(|i| {
                let kv = kv.clone();
                tokio::spawn(async move {
                    for n in 0..50 {
                        let name = format!("{round}-{i}-{n}");
                        let expect = vec![Expect::Absent(key("d1/", &name))];
                        let change = vec![set("d1/", &name, "x"), Write::Add(key("v", "n"), 1)];
                        assert_eq!(attempt(&*kv, expect, change).await.expect("commit"), Outcome::Applied);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("task");
        }
        proxy.set(fault, 1, 0);
        assert_eq!(value(&*kv, "v", "n").await, Some(((round + 1) * 1500).to_string()));
    }
    assert!(proxy.faults() > 10, "{} faults", proxy.faults());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_is_waited_for() {
    let mut server = RedisServer::start();
    let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
    let mut watch = kv.watch().await.expect("watch");
    write(&*kv, vec![set("m", "kept", "1")]).await;
    let tasks: Vec<_> = (0..8)
        .map(|i| {
            let kv = kv.clone();
            tokio::spawn(async move {
                for n in 0..400 {
                    let name = format!("{i}-{n}");
                    let expect = vec![Expect::Absent(key("d1/", &name))];
                    let change = vec![set("d1/", &name, "x"), Write::Add(key("v", "n"), 1)];
                    assert_eq!(attempt(&*kv, expect, change).await.expect("commit"), Outcome::Applied);
                    assert_eq!(value(&*kv, "m", "kept").await.as_deref(), Some("1"));
                }
            })
        })
        .collect();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        server = tokio::task::spawn_blocking(move || {
            server.kill();
            std::thread::sleep(Duration::from_millis(200));
            server.restart();
            server
        })
        .await
        .expect("restart");
    }
    for task in tasks {
        task.await.expect("task");
    }
    assert_eq!(value(&*kv, "v", "n").await.as_deref(), Some("3200"));
    assert_eq!(next(&mut watch).await, Event::Lost);
    // The channel is back after a while.
    let news = vec![Change::Inode { ino: Ino(3) }];
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let txn = Txn { publish: news.clone(), ..Txn::default() };
        assert_eq!(kv.commit(txn).await.expect("commit"), Outcome::Applied);
        let event = tokio::time::timeout(Duration::from_millis(100), heard(&mut watch)).await;
        if let Ok((_, event)) = event {
            assert_eq!(event, Event::Changed { change: news[0].clone(), by: None });
            break;
        }
        assert!(Instant::now() < deadline, "no event after the restart");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_server_is_an_error_and_never_absence() {
    let mut server = RedisServer::start();
    let kv = RedisKv::open(hasty(&server)).await.expect("open");
    let mut watch = kv.watch().await.expect("watch");
    write(&*kv, vec![set("m", "a", "1"), set("d1/", "a", 5_u64.to_be_bytes())]).await;
    server.kill();
    let began = Instant::now();
    let (get, follow, scan, commit, alive, beat, info) = tokio::join!(
        async { kv.get(&[key("m", "a")]).await.expect_err("get").kind() },
        async { kv.follow(&key("d1/", "a"), &["a".into()]).await.expect_err("follow").kind() },
        async { kv.scan("d1/", 0, 9).await.expect_err("scan").kind() },
        async { kv.commit(txn(vec![], vec![set("m", "a", "2")])).await.expect_err("commit").kind() },
        async { kv.alive(&[SessionId(1)]).await.expect_err("alive").kind() },
        async { kv.beat(SessionId(1), Duration::from_secs(9)).await.expect_err("beat").kind() },
        async { kv.info().await.expect_err("info").kind() },
    );
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    for kind in [get, follow, scan, commit, alive, beat, info] {
        assert!(matches!(kind, Kind::Unavailable | Kind::TimedOut), "{kind:?}");
    }
    assert_eq!(next(&mut watch).await, Event::Lost);
    // Many that wait at once do not wait for each other.
    let began = Instant::now();
    let read = |kv: Arc<RedisKv>| async move { drop(kv.get(&[key("m", "a")]).await.expect_err("dead")) };
    let reads: Vec<_> = (0..200).map(|_| tokio::spawn(read(kv.clone()))).collect();
    for read in reads {
        read.await.expect("task");
    }
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_is_not_waited_for_forever() {
    let server = RedisServer::start();
    let kv = RedisKv::open(hasty(&server)).await.expect("open");
    let patient = RedisKv::open(redis_options(server.address())).await.expect("open");
    write(&*kv, vec![set("m", "a", "1"), Write::Add(key("v", "n"), 0)]).await;
    server.freeze(true);
    let began = Instant::now();
    let (keys, plus_one) = ([key("m", "a")], vec![Write::Add(key("v", "n"), 1)]);
    let (read, add) = tokio::join!(kv.get(&keys), attempt(&*kv, vec![], plus_one));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!(read.expect_err("hangs").kind(), Kind::TimedOut);
    assert_eq!(add.expect_err("hangs").kind(), Kind::TimedOut);
    // Who has more time gets an answer. All copies that were sent meanwhile arrive too: the outcome was open, but it is
    // one outcome.
    let waiting = tokio::spawn(async move { value(&*patient, "m", "a").await });
    server.freeze(false);
    assert_eq!(waiting.await.expect("task").as_deref(), Some("1"));
    for _ in 0..20 {
        write(&*kv, vec![Write::Add(key("v", "n"), 10)]).await;
    }
    let n = value(&*kv, "v", "n").await.expect("number");
    assert!(n == "200" || n == "201", "{n}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_server_is_waited_for() {
    let server = Arc::new(RedisServer::start_with(&["--appendonly", "yes", "--lua-time-limit", "20"]));
    let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
    write(&*kv, vec![set("m", "a", "1")]).await;
    let endless = {
        let server = server.clone();
        tokio::task::spawn_blocking(move || server.ask(&["EVAL", "while true do end", "0"]))
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    let waiting = {
        let kv = kv.clone();
        tokio::spawn(async move { attempt(&*kv, vec![], vec![set("m", "a", "2")]).await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    assert_eq!(server.ask(&["SCRIPT", "KILL"]), "+OK");
    assert_eq!(waiting.await.expect("task").expect("commit"), Outcome::Applied);
    assert!(endless.await.expect("task").starts_with("-ERR"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forgotten_scripts_are_loaded_again() {
    let server = RedisServer::start();
    let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
    for _ in 0..3 {
        assert_eq!(server.ask(&["SCRIPT", "FLUSH"]), "+OK");
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let kv = kv.clone();
                tokio::spawn(async move { write(&*kv, vec![Write::Add(key("v", "n"), 1)]).await })
            })
            .collect();
        for task in tasks {
            task.await.expect("task");
        }
    }
    assert_eq!(value(&*kv, "v", "n").await.as_deref(), Some("24"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_is_not_the_volume() {
    let (primary, server) = (RedisServer::start(), RedisServer::start());
    let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
    write(&*kv, vec![set("m", "a", "1")]).await;
    let port = primary.port().to_string();
    assert_eq!(server.ask(&["REPLICAOF", "127.0.0.1", &port]), "+OK");
    let error = RedisKv::open(hasty(&server)).await.expect_err("a replica");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("replica"), "{error}");
    let waiting = {
        let kv = kv.clone();
        tokio::spawn(async move { attempt(&*kv, vec![], vec![set("m", "a", "2")]).await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    assert_eq!(server.ask(&["REPLICAOF", "NO", "ONE"]), "+OK");
    assert_eq!(waiting.await.expect("task").expect("commit"), Outcome::Applied);
    assert_eq!(value(&*kv, "m", "a").await.as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_push_channel_is_lost_and_comes_back() {
    let server = RedisServer::start();
    let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
    let mut watch = kv.watch().await.expect("watch");
    for round in 1..4 {
        let killed = server.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        assert_eq!(killed, ":1", "round {round}");
        // Once when it broke, once when it was back.
        assert_eq!(next(&mut watch).await, Event::Lost);
        assert_eq!(next(&mut watch).await, Event::Lost);
        let change = Change::Inode { ino: Ino(round) };
        let txn = Txn { publish: vec![change.clone()], ..Txn::default() };
        assert_eq!(kv.commit(txn).await.expect("commit"), Outcome::Applied);
        assert_eq!(next(&mut watch).await, Event::Changed { change, by: None });
    }
}

/// What the server publishes beside our own messages is taken for a loss, not for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_message_is_lost() {
    let server = RedisServer::start();
    let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
    let mut watch = kv.watch().await.expect("watch");
    assert_eq!(server.ask(&["PUBLISH", "{hfmount}@events:0", "from the future"]), ":1");
    assert_eq!(next(&mut watch).await, Event::Lost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn given_up_commits_hold_nothing() {
    let server = RedisServer::start();
    let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
    write(&*kv, vec![Write::Add(key("v", "n"), 0)]).await;
    for n in 0..1000 {
        // Dropped somewhere on the way.
        let add = attempt(&*kv, vec![], vec![Write::Add(key("v", "n"), 1)]);
        let _ = tokio::time::timeout(Duration::from_micros(n % 200), add).await;
    }
    let dropped: i64 = value(&*kv, "v", "n").await.expect("number").parse().expect("number");
    assert!(dropped <= 1000);
    let tasks: Vec<_> = (0..600)
        .map(|_| {
            let kv = kv.clone();
            tokio::spawn(async move { write(&*kv, vec![Write::Add(key("v", "m"), 1)]).await })
        })
        .collect();
    for task in tasks {
        task.await.expect("task");
    }
    assert_eq!(value(&*kv, "v", "m").await.as_deref(), Some("600"));
    // None of those that were given up came later.
    assert_eq!(value(&*kv, "v", "n").await, Some(dropped.to_string()));
}

/// The address moves to another server while the old one lives on: whoever finds out takes the push channel along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_behind_the_address_is_noticed() {
    let (before, after) = (RedisServer::start(), RedisServer::start());
    let proxy = Proxy::before(before.address()).await;
    let kv = RedisKv::open(redis_options(proxy.address)).await.expect("open");
    let mut watch = kv.watch().await.expect("watch");
    write(&*kv, vec![set("m", "a", "1")]).await;
    proxy.lead_to(after.address());
    proxy.set(Fault::LoseRequest, 1, 1);
    write(&*kv, vec![set("m", "b", "1")]).await;
    assert_eq!(value(&*kv, "m", "a").await, None);
    // For the server, for the end of the old channel, for the new one.
    for _ in 0..3 {
        assert_eq!(next(&mut watch).await, Event::Lost);
    }
    let other = RedisKv::open(redis_options(after.address())).await.expect("open");
    let change = Change::Inode { ino: Ino(1) };
    let txn = Txn { publish: vec![change.clone()], ..Txn::default() };
    assert_eq!(other.commit(txn).await.expect("commit"), Outcome::Applied);
    assert_eq!(next(&mut watch).await, Event::Changed { change, by: None });
}

/// Where an enumeration goes on means nothing to another server, not even to the same one restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enumeration_does_not_go_on_at_another_server() {
    let (before, after) = (RedisServer::start(), RedisServer::start());
    let proxy = Proxy::before(before.address()).await;
    let kv = RedisKv::open(redis_options(proxy.address)).await.expect("open");
    for start in (0..5_000).step_by(1_000) {
        write(&*kv, (start..start + 1_000).map(|n| set(&format!("i{n}"), "a", "x")).collect()).await;
    }
    let first = kv.inodes(None).await.expect("a page");
    assert!(first.next.is_some() && first.numbers.len() < 5_000);
    let second = kv.inodes(first.next.as_ref()).await.expect("a page");
    let hang_up = |server: &RedisServer| server.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
    proxy.lead_to(after.address());
    hang_up(&before);
    let e = kv.inodes(second.next.as_ref()).await.expect_err("another server");
    assert_eq!(e.kind(), Kind::Unavailable);
    assert!(e.to_string().contains("begin again"), "{e}");
    let e = kv.inodes(second.next.as_ref()).await.expect_err("still");
    assert_eq!(e.kind(), Kind::Unavailable);
    assert_eq!(kv.inodes(None).await.expect("from the start").numbers, Vec::<u64>::new());

    // Who asks for all begins again by himself.
    write(&*kv, (0..3_000).map(|n| set(&format!("i{n}"), "a", "x")).collect()).await;
    proxy.lead_to(before.address());
    let survey = hfmount::meta::survey::Survey::new(kv.clone());
    let calls = AtomicU64::new(0);
    let tell = |_| {
        if calls.fetch_add(1, Ordering::Relaxed) == 0 {
            hang_up(&after);
        }
    };
    assert_eq!(survey.numbers(tell).await.expect("all").len(), 5_000);
    assert!(calls.into_inner() > 5);
}

/// A server that vanishes without closing anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_push_channel_is_noticed() {
    let server = RedisServer::start();
    let kv = RedisKv::open(hasty(&server)).await.expect("open");
    let mut watch = kv.watch().await.expect("watch");
    tokio::time::sleep(Duration::from_millis(1200)).await;
    server.freeze(true);
    assert_eq!(next(&mut watch).await, Event::Lost);
    server.freeze(false);
    assert_eq!(next(&mut watch).await, Event::Lost);
}
