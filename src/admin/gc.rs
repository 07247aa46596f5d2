//! Garbage: objects of the bucket that nothing refers to, and rows that nobody needs any more.
//!
//! # Why nothing is deleted that somebody needs
//!
//! Mounts go on working meanwhile. The order of the steps is the argument:
//!
//! 1. *Sessions first.* An object of file data bears the session that wrote it. The first to name an object in the
//!    metadata is the mount of that session; afterwards others may only copy what a row names already. So an object of a
//!    session that is registered now, that a registered mount had before, or that has a journal which is not drained, is
//!    left alone whatever its age: it may be uploaded and not committed yet. Any other is fenced: its mount has ended, or
//!    lost it and has not come back yet.
//! 2. *Then the bucket is listed*, so that what is uploaded later is not even looked at; what is younger than the grace is
//!    left.
//! 3. *Then the metadata is read*, inode by inode as the engine enumerates them, each that is there all the time, and every
//!    object that a chunk row names is kept.
//! 4. *Then the sessions of what nothing named are collected*: a row says so, and a mount that comes back after one of them
//!    is refused from then on. Those whose mounts came back before are left alone, as in 1.
//! 5. *Then the inodes are read again* and those whose row changed have their chunks read again, until nothing has changed, come
//!    or gone:
//!    then each file's list stayed the same from before the last pass began until after it was looked at, so that what
//!    was seen is the truth of one instant after step 4, and an object which nothing named at such an instant is named by
//!    nothing ever. If a volume never rests, this ends after [`PASSES`] passes with the union of all that was seen: a
//!    needed object would have to be copied from file to file and dropped behind it in each single one of them.
//! 6. *The trash last*: what has not been there for its own grace is kept, for readers that go by an older list.
//!
//! The other way round, rows before the listing, an object that was uploaded and committed in between would be in the list
//! of what there is and not in that of what is needed.
//!
//! A blob may be named again at any time by who publishes it, who says so first: its row's time of introduction becomes now.
//! A blob goes if no inode names it and the row as it was read *before* the inodes is older than the grace; it goes by a
//! transaction that expects that very row. Its objects are deleted after its rows. Who has one open, or fills it meanwhile, is
//! not harmed: a chunk that the bucket does not have comes from the Hub.
//!
//! Interrupted, it has deleted some garbage; run twice or by several at once, the same.
//!
//! Memory: 24 bytes for each object of file data, about 100 for each blob in the bucket, 16 for each file that has
//! chunks, 8 for each inode: about 300 MB for ten million objects.

mod delete;
mod keep;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;

use super::{Place, Progress, Tell};
use crate::error::{Error, Kind, Result};
use crate::meta::Meta;
use crate::meta::survey::Survey;
use crate::source::bucket::{Listed, Object};
use crate::types::{BlobId, ObjectId, SessionId, Timestamp};

/// How often inodes are read before it is enough.
const PASSES: usize = 5;
/// A blob's time of introduction is that far behind at most, and a publication takes some time.
const LEAST_BLOB_GRACE: Duration = Duration::from_secs(3600);

/// What to do.
#[derive(Clone, Debug)]
pub struct GcOptions {
    /// Deletes, as this session; otherwise only looks.
    pub delete: Option<Meta>,
    /// What is younger stays, by the store's clock and this machine's: longer than those two may differ.
    pub grace: Duration,
}

/// Some objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    pub objects: u64,
    pub bytes: u64,
}

impl Sum {
    fn add(&mut self, bytes: u64) {
        self.objects += 1;
        self.bytes += bytes;
    }
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// All that lies there.
    pub seen: Sum,
    /// File data that no file refers to.
    pub chunks: Sum,
    /// Blobs that no file refers to.
    pub blobs: u64,
    /// Their chunks.
    pub blob_chunks: Sum,
    /// Leftovers of `format` and `status`.
    pub tests: Sum,
    /// Uploads into a folder that broke off.
    pub unfinished: Sum,
    /// Publications that broke off, whose sessions do not exist any more.
    pub staged: u64,
    /// Too young to be judged, or of sessions that may still commit.
    pub left: Sum,
    /// Names that no version of this program writes: never touched.
    pub strange: Sum,
    /// Names in the root whose tombstones have run out.
    pub tombstones: u64,
    /// Of all that, what was deleted.
    pub deleted: Sum,
    /// What could not be deleted.
    pub failed: u64,
    /// Mounts did not rest long enough for the strictest proof; see the argument.
    pub restless: bool,
}

/// An object of file data that may be garbage.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    object: ObjectId,
    /// At most 64 MiB.
    size: u32,
    needed: bool,
}

/// What lies in the bucket for one blob.
#[derive(Clone, Copy, Debug, Default)]
struct BlobObjects {
    sum: Sum,
    young: bool,
    needed: bool,
}

impl GcReport {
    /// All garbage together.
    #[must_use]
    pub fn garbage(&self) -> Sum {
        let all = [self.chunks, self.blob_chunks, self.tests, self.unfinished];
        all.iter().fold(Sum::default(), |sum, s| Sum {
            objects: sum.objects + s.objects,
            bytes: sum.bytes + s.bytes,
        })
    }
}

struct Gc<'a> {
    place: &'a Place,
    options: GcOptions,
    tell: Tell<'a>,
    report: GcReport,
    held: HashSet<SessionId>,
    /// Sorted by object.
    chunks: Vec<Candidate>,
    blobs: HashMap<BlobId, BlobObjects>,
    tests: Vec<(Object, u64)>,
    unfinished: Vec<Listed>,
    /// Inode and a digest of its row, in the order of numbers: files whose chunks were read.
    read: Vec<(u64, u64)>,
}

/// Looks for garbage, and deletes it if the options say so.
///
/// [`Kind::Corrupt`] if a row cannot be read: what it refers to is not known, and nothing is deleted.
pub async fn gc(place: &Place, options: GcOptions, tell: Tell<'_>) -> Result<GcReport> {
    let mut gc = Gc {
        place,
        options,
        tell,
        report: GcReport::default(),
        held: HashSet::new(),
        chunks: Vec::new(),
        blobs: HashMap::new(),
        tests: Vec::new(),
        unfinished: Vec::new(),
        read: Vec::new(),
    };
    gc.tell("leftovers", 0, None);
    gc.drop_leftovers().await?;
    gc.held = place.survey.sessions().await?.into_iter().collect();
    gc.list().await?;
    let rows = gc.blob_rows().await?;
    gc.keep_what_is_named().await?;
    gc.delete_chunks().await?;
    gc.delete_blobs(rows).await?;
    gc.delete_tests().await;
    gc.delete_unfinished().await;
    gc.drop_tombstones().await?;
    Ok(gc.report)
}

fn before(span: Duration) -> Timestamp {
    let nanos = i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
    Timestamp(Timestamp::now().0.saturating_sub(nanos))
}

impl Gc<'_> {
    fn survey(&self) -> &Survey {
        &self.place.survey
    }

    fn tell(&self, what: &'static str, done: u64, of: Option<u64>) {
        (self.tell)(Progress { what, done, of });
    }

    /// Notes what lies in the bucket and may be garbage.
    async fn list(&mut self) -> Result<()> {
        let old = before(self.options.grace);
        let bucket = self.place.bucket.clone();
        self.tell("objects", 0, None);
        bucket.each("", |listed| self.note(listed, old)).await?;
        self.chunks.sort_unstable_by_key(|c| c.object);
        // Some stores list an object twice when it is put at the same time.
        self.chunks.dedup_by_key(|c| c.object);
        self.tell("broken uploads", 0, None);
        self.unfinished = bucket.unfinished().await?;
        self.unfinished.retain(|l| l.modified < old);
        Ok(())
    }

    fn note(&mut self, listed: Listed, old: Timestamp) {
        self.report.seen.add(listed.size);
        if self.report.seen.objects.is_multiple_of(1000) {
            self.tell("objects", self.report.seen.objects, None);
        }
        let young = listed.modified >= old;
        match Object::parse(&listed.name) {
            Some(Object::Marker) => {}
            Some(Object::FileChunk(object)) if young || self.held.contains(&object.session) => {
                self.report.left.add(listed.size);
            }
            Some(Object::FileChunk(object)) => {
                let size = u32::try_from(listed.size).unwrap_or(u32::MAX);
                self.chunks.push(Candidate { object, size, needed: false });
            }
            Some(Object::BlobChunk { blob, .. }) => {
                let objects = self.blobs.entry(blob).or_default();
                objects.sum.add(listed.size);
                objects.young |= young;
            }
            Some(test @ Object::Test(_)) if !young => self.tests.push((test, listed.size)),
            Some(Object::Test(_)) => self.report.left.add(listed.size),
            None => self.report.strange.add(listed.size),
        }
    }

    /// The rows of the blobs that lie in the bucket, before the inodes are read. 0 bytes for those that are too young.
    async fn blob_rows(&mut self) -> Result<HashMap<BlobId, (Bytes, u64)>> {
        let old = before(self.options.grace.max(LEAST_BLOB_GRACE));
        let mut rows = HashMap::new();
        let ids: Vec<BlobId> = self.blobs.keys().copied().collect();
        for (n, some) in ids.chunks(500).enumerate() {
            self.tell("hub files", n as u64 * 500, Some(ids.len() as u64));
            for blob in self.place.survey.blobs(some).await? {
                if blob.introduced >= old {
                    if let Some(objects) = self.blobs.get_mut(&blob.id) {
                        objects.young = true;
                    }
                } else if let (Some(raw), Ok(size)) = (blob.raw, blob.size) {
                    rows.insert(blob.id, (raw, size));
                }
            }
        }
        Ok(rows)
    }
}

/// What became of it, as an error if something could not be deleted.
pub fn outcome(report: &GcReport) -> Result<()> {
    match report.failed {
        0 => Ok(()),
        n => Err(Error::new(Kind::Unavailable, format!("{n} objects could not be deleted: run it again"))),
    }
}
