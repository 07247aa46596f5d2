//! Filling a run of chunks: the sources in their order, again and again while somebody waits, within bounds.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;

use super::blob::Blob;
use super::cluster::{self, Part};
use super::flight::{AheadPlace, Flights};
use super::pour::{self, From, Task};
use crate::error::{Error, Kind, Result};
use crate::source::Source;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Rounds in which all sources gave wrong bytes, before a read fails for it.
const WRONG_ROUNDS: u32 = 3;

/// Begins to fill the run, as a task of its own: see [`run`].
pub(super) fn begin(flights: Flights, place: AheadPlace, part: Option<Part>) {
    let shared = flights.blob.shared.clone();
    // Boxed: a run that is split begins others of its kind.
    shared.spawn(run(flights, place, part).boxed());
}

/// Fills the run. With a place it is ahead of readers; the place is given back when the source stalls or fails, so that no
/// server that hangs keeps others' readers waiting. With a part the first round is decided.
pub(super) async fn run(mut flights: Flights, mut place: AheadPlace, part: Option<Part>) {
    let result = rounds(&mut flights, &mut place, part).await;
    drop(place);
    let blob = flights.blob.clone();
    match result {
        Ok(()) => drop(flights),
        Err(e) => {
            let run = flights.left.clone();
            if blob.is_awaited(run.clone()) && !flights.near {
                tracing::warn!(blob = %blob.id, chunks = ?run, error = %e, "cannot fill");
            } else {
                tracing::debug!(blob = %blob.id, chunks = ?run, error = %e, "cannot fill ahead");
            }
            flights.failed(e);
        }
    }
    blob.pump();
}

async fn rounds(flights: &mut Flights, place: &mut AheadPlace, mut part: Option<Part>) -> Result<()> {
    let blob = flights.blob.clone();
    let deadline = Instant::now() + blob.shared.options.io_timeout;
    let mut pause = FIRST_PAUSE;
    let mut wrong = 0;
    let mut left_disk = false;
    if flights.near {
        let came = !only_origin(&blob) && from_near(flights, place).await;
        return if came { Ok(()) } else { Err(Error::new(Kind::Unavailable, "no disk here has it")) };
    }
    loop {
        let before = flights.left.start;
        let ended = match &blob.shared.peers {
            Some(_) if part.is_none() && !only_origin(&blob) && from_near(flights, place).await => Ok(()),
            Some(peers) if !only_origin(&blob) => cluster::round(flights, place, peers, part.take()).await,
            _ => from_sources(flights, place).await,
        };
        let error = match ended {
            Ok(()) => return Ok(()),
            Err(e) => e,
        };
        *place = None;
        if flights.left.start > before {
            pause = FIRST_PAUSE;
            wrong = 0;
        }
        match error.kind() {
            Kind::Corrupt => {
                wrong += 1;
                if wrong >= WRONG_ROUNDS {
                    return Err(error);
                }
            }
            kind if kind.is_transient() => {}
            Kind::Disk if !left_disk && blob.leave_disk(&error).await => {
                left_disk = true;
                continue;
            }
            _ => return Err(error),
        }
        // A transfer that nobody waits for is not worth a second try, and the next reader begins one of his own.
        if !blob.is_awaited(flights.left.clone()) {
            return Err(error);
        }
        let jitter = rand::random_range(0.5..1.5);
        let wake = Instant::now() + pause.mul_f64(jitter);
        if wake >= deadline {
            return Err(error.with_kind(Kind::TimedOut));
        }
        tracing::debug!(blob = %blob.id, error = %error, "trying again");
        tokio::time::sleep_until(wake).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Asks each source once for what is left of the run. The error is the one that matters most: a transient one before wrong
/// bytes, before a refusal, before "not here".
pub(super) async fn from_sources(flights: &mut Flights, place: &mut AheadPlace) -> Result<()> {
    let task = task(&flights.blob.clone(), flights).await?;
    from_these_sources(flights, &task, place).await
}

/// The same when the rows are known.
pub(super) async fn from_these_sources(
    flights: &mut Flights,
    task: &Task,
    place: &mut AheadPlace,
) -> Result<()> {
    let blob = flights.blob.clone();
    let shared = &blob.shared;
    let only_origin = only_origin(&blob);
    let mut worst: Option<Error> = None;
    if let Some(source) = shared.backings.source(&blob.id) {
        // Its bytes were held to the blob's name: they are as good as the origin's.
        let from = From::outside(&source, &shared.counters.files, true);
        match pour::pour(flights, task, &from, place).await {
            Ok(()) => return Ok(()),
            Err(e) => {
                if e.kind() != Kind::NotFound {
                    shared.counters.files.failed.fetch_add(1, Relaxed);
                }
                tracing::debug!(blob = %blob.id, error = %e, "no bytes from a file of the volume");
                worst = Some(e.context(source.name()));
            }
        }
    }
    for (n, source) in shared.sources.iter().enumerate() {
        if only_origin && n + 1 < shared.sources.len() {
            continue;
        }
        let counters = &shared.counters.fetched[n];
        let is_origin = shared.is_origin(n);
        let refusal = if is_origin { blob.refusal() } else { None };
        let from = From::outside(source.as_ref(), counters, is_origin);
        let e = match refusal {
            Some(e) => e,
            None => match from_source(flights, task, n, &from, place).await {
                Ok(()) => return Ok(()),
                Err(e) => {
                    if is_origin && matches!(e.kind(), Kind::Access | Kind::NotFound) {
                        blob.refused(&e);
                    }
                    e
                }
            },
        };
        if e.kind() != Kind::NotFound {
            counters.failed.fetch_add(1, Relaxed);
            tracing::debug!(blob = %blob.id, source = source.name(), error = %e, "no bytes");
        }
        let e = e.context(source.name());
        // Where the origin can be asked, it is its word that counts, not that a mirror or a seed fails.
        let aside = shared.reaches_origin() && matches!(source.name(), "mirror" | "seed");
        let e = if aside { e.with_kind(Kind::NotFound) } else { e };
        if weight(e.kind()) > worst.as_ref().map_or(0, |w| weight(w.kind())) {
            worst = Some(e);
        }
    }
    Err(match worst {
        Some(e) if e.kind() != Kind::NotFound => e,
        Some(e) => Error::with_source(Kind::NotFound, "no source has it", e),
        None => Error::new(Kind::Internal, "there is no source of blobs"),
    })
}

/// What lies on another disk of this machine is nobody else's affair. `false`: it did not come, or not all.
async fn from_near(flights: &mut Flights, place: &mut AheadPlace) -> bool {
    let blob = flights.blob.clone();
    let shared = &blob.shared;
    for (n, source) in shared.sources.iter().enumerate().filter(|(_, source)| source.is_near(blob.id)) {
        let Ok(task) = task(&blob, flights).await else { return false };
        let from = From::outside(source.as_ref(), &shared.counters.fetched[n], false);
        match from_source(flights, &task, n, &from, place).await {
            Ok(()) => return true,
            Err(e) => tracing::debug!(blob = %blob.id, source = source.name(), error = %e, "no bytes"),
        }
    }
    false
}

/// Pours from source number `n`, and remembers what that says about it.
async fn from_source(
    flights: &mut Flights,
    task: &Task,
    n: usize,
    from: &From<'_>,
    place: &mut AheadPlace,
) -> Result<()> {
    let before = flights.left.start;
    let ended = pour::pour(flights, task, from, place).await;
    let blob = &flights.blob;
    if flights.left.start > before {
        super::lock(&blob.state).gave.insert(n);
    }
    if ended.as_ref().is_err_and(|e| e.kind() == Kind::Corrupt) {
        from.source.wrong(blob.id);
    }
    ended
}

/// Asks the bucket alone.
pub(super) async fn from_bucket(flights: &mut Flights, task: &Task, place: &mut AheadPlace) -> Result<()> {
    let shared = flights.blob.shared.clone();
    let Some(n) = shared.sources.iter().position(|source| source.name() == "bucket") else {
        return Err(Error::new(Kind::NotFound, "there is no bucket"));
    };
    let (source, counters) = (shared.sources[n].as_ref(), &shared.counters.fetched[n]);
    from_source(flights, task, n, &From::outside(source, counters, false), place).await
}

/// What has to be known before a round.
pub(super) async fn task(blob: &Blob, flights: &Flights) -> Result<Task> {
    let generation = super::lock(&blob.state).generation;
    let run = &flights.left;
    let rows = blob.shared.blobs.chunks(blob.id, run.start, run.end - run.start);
    let (facts, rows) = tokio::try_join!(blob.facts(), rows)?;
    Ok(Task { facts, rows: Some(rows), base: run.start, generation })
}

/// The same while the metadata do not answer: what was known of the blob last, and nothing of its chunks.
pub(super) fn task_without_records(blob: &Blob, flights: &Flights) -> Task {
    let generation = super::lock(&blob.state).generation;
    Task { facts: blob.known_facts(), rows: None, base: flights.left.start, generation }
}

/// Whether only the origin is asked, by this node for itself: what the others gave was wrong.
fn only_origin(blob: &Blob) -> bool {
    super::lock(&blob.state).only_origin
}

fn weight(kind: Kind) -> u8 {
    match kind {
        Kind::NotFound => 1,
        Kind::Access => 2,
        Kind::Corrupt => 3,
        kind if kind.is_transient() => 5,
        _ => 4,
    }
}
