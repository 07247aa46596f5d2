//! A mount whose session is lost goes on under another one.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use hfmount::error::Kind;
use hfmount::meta::LockKind::Exclusive;
use hfmount::meta::faulty::{Fault, FaultyKv, On};
use hfmount::meta::kv::{Key, Kv, SESSIONS, Txn, Write, session_field};
use hfmount::meta::{Committed, DataChange, LockKind, Meta};
use hfmount::types::{FileType, Ino, SessionId};

use crate::world::*;

const ROOT: Ino = Ino::ROOT;
const TTL: Duration = Duration::from_millis(600);

/// Two mounts; the first can be silenced.
struct Pair {
    kv: Arc<FaultyKv>,
    a: Meta,
    b: Meta,
}

impl Pair {
    async fn new(world: &World) -> Self {
        let kv = FaultyKv::new(world.kv().await);
        let a = mount_on(kv.clone(), TTL).await;
        let b = mount_on(world.kv().await, TTL).await;
        Pair { kv, a, b }
    }

    /// The first mount is silent until the second has declared it dead. Answers its session of before.
    async fn bury(&self) -> SessionId {
        let lost = self.bury_and_keep_silent().await;
        self.kv.heal();
        lost
    }

    async fn bury_and_keep_silent(&self) -> SessionId {
        let lost = self.a.session();
        self.kv.next(On::Beat, u64::MAX, Fault::Fail(Kind::TimedOut));
        let deadline = tokio::time::Instant::now() + TTL * 40;
        while self.b.sessions().await.expect("sessions").iter().any(|s| s.id == lost) {
            assert!(tokio::time::Instant::now() < deadline, "nobody declares the silent dead");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        lost
    }
}

async fn lock(meta: &Meta, ino: u64, kind: LockKind) -> bool {
    meta.try_lock(Ino(ino), 1, kind).await.expect("lock")
}

pub async fn it_goes_on_under_another_session(world: &World) {
    let pair = Pair::new(world).await;
    let (a, b) = (&pair.a, &pair.b);
    let early = file(a, ROOT, "early").await;
    let lost = pair.bury().await;
    let late = file(a, ROOT, "late").await;
    assert_ne!(a.session(), lost);
    assert!(a.is_own(lost) && a.is_own(a.session()) && !a.is_own(b.session()) && !a.fenced());
    assert_eq!(*a.renewals().borrow(), 1);
    assert_eq!(find(b, ROOT, "late").await.ino, late);
    assert!(a.is_own(find(b, ROOT, "late").await.version.session));
    assert_ne!(a.next_object().session, lost);
    a.unlink(ROOT, b"early").await.expect("unlink");
    a.hold_orphans(&[early]).await.expect("held under the new session");
    let sessions = b.sessions().await.expect("sessions");
    let its = sessions.iter().find(|s| s.id == a.session()).expect("registered");
    assert!(its.alive && its.former == [lost]);
    assert_eq!((sessions.len(), its.info.pid), (2, 7));
    // It lives on by its heartbeats.
    tokio::time::sleep(TTL * 4).await;
    assert_eq!((*a.renewals().borrow(), b.sessions().await.expect("sessions").len()), (1, 2));
    let again = pair.bury().await;
    file(a, ROOT, "third").await;
    let sessions = b.sessions().await.expect("sessions");
    assert_eq!(sessions.iter().find(|s| s.id == a.session()).expect("registered").former, [lost, again]);
}

pub async fn heartbeats_notice_by_themselves(world: &World) {
    let pair = Pair::new(world).await;
    let mut renewals = pair.a.renewals();
    pair.bury().await;
    tokio::time::timeout(TTL * 20, renewals.changed()).await.expect("in time").expect("alive");
    file(&pair.a, ROOT, "f").await;
}

pub async fn all_who_notice_at_once_get_one_session(world: &World) {
    let pair = Pair::new(world).await;
    pair.bury().await;
    let makes = (0..40).map(|n| {
        let a = pair.a.clone();
        async move { a.make(ROOT, format!("f{n}").as_bytes(), new(FileType::File, 0o644)).await }
    });
    let made = join_all(makes.map(tokio::spawn)).await;
    for made in made {
        made.expect("task").expect("make");
    }
    assert_eq!(*pair.a.renewals().borrow(), 1);
    assert_eq!(list(&pair.b, ROOT).await.len(), 40);
    assert_eq!(pair.b.sessions().await.expect("sessions").len(), 2);
}

pub async fn what_others_wrote_meanwhile_counts(world: &World) {
    let pair = Pair::new(world).await;
    let (a, b) = (&pair.a, &pair.b);
    let ino = file(a, ROOT, "f").await;
    let base = a.getattr(ino).await.expect("attr").version;
    let change = |text: &'static str| DataChange {
        size: text.len() as u64,
        inline: Some(text.into()),
        ..DataChange::default()
    };
    let lost = pair.bury().await;
    let Committed::Applied(theirs) = b.commit_data(ino, base, change("theirs")).await.expect("commit") else {
        panic!("nobody else wrote");
    };
    let Committed::Conflict(now) = a.commit_data(ino, base, change("ours")).await.expect("commit") else {
        panic!("the version is another one");
    };
    assert_eq!(now.version, theirs.version);
    let Committed::Applied(_) = a.commit_data(ino, now.version, change("ours")).await.expect("commit") else {
        panic!("the version is right");
    };
    assert_ne!(a.session(), lost, "that was noticed on the way");
    let rows = a.blobs();
    pair.bury().await;
    rows.mark_verified(sha256(1)).await.expect("rows of blobs are written under the next session too");
}

pub async fn locks_are_lost_with_the_session(world: &World) {
    let pair = Pair::new(world).await;
    let (a, b) = (&pair.a, &pair.b);
    assert!(lock(a, 77, Exclusive).await && lock(a, 78, Exclusive).await);
    pair.bury().await;
    assert!(lock(b, 77, Exclusive).await, "the dead hold nothing");
    assert!(!lock(a, 77, Exclusive).await);
    a.unlock(Ino(77), 1).await.expect("nothing to release");
    assert!(!lock(a, 77, Exclusive).await, "and another's was not released");
    assert!(lock(a, 78, Exclusive).await, "free, and taken under the new session");
    assert!(!lock(b, 78, Exclusive).await);
    b.unlock(Ino(77), 1).await.expect("unlock");
    assert!(lock(a, 77, Exclusive).await);
    // A lock that is asked for in the very moment is not recorded for the dead.
    pair.bury().await;
    assert!(lock(a, 79, Exclusive).await && !lock(b, 79, Exclusive).await);
    a.unlock(Ino(79), 1).await.expect("unlock");
    assert!(lock(b, 79, Exclusive).await);
}

/// As after a failover to a replica that was behind.
pub async fn a_server_may_forget_a_session(world: &World) {
    let pair = Pair::new(world).await;
    let lost = pair.a.session();
    let write = vec![Write::Del(Key::new(SESSIONS, session_field(lost)))];
    let kv: Arc<dyn Kv> = world.kv().await;
    let _ = kv.commit(Txn { write, ..Txn::default() }).await.expect("commit");
    file(&pair.a, ROOT, "f").await;
    assert!(pair.a.session() != lost && pair.a.is_own(lost));
}

pub async fn a_server_that_does_not_answer_is_no_reason_to_give_up(world: &World) {
    let pair = Pair::new(world).await;
    let lost = pair.bury_and_keep_silent().await;
    assert_eq!(kind(pair.a.make(ROOT, b"f", new(FileType::File, 0)).await), Kind::TimedOut);
    assert!(is_absent(&pair.b, ROOT, "f").await);
    pair.kv.heal();
    file(&pair.a, ROOT, "f").await;
    assert_ne!(pair.a.session(), lost);
}

/// What is compared between mounts is told by the engine's clock: here it is an hour off those of all mounts.
pub async fn clocks_that_are_off_delete_nothing_early(world: &World) {
    for hours in [-1, 1] {
        let kv = FaultyKv::new(world.kv().await);
        kv.skew(hours * 3600);
        let (a, b) = (mount_on(kv.clone(), TTL * 50).await, mount_on(kv.clone(), TTL * 50).await);
        a.set_tombstone_ttl(Duration::from_secs(60));
        let ino = file(&a, ROOT, "open").await;
        a.unlink(ROOT, b"open").await.expect("unlink");
        assert_eq!(b.reap_orphans(b.now()).await.expect("reap"), [], "it may be open for two TTLs");
        let later = hfmount::types::Timestamp(b.now().0 + 61_000_000_000);
        assert_eq!(
            b.reap_orphans(later).await.expect("reap").iter().map(|r| r.ino).collect::<Vec<_>>(),
            [ino]
        );
        let until = hfmount::types::Timestamp(a.now().0 + 60_000_000_000);
        a.set_tombstone(b"gone", Some(until)).await.expect("tombstone");
        assert_eq!(b.tombstone(b"gone").await.expect("tombstone"), Some(until));
        // Each reckons the engine's clock from its own questions: a busy machine sets them apart a little.
        let past = hfmount::types::Timestamp(a.now().0 - 10_000_000_000);
        a.set_tombstone(b"gone", Some(past)).await.expect("tombstone");
        assert_eq!(b.tombstone(b"gone").await.expect("tombstone"), None);
        let minute = Duration::from_secs(60);
        let job = format!("job {hours}");
        assert!(a.elect(&job, minute).await.expect("elect") && !b.elect(&job, minute).await.expect("elect"));
        let off = a.now().0 - hfmount::types::Timestamp::now().0 - hours * 3_600_000_000_000;
        assert!(off.abs() < 60_000_000_000, "the engine's clock, not this machine's: {off}");
        a.close().await.expect("close");
        b.close().await.expect("close");
    }
}

/// The engine's clock is set, or another server takes over whose clock is another one: who holds a deleted file by the old
/// clock has the time to say so by the new one.
pub async fn a_clock_that_jumps_takes_no_open_file_away(world: &World) {
    for hours in [1, -1] {
        let kv = FaultyKv::new(world.kv().await);
        let (a, b) = (mount_on(kv.clone(), TTL).await, mount_on(kv.clone(), TTL).await);
        let ino = file(&a, ROOT, "open").await;
        a.unlink(ROOT, b"open").await.expect("unlink");
        let mut reaped = Vec::new();
        let (mut refused, mut granted) = (0, 0);
        for round in 0..60 {
            if round == 20 {
                kv.skew(hours * 3600);
            }
            a.hold_orphans(&[ino]).await.expect("hold");
            match b.may_reap() {
                true => reaped.extend(b.reap_orphans(b.now()).await.expect("reap")),
                false => refused += 1,
            }
            granted += i32::from(b.may_reap());
            tokio::time::sleep(TTL / 8).await;
        }
        assert_eq!(reaped, [], "{hours}");
        assert!(refused > 16 && granted > 10, "waits after the start and the jump: {refused} {granted}");
        if hours > 0 {
            // Nobody holds it any more.
            let deadline = tokio::time::Instant::now() + TTL * 20;
            while reaped.is_empty() {
                assert!(tokio::time::Instant::now() < deadline, "it is never dropped");
                reaped = b.reap_orphans(b.now()).await.expect("reap");
                tokio::time::sleep(TTL / 8).await;
            }
            assert_eq!(reaped.iter().map(|r| r.ino).collect::<Vec<_>>(), [ino]);
        }
        a.close().await.expect("close");
        b.close().await.expect("close");
    }
}

/// Inode numbers are not used again although the server forgot that it gave them out.
pub async fn numbers_are_not_reused_after_the_server_went_back(world: &World) {
    let kv = FaultyKv::new(world.kv().await);
    kv.become_another("first");
    let (a, b) = (mount_on(kv.clone(), TTL * 50).await, mount_on(kv.clone(), TTL * 50).await);
    file(&a, ROOT, "kept").await;
    let before = kv.get(&[Key::new("ids", "ino")]).await.expect("get").pop().flatten().expect("counter");
    let lost: Vec<Ino> = join_all((0..300).map(|n| {
        let a = a.clone();
        async move { file(&a, ROOT, &format!("lost{n}")).await }
    }))
    .await;
    // The server restarts without its latest commits: the counter goes back, the files are gone.
    let mut write = vec![Write::Set(Key::new("ids", "ino"), before)];
    for (n, ino) in lost.iter().enumerate() {
        write.push(Write::Del(Key::new(format!("d{ROOT}/"), format!("lost{n}"))));
        write.push(Write::DelMap(format!("i{ino}")));
    }
    kv.become_another("second");
    let _ = kv.commit(Txn { write, ..Txn::default() }).await.expect("commit");
    for n in 0..600 {
        let meta = if n % 2 == 0 { &b } else { &a };
        let ino = file(meta, ROOT, &format!("new{n}")).await;
        assert!(!lost.contains(&ino), "{ino} was a lost file's, which may still be open");
    }
}
