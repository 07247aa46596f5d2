//! Where deleted things were, as paths. A row of the bin knows its directory by number; a directory that is gone has a row
//! of its own, one that is there is found by looking for its number in the directory above.

use std::collections::HashMap;

use bytes::Bytes;

use super::Binned;
use crate::error::Result;
use crate::meta::Meta;
use crate::meta::schema;
use crate::types::{FileType, Ino, Timestamp};

/// Deeper than any path.
const DEEPEST: usize = 4096;
const ENTRIES: usize = 1000;

/// Names from the root down.
pub(super) type Path = Vec<Bytes>;

/// What to look for in the bin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Paths, as names from the volume's root down; what lies under them is meant too. None: everything.
    pub under: Vec<Vec<Bytes>>,
    /// Deleted then or later.
    pub since: Option<Timestamp>,
    /// Deleted before then.
    pub before: Option<Timestamp>,
}

impl Wanted {
    fn is(&self, item: &Binned) -> bool {
        item.became.is_none()
            && self.since.is_none_or(|since| item.deleted >= since)
            && self.before.is_none_or(|before| item.deleted < before)
    }

    fn is_under(&self, path: &[Bytes]) -> bool {
        self.under.is_empty() || self.under.iter().any(|under| path.starts_with(under))
    }
}

/// Something in the bin, and where it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Names from the root down. Of what lay in a directory that nothing is known of any more the first is `?<number>`.
    pub path: Vec<Bytes>,
    pub item: Binned,
}

impl Lost {
    /// The path as text.
    #[must_use]
    pub fn shown(&self) -> String {
        show(&self.path)
    }

    /// Nobody knows where its directory was.
    #[must_use]
    pub fn is_adrift(&self) -> bool {
        self.path[0].starts_with(b"?")
    }
}

pub(super) fn show(path: &[Bytes]) -> String {
    path.iter().map(|name| String::from_utf8_lossy(name)).collect::<Vec<_>>().join("/")
}

/// Knows the directories of the bin: memory grows with their number.
pub(super) struct Paths<'a> {
    meta: &'a Meta,
    dead: HashMap<Ino, Binned>,
    /// Of directories that are there: where they are, if they are.
    alive: HashMap<Ino, Option<(Ino, Bytes)>>,
}

impl<'a> Paths<'a> {
    pub async fn read(meta: &'a Meta) -> Result<Self> {
        let mut dead = HashMap::new();
        let mut after = 0;
        loop {
            let page = meta.binned(after).await?;
            let Some(last) = page.last() else { break };
            after = last.id;
            dead.extend(page.into_iter().filter(|i| i.kind == FileType::Dir).map(|i| (i.ino, i)));
        }
        Ok(Paths { meta, dead, alive: HashMap::new() })
    }

    /// Where an item was.
    pub async fn of(&mut self, item: &Binned) -> Result<Path> {
        let mut names = vec![item.name.clone()];
        let mut dir = item.parent;
        while dir != Ino::ROOT && names.len() < DEEPEST {
            dir = match self.dead.get(&dir).map(|dead| (dead.became, dead.parent, &dead.name)) {
                Some((Some(became), ..)) => became,
                Some((None, parent, name)) => {
                    names.push(name.clone());
                    parent
                }
                None => match self.place(dir).await? {
                    Some((parent, name)) => {
                        names.push(name);
                        parent
                    }
                    None => {
                        names.push(Bytes::from(format!("?{dir}")));
                        break;
                    }
                },
            };
        }
        names.reverse();
        Ok(names)
    }

    /// The rows of the directories that are gone and that the item lay in.
    pub fn dead_above(&self, item: &Binned) -> Vec<Binned> {
        let mut above = Vec::new();
        let mut dir = item.parent;
        while let Some(dead) = self.dead.get(&dir)
            && dead.became.is_none()
            && above.len() < DEEPEST
        {
            above.push(dead.clone());
            dir = dead.parent;
        }
        above
    }

    /// The directory above one that is there, and its name in it.
    async fn place(&mut self, dir: Ino) -> Result<Option<(Ino, Bytes)>> {
        if let Some(known) = self.alive.get(&dir) {
            return Ok(known.clone());
        }
        let found = self.look(dir).await?;
        self.alive.insert(dir, found.clone());
        Ok(found)
    }

    async fn look(&self, dir: Ino) -> Result<Option<(Ino, Bytes)>> {
        let raw = self.meta.kv().get(&[schema::attr_key(dir)]).await?.pop().flatten();
        let Some(raw) = raw else { return Ok(None) };
        let row = schema::decode_row(dir, &raw)?;
        if row.kind != FileType::Dir {
            return Ok(None);
        }
        let mut after = 0;
        loop {
            let page = self.meta.readdir(row.parent, after, ENTRIES).await?;
            let Some(last) = page.last() else { return Ok(None) };
            after = last.id;
            if let Some(entry) = page.into_iter().find(|entry| entry.ino == dir) {
                return Ok(Some((row.parent, entry.name)));
            }
        }
    }
}

impl Meta {
    /// Tells `each` what is wanted of the bin, in the order of deletion. Memory grows with the number of directories in the
    /// bin.
    pub async fn lost(&self, wanted: &Wanted, mut each: impl FnMut(Lost)) -> Result<()> {
        let mut paths = Paths::read(self).await?;
        self.lost_by(&mut paths, wanted, &mut each).await
    }

    pub(super) async fn lost_by(
        &self,
        paths: &mut Paths<'_>,
        wanted: &Wanted,
        each: &mut impl FnMut(Lost),
    ) -> Result<()> {
        let mut after = 0;
        loop {
            let page = self.binned(after).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.id;
            for item in page.into_iter().filter(|item| wanted.is(item)) {
                let path = paths.of(&item).await?;
                if wanted.is_under(&path) {
                    each(Lost { path, item });
                }
            }
        }
    }
}
