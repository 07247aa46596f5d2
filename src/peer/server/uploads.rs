//! Who is sent what: slots for all that is sent at one time, turns to begin, and few seats at each chunk, so that a crowd that
//! wants one chunk becomes a chain: whoever finds the seats taken is sent on to those who sit there.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use crate::peer::protocol::Directory;
use crate::peer::types::{Holder, NodeId};
use crate::types::BlobId;

/// Seats of a chunk: nodes that are sent it, or wait for it here, at one time. Each passes it on while it receives it, so with
/// one seat a chunk goes over every link once. More are given to large crowds, one for so many that were sent on, so that the way
/// to the last does not become long.
const CROWD: usize = 8;
/// At most. Also for those that were sent on and came back: who has the seat does not give it to them.
pub(super) const MOST: usize = 3;
/// Who takes nothing of what is there for so long does not count as one who passes it on.
const STUCK: Duration = Duration::from_secs(1);
/// Chunks of the disk that begin to be sent at one time, and for how long they count as such: one after the other each comes
/// sooner than all at once, and no later. Who is slow does not hold up the others.
const TURNS: usize = 2;
const TURN: Duration = Duration::from_millis(500);
/// The first chunk of a blob goes before the others: without it a program knows nothing. How long one of the others lets it pass
/// in all.
pub(super) const FIRST: u64 = 0;
const LETS_PASS: Duration = Duration::from_millis(700);
/// Seats at the first chunk, at least; and how long one of them counts: who takes it slower has something else on its link, and
/// would pass it on as slowly.
const SEATS_AT_FIRST: usize = 2;
const SLOW_AT_FIRST: Duration = Duration::from_millis(500);
/// How long a seat is kept for who was told to ask again.
const LINGER: Duration = Duration::from_secs(1);
/// Who was sent on comes back within this time, or not before that, if it got no answer or none that is of use.
const AT_ONCE: Duration = Duration::from_millis(100);
const LATE: Duration = Duration::from_secs(3);
/// For how long it is remembered who was sent on.
const CAME_BACK: Duration = Duration::from_secs(30);
/// Chunks of which is remembered who got them.
const RECENT: NonZeroUsize = NonZeroUsize::new(4096).expect("above 0");
/// Above so many chunks with seats, the empty ones are cleared away.
const MANY: usize = 256;

type Chunk = (BlobId, u64);

/// The uploads of a server.
#[derive(Debug)]
pub(super) struct Uploads {
    slots: Arc<Semaphore>,
    turns: Arc<Semaphore>,
    /// First chunks that are being sent.
    firsts: watch::Sender<usize>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    seats: HashMap<Chunk, Vec<Seat>>,
    /// Who was sent on to others lately.
    sent_on: LruCache<Chunk, Vec<(NodeId, Instant)>>,
    /// Who got a chunk lately, latest last.
    recent: LruCache<Chunk, Vec<NodeId>>,
}

#[derive(Debug)]
struct Seat {
    node: NodeId,
    /// Requests of this node under way.
    requests: usize,
    /// Until when it is kept without one.
    until: Instant,
    /// Since when it is sent something.
    since: Option<Instant>,
    /// Since when a piece is there that was not taken.
    given: Option<Instant>,
}

impl Seat {
    fn is_taken(&self, now: Instant) -> bool {
        self.requests > 0 || self.until > now
    }

    fn is_stuck(&self, now: Instant) -> bool {
        self.given.is_some_and(|since| now.duration_since(since) > STUCK)
    }

    /// Whether who sits here passes chunk `idx` on too slowly.
    fn is_slow(&self, idx: u64, now: Instant) -> bool {
        idx == FIRST && self.since.is_some_and(|since| now.duration_since(since) > SLOW_AT_FIRST)
    }
}

/// A place at a chunk. Given back when dropped.
#[derive(Debug)]
pub(super) struct Seated {
    uploads: Arc<Uploads>,
    chunk: Chunk,
    node: NodeId,
    ending: Ending,
}

/// Which of the chunks that are being sent go before the others.
#[derive(Debug)]
pub(super) enum Goes {
    /// Before all others, until it is dropped.
    First(watch::Sender<usize>),
    /// Lets those pass, for so long yet.
    After(watch::Receiver<usize>, Duration),
}

impl Goes {
    /// Until the next piece may be sent.
    pub async fn wait(&mut self) {
        let Goes::After(firsts, left) = self else { return };
        if *firsts.borrow() == 0 || left.is_zero() {
            return;
        }
        let begun = Instant::now();
        // Whether they are gone or the time is over, it goes on.
        let _ = timeout(*left, firsts.wait_for(|firsts| *firsts == 0)).await;
        *left = left.saturating_sub(begun.elapsed());
    }
}

impl Drop for Goes {
    fn drop(&mut self) {
        if let Goes::First(firsts) = self {
            firsts.send_modify(|firsts| *firsts -= 1);
        }
    }
}

/// A turn; over with the time, or when it is dropped.
#[derive(Debug)]
pub(super) struct Turn(#[expect(dead_code, reason = "it is only held")] AbortOnDropHandle<()>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Left,
    /// It was told to ask again.
    Again,
    /// It got the chunk.
    Served,
}

impl Uploads {
    pub fn new(slots: u32) -> Self {
        let state =
            State { seats: HashMap::new(), sent_on: LruCache::new(RECENT), recent: LruCache::new(RECENT) };
        let places = |n| Arc::new(Semaphore::new(n));
        Uploads {
            slots: places(slots as usize),
            turns: places(TURNS),
            firsts: watch::Sender::new(0),
            state: Mutex::new(state),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Slots that are free now.
    pub fn free(&self) -> u32 {
        u32::try_from(self.slots.available_permits()).unwrap_or(u32::MAX)
    }

    /// A slot: at once, or until `deadline` in the order of asking.
    pub async fn slot(&self, deadline: Option<Instant>) -> Option<OwnedSemaphorePermit> {
        take(&self.slots, deadline).await
    }

    /// The turn to begin to send a chunk, in the same way.
    pub async fn turn(&self, deadline: Option<Instant>) -> Option<Turn> {
        let permit = take(&self.turns, deadline).await?;
        Some(Turn(AbortOnDropHandle::new(tokio::spawn(async move {
            sleep(TURN).await;
            drop(permit);
        }))))
    }

    /// How chunk `idx`, which is about to be sent, goes among the others.
    pub fn goes(&self, idx: u64) -> Goes {
        if idx != FIRST {
            return Goes::After(self.firsts.subscribe(), LETS_PASS);
        }
        self.firsts.send_modify(|firsts| *firsts += 1);
        Goes::First(self.firsts.clone())
    }

    /// A seat for `node` at the chunk, or those who have them. Nodes that serve nobody take no seat from others: sending
    /// anybody to them would be in vain.
    pub fn sit(
        self: &Arc<Self>,
        blob: BlobId,
        idx: u64,
        node: NodeId,
        directory: &dyn Directory,
    ) -> Result<Seated, Vec<Holder>> {
        let now = Instant::now();
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.seats.len() > MANY {
            state.seats.retain(|_, seats| seats.iter().any(|s| s.is_taken(now)));
        }
        let seats = state.seats.entry((blob, idx)).or_default();
        seats.retain(|s| s.is_taken(now));
        match seats.iter_mut().find(|s| s.node == node) {
            Some(seat) => seat.requests += 1,
            None => {
                let moving = seats.iter().filter(|s| !s.is_stuck(now));
                let mut serving: Vec<(bool, Holder)> =
                    moving.filter_map(|s| Some((s.is_slow(idx, now), directory.holder(s.node)?))).collect();
                let quick = serving.iter().filter(|(slow, _)| !slow).count();
                let sent_on = state.sent_on.get_or_insert_mut((blob, idx), Vec::new);
                sent_on.retain(|(_, at)| now.duration_since(*at) < CAME_BACK);
                // At once: it found nothing there. Late: nobody answered. Otherwise it was told to wait, and waits there again.
                let in_vain = |at: Instant| !(AT_ONCE..LATE).contains(&now.duration_since(at));
                let before = sent_on.iter().find(|(other, _)| *other == node).map(|(_, at)| *at);
                let came_back = before.is_some_and(in_vain);
                let least = if idx == FIRST { SEATS_AT_FIRST } else { 1 };
                let seats = if came_back { MOST } else { (least + sent_on.len() / CROWD).min(MOST) };
                if quick >= seats || serving.len() >= MOST {
                    if before.is_none() && sent_on.len() < CROWD * MOST {
                        sent_on.push((node, now));
                    }
                    serving.retain(|(slow, _)| quick == 0 || !slow);
                    return Err(serving.into_iter().map(|(_, holder)| holder).collect());
                }
                state.seats.entry((blob, idx)).or_default().push(Seat {
                    node,
                    requests: 1,
                    until: now,
                    since: None,
                    given: None,
                });
            }
        }
        Ok(Seated { uploads: self.clone(), chunk: (blob, idx), node, ending: Ending::Left })
    }

    /// Who else has the chunk, or is getting it, but `node`.
    pub fn others(&self, blob: BlobId, idx: u64, node: NodeId, directory: &dyn Directory) -> Vec<Holder> {
        let mut state = self.lock();
        let mut nodes: Vec<NodeId> = state.recent.get(&(blob, idx)).cloned().unwrap_or_default();
        for seat in state.seats.get(&(blob, idx)).into_iter().flatten() {
            if seat.requests > 0 && !nodes.contains(&seat.node) {
                nodes.push(seat.node);
            }
        }
        drop(state);
        nodes.into_iter().filter(|n| *n != node).filter_map(|n| directory.holder(n)).collect()
    }
}

async fn take(places: &Arc<Semaphore>, deadline: Option<Instant>) -> Option<OwnedSemaphorePermit> {
    let places = places.clone();
    match deadline {
        None => places.try_acquire_owned().ok(),
        Some(deadline) => timeout_at(deadline, places.acquire_owned()).await.ok()?.ok(),
    }
}

impl Seated {
    /// The one who sits here was told to ask again: the seat is kept for a moment.
    pub fn again(mut self) {
        self.ending = Ending::Again;
    }

    /// A piece is ready for the one who sits here, or it has taken all so far.
    pub fn given(&self, ready: bool) {
        let mut state = self.uploads.lock();
        let seat =
            state.seats.get_mut(&self.chunk).and_then(|all| all.iter_mut().find(|s| s.node == self.node));
        if let Some(seat) = seat {
            let now = Instant::now();
            seat.since.get_or_insert(now);
            seat.given = ready.then_some(now);
        }
    }

    /// The one who sits here got the chunk.
    pub fn served(&mut self) {
        self.ending = Ending::Served;
    }
}

impl Drop for Seated {
    fn drop(&mut self) {
        let mut state = self.uploads.lock();
        if let Some(seats) = state.seats.get_mut(&self.chunk) {
            if let Some(seat) = seats.iter_mut().find(|s| s.node == self.node) {
                seat.requests = seat.requests.saturating_sub(1);
                if self.ending == Ending::Again {
                    seat.until = Instant::now() + LINGER;
                }
            }
            let now = Instant::now();
            seats.retain(|s| s.is_taken(now));
            if seats.is_empty() {
                state.seats.remove(&self.chunk);
            }
        }
        if self.ending == Ending::Served {
            let nodes = state.recent.get_or_insert_mut(self.chunk, Vec::new);
            nodes.retain(|n| *n != self.node);
            nodes.push(self.node);
            if nodes.len() > MOST {
                nodes.remove(0);
            }
        }
    }
}

#[cfg(test)]
mod tests;
