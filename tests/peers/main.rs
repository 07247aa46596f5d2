//! Nodes of one cluster, in one process, on a real Redis.

mod claims;
#[path = "../support/mount.rs"]
mod mount;
mod nodes;
#[path = "../support/redis.rs"]
mod redis_server;
mod registry;
mod shared;
mod verb;
mod world;
