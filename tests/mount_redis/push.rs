//! What one mount changes and another sees, the kernels' caches on: by the push at once; with the push cut off, names
//! within `--entry-ttl` and data at every open.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::mount::{can_mount, wait_for};
use crate::proxy::Proxy;
use crate::redis_server::RedisServer;
use crate::standin::model::put;
use crate::standin::{Options, StandIn};
use crate::world::{World, bytes, report, write};

const ROUNDS: usize = 40;

/// How long after `change` it takes until `seen`.
fn lag(change: impl FnOnce(), seen: impl Fn() -> bool) -> Duration {
    assert!(!seen());
    change();
    let begun = Instant::now();
    while !seen() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it never shows");
        thread::sleep(Duration::from_micros(200));
    }
    begun.elapsed()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The kernels may rely on names and attributes for a minute: that they show earlier is the push's doing.
#[test]
fn changes_show_on_the_other_mount_by_push() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let ttl = ["--entry-ttl", "60s", "--attr-ttl", "60s"];
    let (one, two) = (world.mount_with("one", &ttl), world.mount_with("two", &ttl));
    let (here, there) = (one.path(), two.path());
    let (mut creates, mut renames, mut refs, mut chmods, mut unlinks) =
        (vec![], vec![], vec![], vec![], vec![]);
    write(&here.join("main"), b"0");
    assert_eq!(text(&there.join("main")), "0");
    for n in 0..ROUNDS {
        let [a, b] = ["a", "b"].map(|name| format!("{name}{n}"));
        // The other kernel knows that neither is there.
        assert!(!there.join(&a).exists() && !there.join(&b).exists());
        creates.push(lag(|| write(&here.join(&a), b"x"), || there.join(&a).exists()));
        renames.push(lag(
            || fs::rename(here.join(&a), here.join(&b)).expect("rename"),
            || there.join(&b).exists() && !there.join(&a).exists(),
        ));
        chmods.push(lag(
            || {
                fs::set_permissions(here.join(&b), std::os::unix::fs::PermissionsExt::from_mode(0o600))
                    .expect("chmod")
            },
            || {
                fs::metadata(there.join(&b))
                    .is_ok_and(|m| std::os::unix::fs::PermissionsExt::mode(&m.permissions()) & 0o777 == 0o600)
            },
        ));
        unlinks.push(lag(|| fs::remove_file(here.join(&b)).expect("unlink"), || !there.join(&b).exists()));
        // As the libraries replace a branch: by a rename over it.
        let next = (n + 1).to_string();
        write(&here.join("main.tmp"), next.as_bytes());
        refs.push(lag(
            || fs::rename(here.join("main.tmp"), here.join("main")).expect("rename"),
            || text(&there.join("main")) == next,
        ));
    }
    for (what, times) in [
        ("create", &mut creates),
        ("rename", &mut renames),
        ("chmod", &mut chmods),
        ("unlink", &mut unlinks),
        ("replaced by rename", &mut refs),
    ] {
        report(what, times);
        assert!(crate::world::percentile(times, 50) < Duration::from_millis(250), "{what}: {times:?}");
    }
    assert_eq!((one.stop().code(), two.stop().code()), (Some(0), Some(0)));
}

/// The subscriber's connection stays open and brings nothing; or it is cut off again and again.
#[test]
fn without_the_push_data_is_strict_and_names_follow() {
    if !can_mount() {
        return;
    }
    let hub_home = tempfile::tempdir().expect("folder");
    put(hub_home.path(), "models/org/name/main/config.json", "{}");
    put(hub_home.path(), "models/org/name/main/other.json", "{\"other\": 1}");
    let hub = StandIn::start(hub_home.path(), Options::default()).expect("free ports");
    let world = World::with(RedisServer::start(), &["--hub-endpoint", hub.endpoint()]);
    let proxy = Proxy::before(world.redis.address());
    let one = world.home.mount("one", &[]);
    let url = format!("redis://{}/0", proxy.address);
    let two = world.home.mount("two", &["--meta", &url]);
    let (here, there) = (one.path(), two.path());
    let repo = "models--org--name";
    let commit = text(&here.join(repo).join("refs/main"));
    let snapshot = Path::new(repo).join("snapshots").join(commit);
    write(&here.join("file"), b"0");

    // Granted for long where the push is known to arrive.
    let (config, other) =
        (there.join(&snapshot).join("config.json"), there.join(&snapshot).join("other.json"));
    for _ in 0..20 {
        assert_eq!((text(&config), text(&other)), ("{}".to_owned(), "{\"other\": 1}".to_owned()));
        thread::sleep(Duration::from_millis(100));
    }
    proxy.mute(true);
    let muted = Instant::now();
    let (mut strict, mut names) = (0, Vec::new());
    names.push(lag(
        || fs::remove_file(here.join(&snapshot).join("config.json")).expect("unlink"),
        || !config.exists(),
    ));
    for n in 1..=12 {
        let next = n.to_string().repeat(n * 400);
        write(&here.join("file"), next.as_bytes());
        assert_eq!(text(&there.join("file")), next, "an open sees what was closed");
        strict += 1;
        if n % 3 == 0 {
            let (from, to) = (format!("n{}", n / 3 - 1), format!("n{}", n / 3));
            if n == 3 {
                write(&here.join(&from), b"x");
                wait_for("the name", || there.join(&from).exists());
            }
            assert!(there.join(&from).exists() && !there.join(&to).exists());
            names.push(lag(
                || fs::rename(here.join(&from), here.join(&to)).expect("rename"),
                || there.join(&to).exists() && !there.join(&from).exists(),
            ));
        }
    }
    assert_eq!(text(&other), "{\"other\": 1}");
    println!("{strict} opens in {:?} without the push", muted.elapsed());
    // The time to live is a second; finding out that the push is silent takes about as long again.
    let worst = *names.iter().max().expect("some");
    report("names without the push", &mut names);
    assert!(worst < Duration::from_secs(5), "{worst:?}");

    // It is heard again, and nothing is left of what was missed.
    proxy.mute(false);
    fs::rename(here.join("file"), here.join("moved")).expect("rename");
    wait_for("the rename", || there.join("moved").exists() && !there.join("file").exists());

    // A channel that breaks all the time.
    for n in 0..10 {
        world.redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        let next = format!("again {n}");
        write(&here.join("moved"), next.as_bytes());
        assert_eq!(text(&there.join("moved")), next);
        let name = format!("broken{n}");
        names.push(lag(|| write(&here.join(&name), b""), || there.join(&name).exists()));
    }
    report("names with a push that breaks", &mut names[5..]);
    assert_eq!((one.stop().code(), two.stop().code()), (Some(0), Some(0)));
}

/// What another program that loads a model looks at, when what the kernel may rely on for a second has run out: of a repository that
/// is known only the branch is asked for, while the push is known to arrive.
#[test]
fn a_repository_that_is_known_is_loaded_for_next_to_nothing() {
    if !can_mount() {
        return;
    }
    let hub_home = tempfile::tempdir().expect("folder");
    for n in 0..5 {
        put(hub_home.path(), &format!("models/org/name/main/file-{n}.json"), n.to_string());
    }
    let hub = StandIn::start(hub_home.path(), Options::default()).expect("free ports");
    let world = World::with(RedisServer::start(), &["--hub-endpoint", hub.endpoint()]);
    let (one, two) = (world.home.mount("one", &[]), world.home.mount("two", &[]));
    let load = |root: &Path| {
        let repo = root.join("models--org--name");
        let folder = repo.join("snapshots").join(text(&repo.join("refs/main")));
        assert!(folder.is_dir() && repo.join("blobs").is_dir());
        (0..5).map(|n| text(&folder.join(format!("file-{n}.json")))).collect::<String>()
    };
    let asked = |seconds: f64, act: &dyn Fn()| {
        let calls = || world.redis.calls("evalsha") + world.redis.calls("hmget");
        let (begun, before) = (Instant::now(), calls());
        act();
        thread::sleep(Duration::from_secs_f64(seconds).saturating_sub(begun.elapsed()));
        calls() - before
    };
    for _ in 0..2 {
        assert_eq!(load(one.path()), "01234");
        thread::sleep(Duration::from_millis(1500));
    }
    let mut least = u64::MAX;
    // Of several, since sessions are kept alive meanwhile, and a busy machine may be silent for a second.
    for _ in 0..5 {
        let idle = asked(3.0, &|| ());
        let with = asked(3.0, &|| assert_eq!(load(one.path()), "01234"));
        least = least.min(with.saturating_sub(idle));
    }
    assert!(least <= 4, "{least} commands for a load");

    // It is deleted all the same when somebody does so elsewhere.
    let there = two.path().join("models--org--name");
    assert!(there.join("refs/main").is_file());
    fs::remove_dir_all(&there).expect("rm -r");
    wait_for("the names to go", || !one.path().join("models--org--name").exists());
    assert_eq!((one.stop().code(), two.stop().code()), (Some(0), Some(0)));
}

/// Whole files, appended ones, cut ones; kernel pages and attributes of before never show in what an open reads.
#[test]
fn an_open_sees_what_was_closed_elsewhere() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    // Attributes that would be good for a minute must not cut what is read.
    let ttl = ["--entry-ttl", "60s", "--attr-ttl", "60s"];
    let mounts = [world.mount_with("one", &ttl), world.mount_with("two", &ttl)];
    let mut expected = bytes(10_000);
    write(&mounts[0].path().join("f"), &expected);
    for n in 0..60_usize {
        let writer = mounts[n % 2].path().join("f");
        let reader = mounts[(n + 1) % 2].path().join("f");
        match n % 4 {
            0 => {
                use std::io::Write;
                let mut file = fs::OpenOptions::new().append(true).open(&writer).expect("open");
                file.write_all(format!("appended {n}").as_bytes()).expect("append");
                expected.extend_from_slice(format!("appended {n}").as_bytes());
            }
            1 => {
                use std::os::unix::fs::FileExt;
                let file = fs::OpenOptions::new().write(true).open(&writer).expect("open");
                // The same size: only the version tells.
                file.write_all_at(&[n as u8; 100], 50).expect("write");
                expected[50..150].fill(n as u8);
            }
            2 => {
                let len = expected.len() as u64 - 7;
                fs::OpenOptions::new().write(true).open(&writer).expect("open").set_len(len).expect("cut");
                expected.truncate(len as usize);
            }
            _ => {
                expected = bytes(1000 * (n + 1));
                write(&writer, &expected);
            }
        }
        assert!(fs::read(&reader).expect("read") == expected, "round {n}");
        assert!(fs::read(&writer).expect("read") == expected, "round {n}, where it was written");
    }
}
