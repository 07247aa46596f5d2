//! Large directories: listed whole, from any offset, while entries come and go, in memory that does not grow with them.
//! `HFMOUNT_TEST_ENTRIES=1000000` for the real thing; it prints what it measured.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::Instant;

use crate::mount::{Home, Mount, can_mount};
use crate::world::World;

const WORKERS: usize = 4;

fn entries() -> usize {
    let set = std::env::var("HFMOUNT_TEST_ENTRIES").ok();
    set.map_or(1500, |n| n.parse().expect("HFMOUNT_TEST_ENTRIES is a number"))
}

/// Resident memory of the daemon, now and at its highest, MiB.
fn memory(mount: &Mount) -> (u64, u64) {
    let status = fs::read_to_string(format!("/proc/{}/status", mount.pid())).expect("status");
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|l| l.strip_prefix(name)).expect("field");
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("number") / 1024
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// A directory stream, with its offsets.
struct Listing(*mut libc::DIR);

impl Listing {
    fn open(path: &Path) -> Self {
        let path = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
        // SAFETY: the path is a C string.
        let dir = unsafe { libc::opendir(path.as_ptr()) };
        assert!(!dir.is_null(), "opendir");
        Listing(dir)
    }

    /// The next name, and the offset behind it.
    fn next(&mut self) -> Option<(String, i64)> {
        // SAFETY: the stream is open; the entry is read before the next call.
        let entry = unsafe { libc::readdir(self.0).as_ref() }?;
        // SAFETY: the kernel ends names with NUL.
        let name = unsafe { CStr::from_ptr(entry.d_name.as_ptr()) };
        Some((name.to_str().expect("UTF-8").to_owned(), entry.d_off))
    }

    fn seek(&mut self, offset: i64) {
        // SAFETY: the stream is open.
        unsafe { libc::seekdir(self.0, offset) }
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        // SAFETY: the stream is open and not used afterwards.
        unsafe { libc::closedir(self.0) };
    }
}

fn fill(dir: &Path, count: usize) {
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            scope.spawn(move || {
                for n in (worker..count).step_by(WORKERS) {
                    File::create(dir.join(format!("entry-{n:07}"))).expect("create");
                }
            });
        }
    });
}

fn large_directory(one: &Mount, two: &Mount) {
    let count = entries();
    let (dir, there) = (one.path().join("dir"), two.path().join("dir"));
    fs::create_dir(&dir).expect("mkdir");
    let (begun, before) = (Instant::now(), memory(one));
    fill(&dir, count);
    let took = begun.elapsed();
    println!(
        "{count} creates by {WORKERS} threads: {took:?}, {:.0} a second; memory (MiB, now and highest) {before:?} -> {:?}",
        count as f64 / took.as_secs_f64(),
        memory(one)
    );

    // On the other mount, which knows nothing of it yet.
    let (begun, before) = (Instant::now(), memory(two));
    let mut listing = Listing::open(&there);
    let (mut names, mut middle, mut last) = (HashSet::new(), 0, 0);
    while let Some((name, offset)) = listing.next() {
        assert!(offset > last, "offsets grow: {offset} after {last}");
        last = offset;
        assert!(names.insert(name.clone()), "{name} twice");
        if names.len() == count / 2 {
            middle = offset;
        }
    }
    assert_eq!(names.len(), count + 2);
    let (rss, highest) = memory(two);
    println!("listed on the other mount: {:?}; memory {before:?} -> {:?}", begun.elapsed(), (rss, highest));
    assert!(highest < before.1 + 128, "memory grows with the directory: {before:?} -> {highest}");

    // Entries before and behind the place go, others come: the place stays.
    listing.seek(middle);
    let (next, _) = listing.next().expect("more");
    let mut sorted: Vec<&String> = names.iter().filter(|n| n.starts_with("entry") && **n != next).collect();
    sorted.sort();
    let gone: HashSet<&String> = sorted.iter().step_by(10).take(2000).copied().collect();
    for name in &gone {
        fs::remove_file(dir.join(name)).expect("unlink");
    }
    for n in 0..500 {
        File::create(dir.join(format!("new-{n}"))).expect("create");
    }
    let mut again = Listing::open(&there);
    again.seek(middle);
    assert_eq!(again.next().expect("more").0, next, "the offset means what it meant");
    let mut seen = HashSet::from([next.clone()]);
    while let Some((name, _)) = again.next() {
        assert!(seen.insert(name.clone()), "{name} twice");
        assert!(!gone.contains(&name), "{name} is gone");
    }
    assert_eq!(seen.iter().filter(|n| n.starts_with("new")).count(), 500, "what came lies behind");
    let begun = Instant::now();
    let all = fs::read_dir(&dir).expect("list").count();
    println!("listed where it was made: {:?}", begun.elapsed());
    assert_eq!(all, count - gone.len() + 500);
    if count > 10_000 {
        let begun = Instant::now();
        let listed =
            std::process::Command::new("sh").args(["-c", "ls -f \"$0\" | wc -l"]).arg(&there).output();
        let listed = crate::mount::text(&listed.expect("ls").stdout);
        println!("ls -f | wc -l: {} in {:?}; memory {:?}", listed.trim(), begun.elapsed(), memory(two));
    }
}

#[test]
fn on_redis() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    large_directory(&world.mount_with("one", &[]), &world.mount_with("two", &[]));
}

#[test]
fn on_sqlite() {
    if !can_mount() {
        return;
    }
    let home = Home::formatted(&[]);
    large_directory(&home.mount("one", &["--offline"]), &home.mount("two", &["--offline"]));
}
