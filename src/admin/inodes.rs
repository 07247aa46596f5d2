//! All inodes of a volume, by their numbers: whatever is renamed meanwhile, each that is there all the time is seen.

use std::collections::BTreeSet;
use std::ops::Range;

use futures::{StreamExt, stream};

use super::{Progress, Tell};
use crate::error::{Error, Kind, Result};
use crate::meta::survey::{Survey, Surveyed, SurveyedChunks};
use crate::meta::{Content, InodeRow};
use crate::types::{BlobId, Extent, Ino, ObjectId};

/// Numbers in one round trip, three keys each.
const AT_ONCE: usize = 300;
/// Round trips on their way.
const AHEAD: usize = 4;
/// Chunk rows in one round trip.
const CHUNKS_AT_ONCE: u64 = 900;

/// Calls `each` for all inodes that are there the whole time, and for some of those that come or go meanwhile, in the order
/// of their numbers. Costs what there is, however far apart the numbers are; 8 bytes of memory for each.
pub(super) async fn each_inode(
    survey: &Survey,
    what: &'static str,
    tell: Tell<'_>,
    each: impl AsyncFnMut(Surveyed) -> Result<()>,
) -> Result<()> {
    let numbers = survey.numbers(|done| tell(Progress { what: "inode numbers", done, of: None })).await?;
    each_of(survey, &numbers, what, tell, each).await
}

/// The same for the inodes in `numbers`, which are sorted.
pub(super) async fn each_of(
    survey: &Survey,
    numbers: &[u64],
    what: &'static str,
    tell: Tell<'_>,
    mut each: impl AsyncFnMut(Surveyed) -> Result<()>,
) -> Result<()> {
    let batches = stream::iter(numbers.chunks(AT_ONCE));
    let mut batches = batches.map(|some| survey.inodes(some)).buffered(AHEAD);
    let (mut done, of) = (0, Some(numbers.len() as u64));
    while let Some(inodes) = batches.next().await {
        tell(Progress { what, done, of });
        for inode in inodes? {
            each(inode).await?;
        }
        done = (done + AT_ONCE as u64).min(numbers.len() as u64);
    }
    Ok(())
}

/// Calls `each` for the chunk rows of a file, some at a time; `end` is one more than the highest that may be.
pub(super) async fn each_chunks(
    survey: &Survey,
    ino: Ino,
    row: &InodeRow,
    end: u64,
    mut each: impl AsyncFnMut(Range<u64>, SurveyedChunks) -> Result<()>,
) -> Result<()> {
    for range in survey.chunk_ranges(ino, row, end).await? {
        for first in range.clone().step_by(CHUNKS_AT_ONCE as usize) {
            let some = first..range.end.min(first + CHUNKS_AT_ONCE);
            let chunks = survey.chunks(ino, first, some.end - first).await?;
            each(some, chunks).await?;
        }
    }
    Ok(())
}

/// The blobs that an inode needs.
pub(super) fn blobs_of(row: &InodeRow) -> impl Iterator<Item = (BlobId, u64)> + use<> {
    let own = match &row.content {
        Content::Blob(id) => Some((*id, row.size)),
        // It shows where the file has no data of its own.
        Content::Extents => row.layout.under.map(|under| (under.blob, under.size)),
        _ => None,
    };
    own.into_iter()
}

/// The objects that a chunk row names, each once.
pub(super) fn objects(list: &[Extent]) -> BTreeSet<ObjectId> {
    list.iter().map(|extent| extent.object).collect()
}

/// For tools that may not go on without knowing what a row says.
pub(super) fn unreadable(what: &str, error: &Error) -> Error {
    let why = format!("{error}: nothing can be called garbage before `hfmount fsck` is clean");
    Error::with_source(Kind::Corrupt, what.to_owned(), why)
}
