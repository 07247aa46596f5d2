//! A primary, a replica and a sentinel, all of the test's own: the primary dies, and the mounts go on with the replica.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::mount::{Home, can_mount, wait_for};
use crate::redis_server::RedisServer;
use crate::world::{again, bytes, write};

struct Sentinel {
    child: Child,
    port: u16,
    dir: TempDir,
}

impl Sentinel {
    fn of(primary: &RedisServer) -> Self {
        let dir = TempDir::with_prefix("hfmount-sentinel-").expect("temporary folder");
        let port = {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("free port");
            free.local_addr().expect("local address").port()
        };
        let conf = dir.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nlogfile {}\nsentinel monitor volume 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds volume 500\nsentinel failover-timeout volume 3000\n",
            dir.path().display(),
            dir.path().join("log").display(),
            primary.port()
        );
        fs::write(&conf, text).expect("configuration");
        let child = Command::new("redis-server")
            .arg(&conf)
            .arg("--sentinel")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server in the PATH");
        let sentinel = Sentinel { child, port, dir };
        wait_for("the sentinel", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        sentinel
    }

    fn url(&self) -> String {
        format!("redis+sentinel://127.0.0.1:{}/volume/0", self.port)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_mounts_go_on_with_the_replica() {
    if !can_mount() {
        return;
    }
    let aof = ["--appendonly", "yes", "--repl-diskless-sync-delay", "0"];
    let mut primary = RedisServer::start_supervised(&aof);
    let port = primary.port().to_string();
    let replica = RedisServer::start_with(&[&aof[..], &["--replicaof", "127.0.0.1", &port]].concat());
    wait_for("the replica", || replica.ask(&["INFO", "replication"]).contains("master_link_status:up"));
    let sentinel = Sentinel::of(&primary);
    wait_for("the sentinel to know the replica", || {
        sentinel.log().contains(&format!("+slave slave 127.0.0.1:{}", replica.port()))
    });
    let mut home = Home::new();
    home.set_env("HFMOUNT_META", &sentinel.url());
    home.set_env("HFMOUNT_SESSION_TTL", "2s");
    home.run_ok(&["format", "--chunk-size", "1MiB"]);
    let (one, two) = (home.mount("one", &["--offline"]), home.mount("two", &["--offline"]));
    let data = bytes(2_000_000);
    fs::create_dir(one.path().join("dir")).expect("mkdir");
    for n in 0..50 {
        write(&one.path().join(format!("dir/f{n}")), format!("file {n}").as_bytes());
    }
    write(&one.path().join("data"), &data);
    let open = File::open(two.path().join("data")).expect("open");
    let mut written = File::options().append(true).open(two.path().join("dir/f0")).expect("open");
    let offset = |server: &RedisServer, field: &str| {
        let info = server.ask(&["INFO", "replication"]);
        info.lines().find_map(|l| l.strip_prefix(field)?.trim().parse::<u64>().ok()).expect("offset")
    };
    wait_for("the replica has it all", || {
        let told = offset(&primary, "master_repl_offset:");
        offset(&replica, "slave_repl_offset:") >= told
    });

    primary.kill();
    let begun = Instant::now();
    let mut piece = vec![0; 4096];
    open.read_exact_at(&mut piece, 1_000_000).expect("open files are read on");
    assert!(piece == data[1_000_000..1_004_096]);
    // Without a single error: the failover is shorter than what a mount waits.
    fs::create_dir(one.path().join("after")).expect("mkdir");
    println!("the first change after the primary's death took {:?}", begun.elapsed());
    fs::write(two.path().join("after/file"), "on the new primary").expect("write");
    assert_eq!(fs::read_to_string(one.path().join("after/file")).expect("read"), "on the new primary");
    {
        use std::io::Write;
        written.write_all(b" goes on").expect("write");
        written.sync_all().expect("fsync");
    }
    assert_eq!(fs::read_to_string(one.path().join("dir/f0")).expect("read"), "file 0 goes on");
    for n in 1..50 {
        let read = fs::read_to_string(two.path().join(format!("dir/f{n}"))).expect("read");
        assert_eq!(read, format!("file {n}"));
    }
    assert!(replica.ask(&["INFO", "replication"]).contains("role:master"));

    // The push goes on too: names that are cached for a moment follow.
    wait_for("both follow the new primary", || {
        let subscribers = replica.ask(&["INFO", "clients"]);
        subscribers.lines().any(|l| l.trim() == "pubsub_clients:2")
            || !subscribers.contains("pubsub_clients:")
    });
    assert!(two.path().join("after").is_dir());
    fs::rename(one.path().join("after"), one.path().join("renamed")).expect("rename");
    wait_for("the rename shows", || {
        two.path().join("renamed").is_dir() && !two.path().join("after").exists()
    });

    // The old primary comes back, and one of the two is a replica of the other: the old one, unless the sentinel took a stop
    // of the new one for its end, as there are on busy machines. The mounts are where the primary is.
    primary.restart();
    let is_replica = |server: &RedisServer| server.ask(&["INFO", "replication"]).contains("role:slave");
    let begun = Instant::now();
    let mut joined = false;
    wait_for("one is a replica of the other", || {
        let replicas = [is_replica(&primary), is_replica(&replica)];
        // After a stop of its own a sentinel does nothing for half a minute. Then an operator does it, which is the same here.
        if replicas == [false, false] && begun.elapsed() > Duration::from_secs(30) && !joined {
            joined = true;
            primary.ask(&["REPLICAOF", "127.0.0.1", &replica.port().to_string()]);
        }
        replicas[0] != replicas[1]
    });
    again("create", || fs::write(one.path().join("renamed/last"), "last"));
    assert_eq!(fs::read_to_string(two.path().join("renamed/last")).expect("read"), "last");
    drop((open, written));
    assert_eq!((one.stop().code(), two.stop().code()), (Some(0), Some(0)));
}
