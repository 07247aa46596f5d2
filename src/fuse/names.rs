//! Requests about names: lookup, and what makes, moves and removes them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use bytes::Bytes;
use fuser::{Errno, FileAttr, Generation, INodeNo, ReplyCreate, ReplyEmpty, ReplyEntry, Request};

use super::adapter::{Adapter, asking, caller, changing};
use super::convert;
use super::data::NO_FILE;
use super::faces::Node;
use super::reply::errno;
use crate::error::Result;
use crate::types::{FileType, Ino};
use crate::vfs::{Entry, Lookup};

/// Inode numbers are never used twice, so one generation is enough.
const GENERATION: Generation = Generation(0);

fn owned(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

fn answer_entry(op: &'static str, parent: Ino, result: Result<Entry>, reply: ReplyEntry) {
    answer_node(op, parent, result, Node::own, reply);
}

/// The same for an inode that may have two faces, of which `face` chooses one.
fn answer_node(
    op: &'static str,
    parent: Ino,
    result: Result<Entry>,
    face: impl FnOnce(Ino) -> Node,
    reply: ReplyEntry,
) {
    match result {
        Ok(entry) => {
            let node = face(entry.stat.ino);
            let (attr, attr_ttl) = convert::attr_of(node, &entry);
            reply.entry_with_ttls(&convert::ttl(attr_ttl), &convert::ttl(entry.entry_ttl), &attr, GENERATION);
        }
        Err(e) => reply.error(errno(op, parent, &e)),
    }
}

pub(super) fn answer_empty(op: &'static str, ino: Ino, result: Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(op, ino, &e)),
    }
}

fn answer_lookup(parent: Ino, result: Result<Lookup>, face: impl FnOnce(Ino) -> Node, reply: ReplyEntry) {
    match result {
        Ok(Lookup::Found(entry)) => answer_node("lookup", parent, Ok(entry), face, reply),
        Ok(Lookup::Absent { ttl }) => {
            // An entry whose inode number is 0 is the kernel's way to remember an absence.
            let nothing = FileAttr { ino: INodeNo(0), ..convert::bare(Ino(0), FileType::File) };
            reply.entry_with_ttls(&Duration::ZERO, &convert::ttl(ttl), &nothing, GENERATION);
        }
        Err(e) => reply.error(errno("lookup", parent, &e)),
    }
}

impl Adapter {
    pub(super) fn look_up(&self, req: &Request, parent: Ino, name: &OsStr, reply: ReplyEntry) {
        let (vfs, caller, name) = (self.vfs.clone(), caller(req), owned(name));
        let work = async move { vfs.lookup(&caller, parent, &name).await };
        let (faces, tid) = (self.faces.clone(), req.pid());
        self.tasks.spawn(asking("lookup", parent, req), work, move |result| {
            answer_lookup(parent, result, |ino| faces.look_up(tid, ino), reply);
        });
    }

    pub(super) fn make_node(
        &self,
        req: &Request,
        parent: Ino,
        name: &OsStr,
        (mode, rdev): (u32, u32),
        reply: ReplyEntry,
    ) {
        let Some(kind) = convert::kind_of_mode(mode) else { return reply.error(Errno::EINVAL) };
        let (vfs, caller, name) = (self.vfs.clone(), caller(req), owned(name));
        let mode = convert::permissions(mode);
        let work = async move { vfs.mknod(&caller, parent, &name, kind, mode, rdev).await };
        self.tasks
            .spawn(changing("mknod", parent, req), work, move |r| answer_entry("mknod", parent, r, reply));
    }

    pub(super) fn make_dir(&self, req: &Request, parent: Ino, name: &OsStr, mode: u32, reply: ReplyEntry) {
        let (vfs, caller, name) = (self.vfs.clone(), caller(req), owned(name));
        let mode = convert::permissions(mode);
        let work = async move { vfs.mkdir(&caller, parent, &name, mode).await };
        self.tasks
            .spawn(changing("mkdir", parent, req), work, move |r| answer_entry("mkdir", parent, r, reply));
    }

    pub(super) fn make_symlink(
        &self,
        req: &Request,
        parent: Ino,
        name: &OsStr,
        target: &OsStr,
        reply: ReplyEntry,
    ) {
        let (vfs, caller, name, target) = (self.vfs.clone(), caller(req), owned(name), owned(target));
        let work = async move { vfs.symlink(&caller, parent, &name, &target).await };
        self.tasks.spawn(changing("symlink", parent, req), work, move |r| {
            answer_entry("symlink", parent, r, reply)
        });
    }

    pub(super) fn make_link(&self, req: &Request, node: Node, parent: Ino, name: &OsStr, reply: ReplyEntry) {
        let (vfs, name, ino) = (self.vfs.clone(), owned(name), node.ino);
        let work = async move { vfs.link(ino, parent, &name).await };
        let adapter = self.clone();
        self.tasks.spawn(changing("link", ino, req), work, move |r| {
            adapter.changed_through(node);
            // The new name is one of the same inode of the kernel.
            let face = |_| {
                adapter.faces.shown(node);
                node
            };
            answer_node("link", ino, r, face, reply);
        });
    }

    pub(super) fn remove_file(&self, req: &Request, parent: Ino, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, caller, name) = (self.vfs.clone(), caller(req), owned(name));
        let work = async move { vfs.unlink(&caller, parent, &name).await };
        self.tasks
            .spawn(changing("unlink", parent, req), work, move |r| answer_empty("unlink", parent, r, reply));
    }

    pub(super) fn remove_dir(&self, req: &Request, parent: Ino, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, caller, name) = (self.vfs.clone(), caller(req), owned(name));
        let work = async move { vfs.rmdir(&caller, parent, &name).await };
        self.tasks
            .spawn(changing("rmdir", parent, req), work, move |r| answer_empty("rmdir", parent, r, reply));
    }

    pub(super) fn rename_entry(
        &self,
        req: &Request,
        (from, name): (Ino, &OsStr),
        (to, new_name): (Ino, &OsStr),
        flags: u32,
        reply: ReplyEmpty,
    ) {
        let (vfs, caller, name, new_name) = (self.vfs.clone(), caller(req), owned(name), owned(new_name));
        let work = async move { vfs.rename(&caller, (from, &name), (to, &new_name), flags).await };
        self.tasks
            .spawn(changing("rename", from, req), work, move |r| answer_empty("rename", from, r, reply));
    }

    pub(super) fn create_file(
        &self,
        req: &Request,
        parent: Ino,
        name: &OsStr,
        (mode, flags): (u32, i32),
        reply: ReplyCreate,
    ) {
        let (vfs, caller, name) = (self.vfs.clone(), caller(req), owned(name));
        let mode = convert::permissions(mode);
        let work = async move { vfs.create(&caller, parent, &name, mode, flags).await };
        let (unwanted, faces) = (self.clone(), self.faces.clone());
        self.tasks.spawn_with_leftover(
            changing("create", parent, req),
            work,
            move |result| match result {
                Ok((entry, opened)) => {
                    // Nobody else has it open, so nothing else can be granted.
                    faces.open(0, Node::own(entry.stat.ino), flags, NO_FILE);
                    reply.created(
                        // One time for the name and the attributes: the shorter.
                        &convert::ttl(entry.entry_ttl.min(entry.attr_ttl)),
                        &convert::attr(&entry.stat),
                        GENERATION,
                        fuser::FileHandle(opened.fh),
                        convert::open_flags(&opened),
                    );
                }
                Err(e) => reply.error(errno("create", parent, &e)),
            },
            move |(entry, opened)| unwanted.release_unwanted(entry.stat.ino, opened.fh),
        );
    }
}
