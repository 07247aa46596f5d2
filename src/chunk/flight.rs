//! Who waits for which chunk: one transfer for each, however many readers.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::blob::Blob;
use super::cache::Presence;
use super::coming::{Coming, Follow, Mark};
use super::overflow::Held;
use super::readahead::Readahead;
use super::shared::Place;
use super::tally::Tally;
use super::{fill, lock};
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::peer::Stripes;

/// How long the origin's refusal (no rights, it has no such blob) is taken as its answer for all chunks.
const REFUSED_FOR: Duration = Duration::from_secs(2);
/// While others read the same: how far ahead of a reader chunks are asked for that others begin with. Beyond that each node
/// looks only for those that are its own to begin with.
const NEAR: u64 = 8;
/// So many times as far, when all that this node begins with is on its way: a chunk that comes late holds up nothing else.
const FAR: u64 = 4;
/// What follows a blob begins to come when this part of the transfers that a place bears is all that is left of it.
const LAST: usize = 8;
/// Chunks of a blob whose reader is only expected that come at one time: on a slow link all at once would come together, late,
/// and he would wait for the first of them.
const EXPECTED: usize = 4;
/// How long nothing is fetched ahead after a failure.
const HOLD: Duration = Duration::from_secs(1);

/// What became of a chunk that was waited for.
#[derive(Clone, Debug)]
pub(super) enum Landing {
    /// On the disk.
    Cached,
    /// There was no room on the disk.
    Memory(Arc<Held>),
    Failed(Arc<Error>),
}

/// A wait for one chunk. Dropping it leaves the transfer to the others.
#[derive(Debug)]
pub(super) enum Wait {
    For(watch::Receiver<Option<Landing>>),
    Held(Arc<Held>),
}

impl Wait {
    pub(super) async fn landing(self) -> Landing {
        match self {
            Wait::Held(held) => Landing::Memory(held),
            Wait::For(mut flight) => match flight.wait_for(Option::is_some).await.as_deref() {
                Ok(Some(landing)) => landing.clone(),
                _ => Landing::Failed(Arc::new(Error::new(Kind::Unavailable, "the transfer was given up"))),
            },
        }
    }
}

/// A chunk on its way.
#[derive(Debug, Default)]
struct Flight {
    landing: watch::Sender<Option<Landing>>,
    coming: Coming,
}

#[derive(Debug)]
pub(super) struct State {
    /// The chunks on their way. As many as transfers in all cover, not as the blob has.
    flights: HashMap<u64, Flight>,
    pub readahead: Readahead,
    /// What follows the blob was asked for.
    pub followed: bool,
    /// Which chunks this node fetches first, while others read the same.
    pub stripes: Option<Stripes>,
    /// When the tracker last said who reads it.
    pub met: Option<Instant>,
    /// Handles open.
    pub users: usize,
    /// Raised when all chunks were dropped: what was on its way then does not count.
    pub generation: u64,
    /// Only the origin is asked: with what the others gave, the blob was not what its name says.
    pub only_origin: bool,
    /// The numbers of the sources that chunks of this blob came from.
    pub gave: BTreeSet<usize>,
    /// How much came from where since it was opened.
    pub tally: Tally,
    /// Hashes that the origin gave although others are recorded.
    pub claims: HashMap<u64, [u8; 32]>,
    /// Chunks that other nodes are just asked to fetch, since this one may not.
    pub asking: HashSet<u64>,
    refused: Option<(Instant, Error)>,
    /// When a transfer failed last: nothing is fetched ahead for a moment.
    hold: Option<Instant>,
}

impl State {
    pub(super) fn new(chunk_size: u32, chunks: u64, window: u64) -> Self {
        State {
            flights: HashMap::new(),
            readahead: Readahead::new(chunk_size, chunks, window),
            followed: false,
            stripes: None,
            met: None,
            users: 0,
            generation: 0,
            only_origin: false,
            gave: BTreeSet::new(),
            tally: Tally::default(),
            claims: HashMap::new(),
            asking: HashSet::new(),
            refused: None,
            hold: None,
        }
    }
}

impl Blob {
    /// A wait for each of the chunks that is not on the disk; what nobody fetches yet is begun.
    pub(super) fn join(self: &Arc<Self>, chunks: impl IntoIterator<Item = u64>) -> Result<Vec<(u64, Wait)>> {
        let mut waits = Vec::new();
        let mut fetch: Vec<Range<u64>> = Vec::new();
        let mut suspects = Vec::new();
        {
            let mut state = lock(&self.state);
            if self.shared.is_closing() {
                return Err(Error::new(Kind::Unavailable, "the store of chunks is closed"));
            }
            for idx in chunks {
                if let Some(flight) = state.flights.get(&idx) {
                    waits.push((idx, Wait::For(flight.landing.subscribe())));
                    continue;
                }
                // After the flights: a chunk is on the disk before its flight ends.
                let presence = self.file.presence(idx);
                if presence == Presence::Present {
                    continue;
                }
                if presence == Presence::Suspect {
                    suspects.push(idx);
                } else if let Some(held) = self.shared.overflow.get(self.id, idx) {
                    waits.push((idx, Wait::Held(held)));
                    continue;
                } else {
                    match fetch.last_mut() {
                        Some(run) if run.end == idx => run.end += 1,
                        _ => fetch.push(idx..idx + 1),
                    }
                }
                let flight = Flight::default();
                waits.push((idx, Wait::For(flight.landing.subscribe())));
                state.flights.insert(idx, flight);
            }
        }
        for run in fetch {
            fill::begin(Flights::new(self, run), None, None);
        }
        for idx in suspects {
            self.shared.spawn(recheck(Flights::new(self, idx..idx + 1)));
        }
        Ok(waits)
    }

    /// Somebody read there: fetches ahead if that seems worth while.
    pub(super) fn note(self: &Arc<Self>, offset: u64, len: u64) {
        if self.file.is_complete() {
            self.read_complete();
            // Who reads the only chunk that there is shows nothing of how he reads.
            if self.file.chunks() <= 1 {
                return;
            }
            // On a fast link all of it may be here before the reader has shown that he reads it whole.
            let mut state = lock(&self.state);
            if !state.followed {
                state.readahead.access(offset, len);
                if state.readahead.is_read_whole() {
                    state.followed = true;
                    drop(state);
                    self.follow();
                }
            }
            return;
        }
        lock(&self.state).readahead.access(offset, len);
        self.pump();
    }

    /// Begins transfers ahead of the readers, as many as have a place.
    pub(super) fn pump(self: &Arc<Self>) {
        let segment = (self.shared.options.segment / self.chunk_size()).max(1);
        loop {
            if self.shared.is_closing() || self.shared.was_full() {
                return;
            }
            let Ok(place) = self.shared.ahead.clone().try_acquire_owned() else { return };
            let Some((run, for_all)) = self.next_ahead(segment) else { return };
            let place = match for_all {
                true => Place::for_all(place, &self.shared),
                false => Place::new(place),
            };
            fill::begin(Flights::new(self, run), Some(Arc::new(place)), None);
        }
    }

    /// The next run to fetch ahead, of at most `segment` chunks, which count as on their way from here on; and whether it is this
    /// node's to fetch for all that read the blob.
    fn next_ahead(self: &Arc<Self>, segment: u64) -> Option<(Range<u64>, bool)> {
        let shared = &self.shared;
        let (bears, under_way) = (shared.most_ahead(), shared.under_way_ahead());
        let mut state = lock(&self.state);
        let State { flights, readahead, hold, stripes, followed, .. } = &mut *state;
        let most = if stripes.is_some() { shared.most_ahead_of_all() } else { bears };
        let expected = readahead.is_expected();
        // Those who are there leave no place for one who is only expected.
        let beyond = if expected && stripes.is_some() { EXPECTED } else { 0 };
        if under_way > most + beyond || hold.is_some_and(|at| at.elapsed() < HOLD) {
            return None;
        }
        // Readers who are there come before one who is only expected.
        let few = under_way <= (most - most / 4).max(1) && flights.len() < EXPECTED;
        let missing = |idx| self.file.presence(idx) == Presence::Absent && !flights.contains_key(&idx);
        let (next, rests) = match stripes {
            // What a reader needs next goes first, wherever it is to be had.
            Some(stripes) => {
                let mine = |idx| stripes.is_mine(idx);
                let for_all = shared.for_all();
                // Where a few fill the Hub's link, others would only share it.
                let near = NEAR.min(2 * bears as u64);
                let run = if expected && !few {
                    // The Hub's link is not to rest while nodes give each other what they are here for.
                    let next = (for_all < bears.min(EXPECTED))
                        .then(|| readahead.next_mine(stripes.nodes(), segment, missing, mine));
                    next.flatten()
                } else if for_all < bears {
                    readahead
                        .next_within(near, segment, missing)
                        .or_else(|| readahead.next_mine(stripes.nodes(), segment, missing, mine))
                        .or_else(|| readahead.next_within(FAR * near, segment, missing))
                } else {
                    readahead.next_of_others(near, segment, |idx| missing(idx) && !mine(idx))
                };
                let rests = for_all <= (bears / LAST).max(1)
                    && !*followed
                    && readahead.is_out(|idx| missing(idx) && mine(idx));
                (run.map(|run| (run.clone(), mine(run.start))), rests)
            }
            None if expected && !few => (None, false),
            None => (readahead.next(segment, missing).map(|run| (run, false)), false),
        };
        if let Some((run, _)) = &next {
            run.clone().for_each(|idx| _ = flights.insert(idx, Flight::default()));
        }
        // What somebody waits for has the link to itself; only its last ones leave some of a fast one over, or what is left for
        // other nodes to fetch.
        let ends = next.is_none() && flights.len() <= (most / LAST).max(1) && readahead.is_used_up();
        if (ends || rests) && !std::mem::replace(followed, true) {
            drop(state);
            self.follow();
        }
        next
    }

    /// What the origin said a moment ago, if it refused.
    pub(super) fn refusal(&self) -> Option<Error> {
        let state = lock(&self.state);
        let (at, error) = state.refused.as_ref()?;
        (at.elapsed() < REFUSED_FOR).then(|| error.share())
    }

    /// The origin refused.
    pub(super) fn refused(&self, error: &Error) {
        lock(&self.state).refused = Some((Instant::now(), error.share()));
    }

    /// Begins to fetch chunk `idx`, since another node asks for it; unless it is here, on its way, or too much else is fetched
    /// for others.
    pub(super) fn lend(self: &Arc<Self>, idx: u64) {
        if self.shared.is_closing() || self.shared.was_full() || self.refusal().is_some() {
            return;
        }
        let Ok(place) = self.shared.lent.clone().try_acquire_owned() else { return };
        {
            let mut state = lock(&self.state);
            if self.file.presence(idx) != Presence::Absent || state.flights.contains_key(&idx) {
                return;
            }
            state.flights.insert(idx, Flight::default());
        }
        let mut flights = Flights::new(self, idx..idx + 1);
        flights.mine = true;
        fill::begin(flights, Some(Arc::new(Place::for_all(place, &self.shared))), None);
    }

    /// Begins to take chunk `idx` from another disk of this machine, for other nodes, unless it is here or on its way; answers a
    /// wait for it. It fails if it is not there.
    pub(super) fn take_near(self: &Arc<Self>, idx: u64, place: Place) -> Option<Wait> {
        let wait = {
            let mut state = lock(&self.state);
            if let Some(flight) = state.flights.get(&idx) {
                return Some(Wait::For(flight.landing.subscribe()));
            }
            if self.shared.is_closing() || self.file.presence(idx) == Presence::Present {
                return None;
            }
            let flight = Flight::default();
            let wait = Wait::For(flight.landing.subscribe());
            state.flights.insert(idx, flight);
            wait
        };
        let mut flights = Flights::new(self, idx..idx + 1);
        flights.near = true;
        fill::begin(flights, Some(Arc::new(place)), None);
        Some(wait)
    }

    /// Whether somebody waits for one of the chunks.
    pub(super) fn is_awaited(&self, mut chunks: Range<u64>) -> bool {
        let state = lock(&self.state);
        chunks.any(|idx| state.flights.get(&idx).is_some_and(|f| f.landing.receiver_count() > 0))
    }

    /// A wait for chunk `idx`, if it is on its way.
    pub(super) fn wait_for(&self, idx: u64) -> Option<Wait> {
        lock(&self.state).flights.get(&idx).map(|flight| Wait::For(flight.landing.subscribe()))
    }

    /// The same for who passes on what comes.
    pub(super) fn passed_on(&self, idx: u64) -> Option<Follow> {
        let state = lock(&self.state);
        let flight = state.flights.get(&idx)?;
        Some(flight.coming.follow(flight.landing.subscribe()))
    }

    /// A transfer of chunk `idx` begins. To be held until it ends.
    pub(super) fn begins(&self, idx: u64) -> Option<Mark> {
        let coming = lock(&self.state).flights.get(&idx).map(|flight| flight.coming.clone());
        coming.map(|coming| coming.begin(self.file.chunk_len(idx)))
    }

    fn land(&self, idx: u64, landing: &Landing) {
        if let Some(flight) = lock(&self.state).flights.remove(&idx) {
            flight.landing.send_replace(Some(landing.clone()));
        }
    }
}

/// The duty to end the flights of a run of chunks. When it is dropped, those that did not land have failed.
#[derive(Debug)]
pub(super) struct Flights {
    pub blob: Arc<Blob>,
    /// Those still up.
    pub left: Range<u64>,
    error: Option<Arc<Error>>,
    /// Since when other nodes have not given the first of them.
    stuck: Option<Instant>,
    /// Not to be left to others: one of them asked for it.
    pub mine: bool,
    /// From another disk of this machine, or not at all.
    pub near: bool,
}

impl Flights {
    fn new(blob: &Arc<Blob>, run: Range<u64>) -> Self {
        Flights { blob: blob.clone(), left: run, error: None, stuck: None, mine: false, near: false }
    }

    /// The first of the run is there.
    pub(super) fn landed(&mut self, landing: &Landing) {
        if self.left.start < self.left.end {
            self.blob.land(self.left.start, landing);
            self.left.start += 1;
        }
    }

    /// Other nodes gave something just now, or did not.
    pub(super) fn note_stuck(&mut self, stuck: bool) {
        self.stuck = stuck.then(|| self.stuck.unwrap_or_else(Instant::now));
    }

    /// For how long they have given nothing.
    pub(super) fn stuck_for(&self) -> Duration {
        self.stuck.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Gives the duty for the chunks from `idx` on away.
    pub(super) fn split_off(&mut self, idx: u64) -> Self {
        let at = idx.clamp(self.left.start, self.left.end);
        let rest = at..self.left.end;
        self.left.end = at;
        let mut split = Flights::new(&self.blob, rest);
        (split.mine, split.near) = (self.mine, self.near);
        split
    }

    /// The rest has failed, for this reason.
    pub(super) fn failed(mut self, error: Error) {
        let error = Arc::new(error);
        {
            let mut state = lock(&self.blob.state);
            state.readahead.failed(self.left.start);
            state.hold = Some(Instant::now());
        }
        self.error = Some(error);
    }
}

impl Drop for Flights {
    fn drop(&mut self) {
        let given_up = || Arc::new(Error::new(Kind::Unavailable, "the transfer was given up"));
        let landing = Landing::Failed(self.error.take().unwrap_or_else(given_up));
        self.left.clone().for_each(|idx| self.blob.land(idx, &landing));
    }
}

/// Decides about a chunk of a run that did not stop cleanly; fetches it if it is not what was recorded.
async fn recheck(mut flights: Flights) {
    let (file, idx) = (flights.blob.file.clone(), flights.left.start);
    match blocking(move || file.verify(idx)).await {
        Ok(true) => flights.landed(&Landing::Cached),
        Ok(false) => fill::begin(flights, None, None),
        Err(e) if flights.blob.leave_disk(&e).await => fill::begin(flights, None, None),
        Err(e) => flights.failed(e),
    }
}

/// A place among the transfers ahead of readers; shared by the parts of a run that was split.
pub(super) type AheadPlace = Option<Arc<Place>>;
