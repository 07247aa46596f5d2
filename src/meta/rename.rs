//! Renaming, in all its modes, as one transaction.

use super::attr::Attr;
use super::bin::Keep;
use super::kv::{Expect, Outcome};
use super::lookup::Found;
use super::retry::{Tries, entry_words};
use super::schema::{self, InodeRow};
use super::txn::Build;
use super::unlink::Removed;
use super::{Meta, check_name};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{FileType, Ino, Timestamp};

/// Deeper trees than this cannot have a directory moved into them. A path has at most 4,096 bytes.
const DEEPEST: u32 = 4096;

/// What happens to what has the new name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// It is replaced, atomically.
    Replace,
    /// [`Kind::Exists`].
    NoReplace,
    /// It gets the old name, atomically.
    Exchange,
}

/// What a rename did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// What has the new name now.
    pub moved: Attr,
    /// What had it before, if it lost it for good. With [`RenameMode::Exchange`] nothing does.
    pub replaced: Option<Removed>,
}

/// The two places.
#[derive(Clone, Copy)]
struct Places<'a> {
    from: Ino,
    name: &'a [u8],
    to: Ino,
    new_name: &'a [u8],
}

impl Meta {
    /// Moves the entry `name` of `from` to `new_name` of `to`.
    ///
    /// [`Kind::NotFound`] without the old name (or, to exchange, the new one), [`Kind::Exists`], [`Kind::NotEmpty`],
    /// [`Kind::IsDirectory`] and [`Kind::NotDirectory`] as rename(2), [`Kind::Invalid`] for a directory into itself,
    /// [`Kind::Stale`] if `to` is gone. Two names of one inode: nothing happens.
    pub async fn rename(
        &self,
        from: Ino,
        name: &[u8],
        to: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<Renamed> {
        self.rename_keeping(from, name, to, new_name, mode, Keep::No).await
    }

    /// As [`Meta::rename`]; the bin may keep what loses its last name by it.
    pub async fn rename_keeping(
        &self,
        from: Ino,
        name: &[u8],
        to: Ino,
        new_name: &[u8],
        mode: RenameMode,
        keep: Keep,
    ) -> Result<Renamed> {
        check_name(name)?;
        check_name(new_name)?;
        let places = Places { from, name, to, new_name };
        let words = || format!("{} to {}", entry_words(from, name), entry_words(to, new_name));
        let mut tries = Tries::new();
        loop {
            if let Some(done) = self.try_rename(places, mode, keep, tries.fresh()).await.context(words)? {
                return Ok(done);
            }
            tries.again().await.context(words)?;
        }
    }

    async fn try_rename(
        &self,
        places: Places<'_>,
        mode: RenameMode,
        keep: Keep,
        fresh: bool,
    ) -> Result<Option<Renamed>> {
        let Places { from, name, to, new_name } = places;
        // The kernel looked for the new name just now; that it is absent is expected below.
        let vacant = !fresh && self.hints().is_absent(to, new_name);
        let look = async || if vacant { Ok(None) } else { self.find(to, new_name, fresh).await };
        let (source, target, (to_raw, _)) =
            futures::try_join!(self.find(from, name, fresh), look(), self.dir_row(to, fresh))?;
        let Some(source) = source else { return Err(Kind::NotFound.into()) };
        let guessed = vacant || source.guessed || target.as_ref().is_some_and(|t| t.guessed);
        match objection(&source.row, target.as_ref().map(|t| &t.row), mode) {
            Some(_) if guessed => return Ok(None),
            Some(kind) => return Err(kind.into()),
            None => {}
        }
        if target.as_ref().is_some_and(|t| t.ino == source.ino) {
            let same = Renamed { moved: source.attr.clone(), replaced: None };
            return Ok((!guessed).then_some(same));
        }

        let now = Timestamp::now();
        let mut build = self.build();
        build.equals(schema::attr_key(to), &to_raw);
        build.equals(schema::entry_key(from, name), &source.entry);
        build.equals(schema::attr_key(source.ino), &source.raw);
        let target_key = schema::entry_key(to, new_name);
        match &target {
            Some(target) => {
                build.equals(target_key.clone(), &target.entry);
                build.equals(schema::attr_key(target.ino), &target.raw);
            }
            None => {
                build.expect(Expect::Absent(target_key.clone()));
            }
        }
        let back = (mode == RenameMode::Exchange).then_some(target.as_ref()).flatten();
        self.guard_against_cycles(&mut build, places, &source, back).await?;

        build.set(target_key, source.entry.clone());
        let moved = move_inode(&mut build, &source, to, now)?;
        let mut subdirs = [0, 0];
        if source.row.kind == FileType::Dir {
            subdirs[0] -= 1;
            subdirs[1] += 1;
        }
        if mode != RenameMode::Exchange {
            self.bury_repo(&mut build, from, name, &source.row.role);
            if source.row.kind == FileType::Dir && to == Ino::ROOT {
                build.del(schema::tombstone_key(new_name));
            }
        }
        let mut empty = None;
        let mut replaced = None;
        match (&target, mode) {
            (Some(target), RenameMode::Exchange) => {
                build.set(schema::entry_key(from, name), target.entry.clone());
                move_inode(&mut build, target, from, now)?;
                if target.row.kind == FileType::Dir {
                    subdirs[0] += 1;
                    subdirs[1] -= 1;
                }
            }
            (Some(target), _) => {
                build.del(schema::entry_key(from, name));
                if target.row.kind == FileType::Dir {
                    subdirs[1] -= 1;
                    empty = Some(build.expect(Expect::MapEmpty(schema::dir_map(target.ino))));
                }
                replaced = Some(self.drop_link(&mut build, target, (to, new_name), keep, now)?);
            }
            (None, _) => build.del(schema::entry_key(from, name)),
        }
        if from == to {
            build.touch_dir(from, now, subdirs[0] + subdirs[1]);
        } else {
            build.touch_dir(from, now, subdirs[0]);
            build.touch_dir(to, now, subdirs[1]);
        }
        build.entry_changed(from, name);
        build.entry_changed(to, new_name);

        match self.commit(build).await? {
            Outcome::Applied => {
                self.learn_rename(places, &source, target.as_ref(), mode);
                Ok(Some(Renamed { moved, replaced }))
            }
            Outcome::Conflict(at) if Some(at) == empty => Err(Kind::NotEmpty.into()),
            _ => Ok(None),
        }
    }

    fn learn_rename(&self, places: Places<'_>, source: &Found, target: Option<&Found>, mode: RenameMode) {
        let Places { from, name, to, new_name } = places;
        self.hints().learn_entry(to, new_name, &source.entry);
        self.hints().forget_row(source.ino);
        match target {
            Some(target) if mode == RenameMode::Exchange => {
                self.hints().learn_entry(from, name, &target.entry);
            }
            _ => self.hints().learn_absent(from, name),
        }
        if let Some(target) = target {
            self.hints().forget_row(target.ino);
        }
    }

    /// A directory that changes its parent must not come to lie in itself. Every such move changes the volume's
    /// epoch and expects it unchanged since before the ancestors were read, so that of two moves that together
    /// would make a cycle one has to look again.
    async fn guard_against_cycles(
        &self,
        build: &mut Build,
        places: Places<'_>,
        source: &Found,
        back: Option<&Found>,
    ) -> Result<()> {
        let is_dir = |f: &&Found| f.row.kind == FileType::Dir;
        let moves = [Some((source, places.to)), back.map(|f| (f, places.from))];
        if places.from == places.to || !moves.iter().flatten().any(|(f, _)| is_dir(f)) {
            return Ok(());
        }
        let epoch = self.kv().get(&[schema::epoch_key()]).await?.pop().flatten();
        for (moving, into) in moves.into_iter().flatten().filter(|(f, _)| is_dir(f)) {
            self.check_not_below(moving.ino, into).await?;
        }
        build.expect(match epoch {
            Some(value) => Expect::Equals(schema::epoch_key(), value),
            None => Expect::Absent(schema::epoch_key()),
        });
        build.add(schema::epoch_key(), 1);
        Ok(())
    }

    /// [`Kind::Invalid`] if `dir` is `ancestor` or lies in it.
    async fn check_not_below(&self, ancestor: Ino, dir: Ino) -> Result<()> {
        let mut at = dir;
        for _ in 0..DEEPEST {
            if at == ancestor {
                return Err(Error::new(Kind::Invalid, "a directory into itself"));
            }
            if at == Ino::ROOT {
                return Ok(());
            }
            at = self.dir_row(at, true).await?.1.parent;
        }
        Err(Error::new(Kind::NameTooLong, "a path of thousands of directories"))
    }
}

/// Why the rename may not be, whatever else goes on.
fn objection(source: &InodeRow, target: Option<&InodeRow>, mode: RenameMode) -> Option<Kind> {
    let is_dir = |row: &InodeRow| row.kind == FileType::Dir;
    match (target, mode) {
        (Some(_), RenameMode::NoReplace) => Some(Kind::Exists),
        (None, RenameMode::Exchange) => Some(Kind::NotFound),
        (Some(target), RenameMode::Replace) if is_dir(target) && !is_dir(source) => Some(Kind::IsDirectory),
        (Some(target), RenameMode::Replace) if !is_dir(target) && is_dir(source) => Some(Kind::NotDirectory),
        _ => None,
    }
}

/// Writes that an inode lies in `dir` now.
fn move_inode(build: &mut Build, found: &Found, dir: Ino, now: Timestamp) -> Result<Attr> {
    let mut row = found.row.clone();
    row.ctime = now;
    if row.kind == FileType::Dir {
        row.parent = dir;
    }
    build.set_row(found.ino, &row)?;
    build.inode_changed(found.ino);
    let mut attr = found.attr.clone();
    attr.ctime = attr.ctime.max(now);
    attr.parent = row.parent;
    Ok(attr)
}
