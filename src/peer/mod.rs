//! Peers: the nodes of a cluster that share what each of them has fetched.
//!
//! Redis is tracker and lock; the bytes move from node to node. This room lies below the chunk store and beside the
//! sources: it knows blobs, chunks and nodes, and no inode, cache or Hub.
//!
//! What the tracker keeps may be lost at any moment: it costs bytes that are fetched twice, never wrong ones.

mod types;

pub use self::types::{
    Advertise, Beat, Claim, Claimed, Decision, Holder, NodeId, NodeInfo, PeerOptions, RedisDown, Role,
    Timing, Token,
};
