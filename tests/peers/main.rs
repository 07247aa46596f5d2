//! Nodes of one cluster, in one process: their tracker on a real Redis, and what they send each other.

mod claims;
#[path = "../support/mount.rs"]
mod mount;
mod nodes;
#[path = "../support/redis.rs"]
mod redis_server;
mod registry;
mod shared;
mod verb;
mod wire;
mod world;
