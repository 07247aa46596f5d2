//! Redis as tracker and lock: who has which chunk, who fetches it, and who is there at all.
//!
//! Everything lies beside a volume's metadata on their server, and all of it expires. `O` is a blob's etag, `N` a node.
//!
//! | key (`{p}@p:` before each) | type | content |
//! |---|---|---|
//! | `nodes` | HASH | node → `<ms of its last heartbeat>\|<NodeInfo as JSON>` |
//! | `node:<N>` | string, 15 s | heartbeat: `addr\|zone\|free slots\|flags`, a line each of NodeInfo and Beat as JSON. Who has none is dead |
//! | `block` | HASH | node or address → `<ms when it ends>\|<why>` |
//! | `rep:<N>` | ZSET, 10 min | node → ms: who reported wrong bytes of N |
//! | `added` | HASH | `host:port` → ms when it ends: nodes that are to be asked without a heartbeat |
//! | `p:<O>:<N>` | string, 24 h | bitmap: the chunks that N holds |
//! | `who:<O>` | ZSET, 24 h | node → ms: who has such a bitmap |
//! | `in:<O>` | ZSET, 2 min | node → ms: who asks for chunks of it |
//! | `l:<O>` | HASH, 1 min | chunk → `node\|token\|ms when it ends`; `chunk@node` for one that binds nobody else |
//! | `fence` | number | the last token given; begins at the microseconds of the clock, so that no loss makes it smaller |
//! | `hub` | HASH | `host bucket` → ms until which the Hub wants to be left alone |
//! | `u:<O>:<scope>`, `resolve:<O>:<scope>` | string | a signed location; who finds it out |
//! | `lock:<name>` | string | a lock of which there is one in the cluster |
//! | `need:<O>`, `needs` | SET, ZSET | chunks wanted by nodes that may not call the Hub |
//!
//! A call is one script, that is one round trip, and one moment. Time is the server's; clocks of nodes say nothing. The work
//! of a script is bounded: at most 64 chunks and 256 nodes of a blob are looked at.

mod claim;
mod leases;
mod nodes;
mod shared;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{Cmd, Script, Value};
use tokio::sync::watch;

use super::types::{NodeId, PeerOptions, Role, Timing};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::meta::kv::Kv;
use crate::meta::redis::Scripts;
use crate::types::Timestamp;

pub use self::leases::{Holding, bitmap};
pub use self::nodes::{Block, Node, Roster, State, Target};
pub use self::shared::{HubBucket, Locate, Lock, Need};

/// How long a call may take, tries included.
const PATIENCE: Duration = Duration::from_secs(2);

/// A script with what all of them begin with, and maybe more.
macro_rules! script {
    ($($part:literal),+) => {
        std::sync::LazyLock::new(|| {
            redis::Script::new(concat!(include_str!("common.lua"), $(include_str!($part)),+))
        })
    };
}
use script;

/// The tracker of a volume, as one node uses it. Cheap to clone. Every call is one round trip, and bounded to two seconds;
/// errors are [`Kind::Unavailable`] or [`Kind::TimedOut`] while Redis does not answer.
#[derive(Clone)]
pub struct Tracker(Arc<Inner>);

struct Inner {
    scripts: Scripts,
    me: NodeId,
    zone: String,
    role: Role,
    timing: Timing,
    /// What this node last said of itself, as it is kept: sent again when Redis has lost it.
    last_beat: Mutex<Option<nodes::Sent>>,
    /// Counts how often Redis did not know this node although it should.
    forgotten: watch::Sender<u64>,
}

impl Tracker {
    /// The tracker of the volume whose metadata `kv` are; `None` if it is one that only this machine can reach.
    #[must_use]
    pub fn new(kv: &dyn Kv, me: NodeId, options: &PeerOptions) -> Option<Self> {
        let scripts = kv.redis()?.scripts();
        Some(Tracker(Arc::new(Inner {
            scripts,
            me,
            zone: options.zone.clone(),
            role: options.role,
            timing: options.timing,
            last_beat: Mutex::default(),
            forgotten: watch::Sender::new(0),
        })))
    }

    /// The same for who is no node: may look and mark, not claim.
    #[must_use]
    pub fn observer(kv: &dyn Kv) -> Option<Self> {
        Self::new(kv, NodeId::random(), &PeerOptions { role: Role::Leech, ..PeerOptions::default() })
    }

    /// The node that asks.
    #[must_use]
    pub fn me(&self) -> NodeId {
        self.0.me
    }

    #[must_use]
    pub fn timing(&self) -> Timing {
        self.0.timing
    }

    /// The way to the server.
    #[must_use]
    pub fn scripts(&self) -> &Scripts {
        &self.0.scripts
    }

    /// Counts how often what this node told may be forgotten: Redis came back without its data, or the node was silent for
    /// so long that it was taken out.
    #[must_use]
    pub fn forgotten(&self) -> watch::Receiver<u64> {
        self.0.forgotten.subscribe()
    }

    /// Takes note of it.
    pub(super) fn note_forgotten(&self) {
        self.0.forgotten.send_modify(|times| *times += 1);
    }

    async fn call(&self, what: &'static str, script: &Script, with: impl FnOnce(&mut Cmd)) -> Result<Value> {
        let begin = |cmd: &mut Cmd| {
            cmd.arg(self.0.me.to_string());
            with(cmd);
        };
        self.0.scripts.run(script, begin, PATIENCE).await.context(|| format!("tracker: {what}"))
    }

    fn last_beat(&self) -> MutexGuard<'_, Option<nodes::Sent>> {
        self.0.last_beat.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracker")
            .field("me", &self.0.me)
            .field("scripts", &self.0.scripts)
            .finish_non_exhaustive()
    }
}

/// The server answered something that none of the scripts says.
fn strange(what: &str) -> Error {
    Error::new(Kind::Internal, format!("tracker: strange answer to {what}"))
}

fn ms(span: Duration) -> u64 {
    // A year: what is longer is a mistake, and the scripts add it to a clock.
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX).clamp(1, 31_536_000_000)
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(n) => u64::try_from(*n).ok(),
        value => text(value)?.parse().ok(),
    }
}

fn list(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(values) => Some(values),
        _ => None,
    }
}

fn time(micros: &Value) -> Option<Timestamp> {
    number(micros).map(|n| Timestamp(i64::try_from(n).unwrap_or(i64::MAX).saturating_mul(1000)))
}
