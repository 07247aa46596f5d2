//! Names and attributes: lookup, getattr, readlink. A name that the metadata does not have may be one that the Hub has.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Vfs;
use super::attr_cache::DirFacts;
use super::handles::Data;
use super::lazy::Answer;
use super::outage::{self, Known};
use super::types::{Caller, Entry, Lookup, Stat};
use super::virtual_ino::{self, Which, which};
use super::{long, present, private};
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::meta::{Attr, Content, NAME_MAX, Role};
use crate::types::{Commit, FileType, Ino};

impl Vfs {
    /// What `name` in `parent` stands for.
    pub async fn lookup(self: &Arc<Self>, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Lookup> {
        if name.len() > NAME_MAX {
            return Err(Error::new(Kind::NameTooLong, format!("name of {} bytes", name.len())));
        }
        match which(parent) {
            Which::Real => {}
            Which::Private => return self.lookup_private(caller, parent, name).await,
            Which::Mirror(real) => return self.lookup_mirror(parent, real, name).await,
            Which::Nowhere => return Ok(self.outside(parent, name)),
            _ => return Err(Error::new(Kind::NotDirectory, format!("inode {parent}"))),
        }
        if parent == Ino::ROOT {
            if name == b"hub" {
                return Ok(self.fixed(present::hub_link(&self.opts)));
            }
            if private::is_private(name) {
                return self.lookup_private(caller, parent, name).await;
            }
        }
        self.settle(parent).await?;
        let changes = self.long.changes();
        match self.find(parent, name).await? {
            Found::Attr(attr) => Ok(Lookup::Found(self.named(parent, name, &attr, changes))),
            Found::Provisional(ino) => {
                let stat = present::provisional_dir(ino, &self.opts);
                Ok(Lookup::Found(Entry { stat, entry_ttl: Duration::ZERO, attr_ttl: Duration::ZERO }))
            }
            Found::Virtual(lookup) => Ok(lookup),
            Found::Nothing => Ok(Lookup::Absent { ttl: self.opts.entry_ttl }),
        }
    }

    /// The attributes of the name's inode in the metadata, after the Hub was asked if need be.
    async fn find(self: &Arc<Self>, parent: Ino, name: &[u8]) -> Result<Found> {
        if let Some(attr) = self.meta.lookup(parent, name).await? {
            return self.found(parent, name, attr).await;
        }
        let Some(facts) = self.facts(parent).await? else { return Ok(Found::Nothing) };
        if let Some(Role::NoExist(_)) = facts.role {
            return self.no_exist(&facts, name).await;
        }
        let Some(lazy) = &self.lazy else { return Ok(Found::Nothing) };
        let answer = match &facts.role {
            Some(Role::Root) => lazy.repo(name).await?,
            Some(Role::Snapshots(repo)) => lazy.commit(facts.parent, parent, repo, name).await?,
            Some(Role::Trees(repo)) => match name.strip_suffix(b".json") {
                Some(commit) => lazy.commit(facts.parent, parent, repo, commit).await?,
                None => Answer::Absent,
            },
            Some(Role::Refs { repo, prefix }) => {
                let dir = self.repo_dir(parent, prefix).await?;
                lazy.reference(dir, parent, repo, prefix, name).await?
            }
            _ => Answer::Absent,
        };
        match answer {
            Answer::Absent => Ok(Found::Nothing),
            Answer::Provisional(ino) => Ok(Found::Provisional(ino)),
            Answer::Published => match self.meta.lookup(parent, name).await? {
                Some(attr) => {
                    self.attrs.learn(&attr);
                    Ok(Found::Attr(attr.into()))
                }
                // Deleted again in the same moment.
                None => Ok(Found::Nothing),
            },
        }
    }

    /// A name that is there. A branch may be old.
    async fn found(self: &Arc<Self>, parent: Ino, name: &[u8], attr: Attr) -> Result<Found> {
        self.attrs.learn(&attr);
        self.found_by_name(parent, name, &attr);
        let could_be_ref = attr.kind == FileType::File && attr.size == 40;
        if could_be_ref
            && let Some(lazy) = &self.lazy
            && let Some(DirFacts { role: Some(Role::Refs { repo, prefix }), .. }) = self.facts(parent).await?
        {
            let dir = self.repo_dir(parent, &prefix).await?;
            if lazy.refresh(dir, parent, &repo, &prefix, name, attr.mtime).await {
                return Ok(match self.meta.lookup(parent, name).await? {
                    Some(attr) => Found::Attr(attr.into()),
                    None => Found::Nothing,
                });
            }
        }
        Ok(Found::Attr(attr.into()))
    }

    /// The directory of the repository above `refs` or a directory `prefix` below it.
    async fn repo_dir(&self, refs: Ino, prefix: &str) -> Result<Ino> {
        let mut dir = refs;
        for _ in 0..=prefix.matches('/').count() {
            dir = match self.facts(dir).await? {
                Some(facts) => facts.parent,
                None => return Err(Error::new(Kind::Stale, format!("inode {dir}"))),
            };
        }
        Ok(dir)
    }

    /// What a directory stands for and where it lies; `None` if it is gone.
    pub(super) async fn facts(&self, dir: Ino) -> Result<Option<DirFacts>> {
        if let Some(facts) = self.attrs.facts(dir) {
            return Ok(Some(facts));
        }
        match self.meta.getattr(dir).await {
            Ok(attr) => {
                self.attrs.learn(&attr);
                Ok(Some(DirFacts { role: attr.role, parent: attr.parent }))
            }
            Err(e) if e.kind() == Kind::Stale => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// `.no_exist/<commit>`: there iff the commit is, and listing nothing.
    async fn no_exist(self: &Arc<Self>, facts: &DirFacts, name: &[u8]) -> Result<Found> {
        let is_commit = std::str::from_utf8(name).ok().and_then(Commit::parse).is_some();
        if !is_commit {
            return Ok(Found::Nothing);
        }
        let Some(snapshots) = self.meta.lookup(facts.parent, b"snapshots").await? else {
            return Ok(Found::Nothing);
        };
        match self.meta.lookup(snapshots.ino, name).await? {
            Some(Attr { ino, role: Some(Role::Snapshot { .. }), .. }) => {
                let dir = present::absent_dir(virtual_ino::mirror_of(ino), &self.opts);
                Ok(Found::Virtual(self.fixed(dir)))
            }
            _ => Ok(Found::Nothing),
        }
    }

    /// A name in `.no_exist/<commit>/…` where the commit has a directory: what is in the commit is not in here.
    async fn lookup_mirror(&self, parent: Ino, real: Ino, name: &[u8]) -> Result<Lookup> {
        match self.meta.lookup(real, name).await? {
            None => Ok(self.outside(parent, name)),
            Some(Attr { ino, kind: FileType::Dir, .. }) => {
                Ok(self.fixed(present::absent_dir(virtual_ino::mirror_of(ino), &self.opts)))
            }
            Some(_) => Ok(Lookup::Absent { ttl: self.opts.entry_ttl }),
        }
    }

    /// A name that the commit does not have. Whether the client means a file or a directory with a file in it cannot be
    /// seen from the name; what it probes for has an ending iff it is a file (`chat_template.jinja`, `onnx/`).
    fn outside(&self, parent: Ino, name: &[u8]) -> Lookup {
        self.fixed(if name.contains(&b'.') {
            present::absent_file(&self.opts)
        } else {
            present::absent_dir(virtual_ino::nowhere(parent, name), &self.opts)
        })
    }

    async fn lookup_private(self: &Arc<Self>, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Lookup> {
        // The same name is another file for the next caller: the kernel must ask each time.
        let ttl = if parent == Ino::ROOT { Duration::ZERO } else { self.opts.entry_ttl };
        let (vfs, caller, name) = (Arc::clone(self), *caller, Bytes::copy_from_slice(name));
        Ok(match blocking(move || vfs.private.lookup(&caller, parent, &name)).await? {
            Some(stat) => Lookup::Found(Entry { stat, entry_ttl: ttl, attr_ttl: ttl }),
            None => Lookup::Absent { ttl },
        })
    }

    fn fixed(&self, stat: Stat) -> Lookup {
        Lookup::Found(Entry { stat, entry_ttl: self.opts.entry_ttl, attr_ttl: self.opts.attr_ttl })
    }

    /// Shows `attr` under a name that was just read, when there were so many `changes`; for long, if it may last and the
    /// push is known to arrive.
    pub(super) fn named(&self, parent: Ino, name: &[u8], attr: &Attr, changes: u64) -> Entry {
        let mut entry = self.entry(attr);
        let (name_lasts, attr_lasts) = present::may_last(attr, &self.opts);
        if name_lasts && self.push_arrives() && self.long.name(parent, name, changes) {
            entry.entry_ttl = long::LONG.max(self.opts.entry_ttl);
        }
        if attr_lasts {
            entry.attr_ttl = self.attr_ttl_of(attr, changes);
        }
        entry
    }

    /// How long the kernel may rely on attributes.
    pub(super) fn attr_ttl_of(&self, attr: &Attr, changes: u64) -> Duration {
        let lasts = present::may_last(attr, &self.opts).1;
        if lasts && self.push_arrives() && self.long.attrs(attr.ino, changes) {
            long::LONG.max(self.opts.attr_ttl)
        } else {
            self.opts.attr_ttl
        }
    }

    /// What is remembered of an inode whose data and attributes never change by themselves, if the push would have said
    /// that somebody changed them all the same.
    pub(super) fn remembered(&self, ino: Ino) -> Option<Attr> {
        self.attrs.immutable(ino).filter(|_| self.push_arrives())
    }

    /// Shows `attr` with what this mount has not committed yet.
    pub(super) fn entry(&self, attr: &Attr) -> Entry {
        self.attrs.learn(attr);
        self.shown(attr)
    }

    fn shown(&self, attr: &Attr) -> Entry {
        let mut entry = present::entry(attr, &self.opts);
        entry.stat.atime = self.atimes.shown(attr.ino, attr.atime);
        self.overlay(attr, &mut entry.stat);
        if attr.kind == FileType::File && !present::is_immutable(attr) {
            self.attrs.showed(attr.ino, entry.stat.size);
        }
        entry
    }

    /// What is written and not committed yet, or in this moment, shows at once on the mount that wrote it; a blob shows what
    /// is local of it.
    fn overlay(&self, attr: &Attr, stat: &mut Stat) {
        let open = if attr.kind == FileType::File { self.files.in_use(attr.ino) } else { None };
        match (&attr.content, open) {
            (Content::Blob(blob), None) => {
                stat.blocks = self.chunks.filled_bytes(blob, attr.size).div_ceil(512);
            }
            (_, open) if attr.kind == FileType::File => {
                let overtaken = || self.attrs.overtaken(attr);
                let Some(now) = open.map(|file| file.attr_over(attr.clone())).or_else(overtaken) else {
                    return;
                };
                (stat.size, stat.blocks) = (now.size, now.blocks);
                (stat.mtime, stat.ctime) = (now.mtime, now.ctime);
            }
            _ => {}
        }
    }

    /// The attributes, if they can be told without waiting.
    pub fn try_getattr(&self, ino: Ino) -> Option<Result<(Stat, Duration)>> {
        let made_up = match which(ino) {
            Which::Real => {
                if let Some(lazy) = &self.lazy
                    && lazy.is_provisional(ino)
                {
                    return Some(Ok((present::provisional_dir(ino, &self.opts), Duration::ZERO)));
                }
                let changes = self.long.changes();
                if let Some(attr) = self.remembered(ino) {
                    return Some(Ok((self.entry(&attr).stat, self.attr_ttl_of(&attr, changes))));
                }
                // The kernel asks again after whatever it changed itself; together they rely on it for no longer.
                let (attr, age) = self.known_attr(ino)?;
                return Some(Ok((self.entry(&attr).stat, self.opts.attr_ttl.saturating_sub(age))));
            }
            Which::Private => return None,
            Which::HubLink => present::hub_link(&self.opts),
            Which::AbsentFile => present::absent_file(&self.opts),
            Which::Mirror(_) | Which::Nowhere => present::absent_dir(ino, &self.opts),
            Which::Unknown => return Some(Err(Error::new(Kind::Stale, format!("inode {ino}")))),
        };
        Some(Ok((made_up, self.opts.attr_ttl)))
    }

    /// Attributes that were read lately, and how long ago they were known to be right. However old they are, while the push arrives:
    /// it would have told of a change until then.
    fn known_attr(&self, ino: Ino) -> Option<(Attr, Duration)> {
        let ttl = self.opts.attr_ttl;
        let silence = self.push_silence().filter(|silence| *silence < ttl && ttl >= present::SHORTEST);
        let (attr, age) = self.meta.recent(ino, if silence.is_some() { long::LONG } else { ttl })?;
        Some((attr, silence.map_or(age, |silence| age.min(silence))))
    }

    /// The attributes of an inode, and how long the kernel may rely on them.
    pub async fn getattr(self: &Arc<Self>, ino: Ino, fh: Option<u64>) -> Result<(Stat, Duration)> {
        if let Some(known) = self.try_getattr(ino) {
            return known;
        }
        if which(ino) == Which::Private {
            let file = match fh.map(|fh| self.handles.get(fh)) {
                Some(Ok(handle)) => match &handle.data {
                    Data::Private(file) => Some(Arc::clone(file)),
                    _ => None,
                },
                _ => None,
            };
            let vfs = Arc::clone(self);
            let stat = blocking(move || vfs.private.getattr(ino, file.as_deref())).await?;
            return Ok((stat, Duration::ZERO));
        }
        let changes = self.long.changes();
        let attr = match (self.attributes(ino).await, self.attrs.ghost(ino)) {
            (Err(e), Some(ghost)) if e.kind() == Kind::Stale => ghost,
            (Ok(Known::LastSeen(attr)), _) => {
                // Not to be learnt: it may be out of date when the metadata are back.
                return Ok((self.shown(&attr).stat, self.opts.attr_ttl.min(outage::ASK_AGAIN)));
            }
            (read, _) => read?.into_attr(),
        };
        Ok((self.entry(&attr).stat, self.attr_ttl_of(&attr, changes)))
    }

    /// The target of a symbolic link.
    pub async fn readlink(self: &Arc<Self>, ino: Ino) -> Result<Bytes> {
        match which(ino) {
            Which::HubLink => return Ok(Bytes::from_static(b".")),
            Which::Private => {
                let vfs = Arc::clone(self);
                return blocking(move || vfs.private.readlink(ino)).await;
            }
            _ => {}
        }
        let attr = match self.remembered(ino) {
            Some(attr) => attr,
            None => self.meta.getattr(ino).await?,
        };
        self.accessed(&attr);
        match attr.content {
            Content::Symlink(target) => Ok(target),
            _ => Err(Error::new(Kind::Invalid, format!("inode {ino} is no symbolic link"))),
        }
    }

    /// Waits until a directory that was shown early is what it will be.
    pub(super) async fn settle(&self, dir: Ino) -> Result<()> {
        match &self.lazy {
            Some(lazy) => lazy.settle(dir).await,
            None => Ok(()),
        }
    }
}

/// What a name came to.
enum Found {
    Attr(Box<Attr>),
    Provisional(Ino),
    Virtual(Lookup),
    Nothing,
}
