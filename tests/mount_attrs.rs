//! Attributes on a real mount, side by side with a plain directory: extended attributes, times, special files, set-group-id
//! directories, renames with flags, quotas, large directories.

#[path = "support/both.rs"]
mod both;
#[path = "support/mount.rs"]
mod mount;
#[path = "support/redis.rs"]
mod redis_server;

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use both::Both;
use mount::{Home, Mount, can_mount, wait_for};
use redis_server::RedisServer;
use rustix::fs::{
    CWD, FileType, Mode, RenameFlags, XattrFlags, lgetxattr, llistxattr, lremovexattr, lsetxattr, mknodat,
    renameat_with,
};
use rustix::io::Errno;

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

fn get(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 70_000];
    let len = lgetxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

fn set(path: &Path, name: &str, value: &[u8]) -> Result<(), Errno> {
    lsetxattr(path, name, value, XattrFlags::empty())
}

fn list(path: &Path) -> Result<BTreeSet<String>, Errno> {
    let mut names = vec![0; 70_000];
    let len = llistxattr(path, &mut names[..])?;
    let own = names[..len].split(|b| *b == 0).filter(|n| !n.is_empty());
    // What a policy of the machine puts on every file is nobody's doing here.
    Ok(own.map(|n| String::from_utf8_lossy(n).into_owned()).filter(|n| !n.starts_with("security.")).collect())
}

/// Runs `act` as an ordinary user, in a process of its own; whether it went well.
fn as_nobody(script: &str, arg: &Path) -> bool {
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(arg).uid(65534).gid(65534);
    command.stderr(std::process::Stdio::null()).status().expect("python3").success()
}

#[test]
fn extended_attributes_are_as_on_a_plain_directory() {
    if !can_mount() {
        return;
    }
    let both = Both::new(&[]);
    for kind in ["file", "dir"] {
        let _ = both.same(&format!("attributes of a {kind}"), |place| {
            let path = place.join(kind);
            match kind {
                "file" => drop(File::create(&path).expect("create")),
                _ => fs::create_dir(&path).expect("mkdir"),
            }
            let mut outcomes = vec![
                get(&path, "user.a").map(|v| v.len()),
                set(&path, "user.a", b"1").map(|()| 0),
                set(&path, "user.empty", b"").map(|()| 0),
                get(&path, "user.a").map(|v| v.len()),
                get(&path, "user.empty").map(|v| v.len()),
                lsetxattr(&path, "user.a", b"22", XattrFlags::CREATE).map(|()| 0),
                lsetxattr(&path, "user.a", b"22", XattrFlags::REPLACE).map(|()| 0),
                lsetxattr(&path, "user.b", b"22", XattrFlags::REPLACE).map(|()| 0),
                lsetxattr(&path, "user.b", b"\0\xff\n", XattrFlags::CREATE).map(|()| 0),
                // Asking how long it is, and with too little room.
                lgetxattr(&path, "user.b", &mut [0u8; 0][..]),
                lgetxattr(&path, "user.b", &mut [0u8; 2][..]),
                llistxattr(&path, &mut [0u8; 3][..]),
                set(&path, "user.", b"x").map(|()| 0),
                set(&path, "no.such.space", b"x").map(|()| 0),
                set(&path, "user.large", &vec![0; 65_537]).map(|()| 0),
                set(&path, &format!("user.{}", "n".repeat(251)), b"x").map(|()| 0),
                set(&path, &format!("user.{}", "n".repeat(250)), b"x").map(|()| 0),
                lremovexattr(&path, "user.none").map(|()| 0),
                lremovexattr(&path, "user.empty").map(|()| 0),
                get(&path, "user.none").map(|v| v.len()),
                get(&path, "user.empty").map(|v| v.len()),
            ];
            if root() {
                outcomes.push(set(&path, "trusted.t", b"t").map(|()| 0));
                outcomes.push(get(&path, "trusted.t").map(|v| v.len()));
            }
            (outcomes, get(&path, "user.b"), list(&path))
        });
    }
    // User attributes are for files and directories only.
    let _ = both.same("attributes of others", |place| {
        std::os::unix::fs::symlink("file", place.join("link")).expect("symlink");
        mknodat(CWD, place.join("fifo"), FileType::Fifo, Mode::RUSR, 0).expect("mkfifo");
        let refused = ["link", "fifo"].map(|name| set(&place.join(name), "user.x", b"x"));
        let trusted = ["link", "fifo"].map(|name| root().then(|| set(&place.join(name), "trusted.x", b"x")));
        (refused, trusted, ["link", "fifo"].map(|name| list(&place.join(name))))
    });
    // They go with the inode, and their change is a change of it.
    let _ = both.same("attributes of a file that moves", |place| {
        let (file, link) = (place.join("file"), place.join("dir/link"));
        let ctime = |path: &Path| {
            let stat = fs::metadata(path).expect("stat");
            (stat.ctime(), stat.ctime_nsec())
        };
        fs::hard_link(&file, &link).expect("link");
        fs::rename(&file, place.join("moved")).expect("rename");
        let before = ctime(&link);
        std::thread::sleep(Duration::from_millis(20));
        set(&place.join("moved"), "user.new", b"n").expect("set");
        let moved = ctime(&link) > before;
        fs::write(place.join("moved"), vec![b'x'; 100_000]).expect("write");
        fs::remove_file(place.join("moved")).expect("unlink");
        (moved, list(&link), get(&link, "user.new"))
    });
    // Through an open file without a name.
    let _ = both
        .same("attributes of a file without a name", |place| {
            let path = place.join("temporary");
            let file =
                OpenOptions::new().create_new(true).read(true).write(true).open(&path).expect("create");
            fs::remove_file(&path).expect("unlink");
            rustix::fs::fsetxattr(&file, "user.x", b"x", XattrFlags::empty())?;
            let mut value = [0u8; 10];
            rustix::fs::fgetxattr(&file, "user.x", &mut value[..])
        })
        .expect("kept");
    // What takes its value whole: 64 KiB, as on the most generous of the local file systems.
    let path = both.mount.path().join("dir");
    set(&path, "user.large", &vec![7; 60_000]).expect("set");
    assert_eq!(get(&path, "user.large").expect("get"), vec![7; 60_000]);
    assert_eq!(set(&path, "user.larger", &vec![7; 6_000]), Err(Errno::NOSPC));
    if root() {
        assert_eq!(set(&path, "security.label", b"x"), Err(Errno::OPNOTSUPP));
        let _ = both.same("who sees and sets what", |place| {
            fs::set_permissions(place.join("dir"), PermissionsExt::from_mode(0o755)).expect("chmod");
            let see =
                "import os,sys; sys.exit(any(n.startswith('trusted.') for n in os.listxattr(sys.argv[1])))";
            let set = "import os,sys; os.setxattr(sys.argv[1], b'user.mine', b'')";
            let refused = as_nobody(set, &place.join("dir"));
            fs::create_dir(place.join("sticky")).expect("mkdir");
            fs::set_permissions(place.join("sticky"), PermissionsExt::from_mode(0o1777)).expect("chmod");
            (as_nobody(see, &place.join("dir")), refused, as_nobody(set, &place.join("sticky")))
        });
    }
}

#[test]
fn extended_attributes_follow_to_another_mount() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let (one, two) = (home.mount("one", &["--offline"]), home.mount("two", &["--offline"]));
    let (here, there) = (one.path().join("f"), two.path().join("f"));
    for n in 0..20u8 {
        fs::write(&here, [n]).expect("write");
        set(&here, "user.n", &[n]).expect("set");
        let mut file = File::open(&there).expect("open");
        let mut byte = Vec::new();
        file.read_to_end(&mut byte).expect("read");
        let mut value = [0u8; 4];
        let len = rustix::fs::fgetxattr(&file, "user.n", &mut value[..]).expect("get");
        assert_eq!((&value[..len], &byte[..]), (&[n][..], &[n][..]));
    }
    // Python's and cp's way of copying them.
    fs::set_permissions(&here, PermissionsExt::from_mode(0o640)).expect("chmod");
    let status = Command::new("cp").arg("-a").arg(&there).arg(two.path().join("copy")).status();
    assert!(status.expect("cp").success());
    assert_eq!(get(&one.path().join("copy"), "user.n"), Ok(vec![19]));
}

/// stat, with all that a time consists of.
fn times(path: &Path) -> [(i64, i64); 2] {
    let stat = fs::symlink_metadata(path).expect("stat");
    [(stat.atime(), stat.atime_nsec()), (stat.mtime(), stat.mtime_nsec())]
}

fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) {
    let spec = |(tv_sec, tv_nsec)| rustix::fs::Timespec { tv_sec, tv_nsec };
    let times = rustix::fs::Timestamps { last_access: spec(atime), last_modification: spec(mtime) };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).expect("utimensat");
}

#[test]
fn times_are_kept_to_the_nanosecond() {
    if !can_mount() {
        return;
    }
    let both = Both::new(&[]);
    let cases = [
        ((0, 0), (0, 1)),
        ((1_700_000_000, 123_456_789), (1_700_000_000, 999_999_999)),
        // Before 1970: the seconds are negative, the nanoseconds go forward from there.
        ((-1, 750_000_001), (-1_000_000_000, 1)),
        ((-1, 0), (-2, 999_999_999)),
        // Beyond what 32 bits hold.
        ((1 << 31, 5), ((1 << 32) + 7, 999_999_999)),
        ((1 << 33, 1), (8_000_000_000, 2)),
    ];
    let _ = both.same("times", |place| {
        let mut seen = Vec::new();
        for (n, (atime, mtime)) in cases.into_iter().enumerate() {
            let (file, dir) = (place.join(format!("f{n}")), place.join(format!("d{n}")));
            fs::write(&file, "x").expect("write");
            fs::create_dir(&dir).expect("mkdir");
            for path in [&file, &dir] {
                set_times(path, atime, mtime);
                seen.push(times(path));
                assert_eq!(times(path), [atime, mtime], "{}", path.display());
            }
        }
        seen
    });
    // What no 64 bits of nanoseconds hold becomes the nearest that they do.
    let path = both.mount.path().join("f0");
    set_times(&path, (1 << 40, 0), (-(1 << 40), 0));
    assert_eq!(times(&path), [(9_223_372_036, 854_775_807), (-9_223_372_037, 145_224_192)]);
    // They come back after a remount.
    let Both { home, mount } = both;
    assert_eq!(mount.stop().code(), Some(0));
    let mount = home.mount("mnt", &["--offline"]);
    for (n, (atime, mtime)) in cases.into_iter().enumerate().skip(1) {
        assert_eq!(times(&mount.path().join(format!("f{n}"))), [atime, mtime]);
    }
}

#[test]
fn special_files_and_set_group_id_directories() {
    if !can_mount() || !root() {
        return;
    }
    let both = Both::new(&[]);
    let _ = both.same("special files", |place| {
        let kinds = [
            (FileType::Fifo, 0),
            (FileType::Socket, 0),
            (FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
            (FileType::BlockDevice, rustix::fs::makedev(250, 70_000)),
        ];
        kinds.map(|(kind, device)| {
            let path = place.join(format!("{kind:?}"));
            mknodat(CWD, &path, kind, Mode::from_raw_mode(0o640), device).expect("mknod");
            let stat = fs::symlink_metadata(&path).expect("stat");
            (stat.mode(), stat.rdev(), stat.nlink(), stat.size())
        })
    });
    // The mount is nodev, as a mount that users write to should be.
    let null = both.mount.path().join("CharacterDevice");
    let refused = OpenOptions::new().read(true).open(null).expect_err("nodev");
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    // A fifo works between processes, a socket can be bound.
    let fifo = both.mount.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("mkfifo");
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs::read(fifo).expect("read")
    });
    fs::write(&fifo, "through").expect("write");
    assert_eq!(reader.join().expect("reader"), b"through");
    let socket = std::os::unix::net::UnixListener::bind(both.mount.path().join("s")).expect("bind");
    assert!(fs::symlink_metadata(both.mount.path().join("s")).expect("stat").file_type().is_socket());
    drop(socket);

    let _ = both.same("set-group-id", |place| {
        let dir = place.join("dir");
        fs::create_dir(&dir).expect("mkdir");
        std::os::unix::fs::chown(&dir, None, Some(4321)).expect("chown");
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o2777)).expect("chmod");
        fs::create_dir(dir.join("sub")).expect("mkdir");
        fs::create_dir(dir.join("sub/sub")).expect("mkdir");
        fs::write(dir.join("file"), "x").expect("write");
        std::os::unix::fs::symlink("x", dir.join("link")).expect("symlink");
        let by_other = "import os,sys; os.umask(0); p=sys.argv[1]; os.mkdir(p+'/theirs'); \
                        os.close(os.open(p+'/their-file', os.O_CREAT, 0o2775))";
        assert!(as_nobody(by_other, &dir));
        ["sub", "sub/sub", "file", "link", "theirs", "their-file"].map(|name| {
            let stat = fs::symlink_metadata(dir.join(name)).expect("stat");
            (name, stat.mode(), stat.uid(), stat.gid())
        })
    });
    let _ = both.same("sticky directories", |place| {
        let dir = place.join("sticky");
        fs::create_dir(&dir).expect("mkdir");
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o1777)).expect("chmod");
        fs::write(dir.join("mine"), "x").expect("write");
        let remove = "import os,sys; os.remove(sys.argv[1]+'/mine')";
        let rename = "import os,sys; os.rename(sys.argv[1]+'/mine', sys.argv[1]+'/theirs')";
        let own = "import os,sys; open(sys.argv[1]+'/own','w'); os.remove(sys.argv[1]+'/own')";
        let did = [remove, rename, own].map(|script| as_nobody(script, &dir));
        (did, fs::metadata(&dir).expect("stat").mode())
    });
}

#[test]
fn names_links_and_renames_with_flags() {
    if !can_mount() {
        return;
    }
    let both = Both::new(&[]);
    let _ = both.same("long names", |place| {
        let name = |len: usize| place.join("ä".repeat(len / 2) + if len % 2 == 1 { "x" } else { "" });
        let errno = |r: std::io::Result<()>| r.err().and_then(|e| e.raw_os_error());
        fs::write(name(255), "long").expect("255 bytes");
        fs::rename(name(255), name(254)).expect("rename");
        fs::rename(name(254), name(255)).expect("rename");
        let listed = fs::read_dir(place).expect("list").any(|e| e.expect("entry").file_name().len() == 255);
        (
            listed,
            fs::read(name(255)).expect("read"),
            errno(File::create(name(256)).map(drop)),
            errno(fs::create_dir(name(256))),
            errno(std::os::unix::fs::symlink("x", name(256))),
            errno(fs::rename(name(255), name(256))),
            errno(fs::hard_link(name(255), name(257))),
            errno(fs::metadata(name(256)).map(drop)),
            errno(std::os::unix::fs::symlink("t".repeat(4096), place.join("too-long"))),
        )
    });
    let _ = both.same("renames", |place| {
        let dir = |name: &str| fs::create_dir(place.join(name)).expect("mkdir");
        let file = |name: &str| fs::write(place.join(name), name).expect("write");
        ["a", "a/sub", "b", "b/full", "b/full/x"].into_iter().for_each(dir);
        ["a/f", "b/g", "top"].into_iter().for_each(file);
        let mut outcomes = Vec::new();
        let mut rename = |from: &str, to: &str, flags| {
            outcomes
                .push((renameat_with(CWD, place.join(from), CWD, place.join(to), flags), from.to_owned()));
        };
        let (no, swap) = (RenameFlags::NOREPLACE, RenameFlags::EXCHANGE);
        rename("top", "a/f", no);
        rename("top", "a/new", no);
        rename("a/sub", "b/full", no);
        rename("a/sub", "b/sub", no);
        rename("a/f", "b/full", swap);
        rename("a", "b/sub", swap);
        rename("b/sub", "b/sub/deeper", RenameFlags::empty());
        rename("b", "b/sub/f", swap);
        rename("b/none", "b/g", swap);
        rename("b/g", "b/none", swap);
        rename("b/g", "b/g", no);
        rename("b/g", "b/g", swap);
        rename("b/g", "b/h", no | swap);
        let mut tree = Vec::new();
        walk(place, place, &mut tree);
        (outcomes, tree)
    });
    // 1,000 names of one inode here; how many there may be at most is tested without a kernel.
    let _ = both.same("links", |place| {
        let first = place.join("many");
        fs::create_dir(place.join("links")).expect("mkdir");
        fs::write(&first, "x").expect("write");
        for n in 1..1_000 {
            fs::hard_link(&first, place.join(format!("links/{n}"))).expect("link");
        }
        let before = fs::metadata(&first).expect("stat").nlink();
        fs::remove_dir_all(place.join("links")).expect("remove");
        (before, fs::metadata(&first).expect("stat").nlink())
    });
}

/// Every name below `dir` with its kind, its number of links and what it holds.
fn walk(top: &Path, dir: &Path, tree: &mut Vec<String>) {
    let mut entries: Vec<_> = fs::read_dir(dir).expect("list").map(|e| e.expect("entry").path()).collect();
    entries.sort();
    for path in entries {
        let stat = fs::symlink_metadata(&path).expect("stat");
        let name = path.strip_prefix(top).expect("below").display().to_string();
        if name.len() > 200 {
            continue;
        }
        let held = if stat.is_file() { fs::read_to_string(&path).expect("read") } else { String::new() };
        tree.push(format!("{name} {:o} {} {held}", stat.mode(), stat.nlink()));
        if stat.is_dir() {
            walk(top, &path, tree);
        }
    }
}

/// The kernel's way of making files without a name is not there: programs are told so, and make one and remove it.
#[test]
fn unnamed_temporary_files_are_refused_as_programs_expect() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let mount = home.mount("mnt", &["--offline"]);
    let unnamed = OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).open(mount.path());
    assert_eq!(unnamed.expect_err("refused").raw_os_error(), Some(libc::EOPNOTSUPP));
    let script = "import sys,tempfile\nwith tempfile.TemporaryFile(dir=sys.argv[1]) as f:\n \
                  f.write(b'x'*9000); f.seek(0); assert len(f.read()) == 9000\n";
    let status = Command::new("python3").args(["-c", script]).arg(mount.path()).status();
    assert!(status.expect("python3").success());
    assert_eq!(fs::read_dir(mount.path()).expect("list").count(), 0);
}

fn atime(path: &Path) -> SystemTime {
    fs::symlink_metadata(path).expect("stat").accessed().expect("atime")
}

#[test]
fn reading_moves_atime_only_where_it_is_wanted() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let (on, off) =
        (home.mount("on", &["--offline", "--atime", "relatime"]), home.mount("off", &["--offline"]));
    let read_only = home.mount("ro", &["--offline", "--atime", "relatime", "--read-only"]);
    let week_ago = {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("clock").as_secs();
        (i64::try_from(now).expect("seconds") - 7 * 24 * 3600, 123)
    };
    let names = ["file", "dir", "link"];
    let at = |mount: &Mount, name: &str| mount.path().join(name);
    fs::write(at(&on, "file"), vec![b'x'; 300_000]).expect("write");
    fs::create_dir(at(&on, "dir")).expect("mkdir");
    std::os::unix::fs::symlink("file", at(&on, "link")).expect("symlink");
    let read = |mount: &Mount| {
        assert_eq!(fs::read(at(mount, "file")).expect("read").len(), 300_000);
        assert_eq!(fs::read_dir(at(mount, "dir")).expect("list").count(), 0);
        assert_eq!(fs::read_link(at(mount, "link")).expect("readlink"), Path::new("file"));
    };
    for name in names {
        set_times(&at(&on, name), week_ago, (1_000_000_000, 0));
        assert_eq!(times(&at(&on, name)), [week_ago, (1_000_000_000, 0)]);
    }
    let old = atime(&at(&on, "file"));
    for mount in [&off, &read_only] {
        read(mount);
        assert_eq!(atime(&at(mount, "file")), old);
    }
    let before = SystemTime::now();
    read(&on);
    for name in names {
        assert!(atime(&at(&on, name)) >= before, "{name} at once");
    }
    let seen = atime(&at(&on, "file"));
    read(&on);
    assert_eq!(atime(&at(&on, "file")), seen, "it is younger than a day");
    // Elsewhere soon; nobody's data or other times moved.
    wait_for("the other mounts see it", || names.iter().all(|name| atime(&at(&off, name)) >= before));
    assert_eq!(times(&at(&off, "file"))[1], (1_000_000_000, 0));
    // Written through one handle, read through another whose pages the kernel kept.
    OpenOptions::new().append(true).open(at(&on, "file")).expect("open").write_all(b"y").expect("write");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(fs::read(at(&on, "file")).expect("read").len(), 300_001);
    let stat = fs::metadata(at(&on, "file")).expect("stat");
    assert!(stat.accessed().expect("atime") > stat.modified().expect("mtime"));
    // What was noted last is recorded at the end.
    let last = stat.accessed().expect("atime");
    assert_eq!(on.stop().code(), Some(0));
    wait_for("the last read is recorded", || atime(&at(&off, "file")) == last);
}

fn df(place: &Path) -> (u64, u64, u64, u64) {
    let s = rustix::fs::statvfs(place).expect("statvfs");
    (s.f_blocks * s.f_frsize, s.f_bavail * s.f_frsize, s.f_files, s.f_ffree)
}

#[test]
fn quotas_hold_and_can_be_changed_while_mounted() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&["--capacity", "8MiB", "--inodes", "20"]);
    let (one, two) = (home.mount("one", &["--offline"]), home.mount("two", &["--offline"]));
    let errno = |r: std::io::Result<()>| r.err().and_then(|e| e.raw_os_error());
    assert_eq!(df(one.path()), (8 << 20, 8 << 20, 20, 19));
    // Bytes: a write that does not fit fails as a whole, and says so at once.
    let path = one.path().join("big");
    let mut file = File::create(&path).expect("create");
    file.write_all(&vec![1; 6 << 20]).expect("write");
    assert_eq!(errno(file.write_all_at(&vec![1; 1 << 20], 8 << 20)), Some(libc::ENOSPC));
    assert_eq!(errno(file.set_len(9 << 20)), Some(libc::ENOSPC));
    assert_eq!(file.metadata().expect("stat").len(), 6 << 20);
    file.write_all(&vec![2; 2 << 20]).expect("the rest");
    drop(file);
    assert_eq!(fs::metadata(two.path().join("big")).expect("stat").len(), 8 << 20);
    assert_eq!(df(two.path()), (8 << 20, 0, 20, 18));
    assert_eq!(errno(fs::write(two.path().join("more"), "x")), Some(libc::ENOSPC));
    // Holes count by their size.
    fs::remove_file(&path).expect("unlink");
    let sparse = File::create(&path).expect("create");
    assert_eq!(errno(sparse.set_len((8 << 20) + 1)), Some(libc::ENOSPC));
    sparse.set_len(8 << 20).expect("it fits");
    drop(sparse);
    // Inodes.
    let mut made = 0;
    let full = loop {
        match fs::create_dir(two.path().join(format!("d{made}"))) {
            Ok(()) => made += 1,
            Err(e) => break e.raw_os_error(),
        }
    };
    assert_eq!((made, full), (17, Some(libc::ENOSPC)));
    assert_eq!(errno(File::create(one.path().join("f")).map(drop)), Some(libc::ENOSPC));
    assert_eq!(errno(std::os::unix::fs::symlink("x", one.path().join("l"))), Some(libc::ENOSPC));
    fs::hard_link(&path, one.path().join("another name")).expect("a name is no inode");
    fs::rename(one.path().join("d0"), one.path().join("d")).expect("rename");
    // Changed while they are mounted.
    let shown = home.run_ok(&["config", "--inodes", "none", "--capacity", "9MiB", "--json"]);
    assert!(shown.contains("9437184"), "{shown}");
    wait_for("both follow", || {
        fs::create_dir_all(one.path().join("new")).is_ok() && df(two.path()).0 == 9 << 20
    });
    wait_for("there is room", || fs::write(two.path().join("more"), vec![3; 1 << 20]).is_ok());
    let status = home.run_ok(&["status"]);
    assert!(status.contains("9.00 MiB of 9.00 MiB"), "{status}");
    // Deleting always works, and all of it comes back.
    for entry in fs::read_dir(one.path()).expect("list") {
        let path = entry.expect("entry").path();
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("remove");
    }
    let status = home.run_ok(&["status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!((&status["used"]["bytes"], &status["used"]["inodes"]), (&0.into(), &1.into()), "{status}");
}

/// KiB of memory that a process has.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim_end_matches("kB").trim().parse().expect("number")
}

struct Listing(*mut libc::DIR);

impl Listing {
    fn open(path: &Path) -> Self {
        let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
        // SAFETY: a C string that lives across the call.
        let dir = unsafe { libc::opendir(path.as_ptr()) };
        assert!(!dir.is_null(), "{}", std::io::Error::last_os_error());
        Listing(dir)
    }

    fn next(&mut self) -> Option<String> {
        // SAFETY: the stream is open; the entry is copied before the next call.
        unsafe {
            let entry = libc::readdir(self.0);
            (!entry.is_null())
                .then(|| CStr::from_ptr((*entry).d_name.as_ptr()).to_str().expect("UTF-8").to_owned())
        }
    }

    fn tell(&mut self) -> libc::c_long {
        // SAFETY: the stream is open.
        unsafe { libc::telldir(self.0) }
    }

    fn seek(&mut self, place: libc::c_long) {
        // SAFETY: the stream is open, and the place is one that it told.
        unsafe { libc::seekdir(self.0, place) }
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        // SAFETY: the stream is open and nobody uses it any more.
        unsafe { libc::closedir(self.0) };
    }
}

/// `HFMOUNT_TEST_ENTRIES` entries in one directory (5,000 if it says nothing), made by eight threads, listed while others
/// come and go, found again by place, and removed. The daemon's memory does not grow with them.
fn a_large_directory(home: &Home, what: &str) {
    let entries: usize =
        std::env::var("HFMOUNT_TEST_ENTRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(5_000);
    const THREADS: usize = 8;
    let mount = home.mount("mnt", &["--offline"]);
    let dir = mount.path().join("large");
    fs::create_dir(&dir).expect("mkdir");
    let at_start = resident(mount.pid());
    let mut peak = at_start;
    let mut timed = |step: &str, work: &mut dyn FnMut()| {
        let begun = Instant::now();
        work();
        let now = resident(mount.pid());
        peak = peak.max(now);
        println!("{what}: {step} {entries}: {:.1} s, daemon {now} KiB", begun.elapsed().as_secs_f64());
    };
    let name = |n: usize| dir.join(format!("entry-{n:07}"));
    timed("made", &mut || {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let name = &name;
                scope.spawn(move || {
                    for n in (thread..entries).step_by(THREADS) {
                        mknodat(CWD, name(n), FileType::RegularFile, Mode::from_raw_mode(0o644), 0)
                            .expect("mknod");
                    }
                });
            }
        });
    });
    timed("listed (ls -f)", &mut || {
        let out = Command::new("ls").arg("-f").arg(&dir).output().expect("ls");
        assert_eq!(out.stdout.iter().filter(|b| **b == b'\n').count(), entries + 2);
    });
    timed("found (find -newer)", &mut || {
        let out = Command::new("find").arg(&dir).args(["-type", "f", "-size", "0"]).output().expect("find");
        assert_eq!(out.stdout.iter().filter(|b| **b == b'\n').count(), entries);
    });
    timed("listed while others come and go", &mut || {
        let mut listing = Listing::open(&dir);
        let mut seen = vec![false; entries];
        let mut places: Vec<(libc::c_long, String)> = Vec::new();
        let mut count = 0;
        loop {
            let place = listing.tell();
            let Some(entry) = listing.next() else { break };
            let Some(n) = entry.strip_prefix("entry-") else { continue };
            let n: usize = n.parse().expect("number");
            assert!(!std::mem::replace(&mut seen[n], true), "{entry} twice");
            count += 1;
            if count % (entries / 16) == 0 {
                places.push((place, entry));
                // Something comes, something goes, behind the reader and before it.
                fs::write(dir.join(format!("new-{count}")), "").expect("create");
                for gone in [n, (n + entries / 2) % entries] {
                    let _ = fs::remove_file(name(gone));
                    seen[gone] = true;
                }
            }
        }
        assert!(count >= entries - 17);
        for (n, seen) in seen.iter().enumerate() {
            assert!(seen, "entry {n} was left out");
        }
        // Back to places in the middle, the last first: the next entry is that which was there, if it still is.
        for (place, entry) in places.iter().rev() {
            listing.seek(*place);
            let next = listing.next().expect("not the end");
            assert_eq!(dir.join(entry).exists(), next == *entry, "{next} where {entry} was");
        }
    });
    timed("removed (all but 20,000 by threads, then rm -r)", &mut || {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let name = &name;
                scope.spawn(move || {
                    for n in (20_000 + thread..entries).step_by(THREADS) {
                        let removed = fs::remove_file(name(n));
                        assert!(removed.is_ok() || !name(n).exists(), "{removed:?}");
                    }
                });
            }
        });
        assert!(Command::new("rm").arg("-r").arg(&dir).status().expect("rm").success());
    });
    assert!(!dir.exists());
    println!("{what}: daemon {at_start} KiB at the start, {peak} KiB at most");
    // 20,000 or a million: caches are bounded.
    assert!(peak < at_start + (256 << 10), "{at_start} KiB became {peak} KiB");
    assert_eq!(mount.stop().code(), Some(0));
}

#[test]
fn a_large_directory_on_sqlite() {
    if can_mount() {
        a_large_directory(&Home::formatted(&[]), "sqlite");
    }
}

#[test]
fn a_large_directory_on_redis() {
    if can_mount() {
        let server = RedisServer::start_with(&[]);
        let mut home = Home::new();
        home.set_env("HFMOUNT_META", &server.url());
        home.run_ok(&["format"]);
        a_large_directory(&home, "redis");
    }
}

/// The kernel asks for `security.capability` before every write: it must cost no more than the way to the daemon.
#[test]
fn small_writes_ask_the_metadata_nothing() {
    if !can_mount() {
        return;
    }
    let server = RedisServer::start_with(&[]);
    let mut home = Home::new();
    home.set_env("HFMOUNT_META", &server.url());
    home.run_ok(&["format"]);
    let mount = home.mount("mnt", &["--offline"]);
    let path: PathBuf = mount.path().join("f");
    let file = File::create(&path).expect("create");
    file.write_all_at(b"first", 0).expect("write");
    let calls = || server.calls("evalsha") + server.calls("hmget") + server.calls("hget");
    let before = calls();
    for n in 0..500 {
        file.write_all_at(b"again", n * 5).expect("write");
    }
    // Heartbeats and the like go on.
    assert!(calls() - before < 50, "{} requests for 500 writes", calls() - before);
    assert!(file.as_raw_fd() > 0);
}
