//! The words of the room: plain values that the tracker, the server and the client share.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::types::{BlobId, Timestamp};

/// One daemon's life: a random 63-bit number, new at every start. Printed, and kept, as 16 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct NodeId(pub u64);

impl NodeId {
    /// A fresh id: two daemons of one volume never share one.
    #[must_use]
    pub fn random() -> Self {
        NodeId(rand::random::<u64>() >> 1)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl FromStr for NodeId {
    type Err = Error;
    /// Exactly 16 lower-case hex digits: it is a part of keys and of what a MAC covers, so one id has one spelling.
    fn from_str(s: &str) -> Result<Self> {
        let digits = s.len() == 16 && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let id = digits.then(|| u64::from_str_radix(s, 16).ok()).flatten();
        id.map(NodeId).ok_or_else(|| Error::new(Kind::Invalid, format!("node id {:?}", clipped(s))))
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for NodeId {
    type Error = Error;
    fn try_from(s: String) -> Result<Self> {
        s.parse()
    }
}

/// What a node is to the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    #[default]
    Normal,
    /// Serves much: more upload slots, and asked first.
    Seed,
    /// Takes and does not serve: nothing that it holds is told.
    Leech,
}

impl Role {
    /// Whether others may ask it for chunks.
    #[must_use]
    pub fn serves(self) -> bool {
        self != Role::Leech
    }

    /// Upload slots unless the user says how many.
    #[must_use]
    pub fn default_slots(self) -> u32 {
        if self == Role::Seed { 64 } else { 16 }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Normal => "normal",
            Role::Seed => "seed",
            Role::Leech => "leech",
        })
    }
}

impl FromStr for Role {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "normal" => Ok(Role::Normal),
            "seed" => Ok(Role::Seed),
            "leech" => Ok(Role::Leech),
            _ => Err(Error::new(Kind::Invalid, format!("role {:?}", clipped(s)))),
        }
    }
}

/// Who a node is. Does not change in a daemon's life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    pub id: NodeId,
    /// Where the others reach its server.
    pub addr: SocketAddr,
    /// Nodes of one zone prefer each other. Empty: none.
    #[serde(default)]
    pub zone: String,
    #[serde(default)]
    pub role: Role,
    /// Whether it may call the Hub.
    #[serde(default)]
    pub hub: bool,
    /// Host name, for people.
    #[serde(default)]
    pub host: String,
    #[serde(default)]
    pub version: String,
    #[serde(default)]
    pub started: Timestamp,
}

/// What a node says of itself with each heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Upload slots that are free now.
    pub slots_free: u32,
    /// Bytes a second to and from other nodes, lately.
    pub up_bps: u64,
    pub down_bps: u64,
    /// Bytes of Hub content on its disk.
    pub held_bytes: u64,
}

/// A node that has a chunk, or is about to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    pub node: NodeId,
    pub addr: SocketAddr,
    pub zone: String,
    /// As of its last heartbeat.
    pub slots_free: u32,
}

/// Fences a lease: a later lease of the same chunk has a greater token. Below 2^53.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Token(pub u64);

/// A question to the tracker: who has these chunks of a blob, and may this node fetch those that nobody has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub blob: BlobId,
    /// At most [`Claim::MOST`] chunk numbers, in the order in which they are to be granted.
    pub chunks: Vec<u64>,
    /// Whether leases are asked for at all.
    pub grant: bool,
    /// How many new leases at most; what is free beyond that is answered [`Decision::Free`].
    pub most: u32,
}

impl Claim {
    /// The most chunks of one question: 256 MiB of content.
    pub const MOST: usize = 64;

    /// Asks who has the chunks, and takes no lease.
    #[must_use]
    pub fn look(blob: BlobId, chunks: Vec<u64>) -> Self {
        Claim { blob, chunks, grant: false, most: 0 }
    }

    /// Asks for leases of the first `most` of `chunks` that nobody has.
    #[must_use]
    pub fn fill(blob: BlobId, chunks: Vec<u64>, most: u32) -> Self {
        Claim { blob, chunks, grant: true, most }
    }
}

/// Where a chunk is to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Up to [`Decision::HOLDERS`] live nodes that hold it and are not blocked, chosen at random. Never this node.
    Held(Vec<Holder>),
    /// Another live node is fetching it; its lease lasts this long unless it is renewed.
    Leased { owner: Holder, left: Duration },
    /// This node fetches it, under this token.
    Granted(Token),
    /// Nobody has it, and no lease was given.
    Free,
}

impl Decision {
    /// The most holders that one decision names.
    pub const HOLDERS: usize = 3;
}

/// The answer to a [`Claim`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    /// One for each chunk of the question, in its order.
    pub decisions: Vec<Decision>,
    /// The live nodes that may call the Hub and asked for something of this blob, or got something of it, within the last
    /// minute; sorted. This node is among them if it may.
    pub participants: Vec<NodeId>,
    /// The server's clock.
    pub server_time: Timestamp,
    /// Whether the others have blocked this node: none serves it, and its leases bind nobody.
    pub blocked: bool,
}

/// What a daemon does for new fills while Redis does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedisDown {
    /// Waits, then EIO: nothing is fetched twice.
    #[default]
    Wait,
    /// Fetches from the bucket, the mirrors or the Hub without a lease.
    Direct,
}

impl FromStr for RedisDown {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s {
            "wait" => Ok(RedisDown::Wait),
            "direct" => Ok(RedisDown::Direct),
            _ => Err(Error::new(Kind::Invalid, format!("{:?} as what to do without Redis", clipped(s)))),
        }
    }
}

/// How others reach this node: a host name or address, with a port if it is not the one listened on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Advertise {
    pub host: String,
    pub port: Option<u16>,
}

impl fmt::Display for Advertise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.host.contains(':'), self.port) {
            (true, Some(port)) => write!(f, "[{}]:{port}", self.host),
            (false, Some(port)) => write!(f, "{}:{port}", self.host),
            (_, None) => f.write_str(&self.host),
        }
    }
}

impl FromStr for Advertise {
    type Err = Error;
    /// `host`, `host:port`, `1.2.3.4:80`, `::1`, `[::1]:80`.
    fn from_str(s: &str) -> Result<Self> {
        let no = || Error::new(Kind::Invalid, format!("address {:?}", clipped(s)));
        let (host, port) = match s.strip_prefix('[') {
            Some(rest) => match rest.split_once(']').ok_or_else(no)? {
                (host, "") => (host, None),
                (host, port) => (host, Some(port.strip_prefix(':').ok_or_else(no)?)),
            },
            None if s.matches(':').count() > 1 => (s, None),
            None => s.split_once(':').map_or((s, None), |(host, port)| (host, Some(port))),
        };
        let port = match port.map(str::parse).transpose() {
            Ok(Some(0)) | Err(_) => return Err(no()),
            Ok(port) => port,
        };
        let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'%');
        if !(1..=253).contains(&host.len()) || !host.bytes().all(named) {
            return Err(no());
        }
        Ok(Advertise { host: host.to_owned(), port })
    }
}

/// The times of the tracker. All are the server's; only tests change them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats, and between two renewals of leases.
    pub beat: Duration,
    /// After this long without a heartbeat a node is dead; after this long without renewal a lease is void.
    pub ttl: Duration,
    /// How long possession is known without being used or told again.
    pub possession: Duration,
    /// How long a node counts as a participant of a blob after it asked for something of it.
    pub participant: Duration,
}

impl Timing {
    /// After this long without a heartbeat a node is dead at once if its machine says that nobody listens there.
    #[must_use]
    pub fn overdue(&self) -> Duration {
        self.beat + self.beat / 2
    }
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            beat: Duration::from_secs(3),
            ttl: Duration::from_secs(15),
            possession: Duration::from_hours(24),
            participant: Duration::from_mins(1),
        }
    }
}

/// What a daemon is to do for and with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerOptions {
    /// Default: all addresses of the machine, a free port.
    pub listen: Option<SocketAddr>,
    /// Default: the address from which this machine reaches Redis, and the port listened on.
    pub advertise: Option<Advertise>,
    pub role: Role,
    /// Empty: none.
    pub zone: String,
    /// How many chunks at most are sent at one time.
    pub upload_slots: u32,
    /// Bytes a second to other nodes, and from other nodes. `None`: as much as there is.
    pub upload_limit: Option<u64>,
    pub download_limit: Option<u64>,
    /// Whether this node may call the Hub.
    pub hub: bool,
    pub redis_down: RedisDown,
    pub timing: Timing,
}

impl Default for PeerOptions {
    fn default() -> Self {
        PeerOptions {
            listen: None,
            advertise: None,
            role: Role::Normal,
            zone: String::new(),
            upload_slots: Role::Normal.default_slots(),
            upload_limit: None,
            download_limit: None,
            hub: true,
            redis_down: RedisDown::Wait,
            timing: Timing::default(),
        }
    }
}

/// As much of what somebody sent as an error should repeat.
fn clipped(s: &str) -> &str {
    s.char_indices().nth(64).map_or(s, |(end, _)| &s[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_one_spelling() {
        let id = NodeId(0x1f);
        assert_eq!(id.to_string(), "000000000000001f");
        assert_eq!(id.to_string().parse::<NodeId>().expect("round trip"), id);
        assert_eq!(serde_json::to_string(&id).expect("json"), "\"000000000000001f\"");
        assert_eq!(serde_json::from_str::<NodeId>("\"000000000000001f\"").expect("json"), id);
        for no in ["", "1f", "000000000000001F", "+00000000000001f", "0000000000000001f", "00000000000000é"]
        {
            assert!(no.parse::<NodeId>().is_err(), "{no}");
        }
    }

    #[test]
    fn addresses_to_be_reached_at() {
        let parse = |s: &str| s.parse::<Advertise>().map(|a| (a.host, a.port)).ok();
        assert_eq!(parse("10.0.0.7:9000"), Some(("10.0.0.7".into(), Some(9000))));
        assert_eq!(parse("node-1.lan"), Some(("node-1.lan".into(), None)));
        assert_eq!(parse("[fe80::1]:80"), Some(("fe80::1".into(), Some(80))));
        assert_eq!(parse("::1"), Some(("::1".into(), None)));
        assert_eq!(parse("[::1]"), Some(("::1".into(), None)));
        for no in ["", ":80", "a:0", "a:x", "a:70000", "[::1", "[::1]80", "a b", "http://x"] {
            assert_eq!(parse(no), None, "{no}");
        }
        assert_eq!("[::1]:80".parse::<Advertise>().expect("address").to_string(), "[::1]:80");
    }
}
