//! Real mounts whose cache lies on a small disk that others fill, or that dies: programs read and write on, and what was
//! acknowledged is in the bucket.

#[path = "support/bucket.rs"]
mod bucket;
#[path = "support/mount.rs"]
mod mount;
#[path = "standin/mod.rs"]
mod standin;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use bucket::World;
use mount::{can_mount, wait_for};
use standin::model::{put, random_bytes};
use standin::{Options, StandIn};

const MIB: usize = 1 << 20;

/// A small file system of its own; needs root.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn tmpfs(path: PathBuf, size: &str) -> Self {
        fs::create_dir_all(&path).expect("a directory");
        let options = format!("size={size},mode=0700");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path).status();
        assert!(done.expect("mount").success(), "this test mounts a tmpfs and needs root");
        SmallDisk(path)
    }

    /// One that can die. `None`: this machine has no loop devices, or no ext4.
    fn ext4(path: PathBuf, image: &Path) -> Option<Self> {
        fs::create_dir_all(&path).expect("a directory");
        File::create(image).and_then(|f| f.set_len(96 << 20)).expect("an image");
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image).status();
        if !made.is_ok_and(|s| s.success()) {
            return None;
        }
        let done = Command::new("mount").args(["-o", "loop"]).arg(image).arg(&path).status();
        done.is_ok_and(|s| s.success()).then_some(SmallDisk(path))
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut file = File::create(self.0.join("filler")).expect("a file");
        for piece in [MIB, 4096, 1] {
            while file.write_all(&vec![1; piece]).is_ok() {}
        }
    }

    /// From now on everything on it answers EIO, as a disk that was pulled out does. `false`: the kernel cannot do that.
    fn die(&self) -> bool {
        /// `EXT4_IOC_SHUTDOWN`, without flushing anything.
        const SHUTDOWN: libc::c_ulong = 0x8004_587d;
        let dir = File::open(&self.0).expect("its root");
        let how: u32 = 2;
        // SAFETY: the request reads one u32, which lives.
        unsafe { libc::ioctl(dir.as_raw_fd(), SHUTDOWN, &raw const how) == 0 }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a daemon that is just ending may hold a file a moment longer.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn read(path: &Path, wanted: &[u8], what: &str) {
    let got = fs::read(path).unwrap_or_else(|e| panic!("{what}: {}: {e}", path.display()));
    assert!(
        got == wanted,
        "{what}: {} has {} bytes for {}, or others",
        path.display(),
        got.len(),
        wanted.len()
    );
}

/// In pieces, as programs do.
fn write(path: &Path, data: &[u8]) {
    let mut file = File::create(path).expect("create");
    data.chunks(300_000).for_each(|piece| file.write_all(piece).expect("write"));
    file.sync_all().expect("fsync");
}

#[test]
fn a_cache_disk_that_others_filled_fails_no_read_and_no_write() {
    if !can_mount() {
        return;
    }
    for args in [&[][..], &["--writeback"]] {
        let world = World::new();
        let root = world.home.dir("hub");
        let weights = random_bytes(8, 9 * MIB + 1);
        put(&root, "models/org/one/main/model.safetensors", &weights);
        let hub = StandIn::start(&root, Options::default()).expect("free ports");
        let disk = SmallDisk::tmpfs(world.home.dir("small"), "64m");
        let cache = disk.0.join("cache");
        let place = ["--cache-dir", cache.to_str().expect("UTF-8"), "--hub-endpoint", hub.endpoint()];
        let mount = world.home.mount("mnt", &[&place[..], args].concat());
        let other = world.mount("other", &[]);
        let (theirs, before) = (random_bytes(1, 40 * MIB + 3), random_bytes(2, 20 * MIB));
        write(&other.path().join("theirs"), &theirs);
        write(&mount.path().join("before"), &before);
        let half = File::create(mount.path().join("half")).expect("create");
        half.write_all_at(&before[..MIB + 5], 0).expect("write");

        disk.fill();
        read(&mount.path().join("theirs"), &theirs, "of the bucket");
        read(&mount.path().join("before"), &before, "one's own");
        read(&mount.snapshot("models--org--one").join("model.safetensors"), &weights, "of the Hub");
        let large = random_bytes(3, 96 * MIB);
        write(&mount.path().join("large"), &large);
        for n in 0..40 {
            write(&mount.path().join(format!("small {n}")), &random_bytes(100 + n, 70_000));
        }
        half.write_all_at(&before[MIB + 5..], MIB as u64 + 5).expect("write");
        half.sync_all().expect("fsync");
        drop(half);
        read(&mount.path().join("large"), &large, "one's own");
        wait_for("the upload", || world.waiting().is_empty());
        read(&other.path().join("large"), &large, "another mount");
        read(&other.path().join("half"), &before, "another mount");
        for n in 0..40 {
            read(&other.path().join(format!("small {n}")), &random_bytes(100 + n, 70_000), "another mount");
        }
        assert!(world.status()["failed_disks"].as_array().expect("a list").is_empty(), "full is not failed");
        assert_eq!(mount.stop().code(), Some(0));
    }
}

#[test]
fn a_cache_disk_that_dies_is_put_aside_and_everything_goes_on() {
    if !can_mount() {
        return;
    }
    for args in [&[][..], &["--writeback"]] {
        let world = World::new();
        let image = world.home.path().join("image");
        let Some(disk) = SmallDisk::ext4(world.home.dir("disk"), &image) else {
            eprintln!("skipped: no ext4 on a loop device here; chunk::file::tests::disk simulates it");
            return;
        };
        let mount = world.mount_in("mnt", &disk.0.join("cache"), args);
        let other = world.mount("other", &[]);
        let old = random_bytes(1, 12 * MIB + 5);
        write(&mount.path().join("old"), &old);
        wait_for("the upload", || world.waiting().is_empty());
        let open = OpenOptions::new().read(true).write(true).open(mount.path().join("old")).expect("open");
        if !disk.die() {
            eprintln!("skipped: this kernel cannot shut an ext4 down; chunk::file::tests::disk simulates it");
            return;
        }
        let mut changed = old.clone();
        changed[3 * MIB..3 * MIB + 9].fill(1);
        open.write_all_at(&[1; 9], 3 * MIB as u64).expect("memory takes it");
        open.sync_all().expect("fsync");
        read(&mount.path().join("old"), &changed, "one's own");
        let new = random_bytes(2, 30 * MIB);
        write(&mount.path().join("new"), &new);
        read(&mount.path().join("new"), &new, "one's own");
        read(&other.path().join("new"), &new, "another mount, at once");
        read(&other.path().join("old"), &changed, "another mount, at once");
        let theirs = random_bytes(3, 5 * MIB);
        write(&other.path().join("theirs"), &theirs);
        read(&mount.path().join("theirs"), &theirs, "what others write");

        let log = mount.log();
        assert_eq!(log.matches("is not used any more; memory stands in for it").count(), 1, "{log}");
        wait_for("status to tell", || !world.status()["failed_disks"].as_array().expect("a list").is_empty());
        let failed = &world.status()["failed_disks"][0];
        assert_eq!(failed["mountpoint"], mount.path().to_str().expect("UTF-8"));
        assert!(failed["error"].as_str().expect("why").contains("nput/output error"), "{failed}");
        assert!(world.home.run_ok(&["status"]).contains("FAILED DISK"));
        drop(open);
        assert_eq!(mount.stop().code(), Some(0), "nothing is lost");
        read(&world.mount("later", &[]).path().join("new"), &new, "a mount that comes later");
    }
}
