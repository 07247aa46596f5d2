//! Opening a chunk: one holder after the other, a second one beside the first if that takes long, and those that a busy one
//! names.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;

use super::Inner;
use super::request::{Answered, Opened, name};
use crate::error::{Error, Kind, Result};
use crate::peer::protocol::ChunkAsk;
use crate::peer::types::{Holder, NodeId};
use crate::types::BlobId;

/// One wait at a node. A node that is frozen is found out after it.
const SLICE: Duration = Duration::from_secs(2);
/// Between two rounds of asking those that are busy.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// With less time than this left, nobody is asked again.
const LEAST: Duration = Duration::from_millis(20);
/// The most nodes that are asked for one chunk, however many are named.
const MOST_NODES: usize = 32;

/// The search for a node that gives a chunk.
#[derive(Debug)]
pub(super) struct Chase {
    pub inner: Arc<Inner>,
    pub blob: BlobId,
    pub idx: u64,
    /// Of the whole chunk.
    pub len: u32,
    /// Until when busy nodes are asked again.
    pub until: Instant,
    /// Nodes that are still receiving it may pass it on.
    live: bool,
    /// Of the blob: who is waited for is to begin with the chunk.
    size: Option<u64>,
    queue: VecDeque<Candidate>,
    /// Asked in this round, or in the queue.
    seen: HashSet<NodeId>,
    /// Of no use any more.
    dead: HashSet<NodeId>,
    /// To be asked again.
    busy: Vec<Holder>,
    /// Came from the caller: if one of these has not what it is said to have, the tracker is wrong.
    told: HashSet<NodeId>,
    known: HashSet<NodeId>,
    worst: Option<Error>,
    absent: Option<Holder>,
}

#[derive(Clone, Debug)]
struct Candidate {
    holder: Holder,
    waits: bool,
}

impl Chase {
    /// Among `holders`, in this order.
    pub fn new(inner: &Arc<Inner>, blob: BlobId, idx: u64, len: u32, until: Instant) -> Self {
        Chase {
            inner: inner.clone(),
            blob,
            idx,
            len,
            until,
            live: false,
            size: None,
            queue: VecDeque::new(),
            seen: HashSet::new(),
            dead: HashSet::new(),
            busy: Vec::new(),
            told: HashSet::new(),
            known: HashSet::new(),
            worst: None,
            absent: None,
        }
    }

    /// Nodes that are still receiving it may pass it on.
    pub fn live(self) -> Self {
        Chase { live: true, ..self }
    }

    /// Who is waited for is to begin with the chunk, of a blob of `size` bytes.
    pub fn begun_there(self, size: u64) -> Self {
        Chase { size: Some(size), ..self }
    }

    /// Adds nodes that are said to hold the chunk.
    pub fn holders(mut self, holders: &[Holder]) -> Self {
        for holder in self.inner.choose(holders, self.len) {
            self.told.insert(holder.node);
            self.add(holder, false);
        }
        self
    }

    /// Adds the node that is fetching the chunk.
    pub fn owner(mut self, owner: &Holder) -> Self {
        for holder in self.inner.choose(std::slice::from_ref(owner), self.len) {
            self.add(holder, true);
        }
        self
    }

    /// Those that can answer at once go before those that are to let us wait; of these, whom a busy node has just named
    /// before busy ones.
    fn add(&mut self, holder: Holder, waits: bool) {
        let new = holder.node != self.inner.node && !self.dead.contains(&holder.node);
        if !new || self.known.len() >= MOST_NODES && !self.known.contains(&holder.node) {
            return;
        }
        if !self.seen.insert(holder.node) {
            return;
        }
        self.known.insert(holder.node);
        self.queue.push_back(Candidate { holder, waits });
    }

    fn attempt(&self, candidate: Candidate) -> BoxFuture<'static, (Candidate, Result<Answered>)> {
        let inner = self.inner.clone();
        let left = self.until.saturating_duration_since(Instant::now());
        let wait = candidate.waits.then(|| left.min(SLICE)).filter(|w| !w.is_zero());
        let live = self.live && wait.is_some();
        let ask = ChunkAsk {
            blob: self.blob,
            idx: self.idx,
            from: 0,
            wait,
            live,
            size: self.size.filter(|_| live),
        };
        let len = self.len;
        Box::pin(async move {
            let answered = inner.ask_chunk(&candidate.holder, ask, len).await;
            (candidate, answered)
        })
    }

    /// The chunk from one of them, and the others that may have it.
    pub async fn open(mut self) -> Result<(Opened, Vec<Holder>)> {
        let mut running = FuturesUnordered::new();
        let mut pause = FIRST_PAUSE;
        let times = self.inner.times;
        let mut patient = false;
        loop {
            if running.is_empty() {
                match self.queue.pop_front() {
                    Some(candidate) => {
                        patient = candidate.waits;
                        running.push(self.attempt(candidate));
                    }
                    None => {
                        self.again(pause).await?;
                        pause = (pause * 2).min(LONGEST_PAUSE);
                        continue;
                    }
                }
            }
            let stall = self.inner.scores.stall(times.hedge, times.answer);
            // A second one beside the first, if that is not meant to wait and there is one that is not either.
            let may = running.len() == 1 && !patient && self.queue.front().is_some_and(|c| !c.waits);
            tokio::select! {
                Some((candidate, answered)) = running.next() => {
                    if let Some(opened) = self.judge(&candidate.holder, answered) {
                        let others = self.others(opened.holder.node);
                        return Ok((opened, others));
                    }
                }
                () = tokio::time::sleep(stall), if may => {
                    if self.inner.scores.may_hedge() && let Some(candidate) = self.queue.pop_front() {
                        running.push(self.attempt(candidate));
                    } else {
                        patient = true;
                    }
                }
            }
        }
    }

    fn judge(&mut self, holder: &Holder, answered: Result<Answered>) -> Option<Opened> {
        match answered {
            Ok(Answered::Chunk(opened)) => return Some(opened),
            Ok(Answered::Elsewhere(others)) => {
                self.busy.push(holder.clone());
                let mut others = self.inner.choose(&others, self.len);
                // Who does not answer is named until it is known to be gone.
                others.retain(|h| self.inner.scores.is_well(h.node));
                let later = self.queue.iter().position(|c| c.waits).unwrap_or(self.queue.len());
                let later = self.queue.split_off(later);
                others.into_iter().for_each(|h| self.add(h, true));
                self.queue.extend(later);
            }
            Ok(Answered::Underway) => self.busy.push(holder.clone()),
            Ok(Answered::Absent) => {
                self.dead.insert(holder.node);
                if self.told.contains(&holder.node) {
                    self.inner.directory.not_held(holder.node, self.blob, self.idx);
                }
                self.absent = Some(holder.clone());
            }
            Err(error) => {
                tracing::debug!(blob = %self.blob, idx = self.idx, %error, "a peer gives nothing");
                self.dead.insert(holder.node);
                if error.kind() == Kind::Corrupt {
                    self.inner.scores.wrong(holder.node);
                }
                self.worst = Some(error);
            }
        }
        None
    }

    /// Begins another round with those that are busy; fails if there is none or the time is over.
    async fn again(&mut self, pause: Duration) -> Result<()> {
        let now = Instant::now();
        if self.busy.is_empty() {
            return Err(match (self.worst.take(), self.absent.take()) {
                (Some(error), _) if error.kind() == Kind::Corrupt => error.with_kind(Kind::Unavailable),
                (Some(error), _) => error,
                (None, Some(holder)) => Error::with_source(
                    Kind::NotFound,
                    name(&holder),
                    format!("chunk {} is not there", self.idx),
                ),
                (None, None) => Error::new(Kind::NotFound, "no peer that may be asked"),
            });
        }
        // Who is asked with no time to wait says that a chunk that is just coming is not there.
        if now + LEAST >= self.until {
            let names: Vec<String> = self.busy.iter().map(name).collect();
            let kind = if self.told.is_empty() { Kind::TimedOut } else { Kind::Unavailable };
            return Err(Error::with_source(kind, names.join(", "), "busy"));
        }
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5)).min((self.until - now) / 2)).await;
        self.seen.clear();
        let busy = std::mem::take(&mut self.busy);
        for holder in busy {
            self.add(holder, true);
        }
        Ok(())
    }

    /// Who else may have it, should `node` stop half way.
    fn others(&mut self, node: NodeId) -> Vec<Holder> {
        let queued = self.queue.drain(..).map(|c| c.holder);
        let all = queued.chain(self.busy.drain(..));
        all.filter(|h| h.node != node && !self.dead.contains(&h.node)).collect()
    }
}
