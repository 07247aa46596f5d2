//! Complete blobs that the kernel reads by itself out of the cache's files: what programs see of it, which is nothing but
//! speed, whatever else is open, written, evicted or killed meanwhile.

#[path = "support/hub.rs"]
mod hub;
#[path = "support/mount.rs"]
mod mount;
#[path = "standin/mod.rs"]
mod standin;

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use hfmount::chunk::digest::Digest;
use hfmount::types::BlobId;
use hub::{World, snapshot};
use mount::{Home, Mount, can_mount, wait_for};
use standin::model::{put, random_bytes};

const BIG: usize = 5_500_000;

/// Some repositories with a file each, all different.
fn world(repos: u64) -> World {
    World::new(0, |root, _| {
        for n in 0..repos {
            put(root, &format!("models/org/m{n}/main/model.safetensors"), bytes_of(n));
        }
    })
}

fn bytes_of(n: u64) -> Vec<u8> {
    random_bytes(n + 1, BIG)
}

fn model(mount: &Mount, n: u64) -> PathBuf {
    snapshot(mount, &format!("m{n}")).join("model.safetensors")
}

/// Whether the kernel reads it without the daemon, which is stopped meanwhile: pages of the mount are dropped before.
fn is_native(mount: &Mount, file: &File) -> bool {
    // SAFETY: touches no memory.
    assert_eq!(unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) }, 0);
    let file = file.try_clone().expect("dup");
    mount.signal(libc::SIGSTOP);
    // Until then it may answer.
    wait_for("every thread of it stands still", || stands_still(mount.pid()));
    let (done, wait) = sync_channel(1);
    let reader = std::thread::spawn(move || {
        let mut bytes = [0; 100];
        file.read_exact_at(&mut bytes, 2_000_000).expect("read");
        let _ = done.send(());
    });
    let native = wait.recv_timeout(Duration::from_millis(400)).is_ok();
    mount.signal(libc::SIGCONT);
    reader.join().expect("reader");
    native
}

/// Whether no thread of the process runs or is about to.
fn stands_still(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let runs = |task: fs::DirEntry| {
        // One that ended meanwhile has no status.
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or("X");
        matches!(state.trim_start().chars().next(), Some('R' | 'S'))
    };
    !tasks.flatten().any(runs)
}

/// Opens it until that gives a native one: it is when it was checked as a whole.
fn open_native(mount: &Mount, path: &Path) -> File {
    let mut native = None;
    wait_for("it is native", || {
        let file = File::open(path).expect("open");
        if is_native(mount, &file) {
            native = Some(file);
        }
        native.is_some()
    });
    native.expect("native")
}

struct Map(*mut libc::c_void, usize);

// SAFETY: the mapping is only read.
unsafe impl Send for Map {}

impl Map {
    fn of(file: &File, flags: i32) -> Self {
        let len = file.metadata().expect("stat").len() as usize;
        // SAFETY: a new mapping, where the kernel has room.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, flags, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Map(at, len)
    }

    /// Nothing of it is in use, so that the kernel may drop its pages.
    fn let_go(&self) {
        // SAFETY: a shared mapping of a file loses nothing.
        assert_eq!(unsafe { libc::madvise(self.0, self.1, libc::MADV_DONTNEED) }, 0);
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped until it is dropped, and nobody writes to the file.
        unsafe { std::slice::from_raw_parts(self.0.cast(), self.1) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: it is ours, and no slice of it is left.
        unsafe { libc::munmap(self.0, self.1) };
    }
}

fn read_direct(path: &Path) -> Vec<u8> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).expect("O_DIRECT");
    let mut all = Vec::new();
    let mut room = vec![0; (1 << 20) + 4096];
    let skip = room.as_ptr().align_offset(4096);
    loop {
        let n = file.read_at(&mut room[skip..skip + (1 << 20)], all.len() as u64).expect("direct read");
        all.extend_from_slice(&room[skip..skip + n]);
        // The end is wherever a block is not full.
        if n < 1 << 20 {
            return all;
        }
    }
}

fn status(world: &World) -> String {
    world.home.run_ok(&["status", "--json"]).split_whitespace().collect()
}

#[test]
fn a_blob_is_native_though_it_is_open_since_before_it_was_complete() {
    if !can_mount() {
        return;
    }
    let world = world(1);
    let mount = world.home.mount("mnt", &[]);
    let (path, expected) = (model(&mount, 0), bytes_of(0));
    let first = File::open(&path).expect("open");
    let mapped = Map::of(&first, libc::MAP_SHARED);
    assert!(mapped.bytes() == expected, "filled through a mapping");
    mapped.let_go();
    let native = open_native(&mount, &path);
    assert!(!is_native(&mount, &first), "the first one stays as it was");

    for file in [&native, &first] {
        let mut bytes = vec![0; BIG];
        file.read_exact_at(&mut bytes, 0).expect("pread");
        assert!(bytes == expected);
        assert!(Map::of(file, libc::MAP_PRIVATE).bytes() == expected);
        assert!(Map::of(file, libc::MAP_SHARED).bytes() == expected);
    }
    assert!(fs::read(&path).expect("read") == expected);
    assert!(read_direct(&path) == expected);
    // One file, whoever looks, and however.
    let inos =
        [&first, &native, &File::open(&path).expect("open")].map(|f| f.metadata().expect("stat").ino());
    let by_name = fs::metadata(&path).expect("stat").ino();
    assert!(inos.iter().all(|ino| *ino == by_name), "{inos:?} {by_name}");
    let again = File::open(format!("/proc/self/fd/{}", first.as_raw_fd())).expect("a path without names");
    assert_eq!(again.metadata().expect("stat").ino(), by_name);
    File::open(format!("/proc/self/fd/{}", native.as_raw_fd())).expect("a path without names");
    assert!(status(&world).contains("\"on\":true"), "{}", status(&world));
    drop((first, mapped, native, again));
    assert_eq!(mount.stop().code(), Some(0));

    world.hub.faults(|f| f.refuse = true);
    let mount = world.home.mount("mnt", &["--offline"]);
    let file = File::open(model(&mount, 0)).expect("open");
    assert!(is_native(&mount, &file), "the first open after a remount");
    drop(file);
    assert_eq!(mount.stop().code(), Some(0));
}

#[test]
fn no_open_fails_whatever_is_open_and_mapped_meanwhile() {
    if !can_mount() {
        return;
    }
    let world = world(3);
    let mount = world.home.mount("mnt", &[]);
    let files: Vec<_> = (0..3).map(|n| (model(&mount, n), bytes_of(n))).collect();
    let seconds = std::env::var("HFMOUNT_TEST_SECONDS").map_or(6, |s| s.parse().expect("seconds"));
    let (end, rounds) = (Instant::now() + Duration::from_secs(seconds), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let (files, rounds) = (&files, &rounds);
            scope.spawn(move || {
                let mut random = thread * 7919 + 1;
                let mut roll = |n: u64| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (random >> 33) % n
                };
                let (mut open, mut maps) = (Vec::new(), Vec::new());
                while Instant::now() < end {
                    let (path, bytes) = &files[roll(3) as usize];
                    match roll(8) {
                        0..=2 => open.push((File::open(path).expect("open"), bytes)),
                        3 => {
                            let file = OpenOptions::new().read(true).write(true).open(path);
                            open.push((file.expect("to write"), bytes));
                        }
                        4 if !open.is_empty() => {
                            let (file, bytes) = &open[roll(open.len() as u64) as usize];
                            let how = [libc::MAP_SHARED, libc::MAP_PRIVATE][roll(2) as usize];
                            maps.push((Map::of(file, how), *bytes));
                        }
                        5 => {
                            let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path);
                            open.push((file.expect("direct"), bytes));
                        }
                        6 if !open.is_empty() => drop(open.swap_remove(roll(open.len() as u64) as usize)),
                        _ if !maps.is_empty() => drop(maps.swap_remove(roll(maps.len() as u64) as usize)),
                        _ => {}
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                    if let Some((map, bytes)) = maps.last() {
                        let at = roll(BIG as u64) as usize;
                        assert_eq!(map.bytes()[at], bytes[at]);
                    }
                    if let Some((file, bytes)) = open.last() {
                        let at = roll(BIG as u64 / 4096) as usize * 4096;
                        let mut room = vec![0; 8192];
                        let skip = room.as_ptr().align_offset(4096);
                        let n = file.read_at(&mut room[skip..skip + 4096], at as u64).expect("read");
                        assert!(room[skip..skip + n] == bytes[at..at + n] && n > 0);
                    }
                    if open.len() > 12 {
                        open.clear();
                    }
                    if maps.len() > 6 {
                        maps.clear();
                    }
                }
            });
        }
    });
    assert!(rounds.load(Ordering::Relaxed) > 100, "it did something");
    for (path, bytes) in &files {
        assert!(fs::read(path).expect("read") == *bytes);
        open_native(&mount, path);
    }
    assert!(!mount.log().contains("panic"));
    assert_eq!(mount.stop().code(), Some(0));
}

#[test]
fn who_writes_never_writes_to_the_blob() {
    if !can_mount() {
        return;
    }
    let world = world(1);
    let mount = world.home.mount("mnt", &[]);
    let (path, blob) = (model(&mount, 0), bytes_of(0));
    assert!(fs::read(&path).expect("read") == blob);
    let native = open_native(&mount, &path);
    let mapped = Map::of(&native, libc::MAP_SHARED);
    let real = fs::canonicalize(&path).expect("blob");
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).expect("chmod");
    assert_eq!(fs::metadata(&path).expect("stat").mode() & 0o777, 0o640);
    let time = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    native.set_modified(time).expect("utimens");
    assert_eq!(fs::metadata(&path).expect("stat").modified().expect("mtime"), time);
    assert!(is_native(&mount, &File::open(&path).expect("open")), "its data is what it was");

    let mut expected = blob.clone();
    let writer = OpenOptions::new().read(true).write(true).open(&path).expect("open to write");
    writer.write_all_at(b"written over", 3_000_000).expect("write");
    expected[3_000_000..3_000_012].copy_from_slice(b"written over");
    let mut seen = [0; 12];
    writer.read_exact_at(&mut seen, 3_000_000).expect("read");
    assert_eq!(&seen, b"written over");
    assert!(fs::read(&path).expect("read beside the writer") == expected);
    drop(writer);
    assert!(fs::read(&path).expect("read") == expected);
    let mut bytes = vec![0; BIG];
    native.read_exact_at(&mut bytes, 0).expect("read on");
    assert!(bytes == blob && mapped.bytes() == blob, "who had it open reads on");
    for (size, what) in [(2_000_000, "cut"), (6_000_000, "longer"), (0, "empty")] {
        OpenOptions::new().write(true).open(&path).expect("open").set_len(size).expect(what);
        expected.resize(size as usize, 0);
        assert_eq!(fs::metadata(&path).expect("stat").len(), size, "{what}");
        assert!(fs::read(&path).expect("read") == expected, "{what}");
    }
    fs::write(&path, "another").expect("O_TRUNC");
    assert_eq!(fs::read_to_string(&path).expect("read"), "another");
    assert!(mapped.bytes() == blob);
    // Without a name to look up there is nothing that could be written to.
    let again = OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", native.as_raw_fd()));
    assert_eq!(again.expect_err("busy").raw_os_error(), Some(libc::ETXTBSY));
    drop((native, mapped));
    let writer = OpenOptions::new().write(true).open(&path).expect("open");
    writer.write_all_at(b"A", 0).expect("write");
    drop(writer);
    assert_eq!(fs::read_to_string(&path).expect("read"), "Another");
    assert_eq!(mount.stop().code(), Some(0));
}

/// A file as a client has it that downloads by itself.
fn download(mount: &Mount, bytes: &[u8]) -> PathBuf {
    let blobs = mount.path().join("models--org--mine/blobs");
    fs::create_dir_all(&blobs).expect("mkdir");
    let etag = Digest::of(&BlobId::Sha256([0; 32]), bytes).etag();
    let temporary = blobs.join(format!("{etag}.0a1b2c3d.incomplete"));
    fs::write(&temporary, bytes).expect("write");
    let path = blobs.join(etag);
    fs::rename(&temporary, &path).expect("rename");
    path
}

#[test]
fn what_a_client_downloaded_is_native() {
    if !can_mount() {
        return;
    }
    let world = world(1);
    let mount = world.home.mount("mnt", &[]);
    let bytes = bytes_of(99);
    let path = download(&mount, &bytes);
    let native = open_native(&mount, &path);
    let mapped = Map::of(&native, libc::MAP_SHARED);
    assert!(
        mapped.bytes() == bytes && fs::read(&path).expect("read") == bytes && read_direct(&path) == bytes
    );
    assert_eq!(native.metadata().expect("stat").ino(), fs::metadata(&path).expect("stat").ino());
    let mut end = [0; 10];
    assert_eq!(native.read_at(&mut end, BIG as u64 - 3).expect("read"), 3, "it ends where it ends");

    // Written to it is a file, and who had it as a blob reads that on.
    let mut expected = bytes.clone();
    let writer = OpenOptions::new().read(true).write(true).open(&path).expect("open to write");
    writer.write_all_at(b"written over", 3_000_000).expect("write");
    expected[3_000_000..3_000_012].copy_from_slice(b"written over");
    assert!(fs::read(&path).expect("read beside the writer") == expected);
    drop(writer);
    let file = File::open(&path).expect("open");
    assert!(!is_native(&mount, &file));
    assert!(
        Map::of(&file, libc::MAP_PRIVATE).bytes() == expected && fs::read(&path).expect("read") == expected
    );
    let mut seen = vec![0; BIG];
    native.read_exact_at(&mut seen, 0).expect("read on");
    assert!(seen == bytes && mapped.bytes() == bytes);
    OpenOptions::new().write(true).open(&path).expect("open").set_len(1000).expect("cut");
    assert!(fs::read(&path).expect("read") == expected[..1000]);
    drop((file, native, mapped));

    // And a blob again when a client downloads it anew.
    assert_eq!(download(&mount, &bytes), path);
    let native = open_native(&mount, &path);
    assert!(Map::of(&native, libc::MAP_PRIVATE).bytes() == bytes);
    drop(native);
    assert_eq!(mount.stop().code(), Some(0));

    world.hub.faults(|f| f.refuse = true);
    let mount = world.home.mount("mnt", &["--offline"]);
    let native = File::open(&path).expect("open");
    assert!(is_native(&mount, &native), "the first open after a remount");
    assert!(Map::of(&native, libc::MAP_SHARED).bytes() == bytes);
    drop(native);
    assert_eq!(mount.stop().code(), Some(0));
    // With nothing on the disk it comes from the storage.
    let mount = world
        .home
        .mount("mnt", &["--offline", "--cache-dir", world.home.dir("other").to_str().expect("text")]);
    assert!(fs::read(&path).expect("read") == bytes);
    open_native(&mount, &path);
    assert_eq!(mount.stop().code(), Some(0));
}

/// It is written to with what it has anyway and downloaded anew, and so is a file and a blob in turn: whoever reads it sees the
/// same, and no open fails.
#[test]
fn a_downloaded_file_is_the_same_whatever_is_open_mapped_and_written_meanwhile() {
    if !can_mount() {
        return;
    }
    let world = world(1);
    let mount = world.home.mount("mnt", &[]);
    let bytes = bytes_of(99);
    let path = download(&mount, &bytes);
    let seconds = std::env::var("HFMOUNT_TEST_SECONDS").map_or(6, |s| s.parse().expect("seconds"));
    let end = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        for thread in 0..5u64 {
            let (path, bytes, mount) = (&path, &bytes, &mount);
            scope.spawn(move || {
                let mut random = thread * 6007 + 3;
                let mut roll = |n: usize| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (random >> 33) as usize % n
                };
                let (mut open, mut maps) = (Vec::new(), Vec::new());
                while Instant::now() < end {
                    match roll(10) {
                        0..=3 => open.push(File::open(path).expect("open")),
                        4 if thread == 0 => {
                            download(mount, bytes);
                        }
                        4 | 5 if thread < 2 => {
                            let file = OpenOptions::new().read(true).write(true).open(path);
                            let file = file.expect("to write");
                            let at = roll(BIG - 5000);
                            file.write_all_at(&bytes[at..at + 5000], at as u64).expect("write");
                            open.push(file);
                        }
                        6 if !open.is_empty() => {
                            let how = [libc::MAP_SHARED, libc::MAP_PRIVATE][roll(2)];
                            maps.push(Map::of(&open[roll(open.len())], how));
                        }
                        7 if !open.is_empty() => drop(open.swap_remove(roll(open.len()))),
                        8 => std::thread::sleep(Duration::from_millis(roll(200) as u64)),
                        _ if !maps.is_empty() => drop(maps.swap_remove(roll(maps.len()))),
                        _ => {}
                    }
                    let at = roll(BIG - 5000);
                    if let Some(map) = maps.last() {
                        assert!(map.bytes()[at..at + 5000] == bytes[at..at + 5000], "mapped, at {at}");
                    }
                    if let Some(file) = open.last() {
                        let mut seen = vec![0; 5000];
                        file.read_exact_at(&mut seen, at as u64).expect("read");
                        assert!(seen == bytes[at..at + 5000], "at {at}");
                    }
                    if open.len() > 8 {
                        open.clear();
                    }
                    if maps.len() > 5 {
                        maps.clear();
                    }
                }
            });
        }
    });
    assert!(fs::read(&path).expect("read") == bytes);
    download(&mount, &bytes);
    open_native(&mount, &path);
    assert!(!mount.log().contains("panic"));
    assert_eq!(mount.stop().code(), Some(0));
}

#[test]
fn what_is_open_or_mapped_stays_though_the_cache_is_too_small() {
    if !can_mount() {
        return;
    }
    let world = world(6);
    let mount = world.home.mount("mnt", &["--cache-size", "14M", "--free-space-ratio", "0"]);
    let (mut maps, mut open) = (Vec::new(), Vec::new());
    for n in 0..6 {
        let (path, bytes) = (model(&mount, n), bytes_of(n));
        assert!(fs::read(&path).expect("read") == bytes, "{n}");
        // In a cache that is in use as a whole it may not become one.
        let file = File::open(&path).expect("open");
        maps.push((Map::of(&file, libc::MAP_SHARED), bytes.clone()));
        if n == 0 {
            open.push((open_native(&mount, &path), bytes));
        }
    }
    for (map, bytes) in &maps {
        assert!(map.bytes() == bytes);
    }
    for (file, expected) in &open {
        let mut bytes = vec![0; BIG];
        file.read_exact_at(&mut bytes, 0).expect("read");
        assert!(bytes == *expected);
    }
    drop(open);
    for n in 0..6 {
        assert!(fs::read(model(&mount, n)).expect("read") == bytes_of(n), "{n}");
    }
    for (map, bytes) in &maps {
        assert!(map.bytes() == bytes, "what is mapped only is unlinked, never emptied");
    }
    drop(maps);
    assert_eq!(mount.stop().code(), Some(0));
}

#[test]
fn a_mapping_outlives_the_daemon() {
    if !can_mount() {
        return;
    }
    let world = world(1);
    let mut mount = world.home.mount("mnt", &[]);
    let (path, bytes) = (model(&mount, 0), bytes_of(0));
    assert!(fs::read(&path).expect("read") == bytes);
    let file = open_native(&mount, &path);
    let mapped = Map::of(&file, libc::MAP_SHARED);
    mount.crash();
    assert!(mapped.bytes() == bytes, "pages that nobody had touched");
    let mut read = vec![0; BIG];
    file.read_exact_at(&mut read, 0).expect("read");
    assert!(read == bytes);
    let next = world.home.mount("mnt", &[]);
    let path = model(&next, 0);
    assert!(fs::read(&path).expect("read") == bytes);
    // What a crash left is checked when it is read; then it is as good as before.
    let again = open_native(&next, &path);
    assert!(Map::of(&again, libc::MAP_PRIVATE).bytes() == bytes);
    assert!(mapped.bytes() == bytes);
    drop((again, mapped, file));
    assert_eq!(next.stop().code(), Some(0));
}

#[test]
fn without_the_kernels_help_all_is_as_before() {
    if !can_mount() {
        return;
    }
    let world = world(1);
    let mount = world.home.mount("mnt", &["--no-passthrough"]);
    let (path, bytes) = (model(&mount, 0), bytes_of(0));
    for _ in 0..2 {
        assert!(fs::read(&path).expect("read") == bytes);
    }
    assert!(Map::of(&File::open(&path).expect("open"), libc::MAP_SHARED).bytes() == bytes);
    assert!(status(&world).contains("\"on\":false"), "{}", status(&world));
    assert!(world.home.run_ok(&["status"]).contains("no passthrough on"));
    assert_eq!(mount.stop().code(), Some(0));
}

/// An overlay that is taken off in the end.
struct Overlay(PathBuf);

impl Overlay {
    fn over(home: &Home, lower: &Path, name: &str) -> Self {
        let [upper, work, at] = ["upper", "work", "at"].map(|what| home.dir(&format!("{name}-{what}")));
        let options =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        let mounted =
            Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&at).status();
        assert!(mounted.expect("mount").success());
        Overlay(at)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_cache_on_an_overlay_is_native_and_one_on_two_is_read_by_the_daemon() {
    // SAFETY: touches no memory.
    if !can_mount() || unsafe { libc::geteuid() } != 0 {
        return;
    }
    let world = world(1);
    let one = Overlay::over(&world.home, &world.home.dir("empty"), "one");
    let two = Overlay::over(&world.home, &one.0, "two");
    for (overlay, native) in [(&one, true), (&two, false)] {
        let cache = overlay.0.join("cache");
        let mount = world.home.mount("mnt", &["--cache-dir", cache.to_str().expect("UTF-8")]);
        let (path, bytes) = (model(&mount, 0), bytes_of(0));
        assert!(fs::read(&path).expect("read") == bytes);
        assert!(status(&world).contains(&format!("\"on\":{native}")), "{}", status(&world));
        if native {
            let file = open_native(&mount, &path);
            assert!(Map::of(&file, libc::MAP_SHARED).bytes() == bytes);
        } else {
            assert!(mount.log().contains("reads no file of the cache by itself"), "{}", mount.log());
        }
        let mut read = Vec::new();
        File::open(&path).expect("open").read_to_end(&mut read).expect("read");
        assert!(read == bytes);
        assert_eq!(mount.stop().code(), Some(0));
    }
}

/// Many threads read one native blob, and it goes and comes meanwhile.
#[test]
fn many_threads_read_one_blob() {
    if !can_mount() {
        return;
    }
    let world = world(1);
    let mount = world.home.mount("mnt", &[]);
    let (path, bytes) = (model(&mount, 0), bytes_of(0));
    let (stop, failed) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (path, bytes, stop, failed) = (&path, &bytes, &stop, &failed);
            scope.spawn(move || {
                let mut buffer = vec![0; 300_000];
                for round in thread.. {
                    let file = File::open(path).expect("open");
                    let at = round * 100_003 % (BIG - buffer.len());
                    file.read_exact_at(&mut buffer, at as u64).expect("pread");
                    if buffer != bytes[at..at + buffer.len()] {
                        failed.store(true, Ordering::SeqCst);
                    }
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                }
            });
        }
        std::thread::sleep(Duration::from_secs(3));
        stop.store(true, Ordering::SeqCst);
    });
    assert!(!failed.load(Ordering::SeqCst));
    open_native(&mount, &path);
    assert_eq!(mount.stop().code(), Some(0));
}
