//! Getting things back from the bin: each thing in one transaction, with an event, so that all mounts see it at once.

use std::collections::HashMap;

use bytes::Bytes;

use super::paths::{Path, Paths, show};
use super::{Binned, Lost, Wanted};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::meta::attr::{Attr, gone};
use crate::meta::kv::{Expect, Outcome};
use crate::meta::make::New;
use crate::meta::retry::Tries;
use crate::meta::schema::{self, InodeRow};
use crate::meta::txn::usage;
use crate::meta::{Meta, check_name};
use crate::types::{FileType, Ino, Timestamp};

/// The mode of directories that nothing is known of.
const DIR_MODE: u16 = 0o755;

/// What became of one thing.
#[derive(Debug)]
pub struct Restored {
    pub lost: Lost,
    /// Where it is now, or was to be.
    pub to: Vec<Bytes>,
    /// [`Kind::Exists`]: something else is there now, and stays.
    pub result: Result<()>,
}

impl Restored {
    /// Where it is now, as text.
    #[must_use]
    pub fn shown(&self) -> String {
        show(&self.to)
    }
}

impl Meta {
    /// Restores what is wanted: of several things that had the same path the one deleted last. Each goes back to where
    /// it was, or with `to` (names from the root down), under its own name or that of the wanted tree, into that
    /// directory. Directories on the way are made as they were. Nothing that is there is ever replaced.
    ///
    /// Told to `each`, one by one; an error is of the engine, and what was told before is done. With `rehearsal` nothing is
    /// done, and what is told is how it would go. Memory grows with the number of things.
    pub async fn restore(
        &self,
        wanted: &Wanted,
        to: Option<&[Bytes]>,
        rehearsal: bool,
        mut each: impl FnMut(Restored),
    ) -> Result<()> {
        let mut paths = Paths::read(self).await?;
        let mut found = Vec::new();
        self.lost_by(&mut paths, wanted, &mut |lost| found.push(lost)).await?;
        if to.is_none() {
            let mut above: HashMap<Ino, Binned> = HashMap::new();
            for lost in found.iter().filter(|lost| !lost.adrift) {
                above.extend(paths.dead_above(&lost.item).into_iter().map(|dir| (dir.ino, dir)));
            }
            for lost in &found {
                above.remove(&lost.item.ino);
            }
            for item in above.into_values() {
                found.push(paths.of(item).await?);
            }
        }
        // What was deleted last comes first; directories come before what is in them.
        found.sort_by(|a, b| a.path.cmp(&b.path).then(b.item.id.cmp(&a.item.id)));
        found.dedup_by(|later, first| later.path == first.path);
        let mut dirs = Dirs { meta: self, rehearsal, known: HashMap::from([(Vec::new(), Some(Ino::ROOT))]) };
        for lost in found {
            let target = match to {
                Some(to) => {
                    to.iter().chain(&lost.path[wanted.above(lost.item.ino, &lost.path)..]).cloned().collect()
                }
                None => lost.path.clone(),
            };
            let result = dirs.put(&lost, &target, to.is_none()).await;
            match result {
                Err(e) if e.kind().is_transient() || e.kind() == Kind::Fenced => return Err(e),
                result => each(Restored { lost, to: target, result }),
            }
        }
        Ok(())
    }

    /// Gives a file or link of the bin a name again, or makes a directory as it was. [`Kind::Exists`] if there is the
    /// name, [`Kind::NotFound`] if it is not in the bin any more, [`Kind::Stale`] if the directory is gone, [`Kind::NoSpace`]
    /// if the quota has no room for it.
    pub async fn unbin(&self, item: &Binned, parent: Ino, name: &[u8]) -> Result<Attr> {
        check_name(name)?;
        let ino = if item.row.is_some() { self.alloc_ino().await? } else { item.ino };
        let mut tries = Tries::new();
        loop {
            if let Some(attr) = self.try_unbin(item, ino, parent, name).await? {
                return Ok(attr);
            }
            tries.again().await?;
        }
    }

    async fn try_unbin(&self, item: &Binned, ino: Ino, parent: Ino, name: &[u8]) -> Result<Option<Attr>> {
        let (parent_raw, _) = self.dir_row(parent, true).await?;
        let now = Timestamp::now();
        let mut build = self.build();
        let binned = build.equals(schema::bin_key(item.ino), &item.raw);
        let taken = build.expect(Expect::Absent(schema::entry_key(parent, name)));
        build.equals(schema::attr_key(parent), &parent_raw);
        let row = match &item.row {
            // The number is not used again: a kernel may remember what it was.
            Some(row) => {
                build.expect(Expect::Absent(schema::attr_key(ino)));
                InodeRow {
                    nlink: 1,
                    ctime: now,
                    parent,
                    version: self.next_version(),
                    xattrs: false,
                    uncounted: false,
                    ..row.clone()
                }
            }
            None => {
                let raw = self.kv().get(&[schema::attr_key(ino)]).await?.pop().flatten();
                let raw = raw.ok_or_else(|| gone(ino))?;
                build.equals(schema::attr_key(ino), &raw);
                let row = schema::decode_row(ino, &raw)?;
                InodeRow { nlink: 1, ctime: now, uncounted: false, ..row }
            }
        };
        let is_dir = row.kind == FileType::Dir;
        if is_dir {
            // What lay in it finds it by this.
            let row = schema::BinRow { became: Some(ino), ..item.bin_row() };
            build.set(schema::bin_key(item.ino), schema::encode(&row)?);
        } else {
            build.del(schema::bin_key(item.ino));
        }
        build.set(schema::entry_key(parent, name), schema::entry_value(ino, row.kind));
        build.set_row(ino, &row)?;
        build.touch_dir(parent, now, i64::from(is_dir));
        if is_dir && parent == Ino::ROOT {
            build.del(schema::tombstone_key(name));
        }
        build.add_within(schema::inodes_key(), 1, self.inodes_bound());
        build.add_within(schema::bytes_key(), usage(&row), self.bytes_bound());
        build.entry_changed(parent, name);
        build.inode_changed(ino);
        match self.commit(build).await? {
            Outcome::Applied => {
                self.hints().forget_row(ino);
                self.hints().forget_entry(parent, name);
                Ok(Some(Attr::new(ino, row, None, 0)))
            }
            Outcome::Conflict(at) if at == taken => Err(Kind::Exists.into()),
            Outcome::Conflict(at) if at == binned => {
                Err(Error::new(Kind::NotFound, "it is not in the bin any more"))
            }
            Outcome::Conflict(_) => Ok(None),
            Outcome::Full => Err(Error::new(Kind::NoSpace, "the volume's capacity or inodes")),
        }
    }

    /// A directory of the bin is there again as `dir`: what lay in it is found there from now on.
    async fn adopt(&self, item: &Binned, dir: Ino) -> Result<()> {
        let mut build = self.build();
        build.equals(schema::bin_key(item.ino), &item.raw);
        let row = schema::BinRow { became: Some(dir), ..item.bin_row() };
        build.set(schema::bin_key(item.ino), schema::encode(&row)?);
        // A conflict means that somebody else has done it, or that it is gone.
        let _ = self.commit(build).await?;
        Ok(())
    }
}

/// The directories that things go into.
struct Dirs<'a> {
    meta: &'a Meta,
    rehearsal: bool,
    /// `None`: it would have been made.
    known: HashMap<Path, Option<Ino>>,
}

impl Dirs<'_> {
    async fn put(&mut self, lost: &Lost, target: &[Bytes], home: bool) -> Result<()> {
        if home && lost.adrift {
            return Err(Error::new(Kind::NotFound, "nobody knows where it was: say where to with --to"));
        }
        let Some((name, above)) = target.split_last() else { return Err(Kind::Invalid.into()) };
        let is_dir = lost.item.kind == FileType::Dir;
        let made = match self.dir(above).await? {
            None => None,
            Some(parent) => {
                let done = if self.rehearsal {
                    let there = self.meta.lookup(parent, name).await?;
                    if there.is_some() { Err(Kind::Exists.into()) } else { Ok(None) }
                } else {
                    self.meta.unbin(&lost.item, parent, name).await.map(|attr| Some(attr.ino))
                };
                match done {
                    Err(e) if is_dir && e.kind() == Kind::Exists => {
                        let there = self.meta.lookup(parent, name).await?;
                        let Some(there) = there.filter(|t| t.kind == FileType::Dir) else { return Err(e) };
                        if home && !self.rehearsal {
                            self.meta.adopt(&lost.item, there.ino).await?;
                        }
                        Some(there.ino)
                    }
                    done => done?,
                }
            }
        };
        if is_dir {
            self.known.insert(target.to_vec(), made);
        }
        Ok(())
    }

    /// The directory at a path, made with all above it if need be; none if it would have to be made.
    async fn dir(&mut self, path: &[Bytes]) -> Result<Option<Ino>> {
        let mut depth = path.len();
        while !self.known.contains_key(&path[..depth]) {
            depth -= 1;
        }
        let mut at = self.known[&path[..depth]];
        for (n, name) in path.iter().enumerate().skip(depth) {
            if let Some(above) = at {
                let words = || format!("directory {}", show(&path[..=n]));
                at = self.enter(above, name).await.context(words)?;
            }
            self.known.insert(path[..=n].to_vec(), at);
        }
        Ok(at)
    }

    async fn enter(&self, above: Ino, name: &[u8]) -> Result<Option<Ino>> {
        loop {
            match self.meta.lookup(above, name).await? {
                Some(attr) if attr.kind == FileType::Dir => return Ok(Some(attr.ino)),
                Some(_) => return Err(Error::new(Kind::NotDirectory, "something else has its name")),
                None if self.rehearsal => return Ok(None),
                None => {}
            }
            match self.meta.make(above, name, New::plain(FileType::Dir, DIR_MODE, 0, 0)).await {
                Ok(attr) => return Ok(Some(attr.ino)),
                Err(e) if e.kind() == Kind::Exists => {}
                Err(e) => return Err(e),
            }
        }
    }
}
