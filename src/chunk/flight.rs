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
pub(super) struct Flight {
    landing: watch::Sender<Option<Landing>>,
    coming: Coming,
    /// Since when somebody waits for it.
    awaited: Option<Instant>,
}

impl Flight {
    fn wait(&mut self) -> Wait {
        self.awaited.get_or_insert_with(Instant::now);
        Wait::For(self.landing.subscribe())
    }

    /// For how long somebody who is still there has waited for it.
    pub(super) fn awaited_for(&self) -> Option<Duration> {
        let since = self.awaited.filter(|_| self.landing.receiver_count() > 0);
        since.map(|since| since.elapsed())
    }
}

#[derive(Debug)]
pub(super) struct State {
    /// The chunks on their way. As many as transfers in all cover, not as the blob has.
    pub flights: HashMap<u64, Flight>,
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
    pub hold: Option<Instant>,
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
                if let Some(flight) = state.flights.get_mut(&idx) {
                    waits.push((idx, flight.wait()));
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
                let mut flight = Flight::default();
                waits.push((idx, flight.wait()));
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
    /// for others. Or if the readers here are still at something else: who asks is ahead of them, and his link has room.
    pub(super) fn lend(self: &Arc<Self>, idx: u64) {
        if self.shared.is_closing() || self.shared.was_full() || self.refusal().is_some() {
            return;
        }
        let Ok(place) = self.shared.lent.clone().try_acquire_owned() else { return };
        {
            let mut state = lock(&self.state);
            let is_behind = state.readahead.is_expected() && self.shared.for_readers_here() > 0;
            if is_behind || self.file.presence(idx) != Presence::Absent || state.flights.contains_key(&idx) {
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
    pub(super) fn new(blob: &Arc<Blob>, run: Range<u64>) -> Self {
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
