//! Taking names away: unlink, rmdir. What is open stays as an orphan.

use super::attr::Attr;
use super::bin::Keep;
use super::kv::{Expect, Outcome, inode_map};
use super::lookup::Found;
use super::retry::{Tries, entry_words};
use super::schema::{self, Role};
use super::txn::{Build, usage};
use super::{Meta, check_name};
use crate::error::{Kind, Result, ResultExt};
use crate::types::{FileType, Ino, Timestamp};

/// What lost a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Afterwards: `nlink` 0 means that it has no name left. A regular file is then an orphan, the rest is gone.
    pub attr: Attr,
    /// It is in the bin: no orphan, and what is written to it by who has it open is kept with it.
    pub binned: bool,
}

impl Meta {
    /// Removes the name of what is no directory. [`Kind::NotFound`], [`Kind::IsDirectory`].
    ///
    /// A regular file that loses its last name stays as an orphan for two TTLs and as long as somebody calls
    /// [`Meta::hold_orphans`] for it.
    pub async fn unlink(&self, parent: Ino, name: &[u8]) -> Result<Removed> {
        self.remove(parent, name, false, Keep::No).await
    }

    /// As [`Meta::unlink`]; the bin may keep what it was the last name of.
    pub async fn unlink_keeping(&self, parent: Ino, name: &[u8], keep: Keep) -> Result<Removed> {
        self.remove(parent, name, false, keep).await
    }

    /// Removes an empty directory. [`Kind::NotFound`], [`Kind::NotDirectory`], [`Kind::NotEmpty`].
    ///
    /// A repository that is removed from the root leaves a tombstone ([`Meta::set_tombstone_ttl`]).
    pub async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<Removed> {
        self.remove(parent, name, true, Keep::No).await
    }

    /// As [`Meta::rmdir`]; the bin may keep what it was, for what lay in it.
    pub async fn rmdir_keeping(&self, parent: Ino, name: &[u8], keep: Keep) -> Result<Removed> {
        self.remove(parent, name, true, keep).await
    }

    async fn remove(&self, parent: Ino, name: &[u8], dir: bool, keep: Keep) -> Result<Removed> {
        check_name(name)?;
        let mut tries = Tries::new();
        loop {
            let removed = self.try_remove(parent, name, dir, keep, tries.fresh()).await;
            if let Some(removed) = removed.context(|| entry_words(parent, name))? {
                return Ok(removed);
            }
            tries.again().await.context(|| entry_words(parent, name))?;
        }
    }

    async fn try_remove(
        &self,
        parent: Ino,
        name: &[u8],
        dir: bool,
        keep: Keep,
        fresh: bool,
    ) -> Result<Option<Removed>> {
        let Some(found) = self.find_to_remove(parent, name, fresh).await? else {
            return Err(Kind::NotFound.into());
        };
        let is_dir = found.row.kind == FileType::Dir;
        if is_dir != dir {
            let kind = if is_dir { Kind::IsDirectory } else { Kind::NotDirectory };
            return if found.guessed { Ok(None) } else { Err(kind.into()) };
        }
        let now = Timestamp::now();
        let mut build = self.build();
        build.equals(schema::entry_key(parent, name), &found.entry);
        build.equals(schema::attr_key(found.ino), &found.raw);
        let empty = is_dir.then(|| build.expect(Expect::MapEmpty(schema::dir_map(found.ino))));
        build.del(schema::entry_key(parent, name));
        build.touch_dir(parent, now, if is_dir { -1 } else { 0 });
        build.entry_changed(parent, name);
        self.bury_repo(&mut build, parent, name, &found.row.role);
        let removed = self.drop_link(&mut build, &found, (parent, name), keep, now)?;
        match self.commit(build).await? {
            Outcome::Applied => {
                self.hints().learn_absent(parent, name);
                self.hints().forget_row(found.ino);
                Ok(Some(removed))
            }
            Outcome::Conflict(at) if Some(at) == empty => Err(Kind::NotEmpty.into()),
            _ => Ok(None),
        }
    }

    /// Writes that `found` has one name less, the one at `place`; the last may go into the bin. What is expected of its entry and
    /// its row is the caller's; of a directory also that it is empty.
    pub(super) fn drop_link(
        &self,
        build: &mut Build,
        found: &Found,
        place: (Ino, &[u8]),
        keep: Keep,
        now: Timestamp,
    ) -> Result<Removed> {
        let ino = found.ino;
        let mut row = found.row.clone();
        build.inode_changed(ino);
        row.ctime = now;
        let last = row.kind == FileType::Dir || row.nlink <= 1;
        row.nlink = if last { 0 } else { row.nlink - 1 };
        if last {
            build.add(schema::inodes_key(), if row.uncounted { 0 } else { -1 });
            build.add(schema::bytes_key(), -usage(&row));
        }
        let binned = last && self.put_in_bin(build, found, place, keep, now)?;
        if last && row.kind != FileType::File {
            build.del_map(inode_map(ino.0));
        } else {
            build.set_row(ino, &row)?;
        }
        if last && row.kind == FileType::File && !binned {
            build.set(schema::orphan_key(ino), schema::encode(&self.new_orphan())?);
        }
        let mut attr = Attr::new(ino, row, None, 0);
        attr.nlink = if last { 0 } else { attr.nlink };
        attr.mtime = found.attr.mtime;
        Ok(Removed { attr, binned })
    }

    /// A repository leaves its name in the root: it shall not come back by itself at once.
    pub(super) fn bury_repo(&self, build: &mut Build, parent: Ino, name: &[u8], role: &Option<Role>) {
        if parent == Ino::ROOT && matches!(role, Some(Role::Repo(_))) {
            let until = Timestamp(self.now().0.saturating_add_unsigned(self.tombstone_ttl_nanos()));
            build.set(schema::tombstone_key(name), schema::time_value(until));
        }
    }
}
