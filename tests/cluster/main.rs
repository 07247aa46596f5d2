//! Several nodes of one volume in one process: real Redis, real connections between them, one Hub in memory that counts.

#[path = "../support/blobs.rs"]
mod blobs;
#[path = "../support/redis.rs"]
mod redis;
#[allow(dead_code, reason = "tests of one node use the rest of it")]
#[path = "../chunk_fill/source.rs"]
mod source;

mod faults;
mod sources;
mod together;
mod world;
