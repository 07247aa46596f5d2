//! A volume on servers of the test's own: its metadata in a Redis, its bytes in a stand-in S3 server. Needs `mount`,
//! `redis_server` and `standin` beside it.

use crate::mount::Home;
use crate::redis_server::RedisServer;
use crate::standin::S3;

/// The servers, and a home with a volume on them.
pub struct Servers {
    // Dropped before the servers that its programs use.
    pub home: Home,
    pub redis: RedisServer,
    pub s3: S3,
}

impl Servers {
    /// `format`: further arguments for `hfmount format`.
    pub fn formatted(format: &[&str]) -> Self {
        let mut home = Home::new();
        let redis = RedisServer::start();
        let s3 = S3::start(home.dir("s3")).expect("a free port");
        home.set_env("HFMOUNT_META", &redis.url());
        home.set_env("AWS_ACCESS_KEY_ID", s3.access_key());
        home.set_env("AWS_SECRET_ACCESS_KEY", s3.secret_key());
        let storage = ["format", "--storage", "s3://test/some", "--endpoint", s3.endpoint()];
        home.run_ok(&[&storage, format].concat());
        Servers { home, redis, s3 }
    }
}
