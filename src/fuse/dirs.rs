//! Requests about directories as lists.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    BackingId, FileHandle, FopenFlags, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyOpen,
    Request,
};

use super::adapter::{Adapter, asking};
use super::convert;
use super::faces::{Faces, Node};
use super::reply::errno;
use crate::error::{Kind, Result};
use crate::types::Ino;
use crate::vfs::{DirItem, Entry, Vfs};

/// Entries asked of the file system at a time: as many as the 32 KiB with which the kernel usually asks hold, with
/// attributes and without, names being of usual length. What does not fit is asked for again.
const BATCH_PLUS: usize = 128;
const BATCH: usize = 512;

impl Adapter {
    pub(super) fn open_dir(&self, req: &Request, ino: Ino, reply: ReplyOpen) {
        let vfs = self.vfs.clone();
        let work = async move { vfs.opendir(ino).await };
        self.tasks.spawn(asking("opendir", ino, req), work, move |result| match result {
            Ok(opened) => {
                let mut flags = FopenFlags::empty();
                flags.set(FopenFlags::FOPEN_CACHE_DIR, opened.cache_dir);
                flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
                reply.opened(FileHandle(0), flags);
            }
            Err(e) => reply.error(errno("opendir", ino, &e)),
        });
    }

    pub(super) fn read_dir(&self, req: &Request, ino: Ino, offset: u64, mut reply: ReplyDirectory) {
        let vfs = self.vfs.clone();
        let work = async move { vfs.readdir(ino, offset, false, BATCH).await };
        self.tasks.spawn(asking("readdir", ino, req), work, move |result| match result {
            Ok(items) => {
                for item in items {
                    let name = OsStr::from_bytes(&item.name);
                    if reply.add(INodeNo(item.ino.0), item.offset, convert::kind(item.kind), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(e) => reply.error(errno("readdir", ino, &e)),
        });
    }

    pub(super) fn read_dir_plus(&self, req: &Request, ino: Ino, offset: u64, mut reply: ReplyDirectoryPlus) {
        let (vfs, asked, faces) = (self.vfs.clone(), self.vfs.clone(), self.faces.clone());
        let work = async move { list_plus(&asked, ino, offset).await };
        self.tasks.spawn(asking("readdirplus", ino, req), work, move |result| match result {
            Ok(items) => {
                let mut items = items.into_iter();
                let first_left_out = items.find(|item| add_plus(&mut reply, item, &faces));
                // What did not fit counts as no lookup.
                for item in first_left_out.into_iter().chain(items).filter(|item| item.entry.is_some()) {
                    if faces.forget(Node::own(item.ino), 1) {
                        vfs.forget(item.ino, 1);
                    }
                }
                reply.ok();
            }
            Err(e) => reply.error(errno("readdirplus", ino, &e)),
        });
    }
}

fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

/// A part of the listing in which every entry but `.` and `..` has its attributes. One that has gone meanwhile is left
/// out: the kernel would take made-up attributes for real ones.
async fn list_plus(vfs: &Arc<Vfs>, ino: Ino, offset: u64) -> Result<Vec<DirItem>> {
    let mut after = offset;
    loop {
        let mut items = vfs.readdir(ino, after, true, BATCH_PLUS).await?;
        let Some(last) = items.last() else { return Ok(items) };
        after = last.offset;
        for item in &mut items {
            if item.entry.is_none() && !is_dot(&item.name) {
                item.entry = match vfs.getattr(item.ino, None).await {
                    Ok((stat, attr_ttl)) => Some(Entry { stat, entry_ttl: Duration::ZERO, attr_ttl }),
                    Err(e) if matches!(e.kind(), Kind::Stale | Kind::NotFound) => None,
                    Err(e) => return Err(e),
                };
            }
        }
        items.retain(|item| item.entry.is_some() || is_dot(&item.name));
        // An empty part would mean the end of the directory.
        if !items.is_empty() {
            return Ok(items);
        }
    }
}

/// Adds one entry; true = it did not fit. An entry that is added counts as a lookup, unless it is `.` or `..`.
fn add_plus(reply: &mut ReplyDirectoryPlus, item: &DirItem, faces: &Faces<BackingId>) -> bool {
    let node = if is_dot(&item.name) { Node::own(item.ino) } else { faces.face(item.ino) };
    let (attr, ttl) = match &item.entry {
        Some(entry) => {
            let (attr, ttl) = convert::attr_of(node, entry);
            (attr, entry.entry_ttl.min(ttl))
        }
        None => (convert::bare(item.ino, item.kind), Duration::ZERO),
    };
    let name = OsStr::from_bytes(&item.name);
    let full = reply.add(INodeNo(node.number()), item.offset, name, &convert::ttl(ttl), &attr, Generation(0));
    if !full {
        faces.shown(node);
    }
    full
}
