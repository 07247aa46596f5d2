//! File-system semantics, written once over [`kv::Kv`].
pub mod kv;
