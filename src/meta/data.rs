//! The data of files as rows: inline bytes, lists of extents, size and version. The bytes themselves are elsewhere.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use super::Meta;
use super::attr::{Attr, gone};
use super::journals::{JournalMark, mark_write};
use super::kv::Outcome;
use super::retry::Tries;
use super::schema::{self, Content, FAR, GROUP, INLINE_MAX, InodeRow, Layout, Under};
use super::setattr::clear_suid;
use super::txn::{Build, usage};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{Extent, FileType, Ino, ObjectId, Timestamp, Version};

/// How many chunk rows are read in one round trip.
pub(super) const CHUNKS_AT_ONCE: u64 = 1000;

/// A change of a file's data, all of it in one transaction.
///
/// The content becomes [`Content::Inline`] if there are inline bytes, else [`Content::None`] if the size is 0, else
/// [`Content::Extents`]. In the first two cases all chunk rows go, listed or not.
///
/// What was inline or a blob before is not carried over: when the content becomes extents, the caller lists all chunks
/// that have bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DataChange {
    /// The new size, bytes.
    pub size: u64,
    /// The whole content, at most [`INLINE_MAX`] bytes; shorter than `size`: zeros behind.
    pub inline: Option<Bytes>,
    /// The new lists of the chunks that changed; an empty list is a hole. Chunks beyond a smaller size are listed
    /// with an empty list by the caller.
    pub chunks: Vec<(u64, Vec<Extent>)>,
    /// `None`: it stays.
    pub mtime: Option<Timestamp>,
    /// The blob that shows where a chunk has no row, for content that becomes extents.
    pub under: Option<Under>,
    /// A listed chunk below this one with an empty list keeps an empty row: the blob does not show there.
    pub holes_below: u64,
    /// No chunk has a row at or beyond this one after the change. `None`: nobody knows.
    pub end: Option<u64>,
    /// The listed chunks refer to objects that the rows of this file, which has this version, refer to already. The change
    /// is a conflict if the file has another one.
    pub source: Option<(Ino, Version)>,
    /// Takes the set-user-id and set-group-id bits, as a write by who is not privileged does.
    pub clear_suid: bool,
    /// The entry of a journal that this change contains: said in the same transaction.
    pub mark: Option<JournalMark>,
    /// The version that the file has afterwards, from [`Meta::next_version`], for who must know it though no answer comes.
    pub version: Option<Version>,
}

/// The row of a chunk: its extents, or `None` if there is no row.
pub type ChunkExtents = Option<Vec<Extent>>;

/// How a data commit ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Committed {
    /// Done; the attributes afterwards.
    Applied(Attr),
    /// The data is not the one that the change was made for; the attributes as they are now.
    Conflict(Attr),
}

impl Meta {
    /// The extent lists of some chunks of a file, in their order, in one round trip; no row is an empty list.
    pub async fn extents(&self, ino: Ino, chunks: &[u64]) -> Result<Vec<Vec<Extent>>> {
        let rows = self.chunk_rows(ino, chunks).await?;
        Ok(rows.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// The same, with a missing row (a hole, or the blob under the file) told from an empty one (a hole).
    pub async fn chunk_rows(&self, ino: Ino, chunks: &[u64]) -> Result<Vec<ChunkExtents>> {
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<_> = chunks.iter().map(|&index| schema::chunk_key(ino, index)).collect();
        let values = self.kv().get(&keys).await?;
        let decode =
            |(&index, value): (_, &Option<Bytes>)| schema::decode_extents(ino, index, value.as_ref());
        chunks.iter().zip(&values).map(decode).collect()
    }

    /// The attributes of a file and the rows of some of its chunks, as they are at one moment; one round trip.
    /// [`Kind::Stale`] if the inode is gone.
    pub async fn attr_and_chunk_rows(&self, ino: Ino, chunks: &[u64]) -> Result<(Attr, Vec<ChunkExtents>)> {
        let mut keys = schema::attr_keys(ino).to_vec();
        let attr_fields = keys.len();
        keys.extend(chunks.iter().map(|&index| schema::chunk_key(ino, index)));
        let values = self.kv().get(&keys).await?;
        let (fields, rows) = values.split_at(attr_fields);
        let attr = Attr::from_fields(ino, fields)?.ok_or_else(|| gone(ino))?;
        let decode =
            |(&index, value): (_, &Option<Bytes>)| schema::decode_extents(ino, index, value.as_ref());
        let rows = chunks.iter().zip(rows).map(decode).collect::<Result<_>>()?;
        Ok((attr, rows))
    }

    /// Replaces data of a file iff its version is still `base`. ctime is now, the version new. One round trip if the row was
    /// seen before and no chunk that has extents is changed. Objects that no chunk row refers to any more go to the
    /// trash in the same transaction. Between two changes of the same file's data a change must list few chunks:
    /// all of it is one transaction.
    ///
    /// [`Kind::Stale`] if it is gone, [`Kind::Invalid`] if it is no file or the inline bytes are too many, [`Kind::NoSpace`]
    /// if the file becomes larger than the volume's capacity allows.
    pub async fn commit_data(&self, ino: Ino, base: Version, change: DataChange) -> Result<Committed> {
        let words = || format!("data of inode {ino}");
        if change.inline.as_ref().is_some_and(|b| b.len() > INLINE_MAX || b.len() as u64 > change.size) {
            return Err(Error::new(Kind::Invalid, "too many inline bytes").context(words()));
        }
        let mut tries = Tries::new();
        loop {
            let committed = self.try_commit_data(ino, base, &change, tries.fresh()).await;
            if let Some(committed) = committed.context(words)? {
                return Ok(committed);
            }
            tries.again().await.context(words)?;
        }
    }

    async fn try_commit_data(
        &self,
        ino: Ino,
        base: Version,
        change: &DataChange,
        fresh: bool,
    ) -> Result<Option<Committed>> {
        let (raw, guessed) = self.raw_row(ino, fresh).await?;
        let old = schema::decode_row(ino, &raw)?;
        if old.kind != FileType::File {
            return Err(Kind::Invalid.into());
        }
        if old.version != base {
            return if guessed {
                Ok(None)
            } else {
                Ok(Some(Committed::Conflict(Attr::new(ino, old, None, 0))))
            };
        }
        let mut build = self.build();
        build.equals(schema::attr_key(ino), &raw);
        if let Some((source, version)) = change.source
            && source != ino
        {
            // Its rows refer to the objects as long as it has this version, so that they are not in the trash.
            let (raw, guessed) = self.raw_row(source, fresh).await?;
            if schema::decode_row(source, &raw)?.version != version {
                return if guessed {
                    Ok(None)
                } else {
                    Ok(Some(Committed::Conflict(Attr::new(ino, old, None, 0))))
                };
            }
            build.equals(schema::attr_key(source), &raw);
        }
        let mut row = self.changed_row(&old, change);
        self.change_chunks(&mut build, ino, &old, &mut row, change).await?;
        let raw = build.set_row(ino, &row)?;
        let growth = usage(&row) - usage(&old);
        if row.nlink > 0 {
            build.add_within(schema::bytes_key(), growth, self.bytes_bound());
            build.add(schema::inodes_key(), i64::from(old.uncounted));
        }
        if let Some(mark) = &change.mark {
            let (key, value) = mark_write(mark, ino);
            build.set(key, value);
        }
        build.inode_changed(ino);
        let attr = Attr::new(ino, row, None, 0);
        match self.commit_making(build, Some(&attr)).await? {
            Outcome::Applied => {
                self.hints().learn_row(ino, &raw);
                self.note_growth(if attr.nlink > 0 { growth } else { 0 });
                Ok(Some(Committed::Applied(attr)))
            }
            Outcome::Conflict(_) => {
                self.hints().forget_row(ino);
                if let Some((source, _)) = change.source {
                    self.hints().forget_row(source);
                }
                Ok(None)
            }
            Outcome::Full => Err(self.full_of_bytes()),
        }
    }

    fn changed_row(&self, old: &InodeRow, change: &DataChange) -> InodeRow {
        let mut row = old.clone();
        row.content = match &change.inline {
            Some(bytes) if !bytes.is_empty() => Content::Inline(bytes.clone()),
            _ if change.size == 0 => Content::None,
            _ => Content::Extents,
        };
        row.chunks = if row.content == Content::Extents {
            let written =
                change.chunks.iter().filter(|(index, list)| !list.is_empty() || *index < change.holes_below);
            let chunks = written.map(|(index, _)| index + 1).fold(old.chunks, u64::max);
            chunks.min(change.end.unwrap_or(u64::MAX))
        } else {
            0
        };
        row.layout = match row.content {
            Content::Extents => Layout {
                // Where far rows of an older version lie nobody wrote down.
                grouped: old.layout.grouped || (old.chunks <= FAR && row.chunks > FAR),
                under: change.under.filter(|under| under.len > 0),
                ..old.layout
            },
            _ => Layout::default(),
        };
        row.size = change.size;
        row.uncounted = false;
        row.proven = None;
        row.version = change.version.unwrap_or_else(|| self.next_version());
        row.ctime = Timestamp::now();
        row.mtime = change.mtime.unwrap_or(row.mtime);
        if change.clear_suid {
            clear_suid(&mut row);
        }
        row
    }

    /// Writes the chunk rows, counts their bytes in `row`, and lets go of what they no longer refer to.
    async fn change_chunks(
        &self,
        build: &mut Build,
        ino: Ino,
        old: &InodeRow,
        row: &mut InodeRow,
        change: &DataChange,
    ) -> Result<()> {
        let stays = row.content == Content::Extents;
        let kept = if stays { &change.chunks[..] } else { &[] };
        let mut references: HashMap<ObjectId, i64> = HashMap::new();
        let mut bytes: i64 = 0;
        let before: Vec<u64> = if stays {
            kept.iter().map(|(index, _)| *index).filter(|index| *index < old.chunks).collect()
        } else {
            self.row_ranges(ino, old.chunks, old.layout.grouped).await?.into_iter().flatten().collect()
        };
        for some in before.chunks(CHUNKS_AT_ONCE as usize) {
            for (index, list) in some.iter().zip(self.chunk_rows(ino, some).await?) {
                let Some(list) = list else { continue };
                bytes -= data_bytes(&list);
                for object in objects(&list) {
                    *references.entry(object).or_default() -= 1;
                }
                if !stays {
                    build.del(schema::chunk_key(ino, *index));
                }
            }
        }
        let mut groups = BTreeSet::new();
        for (index, list) in kept {
            let key = schema::chunk_key(ino, *index);
            bytes += data_bytes(list);
            for object in objects(list) {
                *references.entry(object).or_default() += 1;
            }
            if list.is_empty() && *index >= change.holes_below {
                build.del(key);
            } else {
                build.set(key, schema::encode(list)?);
                groups.extend((*index >= FAR).then_some(*index / GROUP));
            }
        }
        if row.layout.grouped {
            groups.iter().for_each(|group| build.set(schema::group_key(ino, *group), Bytes::new()));
        } else if old.layout.grouped {
            build.del_map(schema::groups_map(ino));
        }
        if stays {
            row.layout.data = old.data().map(|data| data.saturating_add_signed(bytes));
        }
        let now = self.now();
        for (object, more) in references {
            // The first reference to a new object is not counted.
            let counted = if change.source.is_some() { more } else { more - 1 };
            if counted > 0 {
                build.add(schema::shared_key(object), counted);
            }
            (more..0).for_each(|_| build.release(object, now));
        }
        Ok(())
    }
}

fn data_bytes(list: &[Extent]) -> i64 {
    list.iter().map(|e| i64::from(e.len)).sum()
}

/// The objects that a list refers to, each once.
pub(super) fn objects(list: &[Extent]) -> BTreeSet<ObjectId> {
    list.iter().map(|extent| extent.object).collect()
}
