//! Sessions, and what concerns the volume as a whole.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hfmount::error::Kind;
use hfmount::meta::dump::{dump, load};
use hfmount::meta::faulty::FaultyKv;
use hfmount::meta::kv::{Key, Kv, Outcome, Txn, Write};
use hfmount::meta::memory::MemoryKv;
use hfmount::meta::{
    Content, DataChange, InodeRow, Layout, LockKind, Meta, SCHEMA, SchemaRow, list_sessions, read_settings,
    write_settings,
};
use hfmount::types::{FileType, Ino};

use crate::decorators::Faulty;
use crate::world::*;

const ROOT: Ino = Ino::ROOT;

pub async fn sessions_are_listed(world: &World) {
    let (a, b) = (world.mount().await, world.mount().await);
    let mut listed = a.sessions().await.expect("sessions");
    listed.sort_by_key(|s| s.id);
    let mut ids = [a.session(), b.session()];
    ids.sort();
    assert_eq!(listed.iter().map(|s| s.id).collect::<Vec<_>>(), ids);
    assert!(listed.iter().all(|s| s.alive && s.info.host == "node" && s.info.pid == 7));
    b.close().await.expect("close");
    let kv = world.kv().await;
    assert_eq!(list_sessions(&*kv).await.expect("sessions").len(), 1);
}

pub async fn a_closed_session_holds_nothing(world: &World) {
    let (a, b) = (world.mount().await, world.mount().await);
    for n in 0..300 {
        assert!(a.try_lock(Ino(100 + n), 1, LockKind::Exclusive).await.expect("lock"));
    }
    a.close().await.expect("close");
    for n in 0..300 {
        assert!(b.try_lock(Ino(100 + n), 1, LockKind::Exclusive).await.expect("lock"));
    }
    assert_eq!(kind(a.make(ROOT, b"f", new(FileType::File, 0)).await), Kind::Fenced);
    assert_eq!(kind(a.try_lock(Ino(500), 1, LockKind::Shared).await), Kind::Fenced);
    assert!(a.fenced() && *a.renewals().borrow() == 0, "who ended by himself does not come back");
}

pub async fn a_silent_session_is_declared_dead(world: &World) {
    let ttl = Duration::from_millis(900);
    let silent = Faulty::new(world.kv().await);
    let a = mount_on(silent.clone(), ttl).await;
    let b = mount_on(world.kv().await, ttl).await;
    assert!(a.try_lock(Ino(77), 1, LockKind::Exclusive).await.expect("lock"));
    // It goes on living for as long as it is heard.
    tokio::time::sleep(ttl * 3).await;
    assert!(!b.try_lock(Ino(77), 1, LockKind::Exclusive).await.expect("lock") && !a.fenced());
    silent.mute();
    let dead = a.session();
    let deadline = tokio::time::Instant::now() + ttl * 10;
    while !b.try_lock(Ino(77), 1, LockKind::Exclusive).await.expect("lock") {
        assert!(tokio::time::Instant::now() < deadline, "the lock of the dead is never released");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // It notices, and is another one from then on.
    a.make(ROOT, b"f", new(FileType::File, 0)).await.expect("under another session");
    assert!(a.session() != dead && !a.fenced() && !b.fenced());
    assert!(!b.sessions().await.expect("sessions").iter().any(|s| s.id == dead));
    assert!(!a.try_lock(Ino(77), 1, LockKind::Exclusive).await.expect("lock"), "it is another's now");
}

pub async fn one_mount_is_elected(world: &World) {
    let (a, b) = (world.mount().await, world.mount().await);
    let hour = Duration::from_secs(3600);
    assert!(a.elect("gc", hour).await.expect("elect"));
    assert!(!b.elect("gc", hour).await.expect("elect"));
    assert!(b.elect("reap", hour).await.expect("elect"));
    // Far longer than the two may disagree about the time.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(b.elect("gc", Duration::from_millis(1)).await.expect("elect"));
    let candidates = (0..8).map(|_| a.elect("one", hour));
    let elected = futures::future::join_all(candidates).await;
    assert_eq!(elected.into_iter().filter(|e| *e.as_ref().expect("elect")).count(), 1);
}

/// Two mounts know the engine's clock to within a round trip: who was behind took the other's time for one of a clock that
/// was set back, and elected itself as well.
pub async fn regression_who_is_a_little_behind_is_not_elected(world: &World) {
    let off_by = async |seconds| {
        let kv = FaultyKv::new(world.kv().await);
        kv.skew(seconds);
        mount_on(kv, Duration::from_secs(600)).await
    };
    let (a, behind, far_behind) = (off_by(0).await, off_by(-2).await, off_by(-5000).await);
    let hour = Duration::from_secs(3600);
    assert!(a.elect("gc", hour).await.expect("elect"));
    assert!(!behind.elect("gc", hour).await.expect("elect"));
    // But a clock that was set back by much does not keep a job undone.
    assert!(far_behind.elect("gc", hour).await.expect("elect"));
}

pub async fn settings_are_compared_and_set(world: &World) {
    let kv = world.kv().await;
    assert!(read_settings::<String>(&*kv).await.expect("read").is_none());
    let (one, two) = ("one".to_owned(), "two".to_owned());
    assert!(write_settings(&*kv, None, &one).await.expect("write"));
    assert!(!write_settings(&*kv, None, &two).await.expect("only if there are none"));
    let read = read_settings::<String>(&*kv).await.expect("read").expect("settings");
    assert_eq!(read.value, one);
    assert!(write_settings(&*kv, Some(&read), &two).await.expect("write"));
    assert!(!write_settings(&*kv, Some(&read), &one).await.expect("somebody was faster"));
    let meta = world.mount().await;
    assert_eq!(meta.settings::<String>().await.expect("read").expect("settings").value, two);
    assert_eq!(kind(read_settings::<u64>(&*kv).await), Kind::Corrupt);
    assert_eq!(nlink(&meta, ROOT).await, 2);
}

/// A volume of 0.1.0, or a dump of one, serves and is of this layout from then on.
pub async fn older_layouts_are_raised(world: &World) {
    let kv: Arc<dyn Kv> = match world {
        World::Memory(kv) => kv.clone(),
        _ => world.kv().await,
    };
    let settings = serde_json::json!({ "name": "team", "uuid": "00ff" });
    assert!(write_settings(&*kv, None, &settings).await.expect("settings"));
    let meta = world.mount().await;
    let ino = file(&meta, ROOT, "f").await;
    let base = meta.getattr(ino).await.expect("getattr").version;
    let inline = Some(Bytes::from_static(b"of old"));
    let change = DataChange { size: 6, inline, ..DataChange::default() };
    let _ = meta.commit_data(ino, base, change).await.expect("write");
    meta.close().await.expect("close");

    // The rows as 0.1.0 wrote them: without what came later, at their end.
    let (attr, schema) = (Key::new(format!("i{ino}"), "a"), Key::new("v", "schema"));
    let raw = kv.get(std::slice::from_ref(&attr)).await.expect("get").pop().flatten().expect("a row");
    let row: InodeRow = rmp_serde::from_slice(&raw).expect("decode");
    let row = InodeRow { chunks: 0, layout: Layout::default(), ..row };
    let mut raw = rmp_serde::to_vec(&row).expect("encode");
    assert_eq!(raw[..3], [0xdc, 0, 22]);
    raw[2] = 16;
    raw.truncate(raw.len() - 9);
    let of_old = rmp_serde::to_vec(&SchemaRow { version: 1, oldest: 1 }).expect("encode");
    let write = vec![Write::Set(attr, raw.into()), Write::Set(schema.clone(), of_old.into())];
    assert_eq!(kv.commit(Txn { write, ..Txn::default() }).await.expect("commit"), Outcome::Applied);

    let mut dumped = Vec::new();
    dump(&*kv, &mut dumped, |_| {}).await.expect("dump");
    let copy = MemoryKv::new();
    load(&*copy, &mut &dumped[..], |_| {}).await.expect("a dump of the old layout");
    for kv in [kv, copy] {
        // Two at once, as a cluster is started.
        let ttl = Duration::from_secs(60);
        let (one, two) =
            tokio::join!(Meta::open(kv.clone(), info("a"), ttl), Meta::open(kv.clone(), info("b"), ttl));
        let (meta, _two) = (one.expect("opens"), two.expect("opens"));
        let raw = kv.get(std::slice::from_ref(&schema)).await.expect("get").pop().flatten().expect("a row");
        let now: SchemaRow = rmp_serde::from_slice(&raw).expect("decode");
        assert_eq!((now.version, now.oldest), (SCHEMA, SCHEMA), "0.1.0 is refused from now on");
        let found = meta.lookup(ROOT, b"f").await.expect("lookup").expect("there");
        assert_eq!((found.ino, found.size), (ino, 6));
        assert_eq!(found.content, Content::Inline(Bytes::from_static(b"of old")));
        let made = file(&meta, ROOT, "new").await;
        assert!(made > ino);
    }
}

pub async fn newer_layouts_are_refused(world: &World) {
    let kv = world.kv().await;
    let newer = |oldest| {
        let row = rmp_serde::to_vec(&SchemaRow { version: 9, oldest }).expect("encode");
        Txn { write: vec![Write::Set(Key::new("v", "schema"), row.into())], ..Txn::default() }
    };
    world.mount().await.close().await.expect("close");
    let _ = kv.commit(newer(9)).await.expect("commit");
    let opened = hfmount::meta::Meta::open(world.kv().await, info("old"), Duration::from_secs(60)).await;
    let error = opened.expect_err("too new");
    assert_eq!(error.kind(), Kind::Config);
    let words =
        format!("the volume has metadata layout 9 and this hfmount knows {SCHEMA}: use a newer hfmount");
    assert!(error.to_string().contains(&words), "{error}");
    // Newer, but made so that older clients may go on.
    let _ = kv.commit(newer(1)).await.expect("commit");
    world.mount().await;
}
