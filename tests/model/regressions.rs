//! What was found once.

use std::time::{Duration, Instant};

use hfmount::error::Kind;
use hfmount::meta::faulty::{Fault, On};
use hfmount::types::Ino;
use hfmount::vfs::Flock;

use crate::node::{CALLER, Cluster, Engine};

/// A program that ended while the metadata did not answer kept its lock for as long as its mount lived.
#[test]
fn a_lock_is_given_back_though_the_metadata_fails_at_the_close() {
    let cluster = Cluster::new(Engine::memory());
    let (a, b) = (cluster.node("a"), cluster.node("b"));
    let (vfs, flags) = (a.vfs().clone(), libc::O_CREAT | libc::O_RDWR);
    let (ino, x) = a.run(async move {
        let (entry, opened) = vfs.create(&CALLER, Ino::ROOT, b"f", 0o644, flags).await.expect("create");
        vfs.flock(opened.fh, 1, Flock::Exclusive, false, async {}).await.expect("free");
        (entry.stat.ino, opened.fh)
    });
    a.kv().next(On::Commit, 3, Fault::Fail(Kind::Unavailable));
    let vfs = a.vfs().clone();
    a.run(async move { vfs.release(x, Some(1)).await }).expect_err("the metadata does not answer");
    let vfs = b.vfs().clone();
    b.run(async move {
        let opened = vfs.open(ino, libc::O_RDWR).await.expect("open");
        let began = Instant::now();
        vfs.flock(opened.fh, 2, Flock::Exclusive, true, async {}).await.expect("given back");
        assert!(began.elapsed() < Duration::from_secs(60));
    });
    a.stop().expect("a good end");
    b.stop().expect("a good end");
}
