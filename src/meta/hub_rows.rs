//! Rows of what comes from the Hub: owned by nobody in particular.

use super::kv::{Expect, Outcome};
use super::retry::{Tries, entry_words};
use super::schema::{self, Content, InodeRow, Layout, Role};
use super::{Meta, check_name};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{FileType, Ino, Timestamp};

/// Of directories; every mount takes its own umask off.
pub(super) const DIR_MODE: u16 = 0o777;
/// Of refs.
pub(super) const REF_MODE: u16 = 0o666;

impl Meta {
    /// A row owned by the hub, without content. It counts for nothing in the volume's usage.
    pub(super) fn hub_row(
        &self,
        kind: FileType,
        mode: u16,
        parent: Ino,
        mtime: Timestamp,
        restricted: bool,
    ) -> InodeRow {
        let now = Timestamp::now();
        InodeRow {
            kind,
            mode,
            uid: 0,
            gid: 0,
            hub: true,
            restricted,
            nlink: 1,
            rdev: 0,
            size: 0,
            atime: now,
            mtime,
            ctime: now,
            version: self.next_version(),
            content: Content::None,
            role: None,
            parent,
            mode_set: false,
            chunks: 0,
            xattrs: false,
            uncounted: true,
            layout: Layout::default(),
            proven: None,
        }
    }

    /// The directory `name` in `parent`, made if it is not there; one that is there stays as it is.
    /// [`Kind::NotDirectory`] if the name is of something else.
    pub async fn ensure_hub_dir(
        &self,
        parent: Ino,
        name: &[u8],
        role: Option<Role>,
        restricted: bool,
    ) -> Result<Ino> {
        check_name(name)?;
        let words = || entry_words(parent, name);
        let mut tries = Tries::new();
        loop {
            if let Some(found) = self.find(parent, name, true).await.context(words)? {
                let is_dir = found.row.kind == FileType::Dir;
                return if is_dir { Ok(found.ino) } else { Err(Error::new(Kind::NotDirectory, words())) };
            }
            let (parent_raw, _) = self.dir_row(parent, tries.fresh()).await.context(words)?;
            let now = Timestamp::now();
            let ino = self.alloc_ino().await?;
            let row = InodeRow {
                role: role.clone(),
                ..self.hub_row(FileType::Dir, DIR_MODE, parent, now, restricted)
            };
            let mut build = self.build();
            build.equals(schema::attr_key(parent), &parent_raw);
            build.expect(Expect::Absent(schema::entry_key(parent, name)));
            build.expect(Expect::Absent(schema::attr_key(ino)));
            build.set(schema::entry_key(parent, name), schema::entry_value(ino, FileType::Dir));
            build.set_row(ino, &row)?;
            build.touch_dir(parent, now, 1);
            build.entry_changed(parent, name);
            if self.commit(build).await? == Outcome::Applied {
                return Ok(ino);
            }
            tries.again().await.context(words)?;
        }
    }
}
