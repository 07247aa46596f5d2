//! A volume in a Redis of the test's own, and its mounts.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::mount::{Home, Mount};
use crate::redis_server::RedisServer;

/// Of all mounts here unless said otherwise.
pub const TTL: Duration = Duration::from_secs(2);

/// Arguments of a server that loses nothing.
pub const AOF: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];

pub struct World {
    // Dropped before the server that its programs use.
    pub home: Home,
    pub redis: RedisServer,
}

impl World {
    /// Sessions last [`TTL`].
    pub fn new() -> Self {
        Self::with(RedisServer::start_supervised(AOF), &[])
    }

    /// The same with further arguments for `format`.
    pub fn with(redis: RedisServer, format: &[&str]) -> Self {
        let mut home = Home::new();
        home.set_env("HFMOUNT_META", &redis.url());
        home.set_env("HFMOUNT_SESSION_TTL", "2s");
        home.run_ok(&[&["format", "--chunk-size", "1MiB"], format].concat());
        World { home, redis }
    }

    /// A mount that never calls out and gives up on Redis after 3 seconds.
    pub fn mount(&self, name: &str) -> Mount {
        self.mount_with(name, &["--meta-timeout", "3s"])
    }

    pub fn mount_with(&self, name: &str, args: &[&str]) -> Mount {
        self.home.mount(name, &[&["--offline"], args].concat())
    }

    /// Does something to the server without holding the test's own thread's reference across threads.
    pub fn config(&self, name: &str, value: &str) {
        assert_eq!(self.redis.ask(&["CONFIG", "SET", name, value]), "+OK");
    }
}

/// The errno of what must have failed.
#[track_caller]
pub fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> i32 {
    result.expect_err("an error").raw_os_error().expect("of the system")
}

/// Tries until it works, as a user would; fails the test after a minute.
#[track_caller]
pub fn again<T>(what: &str, mut attempt: impl FnMut() -> io::Result<T>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(e) => assert!(Instant::now() < end, "{what}: {e}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// `flock(1)`'s answer to whether the lock is free now.
pub fn is_free(file: &Path) -> bool {
    Command::new("flock").arg("-n").arg(file).arg("true").status().expect("flock").success()
}

/// Bytes that say where they are.
pub fn bytes(len: usize) -> Vec<u8> {
    (0..len as u64 / 8 + 1).flat_map(u64::to_le_bytes).take(len).collect()
}

pub fn write(path: &Path, data: &[u8]) {
    fs::write(path, data).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// The value that so much of the values do not exceed.
pub fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

/// Prints how long something took.
pub fn report(what: &str, times: &mut [Duration]) {
    let (p50, p99) = (percentile(times, 50), percentile(times, 99));
    println!("{what}: {} times, p50 {p50:?}, p99 {p99:?}", times.len());
}

pub fn flock(file: &File, operation: rustix::fs::FlockOperation) -> rustix::io::Result<()> {
    rustix::fs::flock(file, operation)
}
