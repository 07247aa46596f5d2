//! `hfmount peer`: the nodes of a volume.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use futures::future::join_all;
use serde_json::{Value, json};

use super::peer_args::advertised_address;
use super::show::show;
use super::{Failure, MetaArgs, small_runtime};
use crate::config::units::{duration, human_duration, human_size};
use crate::config::{Home, Volume};
use crate::daemon::need_volume;
use crate::error::{Error, Kind, Result};
use crate::meta::url::MetaUrl;
use crate::peer::auth::PeerKey;
use crate::peer::tracker::{Node, Roster, State, Target, Tracker};
use crate::peer::{Advertise, Client, ClientOptions, NodeId, Registry};
use crate::types::Timestamp;

/// The longest that a node may be blocked.
const LONGEST: Duration = Duration::from_hours(24 * 365);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hfmount peer ls redis://redis.internal/1
  hfmount peer rm 10.0.0.7:9000
  hfmount peer add 10.0.0.7:9000

Nodes that mount a volume in Redis find each other by themselves.")]
pub(super) struct PeerVerb {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the nodes that have the volume mounted.
    Ls(LsArgs),
    /// Name a node that is not listed, or unblock one.
    Add(AddArgs),
    /// Block a node, or take away one that was added.
    Rm(RmArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hfmount peer ls
  hfmount peer ls redis://redis.internal/1
  hfmount peer ls --json | jq '.nodes[] | select(.state == \"active\") | .address'

A node is active while its heartbeats come, stale after 15 seconds without one and forgotten an hour later. A blocked one is
neither asked nor served: three others got wrong bytes from it, or `hfmount peer rm` says so. ADDED are those that were named
with `hfmount peer add`; they are active if they answer here and now.")]
struct LsArgs {
    /// The metadata URL, as for --meta.
    #[arg(value_name = "META", conflicts_with = "meta")]
    url: Option<String>,

    #[command(flatten)]
    meta: MetaArgs,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  # A node whose heartbeats do not reach Redis: the others ask it for what they need
  hfmount peer add --meta redis://redis.internal/1 node-9:9000

  # Deal again with one that was blocked
  hfmount peer add 10.0.0.7:9000

What is added is remembered for 30 days.")]
struct AddArgs {
    /// Where the node is reached, or the id of one that is blocked.
    #[arg(value_name = "HOST:PORT", value_parser = whom)]
    node: Whom,

    #[command(flatten)]
    meta: MetaArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  # Nobody deals with it until it is added again, or a month is over
  hfmount peer rm 10.0.0.7:9000

  # For a while
  hfmount peer rm --for 2h --meta redis://redis.internal/1 10.0.0.7:9000

A node that is started anew on another port is another one. To keep a machine out for good, do not let it into the metadata:
what nodes trust each other by is there.")]
struct RmArgs {
    /// Where the node is reached, or its id.
    #[arg(value_name = "HOST:PORT", value_parser = whom)]
    node: Whom,

    #[command(flatten)]
    meta: MetaArgs,

    /// How long to block it.
    #[arg(long = "for", value_name = "TIME", default_value = "30d", value_parser = duration)]
    time: Duration,
}

/// Whom the user means.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Whom {
    Id(NodeId),
    At(Advertise),
}

fn whom(text: &str) -> Result<Whom, String> {
    if let Ok(id) = text.parse() {
        return Ok(Whom::Id(id));
    }
    match advertised_address(text) {
        Ok(place) if place.port.is_some() => Ok(Whom::At(place)),
        _ => Err(format!(
            "{text:?} is no node: write it like 10.0.0.7:9000, or its id as `hfmount peer ls` shows it"
        )),
    }
}

impl std::fmt::Display for Whom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Whom::Id(id) => id.fmt(f),
            Whom::At(place) => place.fmt(f),
        }
    }
}

impl PeerVerb {
    pub(super) fn run(self) -> Result<(), Failure> {
        let home = Home::from_env()?;
        let text = match self.what {
            What::Ls(args) => {
                let meta = MetaArgs { meta: args.url.or(args.meta.meta) }.url(&home)?;
                let report = small_runtime()?.block_on(look(&meta))?;
                if args.json { format!("{:#}\n", as_json(&report)) } else { as_text(&report) }
            }
            What::Add(args) => {
                let meta = args.meta.url(&home)?;
                small_runtime()?.block_on(add(&meta, &args.node))? + "\n"
            }
            What::Rm(args) => {
                let meta = args.meta.url(&home)?;
                small_runtime()?.block_on(remove(&meta, &args.node, args.time.min(LONGEST)))? + "\n"
            }
        };
        Ok(show(&text)?)
    }
}

struct Report {
    volume: Volume,
    roster: Arc<Roster>,
    /// Who was added by hand and has no heartbeat; with the id of the one that answers.
    added: Vec<(Advertise, Option<NodeId>)>,
}

async fn open(meta: &MetaUrl) -> Result<(Tracker, Volume)> {
    let (kv, volume) = need_volume(meta).await?;
    let tracker = Tracker::observer(&*kv).ok_or_else(|| {
        let words = format!("the volume at {meta} is on one machine: only volumes in Redis have peers");
        Error::new(Kind::Config, words)
    })?;
    Ok((tracker, volume))
}

async fn look(meta: &MetaUrl) -> Result<Report> {
    let (tracker, volume) = open(meta).await?;
    let me = tracker.me();
    let registry = Registry::new(tracker);
    registry.refresh().await?;
    let roster = registry.roster();
    let key = PeerKey::from_hex(&volume.peer_key)?;
    let client = Client::new(ClientOptions::default(), me, key, registry)?;
    let known =
        |place: &&Advertise| roster.nodes.iter().any(|node| node.info.addr.to_string() == place.to_string());
    let unknown = roster.added.iter().filter(|place| !known(place));
    let asked = unknown.map(|place| async {
        let mut answer = None;
        for addr in resolve(place).await.unwrap_or_default() {
            answer = answer.or(client.ping(addr).await.ok());
        }
        (place.clone(), answer)
    });
    let added = join_all(asked).await;
    Ok(Report { volume, roster, added })
}

async fn resolve(place: &Advertise) -> Result<Vec<SocketAddr>> {
    let found = tokio::net::lookup_host((place.host.as_str(), place.port.unwrap_or(0))).await;
    match found {
        Ok(found) => Ok(found.collect()),
        Err(e) => Err(Error::with_source(Kind::NotFound, format!("node {place}"), e)),
    }
}

/// What a block of this node may be called.
async fn targets(roster: &Roster, whom: &Whom) -> Result<Vec<Target>> {
    match whom {
        Whom::Id(id) => Ok(vec![Target::Node(*id)]),
        Whom::At(place) => {
            let addrs = resolve(place).await?;
            let ids =
                roster.nodes.iter().filter(|node| addrs.contains(&node.info.addr)).map(|node| node.info.id);
            Ok(ids.map(Target::Node).chain(addrs.iter().copied().map(Target::Addr)).collect())
        }
    }
}

async fn add(meta: &MetaUrl, whom: &Whom) -> Result<String> {
    let (tracker, _) = open(meta).await?;
    let roster = tracker.nodes().await?;
    let targets = targets(&roster, whom).await;
    let mut unblocked = false;
    for target in targets.as_deref().unwrap_or_default() {
        unblocked |= tracker.unblock(target).await?;
    }
    match whom {
        _ if unblocked => Ok(format!("{whom} is not blocked any more")),
        Whom::Id(id) => Err(Error::new(Kind::NotFound, format!("node {id} is not blocked"))),
        Whom::At(place) => {
            // A name that this machine does not know may be one elsewhere.
            let known = targets.is_ok_and(|targets| targets.iter().any(|t| matches!(t, Target::Node(_))));
            if known {
                return Ok(format!("{place} is known already"));
            }
            match tracker.add(place).await? {
                true => Ok(format!("{place} is added")),
                false => Err(Error::new(Kind::NoSpace, "too many nodes were added already")),
            }
        }
    }
}

async fn remove(meta: &MetaUrl, whom: &Whom, time: Duration) -> Result<String> {
    let (tracker, _) = open(meta).await?;
    let roster = tracker.nodes().await?;
    let mut done = Vec::new();
    if let Whom::At(place) = whom
        && tracker.take_away(place).await?
    {
        done.push(format!("{place} is not among the added nodes any more"));
    }
    let known = match targets(&roster, whom).await {
        Ok(targets) => roster.nodes.iter().find(|node| {
            targets.iter().any(|t| *t == Target::Node(node.info.id) || *t == Target::Addr(node.info.addr))
        }),
        Err(_) if !done.is_empty() => None,
        Err(e) => return Err(e),
    };
    if let Some(node) = known {
        let target = match whom {
            Whom::Id(id) => Target::Node(*id),
            Whom::At(_) => Target::Addr(node.info.addr),
        };
        if !tracker.block(&target, "by hand", time).await? {
            return Err(Error::new(Kind::NoSpace, "too many nodes are blocked already"));
        }
        done.push(format!("{whom} is blocked for {}", human_duration(time)));
    }
    match done.is_empty() {
        true => Err(Error::new(Kind::NotFound, format!("node {whom}: `hfmount peer ls` does not show it"))),
        false => Ok(done.join("\n")),
    }
}

fn word(state: &State) -> &'static str {
    match state {
        State::Active => "active",
        State::Stale => "stale",
        State::Blocked(_) => "blocked",
    }
}

fn since(roster: &Roster, time: Timestamp) -> Duration {
    let nanos = roster.server_time.0.saturating_sub(time.0);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

fn as_json(report: &Report) -> Value {
    let roster = &report.roster;
    let blocked = |node: &Node| match &node.state {
        State::Blocked(block) => json!({
            "why": block.why,
            "seconds_left": (block.until.0.saturating_sub(roster.server_time.0)).max(0) / 1_000_000_000,
        }),
        _ => Value::Null,
    };
    let nodes = roster.nodes.iter().map(|node| {
        let (info, beat) = (&node.info, node.beat.as_ref());
        json!({
            "id": info.id.to_string(),
            "address": info.addr.to_string(),
            "state": word(&node.state),
            "blocked": blocked(node),
            "added": false,
            "host": info.host,
            "zone": info.zone,
            "role": info.role.to_string(),
            "hub": info.hub,
            "version": info.version,
            "age_seconds": since(roster, info.started).as_secs(),
            "silent_seconds": since(roster, node.last).as_secs(),
            "held_bytes": beat.map(|b| b.held_bytes),
            "slots_free": beat.map(|b| b.slots_free),
            "up_bytes_per_second": beat.map(|b| b.up_bps),
            "down_bytes_per_second": beat.map(|b| b.down_bps),
        })
    });
    let added = report.added.iter().map(|(place, id)| {
        json!({
            "id": id.map(|id| id.to_string()),
            "address": place.to_string(),
            "state": if id.is_some() { "active" } else { "stale" },
            "added": true,
        })
    });
    json!({
        "volume": report.volume.name,
        "nodes": nodes.chain(added).collect::<Vec<_>>(),
        "blocks": roster
            .blocks
            .iter()
            .map(|block| json!({ "node": block.target.to_string(), "why": block.why }))
            .collect::<Vec<_>>(),
    })
}

fn rate(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), |bytes| format!("{:.1}", bytes as f64 / 1e6))
}

fn as_text(report: &Report) -> String {
    let roster = &report.roster;
    if roster.nodes.is_empty() && report.added.is_empty() && roster.blocks.is_empty() {
        return format!("no node has volume {} mounted\n", report.volume.name);
    }
    let head =
        ["ID", "STATE", "ADDRESS", "ROLE", "ZONE", "HUB", "AGE", "HOLDS", "UP MB/s", "DOWN MB/s", "HOST"];
    let mut rows = vec![head.map(str::to_owned)];
    for node in &roster.nodes {
        let (info, beat) = (&node.info, node.beat.as_ref());
        rows.push([
            info.id.to_string(),
            word(&node.state).to_owned(),
            info.addr.to_string(),
            info.role.to_string(),
            if info.zone.is_empty() { "-".to_owned() } else { info.zone.clone() },
            if info.hub { "yes" } else { "no" }.to_owned(),
            human_duration(since(roster, info.started)),
            beat.map_or_else(|| "-".to_owned(), |b| human_size(b.held_bytes)),
            rate(beat.map(|b| b.up_bps)),
            rate(beat.map(|b| b.down_bps)),
            info.host.clone(),
        ]);
    }
    for (place, id) in &report.added {
        let dash = || "-".to_owned();
        rows.push([
            id.map_or_else(dash, |id| id.to_string()),
            if id.is_some() { "active" } else { "stale" }.to_owned(),
            place.to_string(),
            "ADDED".to_owned(),
            dash(),
            dash(),
            dash(),
            dash(),
            dash(),
            dash(),
            dash(),
        ]);
    }
    let mut text = columns(&rows);
    for block in &roster.blocks {
        let left = Duration::from_nanos(u64::try_from(block.until.0 - roster.server_time.0).unwrap_or(0));
        text.push_str(&format!("blocked {} for {}: {}\n", block.target, human_duration(left), block.why));
    }
    text
}

fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (n, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[n].chars().count()).max().unwrap_or(0);
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_named_by_place_or_id() {
        assert_eq!(whom("00000000000000ff"), Ok(Whom::Id(NodeId(255))));
        assert_eq!(whom("node-7:80").map(|w| w.to_string()).as_deref(), Ok("node-7:80"));
        for no in ["node-7", "", "10.0.0.7:0", "x:y"] {
            assert!(whom(no).is_err(), "{no}");
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_longest() {
        let rows = [["a", "bb", "c"], ["aaa", "b", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(&rows), "a    bb  c\naaa  b\n");
    }
}
