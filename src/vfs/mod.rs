//! POSIX behaviour: names, open files, reads, writes, locks. Answers values and errors, never kernel replies.
#![allow(clippy::unused_async, unused_variables, missing_docs)]
pub mod types;
use crate::error::{Kind, Result};
use crate::types::Ino;
use bytes::Bytes;
use std::sync::mpsc::Receiver;
use std::time::Duration;
pub use types::*;

#[derive(Debug)]
pub struct Vfs {}

macro_rules! absent {
    () => {
        Err(Kind::NotImplemented.into())
    };
}

impl Vfs {
    pub fn try_lookup(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Option<Result<Lookup>> {
        None
    }
    pub async fn lookup(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<Lookup> {
        absent!()
    }
    pub fn try_getattr(&self, caller: &Caller, ino: Ino) -> Option<Result<(Stat, Duration)>> {
        None
    }
    pub async fn getattr(&self, caller: &Caller, ino: Ino) -> Result<(Stat, Duration)> {
        absent!()
    }
    pub async fn setattr(
        &self,
        c: &Caller,
        ino: Ino,
        fh: Option<u64>,
        set: SetAttr,
    ) -> Result<(Stat, Duration)> {
        absent!()
    }
    pub async fn readlink(&self, caller: &Caller, ino: Ino) -> Result<Bytes> {
        absent!()
    }
    pub async fn mknod(&self, c: &Caller, parent: Ino, name: &[u8], mode: u32, rdev: u32) -> Result<Entry> {
        absent!()
    }
    pub async fn mkdir(&self, caller: &Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Entry> {
        absent!()
    }
    pub async fn symlink(&self, caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Entry> {
        absent!()
    }
    pub async fn link(&self, caller: &Caller, ino: Ino, parent: Ino, name: &[u8]) -> Result<Entry> {
        absent!()
    }
    pub async fn unlink(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        absent!()
    }
    pub async fn rmdir(&self, caller: &Caller, parent: Ino, name: &[u8]) -> Result<()> {
        absent!()
    }
    pub async fn rename(
        &self,
        c: &Caller,
        from: Ino,
        name: &[u8],
        to: Ino,
        new: &[u8],
        flags: u32,
    ) -> Result<()> {
        absent!()
    }
    pub async fn open(&self, caller: &Caller, ino: Ino, flags: i32) -> Result<Opened> {
        absent!()
    }
    pub async fn create(
        &self,
        c: &Caller,
        p: Ino,
        n: &[u8],
        mode: u32,
        flags: i32,
    ) -> Result<(Entry, Opened)> {
        absent!()
    }
    pub fn try_read(&self, fh: u64, offset: u64, buf: &mut [u8]) -> Option<Result<usize>> {
        None
    }
    pub async fn read(&self, ino: Ino, fh: u64, offset: u64, size: u32) -> Result<Bytes> {
        absent!()
    }
    pub async fn write(&self, ino: Ino, fh: u64, offset: u64, data: Bytes) -> Result<u32> {
        absent!()
    }
    pub async fn flush(&self, ino: Ino, fh: u64, lock_owner: u64) -> Result<()> {
        absent!()
    }
    pub async fn fsync(&self, ino: Ino, fh: u64, datasync: bool) -> Result<()> {
        absent!()
    }
    pub async fn release(&self, ino: Ino, fh: u64, flock_owner: Option<u64>) -> Result<()> {
        absent!()
    }
    pub async fn opendir(&self, caller: &Caller, ino: Ino) -> Result<(u64, bool, bool)> {
        absent!()
    }
    pub async fn readdir(
        &self,
        c: &Caller,
        i: Ino,
        fh: u64,
        o: u64,
        plus: bool,
        max: usize,
    ) -> Result<Vec<DirItem>> {
        absent!()
    }
    pub async fn releasedir(&self, ino: Ino, fh: u64) -> Result<()> {
        absent!()
    }
    pub async fn fsyncdir(&self, ino: Ino, fh: u64) -> Result<()> {
        absent!()
    }
    pub async fn statfs(&self) -> Result<StatFs> {
        absent!()
    }
    pub async fn flock(&self, ino: Ino, fh: u64, owner: u64, kind: Flock, wait: bool) -> Result<()> {
        absent!()
    }
    pub fn forget(&self, ino: Ino, count: u64) {}
    pub fn take_invalidations(&self) -> Receiver<Invalidation> {
        std::sync::mpsc::sync_channel(1).1
    }
}
