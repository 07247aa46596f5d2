//! fallocate, lseek for data and holes, copy_file_range, files that reach far and set-id bits on a real mount, side by side
//! with a plain directory.

#[path = "support/both.rs"]
mod both;
#[path = "support/mount.rs"]
mod mount;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use both::Both;
use mount::can_mount;
use rustix::fs::{FallocateFlags as How, SeekFrom, copy_file_range, fallocate, seek};
use rustix::io::Errno;

const M: u64 = 1 << 20;

fn file(dir: &Path, name: &str) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).open(dir.join(name)).expect("open")
}

fn bytes(len: u64, seed: u64) -> Vec<u8> {
    (0..len).map(|i| ((i + seed) % 251) as u8 + 1).collect()
}

/// Where data and holes begin, by turns, from the start on.
fn map(file: &File) -> Vec<u64> {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        match seek(file, SeekFrom::Data(at)) {
            Ok(data) => found.push(data),
            Err(e) => {
                assert_eq!(e, Errno::NXIO);
                return found;
            }
        }
        at = seek(file, SeekFrom::Hole(found[found.len() - 1])).expect("a hole");
        found.push(at);
    }
}

#[test]
fn allocation_and_holes() {
    if !can_mount() {
        return;
    }
    let both = Both::new(&["--chunk-size", "1MiB"]);
    let keep = How::KEEP_SIZE;
    let data = bytes(3 * M, 1);
    both.check("write", |dir| file(dir, "f").write_all_at(&data, 0).is_ok());
    let steps = [
        ("allocate within", How::empty(), 4096, 8192),
        ("punch", How::PUNCH_HOLE | keep, M - 8192, M + 16384),
        ("punch again", How::PUNCH_HOLE | keep, M, 4096),
        ("punch nothing yet", How::PUNCH_HOLE | keep, 5 * M, M),
        ("allocate beyond", How::empty(), 3 * M - 4096, 2 * M),
        ("allocate and keep", keep, 7 * M, M),
        ("zero", How::ZERO_RANGE | keep, 4096, 4096),
        ("zero and grow", How::ZERO_RANGE, 4 * M, 3 * M),
        ("punch what is not aligned", How::PUNCH_HOLE | keep, 12_345, 67_890),
        ("punch without keep", How::PUNCH_HOLE, 0, 4096),
        ("unknown", How::from_bits_retain(0x80), 0, 4096),
        ("nothing", How::empty(), 0, 0),
    ];
    for (what, how, offset, len) in steps {
        both.check(what, |dir| {
            let file = file(dir, "f");
            let done = fallocate(&file, how, offset, len);
            (done, file.metadata().expect("stat").size(), fs::read(dir.join("f")).expect("read"))
        });
    }
    // All of it gone, and some of it back: in whole blocks, so that both can be exact.
    both.check("holes", |dir| {
        let file = file(dir, "g");
        file.set_len(6 * M).expect("grow");
        for at in [0, 2 * M, 3 * M + 65536] {
            file.write_all_at(&data[..65536], at).expect("write");
        }
        file.sync_all().expect("fsync");
        let first = map(&file);
        fallocate(&file, How::PUNCH_HOLE | keep, 2 * M + 4096, 8192).expect("punch");
        let beyond = [6 * M, 7 * M].map(|at| seek(&file, SeekFrom::Hole(at)));
        (first, map(&file), beyond)
    });
    let stat = fs::metadata(both.mount.path().join("g")).expect("stat");
    assert_eq!((stat.size(), stat.blocks()), (6 * M, (3 * 65536 - 8192) / 512));
    both.check("after a punch by another descriptor", |dir| {
        let (one, two) = (file(dir, "g"), file(dir, "g"));
        let mut before = [0; 16];
        one.read_exact_at(&mut before, 2 * M).expect("read");
        fallocate(&two, How::PUNCH_HOLE | keep, 2 * M, 4096).expect("punch");
        let mut after = [1; 16];
        one.read_exact_at(&mut after, 2 * M).expect("read");
        (before, after)
    });
    assert_eq!(both.mount.stop().code(), Some(0));
}

#[test]
fn allocation_heeds_the_capacity() {
    if !can_mount() {
        return;
    }
    let both = Both::new(&["--chunk-size", "1MiB", "--capacity", "4MiB"]);
    let file = file(both.mount.path(), "f");
    assert_eq!(fallocate(&file, How::empty(), 0, 5 * M), Err(Errno::NOSPC));
    assert_eq!(file.metadata().expect("stat").size(), 0);
    fallocate(&file, How::empty(), 0, 3 * M).expect("there is room");
    assert_eq!(fallocate(&file, How::ZERO_RANGE, 2 * M, 3 * M), Err(Errno::NOSPC));
    drop(file);
    assert_eq!(fs::read(both.mount.path().join("f")).expect("read"), vec![0; 3 * M as usize]);
    assert_eq!(both.mount.stop().code(), Some(0));
}

/// Copies `len` bytes, however many calls that takes.
fn copy(from: &File, at: u64, to: &File, there: u64, len: u64) -> Result<u64, Errno> {
    let (mut at, mut there, mut left) = (at, there, len);
    while left > 0 {
        let wanted = usize::try_from(left).expect("small");
        match copy_file_range(from, Some(&mut at), to, Some(&mut there), wanted)? {
            0 => break,
            n => left -= n as u64,
        }
    }
    Ok(len - left)
}

fn size_of(dir: &Path) -> u64 {
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_of(&entry.path()),
        meta => meta.map_or(0, |meta| meta.len()),
    };
    fs::read_dir(dir).expect("list").map(|entry| size(entry.expect("entry"))).sum()
}

#[test]
fn copies_share_chunks() {
    if !can_mount() {
        return;
    }
    let both = Both::new(&["--chunk-size", "1MiB", "--trash-days", "0"]);
    let data = bytes(8 * M + 777, 5);
    both.check("write", |dir| fs::write(dir.join("f"), &data).is_ok());
    let storage = both.home.path().join("hfmount/storage");
    let before = size_of(&storage);
    assert!(before >= 8 * M, "{before} bytes in the storage");
    both.check("copy", |dir| {
        let done = copy(&file(dir, "f"), 0, &file(dir, "g"), 0, 100 * M);
        (done, fs::read(dir.join("g")).expect("read"))
    });
    let added = size_of(&storage) - before;
    assert!(added < M, "{added} bytes were added by a copy");
    for (what, at, there, len) in [
        ("whole chunks elsewhere", M, 20 * M, 3 * M),
        ("a part at the same place of a chunk", M + 5, 30 * M + 5, 2 * M),
        ("a part at another place", 100, 40 * M + 7, 2 * M),
        ("at the end", 8 * M + 700, 3, 1000),
        ("beyond the end", 9 * M, 3, 1000),
        ("nothing", 0, 0, 0),
    ] {
        both.check(what, |dir| {
            let done = copy(&file(dir, "f"), at, &file(dir, "g"), there, len);
            (done, fs::read(dir.join("g")).expect("read"))
        });
    }
    both.check("within one file", |dir| {
        let file = file(dir, "f");
        let apart = copy(&file, 0, &file, 4 * M, 3 * M);
        (apart, copy(&file, 0, &file, M, M + 1), fs::read(dir.join("f")).expect("read"))
    });
    both.check("what is not on the disk yet", |dir| {
        let (from, to) = (file(dir, "f"), file(dir, "h"));
        from.write_all_at(&bytes(2 * M, 9), M / 2).expect("write");
        to.write_all_at(&bytes(3 * M, 8), 0).expect("write");
        let done = copy(&from, 0, &to, 0, 2 * M);
        let read_only = copy(&to, 0, &File::open(dir.join("f")).expect("open"), 0, 10);
        (done, read_only, fs::read(dir.join("h")).expect("read"))
    });
    both.check("one goes and the others stay", |dir| {
        fs::remove_file(dir.join("f")).expect("remove");
        (fs::read(dir.join("g")).expect("read"), fs::read(dir.join("h")).expect("read"))
    });
    let again = both.home.path().join("hfmount/cache");
    let kept = ["g", "h"].map(|name| fs::read(both.mount.path().join(name)).expect("read"));
    assert_eq!(both.mount.stop().code(), Some(0));
    // From the storage alone.
    if again.exists() {
        fs::remove_dir_all(&again).expect("remove");
    }
    let mount = both.home.mount("mnt", &["--offline"]);
    assert!(kept == ["g", "h"].map(|name| fs::read(mount.path().join(name)).expect("read")));
    assert_eq!(mount.stop().code(), Some(0));
}

#[test]
fn files_reach_far() {
    if !can_mount() {
        return;
    }
    const END: u64 = 1 << 57;
    let both = Both::new(&["--chunk-size", "1MiB"]);
    let at = both.mount.path().join("far");
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&at).expect("create");
    file.set_len(END).expect("grow");
    for error in [file.set_len(END + 1).expect_err("cut"), file.write_at(b"x", END).expect_err("write")] {
        assert_eq!(error.raw_os_error(), Some(libc::EFBIG));
    }
    assert_eq!(fallocate(&file, How::empty(), END - 1, 2), Err(Errno::FBIG));
    file.write_all_at(b"end", END - 3).expect("write");
    file.write_all_at(b"middle", 1 << 50).expect("write");
    let check = |file: &File| {
        assert_eq!(map(file), [1 << 50, (1 << 50) + 6, END - 3, END]);
        let mut read = [1; 8];
        file.read_exact_at(&mut read, END - 8).expect("read");
        assert_eq!(&read, b"\0\0\0\0\0end");
    };
    check(&file);
    drop(file);
    let stat = fs::metadata(&at).expect("stat");
    assert_eq!((stat.size(), stat.blocks()), (END, 1));
    check(&File::open(&at).expect("open"));
    fs::remove_file(&at).expect("remove");
    assert_eq!(both.mount.stop().code(), Some(0));
}

/// What an ordinary user does to a file.
const CHANGES: [(&str, &str); 6] = [
    ("write", "f = os.open(p, os.O_WRONLY); os.write(f, b'x')"),
    ("truncate", "os.truncate(p, 3)"),
    ("open with O_TRUNC", "os.open(p, os.O_WRONLY | os.O_TRUNC)"),
    ("allocate", "os.posix_fallocate(os.open(p, os.O_RDWR), 0, 100)"),
    ("copy", "f = os.open(p, os.O_RDWR); os.copy_file_range(f, f, 3, 0, 5)"),
    ("read", "f = os.open(p, os.O_RDONLY); os.read(f, 3)"),
];

#[test]
fn set_id_bits_go_with_a_change() {
    if !can_mount() || !rustix::process::geteuid().is_root() {
        return;
    }
    let both = Both::new(&["--chunk-size", "1MiB"]);
    for mode in [0o6777, 0o4755 | 0o022, 0o6767] {
        for (what, script) in CHANGES {
            let left = both.same(&format!("{what} of {mode:o}"), |dir| {
                let path = dir.join("f");
                fs::write(&path, "0123456789").expect("write");
                // The file is somebody else's, in whose group the user is.
                std::os::unix::fs::chown(&path, Some(1), Some(65534)).expect("chown");
                fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("chmod");
                let mut python = Command::new("python3");
                python.args(["-c", &format!("import os, sys; p = sys.argv[1]; {script}")]).arg(&path);
                let status = python.uid(65534).gid(65534).status().expect("python");
                (status.code(), fs::metadata(&path).expect("stat").mode() & 0o7777)
            });
            assert_eq!(left.0, Some(0), "{what}");
            assert_eq!(left.1 & 0o4000 != 0, what == "read", "{what}");
        }
    }
    assert_eq!(both.mount.stop().code(), Some(0));
}
