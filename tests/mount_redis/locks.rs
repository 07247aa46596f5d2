//! flock between two mounts, through the kernel; and that record locks stay within one.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::mount::{can_mount, wait_for};
use crate::world::{TTL, World, flock, is_free, percentile, report, write};

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("open")
}

/// A process that waits for the lock of a file, says so when it has it, and keeps it for `seconds`.
fn holder(file: &Path, seconds: &str) -> Child {
    let mut command = Command::new("flock");
    command.arg("-F").arg(file).args(["sh", "-c", "echo held; exec sleep \"$0\"", seconds]);
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("flock")
}

#[test]
fn shared_exclusive_and_not_waiting() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let (one, two) = (world.mount("one"), world.mount("two"));
    write(&one.path().join("l"), b"");
    let (a, b, c) = (open(&one.path().join("l")), open(&two.path().join("l")), open(&two.path().join("l")));
    use FlockOperation::{
        LockExclusive, LockShared, NonBlockingLockExclusive as TryExclusive,
        NonBlockingLockShared as TryShared, Unlock,
    };
    let busy = Err(rustix::io::Errno::WOULDBLOCK);
    flock(&a, LockShared).expect("free");
    flock(&b, TryShared).expect("shared by two mounts");
    assert_eq!(flock(&c, TryExclusive), busy);
    // A conversion that is refused gives up what it had.
    assert_eq!(flock(&b, TryExclusive), busy);
    flock(&a, TryExclusive).expect("nobody else has it");
    assert_eq!(flock(&b, TryShared), busy);
    flock(&a, LockShared).expect("less is always granted");
    flock(&b, TryShared).expect("shared again");
    flock(&a, Unlock).expect("unlock");
    // Released by the last close, not by the first of two.
    let again = b.try_clone().expect("dup");
    drop(b);
    assert_eq!(flock(&a, TryExclusive), busy);
    drop(again);
    wait_for("the close releases", || flock(&a, TryExclusive).is_ok());
    drop(a);
    wait_for("the close releases", || flock(&c, TryExclusive).is_ok());
    flock(&c, Unlock).expect("unlock");
    flock(&c, LockExclusive).expect("free");
}

/// Handed from mount to mount, each waiter is woken when the lock is free: it does not find out by asking.
#[test]
fn who_waits_is_woken() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let (one, two) = (world.mount("one"), world.mount("two"));
    write(&one.path().join("l"), b"");
    let (a, b) = (open(&one.path().join("l")), open(&two.path().join("l")));
    let mut alone: Vec<Duration> = (0..100)
        .map(|_| {
            let begun = Instant::now();
            flock(&a, FlockOperation::LockExclusive).expect("free");
            let took = begun.elapsed();
            flock(&a, FlockOperation::Unlock).expect("unlock");
            took
        })
        .collect();
    report("an uncontended lock", &mut alone);

    let mut handed = Vec::new();
    for n in 0..20 {
        let (holder, waiter) = if n % 2 == 0 { (&a, &b) } else { (&b, &a) };
        flock(holder, FlockOperation::LockExclusive).expect("free");
        thread::scope(|scope| {
            let waits = scope.spawn(|| {
                flock(waiter, FlockOperation::LockExclusive).expect("in the end");
                Instant::now()
            });
            // Between the times at which a waiter asks by itself.
            thread::sleep(Duration::from_millis(450));
            assert!(!waits.is_finished());
            let released = Instant::now();
            flock(holder, FlockOperation::Unlock).expect("unlock");
            handed.push(waits.join().expect("thread").duration_since(released));
        });
        flock(waiter, FlockOperation::Unlock).expect("unlock");
    }
    report("handed from one mount to the other", &mut handed);
    // A waiter asks by itself once in a second.
    assert!(percentile(&mut handed, 50) < Duration::from_millis(250), "{handed:?}");

    // What waiting costs the server: no polling at milliseconds.
    flock(&a, FlockOperation::LockExclusive).expect("free");
    let waiters: Vec<Child> = (0..4).map(|_| holder(&two.path().join("l"), "0")).collect();
    thread::sleep(Duration::from_millis(1500));
    let before = world.redis.calls("evalsha");
    thread::sleep(Duration::from_secs(3));
    let asked = world.redis.calls("evalsha") - before;
    println!("4 waiters, 3 seconds: {asked} scripts");
    assert!(asked < 60, "{asked}");
    flock(&a, FlockOperation::Unlock).expect("unlock");
    for waiter in waiters {
        assert_eq!(waiter.wait_with_output().expect("flock").stdout, b"held\n");
    }
}

#[test]
fn a_killed_waiter_is_gone_at_once() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let (one, two) = (world.mount("one"), world.mount("two"));
    write(&one.path().join("l"), b"");
    let held = open(&one.path().join("l"));
    flock(&held, FlockOperation::LockExclusive).expect("free");
    let mut times = Vec::new();
    for n in 0..8 {
        let mut waiter = holder(&two.path().join("l"), "0");
        thread::sleep(Duration::from_millis(400 + n * 37));
        let begun = Instant::now();
        waiter.kill().expect("kill");
        waiter.wait().expect("wait");
        times.push(begun.elapsed());
    }
    report("a killed waiter's end", &mut times);
    assert!(percentile(&mut times, 50) < Duration::from_millis(300), "{times:?}");
    // None of them gets it after its death, nor stands in the way.
    flock(&held, FlockOperation::Unlock).expect("unlock");
    wait_for("it is free for all", || is_free(&two.path().join("l")) && is_free(&one.path().join("l")));
}

#[test]
fn a_lock_ends_with_its_program_and_with_its_node() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let (mut one, two) = (world.mount("one"), world.mount("two"));
    let file = two.path().join("l");
    write(&file, b"");
    let mut program = holder(&one.path().join("l"), "600");
    wait_for("it is held", || !is_free(&file));
    program.kill().expect("kill");
    let begun = Instant::now();
    program.wait().expect("wait");
    wait_for("it is free", || is_free(&file));
    println!("free {:?} after its program was killed", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());

    let mut program = holder(&one.path().join("l"), "600");
    wait_for("it is held", || !is_free(&file));
    let waiter = holder(&file, "0");
    one.crash();
    let begun = Instant::now();
    let output = waiter.wait_with_output().expect("flock");
    let took = begun.elapsed();
    println!("free {took:?} after its node was killed, with sessions of {TTL:?}");
    assert_eq!(output.stdout, b"held\n");
    assert!(took > TTL / 2 && took < TTL * 10, "{took:?}");
    let _ = program.kill();
    let _ = program.wait();
}

/// Each lock revalidates what is open and each release writes it out: no increment is lost though no file is reopened.
#[test]
fn what_is_written_under_a_lock_is_read_under_the_next() {
    if !can_mount() {
        return;
    }
    const TIMES: usize = 40;
    let world = World::new();
    let (one, two) = (world.mount("one"), world.mount("two"));
    write(&one.path().join("counter"), b"0         ");
    thread::scope(|scope| {
        for mount in [&one, &one, &two, &two] {
            let path = mount.path().join("counter");
            scope.spawn(move || {
                let file = open(&path);
                for _ in 0..TIMES {
                    flock(&file, FlockOperation::LockExclusive).expect("in the end");
                    let mut text = [0; 10];
                    file.read_exact_at(&mut text, 0).expect("read");
                    let n: usize = std::str::from_utf8(&text).expect("UTF-8").trim().parse().expect("number");
                    file.write_all_at(format!("{:<10}", n + 1).as_bytes(), 0).expect("write");
                    flock(&file, FlockOperation::Unlock).expect("unlock");
                }
            });
        }
    });
    for mount in [&one, &two] {
        let text = fs::read_to_string(mount.path().join("counter")).expect("read");
        assert_eq!(text.trim(), (4 * TIMES).to_string());
    }
}

fn record_lock(file: &File) -> bool {
    use std::os::fd::AsRawFd;
    // SAFETY: all zeros is a valid flock structure.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_WRLCK as i16;
    // SAFETY: the descriptor is open, the structure lives on.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) == 0 }
}

/// Stated, not wished for: the kernel keeps them by itself.
#[test]
fn record_locks_hold_within_a_mount() {
    if !can_mount() {
        return;
    }
    let world = World::new();
    let (one, two) = (world.mount("one"), world.mount("two"));
    let path = one.path().join("l");
    write(&path, b"");
    let (a, b, other) = (open(&path), open(&path), open(&two.path().join("l")));
    assert!(record_lock(&a) && !record_lock(&b), "they exclude each other");
    assert!(record_lock(&other), "another mount's kernel knows nothing of them");
    flock(&b, FlockOperation::NonBlockingLockExclusive).expect("another kind of lock");
    drop(a);
    assert!(record_lock(&b));
}
