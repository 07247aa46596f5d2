//! A volume on SQLite and a stand-in S3 server, which can be taken away; real mounts of it, each with a cache of its own.

use std::path::Path;

use serde_json::Value;

use crate::mount::{Home, Mount};
use crate::standin::S3;

/// Only for mounts whose test says nothing else.
const IN_TIME: &[&str] = &["--io-timeout", "30s"];

pub struct World {
    pub home: Home,
    pub s3: S3,
}

#[allow(dead_code, reason = "each test binary uses its part")]
impl World {
    /// A volume of chunks of 1 MiB.
    pub fn new() -> Self {
        let mut home = Home::new();
        let s3 = S3::start(home.dir("s3")).expect("a free port");
        home.set_env("AWS_ACCESS_KEY_ID", s3.access_key());
        home.set_env("AWS_SECRET_ACCESS_KEY", s3.secret_key());
        let storage = format!("s3://{}/volume", s3.bucket());
        let endpoint = ["--endpoint", s3.endpoint(), "--region", "us-east-1", "--chunk-size", "1MiB"];
        home.run_ok(&[&["format", "--storage", &storage][..], &endpoint].concat());
        World { home, s3 }
    }

    /// Nobody answers at the bucket's address, or somebody does again.
    pub fn down(&self, down: bool) {
        self.s3.faults(|f| f.refuse = down);
    }

    /// A mount with its cache in `cache`. What waits for the bucket fails before the test does.
    pub fn mount_in(&self, name: &str, cache: &Path, args: &[&str]) -> Mount {
        let cache = cache.to_str().expect("UTF-8");
        let in_time = if args.contains(&"--io-timeout") { &[] } else { IN_TIME };
        self.home.mount(name, &[&["--offline", "--cache-dir", cache], in_time, args].concat())
    }

    /// The same with a cache of its own below the home.
    pub fn mount(&self, name: &str, args: &[&str]) -> Mount {
        self.mount_in(name, &self.home.dir(&format!("cache-{name}")), args)
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.home.run_ok(&["status", "--json"])).expect("json")
    }

    /// What `status` says is still to be uploaded.
    pub fn waiting(&self) -> Vec<Value> {
        self.status()["waiting"].as_array().expect("a list").clone()
    }
}
