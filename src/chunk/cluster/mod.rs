//! Filling a run as one of several nodes: who has a chunk gives it, who may fetch it does so once for all, and the others
//! wait for him.
//!
//! | file | what |
//! |---|---|
//! | `parts` | what the tracker says of a run, cut where it says different things |
//! | `others` | chunks that this node may not fetch: another one is asked to |
//! | `away` | what is done while the tracker does not answer |
//! | `held` | telling the others what is here, and taking it back before it goes |
//! | `seeds` | telling them what lies on other disks of this machine |
//! | `shelf` | what the others are served from |
//! | `relay` | passing a chunk on while it comes in |
//!
//! Correctness does not rest on any of it: the cluster's record of a chunk's hash decides, as it does for one node alone.

mod away;
mod held;
mod others;
mod parts;
mod relay;
mod seeds;
mod shelf;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

pub(super) use self::parts::Part;
pub use self::shelf::BlobShelf;

use self::parts::Step;
use super::blob::Blob;
use super::fill;
use super::flight::{AheadPlace, Flights};
use super::pour::{self, From};
use super::shared::Shared;
use crate::error::{Error, Kind, Result};
use crate::peer::{Holder, Peers};
use crate::source::Source;
use crate::source::peer::{PeerSource, WaitSource};

/// How often other nodes are tried in one round, and the pause between.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(60);
/// How long nodes that are busy are asked again before the bucket is.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long another node's transfer is waited for before the tracker is asked anew: as long as its lease lasts, within these.
const SHORTEST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// How often nobody of those who are said to have a chunk may be asked or has it, before this node fetches it for itself. The
/// first time is often a stale advertisement, which is gone the next time.
const NOBODY: u32 = 3;
/// The same for nodes that have it and do not give it: they are busy, or cannot be reached from here.
const STUCK: Duration = Duration::from_secs(10);
/// How often a fetch from elsewhere looks whether its lease is still its own.
const LOOK: Duration = Duration::from_millis(500);

/// Starts what a node of several does in the background.
pub(super) fn start(shared: &Arc<Shared>) {
    let Some(peers) = shared.peers.clone() else { return };
    let withdrawals = held::Withdrawals::new(peers.clone(), shared);
    shared.cache.hear_of_departures(Arc::new(withdrawals));
    shared.spawn(held::tell(shared.clone(), peers.clone()));
    if shared.sources.iter().any(|source| source.name() == "seed") {
        shared.spawn(seeds::tell(shared.clone(), peers));
    }
}

/// A reader of the blob is expected: who else will probably read it is taken as known.
pub(super) fn expect(blob: &Blob) {
    if let Some(peers) = &blob.shared.peers {
        parts::expect(blob, peers);
    }
}

/// One round of a run: the first part of it, by what the tracker says; the other parts become tasks of their own. What is
/// with other nodes changes all the time: it is asked anew a few times before the round counts as failed.
pub(super) async fn round(
    flights: &mut Flights,
    place: &mut AheadPlace,
    peers: &Arc<Peers>,
    mut part: Option<Part>,
) -> Result<()> {
    let (mut tries, mut nobody, mut mine, mut disowned) = (0, 0, flights.mine, false);
    loop {
        let step = match part.take() {
            Some(part) => part.step,
            None => match first_part(flights, place, peers, mine).await {
                Ok(step) => step,
                Err(e) if e.kind().is_transient() => return away::round(flights, place, peers, e).await,
                Err(e) => return Err(e),
            },
        };
        let before = flights.left.start;
        let step = match step {
            Step::Held(holders) if may_fetch(&flights.blob) => {
                let first = holders.first().cloned().unwrap_or_else(|| Arc::from([]));
                let stuck = flights.stuck_for() > STUCK;
                if stuck {
                    tracing::info!(blob = %flights.blob.id, "other nodes have it, and do not give it to this one");
                    peers.gave_nothing(&first);
                }
                let none = stuck || nobody >= NOBODY || peers.give_nothing(&first);
                // Several nodes may find the same: one of them fetches it for all.
                if (none || tries + 1 >= TRIES) && !disowned && disown(flights, peers, &holders).await {
                    (disowned, mine, nobody) = (true, true, 0);
                    continue;
                }
                if none { Step::Alone } else { Step::Held(holders) }
            }
            step => step,
        };
        let begun = Instant::now();
        let (how, run) = (step.name(), flights.left.clone());
        let ended = take(flights, place, peers, step).await;
        let (took, left) = (begun.elapsed(), flights.left.start);
        tracing::trace!(blob = %flights.blob.id, chunks = ?run, how, left, ?took, "taken");
        let Err(Missed::Others(e)) = ended else { return ended.map_err(Missed::error) };
        if how == Step::THEIRS {
            // It has a lease by now, or does not do it.
            mine = true;
            tracing::debug!(blob = %flights.blob.id, error = %e, "another node has not begun with it");
            continue;
        }
        let moved = flights.left.start > before;
        flights.note_stuck(!moved);
        (tries, nobody) = match (moved, e.kind()) {
            (true, _) => (0, 0),
            (false, Kind::NotFound) => (tries + 1, nobody + 1),
            (false, _) => (tries + 1, 0),
        };
        if tries >= TRIES {
            return Err(e.with_kind(Kind::Unavailable));
        }
        tracing::debug!(blob = %flights.blob.id, error = %e, "asking anew");
        sleep(PAUSE.mul_f64(rand::random_range(0.5..1.5))).await;
    }
}

/// Asks the tracker, and keeps the first part of the run.
async fn first_part(
    flights: &mut Flights,
    place: &AheadPlace,
    peers: &Arc<Peers>,
    mine: bool,
) -> Result<Step> {
    let blob = flights.blob.clone();
    let mut parts = parts::ask(&blob, peers, flights.left.clone(), mine).await?;
    while parts.len() > 1
        && let Some(part) = parts.pop()
    {
        let rest = flights.split_off(part.run.start);
        fill::begin(rest, place.clone(), part.decided());
    }
    let first = parts.pop().ok_or_else(|| Error::new(Kind::Internal, "a run without chunks"))?;
    Ok(first.step)
}

/// Why a part did not come.
enum Missed {
    /// Another node did not give it: another one may.
    Others(Error),
    Failed(Error),
}

impl Missed {
    fn error(self) -> Error {
        match self {
            Missed::Others(e) | Missed::Failed(e) => e,
        }
    }
}

async fn take(
    flights: &mut Flights,
    place: &mut AheadPlace,
    peers: &Arc<Peers>,
    step: Step,
) -> Result<(), Missed> {
    match step {
        Step::Ours(lease) => {
            // Nobody can say what nodes hold that the tracker does not know.
            let added = peers.registry().added();
            if !added.is_empty() {
                let holders = for_each_chunk(flights, added);
                let source = PeerSource::new(peers.client().clone(), Duration::ZERO);
                if from_peers(flights, place, peers, &source, holders).await.is_ok() {
                    return Ok(());
                }
            }
            let lost = || Error::new(Kind::Unavailable, "the lease went to another node");
            let ended = tokio::select! {
                ended = fill::from_sources(flights, place) => ended.map_err(Missed::Failed),
                () = lease.lost(LOOK) => Err(Missed::Others(lost())),
            };
            drop(lease);
            match ended {
                // Another node may be let in where this one is not.
                Err(Missed::Failed(e)) if e.kind() == Kind::Access => filled(flights, peers, Some(e)).await,
                ended => ended,
            }
        }
        Step::Held(holders) => {
            let source = PeerSource::new(peers.client().clone(), PATIENCE);
            match from_peers(flights, place, peers, &source, holders.into()).await {
                Err(e) => or_bucket(flights, place, e).await.map_err(Missed::Others),
                Ok(()) => Ok(()),
            }
        }
        Step::Leased { owner, left } => {
            let source = WaitSource::new(peers.client().clone(), left.clamp(SHORTEST_WAIT, LONGEST_WAIT));
            let holders = for_each_chunk(flights, vec![owner]);
            from_peers(flights, place, peers, &source, holders).await.map_err(Missed::Others)
        }
        Step::Theirs(node) => {
            let source = WaitSource::new(peers.client().clone(), SHORTEST_WAIT).begun_there();
            let holders = for_each_chunk(flights, vec![node]);
            from_peers(flights, place, peers, &source, holders).await.map_err(Missed::Others)
        }
        Step::Free => filled(flights, peers, None).await,
        Step::Alone => fill::from_sources(flights, place).await.map_err(Missed::Failed),
        Step::Unasked => Ok(()),
    }
}

/// Another node is to fetch the first chunk, from which it is then fetched.
async fn filled(flights: &mut Flights, peers: &Arc<Peers>, refused: Option<Error>) -> Result<(), Missed> {
    others::fill(flights, peers, refused).await.map_err(Missed::Failed)?;
    Err(Missed::Others(Error::new(Kind::Unavailable, "another node has just fetched it")))
}

/// Chunks whose holders all failed a moment ago or gave nothing for long, dead for all that this node can see, are said to be
/// with nobody: so a lease decides who fetches them. Of a node that is only cut off from here others lose what it holds of this
/// run, until it tells it again. Whether there were any at the beginning of the run.
async fn disown(flights: &Flights, peers: &Peers, holders: &[Arc<[Holder]>]) -> bool {
    let (blob, client) = (flights.blob.id, peers.client());
    let mut any = false;
    for (idx, holders) in flights.left.clone().zip(holders) {
        let well = holders.is_empty() || holders.iter().any(|holder| client.is_well(holder.node));
        if well && !peers.give_nothing(holders) {
            break;
        }
        for holder in holders.iter() {
            peers.not_held(blob, idx, holder.node).await;
        }
        any = true;
    }
    any
}

/// Pours from another node. Whoever gave bytes that differ from the record is told about.
async fn from_peers(
    flights: &mut Flights,
    place: &mut AheadPlace,
    peers: &Arc<Peers>,
    source: &dyn Source,
    holders: Arc<[Arc<[Holder]>]>,
) -> Result<()> {
    let blob = flights.blob.clone();
    let task = fill::task(&blob, flights).await?;
    let from = From { source, counters: &blob.shared.counters.peers, is_origin: false, holders };
    let Err(e) = pour::pour(flights, &task, &from, place).await else { return Ok(()) };
    if e.kind() == Kind::Corrupt {
        peers.gave_wrong(blob.id, flights.left.start, task.facts.verified).await;
    }
    tracing::debug!(blob = %blob.id, error = %e, "no bytes from a peer");
    // That a peer refuses or lies says nothing about the blob.
    Err(match e.kind() {
        Kind::Access | Kind::Corrupt => e.with_kind(Kind::Unavailable),
        _ => e,
    }
    .context("peer"))
}

/// No peer could give it: the bucket, for as much as is known to be there.
async fn or_bucket(flights: &mut Flights, place: &mut AheadPlace, error: Error) -> Result<()> {
    let blob = flights.blob.clone();
    let task = fill::task(&blob, flights).await?;
    let stored = (flights.left.clone()).take_while(|idx| task.row(*idx).stored).count() as u64;
    if stored == 0 {
        return Err(error);
    }
    let rest = flights.split_off(flights.left.start + stored);
    if !rest.left.is_empty() {
        fill::begin(rest, place.clone(), None);
    }
    fill::from_bucket(flights, &task, place).await.map_err(|_| error)
}

/// The same nodes for every chunk of the run.
fn for_each_chunk(flights: &Flights, nodes: Vec<Holder>) -> Arc<[Arc<[Holder]>]> {
    let nodes: Arc<[Holder]> = nodes.into();
    flights.left.clone().map(|_| nodes.clone()).collect()
}

/// Whether this node could fetch the blob's bytes from elsewhere than the bucket and the others.
fn may_fetch(blob: &Blob) -> bool {
    let shared = &blob.shared;
    shared.backings.has(&blob.id) || shared.reaches_origin() && blob.refusal().is_none()
}
