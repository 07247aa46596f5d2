//! Filling a run of chunks: the sources in their order, again and again while somebody waits, within bounds.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::Instant;

use super::blob::Blob;
use super::flight::{AheadPlace, Flights};
use super::pour;
use crate::error::{Error, Kind, Result};
use crate::meta::ChunkRow;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Rounds in which all sources gave wrong bytes, before a read fails for it.
const WRONG_ROUNDS: u32 = 3;

/// Fills the run. With a place it is ahead of readers; the place is given back when the source stalls or fails, so that no
/// server that hangs keeps others' readers waiting.
pub(super) async fn run(mut flights: Flights, mut place: AheadPlace) {
    let result = rounds(&mut flights, &mut place).await;
    drop(place);
    let blob = flights.blob.clone();
    match result {
        Ok(()) => drop(flights),
        Err(e) => {
            let run = flights.left.clone();
            if blob.is_awaited(run.clone()) {
                tracing::warn!(blob = %blob.id, chunks = ?run, error = %e, "cannot fill");
            } else {
                tracing::debug!(blob = %blob.id, chunks = ?run, error = %e, "cannot fill ahead");
            }
            flights.failed(e);
        }
    }
    blob.pump();
}

async fn rounds(flights: &mut Flights, place: &mut AheadPlace) -> Result<()> {
    let blob = flights.blob.clone();
    let deadline = Instant::now() + blob.shared.options.io_timeout;
    let mut pause = FIRST_PAUSE;
    let mut wrong = 0;
    let mut left_disk = false;
    loop {
        let before = flights.left.start;
        let error = match round(flights, place).await {
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
async fn round(flights: &mut Flights, place: &mut AheadPlace) -> Result<()> {
    let blob = flights.blob.clone();
    let shared = &blob.shared;
    let (facts, rows) = tokio::try_join!(blob.facts(), rows(&blob, flights))?;
    let (generation, only_origin) = {
        let state = super::lock(&blob.state);
        (state.generation, state.only_origin)
    };
    let task = pour::Task { facts, rows, base: flights.left.start, generation };
    let mut worst: Option<Error> = None;
    for (n, source) in shared.sources.iter().enumerate() {
        if only_origin && n + 1 < shared.sources.len() {
            continue;
        }
        let counters = &shared.counters.fetched[n];
        let is_origin = shared.is_origin(n);
        let refusal = if is_origin { blob.refusal() } else { None };
        let e = match refusal {
            Some(e) => e,
            None => match pour::pour(flights, &task, n, source.as_ref(), place).await {
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

async fn rows(blob: &Blob, flights: &Flights) -> Result<Vec<ChunkRow>> {
    let run = &flights.left;
    blob.shared.blobs.chunks(blob.id, run.start, run.end - run.start).await
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
