//! Hard links.

use bytes::Bytes;

use super::attr::{Attr, gone};
use super::kv::{Expect, Outcome};
use super::retry::{Tries, entry_words};
use super::schema::{self, LINK_MAX};
use super::{Meta, check_name};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{FileType, Ino, Timestamp};

impl Meta {
    /// Gives an inode another name. [`Kind::NotPermitted`] for directories, [`Kind::Exists`], [`Kind::NotFound`] for an
    /// inode that has no name any more, [`Kind::TooManyLinks`], [`Kind::Stale`] if the inode or the parent is gone.
    pub async fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        let mut tries = Tries::new();
        loop {
            let linked = self.try_link(ino, parent, name, tries.fresh()).await;
            if let Some(attr) = linked.context(|| entry_words(parent, name))? {
                return Ok(attr);
            }
            tries.again().await.context(|| entry_words(parent, name))?;
        }
    }

    async fn try_link(&self, ino: Ino, parent: Ino, name: &[u8], fresh: bool) -> Result<Option<Attr>> {
        let (parent, (parent_raw, _)) = (parent, self.dir_row(parent, fresh).await?);
        let (raw, guessed) = self.raw_row(ino, fresh).await?;
        let mut row = schema::decode_row(ino, &raw)?;
        let objection = if row.kind == FileType::Dir {
            Some(Kind::NotPermitted)
        } else if row.nlink == 0 {
            Some(Kind::NotFound)
        } else if row.nlink >= LINK_MAX {
            Some(Kind::TooManyLinks)
        } else {
            None
        };
        if let Some(kind) = objection {
            return if guessed { Ok(None) } else { Err(Error::new(kind, format!("inode {ino}"))) };
        }
        row.nlink += 1;
        row.ctime = Timestamp::now();
        let entry = schema::entry_value(ino, row.kind);
        let mut build = self.build();
        build.equals(schema::attr_key(parent), &parent_raw);
        build.equals(schema::attr_key(ino), &raw);
        let taken = build.expect(Expect::Absent(schema::entry_key(parent, name)));
        build.set(schema::entry_key(parent, name), entry.clone());
        let raw = build.set_row(ino, &row)?;
        build.touch_dir(parent, row.ctime, 0);
        build.entry_changed(parent, name);
        build.inode_changed(ino);
        let attr = Attr::new(ino, row, None, 0);
        match self.commit_making(build, Some(&attr)).await? {
            Outcome::Applied => {
                self.hints().learn_entry(parent, name, &entry);
                self.hints().learn_row(ino, &raw);
                Ok(Some(attr))
            }
            Outcome::Conflict(at) if at == taken => Err(Kind::Exists.into()),
            Outcome::Conflict(_) => Ok(None),
            Outcome::Full => Err(Kind::NoSpace.into()),
        }
    }

    /// The row of an inode as it lies in the metadata, and whether it is a guess. [`Kind::Stale`] if it is gone.
    pub(super) async fn raw_row(&self, ino: Ino, fresh: bool) -> Result<(Bytes, bool)> {
        if !fresh && let Some(raw) = self.hints().row(ino) {
            return Ok((raw, true));
        }
        let raw = self.kv().get(&[schema::attr_key(ino)]).await?.pop().flatten();
        match raw {
            Some(raw) => {
                self.hints().learn_row(ino, &raw);
                Ok((raw, false))
            }
            None => {
                self.hints().forget_row(ino);
                Err(gone(ino))
            }
        }
    }
}
