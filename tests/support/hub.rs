//! A stand-in Hub with some repositories, and a volume that asks it. Needs `mount` and `standin` beside it.

use std::path::{Path, PathBuf};

use crate::mount::{Home, Mount};
use crate::standin::model::random_bytes;
use crate::standin::{Options, StandIn};

/// A volume of chunks of 1 MiB, over a Hub of its own.
#[allow(dead_code, reason = "each test binary uses its part")]
pub struct World {
    pub home: Home,
    pub hub: StandIn,
    /// What the large files are.
    pub big: Vec<u8>,
}

#[allow(dead_code, reason = "each test binary uses its part")]
impl World {
    /// `fill` puts the repositories into the Hub's folder; for large files it gets `len` bytes.
    pub fn new(len: usize, fill: impl FnOnce(&Path, &[u8])) -> Self {
        Self::in_home(Home::new(), &[], len, fill)
    }

    /// The same in a home that has settings of its own, with further arguments for `hfmount format`. `HFMOUNT_LOG` is handed on,
    /// for who looks for a fault.
    pub fn in_home(mut home: Home, format: &[&str], len: usize, fill: impl FnOnce(&Path, &[u8])) -> Self {
        if let Ok(level) = std::env::var("HFMOUNT_LOG") {
            home.set_env("HFMOUNT_LOG", &level);
        }
        let (root, big) = (home.dir("hub"), random_bytes(7, len));
        fill(&root, &big);
        let hub = StandIn::start(&root, Options::default()).expect("free ports");
        home.run_ok(&[&["format", "--chunk-size", "1M", "--hub-endpoint", hub.endpoint()], format].concat());
        World { home, hub, big }
    }
}

/// Where a client finds the files of `org/<name>`: the branch, its commit.
#[allow(dead_code, reason = "each test binary uses its part")]
pub fn snapshot(mount: &Mount, name: &str) -> PathBuf {
    mount.snapshot(&format!("models--org--{name}"))
}
