//! Between the file system's values and the kernel's.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FopenFlags, INodeNo};

use super::faces::Node;
use crate::types::{FileType, Ino, Timestamp};
use crate::vfs::{Entry, Opened, SetAttr, Stat, TimeOrNow};

/// What `stat` reports as the best transfer size. The kernel also takes it for the inode's block size, and block sizes
/// above a page are a corner that its read path has stumbled over; its readahead makes large requests all the same.
const BLOCK_SIZE: u32 = 4096;

/// The file of which the kernel means an inode.
pub(super) fn ino(number: INodeNo) -> Ino {
    Node::of(number.0).ino
}

pub(super) fn kind(kind: FileType) -> fuser::FileType {
    match kind {
        FileType::File => fuser::FileType::RegularFile,
        FileType::Dir => fuser::FileType::Directory,
        FileType::Symlink => fuser::FileType::Symlink,
        FileType::Fifo => fuser::FileType::NamedPipe,
        FileType::Socket => fuser::FileType::Socket,
        FileType::CharDevice => fuser::FileType::CharDevice,
        FileType::BlockDevice => fuser::FileType::BlockDevice,
    }
}

/// The type that a mode carries; a mode without one means a regular file, as for mknod(2).
pub(super) fn kind_of_mode(mode: u32) -> Option<FileType> {
    Some(match mode & libc::S_IFMT {
        0 | libc::S_IFREG => FileType::File,
        libc::S_IFIFO => FileType::Fifo,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        _ => return None,
    })
}

pub(super) fn attr(stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(stat.ino.0),
        size: stat.size,
        blocks: stat.blocks,
        atime: stat.atime.into(),
        mtime: stat.mtime.into(),
        ctime: stat.ctime.into(),
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(stat.kind),
        perm: stat.mode & 0o7777,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: stat.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// The attributes of an entry that shows a file's inode `node`, and how long they may be relied on: the protocol has one number
/// for the inode and for what programs see of it, so the kernel has to ask for that of a twin.
pub(super) fn attr_of(node: Node, entry: &Entry) -> (FileAttr, Duration) {
    let shown = FileAttr { ino: INodeNo(node.number()), ..attr(&entry.stat) };
    (shown, if node.is_twin() { Duration::ZERO } else { entry.attr_ttl })
}

/// The attributes of an entry of which only number and type are known. The kernel looks at them for `.` and `..` only,
/// and there at nothing else; inode number 0 as an entry means "absent".
pub(super) fn bare(number: Ino, file_type: FileType) -> FileAttr {
    attr(&Stat {
        ino: number,
        kind: file_type,
        mode: 0,
        uid: 0,
        gid: 0,
        nlink: 1,
        rdev: 0,
        size: 0,
        blocks: 0,
        atime: Timestamp(0),
        mtime: Timestamp(0),
        ctime: Timestamp(0),
    })
}

pub(super) fn open_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache && !opened.drop_pages);
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct_io);
    flags.set(FopenFlags::FOPEN_NOFLUSH, opened.no_flush);
    flags
}

pub(super) fn time(time: fuser::TimeOrNow) -> TimeOrNow {
    match time {
        fuser::TimeOrNow::Now => TimeOrNow::Now,
        fuser::TimeOrNow::SpecificTime(t) => TimeOrNow::Time(set_time(t)),
    }
}

/// The time that the kernel named. fuser takes its seconds and nanoseconds apart from each other: before 1970 it answers
/// -1.75 for -1 + 0.25.
fn set_time(t: SystemTime) -> Timestamp {
    match SystemTime::UNIX_EPOCH.duration_since(t) {
        Ok(before) if !before.is_zero() => {
            let nanos = i128::from(before.subsec_nanos()) - i128::from(before.as_secs()) * 1_000_000_000;
            Timestamp(i64::try_from(nanos).unwrap_or(i64::MIN))
        }
        _ => Timestamp::from(t),
    }
}

pub(super) fn set_attr(
    mode: Option<u32>,
    owner: (Option<u32>, Option<u32>),
    size: Option<u64>,
    atime: Option<fuser::TimeOrNow>,
    mtime: Option<fuser::TimeOrNow>,
) -> SetAttr {
    SetAttr {
        mode: mode.map(permissions),
        uid: owner.0,
        gid: owner.1,
        size,
        atime: atime.map(time),
        mtime: mtime.map(time),
        opening: None,
    }
}

/// The permission bits of a mode that also carries the file type.
pub(super) fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// The kernel keeps times to live as seconds and nanoseconds and adds them to its clock: a very long one must not wrap.
pub(super) fn ttl(ttl: Duration) -> Duration {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    ttl.min(YEAR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_kept_only_when_nothing_says_drop() {
        let opened = Opened {
            fh: 1,
            keep_cache: true,
            direct_io: false,
            drop_attrs: false,
            drop_pages: false,
            no_flush: true,
            blob: false,
        };
        assert_eq!(open_flags(&opened), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
        assert_eq!(open_flags(&Opened { drop_pages: true, no_flush: false, ..opened }), FopenFlags::empty());
    }

    #[test]
    fn modes_say_what_is_made() {
        assert_eq!(kind_of_mode(0o644), Some(FileType::File));
        assert_eq!(kind_of_mode(libc::S_IFIFO | 0o600), Some(FileType::Fifo));
        assert_eq!(kind_of_mode(libc::S_IFDIR), None);
    }

    #[test]
    fn times_before_1970_come_as_they_were_set() {
        let as_fuser = |secs: u64, nanos: u32| SystemTime::UNIX_EPOCH - Duration::new(secs, nanos);
        assert_eq!(set_time(as_fuser(1, 250_000_000)), Timestamp(-750_000_000));
        assert_eq!(set_time(as_fuser(2, 0)), Timestamp(-2_000_000_000));
        assert_eq!(set_time(SystemTime::UNIX_EPOCH + Duration::new(1, 5)), Timestamp(1_000_000_005));
        assert_eq!(set_time(as_fuser(1 << 40, 1)), Timestamp(i64::MIN), "the earliest that there is");
    }

    #[test]
    fn modes_lose_the_file_type_only() {
        assert_eq!(permissions(0o104_755), 0o4755);
        let stat = attr(&Stat { mode: 0o1777, ..stat_of(7) });
        assert_eq!((stat.ino.0, stat.perm), (7, 0o1777));
    }

    fn stat_of(number: u64) -> Stat {
        Stat {
            ino: Ino(number),
            kind: FileType::Dir,
            mode: 0o755,
            uid: 0,
            gid: 0,
            nlink: 2,
            rdev: 0,
            size: 0,
            blocks: 0,
            atime: Timestamp(-1),
            mtime: Timestamp(1),
            ctime: Timestamp(1),
        }
    }
}
