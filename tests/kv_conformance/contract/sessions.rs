//! Sessions and the push channel.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hfmount::error::Kind;
use hfmount::meta::kv::{Change, Event, Expect, Key, Kv, Outcome, SESSIONS, Txn, Write, session_field};
use hfmount::types::{Ino, SessionId};

use crate::world::{World, key, next, set, silence, txn, value, write};

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
    for _ in 0..40 {
        let txn = Txn { publish: publish.clone(), ..Txn::default() };
        assert_eq!(kv.commit(txn).await.expect("commit"), Outcome::Applied);
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(next(&mut watch).await, Event::Lost);
    // What was not lost follows, if there is any of it; what comes now is heard in any case.
    let txn = Txn { publish: vec![Change::Inode { ino: Ino(5000) }], ..Txn::default() };
    assert_eq!(kv.commit(txn).await.expect("commit"), Outcome::Applied);
    let is_last = |event| matches!(event, Event::Changed { change: Change::Inode { ino: Ino(5000) }, .. });
    while !is_last(next(&mut watch).await) {}
}

pub async fn heartbeats_run_out(world: &dyn World) {
    let (one, two) = (world.open().await, world.open().await);
    let [a, b, c] = [SessionId::random(), SessionId(0), SessionId::random()];
    one.beat(a, Duration::from_millis(1500)).await.expect("beat");
    two.beat(b, Duration::from_secs(60)).await.expect("beat");
    assert_eq!(two.alive(&[a, c, b]).await.expect("alive"), [true, false, true]);
    tokio::time::sleep(Duration::from_millis(1600)).await;
    assert_eq!(two.alive(&[a, c, b]).await.expect("alive"), [false, false, true]);
    one.beat(a, Duration::from_secs(60)).await.expect("beat");
    one.beat(b, Duration::from_secs(60)).await.expect("beat");
    assert_eq!(one.alive(&[b, a]).await.expect("alive"), [true, true]);
}

pub async fn one_clock_for_all(world: &dyn World) {
    let (a, b) = (world.open().await, world.open().await);
    let mut last = a.now().await.expect("now");
    let off = last.0 - hfmount::types::Timestamp::now().0;
    assert!(off.abs() < 60_000_000_000, "the server is on this machine: {off}");
    for kv in [&b, &a, &b] {
        let now = kv.now().await.expect("now");
        assert!(now >= last, "{now:?} after {last:?}");
        last = now;
    }
}

/// Once something committed long ago counts as heard, it was.
pub async fn what_was_heard_is_known(world: &dyn World) {
    let (a, b) = (world.open().await, world.open().await);
    let mut watch = b.watch().await.expect("watch");
    for round in 1..6 {
        let change = Change::Inode { ino: Ino(round) };
        let txn = Txn { publish: vec![change.clone()], ..Txn::default() };
        assert_eq!(a.commit(txn).await.expect("commit"), Outcome::Applied);
        let committed = tokio::time::Instant::now();
        let deadline = committed + Duration::from_secs(20);
        while b.heard_until().is_none_or(|until| until < committed) {
            assert!(tokio::time::Instant::now() < deadline, "it is never known that all was heard");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let heard = watch.try_next().expect("it was heard before that was known");
        assert_eq!(heard, Event::Changed { change, by: None });
    }
}

pub async fn info_names_the_engine(world: &dyn World) {
    let kv: Arc<dyn Kv> = world.open().await;
    let info = kv.info().await.expect("info");
    let (name, version) = info.name.split_once(' ').unwrap_or((&info.name, "0"));
    assert!(["memory", "sqlite", "redis", "valkey"].contains(&name), "{name}");
    assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{version}");
    assert!(format!("{kv:?}").contains("Kv"));
}
