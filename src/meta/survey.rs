//! Rows as they lie, for the tools that check a volume: what cannot be decoded is an answer here, not an end.
//!
//! A survey has no session. It finds inodes by their numbers rather than by their names, so that no rename hides one from
//! it: an inode never changes its own. Which numbers there are the engine tells.

mod bin;
mod repair;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::attr::{Attr, usage_of};
use super::blobs::VERIFIED;
use super::groups::row_ranges;
use super::journals::list_journals;
use super::kv::{Entry, Key, Kv, SESSIONS, number};
use super::schema::{
    self, BIN, BlobBase, DEAD, Holder, InodeRow, ORPHANS, OrphanRow, STAGING, StagingRow, TOMBSTONES, TRASH,
};
use super::session::{SessionInfo, list_sessions};
use crate::error::{Kind, Result};
use crate::types::{BlobId, Extent, FileType, Ino, ObjectId, Origin, SessionId, Timestamp};

pub use self::bin::BinnedRow;

/// How many entries of a map are read at once.
const PAGE: usize = 1000;
/// How often the numbers of inodes are asked for when the server is replaced meanwhile.
const TRIES: usize = 3;

/// Access to the rows of a volume without being one of its mounts. Cheap to clone.
#[derive(Clone)]
pub struct Survey {
    kv: Arc<dyn Kv>,
}

impl fmt::Debug for Survey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Survey").field("kv", &self.kv).finish()
    }
}

/// The rows of one inode, of one moment.
#[derive(Debug)]
pub struct Surveyed {
    pub ino: Ino,
    /// As it lies in the metadata: equal bytes mean that no name, no attribute and no data of it changed.
    pub raw: Bytes,
    pub row: Result<InodeRow>,
    /// Of a directory: how many subdirectories it is said to have.
    pub subdirs: Result<i64>,
    /// As it lies there.
    pub subdirs_raw: Option<Bytes>,
    /// Sessions that are said to hold its lock.
    pub lockers: Result<Vec<SessionId>>,
}

/// An entry of a directory.
#[derive(Debug)]
pub struct Named {
    /// Its place in the listing.
    pub id: u64,
    pub name: Bytes,
    pub value: Bytes,
    pub target: Result<(Ino, FileType)>,
}

/// Some chunk rows of one inode, of one moment.
#[derive(Debug)]
pub struct SurveyedChunks {
    /// The row of the inode at that moment.
    pub raw: Option<Bytes>,
    /// Index, bytes, list; those that have a row.
    pub lists: Vec<(u64, Bytes, Result<Vec<Extent>>)>,
}

/// An inode that is kept without a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphan {
    pub ino: Ino,
    /// Its row is gone and its chunks are being dropped.
    pub reaping: bool,
    /// Until when it is held, unless somebody says so again.
    pub held_until: Timestamp,
}

/// What is known of a blob.
#[derive(Debug)]
pub struct SurveyedBlob {
    pub id: BlobId,
    /// As it lies there; `None`: it was never heard of, or forgotten.
    pub raw: Option<Bytes>,
    /// Bytes.
    pub size: Result<u64>,
    pub origins: Vec<Origin>,
    pub verified: bool,
    /// When somebody last gave it a name, about; before versions that noted it: 1970.
    pub introduced: Timestamp,
}

/// What is known of a chunk of a blob.
#[derive(Debug)]
pub struct BlobChunk {
    pub index: u64,
    pub hash: Result<Option<[u8; 32]>>,
    pub stored: bool,
}

impl InodeRow {
    /// What it counts for in the volume's usage while it has a name: inodes and bytes.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let named = self.kind == FileType::Dir || self.nlink > 0;
        if !named || self.uncounted {
            return (0, 0);
        }
        (1, usage_of(self.kind, &self.content, self.uncounted, self.size))
    }
}

impl Survey {
    /// A survey of the volume that `kv` holds.
    #[must_use]
    pub fn new(kv: Arc<dyn Kv>) -> Self {
        Survey { kv }
    }

    /// The numbers of all inodes, sorted: of those that are there the whole time, and perhaps of some that come or go. 8
    /// bytes each. `tell` hears how many there are so far.
    pub async fn numbers(&self, tell: impl Fn(u64)) -> Result<Vec<u64>> {
        let mut tries = 0;
        'again: loop {
            tries += 1;
            let (mut numbers, mut from) = (Vec::new(), None);
            loop {
                let page = match self.kv.inodes(from.as_ref()).await {
                    // The server was replaced; or it does not answer, and will not the next time either.
                    Err(e) if e.kind() == Kind::Unavailable && tries < TRIES => continue 'again,
                    page => page?,
                };
                numbers.extend(page.numbers);
                tell(numbers.len() as u64);
                match page.next {
                    Some(next) => from = Some(next),
                    None => break,
                }
            }
            numbers.sort_unstable();
            numbers.dedup();
            return Ok(numbers);
        }
    }

    /// Those of `numbers` that are inodes, in one round trip. A few hundred at a time.
    pub async fn inodes(&self, numbers: &[u64]) -> Result<Vec<Surveyed>> {
        let keys: Vec<Key> = numbers
            .iter()
            .flat_map(|&n| [schema::attr_key(Ino(n)), schema::subdirs_key(Ino(n)), schema::flock_key(Ino(n))])
            .collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let values = self.kv.get(&keys).await?;
        let mut found = Vec::new();
        for (&n, fields) in numbers.iter().zip(values.chunks_exact(3)) {
            let Some(raw) = fields[0].clone() else { continue };
            let ino = Ino(n);
            let lockers = fields[2].as_ref().map_or(Ok(Vec::new()), |value| {
                schema::decode::<Vec<Holder>>(value, || format!("locks of inode {ino}"))
            });
            found.push(Surveyed {
                ino,
                row: schema::decode_row(ino, &raw),
                raw,
                subdirs: number(fields[1].as_ref()),
                subdirs_raw: fields[1].clone(),
                lockers: lockers.map(|l| l.into_iter().map(|h| h.session).collect()),
            });
        }
        Ok(found)
    }

    /// One inode; `None` if there is none of that number.
    pub async fn inode(&self, ino: Ino) -> Result<Option<Surveyed>> {
        Ok(self.inodes(&[ino.0]).await?.pop())
    }

    /// The attributes of an inode, as mounts show them; `None` if there is none of that number.
    pub async fn attr(&self, ino: Ino) -> Result<Option<Attr>> {
        Attr::from_fields(ino, &self.kv.get(&schema::attr_keys(ino)).await?)
    }

    /// The rows of `count` chunks from `first` on, with the inode's own, in one round trip.
    pub async fn chunks(&self, ino: Ino, first: u64, count: u64) -> Result<SurveyedChunks> {
        let range = first..first.saturating_add(count);
        let mut keys = vec![schema::attr_key(ino)];
        keys.extend(range.clone().map(|index| schema::chunk_key(ino, index)));
        let mut values = self.kv.get(&keys).await?.into_iter();
        let raw = values.next().flatten();
        let list = |(index, value): (u64, Option<Bytes>)| {
            let value = value?;
            let list = schema::decode(&value, || format!("chunk {index} of inode {ino}"));
            Some((index, value, list))
        };
        Ok(SurveyedChunks { raw, lists: range.zip(values).filter_map(list).collect() })
    }

    /// The chunks of a file that may have rows, in order; there are none elsewhere. `end` is one more than the highest.
    pub async fn chunk_ranges(
        &self,
        ino: Ino,
        row: &InodeRow,
        end: u64,
    ) -> Result<Vec<std::ops::Range<u64>>> {
        row_ranges(&*self.kv, ino, end, row.layout.grouped).await
    }

    /// A page of a directory after the place `after`; an empty one is the end.
    pub async fn names(&self, dir: Ino, after: u64) -> Result<Vec<Named>> {
        let named = |e: Entry| Named {
            id: e.id,
            target: schema::parse_entry(&e.value),
            name: e.field,
            value: e.value,
        };
        Ok(self.kv.scan(&schema::dir_map(dir), after, PAGE).await?.into_iter().map(named).collect())
    }

    /// What an entry holds and the row of the inode `ino`, of one moment.
    pub async fn entry_and_inode(
        &self,
        dir: Ino,
        name: &[u8],
        ino: Ino,
    ) -> Result<(Option<Bytes>, Option<Bytes>)> {
        let mut values = self.kv.get(&[schema::entry_key(dir, name), schema::attr_key(ino)]).await?;
        let inode = values.pop().flatten();
        Ok((values.pop().flatten(), inode))
    }

    /// What the name refers to.
    pub async fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<(Ino, FileType)>> {
        let value = self.kv.get(&[schema::entry_key(dir, name)]).await?.pop().flatten();
        value.map(|v| schema::parse_entry(&v)).transpose()
    }

    async fn each(&self, map: &str, mut entry: impl FnMut(Entry) -> Result<()>) -> Result<()> {
        let mut after = 0;
        loop {
            let page = self.kv.scan(map, after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.id;
            page.into_iter().try_for_each(&mut entry)?;
        }
    }

    /// Inodes that are kept without a name because somebody may have them open.
    pub async fn orphans(&self) -> Result<Vec<Orphan>> {
        let mut orphans = Vec::new();
        self.each(ORPHANS, |e| {
            let ino = schema::field_ino(&e.field)?;
            let row: OrphanRow = schema::decode(&e.value, || format!("orphan row of inode {ino}"))?;
            orphans.push(Orphan { ino, reaping: row.reaping.is_some(), held_until: row.held_until });
            Ok(())
        })
        .await?;
        Ok(orphans)
    }

    /// Inodes that were removed and may come back.
    pub async fn binned(&self) -> Result<Vec<Ino>> {
        let mut inos = Vec::new();
        self.each(BIN, |e| {
            inos.push(schema::field_ino(&e.field)?);
            Ok(())
        })
        .await?;
        Ok(inos)
    }

    /// Who uses the volume now.
    pub async fn mounts(&self) -> Result<Vec<SessionInfo>> {
        let sessions = list_sessions(&*self.kv).await?;
        Ok(sessions.into_iter().filter(|s| s.alive).map(|s| s.info).collect())
    }

    /// Numbers of inodes that a publication is writing, by whom, since when.
    pub async fn staged(&self) -> Result<Vec<(SessionId, Timestamp, std::ops::Range<u64>, Option<Ino>)>> {
        let mut staged = Vec::new();
        self.each(STAGING, |e| {
            let row: StagingRow = schema::decode(&e.value, || "a staging row".to_owned())?;
            staged.push((row.session, row.since, row.first.0..row.first.0 + row.count, row.root));
            Ok(())
        })
        .await?;
        Ok(staged)
    }

    /// Sessions whose objects may still be committed: those that are registered, alive or silent, those that their mounts
    /// had before, and those whose journal is not drained. The engines refuse all others, unless a mount that lost its
    /// session comes back with it as a former one; see [`Survey::collect`].
    pub async fn sessions(&self) -> Result<Vec<SessionId>> {
        let registered = list_sessions(&*self.kv).await?;
        let mut sessions: Vec<SessionId> =
            registered.into_iter().flat_map(|s| s.former.into_iter().chain([s.id])).collect();
        sessions.extend(list_journals(&*self.kv).await?.into_iter().map(|(session, _)| session));
        Ok(sessions)
    }

    /// Sessions that are registered, or were declared dead and are being cleaned up: what they left is not forgotten.
    pub async fn known_sessions(&self) -> Result<Vec<SessionId>> {
        self.sessions_in(&[SESSIONS, DEAD]).await
    }

    /// Sessions that are registered.
    pub async fn registered(&self) -> Result<Vec<SessionId>> {
        self.sessions_in(&[SESSIONS]).await
    }

    async fn sessions_in(&self, maps: &[&str]) -> Result<Vec<SessionId>> {
        let mut sessions = Vec::new();
        for map in maps {
            self.each(map, |e| {
                sessions.push(String::from_utf8_lossy(&e.field).parse()?);
                Ok(())
            })
            .await?;
        }
        Ok(sessions)
    }

    /// Objects in the trash, and since when nobody refers to them.
    pub async fn trash(&self) -> Result<Vec<(ObjectId, Timestamp)>> {
        let mut trash = Vec::new();
        self.each(TRASH, |e| {
            trash.push((schema::trash_object(&e.field)?, schema::value_time(&e.value)?));
            Ok(())
        })
        .await?;
        Ok(trash)
    }

    /// Names in the root that must not be filled from the Hub, and until when.
    pub async fn tombstones(&self) -> Result<Vec<(Bytes, Timestamp)>> {
        let mut stones = Vec::new();
        self.each(TOMBSTONES, |e| {
            stones.push((e.field, schema::value_time(&e.value)?));
            Ok(())
        })
        .await?;
        Ok(stones)
    }

    /// What is known of some blobs, in one round trip.
    pub async fn blobs(&self, ids: &[BlobId]) -> Result<Vec<SurveyedBlob>> {
        let key = |id: &BlobId, field: &'static [u8]| Key::new(schema::blob_map(*id), field);
        let keys: Vec<Key> = ids.iter().flat_map(|id| [key(id, schema::ATTR), key(id, VERIFIED)]).collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let values = self.kv.get(&keys).await?;
        let blob = |(&id, pair): (&BlobId, &[Option<Bytes>])| {
            let base: Result<BlobBase> = match &pair[0] {
                Some(value) => schema::decode(value, || format!("row of blob {id}")),
                None => Ok(BlobBase::default()),
            };
            let (size, origins, introduced) = match base {
                Ok(base) => (Ok(base.size), base.origins, base.introduced),
                Err(e) => (Err(e), Vec::new(), Timestamp::now()),
            };
            let verified = pair[1].is_some();
            SurveyedBlob { id, raw: pair[0].clone(), size, origins, verified, introduced }
        };
        Ok(ids.iter().zip(values.chunks_exact(2)).map(blob).collect())
    }

    /// What is known of `count` chunks of a blob from `first` on.
    pub async fn blob_chunks(&self, blob: BlobId, first: u64, count: u64) -> Result<Vec<BlobChunk>> {
        let range = first..first.saturating_add(count);
        let keys: Vec<Key> = range
            .clone()
            .flat_map(|i| [super::blobs::hash_key(blob, i), super::blobs::stored_key(blob, i)])
            .collect();
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let values = self.kv.get(&keys).await?;
        let chunk = |(index, pair): (u64, &[Option<Bytes>])| {
            let hash = pair[0].as_ref().map(|v| super::blobs::parse_hash(blob, v)).transpose();
            BlobChunk { index, hash, stored: pair[1].is_some() }
        };
        Ok(range.zip(values.chunks_exact(2)).map(chunk).collect())
    }

    /// By how many chunk rows some objects are said to be named beyond the first, as it lies there.
    pub async fn shared(&self, objects: &[ObjectId]) -> Result<Vec<Option<Bytes>>> {
        let keys: Vec<Key> = objects.iter().map(|&object| schema::shared_key(object)).collect();
        if keys.is_empty() { Ok(Vec::new()) } else { self.kv.get(&keys).await }
    }

    /// The counters of inodes and bytes as they lie there.
    pub async fn counters(&self) -> Result<[Option<Bytes>; 2]> {
        let mut values = self.kv.get(&[schema::inodes_key(), schema::bytes_key()]).await?.into_iter();
        Ok([values.next().flatten(), values.next().flatten()])
    }
}
