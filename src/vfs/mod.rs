//! POSIX behaviour: names, open files, reads, writes, locks. Answers values and errors, never kernel replies.
#![allow(clippy::unused_async, unused_variables, missing_docs)]
pub mod types;
use crate::error::{Kind, Result};
use crate::types::{FileType, Ino};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
pub use types::*;

#[derive(Debug)]
pub struct Vfs {}

#[derive(Debug)]
pub struct OpenedDir {
    pub cache_dir: bool,
    pub keep_cache: bool,
}

macro_rules! absent {
    ($($(#$a:tt)? $name:ident($($arg:ident: $t:ty),*) -> $r:ty;)*) => {
        $(pub async fn $name(self: &Arc<Self>, $($arg: $t),*) -> Result<$r> { Err(Kind::NotImplemented.into()) })*
    };
}

impl Vfs {
    pub fn try_getattr(&self, ino: Ino) -> Option<Result<(Stat, Duration)>> {
        None
    }
    pub fn try_read(&self, fh: u64, offset: u64, buf: &mut [u8]) -> Option<Result<usize>> {
        None
    }
    pub fn forget(&self, ino: Ino, n: u64) {}
    absent! {
        lookup(caller: &Caller, parent: Ino, name: &[u8]) -> Lookup;
        getattr(ino: Ino, fh: Option<u64>) -> (Stat, Duration);
        setattr(caller: &Caller, ino: Ino, fh: Option<u64>, set: SetAttr) -> (Stat, Duration);
        readlink(ino: Ino) -> Bytes;
        mknod(caller: &Caller, parent: Ino, name: &[u8], kind: FileType, mode: u16, rdev: u32) -> Entry;
        mkdir(caller: &Caller, parent: Ino, name: &[u8], mode: u16) -> Entry;
        symlink(caller: &Caller, parent: Ino, name: &[u8], target: &[u8]) -> Entry;
        link(ino: Ino, parent: Ino, name: &[u8]) -> Entry;
        unlink(caller: &Caller, parent: Ino, name: &[u8]) -> ();
        rmdir(caller: &Caller, parent: Ino, name: &[u8]) -> ();
        rename(caller: &Caller, from: (Ino, &[u8]), to: (Ino, &[u8]), flags: u32) -> ();
        open(ino: Ino, flags: i32) -> Opened;
        create(caller: &Caller, parent: Ino, name: &[u8], mode: u16, flags: i32) -> (Entry, Opened);
        read(fh: u64, offset: u64, size: u32) -> Bytes;
        write(fh: u64, offset: u64, data: Bytes) -> u32;
        flush(fh: u64) -> ();
        fsync(fh: u64) -> ();
        release(fh: u64, flock_owner: Option<u64>) -> ();
        opendir(ino: Ino) -> OpenedDir;
        readdir(ino: Ino, offset: u64, plus: bool, max: usize) -> Vec<DirItem>;
        statfs() -> StatFs;
        flock(fh: u64, owner: u64, kind: Flock, wait: bool) -> ();
    }
}
