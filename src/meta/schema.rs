//! Where everything lies in the metadata, and how rows are written: the one place that knows map names and encodings.
//!
//! | map | kind | field → value |
//! |---|---|---|
//! | `i<ino>` | plain | `a` → [`InodeRow`]; `x` → extended attributes ([`Xattrs`](super::Xattrs)), `t` → latest recorded read (Max, ns); of directories `m` → latest change of the list of names (Max, ns), `n` → number of subdirectories (Add); of files `c<index>` → `Vec<Extent>`: no row is a hole or shows the blob under the file, an empty one is a hole |
//! | `g<ino>/` | ordered | of files with far chunks: number of a group of [`GROUP`] chunks, any of which may have a row → empty |
//! | `d<ino>/` | ordered | name → 8 bytes big-endian inode number, 1 byte type |
//! | `b<blob>` | plain | `a` → [`BlobRow`], `h<index>` → BLAKE3 of a chunk, `s<index>` → the chunk is in the bucket, `v` → the whole was verified |
//! | `l<ino>` | plain | `flock` → `Vec<Holder>`; `next` → [`Ticket`]: who gets it before others do |
//! | `held<session>/` | ordered | inode number → empty: where the session holds locks |
//! | `sessions/` | ordered | session → [`SessionRow`] |
//! | `dead/` | ordered | session → when it was declared dead; while what it held is being released |
//! | `staging/` | ordered | token → [`StagingRow`]: inodes that nobody can reach yet |
//! | `orphans/` | ordered | inode number → [`OrphanRow`] |
//! | `bin/` | ordered | inode number → [`BinRow`]: what users deleted and may restore; a file in it has no name and no orphan row |
//! | `trash/` | ordered | object → since when nobody refers to it (ns) |
//! | `shared/` | ordered | object → how many chunk rows refer to it beyond the first; absent = none |
//! | `journals/` | ordered | session → [`JournalRow`](super::JournalRow): its node holds data that is not in the bucket; its objects are not to be collected |
//! | `collected/` | ordered | session → when `hfmount gc` began to delete what it had uploaded and nobody had committed (ns): no mount goes on after it |
//! | `j<session>` | plain | inode number → the last entry of that session's journal that was committed (8 bytes big-endian) |
//! | `jobs` | plain | background job → when somebody last took it on (ns) |
//! | `tombstones/` | ordered | name in the root → when its tombstone runs out (ns) |
//! | `ids` | plain | `ino` → the last inode number given out; `run` → the server's incarnation when that was true |
//! | `v` | plain | `settings`, `schema`, `epoch`; `bytes`, `inodes` → what users made, as quotas count it (Add); `loading` while a dump is loaded |
//!
//! Rows are MessagePack arrays. A field is only ever appended, with a serde default, and raises [`SCHEMA`]
//! if older clients must not write the row any more.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::session::SessionInfo;
use crate::error::{Error, Kind, Result};
use crate::types::{BlobId, Commit, Extent, FileType, Ino, Origin, RepoId, SessionId, Timestamp, Version};

pub use keys::JOURNALS;
pub(super) use keys::*;

mod keys;

/// The layout that this binary writes.
///
/// 2: the rows of files have a [`Layout`], and chunk rows may share objects (`shared/`). Who does not know that would take
/// away what others still have. Such a client is refused once one that knows it has used the volume.
///
/// 3: in Redis, commits tell what they changed in a log. Who listens to the channel alone would not hear of it.
pub const SCHEMA: u32 = 3;

/// The longest name of an entry, bytes.
pub const NAME_MAX: usize = 255;

/// The longest target of a symlink, bytes.
pub const TARGET_MAX: usize = 4095;

/// The largest content that lies in an inode's row, bytes.
pub const INLINE_MAX: usize = 4096;

/// The most links that an inode may have.
pub const LINK_MAX: u32 = 65_536;

/// The most bytes that the values of an inode's extended attributes have together, and that their names have, each with
/// a byte for its end. The kernel passes on no more in one piece.
pub const XATTRS_MAX: usize = 64 << 10;

/// How many places of origin a blob's row remembers.
pub const ORIGINS_MAX: usize = 8;

/// What the layout demands of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaRow {
    /// The layout that the volume has.
    pub version: u32,
    /// The oldest [`SCHEMA`] that may use it.
    pub oldest: u32,
}

/// What a directory stands for. Set when it is made, moved with it, never derived from its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    Root,
    Repo(RepoId),
    /// `refs` (empty prefix) or a directory in it: `prefix` is `feature/` for `refs/feature`.
    Refs {
        repo: RepoId,
        prefix: String,
    },
    Snapshots(RepoId),
    /// The directory of a commit, or one within it.
    Snapshot {
        repo: RepoId,
        commit: Commit,
    },
    NoExist(RepoId),
    Trees(RepoId),
    Blobs(RepoId),
    /// Directories in it are 0777 and files 0666 whatever the umask. Inherited by mkdir.
    Locks,
    /// Directories in it are 0777 whatever the umask. Inherited by mkdir.
    SharedBlobs,
}

/// Where the bytes of an inode are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// No bytes: an empty file, or what is neither file nor symlink.
    None,
    /// At most [`INLINE_MAX`] bytes; shorter than the size means zeros behind.
    Inline(Bytes),
    /// Chunk rows of the inode.
    Extents,
    Blob(#[serde(with = "blob_bytes")] BlobId),
    /// The target.
    Symlink(Bytes),
}

/// The row of an inode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InodeRow {
    pub kind: FileType,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Belongs to nobody in particular: every mount presents it as owned by its own `--uid` and `--gid`.
    pub hub: bool,
    /// Of a private or gated repository: no rights for others.
    pub restricted: bool,
    /// Names of it. Unused for directories.
    pub nlink: u32,
    pub rdev: u32,
    pub size: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    /// Changes with the data, and with nothing else.
    pub version: Version,
    pub content: Content,
    pub role: Option<Role>,
    /// The directory that holds this directory; of other inodes the one that it was made in.
    pub parent: Ino,
    /// Somebody set the mode of a hub-owned inode: it is presented as it is, without the mount's umask.
    #[serde(default)]
    pub mode_set: bool,
    /// One more than the highest chunk index that may have a row.
    #[serde(default)]
    pub chunks: u64,
    /// The map has a field `x`.
    #[serde(default)]
    pub xattrs: bool,
    /// The Hub brought it and nobody has written to it: it counts neither as an inode nor with its bytes.
    #[serde(default)]
    pub uncounted: bool,
    #[serde(default)]
    pub layout: Layout,
    /// What the bytes of its chunk rows were found to be. Goes with the next change of the data.
    #[serde(default)]
    pub proven: Option<Proven>,
}

impl InodeRow {
    /// Bytes that the chunk rows give; `None` if nobody counted them.
    pub(super) fn data(&self) -> Option<u64> {
        if self.chunks == 0 { Some(0) } else { self.layout.data }
    }
}

/// The blob that has exactly the bytes of a file: all of them were held to its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proven(#[serde(with = "blob_bytes")] pub BlobId);

/// How the data of a file lies, beyond its chunk rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Bytes that the chunk rows give. `None`: a row of 0.1.0, which did not count them.
    pub data: Option<u64>,
    /// Chunks from [`FAR`] on that may have rows are named in the map `g<ino>/`.
    pub grouped: bool,
    /// What shows where a chunk has no row at all.
    pub under: Option<Under>,
}

/// The blob that a file began as a copy of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Under {
    #[serde(with = "blob_bytes")]
    pub blob: BlobId,
    /// Bytes of the blob.
    pub size: u64,
    /// So many of its first bytes are the file's.
    pub len: u64,
}

/// Chunks up to here are looked for one by one; those from here on in the list of groups. A file of 2^57 bytes may have
/// few chunks with rows.
pub const FAR: u64 = 4 * GROUP;

/// Chunks that share a place in the list of groups.
pub const GROUP: u64 = 1000;

/// What is known of a blob from the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BlobBase {
    pub size: u64,
    pub origins: Vec<Origin>,
    /// When somebody last said that a name would follow, give or take [`INTRODUCED_EVERY`]: what is old and has no name
    /// may be collected.
    #[serde(default)]
    pub introduced: Timestamp,
}

/// How far a blob's time of introduction may be behind, nanoseconds.
pub(super) const INTRODUCED_EVERY: i64 = 600_000_000_000;

impl BlobBase {
    /// Notes that it is introduced, now or again.
    pub(super) fn introduce(&mut self, now: Timestamp) {
        if now.0.saturating_sub(self.introduced.0) >= INTRODUCED_EVERY {
            self.introduced = now;
        }
    }
}

/// What a session says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SessionRow {
    pub host: String,
    pub pid: u32,
    pub mountpoint: String,
    pub started: Timestamp,
    pub version: String,
    pub read_only: bool,
    /// Sessions that this mount had before. What they wrote to the store may still be committed by this one.
    #[serde(default)]
    pub former: Vec<SessionId>,
}

impl SessionRow {
    pub fn new(info: &SessionInfo, former: &[SessionId]) -> Self {
        let SessionInfo { host, pid, mountpoint, started, version, read_only } = info.clone();
        SessionRow { host, pid, mountpoint, started, version, read_only, former: former.to_vec() }
    }

    pub fn split(self) -> (SessionInfo, Vec<SessionId>) {
        let SessionRow { host, pid, mountpoint, started, version, read_only, former } = self;
        (SessionInfo { host, pid, mountpoint, started, version, read_only }, former)
    }
}

/// One holder of a flock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    pub session: SessionId,
    pub owner: u64,
    pub exclusive: bool,
}

/// Who has waited for a flock for so long that all others let it go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ticket {
    pub session: SessionId,
    pub owner: u64,
    /// Changes while somebody stands behind it.
    pub turn: u64,
}

/// An inode without names that may still be open somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OrphanRow {
    pub since: Timestamp,
    pub held_until: Timestamp,
    /// The reaper has dropped the inode and is at its chunk rows, so many at most.
    #[serde(default)]
    pub reaping: Option<u64>,
    /// As the inode's row had it.
    #[serde(default)]
    pub grouped: bool,
}

/// Where something was that a user deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BinRow {
    pub parent: Ino,
    pub name: Bytes,
    pub kind: FileType,
    /// Of files, bytes.
    pub size: u64,
    pub deleted: Timestamp,
    pub until: Timestamp,
    /// Of what is no file: the inode is gone, and is made anew from this.
    pub row: Option<InodeRow>,
    /// A directory that is there again, under this number.
    pub became: Option<Ino>,
}

/// Inodes that a publication has written and that nothing refers to yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StagingRow {
    pub session: SessionId,
    pub since: Timestamp,
    /// Directories are written before their entries.
    pub first: Ino,
    pub count: u64,
    /// A directory that has entries and gets its row when it is published.
    pub root: Option<Ino>,
    /// They are being deleted: it is too late to publish them.
    #[serde(default)]
    pub dropping: bool,
}

/// Encodes a row.
pub(super) fn encode<T: Serialize>(row: &T) -> Result<Bytes> {
    rmp_serde::to_vec(row)
        .map(Bytes::from)
        .map_err(|e| Error::with_source(Kind::Internal, "encoding a metadata row", e))
}

/// Decodes a row; `what` names it for the error.
pub(super) fn decode<T: DeserializeOwned>(value: &[u8], what: impl FnOnce() -> String) -> Result<T> {
    rmp_serde::from_slice(value).map_err(|e| Error::with_source(Kind::Corrupt, what(), e))
}

/// A time as a plain number in a value.
pub(super) fn time_value(time: Timestamp) -> Bytes {
    Bytes::copy_from_slice(&time.0.to_be_bytes())
}

pub(super) fn value_time(value: &[u8]) -> Result<Timestamp> {
    <[u8; 8]>::try_from(value)
        .map(|b| Timestamp(i64::from_be_bytes(b)))
        .map_err(|e| Error::with_source(Kind::Corrupt, format!("time {value:?}"), e))
}

/// The value of a directory's entry.
pub(super) fn entry_value(ino: Ino, kind: FileType) -> Bytes {
    let mut value = [0; 9];
    value[..8].copy_from_slice(&ino.0.to_be_bytes());
    value[8] = match kind {
        FileType::File => 0,
        FileType::Dir => 1,
        FileType::Symlink => 2,
        FileType::Fifo => 3,
        FileType::Socket => 4,
        FileType::CharDevice => 5,
        FileType::BlockDevice => 6,
    };
    Bytes::copy_from_slice(&value)
}

/// What a directory's entry refers to.
pub(super) fn parse_entry(value: &[u8]) -> Result<(Ino, FileType)> {
    let bad = || Error::new(Kind::Corrupt, format!("directory entry {value:?}"));
    let (ino, kind) = value.split_at_checked(8).ok_or_else(bad)?;
    let kind = match kind {
        [0] => FileType::File,
        [1] => FileType::Dir,
        [2] => FileType::Symlink,
        [3] => FileType::Fifo,
        [4] => FileType::Socket,
        [5] => FileType::CharDevice,
        [6] => FileType::BlockDevice,
        _ => return Err(bad()),
    };
    Ok((field_ino(ino)?, kind))
}

pub(super) fn decode_row(ino: Ino, value: &[u8]) -> Result<InodeRow> {
    decode(value, || format!("row of inode {ino}"))
}

pub(super) fn decode_extents(ino: Ino, index: u64, value: Option<&Bytes>) -> Result<Option<Vec<Extent>>> {
    value.map(|v| decode(v, || format!("chunk {index} of inode {ino}"))).transpose()
}

/// A blob id as 32 or 20 plain bytes instead of an array of numbers.
mod blob_bytes {
    use serde::de::Error as _;
    use serde::{Deserializer, Serializer};

    use crate::types::BlobId;

    pub fn serialize<S: Serializer>(blob: &BlobId, s: S) -> Result<S::Ok, S::Error> {
        match blob {
            BlobId::Sha256(b) => s.serialize_bytes(b),
            BlobId::Git(b) => s.serialize_bytes(b),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<BlobId, D::Error> {
        let bytes: serde_bytes::ByteBuf = serde::Deserialize::deserialize(d)?;
        if let Ok(b) = <[u8; 32]>::try_from(bytes.as_slice()) {
            return Ok(BlobId::Sha256(b));
        }
        <[u8; 20]>::try_from(bytes.as_slice())
            .map(BlobId::Git)
            .map_err(|_| D::Error::custom("a blob id has 32 or 20 bytes"))
    }
}

#[cfg(test)]
mod tests;
