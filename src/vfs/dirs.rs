//! Listing directories. A cookie is an entry id of the metadata plus two, for `.` and `..`; it stays good while entries
//! come and go, and no state is kept between calls. Listing never asks the Hub.

use std::sync::Arc;

use bytes::Bytes;

use super::Vfs;
use super::types::DirItem;
use super::virtual_ino::{Which, which};
use crate::blocking::blocking;
use crate::error::{Error, Kind, Result};
use crate::meta::Role;
use crate::types::{FileType, Ino};

/// What the kernel may keep of a directory's listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenedDir {
    /// Keep this listing for later reads of it.
    pub cache_dir: bool,
    /// Earlier listings still hold.
    pub keep_cache: bool,
}

/// How many entries are read from the metadata at once.
const BATCH: usize = 512;

impl Vfs {
    /// Opens a directory for listing.
    pub async fn opendir(self: &Arc<Self>, ino: Ino) -> Result<OpenedDir> {
        if which(ino) != Which::Real {
            return Ok(OpenedDir { cache_dir: false, keep_cache: false });
        }
        self.settle(ino).await?;
        let facts = self.facts(ino).await?.ok_or_else(|| Error::new(Kind::Stale, format!("inode {ino}")))?;
        // A commit's listing never changes by itself; a user who changes it goes through the kernel or the push.
        let fixed = matches!(facts.role, Some(Role::Snapshot { .. })) && !self.opts.entry_ttl.is_zero();
        Ok(OpenedDir { cache_dir: fixed, keep_cache: fixed })
    }

    /// Entries after the cookie `offset`, at most `max`; with attributes if `plus`. Empty at the end.
    pub async fn readdir(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        plus: bool,
        max: usize,
    ) -> Result<Vec<DirItem>> {
        let mut items = Vec::new();
        if offset < 1 {
            items.push(dots(ino, 1, "."));
        }
        if offset < 2 {
            let parent = match which(ino) {
                Which::Real if ino != Ino::ROOT => self.facts(ino).await?.map_or(ino, |f| f.parent),
                _ => ino,
            };
            items.push(dots(parent, 2, ".."));
        }
        match which(ino) {
            Which::Real => {
                if offset == 0 && self.notes_accesses() {
                    self.listed(ino).await;
                }
                self.list(ino, offset.saturating_sub(2), plus, max.min(BATCH), &mut items).await?;
            }
            Which::Private => {
                let vfs = Arc::clone(self);
                let own = blocking(move || vfs.private.readdir(ino, offset.saturating_sub(2), plus)).await?;
                items.extend(
                    own.into_iter().take(max).map(|item| DirItem { offset: item.offset + 2, ..item }),
                );
            }
            // `.no_exist` lists nothing, so that deleting it deletes nothing.
            Which::Mirror(_) | Which::Nowhere => {}
            _ => return Err(Error::new(Kind::NotDirectory, format!("inode {ino}"))),
        }
        Ok(items)
    }

    /// Notes that a directory is being read. Without its times it is not noted.
    async fn listed(&self, ino: Ino) {
        if let Ok(attr) = self.meta.getattr(ino).await {
            self.accessed(&attr);
        }
    }

    async fn list(
        self: &Arc<Self>,
        ino: Ino,
        after: u64,
        plus: bool,
        max: usize,
        items: &mut Vec<DirItem>,
    ) -> Result<()> {
        self.settle(ino).await?;
        let changes = self.long.changes();
        let entries = self.meta.readdir(ino, after, max).await?;
        let attrs = if plus {
            let inos: Vec<Ino> = entries.iter().map(|e| e.ino).collect();
            self.meta.getattrs(&inos).await?
        } else {
            Vec::new()
        };
        let mut attrs = attrs.into_iter();
        for entry in entries {
            let attr = attrs.next();
            // Removed between the two reads: not listed.
            if plus && matches!(attr, Some(None) | None) {
                continue;
            }
            let shown = attr.flatten().map(|a| self.named(ino, &entry.name, &a, changes));
            items.push(DirItem {
                ino: entry.ino,
                offset: entry.id + 2,
                name: entry.name,
                kind: entry.kind,
                entry: shown,
            });
        }
        Ok(())
    }
}

fn dots(ino: Ino, offset: u64, name: &'static str) -> DirItem {
    DirItem { ino, offset, name: Bytes::from_static(name.as_bytes()), kind: FileType::Dir, entry: None }
}
