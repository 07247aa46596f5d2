//! Making inodes: create, mkdir, symlink, mknod.

use bytes::Bytes;

use super::attr::Attr;
use super::kv::{Expect, Outcome};
use super::retry::{Tries, entry_words};
use super::schema::{self, Content, InodeRow, Layout, Role, TARGET_MAX};
use super::{Meta, check_name};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{FileType, Ino, Timestamp};

/// Set-group-id.
pub(super) const SETGID: u16 = 0o2000;

/// What is to be made.
#[derive(Clone, Debug)]
pub struct New {
    pub kind: FileType,
    /// Permission bits, the caller's umask applied.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Of devices.
    pub rdev: u32,
    /// Of symlinks: 1 to [`TARGET_MAX`] bytes.
    pub target: Option<Bytes>,
    /// Of directories. `None`: what the parent hands down ([`Role::Locks`], [`Role::SharedBlobs`]).
    pub role: Option<Role>,
}

impl New {
    /// An inode of a user: neither device nor symlink, and nothing that a directory stands for.
    #[must_use]
    pub fn plain(kind: FileType, mode: u16, uid: u32, gid: u32) -> Self {
        New { kind, mode, uid, gid, rdev: 0, target: None, role: None }
    }

    /// The row in a directory with the row `parent`.
    fn row(&self, meta: &Meta, dir: Ino, parent: &InodeRow) -> Result<InodeRow> {
        let content = match (self.kind, &self.target) {
            (FileType::Symlink, Some(t)) if t.len() > TARGET_MAX => return Err(Kind::NameTooLong.into()),
            (FileType::Symlink, Some(t)) if !t.is_empty() => Content::Symlink(t.clone()),
            (FileType::Symlink, _) => return Err(Error::new(Kind::Invalid, "symlink without a target")),
            _ => Content::None,
        };
        let is_dir = self.kind == FileType::Dir;
        let now = Timestamp::now();
        let mut mode = self.mode & 0o7777;
        let mut gid = self.gid;
        if parent.mode & SETGID != 0 {
            gid = parent.gid;
            mode |= if is_dir { SETGID } else { 0 };
        }
        let mut role = if is_dir { self.role.clone() } else { None };
        match (&parent.role, self.kind) {
            (Some(Role::Locks), FileType::File) => mode = mode & !0o777 | 0o666,
            (Some(handed @ (Role::Locks | Role::SharedBlobs)), FileType::Dir) => {
                role.get_or_insert_with(|| handed.clone());
            }
            _ => {}
        }
        if matches!(role, Some(Role::Locks | Role::SharedBlobs)) {
            mode |= 0o777;
        }
        let size = match &content {
            Content::Symlink(target) => target.len() as u64,
            _ => 0,
        };
        Ok(InodeRow {
            kind: self.kind,
            mode,
            uid: self.uid,
            gid,
            hub: false,
            restricted: false,
            nlink: 1,
            rdev: self.rdev,
            size,
            atime: now,
            mtime: now,
            ctime: now,
            version: meta.next_version(),
            content,
            role,
            parent: dir,
            mode_set: false,
            chunks: 0,
            xattrs: false,
            uncounted: false,
            layout: Layout::default(),
            proven: None,
        })
    }
}

/// What became of one try to make an inode.
enum Made {
    Done(Box<Attr>),
    /// A guess was wrong, or somebody was faster.
    Again,
    /// The number is in use already: it needs another one.
    Used,
}

impl Meta {
    /// Makes an inode under a new name. One round trip if the parent was seen before.
    ///
    /// [`Kind::Exists`] if there is the name, [`Kind::Stale`] if the parent is gone, [`Kind::NotDirectory`],
    /// [`Kind::NameTooLong`], [`Kind::NoSpace`] beyond the volume's number of inodes. In a set-group-id directory the group is the directory's, and a subdirectory has the bit too.
    /// A directory made in the root ends the tombstone of its name.
    pub async fn make(&self, parent: Ino, name: &[u8], new: New) -> Result<Attr> {
        check_name(name)?;
        let mut ino = self.alloc_ino().await?;
        let mut tries = Tries::new();
        loop {
            let made = self.try_make(parent, name, &new, ino, tries.fresh()).await;
            match made.context(|| entry_words(parent, name))? {
                Made::Done(attr) => return Ok(*attr),
                Made::Again => {}
                Made::Used => {
                    self.0.ids.forget().await;
                    ino = self.alloc_ino().await?;
                }
            }
            tries.again().await.context(|| entry_words(parent, name))?;
        }
    }

    async fn try_make(&self, parent: Ino, name: &[u8], new: &New, ino: Ino, fresh: bool) -> Result<Made> {
        // A wrong guess about the parent cannot mislead here: numbers are not reused and types do not change.
        let (parent_raw, parent_row) = self.dir_row(parent, fresh).await?;
        let row = new.row(self, parent, &parent_row)?;
        let is_dir = row.kind == FileType::Dir;
        let entry = schema::entry_value(ino, row.kind);
        let mut build = self.build();
        build.equals(schema::attr_key(parent), &parent_raw);
        let taken = build.expect(Expect::Absent(schema::entry_key(parent, name)));
        // Only after the server's memory went back could the number be in use.
        let used = build.expect(Expect::Absent(schema::attr_key(ino)));
        build.set(schema::entry_key(parent, name), entry.clone());
        let raw = build.set_row(ino, &row)?;
        build.touch_dir(parent, row.ctime, i64::from(is_dir));
        build.add_within(schema::inodes_key(), 1, self.inodes_bound());
        if is_dir && parent == Ino::ROOT {
            build.del(schema::tombstone_key(name));
        }
        build.entry_changed(parent, name);
        let attr = Attr::new(ino, row, None, 0);
        match self.commit_making(build, Some(&attr)).await? {
            Outcome::Applied => {
                self.hints().learn_entry(parent, name, &entry);
                self.hints().learn_row(ino, &raw);
                Ok(Made::Done(Box::new(attr)))
            }
            Outcome::Conflict(at) if at == taken => Err(Kind::Exists.into()),
            Outcome::Conflict(at) if at == used => Ok(Made::Used),
            Outcome::Conflict(_) => Ok(Made::Again),
            Outcome::Full => Err(self.full_of_inodes()),
        }
    }
}
