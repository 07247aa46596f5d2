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
    /// Paths, as names from the volume's root down, in which `*`, `?` and `[…]` match within a name; what lies under them
    /// is meant too. With no path and no number: everything.
    pub under: Vec<Vec<Bytes>>,
    /// Inodes.
    pub inos: Vec<Ino>,
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

    fn means(&self, ino: Ino, path: &[Bytes]) -> bool {
        (self.under.is_empty() && self.inos.is_empty())
            || self.inos.contains(&ino)
            || self.under.iter().any(|under| is_under(path, under))
    }

    /// How many names of the path lie above what was wanted.
    pub(super) fn above(&self, ino: Ino, path: &[Bytes]) -> usize {
        let trees = self.under.iter().filter(|under| is_under(path, under)).map(|under| under.len());
        let own = self.inos.contains(&ino).then_some(path.len());
        trees.chain(own).max().unwrap_or(0).saturating_sub(1)
    }
}

fn is_under(path: &[Bytes], under: &[Bytes]) -> bool {
    path.len() >= under.len() && path.iter().zip(under).all(|(name, like)| name == like || glob(like, name))
}

/// Whether a name is like a pattern, as a shell's: `*`, `?`, `[a-z]`, `[!a-z]`; `\\` before one of them means itself.
fn glob(like: &[u8], name: &[u8]) -> bool {
    let (mut l, mut n) = (0, 0);
    // Where to go on if what follows the last star does not fit: the star takes one byte more.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() || l < like.len() {
        if like.get(l) == Some(&b'*') {
            star = Some((l, n));
            l += 1;
            continue;
        }
        if let Some(len) = name.get(n).and_then(|byte| one(&like[l..], *byte)) {
            l += len;
            n += 1;
            continue;
        }
        match star {
            Some((at, taken)) if taken < name.len() => {
                star = Some((at, taken + 1));
                (l, n) = (at + 1, taken + 1);
            }
            _ => return false,
        }
    }
    true
}

/// How many bytes of the pattern match this one byte.
fn one(like: &[u8], byte: u8) -> Option<usize> {
    match like {
        [b'?', ..] => Some(1),
        [b'\\', literal, ..] => (*literal == byte).then_some(2),
        [b'[', set @ ..] => match class(set, byte) {
            Some((fits, len)) => fits.then_some(len + 1),
            None => (byte == b'[').then_some(1),
        },
        [literal, ..] => (*literal == byte).then_some(1),
        [] => None,
    }
}

/// What follows a `[`: whether the byte is in the set, and the length of the set with its `]`, if it has one.
fn class(set: &[u8], byte: u8) -> Option<(bool, usize)> {
    let negated = matches!(set.first(), Some(b'!' | b'^'));
    let first = usize::from(negated);
    let end = first + 1 + set.get(first + 1..)?.iter().position(|b| *b == b']')?;
    let (mut at, mut found) = (first, false);
    while at < end {
        match set[at..end] {
            [from, b'-', to, ..] => {
                found |= (from..=to).contains(&byte);
                at += 3;
            }
            _ => {
                found |= set[at] == byte;
                at += 1;
            }
        }
    }
    Some((found != negated, end + 1))
}

/// Something in the bin, and where it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Names from the root down. Of what lay in a directory that nothing is known of any more the first is `?<number>`.
    pub path: Vec<Bytes>,
    pub item: Binned,
    /// Nobody knows where its directory was.
    pub adrift: bool,
}

impl Lost {
    /// The path as text for a terminal.
    #[must_use]
    pub fn shown(&self) -> String {
        show(&self.path)
    }
}

pub(super) fn show(path: &[Bytes]) -> String {
    let name = |name: &Bytes| String::from_utf8_lossy(name).replace(char::is_control, "\u{fffd}");
    path.iter().map(name).collect::<Vec<_>>().join("/")
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
    pub async fn of(&mut self, item: Binned) -> Result<Lost> {
        let mut adrift = false;
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
                        adrift = true;
                        break;
                    }
                },
            };
        }
        names.reverse();
        Ok(Lost { path: names, item, adrift })
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
                let lost = paths.of(item).await?;
                if wanted.means(lost.item.ino, &lost.path) {
                    each(lost);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_as_a_shells() {
        for (like, name) in [
            ("a", "a"),
            ("*", "anything"),
            ("*", ""),
            ("*.pt", "model.pt"),
            ("*.pt", "a.pt.pt"),
            ("step-?.pt", "step-1.pt"),
            ("step-[0-9][0-9]*", "step-10.pt"),
            ("[!ab]c", "cc"),
            ("[]]", "]"),
            ("a[", "a["),
            ("\\*", "*"),
            ("a*b*c", "a.b.b.c"),
        ] {
            assert!(glob(like.as_bytes(), name.as_bytes()), "{like} is like {name}");
        }
        for (like, name) in [
            ("a", "b"),
            ("a", "ab"),
            ("ab", "a"),
            ("*.pt", "model.pt.bak"),
            ("step-?.pt", "step-10.pt"),
            ("[!ab]c", "ac"),
            ("[a-c]", "d"),
            ("\\*", "a"),
            ("a*b*c", "a.c"),
        ] {
            assert!(!glob(like.as_bytes(), name.as_bytes()), "{like} is not like {name}");
        }
    }
}
