//! What holds across mounts that share a Redis, and while that Redis is in trouble: real kernel mounts with the kernel's
//! caches on, servers that are stopped, killed, full, busy and replaced. Times are measured and printed (`--nocapture`);
//! the bounds that are asserted leave room for a busy machine.
//!
//! `HFMOUNT_TEST_ENTRIES` says how large the large directories are (default 1500).

mod bigdir;
mod failover;
mod growth;
mod locks;
#[path = "../support/mount.rs"]
mod mount;
mod outage;
mod proxy;
mod push;
#[path = "../support/redis.rs"]
mod redis_server;
#[path = "../standin/mod.rs"]
mod standin;
mod unlinked;
mod world;
