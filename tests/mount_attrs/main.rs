//! Attributes on a real mount, side by side with a plain directory: extended attributes, times, special files, set-group-id
//! directories, renames with flags, quotas, large directories.

#[path = "../support/both.rs"]
mod both;
mod large;
#[path = "../support/mount.rs"]
mod mount;
mod names;
#[path = "../support/redis.rs"]
mod redis_server;
mod times;
mod xattrs;

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

/// Runs `act` as an ordinary user, in a process of its own; whether it went well.
fn as_nobody(script: &str, arg: &Path) -> bool {
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(arg).uid(65534).gid(65534);
    command.stderr(std::process::Stdio::null()).status().expect("python3").success()
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
