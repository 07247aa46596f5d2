//! What is fetched before somebody asks for it: which run of chunks next, and when none, so that what readers wait for is not
//! held up by what they only may want.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::blob::Blob;
use super::cache::Presence;
use super::flight::{Flight, Flights, State};
use super::readahead::Readahead;
use super::shared::Place;
use super::{fill, lock};
use crate::peer::Stripes;

/// While others read the same: how far ahead of a reader chunks are asked for that others begin with. Beyond that each node
/// looks only for those that are its own to begin with.
const NEAR: u64 = 8;
/// So many times as far, when all that this node begins with is on its way: a chunk that comes late holds up nothing else.
const FAR: u64 = 4;
/// What follows a blob begins to come when this part of the transfers that a place bears is all that is left of it; earlier where
/// others read it too: at first it is only one chunk then.
const LAST: usize = 8;
const LAST_OF_ALL: usize = 4;
/// Chunks of a blob whose reader is only expected that come at one time: on a slow link all at once would come together, late,
/// and he would wait for the first of them.
const EXPECTED: usize = 4;
/// How long nothing is fetched ahead after a failure.
const HOLD: Duration = Duration::from_secs(1);
/// While a reader waits so long for a chunk that another node gives, what this node brings for all does not take the link away
/// from it; less for the first chunk, before which a program knows nothing. And how long that is tried.
const LATE: Duration = Duration::from_millis(700);
const LATE_TO_BEGIN: Duration = Duration::from_millis(250);
const ROOM: Duration = Duration::from_secs(2);

impl Blob {
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
        let State { flights, readahead, hold, stripes, followed, tally, .. } = &mut *state;
        let most = if stripes.is_some() { shared.most_ahead_of_all() } else { bears };
        // Those who are there leave no place for one who is only expected.
        let beyond = if stripes.is_some() && readahead.is_expected() { EXPECTED } else { 0 };
        if under_way > most + beyond || hold.is_some_and(|at| at.elapsed() < HOLD) {
            return None;
        }
        // Readers who are there come before one who is only expected.
        let few = under_way <= (most - most / 4).max(1) && flights.len() < EXPECTED;
        let missing = |idx| self.file.presence(idx) == Presence::Absent && !flights.contains_key(&idx);
        let (next, rests) = match stripes {
            Some(stripes) => {
                let (for_all, brings) = (shared.for_all(), shared.alone.leaves(bears));
                let begins = self.file.presence(0) == Presence::Absent && readahead.is_begun();
                let nodes = Nodes { stripes, bears, brings, for_all, begins, few, missing: &missing };
                // What others had is not the Hub's part.
                let part = self.file.chunks() / (2 * stripes.nodes());
                let rests = !*followed && tally.hub_chunks() > part && nodes.hub_rests(readahead);
                (nodes.next(readahead, flights, segment), rests)
            }
            None if readahead.is_expected() && !few => (None, false),
            None => (readahead.next(segment, missing).map(|run| (run, false)), false),
        };
        if let Some((run, _)) = &next {
            run.clone().for_each(|idx| _ = flights.insert(idx, Flight::default()));
        }
        // What somebody waits for has the link to itself; only its last ones leave some of a fast one over, or what is left for
        // other nodes to fetch.
        let last = if stripes.is_some() { LAST_OF_ALL } else { LAST };
        let ends = next.is_none() && flights.len() <= (most / last).max(1) && readahead.is_used_up();
        if (ends || rests) && !std::mem::replace(followed, true) {
            drop(state);
            self.follow();
        }
        next
    }
}

/// What is fetched ahead of a reader while other nodes read the same.
struct Nodes<'a, F> {
    stripes: &'a Stripes,
    /// Transfers that the Hub's link bears, and those under way that are this node's to fetch for all.
    bears: usize,
    for_all: usize,
    /// Of those it bears, as many as may bring what no other node has.
    brings: usize,
    /// Somebody begins to read, and his first chunk is not here.
    begins: bool,
    /// There is room for one who is only expected.
    few: bool,
    missing: &'a F,
}

impl<F: Fn(u64) -> bool> Nodes<'_, F> {
    /// The next run, and whether it is this node's to fetch for all.
    fn next(
        &self,
        readahead: &mut Readahead,
        flights: &HashMap<u64, Flight>,
        segment: u64,
    ) -> Option<(Range<u64>, bool)> {
        let mine = |idx| self.stripes.is_mine(idx);
        // Where a few fill the Hub's link, others would only share it.
        let near = NEAR.min(2 * self.bears as u64);
        let late = flights.iter().any(|(idx, flight)| is_late(*idx, flight));
        let own = |readahead: &Readahead, most: usize| match self.for_all < most.min(self.brings) {
            true => readahead.next_mine(self.stripes.nodes(), segment, self.missing, mine),
            false => None,
        };
        let others = |readahead: &Readahead, near| {
            readahead.next_of_others(near, segment, |idx| (self.missing)(idx) && !mine(idx))
        };
        let run = if self.begins {
            // All nodes wait for this one: what else each of them brings would make it as many times slower.
            readahead.next_within(1, 1, self.missing).or_else(|| own(readahead, 1))
        } else if late {
            own(readahead, 1)
        } else if readahead.is_expected() && !self.few {
            // The Hub's link is not to rest while nodes give each other what they are here for.
            own(readahead, EXPECTED)
        } else if self.for_all < self.brings.max(1) {
            // What a reader needs next goes first, wherever it is to be had. Who is asked for what lies far ahead begins with it.
            let far = |readahead: &Readahead| match self.brings < self.bears {
                true => None,
                false => others(readahead, FAR * near),
            };
            readahead
                .next_within(near, segment, self.missing)
                .or_else(|| own(readahead, self.bears))
                .or_else(|| far(readahead))
        } else {
            others(readahead, near)
        };
        run.map(|run| (run.clone(), mine(run.start)))
    }

    /// Whether all that this node is to fetch for all is as good as here.
    fn hub_rests(&self, readahead: &Readahead) -> bool {
        let mine = |idx| (self.missing)(idx) && self.stripes.is_mine(idx);
        self.for_all <= (self.bears / LAST).max(1) && readahead.is_out(mine)
    }
}

/// Somebody has waited for the chunk for long, and not so long that making room for it is no help.
fn is_late(idx: u64, flight: &Flight) -> bool {
    let after = if idx == 0 { LATE_TO_BEGIN } else { LATE };
    flight.awaited_for().is_some_and(|waited| (after..after + ROOM).contains(&waited))
}
