//! Requests about attributes: of inodes and of the file system.

use std::time::{Duration, Instant};

use fuser::{ReplyAttr, ReplyData, ReplyStatfs, Request};

use super::adapter::{Adapter, asking, changing};
use super::convert;
use super::faces::Node;
use super::reply::errno;
use super::tasks::guarded;
use crate::error::Result;
use crate::types::Ino;
use crate::vfs::{SetAttr, Stat};

fn answer_attr(op: &'static str, ino: Ino, result: Result<(Stat, Duration)>, reply: ReplyAttr) {
    match result {
        Ok((stat, ttl)) => reply.attr(&convert::ttl(ttl), &convert::attr(&stat)),
        Err(e) => reply.error(errno(op, ino, &e)),
    }
}

impl Adapter {
    pub(super) fn get_attr(&self, req: &Request, ino: Ino, fh: Option<u64>, reply: ReplyAttr) {
        let begun = Instant::now();
        let known = guarded("getattr", ino, || self.vfs.try_getattr(ino));
        if !matches!(known, Ok(None)) {
            self.tasks.requests.note("getattr", begun.elapsed(), !matches!(known, Ok(Some(Ok(_)))));
        }
        match known {
            Ok(Some(result)) => return answer_attr("getattr", ino, result, reply),
            Ok(None) => {}
            Err(e) => return answer_attr("getattr", ino, Err(e), reply),
        }
        let vfs = self.vfs.clone();
        let work = async move { vfs.getattr(ino, fh).await };
        self.tasks.spawn(asking("getattr", ino, req), work, move |r| answer_attr("getattr", ino, r, reply));
    }

    pub(super) fn set_attr(
        &self,
        req: &Request,
        node: Node,
        fh: Option<u64>,
        mut change: SetAttr,
        reply: ReplyAttr,
    ) {
        let ino = node.ino;
        if (change.size, fh) == (Some(0), None) {
            change.opening = self.opens.take(req.pid(), ino);
        }
        let (vfs, adapter) = (self.vfs.clone(), self.clone());
        let work = async move { vfs.setattr(ino, fh, change).await };
        self.tasks.spawn(changing("setattr", ino, req), work, move |r| {
            adapter.changed_through(node);
            answer_attr("setattr", ino, r, reply);
        });
    }

    pub(super) fn read_link(&self, req: &Request, ino: Ino, reply: ReplyData) {
        let vfs = self.vfs.clone();
        let work = async move { vfs.readlink(ino).await };
        self.tasks.spawn(asking("readlink", ino, req), work, move |result| match result {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno("readlink", ino, &e)),
        });
    }

    pub(super) fn stat_fs(&self, req: &Request, ino: Ino, reply: ReplyStatfs) {
        let vfs = self.vfs.clone();
        let work = async move { vfs.statfs().await };
        self.tasks.spawn(asking("statfs", ino, req), work, move |result| match result {
            Ok(s) => {
                reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize);
            }
            Err(e) => reply.error(errno("statfs", ino, &e)),
        });
    }
}
