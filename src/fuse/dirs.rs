//! Requests about directories as lists.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use fuser::{
    FileHandle, FopenFlags, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyOpen,
    Request,
};

use super::adapter::{Adapter, asking, caller, changing, unattended};
use super::convert;
use super::names::answer_empty;
use super::reply::errno;
use crate::error::{Kind, Result};
use crate::types::Ino;
use crate::vfs::{Caller, DirItem, Entry, Vfs};

/// Entries asked of the file system at a time. The kernel asks with room for 4 or 32 KiB, which hold 20 or 160 entries
/// with attributes and three times as many without; what does not fit is asked for again.
const BATCH: usize = 256;

impl Adapter {
    pub(super) fn open_dir(&self, req: &Request, ino: Ino, reply: ReplyOpen) {
        let (vfs, caller) = (self.vfs.clone(), caller(req));
        let work = async move { vfs.opendir(&caller, ino).await };
        let unwanted = self.clone();
        self.tasks.spawn_with_leftover(
            changing("opendir", ino, req),
            work,
            move |result| match result {
                Ok((fh, cache, keep)) => {
                    let mut flags = FopenFlags::empty();
                    flags.set(FopenFlags::FOPEN_CACHE_DIR, cache);
                    flags.set(FopenFlags::FOPEN_KEEP_CACHE, keep);
                    reply.opened(FileHandle(fh), flags);
                }
                Err(e) => reply.error(errno("opendir", ino, &e)),
            },
            move |(fh, _, _)| {
                let vfs = unwanted.vfs.clone();
                let work = async move { vfs.releasedir(ino, fh).await };
                unwanted.tasks.spawn(unattended("releasedir", ino), work, |_| ());
            },
        );
    }

    pub(super) fn read_dir(&self, req: &Request, ino: Ino, fh: u64, offset: u64, mut reply: ReplyDirectory) {
        let (vfs, caller) = (self.vfs.clone(), caller(req));
        let work = async move { vfs.readdir(&caller, ino, fh, offset, false, BATCH).await };
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

    pub(super) fn read_dir_plus(
        &self,
        req: &Request,
        ino: Ino,
        fh: u64,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let (vfs, caller) = (self.vfs.clone(), caller(req));
        let work = async move { list_plus(&vfs, &caller, ino, fh, offset).await };
        self.tasks.spawn(asking("readdirplus", ino, req), work, move |result| match result {
            Ok(items) => {
                for item in items {
                    if add_plus(&mut reply, &item) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(e) => reply.error(errno("readdirplus", ino, &e)),
        });
    }

    pub(super) fn release_dir(&self, ino: Ino, fh: u64, reply: ReplyEmpty) {
        let vfs = self.vfs.clone();
        let work = async move { vfs.releasedir(ino, fh).await };
        self.tasks
            .spawn(unattended("releasedir", ino), work, move |r| answer_empty("releasedir", ino, r, reply));
    }

    pub(super) fn sync_dir(&self, req: &Request, ino: Ino, fh: u64, reply: ReplyEmpty) {
        let vfs = self.vfs.clone();
        let work = async move { vfs.fsyncdir(ino, fh).await };
        self.tasks
            .spawn(changing("fsyncdir", ino, req), work, move |r| answer_empty("fsyncdir", ino, r, reply));
    }
}

fn is_dot(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

/// A part of the listing in which every entry but `.` and `..` has its attributes. One that has gone meanwhile is left
/// out: the kernel would take made-up attributes for real ones.
async fn list_plus(vfs: &Vfs, caller: &Caller, ino: Ino, fh: u64, offset: u64) -> Result<Vec<DirItem>> {
    let mut after = offset;
    loop {
        let mut items = vfs.readdir(caller, ino, fh, after, true, BATCH).await?;
        let Some(last) = items.last() else { return Ok(items) };
        after = last.offset;
        for item in &mut items {
            if item.entry.is_none() && !is_dot(&item.name) {
                item.entry = match vfs.getattr(caller, item.ino).await {
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
fn add_plus(reply: &mut ReplyDirectoryPlus, item: &DirItem) -> bool {
    let (attr, ttl) = match &item.entry {
        Some(entry) => (convert::attr(&entry.stat), entry.entry_ttl.min(entry.attr_ttl)),
        None => (convert::bare(item.ino, item.kind), Duration::ZERO),
    };
    let name = OsStr::from_bytes(&item.name);
    reply.add(INodeNo(item.ino.0), item.offset, name, &convert::ttl(ttl), &attr, Generation(0))
}
