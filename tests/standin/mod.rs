//! Servers that stand in for the ones outside: a Hub with its CDN ([`StandIn`]), and an S3 store ([`s3::S3`]).
//!
//! Three uses: a module of integration tests (`#[path = "standin/mod.rs"] mod standin;`), the example `standin` for the
//! benchmark and the off-line quickstart, and something for unmodified Python clients to talk to. Each server runs on
//! threads of its own, so that a test may be synchronous or asynchronous, and stops when it is dropped.
// Whoever includes this uses a part of it.
#![allow(dead_code, unused_imports)]

pub mod api;
pub mod body;
pub mod cdn;
pub mod counters;
pub mod faults;
pub mod http;
pub mod hub;
pub mod model;
pub mod repos;
pub mod resolve;
pub mod s3;
pub mod throttle;
pub mod xet;

pub use counters::{Counters, Counts};
pub use faults::{Faults, Target};
pub use hub::{Options, StandIn};
pub use s3::{S3, S3Options};
