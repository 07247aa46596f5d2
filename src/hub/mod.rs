//! The Hub: what its API says, as values, and the bytes of its files. Knows nothing of inodes, caches and file-system
//! semantics.
//!
//! Every call is bounded in time and tried again by itself while that can help: what comes back as
//! [`Unavailable`](crate::error::Kind::Unavailable) or [`TimedOut`](crate::error::Kind::TimedOut) has been tried.
//! [`NotFound`](crate::error::Kind::NotFound) means that the Hub said so, [`Access`](crate::error::Kind::Access) that it
//! refused; nothing else becomes one of these. The token goes to the Hub's own origin and nowhere else.

mod answer;
mod api;
mod client;
mod date;
mod flow;
mod locations;
mod options;
mod pace;
mod range;
mod shared;
mod tree;
mod urls;

pub use api::{HubRef, Lfs, RevisionInfo, TreeFile, TreePages};
pub use client::HubClient;
pub use options::{HubOptions, Token};
pub use pace::Bucket;
pub use range::RangeStream;
pub use shared::{Place, Shared};
pub use tree::tree_json;
