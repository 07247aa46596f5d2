//! Reading names.

use std::time::Duration;

use bytes::Bytes;

use super::Meta;
use super::attr::{Attr, gone};
use super::check_name;
use super::retry::entry_words;
use super::schema::{self, ATTR_FIELDS, InodeRow};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{FileType, Ino};

/// An entry of a directory, as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its place in the listing: above 0, kept while the entry exists. A listing goes on after it.
    pub id: u64,
    pub name: Bytes,
    pub ino: Ino,
    pub kind: FileType,
}

/// An entry with its inode, as read or as guessed from hints.
pub(super) struct Found {
    pub ino: Ino,
    /// The entry's value and the inode's row, as they lie in the metadata.
    pub entry: Bytes,
    pub raw: Bytes,
    pub row: InodeRow,
    pub attr: Attr,
    /// From hints: what follows from it must be confirmed.
    pub guessed: bool,
}

impl Meta {
    /// What the name refers to, in one round trip; `None` if the directory has no such name (or is gone).
    pub async fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Attr>> {
        check_name(name)?;
        Ok(self.find(parent, name, true).await?.map(|found| found.attr))
    }

    /// Up to `limit` entries of a directory after the one with the id `after` (0: from the start), without `.` and `..`.
    /// Fewer than `limit` means that there are no more.
    pub async fn readdir(&self, dir: Ino, after: u64, limit: usize) -> Result<Vec<DirEntry>> {
        let entries = self.kv().scan(&schema::dir_map(dir), after, limit).await?;
        let decode = |e: super::kv::Entry| {
            let (ino, kind) = schema::parse_entry(&e.value).context(|| entry_words(dir, &e.field))?;
            Ok(DirEntry { id: e.id, name: e.field, ino, kind })
        };
        entries.into_iter().map(decode).collect()
    }

    /// An entry with its inode. Unless `fresh`, it may come from hints: of what is no directory, since the hints do
    /// not know how many subdirectories there are. `None` is never a guess.
    pub(super) async fn find(&self, parent: Ino, name: &[u8], fresh: bool) -> Result<Option<Found>> {
        let guess = if fresh { None } else { self.guess(parent, name)? };
        match guess.filter(|found| found.row.kind != FileType::Dir) {
            Some(found) => Ok(Some(found)),
            None => self.read_entry(parent, name).await,
        }
    }

    /// The same for who removes it: a directory's attributes may lack how many subdirectories there are.
    pub(super) async fn find_to_remove(
        &self,
        parent: Ino,
        name: &[u8],
        fresh: bool,
    ) -> Result<Option<Found>> {
        match if fresh { None } else { self.guess(parent, name)? } {
            Some(found) => Ok(Some(found)),
            None => self.read_entry(parent, name).await,
        }
    }

    async fn read_entry(&self, parent: Ino, name: &[u8]) -> Result<Option<Found>> {
        let key = schema::entry_key(parent, name);
        let ticket = self.0.recent.ticket();
        let Some(followed) = self.kv().follow(&key, &ATTR_FIELDS).await? else {
            self.hints().learn_absent(parent, name);
            return Ok(None);
        };
        let words = || entry_words(parent, name);
        let (ino, _) = schema::parse_entry(&followed.value).context(words)?;
        let (Some(attr), Some(Some(raw))) =
            (Attr::from_fields(ino, &followed.fields)?, followed.fields.first())
        else {
            return Err(Error::new(Kind::Corrupt, format!("inode {ino} has no row")).context(words()));
        };
        self.0.recent.learn(ticket, &attr);
        self.hints().learn_entry(parent, name, &followed.value);
        self.hints().learn_row(ino, raw);
        let row = schema::decode_row(ino, raw)?;
        Ok(Some(Found { ino, entry: followed.value, raw: raw.clone(), row, attr, guessed: false }))
    }

    fn guess(&self, parent: Ino, name: &[u8]) -> Result<Option<Found>> {
        let Some(entry) = self.hints().entry(parent, name) else { return Ok(None) };
        let (ino, _) = schema::parse_entry(&entry)?;
        let Some(raw) = self.hints().row(ino) else { return Ok(None) };
        let row = schema::decode_row(ino, &raw)?;
        let mut attr = Attr::new(ino, row.clone(), None, 0);
        if row.kind == FileType::Dir {
            // When names in it last changed, its row does not say.
            let Some((recent, _)) = self.recent(ino, Duration::MAX) else { return Ok(None) };
            attr.mtime = attr.mtime.max(recent.mtime);
        }
        Ok(Some(Found { ino, entry, raw, row, attr, guessed: true }))
    }

    /// The row of a directory that is about to get an entry. [`Kind::Stale`] if it is gone.
    pub(super) async fn dir_row(&self, dir: Ino, fresh: bool) -> Result<(Bytes, InodeRow)> {
        let hint = if fresh { None } else { self.hints().row(dir) };
        let raw = match hint {
            Some(raw) => raw,
            None => {
                let raw = self.kv().get(&[schema::attr_key(dir)]).await?.pop().flatten();
                let raw = raw.ok_or_else(|| gone(dir))?;
                self.hints().learn_row(dir, &raw);
                raw
            }
        };
        let row = schema::decode_row(dir, &raw)?;
        if row.kind != FileType::Dir {
            return Err(Error::new(Kind::NotDirectory, format!("inode {dir}")));
        }
        Ok((raw, row))
    }
}
