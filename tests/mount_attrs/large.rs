//! Directories of many entries.

use super::*;

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
