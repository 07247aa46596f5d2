//! Changing attributes that are not data.

use super::Meta;
use super::attr::{Attr, gone};
use super::kv::Outcome;
use super::make::SETGID;
use super::retry::Tries;
use super::schema::{self, InodeRow};
use crate::error::{Kind, Result, ResultExt};
use crate::types::{FileType, Ino, Timestamp};

/// Set-user-id.
const SETUID: u16 = 0o4000;
/// May be executed by the group.
const GROUP_EXEC: u16 = 0o010;

/// What to change; `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub atime: Option<Timestamp>,
    pub mtime: Option<Timestamp>,
}

/// What writing to a file or giving it away takes from its mode.
pub(super) fn clear_suid(row: &mut InodeRow) {
    row.mode &= !SETUID;
    if row.mode & GROUP_EXEC != 0 {
        row.mode &= !SETGID;
    }
}

impl Meta {
    /// Changes attributes, and with them ctime. The version, which names the data, stays. [`Kind::Stale`] if it is gone.
    ///
    /// A change of owner takes a file's set-user-id and set-group-id bits unless the mode is set with it, and makes
    /// a hub-owned inode an ordinary one. Setting the mode of a hub-owned inode leaves it hub-owned.
    pub async fn setattr(&self, ino: Ino, set: SetAttr) -> Result<Attr> {
        if set == SetAttr::default() {
            return self.getattr(ino).await;
        }
        let words = || format!("inode {ino}");
        let mut tries = Tries::new();
        loop {
            if let Some(attr) = self.try_setattr(ino, set, tries.fresh()).await? {
                return Ok(attr);
            }
            tries.again().await.context(words)?;
        }
    }

    async fn try_setattr(&self, ino: Ino, set: SetAttr, fresh: bool) -> Result<Option<Attr>> {
        let hint = if fresh { None } else { self.hints().row(ino) };
        let hint = hint.map(|raw| schema::decode_row(ino, &raw).map(|row| (raw, row))).transpose()?;
        // The hints do not know what a directory keeps beside its row. (Nor when a file was read last by the record: that
        // is shown when the attributes are next read.)
        let (raw, mut row, beside) = match hint.filter(|(_, row)| row.kind != FileType::Dir) {
            Some((raw, row)) => (raw, row, [None, None, None]),
            None => {
                let mut fields = self.kv().get(&schema::attr_keys(ino)).await?;
                let raw = fields[0].take().ok_or_else(|| gone(ino))?;
                let row = schema::decode_row(ino, &raw)?;
                (raw, row, [fields[1].take(), fields[2].take(), fields[3].take()])
            }
        };
        row.ctime = Timestamp::now();
        apply(&mut row, set);
        let mut build = self.build();
        build.equals(schema::attr_key(ino), &raw);
        let raw = build.set_row(ino, &row)?;
        let [mut changed, subdirs, mut accessed] = beside;
        if row.kind == FileType::Dir && set.mtime.is_some() {
            build.del(schema::changed_key(ino));
            changed = None;
        }
        if set.atime.is_some() {
            build.del(schema::accessed_key(ino));
            accessed = None;
        }
        build.inode_changed(ino);
        let is_dir = row.kind == FileType::Dir;
        let attr = Attr::from_fields(ino, &[Some(raw.clone()), changed, subdirs, accessed])?;
        match self.commit_making(build, attr.as_ref().filter(|_| !is_dir)).await? {
            Outcome::Applied => {
                self.hints().learn_row(ino, &raw);
                Ok(attr)
            }
            Outcome::Conflict(_) => {
                self.hints().forget_row(ino);
                Ok(None)
            }
            Outcome::Full => Err(Kind::NoSpace.into()),
        }
    }
}

fn apply(row: &mut InodeRow, set: SetAttr) {
    if set.uid.is_some() || set.gid.is_some() {
        row.hub = false;
        row.uid = set.uid.unwrap_or(row.uid);
        row.gid = set.gid.unwrap_or(row.gid);
        if row.kind == FileType::File {
            clear_suid(row);
        }
    }
    if let Some(mode) = set.mode {
        row.mode = mode & 0o7777;
        row.mode_set = row.hub;
    }
    row.atime = set.atime.unwrap_or(row.atime);
    row.mtime = set.mtime.unwrap_or(row.mtime);
}
