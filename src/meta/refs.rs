//! The files under `refs/`: each holds the 40 hex digits of a commit, without a newline.

use bytes::Bytes;

use super::Meta;
use super::attr::Attr;
use super::bin::Keep;
use super::hub_rows::REF_MODE;
use super::kv::{Expect, Outcome};
use super::lookup::Found;
use super::retry::{Tries, entry_words};
use super::schema::{self, Content, InodeRow, Role};
use super::setattr::SetAttr;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{Commit, FileType, Ino, Timestamp};

/// What a ref says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefTarget {
    pub commit: Commit,
    /// Of the file. Its mtime is when the ref was last known to be true.
    pub attr: Attr,
}

impl Meta {
    /// What `refs/<name>` says, `refs` being the directory; `None` if there is no such file or it holds no commit.
    pub async fn read_ref(&self, refs: Ino, name: &str) -> Result<Option<RefTarget>> {
        let (path, last) = split(name);
        let mut dir = refs;
        for part in path {
            match self.lookup(dir, part.as_bytes()).await? {
                Some(attr) if attr.kind == FileType::Dir => dir = attr.ino,
                _ => return Ok(None),
            }
        }
        let attr = self.lookup(dir, last.as_bytes()).await?;
        Ok(attr.and_then(|attr| Some(RefTarget { commit: target(&attr.content)?, attr })))
    }

    /// Makes `refs/<name>` say `commit`, replacing the file as a rename would. If it says so already, its mtime becomes
    /// now, so that all mounts see when the Hub was asked. Directories on the way are made.
    ///
    /// [`Kind::IsDirectory`] or [`Kind::NotDirectory`] if names are in the way.
    pub async fn set_ref(&self, refs: Ino, name: &str, commit: Commit) -> Result<Attr> {
        let (path, last) = split(name);
        let (_, top) = self.dir_row(refs, false).await?;
        let repo = match &top.role {
            Some(Role::Refs { repo, .. }) => Some(repo.clone()),
            _ => None,
        };
        let mut dir = refs;
        let mut prefix = String::new();
        for part in path {
            prefix = format!("{prefix}{part}/");
            let role = repo.clone().map(|repo| Role::Refs { repo, prefix: prefix.clone() });
            dir = self.ensure_hub_dir(dir, part.as_bytes(), role, top.restricted).await?;
        }
        let words = || entry_words(dir, last.as_bytes());
        super::check_name(last.as_bytes()).context(words)?;
        let mut tries = Tries::new();
        loop {
            let old = self.find(dir, last.as_bytes(), true).await?;
            if let Some(old) = old.as_ref().filter(|old| target(&old.row.content) == Some(commit)) {
                let now = SetAttr { mtime: Some(Timestamp::now()), ..SetAttr::default() };
                return self.setattr(old.ino, now).await;
            }
            if old.as_ref().is_some_and(|old| old.row.kind == FileType::Dir) {
                return Err(Error::new(Kind::IsDirectory, words()));
            }
            if let Some(attr) =
                self.try_set_ref(dir, last, commit, old, tries.fresh()).await.context(words)?
            {
                return Ok(attr);
            }
            tries.again().await.context(words)?;
        }
    }

    async fn try_set_ref(
        &self,
        dir: Ino,
        name: &str,
        commit: Commit,
        old: Option<Found>,
        fresh: bool,
    ) -> Result<Option<Attr>> {
        let (dir_raw, dir_row) = self.dir_row(dir, fresh).await?;
        let ino = self.alloc_ino().await?;
        let row = self.ref_row(dir, commit, dir_row.restricted);
        let now = row.ctime;
        let key = schema::entry_key(dir, name.as_bytes());
        let mut build = self.build();
        build.equals(schema::attr_key(dir), &dir_raw);
        build.expect(Expect::Absent(schema::attr_key(ino)));
        match &old {
            Some(old) => {
                build.equals(key.clone(), &old.entry);
                build.equals(schema::attr_key(old.ino), &old.raw);
                self.drop_link(&mut build, old, (dir, name.as_bytes()), Keep::No, now)?;
            }
            None => {
                build.expect(Expect::Absent(key.clone()));
            }
        }
        build.set(key, schema::entry_value(ino, FileType::File));
        build.set_row(ino, &row)?;
        build.touch_dir(dir, now, 0);
        build.entry_changed(dir, name.as_bytes());
        let done = self.commit(build).await? == Outcome::Applied;
        Ok(done.then(|| Attr::new(ino, row, None, 0)))
    }

    /// The row of a ref that says `commit`.
    pub(super) fn ref_row(&self, dir: Ino, commit: Commit, restricted: bool) -> InodeRow {
        let text = Bytes::from(commit.to_string());
        InodeRow {
            size: text.len() as u64,
            content: Content::Inline(text),
            ..self.hub_row(FileType::File, REF_MODE, dir, Timestamp::now(), restricted)
        }
    }
}

/// The directories on the way, and the last name.
fn split(name: &str) -> (impl Iterator<Item = &str>, &str) {
    let (path, last) = name.rsplit_once('/').unwrap_or(("", name));
    (path.split('/').filter(|part| !part.is_empty()), last)
}

fn target(content: &Content) -> Option<Commit> {
    match content {
        Content::Inline(text) => Commit::parse(std::str::from_utf8(text).ok()?),
        _ => None,
    }
}
