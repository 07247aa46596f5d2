//! Disasters under load. Real daemons on real mounts serve programs that create, write, sync, close, map, rename and delete;
//! meanwhile daemons, redis-server and the S3 server are killed or frozen, one or several at a time, and started again on
//! what they had on disk. After each disaster everything that was acknowledged must be there: names, and every byte whose
//! fsync or close returned, also seen from another mount with an empty cache. What was not acknowledged is there as it
//! was after some write, or not at all. In between no program may meet an error.
//!
//! `HFMOUNT_CRASH_SECONDS` is how long each test works (default 15); `HFMOUNT_TEST_SEED` repeats the choices of a failure,
//! though not its timing. `scripts/torture.sh` does this for minutes.

mod child;
mod load;
mod manifest;
#[path = "../support/mount.rs"]
mod mount;
#[path = "../support/redis.rs"]
mod redis_server;
#[path = "../standin/mod.rs"]
mod standin;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use load::{Program, Stop, Trouble};
use mount::can_mount;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use world::{Disaster, Stores, World};

/// Programs that work at once.
const PROGRAMS: usize = 4;
/// With nothing broken any more, no operation hangs for so long.
const HANG: Duration = Duration::from_secs(120);

fn duration() -> Duration {
    let set = std::env::var("HFMOUNT_CRASH_SECONDS").ok();
    Duration::from_secs(set.map_or(15, |n| n.parse().expect("HFMOUNT_CRASH_SECONDS is a number")))
}

fn seed() -> u64 {
    let set = std::env::var("HFMOUNT_TEST_SEED").ok();
    set.map_or_else(|| rand::random::<u32>().into(), |s| s.parse().expect("HFMOUNT_TEST_SEED is a number"))
}

/// Load and disasters by turns, until the time is over.
fn torture(stores: Stores, mounts: usize, writeback: bool, disasters: &[Disaster]) {
    if !can_mount() {
        return;
    }
    let seed = seed();
    println!("HFMOUNT_TEST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = World::new(stores, mounts, writeback);
    let trouble = Arc::new(Trouble::default());
    let program = |n| Program::new(n, seed, world.roots(), writeback, trouble.clone());
    let mut programs: Vec<Program> = (0..PROGRAMS).map(program).collect();
    let end = Instant::now() + duration();
    let (mut rounds, mut excused) = (0, 0);
    while Instant::now() < end {
        let disaster = disasters[rng.random_range(0..disasters.len())];
        let enough = AtomicBool::new(false);
        let dead = std::thread::scope(|scope| {
            // Also when something panics here: the scope waits for the programs.
            let _over = Over(&enough);
            let working: Vec<_> = programs.iter_mut().map(|p| scope.spawn(|| work(p, &enough))).collect();
            std::thread::sleep(Duration::from_millis(rng.random_range(300..2500)));
            trouble.begin();
            let dead = world.strike(disaster, &mut rng);
            // Programs that use what is not broken go on meanwhile.
            std::thread::sleep(Duration::from_millis(rng.random_range(0..1500)));
            enough.store(true, Ordering::SeqCst);
            world.repair();
            let asked = Instant::now();
            for program in working {
                match program.join().expect("no panic in a program") {
                    Ok(()) => {}
                    Err(Stop::Excused) => excused += 1,
                    Err(Stop::Wrong(wrong)) => {
                        panic!("HFMOUNT_TEST_SEED={seed}, round {rounds}: {wrong}\n{}", world.logs())
                    }
                }
            }
            let waited = asked.elapsed();
            assert!(
                waited < HANG,
                "HFMOUNT_TEST_SEED={seed}, round {rounds}, {disaster:?}, dead: {dead:?}: with everything repaired a \
                 program hung for {waited:?}\n{}",
                world.logs()
            );
            trouble.end();
            dead
        });
        rounds += 1;
        let told = format!("HFMOUNT_TEST_SEED={seed}, round {rounds}, {disaster:?}, dead: {dead:?}");
        let fail = |wrong: String, world: &World| -> ! { panic!("{told}: {wrong}\n{}", world.logs()) };
        // Through a mount that the programs use, and now and then through one that has nothing in its cache.
        let here = world.roots()[rng.random_range(0..mounts)].clone();
        for program in &mut programs {
            program.verify(&here, &dead, writeback).unwrap_or_else(|wrong| fail(wrong, &world));
            program.bring_home().unwrap_or_else(|wrong| fail(wrong, &world));
        }
        if writeback {
            world.drained();
            for program in &mut programs {
                let seen = program.verify(&here, &[], false);
                seen.unwrap_or_else(|wrong| fail(format!("after the upload: {wrong}"), &world));
            }
        }
        world.fsck(false).unwrap_or_else(|wrong| fail(wrong, &world));
        if rounds % 3 == 0 || Instant::now() >= end {
            let fresh = world.another();
            for program in &mut programs {
                let seen = program.verify(fresh.path(), &[], false);
                seen.unwrap_or_else(|wrong| fail(format!("with an empty cache: {wrong}"), &world));
            }
            assert_eq!(fresh.stop().code(), Some(0));
        }
    }
    let done: u64 = programs.iter().map(|p| p.done).sum();
    let checked: u64 = programs.iter().map(|p| p.checked).sum();
    world.end();
    println!(
        "{rounds} disasters ({:?}), {done} operations acknowledged, {excused} programs interrupted, {checked} files compared",
        world.toll
    );
    assert!(done > 0, "something was done");
}

/// Tells the programs to stop, whatever happens.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn work(program: &mut Program, enough: &AtomicBool) -> Result<(), Stop> {
    while !enough.load(Ordering::SeqCst) {
        program.work()?;
    }
    Ok(())
}

/// What leaves the caches: with `--writeback` they have what is acknowledged.
const WITH_CACHES: [Disaster; 7] = [
    Disaster::Daemon,
    Disaster::AllDaemons,
    Disaster::Redis,
    Disaster::FrozenRedis,
    Disaster::S3,
    Disaster::FrozenS3,
    Disaster::Everything,
];

#[test]
fn daemons_die_on_sqlite_and_a_folder() {
    torture(Stores::Local, 1, false, &[Disaster::Daemon, Disaster::DaemonAndDisk]);
}

#[test]
fn two_daemons_die_on_sqlite_and_a_folder() {
    torture(Stores::Local, 2, false, &[Disaster::Daemon, Disaster::DaemonAndDisk, Disaster::AllDaemons]);
}

#[test]
fn all_die_on_redis_and_s3() {
    torture(Stores::Servers, 1, false, &Disaster::ALL);
}

#[test]
fn all_die_on_redis_and_s3_with_two_mounts() {
    torture(Stores::Servers, 2, false, &Disaster::ALL);
}

#[test]
fn writeback_daemons_die_on_sqlite_and_a_folder() {
    torture(Stores::Local, 1, true, &[Disaster::Daemon]);
}

#[test]
fn all_die_with_writeback_on_redis_and_s3_with_two_mounts() {
    torture(Stores::Servers, 2, true, &WITH_CACHES);
}
