//! What is peculiar to SQLite: the file, other processes, and a process that dies.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hfmount::error::Kind;
use hfmount::meta::kv::{Change, Event, Expect, Kv, Outcome, Txn, Write};
use hfmount::meta::sqlite::{Missing, SqliteKv};
use hfmount::types::{Ino, SessionId};
use tempfile::TempDir;

use crate::world::{attempt, key, next, scan_all, set, silence, value, write};

fn volume() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("volume.db");
    (dir, path)
}

async fn open(path: &Path) -> Arc<SqliteKv> {
    SqliteKv::open(path, Missing::Create).await.expect("open")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_is_there_later() {
    let (_dir, path) = volume();
    let kv = open(&path).await;
    write(&*kv, vec![set("d1/", "a", "1"), set("m", "a", "1")]).await;
    let entries = scan_all(&*kv, "d1/", 10).await;
    drop(kv);
    let kv = SqliteKv::open(&path, Missing::Refuse).await.expect("open");
    assert_eq!(scan_all(&*kv, "d1/", 10).await, entries);
    write(&*kv, vec![set("d1/", "b", "1")]).await;
    assert!(scan_all(&*kv, "d1/", 10).await[1].id > entries[0].id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_its_owner_reads_it() {
    let (_dir, path) = volume();
    let path = path.parent().expect("folder").join("new/deep/volume.db");
    let kv = open(&path).await;
    write(&*kv, vec![set("m", "a", "1")]).await;
    let mode = |path: &Path| path.metadata().expect("metadata").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&path.with_extension("db-wal")), 0o600);
    let folder = path.parent().expect("folder");
    assert_eq!(mode(folder), 0o700);
    let mut names: Vec<_> =
        folder.read_dir().expect("folder").map(|entry| entry.expect("entry").file_name()).collect();
    names.sort();
    assert_eq!(names, ["volume.db", "volume.db-shm", "volume.db-wal"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_file_is_not_made_by_mount() {
    let (_dir, path) = volume();
    let error = SqliteKv::open(&path, Missing::Refuse).await.expect_err("missing");
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.to_string().contains("volume.db"), "{error}");
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_may_open_a_new_file_at_once() {
    for _ in 0..10 {
        let (_dir, path) = volume();
        let opens: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                tokio::spawn(
                    async move { write(&*open(&path).await, vec![Write::Add(key("v", "n"), 1)]).await },
                )
            })
            .collect();
        for opened in opens {
            opened.await.expect("task");
        }
        assert_eq!(value(&*open(&path).await, "v", "n").await.as_deref(), Some("8"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_others_are_refused_and_left_alone() {
    let (_dir, path) = volume();
    let foreign = rusqlite::Connection::open(&path).expect("open");
    foreign.execute_batch("CREATE TABLE theirs(x)").expect("table");
    drop(foreign);
    let before = std::fs::read(&path).expect("read");
    let error = SqliteKv::open(&path, Missing::Create).await.expect_err("foreign");
    assert_eq!(error.kind(), Kind::Config, "{error}");
    assert!(std::fs::read(&path).expect("read") == before, "the file was changed");

    std::fs::write(&path, "no database at all, but long enough to look at. ".repeat(100)).expect("write");
    let error = SqliteKv::open(&path, Missing::Create).await.expect_err("no database");
    assert_eq!(error.kind(), Kind::Config, "{error}");

    std::fs::remove_file(&path).expect("remove");
    drop(open(&path).await);
    let later = rusqlite::Connection::open(&path).expect("open");
    later.pragma_update(None, "user_version", 99).expect("version");
    drop(later);
    let error = SqliteKv::open(&path, Missing::Create).await.expect_err("later layout");
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.to_string().contains("layout 99"), "{error}");

    let error = SqliteKv::open("/proc/none/volume.db", Missing::Create).await.expect_err("no folder");
    assert!(matches!(error.kind(), Kind::NotFound | Kind::Access), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_elsewhere_is_waited_for() {
    let (_dir, path) = volume();
    let kv = open(&path).await;
    write(&*kv, vec![set("m", "a", "1")]).await;
    let other = rusqlite::Connection::open(&path).expect("open");
    other.execute_batch("BEGIN IMMEDIATE").expect("lock");
    let waiting = {
        let kv = kv.clone();
        tokio::spawn(async move { attempt(&*kv, vec![], vec![set("m", "a", "2")]).await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    // Reading goes on beside it.
    assert_eq!(value(&*kv, "m", "a").await.as_deref(), Some("1"));
    other.execute_batch("COMMIT").expect("unlock");
    assert_eq!(waiting.await.expect("task").expect("commit"), Outcome::Applied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trimmed_events_are_lost() {
    let (_dir, path) = volume();
    let (kv, other) = (open(&path).await, open(&path).await);
    let mut watch = kv.watch().await.expect("watch");
    let publish = |ino: u64| Txn { publish: vec![Change::Inode { ino: Ino(ino) }], ..Txn::default() };
    assert_eq!(other.commit(publish(1)).await.expect("commit"), Outcome::Applied);
    assert!(matches!(next(&mut watch).await, Event::Changed { .. }));
    // As if thousands had come and gone between two looks.
    let raw = rusqlite::Connection::open(&path).expect("open");
    raw.execute_batch(
        "BEGIN; DELETE FROM events; INSERT INTO events(id, origin, body) VALUES (9000, 0, x''); COMMIT",
    )
    .expect("trim");
    assert_eq!(next(&mut watch).await, Event::Lost);
    assert_eq!(other.commit(publish(2)).await.expect("commit"), Outcome::Applied);
    assert_eq!(next(&mut watch).await, Event::Changed { change: Change::Inode { ino: Ino(2) }, by: None });
    // A list too long to keep is told in one word, to the others.
    let many =
        Txn { publish: (0..60_000).map(|ino| Change::Inode { ino: Ino(ino) }).collect(), ..Txn::default() };
    assert_eq!(other.commit(many).await.expect("commit"), Outcome::Applied);
    assert_eq!(next(&mut watch).await, Event::Lost);
    silence(&mut watch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_do_not_fill_the_file() {
    let (_dir, path) = volume();
    let kv = open(&path).await;
    for n in 0..40 {
        let tasks: Vec<_> = (0..128)
            .map(|_| {
                let kv = kv.clone();
                let txn = Txn { publish: vec![Change::Inode { ino: Ino(n) }], ..Txn::default() };
                tokio::spawn(async move { kv.commit(txn).await })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.expect("task").expect("commit"), Outcome::Applied);
        }
    }
    let raw = rusqlite::Connection::open(&path).expect("open");
    raw.execute_batch("INSERT INTO events(id, origin, body) VALUES (100095, 0, x'')").expect("insert");
    for _ in 0..10 {
        let txn = Txn { publish: vec![Change::Inode { ino: Ino(1) }], ..Txn::default() };
        assert_eq!(kv.commit(txn).await.expect("commit"), Outcome::Applied);
    }
    let oldest: i64 = raw.query_row("SELECT min(id) FROM events", [], |row| row.get(0)).expect("min");
    assert!(oldest > 90_000, "{oldest}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_starts_and_ends() {
    let (_dir, path) = volume();
    let (kv, other) = (open(&path).await, open(&path).await);
    for round in 0..3 {
        let mut watch = kv.watch().await.expect("watch");
        let change = Change::Inode { ino: Ino(round) };
        let txn = Txn { publish: vec![change.clone()], ..Txn::default() };
        assert_eq!(other.commit(txn).await.expect("commit"), Outcome::Applied);
        assert_eq!(next(&mut watch).await, Event::Changed { change, by: None });
        drop(watch);
        // Sometimes the poller has noticed by then, sometimes not.
        tokio::time::sleep(Duration::from_millis(round * 30)).await;
    }
    let mut watch = kv.watch().await.expect("watch");
    drop(kv);
    let gone = tokio::time::timeout(Duration::from_secs(5), watch.next()).await.expect("in time");
    assert_eq!(gone.expect_err("engine is gone").kind(), Kind::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_of_another_boot_are_dead() {
    let (_dir, path) = volume();
    let kv = open(&path).await;
    kv.beat(SessionId(1), Duration::from_secs(60)).await.expect("beat");
    kv.beat(SessionId(2), Duration::from_secs(60)).await.expect("beat");
    let raw = rusqlite::Connection::open(&path).expect("open");
    raw.execute_batch("UPDATE alive SET boot = 'before' WHERE session = 1").expect("update");
    assert_eq!(kv.alive(&[SessionId(1), SessionId(2)]).await.expect("alive"), [false, true]);
}

/// Where the child that [`child`] runs finds the file.
const CHILD: &str = "HFMOUNT_TEST_SQLITE_CHILD";

/// Not a test of its own: another process, which commits until it is killed and says each number that is durable.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other process of the tests below"]
async fn child() {
    let path = std::env::var(CHILD).expect("run by other tests only");
    let kv = SqliteKv::open(path, Missing::Refuse).await.expect("open");
    for n in 1_u64.. {
        let name = format!("{}-{n}", std::process::id());
        let expect = vec![Expect::Absent(key("d1/", &name))];
        let change = vec![set("d1/", &name, "x"), Write::Add(key("v", "n"), 1)];
        let publish = vec![Change::Inode { ino: Ino(n) }];
        let txn = Txn { expect, write: change, publish, session: None };
        assert_eq!(kv.commit(txn).await.expect("commit"), Outcome::Applied);
        println!("durable {n}");
    }
}

fn run_child(path: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "sqlite::child", "--ignored", "--nocapture"])
        .env(CHILD, path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("child")
}

/// The numbers the child said, until it has said `enough`; then it is killed.
fn kill_after(mut child: std::process::Child, enough: u64) -> u64 {
    let mut last = 0;
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    while last < enough {
        let line = lines.next().expect("the child ended by itself").expect("line");
        if let Some((_, n)) = line.rsplit_once("durable ") {
            last = n.parse().expect("number");
        }
    }
    child.kill().expect("kill");
    child.wait().expect("wait");
    // What it said before it died counts as well.
    let rest = lines.map_while(Result::ok).filter_map(|line| line.rsplit_once("durable ")?.1.parse().ok());
    rest.fold(last, u64::max)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_share_the_file_and_may_die() {
    let (_dir, path) = volume();
    let kv = open(&path).await;
    let mut watch = kv.watch().await.expect("watch");
    let mut said = 0;
    let mut slowest = Duration::ZERO;
    for _ in 0..2 {
        let children = [run_child(&path), run_child(&path)];
        let killers = children.map(|child| tokio::task::spawn_blocking(move || kill_after(child, 150)));
        let mut own = 0_u32;
        while !killers.iter().all(tokio::task::JoinHandle::is_finished) {
            let began = Instant::now();
            write(&*kv, vec![Write::Add(key("v", "own"), 1)]).await;
            slowest = slowest.max(began.elapsed());
            own += 1;
        }
        assert!(own > 0);
        for killer in killers {
            said += killer.await.expect("child");
        }
    }
    assert!(slowest < Duration::from_secs(5), "a commit beside two busy processes took {slowest:?}");
    let n: u64 = value(&*kv, "v", "n").await.expect("number").parse().expect("number");
    // The last commit of each of the four may be durable without having been said.
    assert!(n >= said && n <= said + 4, "{said} said, {n} found");
    assert_eq!(scan_all(&*kv, "d1/", 1000).await.len() as u64, n);
    assert!(matches!(
        next(&mut watch).await,
        Event::Changed { change: Change::Inode { ino: Ino(1) }, by: None }
    ));
    let check = rusqlite::Connection::open(&path).expect("open");
    let sound: String = check.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("check");
    assert_eq!(sound, "ok");
}
