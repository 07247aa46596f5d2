//! Garbage: objects of the bucket that nothing refers to, and rows that nobody needs any more.
//!
//! # Why nothing is deleted that somebody needs
//!
//! Mounts go on working meanwhile. The order of the steps is the argument:
//!
//! 1. *Sessions first.* An object of file data bears the session that wrote it. The first to name an object in the
//!    metadata is that session itself; afterwards others may only copy what a row names already. So an object of a
//!    session that is registered now, or that has a journal which is not drained, is left alone whatever its age: it may be
//!    uploaded and not committed yet. A session that is neither is fenced for good and names no object any more.
//! 2. *Then the bucket is listed*, so that what is uploaded later is not even looked at; what is younger than the grace is
//!    left.
//! 3. *Then the metadata is read*, inode by inode in the order of their numbers, and every object that a chunk row names is
//!    kept; so is what lies in the trash and has not been there for its own grace.
//! 4. *Then the inodes are read again* and those whose row changed have their chunks read again, until nothing has changed:
//!    then each file's list stayed the same from before the last pass began until after it was looked at, so that what
//!    was seen is the truth of one instant, and an object which nothing named at an instant after its session's end
//!    is named by nothing ever. If a volume never rests, this ends after [`PASSES`] passes with the union of all that was
//!    seen: a needed object would have to be copied from file to file and dropped behind it in each single one of them.
//!
//! A blob may be named again at any time by who publishes it, who says so first: its row's time of introduction becomes now.
//! A blob goes if no inode names it and the row as it was read *before* the inodes is older than the grace; it goes by a
//! transaction that expects that very row. Its objects are deleted after its rows. Who has one open, or fills it meanwhile, is
//! not harmed: a chunk that the bucket does not have comes from the Hub.
//!
//! Interrupted, it has deleted some garbage; run twice or by several at once, the same.
//!
//! Memory: 24 bytes for each object of file data, about 100 for each blob in the bucket, 16 for each file that has
//! chunks: about 300 MB for ten million objects.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};

use super::inodes::{blobs_of, each_chunks, each_inode, unreadable};
use super::{Place, Progress, Tell};
use crate::error::{Error, Kind, Result};
use crate::meta::survey::{Survey, Surveyed};
use crate::meta::{Content, InodeRow};
use crate::source::bucket::{Listed, Object};
use crate::types::{BlobId, ObjectId, SessionId, Timestamp};

/// How often inodes are read before it is enough.
const PASSES: usize = 5;
/// How long objects in the trash are the mounts' own to delete.
const TRASH_GRACE: Duration = Duration::from_secs(15 * 60);
/// A blob's time of introduction is that far behind at most, and a publication takes some time.
const LEAST_BLOB_GRACE: Duration = Duration::from_secs(3600);
const DELETES_AT_ONCE: usize = 16;

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct GcOptions {
    /// Deletes; otherwise only looks.
    pub delete: bool,
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
        held: place.survey.sessions().await?.into_iter().collect(),
        chunks: Vec::new(),
        blobs: HashMap::new(),
        tests: Vec::new(),
        read: Vec::new(),
    };
    gc.list().await?;
    let rows = gc.blob_rows().await?;
    gc.keep_what_is_named().await?;
    gc.delete_chunks().await?;
    gc.delete_blobs(rows).await?;
    gc.delete_tests().await;
    gc.drop_tombstones().await?;
    Ok(gc.report)
}

fn before(span: Duration) -> Timestamp {
    let nanos = i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
    Timestamp(Timestamp::now().0.saturating_sub(nanos))
}

fn digest(raw: &Bytes) -> u64 {
    let hash = blake3::hash(raw);
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap_or_default())
}

impl Gc<'_> {
    fn survey(&self) -> &Survey {
        &self.place.survey
    }

    /// Notes what lies in the bucket and may be garbage.
    async fn list(&mut self) -> Result<()> {
        let old = before(self.options.grace);
        let bucket = self.place.bucket.clone();
        bucket.each("", |listed| self.note(listed, old)).await?;
        self.chunks.sort_unstable_by_key(|c| c.object);
        // Some stores list an object twice when it is put at the same time.
        self.chunks.dedup_by_key(|c| c.object);
        Ok(())
    }

    fn note(&mut self, listed: Listed, old: Timestamp) {
        self.report.seen.add(listed.size);
        if self.report.seen.objects.is_multiple_of(1000) {
            (self.tell)(Progress { what: "objects", done: self.report.seen.objects, of: None });
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
        for some in ids.chunks(500) {
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

    /// Marks all that the metadata names.
    async fn keep_what_is_named(&mut self) -> Result<()> {
        let fresh = before(TRASH_GRACE);
        for (object, since) in self.place.survey.trash().await? {
            if since >= fresh {
                self.need(object);
            }
        }
        for pass in 0..PASSES {
            let before = std::mem::take(&mut self.read);
            let mut changed = 0;
            let (survey, tell) = (self.place.survey.clone(), self.tell);
            let what = if pass == 0 { "inodes" } else { "inodes again" };
            each_inode(&survey, what, tell, async |inode: Surveyed| {
                changed += u64::from(self.keep_inode(&inode, &before).await?);
                Ok(())
            })
            .await?;
            self.report.restless = changed > 0;
            if pass > 0 && changed == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Marks what one inode needs; whether it is other than at the last pass.
    async fn keep_inode(&mut self, inode: &Surveyed, before: &[(u64, u64)]) -> Result<bool> {
        let row = inode.row.as_ref().map_err(|e| unreadable("an inode", e))?;
        for (blob, _) in blobs_of(row) {
            if let Some(objects) = self.blobs.get_mut(&blob) {
                objects.needed = true;
            }
        }
        if row.content != Content::Extents && row.chunks == 0 {
            return Ok(false);
        }
        let digest = digest(&inode.raw);
        let known = before.binary_search_by_key(&inode.ino.0, |(ino, _)| *ino);
        if known.is_ok_and(|at| before[at].1 == digest) {
            self.read.push((inode.ino.0, digest));
            return Ok(false);
        }
        let now = self.keep_chunks(inode, row).await?;
        // Of a file that changed while it was read nothing is known yet.
        self.read.push((inode.ino.0, if now { digest } else { !digest }));
        Ok(true)
    }

    async fn keep_chunks(&mut self, inode: &Surveyed, row: &InodeRow) -> Result<bool> {
        let survey = self.place.survey.clone();
        let mut same = true;
        each_chunks(&survey, inode.ino, row, row.chunks, async |_, chunks| {
            same &= chunks.raw.as_ref() == Some(&inode.raw);
            for (_, _, list) in chunks.lists {
                for extent in list.map_err(|e| unreadable("a chunk", &e))? {
                    self.need(extent.object);
                }
            }
            Ok(())
        })
        .await?;
        Ok(same)
    }

    fn need(&mut self, object: ObjectId) {
        if let Ok(at) = self.chunks.binary_search_by_key(&object, |c| c.object) {
            self.chunks[at].needed = true;
        }
    }

    async fn delete_chunks(&mut self) -> Result<()> {
        self.chunks.retain(|c| !c.needed);
        for garbage in &self.chunks {
            self.report.chunks.add(garbage.size.into());
        }
        if !self.options.delete {
            return Ok(());
        }
        let garbage = std::mem::take(&mut self.chunks);
        for some in garbage.chunks(1000) {
            let objects = some.iter().map(|c| (Object::FileChunk(c.object), u64::from(c.size)));
            let gone = self.delete(objects).await;
            let ids: Vec<ObjectId> = gone
                .iter()
                .filter_map(|object| match object {
                    Object::FileChunk(id) => Some(*id),
                    _ => None,
                })
                .collect();
            self.survey().forget_trash(&ids).await?;
        }
        Ok(())
    }

    async fn delete_blobs(&mut self, rows: HashMap<BlobId, (Bytes, u64)>) -> Result<()> {
        let blobs = std::mem::take(&mut self.blobs);
        for (id, objects) in blobs.iter().filter(|(_, o)| !o.needed) {
            if objects.young {
                self.report.left.objects += objects.sum.objects;
                self.report.left.bytes += objects.sum.bytes;
                continue;
            }
            let row = rows.get(id);
            // A row that could not be read says nothing.
            let unreadable = row.is_none() && {
                let now = self.survey().blobs(&[*id]).await?;
                now.first().is_none_or(|blob| blob.raw.is_some())
            };
            if unreadable {
                continue;
            }
            self.report.blobs += 1;
            self.report.blob_chunks.objects += objects.sum.objects;
            self.report.blob_chunks.bytes += objects.sum.bytes;
            if !self.options.delete {
                continue;
            }
            if let Some((raw, size)) = row {
                let chunks = size.div_ceil(u64::from(self.place.chunk_size));
                if !self.survey().forget_blob(*id, raw, chunks).await? {
                    continue;
                }
            }
            let (etag, mut objects) = (id.etag(), Vec::new());
            let under = format!("blobs/{}/{etag}", &etag[..2]);
            let bucket = self.place.bucket.clone();
            bucket
                .each(&under, |listed| {
                    objects.extend(Object::parse(&listed.name).map(|object| (object, listed.size)));
                })
                .await?;
            self.delete(objects.into_iter()).await;
        }
        Ok(())
    }

    async fn delete_tests(&mut self) {
        for (_, size) in &self.tests {
            self.report.tests.add(*size);
        }
        if self.options.delete {
            let tests = std::mem::take(&mut self.tests);
            self.delete(tests.into_iter()).await;
        }
    }

    /// Deletes; answers what is gone. What fails is counted and stays for the next time.
    async fn delete(&mut self, objects: impl Iterator<Item = (Object, u64)>) -> Vec<Object> {
        let bucket = &self.place.bucket;
        let delete = async |(object, size): (Object, u64)| (bucket.delete(&object).await, object, size);
        let mut deleting = stream::iter(objects).map(delete).buffer_unordered(DELETES_AT_ONCE).boxed_local();
        let mut gone = Vec::new();
        while let Some((result, object, size)) = deleting.next().await {
            match result {
                Ok(()) => {
                    self.report.deleted.add(size);
                    gone.push(object);
                }
                Err(error) => {
                    self.report.failed += 1;
                    tracing::warn!(%error, "not deleted");
                }
            }
            (self.tell)(Progress { what: "deleted", done: self.report.deleted.objects, of: None });
        }
        gone
    }

    async fn drop_tombstones(&mut self) -> Result<()> {
        let now = Timestamp::now();
        for (name, until) in self.survey().tombstones().await? {
            if until >= now {
                continue;
            }
            self.report.tombstones += 1;
            if self.options.delete {
                // A conflict means that somebody deleted it once more.
                let _ = self.survey().drop_tombstone(&name, until).await?;
            }
        }
        Ok(())
    }
}

/// What became of it, as an error if something could not be deleted.
pub fn outcome(report: &GcReport) -> Result<()> {
    match report.failed {
        0 => Ok(()),
        n => Err(Error::new(Kind::Unavailable, format!("{n} objects could not be deleted: run it again"))),
    }
}
