//! A volume with its servers and mounts, and what can befall them.

use std::fs;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;

use crate::child::S3Server;
use crate::load::answers;
use crate::mount::{Home, Mount, is_mounted, text, wait_for};
use crate::redis_server::RedisServer;

/// How long what is in a journal may take to be uploaded when nothing is broken: tries have pauses of up to 15 s.
const DRAIN: Duration = Duration::from_secs(90);

/// What a volume lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stores {
    /// SQLite and a folder.
    Local,
    /// redis-server that syncs every write, and an S3 server.
    Servers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disaster {
    /// kill -9; its cache is there for the next one.
    Daemon,
    /// The same, and its cache is lost.
    DaemonAndDisk,
    AllDaemons,
    /// kill -9; it comes back with what is in its append-only file.
    Redis,
    FrozenRedis,
    S3,
    FrozenS3,
    /// Everything but the disks.
    Everything,
}

impl Disaster {
    pub const ALL: [Disaster; 8] = [
        Disaster::Daemon,
        Disaster::DaemonAndDisk,
        Disaster::AllDaemons,
        Disaster::Redis,
        Disaster::FrozenRedis,
        Disaster::S3,
        Disaster::FrozenS3,
        Disaster::Everything,
    ];
}

struct S3 {
    server: S3Server,
    port: u16,
}

/// What befell, in numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Toll {
    pub daemons: u64,
    pub caches: u64,
    pub servers: u64,
    pub frozen: u64,
    pub fscks: u64,
}

pub struct World {
    // Mounts go first.
    mounts: Vec<Option<Mount>>,
    roots: Vec<PathBuf>,
    home: Home,
    redis: Option<RedisServer>,
    s3: Option<S3>,
    /// Servers to be started or thawed again.
    broken: Vec<Disaster>,
    others: usize,
    writeback: bool,
    pub toll: Toll,
}

impl World {
    pub fn new(stores: Stores, mounts: usize, writeback: bool) -> Self {
        let mut home = Home::new();
        let (mut redis, mut s3) = (None, None);
        let mut args = vec!["format".to_owned(), "--chunk-size".into(), "1MiB".into()];
        if stores == Stores::Servers {
            let server = RedisServer::start_supervised(&["--appendonly", "yes", "--appendfsync", "always"]);
            home.set_env("HFMOUNT_META", &server.url());
            redis = Some(server);
            let root = home.dir("s3");
            fs::create_dir_all(root.join("crash")).expect("folder of the bucket");
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("free port");
            let port = free.local_addr().expect("address").port();
            drop(free);
            s3 = Some(S3 { server: S3Server::new(&root, port), port });
            wait_for("the S3 server", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
            home.set_env("AWS_ACCESS_KEY_ID", "standin");
            home.set_env("AWS_SECRET_ACCESS_KEY", "standin-secret");
            let endpoint = format!("http://127.0.0.1:{port}");
            let storage =
                ["--storage", "s3://crash/volume", "--endpoint", &endpoint, "--region", "us-east-1"];
            args.extend(storage.map(str::to_owned));
        }
        if let Ok(level) = std::env::var("HFMOUNT_LOG") {
            home.set_env("HFMOUNT_LOG", &level);
        }
        home.run_ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let (mounts_now, roots, broken, toll) = (Vec::new(), Vec::new(), Vec::new(), Toll::default());
        let mut world =
            World { mounts: mounts_now, roots, home, redis, s3, broken, others: 0, writeback, toll };
        for n in 0..mounts {
            let mount = world.mount(&format!("mnt-{n}"));
            world.roots.push(mount.path().to_owned());
            world.mounts.push(Some(mount));
        }
        world
    }

    fn mount(&self, name: &str) -> Mount {
        let cache = self.home.dir(&format!("cache-of-{name}"));
        let cache = cache.to_str().expect("UTF-8");
        // Names at once, push or not: a program goes on with another mount the moment that the first one answered.
        let entry_ttl = std::env::var("HFMOUNT_CRASH_ENTRY_TTL").unwrap_or_else(|_| "0".into());
        let mut args = vec!["--offline", "--cache-dir", cache, "--entry-ttl", &entry_ttl];
        args.extend(self.writeback.then_some("--writeback"));
        self.home.mount(name, &args)
    }

    /// Where the programs work.
    pub fn roots(&self) -> Vec<PathBuf> {
        self.roots.clone()
    }

    /// One more mount, with nothing in its cache.
    pub fn another(&mut self) -> Mount {
        self.others += 1;
        self.mount(&format!("other-{}", self.others))
    }

    /// The mounts whose daemons died by it.
    pub fn strike(&mut self, disaster: Disaster, rng: &mut StdRng) -> Vec<usize> {
        let one = rng.random_range(0..self.mounts.len());
        let all: Vec<usize> = (0..self.mounts.len()).collect();
        let dead = match disaster {
            Disaster::Daemon | Disaster::DaemonAndDisk => vec![one],
            Disaster::AllDaemons | Disaster::Everything => all,
            Disaster::Redis | Disaster::FrozenRedis | Disaster::S3 | Disaster::FrozenS3 => {
                // Often somebody else dies of it.
                if rng.random_bool(0.3) { vec![one] } else { vec![] }
            }
        };
        self.toll.daemons += dead.len() as u64;
        match disaster {
            Disaster::DaemonAndDisk => self.toll.caches += 1,
            Disaster::Redis | Disaster::S3 => self.toll.servers += 1,
            Disaster::Everything => self.toll.servers += 2,
            Disaster::FrozenRedis | Disaster::FrozenS3 => self.toll.frozen += 1,
            Disaster::Daemon | Disaster::AllDaemons => {}
        }
        let redis = self.redis.as_mut();
        match disaster {
            Disaster::FrozenRedis => redis.expect("there").freeze(true),
            Disaster::Redis | Disaster::Everything => redis.expect("there").kill(),
            _ => {}
        }
        match (disaster, &mut self.s3) {
            (Disaster::FrozenS3, Some(s3)) => s3.server.signal(libc::SIGSTOP),
            (Disaster::S3 | Disaster::Everything, Some(s3)) => s3.server.kill(),
            _ => {}
        }
        self.broken.push(disaster);
        for &n in &dead {
            let mut mount = self.mounts[n].take().expect("it lives");
            mount.crash();
            if disaster == Disaster::DaemonAndDisk {
                let cache = self.home.path().join(format!("cache-of-mnt-{n}"));
                fs::remove_dir_all(cache).expect("its cache");
            }
            // The dead mount stays for the next one to replace.
            std::mem::forget(mount);
        }
        dead
    }

    /// Starts everything again.
    pub fn repair(&mut self) {
        for disaster in std::mem::take(&mut self.broken) {
            if let Some(redis) = &mut self.redis {
                match disaster {
                    Disaster::FrozenRedis => redis.freeze(false),
                    Disaster::Redis | Disaster::Everything => redis.restart(),
                    _ => {}
                }
            }
            if let Some(s3) = &mut self.s3 {
                match disaster {
                    Disaster::FrozenS3 => s3.server.signal(libc::SIGCONT),
                    Disaster::S3 | Disaster::Everything => {
                        s3.server.start();
                        let port = s3.port;
                        wait_for("the S3 server", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
                    }
                    _ => {}
                }
            }
        }
        for n in 0..self.mounts.len() {
            if self.mounts[n].is_none() {
                self.mounts[n] = Some(self.mount(&format!("mnt-{n}")));
            }
        }
        for root in &self.roots {
            wait_for("the mount's answer", || answers(root));
        }
        // What the servers had received before they were stopped is done by now.
        std::thread::sleep(Duration::from_millis(200));
    }

    /// The last lines of the daemons' logs.
    pub fn logs(&self) -> String {
        let mut logs = String::new();
        for mount in self.mounts.iter().flatten() {
            let log = mount.log();
            let lines: Vec<&str> = log.lines().collect();
            let from = lines.len().saturating_sub(60);
            logs += &format!("--- {}\n{}\n", mount.path().display(), lines[from..].join("\n"));
        }
        logs
    }

    /// Waits until no mount has anything that is not uploaded.
    pub fn drained(&self) {
        if !self.writeback {
            return;
        }
        let mut last = String::new();
        let end = Instant::now() + DRAIN;
        while Instant::now() < end {
            last = self.home.run_ok(&["status", "--json"]);
            let status: serde_json::Value = serde_json::from_str(&last).expect("JSON");
            if status["waiting"].as_array().expect("a list").is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("data in a journal is not uploaded:\n{last}\n{}", self.logs());
    }

    /// Nothing is wrong with the volume, as far as hfmount itself can tell.
    pub fn fsck(&mut self, deep: bool) -> Result<(), String> {
        self.toll.fscks += 1;
        let fsck = self.home.run(if deep { &["fsck", "--deep"] } else { &["fsck"] });
        let (out, err) = (text(&fsck.stdout), text(&fsck.stderr));
        if fsck.status.success() { Ok(()) } else { Err(format!("fsck: {}\n{out}{err}", fsck.status)) }
    }

    /// Unmounts everything; daemons end well, and the volume is whole.
    pub fn end(&mut self) {
        for mount in self.mounts.drain(..).flatten() {
            assert_eq!(mount.stop().code(), Some(0), "the daemon's end");
        }
        self.fsck(true).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.mounts.clear();
        // Of daemons that died and had no successor.
        for root in self.roots.iter().filter(|root| is_mounted(root)) {
            let _ = Command::new("umount").arg("-l").arg(root).status();
        }
    }
}
