//! Nodes of one cluster, in one process: their tracker on a real Redis, and what they send each other.

mod claims;
mod nodes;
#[path = "../support/redis.rs"]
mod redis_server;
mod registry;
mod shared;
mod wire;
mod world;
