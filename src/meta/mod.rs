//! File-system semantics, written once over [`kv::Kv`].
mod apply;
mod events;
pub mod kv;
#[doc(hidden)]
pub mod memory;
pub mod redis;
pub mod sqlite;
pub mod url;
