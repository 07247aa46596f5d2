//! File-system semantics, written once over [`kv::Kv`].
mod apply;
pub mod kv;
#[doc(hidden)]
pub mod memory;
