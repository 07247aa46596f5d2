//! Extended attributes: all of an inode in one value beside its row, which says whether there is one. Whose names may be
//! kept here, and who may see them, is for the layer above.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::Meta;
use super::attr::{Attr, gone};
use super::kv::Outcome;
use super::retry::Tries;
use super::schema::{self, InodeRow, XATTRS_MAX};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{Ino, Timestamp};

/// The longest name, bytes.
const NAME_MAX: usize = 255;

/// The extended attributes of an inode: names and values, in the order in which they were first set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xattrs(pub Vec<(Bytes, Bytes)>);

impl Xattrs {
    /// The value of a name.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&Bytes> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value)
    }

    fn set(&mut self, name: &[u8], value: &[u8]) {
        let value = Bytes::copy_from_slice(value);
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((Bytes::copy_from_slice(name), value)),
        }
    }

    fn fits(&self) -> bool {
        let values: usize = self.0.iter().map(|(_, value)| value.len()).sum();
        let names: usize = self.0.iter().map(|(name, _)| name.len() + 1).sum();
        values <= XATTRS_MAX && names <= XATTRS_MAX
    }
}

/// Whether the name must be new, or must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetXattr {
    Any,
    /// [`Kind::Exists`] if it is there.
    Create,
    /// [`Kind::NoData`] if it is not.
    Replace,
}

impl Meta {
    /// All extended attributes of an inode, in one round trip. [`Kind::Stale`] if it is gone.
    pub async fn xattrs(&self, ino: Ino) -> Result<Xattrs> {
        Ok(self.read_xattrs(ino).await?.2)
    }

    async fn read_xattrs(&self, ino: Ino) -> Result<(Bytes, InodeRow, Xattrs)> {
        let mut values = self.kv().get(&[schema::attr_key(ino), schema::xattrs_key(ino)]).await?;
        let raw = values[0].take().ok_or_else(|| gone(ino))?;
        let row = schema::decode_row(ino, &raw)?;
        let xattrs = match &values[1] {
            Some(value) => schema::decode(value, || format!("extended attributes of inode {ino}"))?,
            None => Xattrs::default(),
        };
        Ok((raw, row, xattrs))
    }

    /// Sets an extended attribute, and with it ctime. One round trip if the row was seen before and had none.
    ///
    /// [`Kind::NoSpace`] beyond [`XATTRS_MAX`], [`Kind::NameTooLong`], [`Kind::Stale`] if the inode is gone.
    pub async fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], how: SetXattr) -> Result<Attr> {
        if name.len() > NAME_MAX {
            return Err(Error::new(Kind::NameTooLong, "extended attribute"));
        }
        self.change_xattrs(ino, |xattrs| {
            match (xattrs.get(name), how) {
                (Some(_), SetXattr::Create) => return Err(Kind::Exists.into()),
                (None, SetXattr::Replace) => return Err(Kind::NoData.into()),
                _ => xattrs.set(name, value),
            }
            if xattrs.fits() { Ok(()) } else { Err(Error::new(Kind::NoSpace, "extended attributes")) }
        })
        .await
    }

    /// Takes an extended attribute away. [`Kind::NoData`] if it is not there.
    pub async fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<Attr> {
        self.change_xattrs(ino, |xattrs| {
            let at = xattrs.0.iter().position(|(n, _)| n == name).ok_or(Kind::NoData)?;
            xattrs.0.remove(at);
            Ok(())
        })
        .await
    }

    async fn change_xattrs(&self, ino: Ino, change: impl Fn(&mut Xattrs) -> Result<()>) -> Result<Attr> {
        let words = || format!("inode {ino}");
        let mut tries = Tries::new();
        loop {
            if let Some(attr) = self.try_change_xattrs(ino, &change, tries.fresh()).await.context(words)? {
                return Ok(attr);
            }
            tries.again().await.context(words)?;
        }
    }

    async fn try_change_xattrs(
        &self,
        ino: Ino,
        change: impl Fn(&mut Xattrs) -> Result<()>,
        fresh: bool,
    ) -> Result<Option<Attr>> {
        let hint = if fresh { None } else { self.hints().row(ino) };
        let hint = hint.map(|raw| schema::decode_row(ino, &raw).map(|row| (raw, row))).transpose()?;
        let (raw, mut row, mut xattrs, guessed) = match hint.filter(|(_, row)| !row.xattrs) {
            Some((raw, row)) => (raw, row, Xattrs::default(), true),
            None => {
                let (raw, row, xattrs) = self.read_xattrs(ino).await?;
                (raw, row, xattrs, false)
            }
        };
        match change(&mut xattrs) {
            Err(_) if guessed => return Ok(None),
            changed => changed?,
        }
        // Every change of them changes the row, so that to expect the row is to expect them.
        row.ctime = Timestamp::now().max(Timestamp(row.ctime.0.saturating_add(1)));
        row.xattrs = !xattrs.0.is_empty();
        let mut build = self.build();
        build.equals(schema::attr_key(ino), &raw);
        match row.xattrs {
            true => build.set(schema::xattrs_key(ino), schema::encode(&xattrs)?),
            false => build.del(schema::xattrs_key(ino)),
        }
        let raw = build.set_row(ino, &row)?;
        build.inode_changed(ino);
        match self.commit(build).await? {
            Outcome::Applied => {
                self.hints().learn_row(ino, &raw);
                Ok(Some(Attr::new(ino, row, None, 0)))
            }
            Outcome::Conflict(_) => {
                self.hints().forget_row(ino);
                Ok(None)
            }
            Outcome::Full => Err(Kind::NoSpace.into()),
        }
    }
}
