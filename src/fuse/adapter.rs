//! The kernel's requests, one method each: decode and hand on. What cannot be had here is refused explicitly, in the
//! way that makes the kernel stop asking or fall back.

use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use fuser::{
    AccessFlags, BackingId, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo,
    IoctlFlags, KernelConfig, LockOwner, Notifier, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::faces::{Faces, Node};
use super::interrupt::Heed;
use super::opens::Opens;
use super::tasks::{Abandoned, Job, Tasks};
use super::{convert, init};
use crate::types::Ino;
use crate::vfs::{Caller, Vfs};

/// Translates between the kernel and the file system.
#[derive(Clone, Debug)]
pub(super) struct Adapter {
    pub(super) vfs: Arc<Vfs>,
    pub(super) tasks: Tasks,
    /// Set before the first request is read.
    pub(super) notifier: Arc<OnceLock<Notifier>>,
    pub(super) opens: Arc<Opens>,
    pub(super) faces: Arc<Faces<BackingId>>,
    /// How deep the file systems under the cache's files are stacked; 0: the kernel is not to read them by itself.
    pub(super) stack_depth: u32,
    /// Whether the kernel agreed to read files by itself.
    pub(super) may_pass: Arc<AtomicBool>,
}

pub(super) fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

/// A request that changes nothing: it stops when its caller does.
pub(super) fn asking(op: &'static str, ino: Ino, req: &Request) -> Job {
    Job { op, ino, tid: req.pid(), heed: Heed::Stop, abandoned: Abandoned::Stops, inline: true }
}

/// A request that may be half done when its caller goes.
pub(super) fn changing(op: &'static str, ino: Ino, req: &Request) -> Job {
    Job { heed: Heed::Fatal, abandoned: Abandoned::GoesOn, inline: false, ..asking(op, ino, req) }
}

/// A request for whose answer nobody waits.
pub(super) fn unattended(op: &'static str, ino: Ino) -> Job {
    Job { op, ino, tid: 0, heed: Heed::Nothing, abandoned: Abandoned::GoesOn, inline: true }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let agreed = init::configure(config, self.stack_depth);
        self.may_pass.store(agreed, Ordering::SeqCst);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.look_up(req, convert::ino(parent), name, reply);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, count: u64) {
        if self.faces.forget(Node::of(ino.0), count) {
            self.vfs.forget(convert::ino(ino), count);
        }
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.get_attr(req, convert::ino(ino), fh.map(|fh| fh.0), reply);
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = convert::set_attr(mode, (uid, gid), size, atime, mtime);
        self.set_attr(req, Node::of(ino.0), fh.map(|fh| fh.0), change, reply);
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        self.read_link(req, convert::ino(ino), reply);
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.make_node(req, convert::ino(parent), name, (mode, rdev), reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        self.make_dir(req, convert::ino(parent), name, mode, reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove_file(req, convert::ino(parent), name, reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove_dir(req, convert::ino(parent), name, reply);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &std::path::Path,
        reply: ReplyEntry,
    ) {
        self.make_symlink(req, convert::ino(parent), link_name, target.as_os_str(), reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = ((convert::ino(parent), name), (convert::ino(newparent), newname));
        self.rename_entry(req, from, to, flags.bits(), reply);
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.make_link(req, Node::of(ino.0), convert::ino(newparent), newname, reply);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.open_file(req, Node::of(ino.0), flags.0, reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.create_file(req, convert::ino(parent), name, (mode, flags), reply);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.read_data(req, convert::ino(ino), fh.0, (offset, size), reply);
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // What comes out of the kernel's pages was written through a mapping, by whoever has one: its place is
        // its place, though the handle that the kernel lends it appends.
        let from_pages = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        self.write_data(req, Node::of(ino.0), fh.0, (offset, data), from_pages, reply);
    }

    fn flush(&self, req: &Request, ino: INodeNo, fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        self.flush_file(req, Node::of(ino.0), fh.0, reply);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.release_file(Node::of(ino.0), fh.0, lock_owner.map(|o| o.0), reply);
    }

    fn fsync(&self, req: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync_file(req, convert::ino(ino), fh.0, reply);
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.open_dir(req, convert::ino(ino), reply);
    }

    fn readdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.read_dir(req, convert::ino(ino), offset, reply);
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.read_dir_plus(req, convert::ino(ino), offset, reply);
    }

    /// Listings hold nothing between requests.
    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    /// Every change of names is durable before it is answered.
    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.stat_fs(req, convert::ino(ino), reply);
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.set_xattr(req, convert::ino(ino), (name, value), flags, reply);
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.get_xattr(req, convert::ino(ino), name, size, reply);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.list_xattr(req, convert::ino(ino), size, reply);
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove_xattr(req, convert::ino(ino), name, reply);
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        typ: i32,
        _pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        self.lock_file(req, convert::ino(ino), (fh.0, lock_owner.0), typ, sleep, reply);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.allocate(req, convert::ino(ino), fh.0, (offset, length), mode, reply);
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.seek(req, convert::ino(ino), fh.0, (offset, whence), reply);
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let (from, to) = ((fh_in.0, offset_in), (fh_out.0, offset_out));
        self.copy_range(req, convert::ino(ino_out), from, to, len, reply);
    }

    // From here on: what does not exist here. ENOSYS makes the kernel answer by itself from then on.

    /// POSIX locks are not asked for, so the kernel keeps them by itself.
    fn getlk(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        reply.error(Errno::ENOSYS);
    }

    /// The kernel checks permissions by itself (`default_permissions`).
    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn bmap(&self, _req: &Request, _ino: INodeNo, _blocksize: u32, _idx: u64, reply: ReplyBmap) {
        reply.error(Errno::ENOSYS);
    }

    /// What every file system says to an ioctl that it does not know.
    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
