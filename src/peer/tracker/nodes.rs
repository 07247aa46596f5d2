//! Who is there: heartbeats, nodes added by hand, and nodes that are blocked.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use redis::{Script, Value};

use super::{HubBucket, Tracker, list, ms, number, script, strange, text, time};
use crate::error::{Error, Kind, Result};
use crate::peer::types::{Advertise, Beat, NodeId, NodeInfo, Role};
use crate::types::Timestamp;

static BEAT: LazyLock<Script> = script!("beat.lua", "roster.lua");
static LOOK: LazyLock<Script> = script!("look.lua", "roster.lua");
static REFUSED: LazyLock<Script> = script!("refused.lua");
static LEAVE: LazyLock<Script> = script!("leave.lua");
static MARK: LazyLock<Script> = script!("mark.lua");

/// So many different nodes must report a node within so long, to have it blocked for so long.
const REPORTERS: u64 = 3;
const REPORTS_COUNT_FOR: Duration = Duration::from_mins(10);
const QUARANTINE: Duration = Duration::from_hours(1);
/// What was added by hand is asked for so long.
const ADDED: Duration = Duration::from_hours(24 * 30);
/// As much of a reason as is kept.
const WORDS: usize = 200;

/// What a node said of itself, as it is kept.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    heartbeat: String,
    row: String,
}

/// A node that is blocked, or is to be: none serves it and none asks it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// One life of a daemon.
    Node(NodeId),
    /// Whoever is reached there.
    Addr(SocketAddr),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Node(node) => node.fmt(f),
            Target::Addr(addr) => addr.fmt(f),
        }
    }
}

impl FromStr for Target {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        match s.parse() {
            Ok(addr) => Ok(Target::Addr(addr)),
            Err(_) => s.parse().map(Target::Node),
        }
    }
}

/// How a node is seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    Active,
    /// No heartbeat for longer than one lasts. Forgotten after an hour.
    Stale,
    Blocked(Block),
}

/// Why nobody deals with a node, and until when by the server's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub target: Target,
    pub until: Timestamp,
    pub why: String,
}

/// A node as the tracker knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub info: NodeInfo,
    /// What it said last; `None`: that has run out.
    pub beat: Option<Beat>,
    /// Its last heartbeat, by the server's clock.
    pub last: Timestamp,
    pub state: State,
}

/// All that the tracker knows of nodes, of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    pub server_time: Timestamp,
    /// By id; also those that are silent or blocked. 1000 at most.
    pub nodes: Vec<Node>,
    pub blocks: Vec<Block>,
    /// `host:port` of nodes that were added by hand.
    pub added: Vec<Advertise>,
    /// How long the Hub wants to be left alone, by host.
    pub pauses: Vec<(String, HubBucket, Duration)>,
    /// How many blobs are wanted by nodes that may not call the Hub.
    pub needs: u64,
    /// Whether the node that asks was known before it asked, and had a heartbeat. If not, and it is not its first: Redis has
    /// lost its data, or the node was silent: for longer than a heartbeat lasts, and for more than an hour.
    pub known: bool,
    pub alive: bool,
}

impl Tracker {
    /// Says that this node lives, and learns who else does.
    pub async fn beat(&self, info: &NodeInfo, beat: &Beat) -> Result<Roster> {
        let sent = Sent { heartbeat: heartbeat(info, beat)?, row: json(info)? };
        self.send(sent).await
    }

    /// Says again what was said last. [`Kind::Invalid`] if nothing was.
    pub(super) async fn beat_again(&self) -> Result<()> {
        let sent = self.last_beat().clone().ok_or_else(|| {
            Error::new(Kind::Invalid, format!("tracker: node {} never sent a heartbeat", self.me()))
        })?;
        self.send(sent).await.map(drop)
    }

    async fn send(&self, sent: Sent) -> Result<Roster> {
        let reply = self
            .call("heartbeat", &BEAT, |cmd| {
                cmd.arg(&sent.heartbeat).arg(ms(self.timing().ttl)).arg(&sent.row);
            })
            .await?;
        let roster = roster(&reply).ok_or_else(|| strange("a heartbeat"))?;
        let before = self.last_beat().replace(sent);
        if before.is_some() && !roster.known {
            self.note_forgotten();
        }
        Ok(roster)
    }

    /// All that is known of nodes.
    pub async fn nodes(&self) -> Result<Roster> {
        let reply = self.call("nodes", &LOOK, |_| {}).await?;
        roster(&reply).ok_or_else(|| strange("a question for nodes"))
    }

    /// This node goes: nobody asks it any more, and its leases are void.
    pub async fn leave(&self) -> Result<()> {
        *self.last_beat() = None;
        self.call("leaving", &LEAVE, |_| {}).await.map(drop)
    }

    /// The machine of `node` says that nobody listens at its place. If its heartbeat is overdue as well it is dead from now on, and
    /// not only when that runs out: its leases are void, and what it holds is not offered. Of a node that cannot be reached from
    /// here and lives, nothing changes. Answers whether this call did that.
    pub async fn refused(&self, node: NodeId) -> Result<bool> {
        let timing = self.timing();
        let reply = self.call("a dead node", &REFUSED, |cmd| {
            cmd.arg(node.to_string()).arg(ms(timing.ttl)).arg(ms(timing.overdue()));
        });
        Ok(number(&reply.await?) == Some(1))
    }

    /// Blocks a node for a time; again: for that time from now. `false`: too many are blocked already.
    pub async fn block(&self, whom: &Target, why: &str, lasts: Duration) -> Result<bool> {
        self.mark("block", &whom.to_string(), lasts, why).await
    }

    /// `false`: it was not blocked.
    pub async fn unblock(&self, whom: &Target) -> Result<bool> {
        self.unmark("block", &whom.to_string()).await
    }

    /// Names a place where a node may be that Redis does not know. `false`: there are too many.
    pub async fn add(&self, place: &Advertise) -> Result<bool> {
        self.mark("added", &place.to_string(), ADDED, "").await
    }

    /// `false`: it was not there.
    pub async fn take_away(&self, place: &Advertise) -> Result<bool> {
        self.unmark("added", &place.to_string()).await
    }

    /// This node got bytes from `node` that are not those of a *verified* hash. When three different nodes have said so
    /// within ten minutes it is blocked, for an hour. Answers whether this report did that.
    pub async fn report(&self, node: NodeId) -> Result<bool> {
        let reply = self.call("report", &MARK, |cmd| {
            cmd.arg("report").arg(node.to_string()).arg(REPORTERS).arg(ms(REPORTS_COUNT_FOR));
            cmd.arg(ms(QUARANTINE)).arg(format!("{REPORTERS} nodes got wrong bytes from it"));
        });
        Ok(number(&reply.await?) == Some(1))
    }

    async fn mark(&self, key: &str, name: &str, lasts: Duration, why: &str) -> Result<bool> {
        let why: String = why.chars().filter(|c| !c.is_control()).take(WORDS).collect();
        let reply = self.call("marks", &MARK, |cmd| {
            cmd.arg("add").arg(key).arg(name).arg(ms(lasts)).arg(why);
        });
        Ok(number(&reply.await?) == Some(1))
    }

    async fn unmark(&self, key: &str, name: &str) -> Result<bool> {
        let reply = self.call("marks", &MARK, |cmd| {
            cmd.arg("remove").arg(key).arg(name);
        });
        Ok(number(&reply.await?) == Some(1))
    }
}

/// One line that scripts read, then two that nodes read.
fn heartbeat(info: &NodeInfo, beat: &Beat) -> Result<String> {
    if info.zone.contains(|c: char| c == '|' || c.is_control()) {
        return Err(Error::new(Kind::Invalid, format!("zone {:?}", info.zone)));
    }
    let hub = if info.hub { "h" } else { "" };
    let leech = if info.role == Role::Leech { "l" } else { "" };
    let head = format!("{}|{}|{}|{hub}{leech}", info.addr, info.zone, beat.slots_free);
    Ok(format!("{head}\n{}\n{}", json(info)?, json(beat)?))
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::with_source(Kind::Internal, "heartbeat", e))
}

fn roster(reply: &Value) -> Option<Roster> {
    let [now, known, alive, rows, blocks, added, hub, needs] = list(reply)? else { return None };
    let now = time(now)?;
    let ends = |value: &str| value.split('|').next()?.parse::<i64>().ok().map(millis);
    let blocks: Vec<Block> = pairs(blocks)?
        .filter_map(|(name, value)| {
            let why = value.split_once('|').map_or("", |(_, why)| why).to_owned();
            Some(Block { target: name.parse().ok()?, until: ends(value)?, why })
        })
        .collect();
    // What another version wrote and this one cannot read is left out.
    let mut nodes: Vec<Node> = list(rows)?.chunks_exact(3).filter_map(|row| node(row, &blocks)).collect();
    nodes.sort_unstable_by_key(|node| node.info.id);
    let pause = |(name, value): (&str, &str)| {
        let (host, bucket) = name.rsplit_once(' ')?;
        let left = u64::try_from(ends(value)?.0.saturating_sub(now.0)).ok()?;
        Some((host.to_owned(), bucket.parse().ok()?, Duration::from_nanos(left)))
    };
    let pauses = pairs(hub)?.filter_map(pause).collect();
    let mut added: Vec<Advertise> = pairs(added)?.filter_map(|(name, _)| name.parse().ok()).collect();
    added.sort_unstable_by_key(ToString::to_string);
    Some(Roster {
        server_time: now,
        nodes,
        blocks,
        added,
        pauses,
        needs: number(needs)?,
        known: number(known)? != 0,
        alive: number(alive)? != 0,
    })
}

fn pairs(value: &Value) -> Option<impl Iterator<Item = (&str, &str)>> {
    Some(list(value)?.chunks_exact(2).filter_map(|pair| Some((text(&pair[0])?, text(&pair[1])?))))
}

fn node(row: &[Value], blocks: &[Block]) -> Option<Node> {
    let (last, info) = text(&row[1])?.split_once('|')?;
    let info: NodeInfo = serde_json::from_str(info).ok()?;
    // A name of its own choice would let a node pass for another.
    if info.id.to_string() != text(&row[0])? {
        return None;
    }
    let heartbeat = text(&row[2])?;
    let beat = heartbeat.split('\n').nth(2).and_then(|json| serde_json::from_str(json).ok());
    let block = blocks.iter().find(|b| match b.target {
        Target::Node(node) => node == info.id,
        Target::Addr(addr) => addr == info.addr,
    });
    let state = match block {
        Some(block) => State::Blocked(block.clone()),
        None if heartbeat.is_empty() => State::Stale,
        None => State::Active,
    };
    Some(Node { info, beat, last: millis(last.parse().ok()?), state })
}

fn millis(ms: i64) -> Timestamp {
    Timestamp(ms.saturating_mul(1_000_000))
}
