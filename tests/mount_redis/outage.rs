//! A Redis that is stopped, restarted, full, a replica or busy, under mounts in use.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::mount::{Mount, can_mount};
use crate::redis_server::RedisServer;
use crate::standin::model::put;
use crate::standin::{Options, StandIn};
use crate::world::{World, again, bytes, errno, write};

const SIZE: usize = 3_500_000;

/// Reads here and there of an open file for `time`, the kernel's own attributes having run out: all succeed and none waits
/// for long.
fn reads_go_on(file: &File, data: &[u8], time: Duration) {
    let (begun, mut n, mut worst) = (Instant::now(), 0_usize, Duration::ZERO);
    while begun.elapsed() < time {
        let at = n * 77_777 % (data.len() - 4096);
        let mut piece = [0; 4096];
        let asked = Instant::now();
        file.read_exact_at(&mut piece, at as u64).expect("what is open and here is read");
        assert!(piece[..] == data[at..at + 4096], "at {at}");
        assert_eq!(file.metadata().expect("fstat").len(), data.len() as u64);
        worst = worst.max(asked.elapsed());
        n += 1;
        thread::sleep(Duration::from_millis(5));
    }
    println!("{n} reads, the longest {worst:?}");
    assert!(worst < Duration::from_secs(5), "{worst:?}");
}

/// What is tried on a mount, and the errno that comes of it.
type Attempt = fn(&Path) -> i32;

/// What needs the metadata fails in time, and never as if something were not there.
fn the_rest_fails_in_time(mount: &Path) {
    let attempts: [(&str, Attempt); 4] = [
        ("mkdir", |mount| errno(fs::create_dir(mount.join("made-in-vain")))),
        ("create", |mount| errno(File::create(mount.join("created-in-vain")))),
        ("stat", |mount| errno(fs::metadata(mount.join("never-asked-for")))),
        ("stat of what is there", |mount| errno(fs::metadata(mount.join("dir/there")))),
    ];
    // What the kernel knows of it runs out.
    thread::sleep(Duration::from_millis(1100));
    thread::scope(|scope| {
        for (what, attempt) in attempts {
            scope.spawn(move || {
                let begun = Instant::now();
                assert_eq!(attempt(mount), libc::EIO, "{what}");
                let took = begun.elapsed();
                assert!(
                    took > Duration::from_millis(500) && took < Duration::from_secs(20),
                    "{what}: {took:?}"
                );
            });
        }
    });
}

fn is_in_order_again(mount: &Mount) {
    let path = mount.path();
    again("mkdir", || fs::create_dir(path.join("after")));
    assert_eq!(fs::read_to_string(path.join("dir/there")).expect("read"), "there");
    // What was told EIO may have been done or not, but once and whole.
    for name in ["made-in-vain", "created-in-vain"] {
        let there = fs::symlink_metadata(path.join(name)).is_ok();
        let listed =
            fs::read_dir(path).expect("list").filter(|e| e.as_ref().expect("entry").file_name() == name);
        assert_eq!(listed.count(), usize::from(there), "{name}");
    }
    let made = u64::from(path.join("made-in-vain").exists());
    assert_eq!(fs::metadata(path).expect("stat").nlink(), 2 + 2 + made, "dir, after and perhaps one more");
}

#[test]
fn reads_of_open_files_go_on_while_redis_is_stopped_or_dead() {
    if !can_mount() {
        return;
    }
    for dead in [false, true] {
        let mut world = World::new();
        let mount = world.mount("mnt");
        let data = bytes(SIZE);
        fs::create_dir(mount.path().join("dir")).expect("mkdir");
        write(&mount.path().join("dir/there"), b"there");
        write(&mount.path().join("data"), &data);
        let file = File::open(mount.path().join("data")).expect("open");
        assert!(fs::read(mount.path().join("data")).expect("read") == data);
        if dead {
            world.redis.kill()
        } else {
            world.redis.freeze(true)
        }
        thread::scope(|scope| {
            let reads = scope.spawn(|| reads_go_on(&file, &data, Duration::from_secs(5)));
            the_rest_fails_in_time(mount.path());
            reads.join().expect("reads");
        });
        if dead {
            world.redis.restart()
        } else {
            world.redis.freeze(false)
        }
        is_in_order_again(&mount);
        assert!(mount.log().contains("the metadata do not answer"), "{}", mount.log());
        drop(file);
        assert_eq!(mount.stop().code(), Some(0));
    }
}

/// The same for a file of the Hub, of which the kernel was granted everything for long.
#[test]
fn blobs_that_are_open_are_read_on() {
    if !can_mount() {
        return;
    }
    let hub_home = tempfile::tempdir().expect("folder");
    let data = bytes(SIZE);
    put(hub_home.path(), "models/org/name/main/model.safetensors", &data);
    let hub = StandIn::start(hub_home.path(), Options::default()).expect("free ports");
    let world = World::with(RedisServer::start(), &["--hub-endpoint", hub.endpoint()]);
    let mount = world.home.mount("mnt", &["--meta-timeout", "3s"]);
    let path = mount.snapshot("models--org--name").join("model.safetensors");
    assert!(fs::read(&path).expect("read") == data);
    let file = File::open(&path).expect("open");
    world.redis.freeze(true);
    reads_go_on(&file, &data, Duration::from_secs(4));
    assert_eq!(errno(fs::metadata(mount.path().join("models--org--name/refs/other"))), libc::EIO);
    world.redis.freeze(false);
    again("stat", || fs::metadata(&path));
    assert!(fs::read(&path).expect("read") == data);
}

/// Programs at work on two mounts while Redis is killed and started again: every operation succeeds once, whatever became of
/// its reply.
#[test]
fn restarts_are_not_noticed_and_nothing_is_done_twice() {
    if !can_mount() {
        return;
    }
    let mut world = World::new();
    let mounts = [world.mount_with("one", &[]), world.mount_with("two", &[])];
    let stop = AtomicBool::new(false);
    let rounds: Vec<usize> = thread::scope(|scope| {
        let mut workers = Vec::new();
        for n in 0..4 {
            let (dir, stop) = (mounts[n % 2].path().join(format!("w{n}")), &stop);
            workers.push(scope.spawn(move || {
                fs::create_dir(&dir).expect("mkdir");
                let mut round = 0;
                while !stop.load(Ordering::SeqCst) {
                    one_round(&dir, round);
                    round += 1;
                }
                round
            }));
        }
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(700));
            world.redis.kill();
            thread::sleep(Duration::from_millis(300));
            world.redis.restart();
        }
        thread::sleep(Duration::from_millis(500));
        stop.store(true, Ordering::SeqCst);
        workers.into_iter().map(|w| w.join().expect("worker")).collect()
    });
    println!("rounds: {rounds:?}");
    let fresh = world.mount_with("three", &[]);
    for (n, rounds) in rounds.iter().enumerate() {
        assert!(*rounds > 4, "{rounds}");
        for mount in [mounts[0].path(), mounts[1].path(), fresh.path()] {
            let dir = mount.join(format!("w{n}"));
            let mut names: Vec<String> = fs::read_dir(&dir)
                .expect("list")
                .map(|e| e.expect("entry").file_name().into_string().expect("UTF-8"))
                .collect();
            names.sort();
            let mut expected: Vec<String> = (0..*rounds).map(|r| format!("kept-{r}")).collect();
            expected.push("log".to_owned());
            expected.sort();
            assert_eq!(names, expected);
            assert_eq!(fs::metadata(&dir).expect("stat").nlink(), 2);
            let log = fs::read_to_string(dir.join("log")).expect("read");
            assert!(log.lines().eq((0..*rounds).map(|r| r.to_string())), "{log}");
            for round in 0..*rounds {
                let kept = dir.join(format!("kept-{round}"));
                assert_eq!(fs::read_to_string(&kept).expect("read"), format!("round {round}"));
                assert_eq!(fs::metadata(&kept).expect("stat").nlink(), 1);
            }
        }
    }
}

/// Each step fails if the one before it was not done, or was done twice.
fn one_round(dir: &Path, round: usize) {
    let at = |name: &str| dir.join(format!("{name}-{round}"));
    let mut made = OpenOptions::new().write(true).create_new(true).open(at("made")).expect("create");
    made.write_all(format!("round {round}").as_bytes()).expect("write");
    made.sync_all().expect("fsync");
    drop(made);
    fs::hard_link(at("made"), at("link")).expect("link");
    fs::rename(at("made"), at("kept")).expect("rename");
    fs::remove_file(at("link")).expect("unlink");
    fs::create_dir(at("dir")).expect("mkdir");
    assert_eq!(errno(fs::metadata(at("dir").join("x"))), libc::ENOENT);
    fs::remove_dir(at("dir")).expect("rmdir");
    let mut log = OpenOptions::new().append(true).create(true).open(dir.join("log")).expect("open");
    writeln!(log, "{round}").expect("append");
}

#[test]
fn a_full_redis_is_no_space_and_recovers() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let mount = world.mount("mnt");
    write(&mount.path().join("file"), b"before");
    let file = File::open(mount.path().join("file")).expect("open");
    world.config("maxmemory-policy", "noeviction");
    world.config("maxmemory", "1");
    assert_eq!(errno(fs::create_dir(mount.path().join("dir"))), libc::ENOSPC);
    let log = mount.log();
    assert!(log.contains("maxmemory of the server"), "{log}");
    // Longer than a session lasts without heartbeats, which are writes too.
    reads_go_on_small(&file, Duration::from_secs(3));
    assert_eq!(fs::read_to_string(mount.path().join("file")).expect("read"), "before");
    assert_eq!(errno(fs::metadata(mount.path().join("dir"))), libc::ENOENT, "it was not made");
    world.config("maxmemory", "0");
    fs::create_dir(mount.path().join("dir")).expect("mkdir");
    write(&mount.path().join("file"), b"after");
    assert_eq!(fs::read_to_string(mount.path().join("file")).expect("read"), "after");
    drop(file);
    assert_eq!(mount.stop().code(), Some(0));
}

fn reads_go_on_small(file: &File, time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time {
        let mut piece = [0; 6];
        file.read_exact_at(&mut piece, 0).expect("read");
        assert_eq!(&piece, b"before");
        thread::sleep(Duration::from_millis(100));
    }
}

/// The server behind an ordinary URL becomes a replica of another, as in a failover that somebody else runs.
#[test]
fn a_redis_that_becomes_read_only_is_waited_for() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let mount = world.mount("mnt");
    write(&mount.path().join("file"), b"before");
    let file = File::open(mount.path().join("file")).expect("open");
    // Of a primary that nobody can reach, so that it keeps what it has.
    assert_eq!(world.redis.ask(&["REPLICAOF", "127.0.0.1", "1"]), "+OK");
    let path = mount.path().join("dir");
    thread::scope(|scope| {
        let begun = Instant::now();
        let mkdir = scope.spawn(|| fs::create_dir(&path));
        reads_go_on_small(&file, Duration::from_secs(1));
        assert_eq!(world.redis.ask(&["REPLICAOF", "NO", "ONE"]), "+OK");
        mkdir.join().expect("thread").expect("waited for");
        assert!(begun.elapsed() > Duration::from_millis(900));
    });
    // For longer than the mount waits.
    assert_eq!(world.redis.ask(&["REPLICAOF", "127.0.0.1", "1"]), "+OK");
    assert_eq!(errno(fs::create_dir(mount.path().join("other"))), libc::EIO);
    assert!(mount.log().contains("replica") || mount.log().contains("READONLY"), "{}", mount.log());
    assert_eq!(world.redis.ask(&["REPLICAOF", "NO", "ONE"]), "+OK");
    again("mkdir", || fs::create_dir(mount.path().join("other")));
    drop(file);
    assert_eq!(mount.stop().code(), Some(0));
}

#[test]
fn a_slow_script_of_somebody_else_is_waited_for() {
    if !can_mount() {
        return;
    }
    let world = World::with(RedisServer::start_with(&["--appendonly", "yes", "--lua-time-limit", "20"]), &[]);
    let mount = world.mount_with("mnt", &[]);
    let redis = &world.redis;
    thread::scope(|scope| {
        let endless = scope.spawn(|| redis.ask(&["EVAL", "while true do end", "0"]));
        thread::sleep(Duration::from_millis(200));
        let path = mount.path().join("dir");
        let mkdir = scope.spawn(move || fs::create_dir(path));
        thread::sleep(Duration::from_millis(1200));
        assert!(!mkdir.is_finished());
        assert_eq!(redis.ask(&["SCRIPT", "KILL"]), "+OK");
        mkdir.join().expect("thread").expect("mkdir");
        assert!(endless.join().expect("thread").starts_with("-ERR"));
    });
    assert_eq!(mount.stop().code(), Some(0));
}

/// In the log in the foreground, on standard error in the background.
#[test]
fn dangerous_settings_are_told_when_mounting() {
    if !can_mount() {
        return;
    }
    let server = RedisServer::start_with(&["--appendonly", "no", "--maxmemory-policy", "allkeys-lru"]);
    let world = World::with(server, &[]);
    let warnings = [
        "may throw away metadata when its memory is full (maxmemory-policy allkeys-lru): set it to noeviction.",
        "does not keep an append-only file (appendonly no): a crash of it loses what was written since its last snapshot.",
    ];
    let mount = world.mount("one");
    let point = world.home.dir("two");
    let output = world.home.run(&["mount", "-d", "--offline", point.to_str().expect("UTF-8")]);
    let said = crate::mount::text(&output.stderr);
    assert!(output.status.success(), "{said}");
    world.home.run_ok(&["umount", point.to_str().expect("UTF-8")]);
    for warning in warnings {
        assert!(mount.log().contains(warning), "{}", mount.log());
        assert!(said.contains(warning), "{said}");
    }
    assert_eq!(mount.stop().code(), Some(0));
    world.config("maxmemory-policy", "noeviction");
    world.config("appendonly", "yes");
    let mount = world.mount("one");
    for warning in ["maxmemory-policy", "append-only"] {
        assert!(!mount.log().lines().last().expect("lines").contains(warning));
    }
    assert!(!mount.log().contains("maxmemory-policy"), "{}", mount.log());
    assert_eq!(mount.stop().code(), Some(0));
}
