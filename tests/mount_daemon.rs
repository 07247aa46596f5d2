//! The life of a mount: how it begins, what it survives, how it ends. The real program and real kernel mounts; none of
//! these asks the Hub for anything.

#[path = "support/mount.rs"]
mod mount;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mount::{Home, can_mount, heeding_interrupts, is_mounted, text, wait_for};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::Value;

fn sessions(home: &Home) -> Vec<Value> {
    let status: Value = serde_json::from_str(&home.run_ok(&["status", "--json"])).expect("json");
    status["sessions"].as_array().expect("sessions").clone()
}

fn utf8(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn what_is_written_is_there_after_a_remount() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let mount = home.mount("mnt", &["--offline"]);
    let dir = mount.path().join("a/b");
    fs::create_dir_all(&dir).expect("mkdir");
    let big: Vec<u8> = (0..5_000_000u32).map(|n| (n * 7 % 251) as u8).collect();
    fs::write(dir.join("big"), &big).expect("write");
    fs::write(dir.join("small"), "x").expect("write");
    fs::write(dir.join("empty"), "").expect("write");
    std::os::unix::fs::symlink("big", dir.join("link")).expect("symlink");
    fs::rename(dir.join("small"), dir.join("renamed")).expect("rename");
    fs::set_permissions(dir.join("renamed"), fs::Permissions::from_mode(0o600)).expect("chmod");
    assert_eq!(mount.stop().code(), Some(0));

    let mount = home.mount("mnt", &["--offline"]);
    let dir = mount.path().join("a/b");
    assert!(fs::read(dir.join("link")).expect("read") == big);
    assert_eq!(fs::read_to_string(dir.join("renamed")).expect("read"), "x");
    assert_eq!(fs::metadata(dir.join("renamed")).expect("stat").mode() & 0o7777, 0o600);
    assert_eq!(fs::metadata(dir.join("empty")).expect("stat").len(), 0);
    let mut names: Vec<String> = fs::read_dir(&dir)
        .expect("list")
        .map(|e| e.expect("entry").file_name().into_string().expect("UTF-8"))
        .collect();
    names.sort();
    assert_eq!(names, ["big", "empty", "link", "renamed"]);
    assert_eq!(mount.stop().code(), Some(0));
}

#[test]
fn in_the_background_it_returns_when_the_mount_answers() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let point = home.dir("mnt");
    fs::write(point.join("hidden"), "").expect("write");
    let output = home.run(&["mount", "-d", "--offline", utf8(&point)]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("this hides hidden"), "{}", text(&output.stderr));
    assert!(is_mounted(&point));
    fs::write(point.join("file"), "data").expect("write");
    let there = sessions(&home);
    assert_eq!((there.len(), &there[0]["alive"]), (1, &Value::Bool(true)));
    assert_eq!(there[0]["mountpoint"], utf8(&point));
    let pid = there[0]["pid"].as_u64().expect("pid");

    let again = home.run(&["mount", "-d", "--offline", utf8(&point)]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("an hfmount is on it already"), "{}", text(&again.stderr));

    home.run_ok(&["umount", utf8(&point)]);
    assert!(!is_mounted(&point));
    // Dead, even if nobody has collected it yet.
    assert!(fs::read_link(format!("/proc/{pid}/exe")).is_err(), "umount waits for the daemon's end");
    assert!(sessions(&home).is_empty());
    let log = fs::read_dir(home.path().join("hfmount/logs")).expect("logs").count();
    assert_eq!(log, 1);
    let gone = home.run(&["umount", utf8(&point)]);
    assert!(text(&gone.stderr).contains("nothing is mounted"), "{}", text(&gone.stderr));
}

#[test]
fn a_busy_mount_is_left_unless_lazily() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let mut mount = home.mount("mnt", &["--offline"]);
    let point = mount.path().to_owned();
    let mut file = File::create(point.join("file")).expect("create");
    let busy = home.run(&["umount", utf8(&point)]);
    assert_eq!(busy.status.code(), Some(1));
    assert!(text(&busy.stderr).contains("is in use"), "{}", text(&busy.stderr));
    assert!(is_mounted(&point));
    home.run_ok(&["umount", "--lazy", utf8(&point)]);
    assert!(!is_mounted(&point));
    file.write_all(b"still works").expect("write");
    drop(file);
    assert_eq!(mount.wait().code(), Some(0), "the daemon ends with its last user");
    let mount = home.mount("mnt", &["--offline"]);
    assert_eq!(fs::read_to_string(mount.path().join("file")).expect("read"), "still works");
}

#[test]
fn a_dead_mount_is_replaced() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let mut mount = home.mount("mnt", &["--offline"]);
    fs::write(mount.path().join("file"), "closed").expect("write");
    let open = File::open(mount.path().join("file")).expect("open");
    mount.crash();
    let dead = fs::read_dir(mount.path()).expect_err("dead");
    assert_eq!(dead.raw_os_error(), Some(libc::ENOTCONN));
    let again = home.mount("mnt", &["--offline"]);
    assert_eq!(
        fs::read_to_string(again.path().join("file")).expect("read"),
        "closed",
        "a close is a promise"
    );
    assert!(again.log().contains("detaching the dead mount"), "{}", again.log());
    drop(open);
    assert_eq!(again.stop().code(), Some(0));
}

/// A killed daemon can leave `/dev/fuse` open, held by a thread that waits in the kernel for somebody who waits for the
/// daemon. Here this test holds it.
#[test]
fn a_mount_that_hangs_since_its_daemon_was_killed_is_replaced() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let mut mount = home.mount("mnt", &["--offline"]);
    fs::write(mount.path().join("file"), "closed").expect("write");
    let pid = mount.pid();
    let device = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("the daemon's files")
        .flatten()
        .find(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == Path::new("/dev/fuse")))
        .expect("its /dev/fuse");
    let number = text(device.file_name().as_bytes()).parse().expect("a number");
    let daemon = Pid::from_raw(i32::try_from(pid).expect("small")).expect("not zero");
    let daemon = pidfd_open(daemon, PidfdFlags::empty()).expect("pidfd_open");
    let held = pidfd_getfd(&daemon, number, PidfdGetfdFlags::empty()).expect("as root");
    mount.crash();
    let mut hangs =
        Command::new("stat").arg(mount.path().join("other")).stderr(Stdio::null()).spawn().expect("stat");
    std::thread::sleep(Duration::from_millis(300));
    assert!(hangs.try_wait().expect("wait").is_none(), "nobody answers, and nobody says that nobody will");
    let again = home.mount("mnt", &["--offline"]);
    assert_eq!(fs::read_to_string(again.path().join("file")).expect("read"), "closed");
    assert!(again.log().contains("the mount of a daemon that was killed"), "{}", again.log());
    assert!(!hangs.wait().expect("wait").success(), "who hung in it is let go");
    drop(held);
    assert_eq!(again.stop().code(), Some(0));
}

#[test]
fn a_mount_says_what_it_hides_and_uncovers_it() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let point = home.dir("mnt");
    fs::write(point.join("token"), "hf_old").expect("write");
    fs::create_dir(point.join("hub")).expect("mkdir");
    let mount = home.mount("mnt", &["--offline"]);
    assert!(mount.log().contains("is not empty; while mounted, this hides hub, token"), "{}", mount.log());
    assert_eq!(fs::read_to_string(point.join("token")).expect("its owner's"), "hf_old");
    assert_eq!(mount.stop().code(), Some(0));
    assert_eq!(fs::read_to_string(point.join("token")).expect("read"), "hf_old");
    assert!(point.join("hub").is_dir());
}

#[test]
fn two_mounts_of_a_volume_have_caches_of_their_own_and_see_each_other() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let one = home.mount("one", &["--offline"]);
    let two = home.mount("two", &["--offline"]);
    fs::write(one.path().join("file"), "first").expect("write");
    assert_eq!(fs::read_to_string(two.path().join("file")).expect("read"), "first");
    fs::write(two.path().join("file"), "second, and longer").expect("write");
    assert_eq!(fs::read_to_string(one.path().join("file")).expect("read"), "second, and longer");
    assert_eq!(sessions(&home).len(), 2);
    assert_eq!(one.stop().code(), Some(0));
    assert_eq!(two.stop().code(), Some(0));
}

#[test]
fn a_file_that_is_open_when_the_daemon_is_told_to_end_is_written() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut mount = home.mount("mnt", &["--offline"]);
        let mut file = File::create(mount.path().join("file")).expect("create");
        file.write_all(format!("written before {signal}").as_bytes()).expect("write");
        let begun = Instant::now();
        mount.signal(signal);
        wait_for("it vanishes from the tree", || !is_mounted(mount.path()));
        assert_eq!(mount.wait().code(), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
        drop(file);
        let mount = home.mount("mnt", &["--offline"]);
        let found = fs::read_to_string(mount.path().join("file")).expect("read");
        assert_eq!(found, format!("written before {signal}"));
        assert_eq!(mount.stop().code(), Some(0));
    }
}

#[test]
fn a_read_only_mount_refuses_changes() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let mount = home.mount("mnt", &["--offline"]);
    fs::write(mount.path().join("file"), "data").expect("write");
    assert_eq!(mount.stop().code(), Some(0));
    let mount = home.mount("mnt", &["--offline", "--read-only"]);
    assert_eq!(fs::read_to_string(mount.path().join("file")).expect("read"), "data");
    for error in [
        fs::write(mount.path().join("file"), "other").expect_err("write"),
        fs::create_dir(mount.path().join("dir")).expect_err("mkdir"),
        fs::remove_file(mount.path().join("file")).expect_err("unlink"),
    ] {
        assert_eq!(error.raw_os_error(), Some(libc::EROFS), "{error}");
    }
}

/// What the libraries see of the file system itself.
#[test]
fn it_shows_as_hfmount_with_true_figures() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let mount = home.mount("mnt", &["--offline"]);
    let table = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let line = table.lines().find(|l| l.contains(utf8(mount.path()))).expect("mounted");
    assert!(line.starts_with("hfmount ") && line.contains(" fuse.hfmount "), "{line}");
    assert!(
        line.contains("default_permissions") && line.contains("nosuid") && line.contains("nodev"),
        "{line}"
    );
    let df = Command::new("df").args(["--output=size,avail"]).arg(mount.path()).output().expect("df");
    let figures = text(&df.stdout);
    let numbers: Vec<u64> = figures
        .lines()
        .nth(1)
        .expect("a line")
        .split_whitespace()
        .map(|n| n.parse().expect("number"))
        .collect();
    assert!(numbers.iter().all(|n| *n > 0), "{figures}");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(mount.path().join("f"))
        .expect("open");
    file.write_all_at(b"x", 10_000).expect("write");
    let xattr = Command::new("getfattr").arg("-d").arg(mount.path().join("f")).stderr(Stdio::null()).status();
    assert!(xattr.is_err() || xattr.is_ok_and(|s| s.success()), "no attributes is no error");
    assert!(!mount.log().contains("Not Implemented"), "{}", mount.log());
}

/// A program that waits for a lock which another mount holds can be killed, and stops when it is asked to.
#[test]
fn who_waits_for_a_lock_can_be_killed() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let one = home.mount("one", &["--offline"]);
    let two = home.mount("two", &["--offline"]);
    fs::write(one.path().join("lock"), "").expect("write");
    let hold = |mount: &Path, seconds: &str| {
        let mut command = heeding_interrupts("flock");
        command.arg(mount.join("lock")).args(["-c", &format!("echo held; sleep {seconds}")]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().expect("flock")
    };
    let mut holder = hold(one.path(), "600");
    wait_for("the lock is held", || {
        let probe = Command::new("flock").arg("-n").arg(two.path().join("lock")).arg("true").status();
        !probe.expect("flock").success()
    });
    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGINT] {
        let mut waiter = hold(two.path(), "0");
        std::thread::sleep(Duration::from_millis(500));
        assert!(waiter.try_wait().expect("wait").is_none(), "it waits");
        let begun = Instant::now();
        let pid = i32::try_from(waiter.id()).expect("pid");
        // SAFETY: kill touches no memory; the child has not been waited for.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
        wait_for("it ends", || waiter.try_wait().expect("wait").is_some());
        let status = waiter.wait().expect("wait");
        assert_eq!(status.signal(), Some(signal), "{status}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
    let waiter = hold(two.path(), "0");
    std::thread::sleep(Duration::from_millis(300));
    // Its child has the file open too.
    let _ = Command::new("pkill").args(["-P", &holder.id().to_string()]).status();
    holder.wait().expect("wait");
    let output = waiter.wait_with_output().expect("wait");
    assert_eq!(text(&output.stdout), "held\n", "who waits gets it when it is free");
}

/// As an ordinary user, through fusermount3. The device is made usable for that user in a mount namespace of the test's own.
#[test]
fn an_ordinary_user_mounts_through_the_helper() {
    if !can_mount() {
        return;
    }
    let home = Home::new();
    let point = home.dir("mnt");
    let script = format!(
        "set -e
         mknod {dir}/fuse c 10 229; chmod 666 {dir}/fuse; mount --bind {dir}/fuse /dev/fuse
         chown -R 65534:65534 {dir}; chmod 755 {dir}
         run='setpriv --reuid=65534 --regid=65534 --clear-groups'
         $run {program} format >/dev/null
         $run {program} mount -d --offline {mnt}
         $run sh -c 'echo mine > {mnt}/file; cat {mnt}/file; stat -c %u:%a {mnt}/file'
         grep -c ' {mnt} fuse.hfmount ' /proc/self/mounts
         $run {program} umount {mnt}
         ! grep -q ' {mnt} ' /proc/self/mounts
         echo done",
        dir = home.path().display(),
        mnt = point.display(),
        program = env!("CARGO_BIN_EXE_hfmount"),
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "--propagation", "private", "sh", "-c", &script]).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", home.path());
    command.env("HFMOUNT_HOME", home.path().join("hfmount"));
    let output = command.output().expect("unshare");
    let logs =
        Command::new("sh").arg("-c").arg(format!("cat {}/hfmount/logs/*", home.path().display())).output();
    let logs = logs.map(|o| text(&o.stdout)).unwrap_or_default();
    let said = text(&output.stdout) + &text(&output.stderr) + &logs;
    assert!(output.status.success(), "{said}");
    assert!(said.contains("mine\n65534:644\n1\ndone\n"), "{said}");
}
