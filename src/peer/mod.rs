//! Peers: the nodes of a cluster that share what each of them has fetched.
//!
//! Redis is tracker and lock; the bytes move from node to node. This room lies below the chunk store and beside the
//! sources: it knows blobs, chunks and nodes, and no inode, cache or Hub.
//!
//! What the tracker keeps may be lost at any moment: it costs bytes that are fetched twice, never wrong ones.
//!
//! | room | what |
//! |---|---|
//! | `tracker` | Redis: leases, possession, nodes, and what they share about the Hub |
//! | `registry` | heartbeats; the nodes as last heard of, also while Redis is away |
//! | `leases` | the leases of this node, renewed until they are done or lost |
//! | `auth`, `protocol` | requests and answers, signed with the volume's key |
//! | `server`, `client` | both ends of the wire; `limits` are their token buckets |

mod adverts;
pub mod auth;
pub mod client;
mod leases;
pub mod limits;
mod peers;
mod place;
pub mod protocol;
mod registry;
pub mod server;
mod stripes;
pub mod tracker;
mod types;

pub use self::client::{Client, ClientOptions, Given, Got, PeerStats};
pub use self::leases::Leases;
pub use self::peers::Peers;
pub use self::place::advertised;
pub use self::protocol::Directory;
pub use self::registry::{Ping, Registry};
pub use self::server::{Server, ServerOptions, ServerStats, Shelf, Shelved, Waited};
pub use self::stripes::Stripes;
pub use self::types::{
    Advertise, Beat, Claim, Claimed, Decision, Holder, NodeId, NodeInfo, PeerOptions, RedisDown, Role,
    Timing, Token,
};
