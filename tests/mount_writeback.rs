//! Real mounts whose bucket goes away and comes back: with `--writeback`, what close and fsync acknowledged outlives all of it;
//! without, they say in time that it is not stored, and it goes later.

#[path = "support/bucket.rs"]
mod bucket;
#[path = "support/mount.rs"]
mod mount;
#[path = "standin/mod.rs"]
mod standin;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use bucket::World;
use mount::{can_mount, is_mounted, text, wait_for};
use standin::model::random_bytes;

const MIB: usize = 1 << 20;

/// Names and contents, of all sizes: in the metadata, in one object, in many, not whole chunks.
fn contents() -> Vec<(String, Vec<u8>)> {
    let sizes = [0, 100, 5_000, MIB - 1, MIB, 3 * MIB + 17, 7 * MIB];
    sizes.iter().enumerate().map(|(n, &len)| (format!("file {n}"), random_bytes(n as u64 + 1, len))).collect()
}

fn check(dir: &Path, wanted: &[(String, Vec<u8>)], what: &str) {
    for (name, bytes) in wanted {
        let got = fs::read(dir.join(name)).unwrap_or_else(|e| panic!("{what}: {name}: {e}"));
        assert!(got == *bytes, "{what}: {name} has {} bytes for {}, or others", got.len(), bytes.len());
    }
}

#[test]
fn what_close_acknowledged_outlives_kill_9_and_reaches_all() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let other = world.mount("other", &[]);
    let mut mount = world.mount("mnt", &["--writeback"]);
    let dir = mount.path().join("dir");
    fs::create_dir(&dir).expect("mkdir");
    let old = random_bytes(99, 2 * MIB);
    fs::write(dir.join("old"), &old).expect("write");
    wait_for("the first file", || world.waiting().is_empty());
    // In the other's cache from now on.
    assert!(fs::read(other.path().join("dir/old")).expect("read") == old);

    world.down(true);
    let mut wanted = contents();
    for (name, bytes) in &wanted {
        fs::write(dir.join(name), bytes).expect("close does not wait for the bucket");
    }
    // Synced and not closed; written over; made longer, and cut.
    let mut open = File::create(dir.join("open")).expect("create");
    open.write_all(&wanted[5].1).expect("write");
    open.sync_all().expect("fsync does not wait for the bucket");
    wanted.push(("open".into(), wanted[5].1.clone()));
    let mut changed = old.clone();
    changed[MIB - 5..MIB + 5].fill(7);
    changed.extend_from_slice(b"the end");
    let file = OpenOptions::new().write(true).open(dir.join("old")).expect("open");
    file.write_all_at(&[7; 10], MIB as u64 - 5).expect("write");
    file.write_all_at(b"the end", 2 * MIB as u64).expect("write");
    drop(file);
    wanted.push(("old".into(), changed));
    let file = OpenOptions::new().write(true).open(dir.join("file 6")).expect("open");
    file.set_len(MIB as u64 + 3).expect("cut");
    drop(file);
    wanted[6].1.truncate(MIB + 3);
    // Written behind the last fsync: it may vanish.
    let _ = open.write_all(b"not acknowledged");

    let uploads = wanted.iter().filter(|(_, bytes)| bytes.len() > 4096).count() as u64;
    wait_for("status to tell why", || world.waiting().iter().any(|w| w["last_error"].is_string()));
    let waiting = world.waiting();
    assert_eq!((waiting.len(), waiting[0]["files"].as_u64()), (1, Some(uploads)), "{waiting:?}");
    assert!(waiting[0]["bytes"].as_u64() > Some(5 * MIB as u64), "{waiting:?}");
    assert_eq!(waiting[0]["mounted"], true);
    assert!(world.home.run_ok(&["status"]).contains("to be uploaded"));
    assert!(fs::read(other.path().join("dir/old")).expect("read") == old, "others see what is committed");

    mount.crash();
    drop(open);
    let waiting = world.waiting();
    assert_eq!((waiting[0]["files"].as_u64(), &waiting[0]["mounted"]), (Some(uploads), &false.into()));
    let mut again = world.mount("mnt", &["--writeback"]);
    std::mem::forget(mount);
    let log = again.log();
    assert!(log.contains(&format!("{uploads} files")) && log.contains("uploaded now"), "{log}");
    let end = wanted.iter().position(|(name, _)| name == "open").expect("it is there");
    let got = fs::read(dir.join("open")).expect("read");
    assert!(got.starts_with(&wanted[end].1), "what was synced");
    wanted[end].1 = got;
    // Of the changed one, what was not changed is in the bucket.
    let here: Vec<_> = wanted.iter().filter(|(name, _)| name != "old").cloned().collect();
    check(&dir, &here, "the next mount, before anything is uploaded");

    // Once more, half-way through the upload.
    world.s3.faults(|f| (f.refuse, f.delay_ms) = (false, 150));
    std::thread::sleep(Duration::from_millis(700));
    again.crash();
    world.s3.faults(|f| f.delay_ms = 0);
    let last = world.mount("mnt", &[]);
    std::mem::forget(again);
    wait_for("the upload", || world.waiting().is_empty());
    check(&other.path().join("dir"), &wanted, "another mount");
    check(&dir, &wanted, "the mount that resumed");
    assert_eq!(last.stop().code(), Some(0));
    check(&world.mount("fresh", &[]).path().join("dir"), &wanted, "a mount that comes later");
}

#[test]
fn a_bucket_that_comes_back_gets_everything_and_nobody_waits_for_it() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let mount = world.mount("mnt", &["--writeback"]);
    let other = world.mount("other", &[]);
    let wanted = contents();
    world.down(true);
    let began = Instant::now();
    for (name, bytes) in &wanted {
        fs::write(mount.path().join(name), bytes).expect("write");
    }
    // The metadata has the small ones at once.
    check(other.path(), &wanted[..2], "another mount");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    fs::rename(mount.path().join("file 5"), mount.path().join("renamed")).expect("rename");
    fs::remove_file(mount.path().join("file 4")).expect("unlink");
    check(mount.path(), &[("renamed".into(), wanted[5].1.clone())], "this mount");
    let failed = |w: &serde_json::Value| w["last_error"].is_string();
    wait_for("status to tell why", || world.waiting().iter().any(failed));
    world.down(false);
    wait_for("the upload", || world.waiting().is_empty());
    check(other.path(), &wanted[..4], "another mount");
    check(other.path(), &[("renamed".into(), wanted[5].1.clone())], "another mount");
    assert!(!other.path().join("file 4").exists());
    assert!(mount.log().contains("cannot be uploaded now"), "{}", mount.log());
    assert!(mount.log().contains("is uploaded again"), "{}", mount.log());
}

#[test]
fn umount_waits_to_its_bound_and_says_what_is_left() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let mut mount = world.mount("mnt", &["--writeback"]);
    let point = mount.path().to_owned();
    let data = random_bytes(1, 3 * MIB + 5);
    world.down(true);
    fs::write(point.join("a"), &data).expect("write");
    let began = Instant::now();
    let done = world.home.run(&["umount", "--timeout", "120s", point.to_str().expect("UTF-8")]);
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(text(&done.stderr).contains("1 files (3.00 MiB) are not uploaded yet"), "{}", text(&done.stderr));
    assert!(began.elapsed() < Duration::from_secs(90), "{:?}", began.elapsed());
    assert!(!is_mounted(&point));
    assert_eq!(mount.wait().code(), Some(0), "nothing is lost");
    assert!(mount.log().contains("go on with the next mount"), "{}", mount.log());
    assert_eq!(world.waiting()[0]["files"], 1);
    world.down(false);
    let again = world.mount("mnt", &[]);
    assert!(fs::read(again.path().join("a")).expect("read") == data);
    wait_for("the upload", || world.waiting().is_empty());
    assert!(fs::read(world.mount("other", &[]).path().join("a")).expect("read") == data);
}

/// Two daemons of one machine die with journals in a cache directory and its sibling; one comes back.
#[test]
fn a_journal_beside_the_own_one_is_uploaded_too() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let cache = world.home.dir("cache");
    let mut one = world.mount_in("one", &cache, &["--writeback"]);
    let mut two = world.mount_in("two", &cache, &["--writeback"]);
    let (first, second) = (random_bytes(1, 2 * MIB + 1), random_bytes(2, 3 * MIB));
    world.down(true);
    fs::write(one.path().join("first"), &first).expect("write");
    fs::write(two.path().join("second"), &second).expect("write");
    one.crash();
    two.crash();
    assert_eq!(world.waiting().len(), 2);
    let again = world.mount_in("one", &cache, &["--writeback"]);
    std::mem::forget(one);
    drop(two);
    assert!(fs::read(again.path().join("first")).expect("read") == first);
    world.down(false);
    wait_for("both uploads", || world.waiting().is_empty());
    let wanted = [("first".to_owned(), first), ("second".to_owned(), second)];
    check(again.path(), &wanted, "this mount");
    check(world.mount("other", &[]).path(), &wanted, "another mount");
}

/// Without writeback: the error comes in time, the log names the object, the data is kept and tried again.
#[test]
fn fsync_and_close_fail_in_time_and_the_data_goes_later() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let mount = world.mount("mnt", &["--io-timeout", "2s"]);
    let other = world.mount("other", &[]);
    let data = random_bytes(1, 2 * MIB + 77);
    world.down(true);
    let began = Instant::now();
    let mut file = File::create(mount.path().join("a")).expect("create");
    file.write_all(&data).expect("the local disk takes it");
    let error = file.sync_all().expect_err("it is not stored");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    // SAFETY: the descriptor is open, and nobody else closes it.
    let closed = unsafe { libc::close(std::os::fd::IntoRawFd::into_raw_fd(file)) };
    assert_eq!((closed, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::EIO)));
    assert!(mount.log().contains("chunks/"), "it names the object:\n{}", mount.log());
    assert!(fs::read(mount.path().join("a")).expect("read") == data, "kept");
    world.down(false);
    wait_for("another try", || fs::read(other.path().join("a")).expect("read") == data);
    File::open(mount.path().join("a")).expect("open").sync_all().expect("nothing is left to be said");
}
