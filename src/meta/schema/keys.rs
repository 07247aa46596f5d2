//! Where the rows are: the names of maps, and of fields in them.

use bytes::Bytes;

use crate::error::{Error, Kind, Result};
use crate::meta::kv::{Key, inode_map, session_field};
use crate::types::{BlobId, Ino, ObjectId, SessionId};

/// The field of an inode's row in its map.
pub(in crate::meta) const ATTR: &[u8] = b"a";
/// Of a directory: when its list of names last changed.
pub(in crate::meta) const CHANGED: &[u8] = b"m";
/// Of a directory: how many directories are in it.
pub(in crate::meta) const SUBDIRS: &[u8] = b"n";
/// When it was last read, if that was recorded apart from the row.
pub(in crate::meta) const ACCESSED: &[u8] = b"t";
/// The fields that make an [`Attr`](super::Attr).
pub(in crate::meta) const ATTR_FIELDS: [Bytes; 4] = [
    Bytes::from_static(ATTR),
    Bytes::from_static(CHANGED),
    Bytes::from_static(SUBDIRS),
    Bytes::from_static(ACCESSED),
];

pub(in crate::meta) const ORPHANS: &str = "orphans/";
pub(in crate::meta) const TRASH: &str = "trash/";
pub(in crate::meta) const BIN: &str = "bin/";
pub(in crate::meta) const STAGING: &str = "staging/";
pub(in crate::meta) const TOMBSTONES: &str = "tombstones/";
pub(in crate::meta) const DEAD: &str = "dead/";
/// The ordered map of sessions with journals: field [`session_field`](super::kv::session_field), value a `JournalRow`.
pub const JOURNALS: &str = "journals/";
/// The ordered map of lost sessions whose uploads are garbage: field [`session_field`](super::kv::session_field).
pub(in crate::meta) const COLLECTED: &str = "collected/";
const VOLUME: &str = "v";

pub(in crate::meta) fn attr_key(ino: Ino) -> Key {
    Key::new(inode_map(ino.0), ATTR)
}

pub(in crate::meta) fn changed_key(dir: Ino) -> Key {
    Key::new(inode_map(dir.0), CHANGED)
}

pub(in crate::meta) fn subdirs_key(dir: Ino) -> Key {
    Key::new(inode_map(dir.0), SUBDIRS)
}

pub(in crate::meta) fn accessed_key(ino: Ino) -> Key {
    Key::new(inode_map(ino.0), ACCESSED)
}

pub(in crate::meta) fn xattrs_key(ino: Ino) -> Key {
    Key::new(inode_map(ino.0), &b"x"[..])
}

/// The keys of [`ATTR_FIELDS`].
pub(in crate::meta) fn attr_keys(ino: Ino) -> [Key; 4] {
    [attr_key(ino), changed_key(ino), subdirs_key(ino), accessed_key(ino)]
}

pub(in crate::meta) fn chunk_key(ino: Ino, index: u64) -> Key {
    Key::new(inode_map(ino.0), format!("c{index}"))
}

pub(in crate::meta) fn dir_map(dir: Ino) -> String {
    format!("d{dir}/")
}

pub(in crate::meta) fn entry_key(dir: Ino, name: &[u8]) -> Key {
    Key::new(dir_map(dir), Bytes::copy_from_slice(name))
}

pub(in crate::meta) fn blob_map(blob: BlobId) -> String {
    format!("b{blob}")
}

pub(in crate::meta) fn flock_key(ino: Ino) -> Key {
    Key::new(format!("l{ino}"), &b"flock"[..])
}

pub(in crate::meta) fn ticket_key(ino: Ino) -> Key {
    Key::new(format!("l{ino}"), &b"next"[..])
}

pub(in crate::meta) fn held_map(session: SessionId) -> String {
    format!("held{session}/")
}

pub(in crate::meta) fn journal_map(session: SessionId) -> String {
    format!("j{session}")
}

pub(in crate::meta) fn journal_key(session: SessionId, ino: Ino) -> Key {
    Key::new(journal_map(session), ino_field(ino))
}

pub(in crate::meta) fn ino_field(ino: Ino) -> Bytes {
    Bytes::copy_from_slice(&ino.0.to_be_bytes())
}

pub(in crate::meta) fn field_ino(field: &[u8]) -> Result<Ino> {
    <[u8; 8]>::try_from(field)
        .map(|b| Ino(u64::from_be_bytes(b)))
        .map_err(|e| Error::with_source(Kind::Corrupt, format!("inode number {field:?}"), e))
}

pub(in crate::meta) fn orphan_key(ino: Ino) -> Key {
    Key::new(ORPHANS, ino_field(ino))
}

pub(in crate::meta) fn bin_key(ino: Ino) -> Key {
    Key::new(BIN, ino_field(ino))
}

pub(in crate::meta) fn groups_map(ino: Ino) -> String {
    format!("g{ino}/")
}

pub(in crate::meta) fn group_key(ino: Ino, group: u64) -> Key {
    Key::new(groups_map(ino), Bytes::copy_from_slice(&group.to_be_bytes()))
}

pub(in crate::meta) fn trash_key(object: ObjectId) -> Key {
    Key::new(TRASH, object_field(object))
}

pub(in crate::meta) fn shared_key(object: ObjectId) -> Key {
    Key::new("shared/", object_field(object))
}

fn object_field(object: ObjectId) -> Bytes {
    let mut field = [0; 16];
    field[..8].copy_from_slice(&object.session.0.to_be_bytes());
    field[8..].copy_from_slice(&object.seq.to_be_bytes());
    Bytes::copy_from_slice(&field)
}

pub(in crate::meta) fn trash_object(field: &[u8]) -> Result<ObjectId> {
    let bad = || Error::new(Kind::Corrupt, format!("object {field:?} in the trash"));
    let number = |b: &[u8]| b.try_into().map(u64::from_be_bytes).map_err(|_| bad());
    match field.split_at_checked(8) {
        Some((session, seq)) => Ok(ObjectId { session: SessionId(number(session)?), seq: number(seq)? }),
        None => Err(bad()),
    }
}

pub(in crate::meta) fn collected_key(session: SessionId) -> Key {
    Key::new(COLLECTED, session_field(session))
}

pub(in crate::meta) fn tombstone_key(name: &[u8]) -> Key {
    Key::new(TOMBSTONES, Bytes::copy_from_slice(name))
}

pub(in crate::meta) fn last_ino_key() -> Key {
    Key::new("ids", &b"ino"[..])
}

pub(in crate::meta) fn run_key() -> Key {
    Key::new("ids", &b"run"[..])
}

pub(in crate::meta) fn settings_key() -> Key {
    Key::new(VOLUME, &b"settings"[..])
}

pub(in crate::meta) fn schema_key() -> Key {
    Key::new(VOLUME, &b"schema"[..])
}

/// A load of a dump is on, or broke off: this is no volume yet.
pub(in crate::meta) fn loading_key() -> Key {
    Key::new(VOLUME, &b"loading"[..])
}

pub(in crate::meta) fn bytes_key() -> Key {
    Key::new(VOLUME, &b"bytes"[..])
}

pub(in crate::meta) fn inodes_key() -> Key {
    Key::new(VOLUME, &b"inodes"[..])
}

pub(in crate::meta) fn job_key(job: &str) -> Key {
    Key::new("jobs", Bytes::copy_from_slice(job.as_bytes()))
}

/// Changes with every move of a directory to another directory.
pub(in crate::meta) fn epoch_key() -> Key {
    Key::new(VOLUME, &b"epoch"[..])
}
