//! The tools by which an operator trusts a volume: what is garbage ([`gc`]), what is wrong ([`fsck`]), where things are
//! ([`info`]).
//!
//! They look at the metadata's rows and the bucket's objects beside running mounts, and none of them needs a mount. They
//! know no cache but to look at, no kernel and no Hub.

pub mod fsck;
pub mod gc;
pub mod info;
mod inodes;
mod paths;
#[cfg(test)]
mod world;

pub use paths::find;

use crate::meta::survey::Survey;
use crate::source::bucket::Bucket;

/// What a tool works on.
#[derive(Clone, Debug)]
pub struct Place {
    pub survey: Survey,
    pub bucket: Bucket,
    /// Bytes of a chunk, as fixed by the volume.
    pub chunk_size: u32,
}

/// How far a tool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being looked at.
    pub what: &'static str,
    pub done: u64,
    /// `None`: nobody knows.
    pub of: Option<u64>,
}

/// Hears how far a tool is; called often.
pub type Tell<'a> = &'a (dyn Fn(Progress) + Send + Sync);
