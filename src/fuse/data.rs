//! Requests about the data of files: open, read, write, and what ends with close.

use std::cell::RefCell;
use std::io;
use std::time::Instant;

use bytes::Bytes;
use fuser::{BackingId, Errno, FopenFlags, INodeNo, ReplyData, ReplyEmpty, ReplyOpen, ReplyWrite, Request};

use super::adapter::{Adapter, asking, caller, changing, unattended};
use super::convert;
use super::faces::{Granted, Node};
use super::interrupt::Heed;
use super::names::answer_empty;
use super::reply::errno;
use super::tasks::{Job, guarded};
use crate::error::Kind;
use crate::types::Ino;
use crate::vfs::{NativeFile, Opened};

thread_local! {
    /// What an inline read is read into: as large as the largest read so far on this loop thread, 1 MiB at most.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Nothing for the kernel to read by itself.
pub(super) const NO_FILE: Option<fn() -> io::Result<BackingId>> = None;

impl Adapter {
    pub(super) fn open_file(&self, req: &Request, node: Node, flags: i32, reply: ReplyOpen) {
        let (vfs, caller, ino) = (self.vfs.clone(), caller(req), node.ino);
        let (adapter, may_be_native) = (self.clone(), self.faces.may_be_native(flags));
        let work = async move {
            let mut opened = vfs.open_by(&caller, ino, flags).await?;
            if !opened.blob && adapter.faces.twin(ino).is_some() {
                // What was written through the one inode of the kernel the other knows nothing of.
                (opened.keep_cache, opened.drop_attrs) = (false, true);
            }
            if opened.drop_attrs {
                // Or the caller reads up to the old size. Takes no page lock, so it may be done from here.
                adapter.drop_attrs(node);
            }
            let native = if may_be_native { vfs.native(opened.fh).await } else { None };
            Ok((opened, native))
        };
        let (adapter, unwanted, tid) = (self.clone(), self.clone(), req.pid());
        self.tasks.spawn_with_leftover(
            // To open twice does no harm.
            Job { inline: true, heed: Heed::Stop, ..changing("open", ino, req) },
            work,
            move |result| match result {
                Ok((opened, native)) => adapter.answer_open(tid, node, flags, (opened, native), reply),
                Err(e) => {
                    if e.kind() == Kind::Stale {
                        adapter.faces.looks_again(tid, node);
                    }
                    reply.error(errno("open", ino, &e));
                }
            },
            move |(opened, _)| unwanted.release_unwanted(ino, opened.fh),
        );
    }

    fn answer_open(
        &self,
        tid: u32,
        node: Node,
        flags: i32,
        (opened, native): (Opened, Option<NativeFile>),
        reply: ReplyOpen,
    ) {
        let (ino, fh) = (node.ino, fuser::FileHandle(opened.fh));
        let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let give = native.as_ref().map(|native| || reply.open_backing(native.file()));
        match self.faces.open(tid, node, flags, give) {
            Granted::Native(id) => {
                let mut how = FopenFlags::empty();
                how.set(FopenFlags::FOPEN_NOFLUSH, opened.no_flush);
                reply.opened_passthrough(fh, how, &id);
            }
            Granted::Cached => {
                if writes {
                    // Before the answer: the caller's next request may be faster than this task.
                    self.opens.opened(tid, ino, opened.fh);
                    self.changed_through(node);
                }
                reply.opened(fh, convert::open_flags(&opened));
            }
            refused @ (Granted::LookAgain | Granted::Taken) => {
                tracing::debug!(%ino, tid, ?node, flags, native = native.is_some(), "open: {refused:?}");
                self.release_unwanted(ino, opened.fh);
                let busy = matches!(refused, Granted::Taken) && writes;
                reply.error(if busy { Errno::ETXTBSY } else { Errno::ESTALE });
            }
        }
    }

    /// The kernel is to ask for the attributes of this inode.
    fn drop_attrs(&self, node: Node) {
        if let Some(Err(e)) = self.notifier.get().map(|n| n.inval_inode(INodeNo(node.number()), -1, 0)) {
            tracing::debug!(ino = %node.ino, "dropping the attributes: {e}");
        }
    }

    /// A file was changed through one inode of the kernel: if there is another one of it, its attributes are old.
    pub(super) fn changed_through(&self, node: Node) {
        if let Some(other) = self.faces.other(node) {
            self.drop_attrs(other);
        }
    }

    pub(super) fn read_data(
        &self,
        req: &Request,
        ino: Ino,
        fh: u64,
        (offset, size): (u64, u32),
        reply: ReplyData,
    ) {
        let Some(reply) =
            BUFFER.with_borrow_mut(|buffer| self.read_inline(ino, fh, (offset, size), buffer, reply))
        else {
            return;
        };
        let vfs = self.vfs.clone();
        let work = async move { vfs.read(fh, offset, size).await };
        let job = Job { heed: Heed::Read, ..asking("read", ino, req) };
        let requests = self.tasks.requests.clone();
        self.tasks.spawn(job, work, move |result| match result {
            Ok(data) => {
                requests.gave(data.len());
                reply.data(&data);
            }
            Err(e) => reply.error(errno("read", ino, &e)),
        });
    }

    /// Answers from what is in memory already; hands the reply back when that is not possible.
    fn read_inline(
        &self,
        ino: Ino,
        fh: u64,
        (offset, size): (u64, u32),
        buffer: &mut Vec<u8>,
        reply: ReplyData,
    ) -> Option<ReplyData> {
        let wanted = size as usize;
        if buffer.len() < wanted {
            buffer.resize(wanted, 0);
        }
        let begun = Instant::now();
        let read = guarded("read", ino, || self.vfs.try_read(fh, offset, &mut buffer[..wanted]));
        if !matches!(read, Ok(None)) {
            self.tasks.requests.note("read", begun.elapsed(), !matches!(read, Ok(Some(Ok(_)))));
        }
        match read {
            // Sent from the buffer: nothing is copied but into the kernel.
            Ok(Some(Ok(n))) => {
                self.tasks.requests.gave(n);
                reply.data(&buffer[..n.min(wanted)]);
            }
            Ok(Some(Err(e))) | Err(e) => reply.error(errno("read", ino, &e)),
            Ok(None) => return Some(reply),
        }
        None
    }

    pub(super) fn write_data(
        &self,
        req: &Request,
        node: Node,
        fh: u64,
        (offset, data): (u64, &[u8]),
        from_pages: bool,
        reply: ReplyWrite,
    ) {
        let (ino, adapter) = (node.ino, self.clone());
        // The one copy: the kernel's buffer is reused for the next request.
        let (vfs, data) = (self.vfs.clone(), Bytes::copy_from_slice(data));
        let work = async move {
            if from_pages { vfs.write_at(fh, offset, data).await } else { vfs.write(fh, offset, data).await }
        };
        let requests = self.tasks.requests.clone();
        self.tasks.spawn(changing("write", ino, req), work, move |result| match result {
            Ok(n) => {
                requests.took(n);
                adapter.changed_through(node);
                reply.written(n);
            }
            Err(e) => reply.error(errno("write", ino, &e)),
        });
    }

    pub(super) fn flush_file(&self, req: &Request, node: Node, fh: u64, reply: ReplyEmpty) {
        let (vfs, adapter, ino) = (self.vfs.clone(), self.clone(), node.ino);
        let work = async move { vfs.flush(fh).await };
        // Most closes have nothing to write.
        let job = Job { inline: true, ..changing("flush", ino, req) };
        self.tasks.spawn(job, work, move |r| {
            adapter.changed_through(node);
            answer_empty("flush", ino, r, reply);
        });
    }

    pub(super) fn sync_file(&self, req: &Request, ino: Ino, fh: u64, reply: ReplyEmpty) {
        let vfs = self.vfs.clone();
        let work = async move { vfs.fsync(fh).await };
        self.tasks.spawn(changing("fsync", ino, req), work, move |r| answer_empty("fsync", ino, r, reply));
    }

    pub(super) fn release_file(&self, node: Node, fh: u64, owner: Option<u64>, reply: ReplyEmpty) {
        self.faces.release(node);
        let (vfs, ino) = (self.vfs.clone(), node.ino);
        let work = async move { vfs.release(fh, owner).await };
        self.tasks.spawn(unattended("release", ino), work, move |r| answer_empty("release", ino, r, reply));
    }

    /// Closes a file whose opener gave up before it was open: the kernel knows nothing of it.
    pub(super) fn release_unwanted(&self, ino: Ino, fh: u64) {
        let vfs = self.vfs.clone();
        let work = async move { vfs.release(fh, None).await };
        self.tasks.spawn(unattended("release", ino), work, move |result| {
            if let Err(e) = result {
                errno("release", ino, &e);
            }
        });
    }
}
