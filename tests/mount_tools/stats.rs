//! `hfmount stats`: what a mount does, as it does it.

use std::fs;
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::hub;
use crate::mount::{Home, Mount, can_mount, text};
use crate::redis_server::RedisServer;
use crate::standin::model::{put, random_bytes};
use crate::{Beside, utf8};

/// Follows the figures until `wanted` holds of the sums of what is of a second.
fn follow(stats: &mut Beside, wanted: impl Fn(&dyn Fn(&str) -> f64) -> bool) {
    let mut lines: Vec<Value> = Vec::new();
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let line = stats.line();
        lines.push(serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}")));
        let sum = |path: &str| {
            let of =
                |line: &Value| line.pointer(path).unwrap_or_else(|| panic!("no {path}: {line}")).as_f64();
            lines.iter().filter_map(|line| Some(of(line)? * line["seconds"].as_f64()?)).sum::<f64>()
        };
        if wanted(&sum) {
            return;
        }
        assert!(
            Instant::now() < end,
            "{:#?}",
            lines.iter().filter(|l| l["fuse"]["latency_ms"] != Value::Null).collect::<Vec<_>>()
        );
    }
}

#[test]
fn stats_move_when_something_is_written_and_read() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&["--chunk-size", "1M"]);
    let mount = home.mount("mnt", &["--offline"]);
    let stats = |mount: &Mount| {
        Beside::start(home.command(&["stats", "--json", "--interval", "100ms", utf8(mount.path())]))
    };
    let mut writing = stats(&mount);
    writing.line();
    let data = random_bytes(1, 3_000_000);
    fs::write(mount.path().join("file"), &data).expect("write");
    follow(&mut writing, |sum| {
        sum("/fuse/write_bytes_per_second") >= 2_999_000.0
            && sum("/storage/up_bytes_per_second") >= 2_999_000.0
            && sum("/storage/puts_per_second") >= 2.9
            && sum("/meta/operations_per_second") > 1.0
            && sum("/daemon/cpu_ratio") > 0.0
    });
    let last: Value = serde_json::from_str(&writing.line()).expect("JSON");
    assert_eq!((&last["volume"], &last["peers"]), (&"default".into(), &Value::Null), "{last}");
    assert_eq!(last["mountpoint"], utf8(mount.path()));
    assert!(
        last["cache"]["used_bytes"].as_f64() >= Some(3e6)
            && last["daemon"]["memory_bytes"].as_f64() > Some(1e6)
    );
    assert!(mount.stop().success());
    let (code, said) = writing.end();
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("has ended") || said.contains("is ending"), "{said}");

    // With an empty cache: all of it comes from the storage, and the second time from here.
    let cold = home.dir("cold");
    let mount = home.mount("mnt", &["--offline", "--cache-dir", utf8(&cold)]);
    let mut reading = stats(&mount);
    reading.line();
    assert!(fs::read(mount.path().join("file")).expect("read") == data);
    follow(&mut reading, |sum| {
        sum("/fuse/read_bytes_per_second") >= 2_999_000.0
            && sum("/storage/down_bytes_per_second") >= 2_999_000.0
            && sum("/fuse/operations_per_second") > 3.0
            && sum("/cache/hit_ratio") < 0.1
    });
    reading.signal(libc::SIGINT);
    assert_eq!(reading.end(), (Some(0), String::new()));
    assert!(mount.stop().success());
    let mount = home.mount("mnt", &["--offline", "--cache-dir", utf8(&cold)]);
    let mut again = stats(&mount);
    again.line();
    assert!(fs::read(mount.path().join("file")).expect("read") == data);
    follow(&mut again, |sum| {
        sum("/fuse/read_bytes_per_second") >= 2_999_000.0
            && sum("/cache/hit_ratio") > 0.05
            && sum("/storage/down_bytes_per_second") == 0.0
    });
}

#[test]
fn stats_are_a_table_for_people() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let mount = home.mount("mnt", &["--offline"]);
    // Without a name it is the only one.
    let out = home.run_ok(&["stats", "--interval", "100ms", "--count", "21"]);
    let lines: Vec<&str> = out.lines().collect();
    let headers: Vec<usize> =
        lines.iter().enumerate().filter(|(_, line)| line.contains(" fuse ")).map(|(n, _)| n).collect();
    assert_eq!((lines.len(), headers), (25, vec![0, 22]), "{out}");
    assert!(!out.contains('\x1b') && lines[1].contains("ops/s") && !out.contains("peers"), "{out}");
    let bars = |line: &str| line.match_indices('|').map(|(at, _)| at).collect::<Vec<_>>();
    assert!(lines.iter().enumerate().all(|(n, line)| n % 22 == 0 || bars(line) == bars(lines[1])), "{out}");
    // A directory in it; and a reader who has seen enough.
    fs::create_dir(mount.path().join("dir")).expect("mkdir");
    let mut stats =
        Beside::start(home.command(&["stats", "--interval", "100ms", utf8(&mount.path().join("dir"))]));
    stats.line();
    let nobody =
        Command::new("true").stdout(Stdio::piped()).spawn().expect("true").stdout.take().expect("piped");
    drop(std::mem::replace(&mut stats.out, BufReader::new(nobody)));
    assert_eq!(stats.end(), (Some(0), String::new()));

    // The socket is the user's own.
    let sockets: Vec<_> = fs::read_dir(home.path().join("hfmount/run"))
        .expect("list")
        .map(|e| e.expect("entry").path())
        .filter(|p| p.extension().is_some_and(|x| x == "sock"))
        .collect();
    assert_eq!(sockets.len(), 1);
    assert_eq!(fs::metadata(&sockets[0]).expect("stat").permissions().mode() & 0o777, 0o600);
    assert!(mount.stop().success());
    assert!(!sockets[0].exists());
}

#[test]
fn stats_say_what_is_wrong() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let fails = |args: &[&str], words: &[&str]| {
        let output = home.run(&[&["stats", "--interval", "100ms"], args].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    };
    fails(&[], &["no mount", "hfmount mount"]);
    fails(&[utf8(home.path())], &["nothing is mounted on"]);
    fails(&["/proc"], &["is no hfmount"]);
    fails(&[utf8(&home.path().join("none/none"))], &["no such directory"]);
    let (mut one, two) = (home.mount("one", &["--offline"]), home.mount("two", &["--offline"]));
    fails(&[], &["which mount", utf8(one.path()), utf8(two.path())]);
    for args in [&["--interval", "10ms"][..], &["--count", "0"], &["--interval", "2d"]] {
        assert_eq!(home.run(&[&["stats"], args].concat()).status.code(), Some(2), "{args:?}");
    }

    two.signal(libc::SIGSTOP);
    let begun = Instant::now();
    fails(&[utf8(two.path())], &["does not answer", &two.pid().to_string()]);
    assert!(begun.elapsed() > Duration::from_secs(9));
    two.signal(libc::SIGCONT);
    assert_eq!(home.run(&["stats", "--count", "1", utf8(two.path())]).status.code(), Some(0));

    let mut stats = Beside::start(home.command(&["stats", "--interval", "100ms", utf8(one.path())]));
    stats.line();
    one.crash();
    let (code, said) = stats.end();
    assert!(code == Some(1) && said.contains("has ended"), "{said}");
    fails(&[utf8(one.path())], &["has ended", "hfmount mount"]);

    // Of a daemon that does not say where its figures are.
    let run = home.path().join("hfmount/run");
    for note in fs::read_dir(&run).expect("list").map(|e| e.expect("entry").path()) {
        if note.extension().is_some_and(|x| x == "json") {
            let mut value: Value = serde_json::from_slice(&fs::read(&note).expect("read")).expect("JSON");
            value.as_object_mut().expect("object").remove("socket");
            fs::write(&note, value.to_string()).expect("write");
        }
    }
    fails(&[utf8(two.path())], &["older version"]);
    // What the crash left goes with the next mount.
    let left = || {
        fs::read_dir(&run)
            .expect("list")
            .filter(|e| e.as_ref().expect("entry").path().extension().is_some_and(|x| x == "sock"))
            .count()
    };
    assert_eq!(left(), 2);
    let one = home.mount("one", &["--offline"]);
    assert_eq!(left(), 2, "its own, and the other one's");
    drop((one, two));
}

#[test]
fn stats_tell_the_hub_from_other_nodes() {
    if !can_mount() {
        return;
    }
    const BIG: usize = 6_000_000;
    let (mut home, redis) = (Home::new(), RedisServer::start());
    home.set_env("HFMOUNT_META", &redis.url());
    let never = ["--store-hub-blobs", "never"];
    let hub::World { home, hub: _hub, big } = hub::World::in_home(home, &never, BIG, |root, big| {
        put(root, "models/org/one/main/model.safetensors", big);
    });
    // Of two nodes only the first may call the Hub, and each has a cache of its own.
    let mounts = ["one", "two"].map(|name| {
        let (cache, hub) = (home.dir(&format!("{name}-cache")), if name == "one" { "allow" } else { "deny" });
        let args =
            ["--cache-dir", utf8(&cache), "--hub", hub, "--peer-listen", "127.0.0.1", "--session-ttl", "5s"];
        home.mount(name, &args)
    });
    let [mut one, mut two] = [&mounts[0], &mounts[1]].map(|mount| {
        let args = ["stats", "--json", "--interval", "100ms", utf8(mount.path())];
        let mut stats = Beside::start(home.command(&args));
        stats.line();
        stats
    });
    let read = |mount: &Mount| {
        let file = hub::snapshot(mount, "one").join("model.safetensors");
        assert!(fs::read(file).expect("read") == big);
    };
    read(&mounts[0]);
    let all = BIG as f64 * 0.999;
    follow(&mut one, |sum| sum("/hub/bytes_per_second") >= all && sum("/fuse/read_bytes_per_second") >= all);
    read(&mounts[1]);
    follow(&mut two, |sum| sum("/peers/in_bytes_per_second") >= all && sum("/hub/bytes_per_second") == 0.0);
    follow(&mut one, |sum| sum("/peers/out_bytes_per_second") >= all);
}
