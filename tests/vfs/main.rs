//! The file system without a kernel: nodes of a cluster in one process, against a stand-in Hub.

mod adopt;
mod attrs;
mod bin;
mod files;
mod lazy;
mod locks;
mod node;
mod space;
#[path = "../standin/mod.rs"]
mod standin;
