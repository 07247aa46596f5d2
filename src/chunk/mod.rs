//! Bytes on the local disk, and moving them there. Knows rows about bytes and sources of bytes; no names, no POSIX.

pub mod cache;
pub mod extents;
pub mod file;
pub mod ranges;
