//! hfmount: the Hugging Face cache of a whole cluster as one file system.
//!
//! The way of a read, and the only direction in which modules may know each other:
//!
//! ```text
//! kernel ─ fuse ─ vfs ─┬─ meta ──── Kv: redis | sqlite
//!                      ├─ hub  ──── Hub API → repositories, trees
//!                      └─ chunk ─── local disk cache → source: bucket | hub
//! ```
//!
//! [`daemon`] builds these layers from the bottom up; [`cli`] holds one verb a file. `docs/design.md` tells the rest.

pub mod admin;
pub mod bench;
mod blocking;
pub mod chunk;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod error;
pub mod fuse;
pub mod hub;
pub mod meta;
pub mod metrics;
pub mod peer;
pub mod secrets;
pub mod source;
pub mod tls;
pub mod types;
pub mod vfs;
