//! The attributes of an inode as the layers above see them, and reading them.

use bytes::Bytes;

use super::Meta;
use super::kv::number;
use super::schema::{self, Content, InodeRow, Layout, Proven, Role};
use crate::error::{Error, Kind, Result};
use crate::types::{BlobId, FileType, Ino, Timestamp, Version};

/// More than this a single file never counts for, bytes: the sum of a volume full of files that are nothing but holes stays
/// a number that the engines can hold.
const COUNTED_MAX: u64 = 1 << 53;

/// The attributes of an inode: its row, with what directories keep apart merged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    pub ino: Ino,
    pub kind: FileType,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Belongs to nobody in particular: presented with the mount's own `--uid`, `--gid` and, unless
    /// [`mode_set`](Self::mode_set), `--umask`.
    pub hub: bool,
    /// Of a private or gated repository.
    pub restricted: bool,
    /// Somebody set the mode of this hub-owned inode: show it as it is.
    pub mode_set: bool,
    /// Links; of directories 2 and one for each subdirectory. 0: an orphan, alive only for who has it open.
    pub nlink: u32,
    pub rdev: u32,
    /// Bytes.
    pub size: u64,
    /// 512-byte units: of a file with chunks what its data takes, holes not counted; else what `size` would take.
    pub blocks: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub version: Version,
    pub content: Content,
    pub role: Option<Role>,
    /// The directory that holds this directory; of other inodes the one that it was made in.
    pub parent: Ino,
    /// Of a file: one more than the highest chunk index that may have a row.
    pub chunks: u64,
    pub layout: Layout,
    /// The blob that has exactly these bytes, if that was found out: see [`Meta::prove`].
    pub proven: Option<BlobId>,
    /// It has extended attributes.
    pub xattrs: bool,
    /// See [`InodeRow::uncounted`].
    pub uncounted: bool,
}

impl Attr {
    /// Merges a row with a directory's time of last change (ns) and number of subdirectories.
    pub(super) fn new(ino: Ino, row: InodeRow, changed: Option<i64>, subdirs: u32) -> Self {
        let is_dir = row.kind == FileType::Dir;
        let changed = changed.map(Timestamp);
        let under = row.layout.under.map_or(0, |u| u.len);
        let data = match (&row.content, row.data()) {
            (Content::Extents, Some(data)) => data.saturating_add(under).min(row.size),
            _ => row.size,
        };
        Attr {
            ino,
            kind: row.kind,
            mode: row.mode,
            uid: row.uid,
            gid: row.gid,
            hub: row.hub,
            restricted: row.restricted,
            mode_set: row.mode_set,
            nlink: if is_dir { 2 + subdirs } else { row.nlink },
            rdev: row.rdev,
            size: row.size,
            blocks: data.div_ceil(512),
            atime: row.atime,
            // Setting the time of a directory drops `changed`: if it is there, it is younger.
            mtime: changed.unwrap_or(row.mtime),
            ctime: changed.map_or(row.ctime, |c| c.max(row.ctime)),
            version: row.version,
            content: row.content,
            role: row.role,
            parent: row.parent,
            chunks: row.chunks,
            layout: row.layout,
            proven: row.proven.map(|Proven(blob)| blob),
            xattrs: row.xattrs,
            uncounted: row.uncounted,
        }
    }

    /// Becomes what `newer`, of the same inode, says of the data; the rest stays as it was read.
    pub fn take_data_of(&mut self, newer: &Attr) {
        (self.size, self.blocks) = (newer.size, newer.blocks);
        (self.mtime, self.ctime) = (newer.mtime, self.ctime.max(newer.ctime));
        (self.version, self.content) = (newer.version, newer.content.clone());
        (self.chunks, self.layout) = (newer.chunks, newer.layout);
        (self.proven, self.uncounted) = (newer.proven, newer.uncounted);
    }

    /// The bytes that the data counts for in the volume's usage: its size, holes and all. What is a blob of the Hub's, or
    /// was brought with one, counts nothing.
    #[must_use]
    pub fn usage(&self) -> u64 {
        usage_of(self.kind, &self.content, self.uncounted, self.size)
    }

    /// From the values of [`schema::ATTR_FIELDS`]; `None` if the row is absent.
    pub(super) fn from_fields(ino: Ino, fields: &[Option<Bytes>]) -> Result<Option<Self>> {
        let [Some(row), changed, subdirs, accessed] = fields else { return Ok(None) };
        let row = schema::decode_row(ino, row)?;
        let changed = changed.as_ref().map(|c| number(Some(c))).transpose()?;
        let subdirs = u32::try_from(number(subdirs.as_ref())?)
            .map_err(|e| Error::with_source(Kind::Corrupt, format!("subdirectories of inode {ino}"), e))?;
        let mut attr = Attr::new(ino, row, changed, subdirs);
        if accessed.is_some() {
            // Setting the time drops it: if it is there, it is younger.
            attr.atime = Timestamp(number(accessed.as_ref())?);
        }
        Ok(Some(attr))
    }
}

impl Meta {
    /// The attributes of an inode, in one round trip. [`Kind::Stale`] if it is gone.
    pub async fn getattr(&self, ino: Ino) -> Result<Attr> {
        let ticket = self.0.recent.ticket();
        let fields = self.kv().get(&schema::attr_keys(ino)).await?;
        let attr = Attr::from_fields(ino, &fields)?.ok_or_else(|| gone(ino))?;
        self.0.recent.learn(ticket, &attr);
        if let Some(row) = &fields[0] {
            self.hints().learn_row(ino, row);
        }
        Ok(attr)
    }

    /// The attributes of many inodes, in their order, in one round trip; `None` for those that are gone.
    pub async fn getattrs(&self, inos: &[Ino]) -> Result<Vec<Option<Attr>>> {
        if inos.is_empty() {
            return Ok(Vec::new());
        }
        let keys: Vec<_> = inos.iter().flat_map(|&ino| schema::attr_keys(ino)).collect();
        let ticket = self.0.recent.ticket();
        let values = self.kv().get(&keys).await?;
        let read = inos.iter().zip(values.chunks(4)).map(|(&ino, fields)| {
            let attr = Attr::from_fields(ino, fields)?;
            attr.iter().for_each(|attr| self.0.recent.learn(ticket, attr));
            Ok(attr)
        });
        read.collect()
    }
}

/// See [`Attr::usage`].
pub(super) fn usage_of(kind: FileType, content: &Content, uncounted: bool, size: u64) -> u64 {
    match (kind, content) {
        (FileType::File, Content::Inline(_) | Content::Extents) if !uncounted => size.min(COUNTED_MAX),
        _ => 0,
    }
}

impl Meta {
    /// The type of an inode and, of what is no directory, the directory that it was made in: neither ever changes.
    pub async fn origin(&self, ino: Ino) -> Result<(FileType, Ino)> {
        let (raw, _) = self.raw_row(ino, false).await?;
        let row = schema::decode_row(ino, &raw)?;
        Ok((row.kind, row.parent))
    }
}

/// The error of an inode that is not there any more.
pub(super) fn gone(ino: Ino) -> Error {
    Error::new(Kind::Stale, format!("inode {ino}"))
}
