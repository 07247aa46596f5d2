//! Requests about the data of files: open, read, write, and what ends with close.

use std::cell::RefCell;
use std::time::Instant;

use bytes::Bytes;
use fuser::{INodeNo, ReplyData, ReplyEmpty, ReplyOpen, ReplyWrite, Request};

use super::adapter::{Adapter, asking, caller, changing, unattended};
use super::convert;
use super::interrupt::Heed;
use super::names::answer_empty;
use super::reply::errno;
use super::tasks::{Job, guarded};
use crate::types::Ino;

thread_local! {
    /// What an inline read is read into: as large as the largest read so far on this loop thread, 1 MiB at most.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Adapter {
    pub(super) fn open_file(&self, req: &Request, ino: Ino, flags: i32, reply: ReplyOpen) {
        let (vfs, notifier, caller) = (self.vfs.clone(), self.notifier.clone(), caller(req));
        let work = async move {
            let opened = vfs.open_by(&caller, ino, flags).await?;
            if opened.drop_attrs {
                // Or the caller reads up to the old size. Takes no page lock, so it may be done from here.
                if let Some(Err(e)) = notifier.get().map(|n| n.inval_inode(INodeNo(ino.0), -1, 0)) {
                    tracing::debug!(%ino, "dropping the attributes: {e}");
                }
            }
            Ok(opened)
        };
        let unwanted = self.clone();
        let (opens, tid) = (self.opens.clone(), req.pid());
        self.tasks.spawn_with_leftover(
            // To open twice does no harm.
            Job { inline: true, heed: Heed::Stop, ..changing("open", ino, req) },
            work,
            move |result| match result {
                Ok(opened) => {
                    if flags & libc::O_ACCMODE != libc::O_RDONLY {
                        // Before the answer: the caller's next request may be faster than this task.
                        opens.opened(tid, ino, opened.fh);
                    }
                    reply.opened(fuser::FileHandle(opened.fh), convert::open_flags(&opened));
                }
                Err(e) => reply.error(errno("open", ino, &e)),
            },
            move |opened| unwanted.release_unwanted(ino, opened.fh),
        );
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
        ino: Ino,
        fh: u64,
        (offset, data): (u64, &[u8]),
        from_pages: bool,
        reply: ReplyWrite,
    ) {
        // The one copy: the kernel's buffer is reused for the next request.
        let (vfs, data) = (self.vfs.clone(), Bytes::copy_from_slice(data));
        let work = async move {
            if from_pages { vfs.write_at(fh, offset, data).await } else { vfs.write(fh, offset, data).await }
        };
        let requests = self.tasks.requests.clone();
        self.tasks.spawn(changing("write", ino, req), work, move |result| match result {
            Ok(n) => {
                requests.took(n);
                reply.written(n);
            }
            Err(e) => reply.error(errno("write", ino, &e)),
        });
    }

    pub(super) fn flush_file(&self, req: &Request, ino: Ino, fh: u64, reply: ReplyEmpty) {
        let vfs = self.vfs.clone();
        let work = async move { vfs.flush(fh).await };
        // Most closes have nothing to write.
        let job = Job { inline: true, ..changing("flush", ino, req) };
        self.tasks.spawn(job, work, move |r| answer_empty("flush", ino, r, reply));
    }

    pub(super) fn sync_file(&self, req: &Request, ino: Ino, fh: u64, reply: ReplyEmpty) {
        let vfs = self.vfs.clone();
        let work = async move { vfs.fsync(fh).await };
        self.tasks.spawn(changing("fsync", ino, req), work, move |r| answer_empty("fsync", ino, r, reply));
    }

    pub(super) fn release_file(&self, ino: Ino, fh: u64, owner: Option<u64>, reply: ReplyEmpty) {
        let vfs = self.vfs.clone();
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
