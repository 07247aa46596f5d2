//! Requests about extended attributes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;
use fuser::{Errno, ReplyEmpty, ReplyXattr, Request};

use super::adapter::{Adapter, asking, caller, changing};
use super::names::answer_empty;
use super::reply::errno;
use crate::error::Result;
use crate::types::Ino;
use crate::vfs::Vfs;

/// A `size` of 0 asks how large the answer is; one that is too small is an error of its own.
fn answer_value(op: &'static str, ino: Ino, size: u32, result: Result<Bytes>, reply: ReplyXattr) {
    match result {
        Ok(value) => match u32::try_from(value.len()) {
            Ok(len) if size == 0 => reply.size(len),
            Ok(len) if len <= size => reply.data(&value),
            _ => reply.error(Errno::ERANGE),
        },
        Err(e) => reply.error(errno(op, ino, &e)),
    }
}

impl Adapter {
    pub(super) fn get_xattr(&self, req: &Request, ino: Ino, name: &OsStr, size: u32, reply: ReplyXattr) {
        // The kernel asks so before every write.
        if let Some(kind) = Vfs::xattr_refusal(name.as_bytes()) {
            return reply.error(Errno::from_i32(kind.errno()));
        }
        let (vfs, name) = (self.vfs.clone(), Bytes::copy_from_slice(name.as_bytes()));
        let work = async move { vfs.getxattr(ino, &name).await };
        self.tasks.spawn(asking("getxattr", ino, req), work, move |r| {
            answer_value("getxattr", ino, size, r, reply);
        });
    }

    pub(super) fn list_xattr(&self, req: &Request, ino: Ino, size: u32, reply: ReplyXattr) {
        let (vfs, caller) = (self.vfs.clone(), caller(req));
        let work = async move { vfs.listxattr(&caller, ino).await };
        self.tasks.spawn(asking("listxattr", ino, req), work, move |r| {
            answer_value("listxattr", ino, size, r, reply);
        });
    }

    pub(super) fn set_xattr(
        &self,
        req: &Request,
        ino: Ino,
        (name, value): (&OsStr, &[u8]),
        flags: i32,
        reply: ReplyEmpty,
    ) {
        let (name, value) = (Bytes::copy_from_slice(name.as_bytes()), Bytes::copy_from_slice(value));
        let vfs = self.vfs.clone();
        let work = async move { vfs.setxattr(ino, &name, &value, flags).await };
        self.tasks
            .spawn(changing("setxattr", ino, req), work, move |r| answer_empty("setxattr", ino, r, reply));
    }

    pub(super) fn remove_xattr(&self, req: &Request, ino: Ino, name: &OsStr, reply: ReplyEmpty) {
        let (vfs, name) = (self.vfs.clone(), Bytes::copy_from_slice(name.as_bytes()));
        let work = async move { vfs.removexattr(ino, &name).await };
        self.tasks.spawn(changing("removexattr", ino, req), work, move |r| {
            answer_empty("removexattr", ino, r, reply);
        });
    }
}
