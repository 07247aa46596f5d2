//! What is peculiar to Redis: who is let in, what an operation costs, what else lives in the server.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hfmount::error::Kind;
use hfmount::meta::kv::{Change, Event, Expect, Key, Kv, Outcome, SESSIONS, Txn, Write, session_field};
use hfmount::meta::redis::{RedisAddress, RedisKv, RedisOptions};
use hfmount::meta::sqlite::Missing;
use hfmount::meta::url::{MetaUrl, open_engine};
use hfmount::types::{Ino, SessionId};

use crate::redis_server::RedisServer;
use crate::world::{attempt, key, next, redis_options, set, silence, value, write};

/// Every command that the server ran meanwhile, scripts' own included; not those of connecting.
async fn cost(server: &RedisServer, run: impl Future<Output = ()>) -> BTreeMap<String, u64> {
    let read = || -> BTreeMap<String, u64> {
        let stats = server.ask(&["INFO", "commandstats"]);
        let calls = |line: &str| {
            let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            Some((name.to_owned(), rest.split(',').next()?.parse().ok()?))
        };
        stats.lines().filter_map(calls).collect()
    };
    let before = read();
    run.await;
    let mut after = read();
    after.retain(|name, calls| {
        *calls -= before.get(name).unwrap_or(&0);
        *calls > 0 && name != "info"
    });
    after
}

fn table(rows: &[(&str, u64)]) -> BTreeMap<String, u64> {
    rows.iter().map(|(name, calls)| ((*name).to_owned(), *calls)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_are_one_command() {
    let server = RedisServer::start();
    let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
    let session = SessionId::random();
    write(&*kv, vec![Write::Set(Key::new(SESSIONS, session_field(session)), "row".into())]).await;
    write(&*kv, vec![set("i1", "a", "dir"), set("d1/", "old", 7_u64.to_be_bytes()), set("i7", "a", "x")])
        .await;
    // The scripts are loaded by their first use.
    kv.get(&[key("i1", "a"), key("i7", "a")]).await.expect("get");
    kv.follow(&key("d1/", "old"), &["a".into()]).await.expect("follow");
    kv.scan("d1/", 0, 10).await.expect("scan");

    let one_map = cost(&server, async {
        kv.get(&[key("i1", "a"), key("i1", "m"), key("i1", "n")]).await.expect("get");
    });
    assert_eq!(one_map.await, table(&[("hmget", 1)]));
    let two_maps = cost(&server, async {
        kv.get(&[key("i1", "a"), key("i1", "m"), key("i7", "a")]).await.expect("get");
    });
    assert_eq!(two_maps.await, table(&[("evalsha", 1), ("hmget", 1), ("hget", 1)]));
    let lookup = cost(&server, async {
        kv.follow(&key("d1/", "old"), &["a".into(), "m".into()]).await.expect("follow");
    });
    assert_eq!(lookup.await, table(&[("evalsha", 1), ("hget", 1), ("hmget", 1)]));
    let scan = cost(&server, async {
        kv.scan("d1/", 0, 1000).await.expect("scan");
    });
    assert_eq!(scan.await, table(&[("evalsha", 1), ("zrangebyscore", 1), ("hmget", 1)]));
    // The first that is told begins the log and rings.
    let news = Txn { publish: vec![Change::Inode { ino: Ino(1) }], ..Txn::default() };
    assert_eq!(kv.commit(news).await.expect("commit"), Outcome::Applied);
    // A create: two expectations, an inode, a name, the directory's time, the volume's count.
    let create = cost(&server, async {
        let txn = Txn {
            session: Some(session),
            expect: vec![Expect::Present(key("i1", "a")), Expect::Absent(key("d1/", "new"))],
            write: vec![
                set("i8", "a", "row"),
                set("d1/", "new", 8_u64.to_be_bytes()),
                Write::Max(key("i1", "m"), 1_795_000_000_000_000_000),
                Write::AddBounded(key("v", "inodes"), 1, 1 << 40),
            ],
            publish: vec![Change::Entry { parent: Ino(1), name: Bytes::from_static(b"new") }],
        };
        assert_eq!(kv.commit(txn).await.expect("commit"), Outcome::Applied);
    });
    let want = [
        ("evalsha", 1),
        ("mget", 1), // the slot, whether somebody exports, whether all readers of the log are awake
        ("hexists", 1 + 2), // the session; the expectations
        ("hget", 2), // the two numbers
        ("hset", 4),
        ("incr", 1),
        ("zadd", 1),
        ("append", 1), // to the log
        ("set", 1),    // the slot
    ];
    assert_eq!(create.await, table(&want));
    let conflict = cost(&server, async {
        let outcome = attempt(&*kv, vec![Expect::Absent(key("i1", "a"))], vec![set("x", "y", "z")]).await;
        assert_eq!(outcome.expect("commit"), Outcome::Conflict(0));
    });
    assert_eq!(conflict.await, table(&[("evalsha", 1), ("mget", 1), ("hexists", 1)]));
    // Many fields of one inode: one call.
    let chunks = cost(&server, async {
        let rows = (0..1500).map(|n| set("i8", format!("c{n}"), "row")).collect();
        let outcome =
            attempt(&*kv, vec![Expect::Equals(key("i8", "a"), Bytes::from_static(b"row"))], rows).await;
        assert_eq!(outcome.expect("commit"), Outcome::Applied);
    });
    assert_eq!(chunks.await, table(&[("evalsha", 1), ("mget", 1), ("hget", 1), ("hset", 3), ("set", 1)]));
    let liveness = cost(&server, async {
        kv.beat(session, Duration::from_secs(9)).await.expect("beat");
        kv.alive(&[session, SessionId(1), SessionId(2)]).await.expect("alive");
    });
    assert_eq!(liveness.await, table(&[("set", 1), ("mget", 1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_keys_are_in_one_slot() {
    let server = RedisServer::start();
    let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
    write(&*kv, vec![set("d1/", "a", "1"), set("i1", "a", "1"), Write::Add(key("v", "n"), 1)]).await;
    kv.beat(SessionId(5), Duration::from_secs(60)).await.expect("beat");
    let keys = server.ask(&["EVAL", "return table.concat(redis.call('KEYS', '*'), ' ')", "0"]);
    let mut names: Vec<&str> = keys.split(' ').collect();
    names.sort_unstable();
    let ring = names.iter().position(|name| name.starts_with("{hfmount}@ring:")).expect("ring");
    names.remove(ring);
    let want = [
        "{hfmount}#d1/",
        "{hfmount}:d1/",
        "{hfmount}:i1",
        "{hfmount}:v",
        "{hfmount}@alive:0000000000000005",
        "{hfmount}@entry",
    ];
    assert_eq!(names, want);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_side_by_side_do_not_mix() {
    let server = RedisServer::start();
    let base = redis_options(server.address());
    let other_prefix = RedisOptions { prefix: "other".to_owned(), ..base.clone() };
    let other_db = RedisOptions { db: 1, ..base.clone() };
    let mut volumes: Vec<Arc<dyn Kv>> = Vec::new();
    for options in [base, other_prefix, other_db] {
        volumes.push(RedisKv::open(options).await.expect("open"));
    }
    let mut watches = Vec::new();
    for kv in &volumes {
        watches.push(kv.watch().await.expect("watch"));
    }
    let publish = vec![Change::Inode { ino: Ino(9) }];
    let txn = Txn { write: vec![set("m", "a", "1")], publish: publish.clone(), ..Txn::default() };
    assert_eq!(volumes[0].commit(txn).await.expect("commit"), Outcome::Applied);
    volumes[0].beat(SessionId(5), Duration::from_secs(60)).await.expect("beat");
    assert_eq!(next(&mut watches[0]).await, Event::Changed { change: publish[0].clone(), by: None });
    for (kv, watch) in volumes.iter().zip(&mut watches).skip(1) {
        assert_eq!(value(&**kv, "m", "a").await, None);
        assert_eq!(kv.alive(&[SessionId(5)]).await.expect("alive"), [false]);
        silence(watch).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_credentials_are_told_at_once() {
    let server = RedisServer::start_with(&["--requirepass", "correct-horse"]);
    let acl = ["ACL", "SETUSER", "reader", "on", ">hunter2", "~*", "&*", "+@all", "-evalsha", "-info"];
    let admin =
        RedisOptions { password: Some("correct-horse".to_owned()), ..redis_options(server.address()) };
    let with = |username: Option<&str>, password: Option<&str>| RedisOptions {
        username: username.map(str::to_owned),
        password: password.map(str::to_owned),
        ..admin.clone()
    };
    let kv = RedisKv::open(admin.clone()).await.expect("open");
    write(&*kv, vec![set("m", "a", "1")]).await;
    // The server's own hand, with the password first.
    let mut raw = std::net::TcpStream::connect(server.address()).expect("connect");
    let script = format!("AUTH correct-horse\r\n{}\r\nPING\r\n", acl.join(" "));
    std::io::Write::write_all(&mut raw, script.as_bytes()).expect("send");
    let mut reply = String::new();
    while !reply.contains("PONG") {
        let mut piece = [0; 256];
        let n = std::io::Read::read(&mut raw, &mut piece).expect("reply");
        assert_ne!(n, 0, "hung up after {reply:?}");
        reply += std::str::from_utf8(&piece[..n]).expect("text");
    }
    assert_eq!(reply, "+OK\r\n+OK\r\n+PONG\r\n");

    for options in [with(None, None), with(None, Some("hunter3")), with(Some("nobody"), Some("hunter3"))] {
        let began = Instant::now();
        let error = RedisKv::open(options.clone()).await.expect_err("must be refused");
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert_eq!(error.kind(), Kind::Config, "{error}");
        for text in [error.to_string(), format!("{error:?}"), format!("{options:?}")] {
            assert!(!text.contains("hunter"), "{text}");
        }
    }
    // A user without the right to run scripts gets in, and is told what is wrong.
    let reader = RedisKv::open(with(Some("reader"), Some("hunter2"))).await.expect("open");
    assert_eq!(value(&*reader, "m", "a").await.as_deref(), Some("1"));
    let began = Instant::now();
    let error = attempt(&*reader, vec![], vec![set("m", "a", "2")]).await.expect_err("no rights");
    assert_eq!(error.kind(), Kind::Config, "{error}");
    assert!(began.elapsed() < Duration::from_secs(2));
    // Who may not ask INFO is not warned, and works.
    let info = reader.info().await.expect("info");
    assert_eq!((info.name.as_str(), info.warnings.len()), ("redis", 0));
    assert!(!format!("{reader:?}").contains("hunter"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_listens_is_told_at_once() {
    let mut server = RedisServer::start();
    let options = redis_options(server.address());
    server.kill();
    let unknown = RedisOptions::new(RedisAddress::Tcp {
        host: "no-such-host.invalid".to_owned(),
        port: 6379,
        tls: false,
    });
    let socket = RedisOptions::new(RedisAddress::Unix(server.dir().join("none.sock")));
    for options in [options, unknown, socket] {
        let began = Instant::now();
        let error = RedisKv::open(options.clone()).await.expect_err("nobody there");
        assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
        assert_eq!(error.kind(), Kind::Unavailable, "{error}");
        assert!(error.to_string().starts_with(&options.to_string()), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_is_checked() {
    for prefix in ["", "a}b", "a b", "ä", &"x".repeat(65)] {
        let address = RedisAddress::Unix("/nowhere".into());
        let options = RedisOptions { prefix: prefix.to_owned(), ..RedisOptions::new(address) };
        assert_eq!(RedisKv::open(options).await.expect_err("bad prefix").kind(), Kind::Config);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn urls_lead_to_engines() {
    let server = RedisServer::start();
    let dir = server.dir();
    let socket_server =
        RedisServer::start_with(&["--unixsocket", dir.join("s.sock").to_str().expect("UTF-8")]);
    let file = dir.join("volume.db");
    for text in [
        format!("{}?prefix=x", server.url()),
        format!("redis+unix://{}?db=3", dir.join("s.sock").display()),
        file.display().to_string(),
    ] {
        let url = MetaUrl::parse(&text).expect("url");
        for _ in 0..2 {
            let kv = open_engine(&url, Missing::Create).await.expect("open");
            write(&*kv, vec![Write::Add(key("v", "n"), 1)]).await;
        }
        let kv = open_engine(&url, Missing::Refuse).await.expect("open");
        assert_eq!(value(&*kv, "v", "n").await.as_deref(), Some("2"), "{text}");
    }
    drop(socket_server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dangerous_settings_are_told() {
    let safe = RedisServer::start();
    let kv = RedisKv::open(redis_options(safe.address())).await.expect("open");
    let info = kv.info().await.expect("info");
    assert!(info.name.starts_with("redis ") || info.name.starts_with("valkey "), "{}", info.name);
    assert_eq!(info.warnings, Vec::<String>::new());
    let unsafe_args = ["--appendonly", "no", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let server = RedisServer::start_with(&unsafe_args);
    let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
    let warnings = kv.info().await.expect("info").warnings;
    assert_eq!(warnings.len(), 2);
    assert!(warnings[0].contains("appendonly"), "{warnings:?}");
    assert!(warnings[1].contains("allkeys-lru"), "{warnings:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_has_no_space() {
    let server = RedisServer::start();
    let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
    write(&*kv, vec![set("m", "a", "1"), set("d1/", "a", "1")]).await;
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    let error = attempt(&*kv, vec![], vec![set("m", "a", "2"), set("m", "b", "2")]).await.expect_err("full");
    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
    assert_eq!(value(&*kv, "m", "a").await.as_deref(), Some("1"));
    assert_eq!(value(&*kv, "m", "b").await, None);
    server.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    write(&*kv, vec![set("m", "a", "2")]).await;
}

/// The rights that the module's documentation asks for suffice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confined_user_suffices() {
    let server = RedisServer::start();
    let user = "ACL SETUSER hf on >pw resetkeys resetchannels ~{hfmount}* &{hfmount}* +@all -@admin -@dangerous +info";
    assert_eq!(server.ask(&user.split(' ').collect::<Vec<_>>()), "+OK");
    let (username, password) = (Some("hf".to_owned()), Some("pw".to_owned()));
    let options = RedisOptions { username, password, ..redis_options(server.address()) };
    let kv = RedisKv::open(options).await.expect("open");
    let mut watch = kv.watch().await.expect("watch");
    let change = Change::Inode { ino: Ino(1) };
    let write =
        vec![set("d1/", "a", 7_u64.to_be_bytes()), set("i7", "a", "row"), Write::DelMap("d2/".to_owned())];
    let txn = Txn { write, publish: vec![change.clone()], ..Txn::default() };
    assert_eq!(kv.commit(txn).await.expect("commit"), Outcome::Applied);
    assert_eq!(next(&mut watch).await, Event::Changed { change, by: None });
    assert_eq!(kv.get(&[key("i7", "a"), key("d1/", "b")]).await.expect("get").len(), 2);
    assert!(kv.follow(&key("d1/", "a"), &["a".into()]).await.expect("follow").is_some());
    assert_eq!(kv.scan("d1/", 0, 10).await.expect("scan").len(), 1);
    kv.beat(SessionId(1), Duration::from_secs(9)).await.expect("beat");
    assert_eq!(kv.alive(&[SessionId(1)]).await.expect("alive"), [true]);
    assert!(kv.info().await.expect("info").name.contains(' '));
}

/// What other programs did to the server's keys must not look like an empty volume.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_types_are_errors() {
    let server = RedisServer::start();
    let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
    server.ask(&["SET", "{hfmount}:m", "string"]);
    assert_eq!(kv.get(&[key("m", "a")]).await.expect_err("string").kind(), Kind::Internal);
    let expect = vec![Expect::Absent(key("m", "a"))];
    assert_eq!(attempt(&*kv, expect, vec![]).await.expect_err("string").kind(), Kind::Internal);
}

/// Whoever reads everything leaves nothing behind, and does not go on when commits are no longer noted for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_and_their_flag() {
    let server = RedisServer::start_with(&[]);
    let kv = RedisKv::open(redis_options(server.address())).await.expect("open");
    let rows = |n: usize| (n..n + 1_000).map(|n| set(&format!("i{n}"), "a", vec![0; 200])).collect();
    for n in 0..20 {
        write(&*kv, rows(n * 1_000)).await;
    }
    let mut export = kv.export().await.expect("export");
    let busy = RedisKv::open(redis_options(server.address())).await.expect("open").export().await;
    assert_eq!(busy.expect_err("one at a time").kind(), Kind::Busy);
    assert_eq!(server.ask(&["EXISTS", "{hfmount}@export"]), ":1");
    write(&*kv, vec![set("i1", "b", "noted")]).await;
    assert_eq!(server.ask(&["SCARD", "{hfmount}@touched"]), ":1");
    server.ask(&["DEL", "{hfmount}@export"]);
    let error = loop {
        match export.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("an export without its flag is no export"),
            Err(e) => break e,
        }
    };
    assert_eq!(error.kind(), Kind::Unavailable);
    let mut export = kv.export().await.expect("export");
    let mut seen = 0;
    while let Some(piece) = export.next().await.expect("piece") {
        seen += match piece {
            hfmount::meta::kv::Piece::Set { rows, .. } => rows.len(),
            other => panic!("nothing changed: {other:?}"),
        };
    }
    assert_eq!(seen, 20_001);
    assert_eq!(server.ask(&["KEYS", "{hfmount}@[et][xo]*"]), "*0");
    // Without an export nothing is noted.
    write(&*kv, vec![set("i1", "b", "not noted")]).await;
    assert_eq!(server.ask(&["EXISTS", "{hfmount}@touched"]), ":0");
}
