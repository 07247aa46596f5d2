//! What shows how a mount does: `hfmount stats`, `hfmount bench`, and what a service manager is told. The real program and
//! real kernel mounts; none of these asks the Hub for anything.

#[path = "support/mount.rs"]
mod mount;
#[path = "support/redis.rs"]
mod redis_server;
#[path = "standin/mod.rs"]
mod standin;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use mount::{Home, can_mount, text, wait_for};
use redis_server::RedisServer;
use serde_json::Value;
use standin::model::{put, random_bytes};
use standin::{Options, S3, StandIn};

fn utf8(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A program that runs beside the test, and ends with it. ^C ends it, whatever the test was started by.
struct Beside {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Beside {
    fn start(mut command: Command) -> Self {
        // SAFETY: signal() may be called between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                Ok(())
            });
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        Beside { child, out }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("a line");
        line
    }

    fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("pid");
        // SAFETY: kill touches no memory; the child has not been waited for, so the number is its own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Its exit code, and what it said on standard error.
    fn end(&mut self) -> (Option<i32>, String) {
        let mut status = None;
        wait_for("its end", || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        let mut said = String::new();
        self.child.stderr.take().expect("piped").read_to_string(&mut said).expect("read");
        (status.expect("ended").code(), said)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

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
    let stats = |mount: &mount::Mount| {
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
    let mut home = Home::new();
    let root = home.dir("hub");
    let big = random_bytes(7, BIG);
    put(&root, "models/org/one/main/model.safetensors", &big);
    let hub = StandIn::start(&root, Options::default()).expect("free ports");
    let redis = RedisServer::start();
    home.set_env("HFMOUNT_META", &redis.url());
    home.run_ok(&[
        "format",
        "--chunk-size",
        "1M",
        "--hub-endpoint",
        hub.endpoint(),
        "--store-hub-blobs",
        "never",
    ]);
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
    let read = |mount: &mount::Mount| {
        let file = mount.snapshot("models--org--one").join("model.safetensors");
        assert!(fs::read(file).expect("read") == big);
    };
    read(&mounts[0]);
    let all = BIG as f64 * 0.999;
    follow(&mut one, |sum| sum("/hub/bytes_per_second") >= all && sum("/fuse/read_bytes_per_second") >= all);
    read(&mounts[1]);
    follow(&mut two, |sum| sum("/peers/in_bytes_per_second") >= all && sum("/hub/bytes_per_second") == 0.0);
    follow(&mut one, |sum| sum("/peers/out_bytes_per_second") >= all);
}

const FILES: [&str; 9] =
    ["write_big", "read_big", "write_small", "read_small", "stat", "list", "create", "rename", "unlink"];
const TRIPS: [&str; 6] = ["put", "get", "put_small", "get_small", "meta_read", "meta_commit"];
const FEW: [&str; 9] = [
    "bench",
    "--threads",
    "2",
    "--big-file-size",
    "3M",
    "--small-file-size",
    "5K",
    "--small-file-count",
    "10",
];

fn names(report: &Value) -> Vec<&str> {
    let rows = report["rows"].as_array().expect("rows");
    rows.iter().map(|row| row["name"].as_str().expect("name")).collect()
}

/// All files and directories under a directory.
fn tree(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).expect("list").map(|e| e.expect("entry")) {
        found.insert(utf8(&entry.path()).to_owned());
        if entry.file_type().expect("type").is_dir() {
            found.extend(tree(&entry.path()));
        }
    }
    found
}

fn measures_everything(home: &Home, storage: &str) {
    let mount = home.mount("mnt", &["--offline"]);
    fs::write(mount.path().join("mine"), "mine").expect("write");
    let place = utf8(mount.path());
    let output = home.run(&[&FEW[..], &["--keep-caches", "--json", place]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(names(&report), [&FILES[..], &["fuse", "meta"], &TRIPS[..]].concat(), "{report:#}");
    assert!(report["notes"].as_array().expect("notes").is_empty(), "{report:#}");
    assert!(report["volume"]["storage"].as_str().expect("storage").starts_with(storage), "{report:#}");
    assert_eq!((&report["caches"], &report["threads"]), (&"kept".into(), &2.into()));
    for row in report["rows"].as_array().expect("rows") {
        let of = |name: &str| row[name].as_f64().unwrap_or_else(|| panic!("{name}: {row}"));
        assert!(of("rate") > 0.0 && of("mean_ms") > 0.0 && of("count") >= 2.0, "{row}");
    }
    let left: Vec<_> =
        fs::read_dir(mount.path()).expect("list").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(left, ["mine"]);
    let status: Value = serde_json::from_str(&home.run_ok(&["status", "--json"])).expect("JSON");
    assert_eq!(status["sessions"].as_array().map(Vec::len), Some(1), "only the mount's: {status:#}");
    assert_eq!(status["trash"]["files"], 0, "{status:#}");
    let garbage: Value =
        serde_json::from_str(&home.run_ok(&["gc", "--grace", "0s", "--json"])).expect("JSON");
    assert_eq!(garbage["garbage"]["tests"]["objects"], 0, "{garbage:#}");
    assert!(mount.stop().success());
}

#[test]
fn bench_measures_files_store_and_engine() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    measures_everything(&home, "file://");
    assert!(tree(&home.path().join("hfmount/storage")).iter().all(|path| !path.contains("/test-")));
}

#[test]
fn bench_measures_redis_and_s3() {
    if !can_mount() {
        return;
    }
    let mut home = Home::new();
    let redis = RedisServer::start();
    let s3 = S3::start(home.dir("s3")).expect("a free port");
    home.set_env("HFMOUNT_META", &redis.url());
    home.set_env("AWS_ACCESS_KEY_ID", s3.access_key());
    home.set_env("AWS_SECRET_ACCESS_KEY", s3.secret_key());
    home.run_ok(&["format", "--storage", "s3://test/some", "--endpoint", s3.endpoint()]);
    measures_everything(&home, "s3://");

    // Who has no keys measures the rest, and is told.
    let mount = home.mount("mnt", &["--offline"]);
    let line: Value = serde_json::from_str(&home.run_ok(&["stats", "--count", "1", "--json"])).expect("JSON");
    assert_eq!(line["peers"]["out_bytes_per_second"], 0.0, "{line}");
    assert!(home.run_ok(&["stats", "--count", "1"]).contains(" peers "));
    home.set_env("AWS_SECRET_ACCESS_KEY", "wrong");
    let output = home.run(&[&FEW[..], &["--keep-caches", utf8(mount.path())]].concat());
    let (out, said) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("note: object store was not measured: ") && !out.contains("put objects"),
        "{said}{out}"
    );
    assert!(out.contains("metadata commit") && !out.contains('\x1b'), "{out}");
}

#[test]
fn bench_works_on_any_directory_and_says_what_it_cannot() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let plain = home.dir("plain");
    let output = home.run(&[&FEW[..], &["--json", utf8(&plain)]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((names(&report), &report["volume"]), (FILES.to_vec(), &Value::Null));
    let dropped = report["caches"] == "dropped";
    assert_eq!(dropped, report["notes"].as_array().expect("notes").is_empty(), "{report:#}");
    let out = home.run_ok(&[&FEW[..], &["--keep-caches", utf8(&plain)]].concat());
    assert!(
        out.contains("write large file") && out.contains("MiB/s") && out.contains("caches kept"),
        "{out}"
    );
    assert!(!out.contains('\x1b') && tree(&plain).is_empty(), "{out}");

    let mount = home.mount("mnt", &["--offline"]);
    assert!(mount.stop().success());
    let mount = home.mount("mnt", &["--offline", "--read-only"]);
    let fails = |args: &[&str], words: &str| {
        let output = home.run(&[&["bench"], args].concat());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words), "{said}");
    };
    fails(&[utf8(mount.path())], "is read-only");
    fails(&["--big-file-size", "900P", utf8(&plain)], "--big-file-size");
    fails(&[utf8(&home.path().join("none"))], "none");
    for args in [&["--threads", "0"][..], &["--threads", "1000"], &["--big-file-size", "x"], &[]] {
        assert_eq!(home.run(&[&["bench"], args].concat()).status.code(), Some(2), "{args:?}");
    }
    assert!(tree(&plain).is_empty());
}

#[test]
fn an_interrupted_bench_leaves_nothing() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let mount = home.mount("mnt", &["--offline"]);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let args = ["bench", "--big-file-size", "0", "--small-file-count", "100000", utf8(mount.path())];
        let mut bench = Beside::start(home.command(&args));
        wait_for("some files", || {
            let folder = fs::read_dir(mount.path()).expect("list").next();
            let files = folder.map(|e| fs::read_dir(e.expect("entry").path()).map_or(0, Iterator::count));
            files.unwrap_or(0) > 10
        });
        bench.signal(signal);
        let (code, said) = bench.end();
        assert!(code == Some(1) && said.contains("interrupted"), "{said}");
        assert_eq!(fs::read_dir(mount.path()).expect("list").count(), 0);
    }
}

#[test]
fn a_service_manager_is_told() {
    if !can_mount() {
        return;
    }
    let mut home = Home::formatted(&[]);
    let path = home.path().join("notify");
    let name = format!("hfmount-test-{}", std::process::id());
    let abstract_name = SocketAddr::from_abstract_name(&name).expect("name");
    let sockets = [
        (utf8(&path).to_owned(), UnixDatagram::bind(&path).expect("bound")),
        (format!("@{name}"), UnixDatagram::bind_addr(&abstract_name).expect("bound")),
    ];
    home.set_env("WATCHDOG_USEC", "200000");
    for (name, socket) in sockets {
        socket.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
        let hear = || {
            let mut buf = [0; 2048];
            let n = socket.recv(&mut buf).expect("heard");
            text(&buf[..n])
        };
        home.set_env("NOTIFY_SOCKET", &name);
        let mut mount = home.mount("mnt", &["--offline"]);
        let ready = hear();
        assert!(ready.starts_with("READY=1\nSTATUS=volume default on "), "{ready}");
        assert!((0..3).all(|_| hear() == "WATCHDOG=1"));
        mount.signal(libc::SIGTERM);
        let mut last = hear();
        while last == "WATCHDOG=1" {
            last = hear();
        }
        assert!(last.starts_with("STOPPING=1\nSTATUS=SIGTERM: "), "{last}");
        assert!(mount.wait().success());
    }
    // It is not there: that is no reason not to mount.
    home.set_env("NOTIFY_SOCKET", "/nowhere/notify");
    drop(home.mount("mnt", &["--offline"]));
}
