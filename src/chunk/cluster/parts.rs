//! What the tracker says of a run of chunks, cut where it says different things.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{Holder, may_fetch};
use crate::chunk::blob::Blob;
use crate::chunk::cache::Presence;
use crate::chunk::lock;
use crate::error::Result;
use crate::peer::{Claim, Decision, Directory, NodeId, Peers, Stripes};

/// How long it is taken as known who reads a blob.
const MET: Duration = Duration::from_millis(300);
/// How long who read the same is expected to read the same again, and of how many chunks a blob is that says so: nodes that
/// read parts of a model each have its small files in common.
const COMPANIONS: Duration = Duration::from_secs(10);
const LARGE: u64 = 8;

/// A part of a run, and what is to be done about it.
#[derive(Debug)]
pub(in crate::chunk) struct Part {
    pub run: Range<u64>,
    pub(super) step: Step,
}

#[derive(Debug)]
pub(super) enum Step {
    /// This node fetches it.
    Ours(Lease),
    /// For each chunk, who has it.
    Held(Vec<Arc<[Holder]>>),
    /// Another one is fetching it.
    Leased { owner: Holder, left: Duration },
    /// Nobody has it, and this other node begins with it.
    Theirs(Holder),
    /// Nobody has it, and this node may not fetch it.
    Free,
    /// Others have it, and this node gets it from none of them: it fetches it for itself, without a lease.
    Alone,
    /// Too long for one question.
    Unasked,
}

impl Step {
    pub(super) const THEIRS: &str = "theirs";

    /// For logs.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Step::Ours(_) => "ours",
            Step::Held(_) => "held",
            Step::Leased { .. } => "leased",
            Step::Theirs(_) => Self::THEIRS,
            Step::Free => "free",
            Step::Alone => "alone",
            Step::Unasked => "unasked",
        }
    }
}

impl Part {
    /// The part, if it is known what is to be done about it.
    pub(super) fn decided(self) -> Option<Self> {
        Some(self).filter(|part| !matches!(part.step, Step::Unasked))
    }
}

/// The leases of a run of chunks. What has not landed when it is dropped is given up, and others may fetch it.
#[derive(Debug)]
pub(super) struct Lease {
    blob: Arc<Blob>,
    peers: Arc<Peers>,
    run: Range<u64>,
}

impl Lease {
    /// Ends when another node may have the last of the chunks, which is the last to land. One that has landed is leased no more.
    pub(super) async fn lost(&self, look: Duration) {
        let last = self.run.end - 1;
        loop {
            sleep(look).await;
            let landed = self.blob.file.presence(last) == Presence::Present;
            if !landed && !self.peers.leases().is_ours(self.blob.id, last) {
                return;
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.peers.give_up(self.blob.id, self.run.clone());
    }
}

/// Asks the tracker about a run, and takes the leases of what nobody has if this node may fetch it. Unless it is to be `mine`
/// by all means, what others begin with is left to them.
pub(super) async fn ask(
    blob: &Arc<Blob>,
    peers: &Arc<Peers>,
    run: Range<u64>,
    mine: bool,
) -> Result<Vec<Part>> {
    let mut first = run.start..run.end.min(run.start + Claim::MOST as u64);
    let fetches = may_fetch(blob);
    let shared = fetches && !mine;
    if shared && lock(&blob.state).met.is_none_or(|at| at.elapsed() > MET) {
        // Who has come since is to have his share of it.
        let claimed = peers.claim(&Claim::look(blob.id, vec![first.start])).await?;
        meet(blob, peers, &claimed.participants);
    }
    let theirs = if shared { who_begins(blob, peers, &mut first) } else { None };
    let wanted: Vec<u64> = first.clone().collect();
    let most = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
    let claim = match fetches && theirs.is_none() {
        true => Claim::fill(blob.id, wanted, most),
        false => Claim::look(blob.id, wanted),
    };
    let claimed = peers.claim(&claim).await?;
    meet(blob, peers, &claimed.participants);
    let mut decisions = claimed.decisions;
    if !fetches && decisions.contains(&Decision::Free) {
        take_stored(blob, peers, &first, &mut decisions).await?;
    }
    let mut parts: Vec<Part> = Vec::new();
    for (idx, decision) in first.clone().zip(decisions) {
        add(&mut parts, blob, peers, idx, decision);
    }
    if let Some(theirs) = theirs {
        let free = parts.iter_mut().filter(|part| matches!(part.step, Step::Free));
        free.for_each(|part| part.step = Step::Theirs(theirs.clone()));
    }
    if first.end < run.end {
        parts.push(Part { run: first.end..run.end, step: Step::Unasked });
    }
    Ok(parts)
}

/// Nobody was asked yet who reads the blob: probably those who read with this node what it read before.
pub(super) fn expect(blob: &Blob, peers: &Peers) {
    let stripes = among(blob, peers, &[]);
    let mut state = lock(&blob.state);
    if state.stripes.is_none() && state.met.is_none() {
        state.stripes = stripes;
    }
}

/// These read the blob, as the tracker has just said.
fn meet(blob: &Blob, peers: &Peers, participants: &[NodeId]) {
    let stripes = among(blob, peers, participants);
    let mut state = lock(&blob.state);
    (state.stripes, state.met) = (stripes, Some(Instant::now()));
}

/// How these share the blob with those who read another large one with this node a moment ago, and will probably read this one
/// too: whoever comes to it first is not to fetch all of it.
fn among(blob: &Blob, peers: &Peers, participants: &[NodeId]) -> Option<Stripes> {
    let mut companions = lock(&blob.shared.companions);
    if participants.len() > 1 && blob.file.chunks() >= LARGE {
        *companions = Some((Instant::now(), participants.to_vec()));
    }
    let lately = companions.as_ref().filter(|(at, _)| at.elapsed() < COMPANIONS);
    let mut all = participants.to_vec();
    all.extend(lately.iter().flat_map(|(_, nodes)| nodes));
    drop(companions);
    all.sort_unstable();
    all.dedup();
    Stripes::new(blob.id, blob.file.chunks(), peers.me(), &all)
}

/// The other node that is to begin with the first of a run, which is cut where another one begins. `None`: this one is, or
/// there is nobody to be asked.
fn who_begins(blob: &Blob, peers: &Peers, run: &mut Range<u64>) -> Option<Holder> {
    let node = {
        let state = lock(&blob.state);
        let stripes = state.stripes.as_ref()?;
        let node = stripes.whose(run.start);
        run.end = (run.start..run.end).find(|idx| stripes.whose(*idx) != node).unwrap_or(run.end);
        node
    };
    let holder = peers.registry().holder(node)?;
    (node != peers.me() && peers.client().is_well(node)).then_some(holder)
}

/// What the bucket has this node may fetch in any case.
async fn take_stored(
    blob: &Arc<Blob>,
    peers: &Arc<Peers>,
    run: &Range<u64>,
    decisions: &mut [Decision],
) -> Result<()> {
    let rows = blob.shared.blobs.chunks(blob.id, run.start, run.end - run.start).await?;
    let free = (run.clone().zip(&rows).zip(decisions.iter()))
        .filter(|((_, row), decision)| row.stored && **decision == Decision::Free);
    let wanted: Vec<u64> = free.map(|((idx, _), _)| idx).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let most = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
    let claimed = peers.claim(&Claim::fill(blob.id, wanted.clone(), most)).await?;
    for (idx, decision) in wanted.into_iter().zip(claimed.decisions) {
        decisions[(idx - run.start) as usize] = decision;
    }
    Ok(())
}

fn add(parts: &mut Vec<Part>, blob: &Arc<Blob>, peers: &Arc<Peers>, idx: u64, decision: Decision) {
    if let Some(Part { run, step }) = parts.last_mut() {
        let same = match (&mut *step, &decision) {
            (Step::Ours(lease), Decision::Granted(_)) => {
                lease.run.end = idx + 1;
                true
            }
            (Step::Held(holders), Decision::Held(more)) => {
                holders.push(more.clone().into());
                true
            }
            (Step::Leased { owner, left }, Decision::Leased { owner: other, left: longer }) => {
                *left = (*left).max(*longer);
                owner.node == other.node
            }
            (Step::Free, Decision::Free) => true,
            _ => false,
        };
        if same {
            run.end = idx + 1;
            return;
        }
    }
    let run = idx..idx + 1;
    let step = match decision {
        Decision::Granted(_) => {
            Step::Ours(Lease { blob: blob.clone(), peers: peers.clone(), run: run.clone() })
        }
        Decision::Held(holders) => Step::Held(vec![holders.into()]),
        Decision::Leased { owner, left } => Step::Leased { owner, left },
        Decision::Free => Step::Free,
    };
    parts.push(Part { run, step });
}
