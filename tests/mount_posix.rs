//! Single promises of POSIX on a real mount that random operations do not reach, or reach seldom; each was broken once.

#[path = "support/mount.rs"]
mod mount;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use mount::{Home, can_mount, wait_for};

fn utf8(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Bytes that lie below a directory.
fn bytes_below(dir: &Path) -> u64 {
    let mut sum = 0;
    for entry in fs::read_dir(dir).expect("list") {
        let entry = entry.expect("entry");
        let Ok(meta) = entry.metadata() else { continue };
        sum += if meta.is_dir() { bytes_below(&entry.path()) } else { meta.blocks() * 512 };
    }
    sum
}

#[test]
fn regression_an_open_for_reading_may_empty_the_file() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let (one, two) = (home.mount("one", &["--offline"]), home.mount("two", &["--offline"]));
    let path = one.path().join("file");
    fs::write(&path, "what was there").expect("write");
    // O_RDONLY | O_TRUNC, which the standard library does not let through.
    let name = std::ffi::CString::new(utf8(&path)).expect("no NUL");
    // SAFETY: the path is a C string that lives until after the call.
    let fd = unsafe { libc::open(name.as_ptr(), libc::O_RDONLY | libc::O_TRUNC) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    assert_eq!(fs::metadata(&path).expect("stat").len(), 0);
    // SAFETY: the descriptor is this function's own.
    assert_eq!(unsafe { libc::close(fd) }, 0);
    assert_eq!(fs::read(two.path().join("file")).expect("read"), b"", "closed is visible everywhere");
}

/// The kernel says "text file busy" only after an open that empties the file by itself.
#[test]
fn regression_a_running_program_is_not_emptied() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let mount = home.mount("mnt", &["--offline"]);
    let program = mount.path().join("program");
    fs::copy("/bin/sleep", &program).expect("copy");
    let size = fs::metadata(&program).expect("stat").len();
    let mut running = Command::new(&program).arg("60").spawn().expect("it runs");
    let name = std::ffi::CString::new(utf8(&program)).expect("no NUL");
    for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
        // SAFETY: the path is a C string that lives until after the call.
        let fd = unsafe { libc::open(name.as_ptr(), flags | libc::O_TRUNC) };
        let error = std::io::Error::last_os_error();
        assert_eq!((fd, error.raw_os_error()), (-1, Some(libc::ETXTBSY)), "{error}");
    }
    assert_eq!(fs::metadata(&program).expect("stat").len(), size);
    assert!(running.try_wait().expect("wait").is_none(), "it goes on");
    running.kill().expect("kill");
    running.wait().expect("wait");
}

/// O_TRUNC reaches the daemon in two steps, and is still one for everybody else.
#[test]
fn who_overwrites_a_file_shows_it_empty_to_nobody() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let (one, two) = (home.mount("one", &["--offline"]), home.mount("two", &["--offline"]));
    let (here, there) = (one.path().join("file"), two.path().join("file"));
    fs::write(&there, "old").expect("write");
    let mut file = OpenOptions::new().write(true).truncate(true).open(&here).expect("open");
    assert_eq!(fs::read(&here).expect("read"), b"", "here it shows at once");
    assert_eq!(fs::read(&there).expect("read"), b"old");
    file.write_all(b"new!").expect("write");
    drop(file);
    assert_eq!(fs::read(&there).expect("read"), b"new!");
    // Emptied, and nothing written: the close tells it all the same.
    drop(OpenOptions::new().write(true).truncate(true).open(&here).expect("open"));
    assert_eq!(fs::read(&there).expect("read"), b"");
}

#[test]
fn regression_a_cache_smaller_than_what_is_read_serves_all_the_same() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&["--chunk-size", "1MiB"]);
    let mount = home.mount("mnt", &["--offline", "--cache-size", "1MiB"]);
    let path = mount.path().join("file");
    let data: Vec<u8> = (0..6u32 << 18).flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
    fs::write(&path, &data).expect("write");
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (path, data) = (&path, &data);
            scope.spawn(move || {
                let file = File::open(path).expect("open");
                for turn in 0..20 {
                    // SAFETY: it takes no pointers, and the descriptor is open.
                    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
                    let (start, mut piece) = ((reader * 7 + turn * 5) % 24 * 250_000, vec![0; 200_000]);
                    file.read_exact_at(&mut piece, start as u64).expect("read");
                    assert!(piece == data[start..start + 200_000], "{start}");
                }
            });
        }
    });
}

#[test]
fn regression_a_mapping_of_an_appending_handle_writes_in_place() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let mount = home.mount("mnt", &["--offline"]);
    let path = mount.path().join("file");
    fs::write(&path, vec![b'.'; 10_000]).expect("write");
    let file = OpenOptions::new().read(true).append(true).open(&path).expect("open");
    // SAFETY: a new shared mapping of 4096 bytes of a file that is longer, at a place that the kernel chooses.
    unsafe {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let map =
            libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_SHARED, file.as_raw_fd(), 4096);
        assert_ne!(map, libc::MAP_FAILED);
        std::ptr::copy_nonoverlapping(b"mapped".as_ptr(), map.cast::<u8>(), 6);
        assert_eq!(libc::msync(map, 4096, libc::MS_SYNC), 0);
        assert_eq!(libc::munmap(map, 4096), 0);
    }
    (&file).write_all(b"appended").expect("append");
    drop(file);
    let content = fs::read(&path).expect("read");
    assert_eq!(
        (content.len(), &content[4096..4102], &content[10_000..]),
        (10_008, &b"mapped"[..], &b"appended"[..])
    );
}

#[test]
fn regression_times_set_before_the_close_stay() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let mount = home.mount("mnt", &["--offline"]);
    let path = mount.path().join("file");
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let file = File::create(&path).expect("create");
    file.write_all_at(b"data", 0).expect("write");
    file.set_modified(long_ago).expect("times");
    file.set_len(2).expect("cut");
    file.set_modified(long_ago).expect("times");
    assert_eq!(file.metadata().expect("stat").mtime(), 1_000_000_000, "before the close");
    drop(file);
    assert_eq!(fs::metadata(&path).expect("stat").mtime(), 1_000_000_000, "after it");
    // A write after it counts again.
    OpenOptions::new().append(true).open(&path).expect("open").write_all(b"x").expect("write");
    assert!(fs::metadata(&path).expect("stat").mtime() > 1_600_000_000);
}

#[test]
fn regression_what_was_removed_still_has_attributes_for_who_has_it_open() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    let mount = home.mount("mnt", &["--offline", "--attr-ttl", "0"]);
    let dir = mount.path().join("dir");
    fs::create_dir(&dir).expect("mkdir");
    let open = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&dir).expect("open");
    fs::remove_dir(&dir).expect("rmdir");
    let stat = open.metadata().expect("fstat");
    assert!(stat.is_dir() && stat.nlink() == 0, "{stat:?}");
    // The same name again is another directory.
    fs::create_dir(&dir).expect("mkdir");
    assert_ne!(fs::metadata(&dir).expect("stat").ino(), stat.ino());
}

#[test]
fn regression_deleted_files_leave_the_local_cache_and_the_store() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&["--chunk-size", "1MiB", "--trash-days", "0"]);
    let mount = home.mount("mnt", &["--offline"]);
    let cache = home.path().join("hfmount/cache");
    let (path, data) = (mount.path().join("file"), vec![7; 20 << 20]);
    let before = bytes_below(&cache);
    fs::write(&path, &data).expect("write");
    assert!(bytes_below(&cache) >= before + data.len() as u64);
    let open = File::open(&path).expect("open");
    fs::remove_file(&path).expect("unlink");
    let mut content = Vec::new();
    (&open).read_to_end(&mut content).expect("read");
    assert!(content == data, "it is there as long as it is open");
    drop(open);
    wait_for("its room in the cache is free", || bytes_below(&cache) < before + (1 << 20));

    // What was never closed with a name is not stored for nobody.
    let store = home.path().join("hfmount/storage");
    let before = bytes_below(&store);
    let file = OpenOptions::new().create_new(true).read(true).write(true).open(&path).expect("create");
    fs::remove_file(&path).expect("unlink");
    for n in 0..50 {
        file.write_all_at(&[n; 500_000], u64::from(n) * 1_000_000).expect("write");
    }
    let mut seen = [0; 3];
    file.read_exact_at(&mut seen, 49_499_999 - 3).expect("read");
    drop(file);
    wait_for("nothing of it is left", || {
        bytes_below(&store) <= before && bytes_below(&cache) < (1 << 20) + before
    });
    assert_eq!(mount.stop().code(), Some(0));
}

/// The kernel checks no permission for what a create answers.
#[test]
fn regression_who_creates_what_another_mount_made_meanwhile_needs_permission() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    // The name is absent for this kernel for as long as it says, unless the push comes first.
    let (one, two) =
        (home.mount("one", &["--offline"]), home.mount("two", &["--offline", "--entry-ttl", "60"]));
    let mut opened = 0;
    for n in 0..20 {
        let (here, there) = (one.path().join(format!("f{n}")), two.path().join(format!("f{n}")));
        assert!(!there.exists());
        fs::write(&here, "made by the other").expect("write");
        let file = OpenOptions::new().create(true).append(true).read(true).open(&there).expect("walks again");
        opened += file.metadata().expect("stat").len();
    }
    assert_eq!(opened, 20 * 17);
    fs::set_permissions(home.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    for n in 20..40 {
        let (here, there) = (one.path().join(format!("f{n}")), two.path().join(format!("f{n}")));
        assert!(!there.exists());
        let made = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&here);
        drop(made.expect("create"));
        let mut other = Command::new("sh");
        other.args(["-c", "echo other >> \"$0\""]).arg(&there).uid(65534).gid(65534).stderr(Stdio::null());
        assert!(!other.status().expect("sh").success(), "0600 and root's");
    }
}

/// Listings name everything that stays, once, while other names come and go.
#[test]
fn large_directories_are_listed_whole_while_they_change() {
    if !can_mount() {
        return;
    }
    const STAY: usize = 1500;
    let home = Home::formatted(&[]);
    let (one, two) = (home.mount("one", &["--offline"]), home.mount("two", &["--offline"]));
    let dir = one.path().join("dir");
    fs::create_dir(&dir).expect("mkdir");
    for n in 0..STAY {
        File::create(dir.join(format!("stays-{n}"))).expect("create");
        if n % 3 == 0 {
            File::create(dir.join(format!("goes-{n}"))).expect("create");
        }
    }
    let there = two.path().join("dir");
    std::thread::scope(|scope| {
        let churn = scope.spawn(|| {
            for n in 0..STAY {
                if n % 3 == 0 {
                    fs::remove_file(there.join(format!("goes-{n}"))).expect("unlink");
                    fs::rename(there.join(format!("stays-{n}")), there.join(format!("moved-{n}")))
                        .expect("rename");
                }
            }
        });
        while !churn.is_finished() {
            for place in [&dir, &there] {
                let names: Vec<String> = fs::read_dir(place)
                    .expect("list")
                    .map(|e| e.expect("entry").file_name().into_string().expect("UTF-8"))
                    .collect();
                let set: BTreeSet<&String> = names.iter().collect();
                assert_eq!(set.len(), names.len(), "no name twice");
                for n in (0..STAY).filter(|n| n % 3 != 0) {
                    assert!(set.contains(&format!("stays-{n}")), "stays-{n} is missing");
                }
            }
        }
    });
    // Deleting while listing misses nothing.
    for entry in fs::read_dir(&dir).expect("list") {
        fs::remove_file(entry.expect("entry").path()).expect("unlink");
    }
    fs::remove_dir(&dir).expect("it is empty");
}
