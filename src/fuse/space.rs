//! Requests about where data lies in a file: fallocate(2), lseek(2), copy_file_range(2).

use fuser::{Errno, ReplyEmpty, ReplyLseek, ReplyWrite, Request};

use super::adapter::{Adapter, asking, changing};
use super::names::answer_empty;
use super::reply::errno;
use crate::types::Ino;

impl Adapter {
    pub(super) fn allocate(
        &self,
        req: &Request,
        ino: Ino,
        fh: u64,
        (offset, len): (u64, u64),
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let vfs = self.vfs.clone();
        let work = async move { vfs.fallocate(fh, offset, len, mode).await };
        self.tasks
            .spawn(changing("fallocate", ino, req), work, move |r| answer_empty("fallocate", ino, r, reply));
    }

    pub(super) fn seek(
        &self,
        req: &Request,
        ino: Ino,
        fh: u64,
        (offset, whence): (i64, i32),
        reply: ReplyLseek,
    ) {
        let vfs = self.vfs.clone();
        let work = async move { vfs.lseek(fh, offset, whence).await };
        self.tasks.spawn(asking("lseek", ino, req), work, move |result| match result {
            Ok(at) => match i64::try_from(at) {
                Ok(at) => reply.offset(at),
                Err(_) => reply.error(Errno::EOVERFLOW),
            },
            Err(e) => reply.error(errno("lseek", ino, &e)),
        });
    }

    pub(super) fn copy_range(
        &self,
        req: &Request,
        ino: Ino,
        from: (u64, u64),
        to: (u64, u64),
        len: u64,
        reply: ReplyWrite,
    ) {
        let vfs = self.vfs.clone();
        let work = async move { vfs.copy_file_range(from, to, len).await };
        self.tasks.spawn(changing("copy_file_range", ino, req), work, move |result| match result {
            Ok(n) => reply.written(n),
            Err(e) => reply.error(errno("copy_file_range", ino, &e)),
        });
    }
}
