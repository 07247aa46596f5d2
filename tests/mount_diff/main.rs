//! A mount against a plain directory: the same operations, made up by chance, must answer the same: results, errors,
//! attributes, listings, contents. With one mount, files stay open across everything; with two mounts of a volume, the
//! operations alternate between them, and each turn ends by closing what it opened.
//!
//! `HFMOUNT_TEST_ROUNDS` does more (default 25), `HFMOUNT_TEST_SEED` repeats what a failure printed, `HFMOUNT_LOG`
//! says how much the daemons tell.

#[path = "../support/mount.rs"]
mod mount;
mod op;
mod side;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mount::{Home, Mount, can_mount, wait_for};
use op::Op;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::io::Errno;
use side::{Side, Value, counts_dirs};

const OPS: usize = 400;

/// An operation, and what the plain directory answered.
type Done = (Op, String);

fn rounds() -> u64 {
    let set = std::env::var("HFMOUNT_TEST_ROUNDS").ok();
    set.map_or(25, |n| n.parse().expect("HFMOUNT_TEST_ROUNDS is a number"))
}

fn seeds() -> Vec<u64> {
    match std::env::var("HFMOUNT_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("HFMOUNT_TEST_SEED is a number")],
        Err(_) => {
            let first: u64 = rand::rng().random_range(0..1 << 40);
            (first..first + rounds()).collect()
        }
    }
}

/// The directories of one round: below a mount, and plain.
fn directories(home: &Home, mount: &Mount, seed: u64) -> (PathBuf, PathBuf) {
    let ours = mount.path().join(format!("round-{seed}"));
    std::fs::create_dir(&ours).expect("mkdir");
    (ours, home.dir(&format!("plain-{seed}")))
}

/// Panics with the way there, shortest part last.
fn disagree(seed: u64, done: &[Done], ours: &dyn std::fmt::Debug, plain: &dyn std::fmt::Debug) -> ! {
    let from = done.len().saturating_sub(60);
    for (n, (op, answer)) in done.iter().enumerate().skip(from) {
        eprintln!("{n:4} {op:?} -> {answer}");
    }
    let (mut ours, mut plain) = (format!("{ours:?}"), format!("{plain:?}"));
    ours.truncate(3000);
    plain.truncate(3000);
    panic!("HFMOUNT_TEST_SEED={seed}, operation {}:\n mount: {ours}\n plain: {plain}", done.len() - 1);
}

/// Where two contents differ, and the first byte of each there.
fn differences(a: &[u8], b: &[u8]) -> Vec<(usize, usize, Option<u8>, Option<u8>)> {
    let mut found: Vec<(usize, usize)> = Vec::new();
    for at in (0..a.len().max(b.len())).filter(|at| a.get(*at) != b.get(*at)) {
        match found.last_mut() {
            // Bytes in between that are alike by chance.
            Some((_, end)) if at - *end < 16 => *end = at + 1,
            _ => found.push((at, at + 1)),
        }
    }
    let first = |(from, to): (usize, usize)| (from, to, a.get(from).copied(), b.get(from).copied());
    found.into_iter().map(first).collect()
}

fn compare_trees(seed: u64, done: &[Done], ours: &Side, plain: &Side) {
    let (ours, plain) = (ours.tree().expect("nobody else"), plain.tree().expect("nobody else"));
    for path in ours.keys().chain(plain.keys()) {
        let (a, b) = (ours.get(path), plain.get(path));
        if a != b {
            eprintln!("{path}:");
            let stats = (a.map(|a| &a.0), b.map(|b| &b.0));
            if stats.0 != stats.1 {
                disagree(seed, done, &stats.0, &stats.1);
            }
            if let (Some((_, Some(Value::Bytes(ours)))), Some((_, Some(Value::Bytes(plain))))) = (a, b) {
                eprintln!(
                    "different (from, to, mount's first, plain's first): {:?}",
                    differences(ours, plain)
                );
            }
            disagree(seed, done, &a, &b);
        }
    }
}

fn step(seed: u64, rng: &mut StdRng, done: &mut Vec<Done>, ours: &mut Side, plain: &mut Side) {
    let op = op::random(rng);
    let mut answers = (ours.apply(&op), plain.apply(&op));
    // A directory that another mount moved is still at its old place too for this kernel, until the push arrives; under
    // the locks of a rename it cannot put that right by itself.
    let begun = Instant::now();
    while matches!(op, Op::Rename { .. })
        && answers.0 == Err(Errno::STALE)
        && begun.elapsed() < Duration::from_secs(5)
    {
        std::thread::sleep(Duration::from_millis(10));
        answers.0 = ours.apply(&op);
    }
    let mut short = format!("{:?}", answers.1);
    short.truncate(100);
    done.push((op, short));
    if answers.0 != answers.1 {
        disagree(seed, done, &answers.0, &answers.1);
    }
}

fn setup(home: &mut Home) -> bool {
    if let Ok(level) = std::env::var("HFMOUNT_LOG") {
        home.set_env("HFMOUNT_LOG", &level);
    }
    // The mode of what is made shall be the one that was asked for.
    // SAFETY: changes a number of this process.
    unsafe { libc::umask(0o022) };
    counts_dirs(home.path())
}

#[test]
fn one_mount_and_a_plain_directory_agree() {
    if !can_mount() {
        return;
    }
    let mut home = Home::formatted(&["--chunk-size", "1MiB"]);
    let counts = setup(&mut home);
    let mut mount = home.mount("mnt", &["--offline"]);
    for seed in seeds() {
        let mut rng = StdRng::seed_from_u64(seed);
        let (ours_at, plain_at) = directories(&home, &mount, seed);
        let (mut ours, mut plain) = (Side::new(&ours_at, counts), Side::new(&plain_at, counts));
        let mut done = Vec::new();
        for n in 0..OPS {
            step(seed, &mut rng, &mut done, &mut ours, &mut plain);
            if n % 40 == 39 {
                compare_trees(seed, &done, &ours, &plain);
            }
        }
        ours.close_all();
        plain.close_all();
        compare_trees(seed, &done, &ours, &plain);
        // What the kernel and the daemon remember is gone; the local copies too, every other time.
        assert_eq!(mount.stop().code(), Some(0));
        if seed % 2 == 0 {
            std::fs::remove_dir_all(home.path().join("hfmount/cache")).expect("cache");
        }
        mount = home.mount("mnt", &["--offline"]);
        compare_trees(seed, &done, &Side::new(&ours_at, counts), &plain);
        clear(&ours_at);
    }
    assert_eq!(mount.stop().code(), Some(0));
}

#[test]
fn two_mounts_in_turn_and_a_plain_directory_agree() {
    // Without times to live names are exact too; data is in any case, from close to open.
    in_turn("0", seeds(), |_, _| {});
}

/// The kernel may keep what it knows for a minute: that it is right all the same is the push's doing.
#[test]
fn two_mounts_follow_each_other_by_push() {
    let some = seeds().into_iter().step_by(5).collect();
    in_turn("60", some, |other, plain| {
        wait_for("the other mount to see what was done", || other.tree() == plain.tree());
        // The last of what is to be forgotten may be under way.
        std::thread::sleep(Duration::from_millis(50));
    });
}

/// Operations by turns on two mounts whose kernels may rely on names and attributes for `ttl` seconds; after each turn
/// `settle` is called with the other mount's directory and the plain one.
fn in_turn(ttl: &str, seeds: Vec<u64>, settle: impl Fn(&Side, &Side)) {
    if !can_mount() {
        return;
    }
    let mut home = Home::formatted(&["--chunk-size", "1MiB"]);
    let counts = setup(&mut home);
    let options = ["--offline", "--entry-ttl", ttl, "--attr-ttl", ttl];
    let mounts = [home.mount("one", &options), home.mount("two", &options)];
    for seed in seeds {
        let mut rng = StdRng::seed_from_u64(seed);
        let (first_at, plain_at) = directories(&home, &mounts[0], seed);
        let second_at = mounts[1].path().join(first_at.file_name().expect("name"));
        let mut sides = [first_at.as_path(), second_at.as_path()].map(|at| Side::new(at, counts));
        let mut plain = Side::new(&plain_at, counts);
        let mut done = Vec::new();
        while done.len() < OPS {
            let turn = rng.random_range(0..2);
            let side = &mut sides[turn];
            for _ in 0..rng.random_range(1..20) {
                step(seed, &mut rng, &mut done, side, &mut plain);
            }
            side.close_all();
            plain.close_all();
            settle(&sides[1 - turn], &plain);
            if rng.random_range(0..4) == 0 {
                compare_trees(seed, &done, &sides[rng.random_range(0..2)], &plain);
            }
        }
        compare_trees(seed, &done, &sides[0], &plain);
        compare_trees(seed, &done, &sides[1], &plain);
        clear(&first_at);
    }
    for mount in mounts {
        assert_eq!(mount.stop().code(), Some(0));
    }
}

fn clear(dir: &Path) {
    std::fs::remove_dir_all(dir).expect("everything can be removed");
}
