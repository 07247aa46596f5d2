//! One of the directories that are compared: operations are done in it, and what they answer is put in a form in which two
//! file systems must agree.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::op::{Op, SLOTS};

type Answer = Result<Value, Errno>;

/// What an operation answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    Done,
    Count(u64),
    Bytes(Vec<u8>),
    Stat(Stat),
    Names(BTreeMap<Vec<u8>, String>),
    /// There is no such open file.
    NoSlot,
}

/// What two file systems must say alike of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    kind: String,
    mode: u32,
    links: u64,
    owner: (u32, u32),
    /// Of directories each file system has its own idea.
    size: u64,
    /// If a program set it.
    mtime: Option<i64>,
}

/// Paths, with what they are and what is in them.
pub type Tree = BTreeMap<String, (Stat, Option<Value>)>;

/// A directory, with the files that are open in it.
pub struct Side {
    root: PathBuf,
    /// Whether directories count their subdirectories as links.
    counts_dirs: bool,
    slots: [Option<OwnedFd>; SLOTS],
}

/// Times of programs are before this, those of the clock after it (seconds).
const LATELY: i64 = 1_500_000_000;

impl Side {
    pub fn new(root: &Path, counts_dirs: bool) -> Self {
        Side { root: root.to_owned(), counts_dirs, slots: Default::default() }
    }

    pub fn close_all(&mut self) {
        self.slots = Default::default();
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub fn apply(&mut self, op: &Op) -> Answer {
        match op {
            Op::Open { slot, path, flags, mode } => {
                let fd = fs::open(self.at(path), *flags, Mode::from_raw_mode(*mode))?;
                self.slots[*slot] = Some(fd);
                return Ok(Value::Done);
            }
            Op::Close { slot } => {
                self.slots[*slot] = None;
                return Ok(Value::Done);
            }
            Op::Dup { from, to } => {
                let Some(fd) = &self.slots[*from] else { return Ok(Value::NoSlot) };
                self.slots[*to] = Some(rustix::io::dup(fd)?);
                return Ok(Value::Done);
            }
            Op::CopyRange { from, to, offset, len } => return self.copy(*from, *to, *offset, *len),
            _ => {}
        }
        match op {
            Op::Pwrite { slot, .. }
            | Op::Write { slot, .. }
            | Op::Pread { slot, .. }
            | Op::Ftruncate { slot, .. }
            | Op::Fallocate { slot, .. }
            | Op::Seek { slot, .. }
            | Op::Fsync { slot }
            | Op::Fstat { slot }
            | Op::Fchmod { slot, .. }
            | Op::MapRead { slot, .. }
            | Op::MapWrite { slot, .. } => match &self.slots[*slot] {
                Some(fd) => self.on_file(fd, op),
                None => Ok(Value::NoSlot),
            },
            _ => self.on_path(op),
        }
    }

    fn on_file(&self, fd: &OwnedFd, op: &Op) -> Answer {
        match op {
            Op::Pwrite { offset, len, seed, .. } => {
                Ok(Value::Count(rustix::io::pwrite(fd, &data(*seed, *len), *offset)? as u64))
            }
            Op::Write { len, seed, .. } => {
                Ok(Value::Count(rustix::io::write(fd, &data(*seed, *len))? as u64))
            }
            Op::Pread { offset, len, .. } => {
                let mut buffer = vec![0; *len];
                let n = rustix::io::pread(fd, &mut buffer[..], *offset)?;
                buffer.truncate(n);
                Ok(Value::Bytes(buffer))
            }
            Op::Ftruncate { size, .. } => done(fs::ftruncate(fd, *size)),
            Op::Fallocate { .. } | Op::Seek { .. } if !is(fd, FileType::RegularFile) => Ok(Value::NoSlot),
            Op::Fallocate { flags, offset, len, .. } => {
                fs::fallocate(fd, *flags, *offset, *len)?;
                // Whether it changes the time where it changes nothing depends on the kernel.
                let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
                done(fs::futimens(fd, &Timestamps { last_access: now, last_modification: now }))
            }
            Op::Seek { offset, .. } => seek(fd, *offset),
            // Not through the file system, or nothing that two of them agree on.
            Op::Fsync { .. } | Op::Fchmod { .. } if is(fd, FileType::Fifo) => Ok(Value::Done),
            Op::Fsync { .. } => done(fs::fsync(fd)),
            Op::Fstat { .. } => Ok(Value::Stat(self.stat_of(&fs::fstat(fd)?))),
            Op::Fchmod { mode, .. } => done(fs::fchmod(fd, Mode::from_raw_mode(*mode))),
            Op::MapRead { offset, len, .. } => mapped(fd, *offset, *len, None),
            Op::MapWrite { offset, len, seed, .. } => mapped(fd, *offset, *len, Some(*seed)),
            _ => unreachable!("not of a file: {op:?}"),
        }
    }

    fn copy(&self, from: usize, to: usize, offset: u64, len: usize) -> Answer {
        let (Some(source), Some(target)) = (&self.slots[from], &self.slots[to]) else {
            return Ok(Value::NoSlot);
        };
        // Overlaps and what is no regular file: other errors on other file systems.
        if from == to || !is(source, FileType::RegularFile) || !is(target, FileType::RegularFile) {
            return Ok(Value::NoSlot);
        }
        if fs::fstat(source)?.st_ino == fs::fstat(target)?.st_ino {
            return Ok(Value::NoSlot);
        }
        let (mut at, mut end) = (offset, offset);
        Ok(Value::Count(fs::copy_file_range(source, Some(&mut at), target, Some(&mut end), len)? as u64))
    }

    fn on_path(&self, op: &Op) -> Answer {
        let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
        match op {
            Op::Mkdir { path, mode } => done(fs::mkdir(self.at(path), Mode::from_raw_mode(*mode))),
            Op::Mknod { path, mode } => {
                let mode = Mode::from_raw_mode(*mode);
                done(fs::mknodat(CWD, self.at(path), FileType::Fifo, mode, 0))
            }
            Op::Truncate { path, size } => done(truncate(&self.at(path), *size)),
            Op::Rename { from, to, flags } => {
                done(fs::renameat_with(CWD, self.at(from), CWD, self.at(to), *flags))
            }
            // Relative to where the link lies.
            Op::Symlink { target, path } => done(fs::symlink(target.as_str(), self.at(path))),
            Op::Readlink { path } => Ok(Value::Bytes(fs::readlink(self.at(path), Vec::new())?.into_bytes())),
            Op::Link { from, to } => done(fs::link(self.at(from), self.at(to))),
            Op::Unlink { path } => done(fs::unlink(self.at(path))),
            Op::Rmdir { path } => done(fs::rmdir(self.at(path))),
            Op::Chmod { path, mode } => done(fs::chmod(self.at(path), Mode::from_raw_mode(*mode))),
            Op::Chown { path, uid, gid } => {
                let (uid, gid) = (fs::Uid::from_raw(*uid), fs::Gid::from_raw(*gid));
                done(fs::chownat(CWD, self.at(path), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW))
            }
            Op::Utimens { path, mtime } => {
                let times = Timestamps {
                    last_access: now,
                    last_modification: Timespec { tv_sec: *mtime, tv_nsec: 123_456_789 },
                };
                done(fs::utimensat(CWD, self.at(path), &times, AtFlags::SYMLINK_NOFOLLOW))
            }
            Op::Stat { path } => Ok(Value::Stat(self.stat_of(&fs::lstat(self.at(path))?))),
            Op::List { path } => self.list(path),
            Op::ReadFile { path } => self.read_file(path),
            _ => unreachable!("not of a path: {op:?}"),
        }
    }

    fn list(&self, path: &str) -> Answer {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = fs::open(self.at(path), flags, Mode::empty())?;
        let mut names = BTreeMap::new();
        for entry in fs::Dir::read_from(fd)? {
            let entry = entry?;
            let kind = format!("{:?}", entry.file_type());
            let twice = names.insert(entry.file_name().to_bytes().to_vec(), kind);
            assert_eq!(twice, None, "listed twice in {path}: {:?}", entry.file_name());
        }
        Ok(Value::Names(names))
    }

    fn read_file(&self, path: &str) -> Answer {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = fs::open(self.at(path), flags, Mode::empty())?;
        let mut content = Vec::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match rustix::io::read(&fd, &mut buffer[..])? {
                0 => return Ok(Value::Bytes(content)),
                n => content.extend_from_slice(&buffer[..n]),
            }
        }
    }

    fn stat_of(&self, stat: &fs::Stat) -> Stat {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_dir = kind == FileType::Directory;
        Stat {
            kind: format!("{kind:?}"),
            mode: stat.st_mode & 0o7777,
            links: if is_dir && !self.counts_dirs { 0 } else { stat.st_nlink },
            owner: (stat.st_uid, stat.st_gid),
            size: if is_dir { 0 } else { stat.st_size as u64 },
            // What goes through a fifo may or may not count as a change of it.
            mtime: (stat.st_mtime < LATELY && kind != FileType::Fifo).then_some(stat.st_mtime),
        }
    }

    /// Everything below: what each path is, and what is in it. `None` if something of it vanishes meanwhile.
    pub fn tree(&self) -> Option<Tree> {
        let mut found = BTreeMap::new();
        let mut waiting = vec![String::from(".")];
        while let Some(path) = waiting.pop() {
            let stat = match self.on_path(&Op::Stat { path: path.clone() }) {
                Ok(Value::Stat(stat)) => stat,
                _ => return None,
            };
            let content = match stat.kind.as_str() {
                "Directory" => {
                    let Ok(Value::Names(names)) = self.list(&path) else { return None };
                    for name in names.keys().filter(|n| *n != b"." && *n != b"..") {
                        waiting.push(format!("{path}/{}", String::from_utf8_lossy(name)));
                    }
                    Some(Value::Names(names))
                }
                "RegularFile" => Some(self.read_file(&path).ok()?),
                "Symlink" => Some(self.on_path(&Op::Readlink { path: path.clone() }).ok()?),
                _ => None,
            };
            found.insert(path, (stat, content));
        }
        Some(found)
    }
}

/// Whether the file system of `dir` counts subdirectories as links.
pub fn counts_dirs(dir: &Path) -> bool {
    let probe = dir.join("probe");
    std::fs::create_dir_all(probe.join("sub")).expect("mkdir");
    let links = fs::stat(&probe).expect("stat").st_nlink;
    std::fs::remove_dir_all(&probe).expect("remove");
    links == 3
}

fn done(result: Result<(), Errno>) -> Answer {
    result.map(|()| Value::Done)
}

fn is(fd: &OwnedFd, kind: FileType) -> bool {
    fs::fstat(fd).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == kind)
}

fn data(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| seed.wrapping_add((n % 251) as u8)).collect()
}

/// How finely file systems tell holes is their own affair; what one calls a hole is zeros, and the end of the file counts.
fn seek(fd: &OwnedFd, offset: u64) -> Answer {
    let before = fs::tell(fd)?;
    let (data, hole) = (fs::seek(fd, fs::SeekFrom::Data(offset)), fs::seek(fd, fs::SeekFrom::Hole(offset)));
    fs::seek(fd, fs::SeekFrom::Start(before))?;
    let size = fs::fstat(fd)?.st_size as u64;
    if offset >= size {
        return Ok(Value::Count(data.and(hole)?));
    }
    let (data, hole) = (data.or_else(|e| if e == Errno::NXIO { Ok(size) } else { Err(e) })?, hole?);
    assert!(offset <= data && offset <= hole && data.max(hole) <= size, "{offset} {data} {hole} {size}");
    assert!((data == offset) != (hole == offset), "either data or a hole at {offset}");
    let mut between = vec![1; (data - offset) as usize];
    match rustix::io::pread(fd, &mut between[..], offset) {
        Ok(n) => assert!(n == between.len() && between.iter().all(|b| *b == 0), "a hole of zeros"),
        // Opened for writing.
        Err(Errno::BADF) => {}
        Err(e) => return Err(e),
    }
    Ok(Value::Done)
}

fn truncate(path: &Path, size: u64) -> Result<(), Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
    let size = i64::try_from(size).expect("small");
    // SAFETY: the path is a C string that lives until after the call.
    match unsafe { libc::truncate(path.as_ptr(), size) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).expect("errno")),
    }
}

/// Reads or writes through a shared mapping, as far as the file goes.
fn mapped(fd: &OwnedFd, offset: u64, len: usize, write: Option<u8>) -> Answer {
    if !is(fd, FileType::RegularFile) {
        return Ok(Value::NoSlot);
    }
    let size = fs::fstat(fd)?.st_size as u64;
    let page = 4096;
    let start = offset / page * page;
    let end = (offset + len as u64).min(size);
    if start >= end || offset >= end {
        return Ok(Value::Count(0));
    }
    let (skip, total) = ((offset - start) as usize, (end - start) as usize);
    let protection = libc::PROT_READ | if write.is_some() { libc::PROT_WRITE } else { 0 };
    let place = i64::try_from(start).expect("small");
    // SAFETY: a new mapping at a place that the kernel chooses.
    let map = unsafe {
        libc::mmap(std::ptr::null_mut(), total, protection, libc::MAP_SHARED, fd.as_raw_fd(), place)
    };
    if map == libc::MAP_FAILED {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).expect("errno"));
    }
    let bytes = if let Some(seed) = write {
        // SAFETY: the mapping is writable and `total` bytes long, all within the file, and nobody else uses it.
        let slice = unsafe { std::slice::from_raw_parts_mut(map.cast::<u8>(), total) };
        slice[skip..].copy_from_slice(&data(seed, total - skip));
        // SAFETY: of the whole mapping.
        assert_eq!(unsafe { libc::msync(map, total, libc::MS_SYNC) }, 0, "msync");
        Vec::new()
    } else {
        // SAFETY: the mapping is `total` bytes long, all within the file.
        let slice = unsafe { std::slice::from_raw_parts(map.cast::<u8>(), total) };
        slice[skip..].to_vec()
    };
    // SAFETY: nothing refers to the mapping any more.
    assert_eq!(unsafe { libc::munmap(map, total) }, 0, "munmap");
    Ok(Value::Bytes(bytes))
}
