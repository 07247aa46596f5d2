//! How fast a place is: files in a directory as programs use them, and round trips to the object store and the metadata
//! engine of a volume. Any directory will do for the first; the second needs no mount.
//!
//! | file | what |
//! |---|---|
//! | `place` | the folder that is worked in: whether there is room for it, and that it goes again |
//! | `files` | large and small files, written and read |
//! | `names` | what only changes or asks metadata |
//! | `caches` | the kernel's caches, dropped before something is read |
//! | `trips` | the object store and the metadata engine |
//! | `laps` | durations, of which the middle and the tail are told |
//! | `report` | what came out |
//!
//! Memory is bounded, whatever the sizes: files are written and read in pieces, durations are counted in classes. Everything
//! that was made is removed, also when it is told to stop or fails.

mod caches;
mod files;
mod laps;
mod names;
mod place;
mod report;
mod trips;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

pub use report::{Grade, Row, Unit};
pub use trips::{engine, store};

use crate::error::{Error, Kind, Result};
use laps::Laps;
use place::Place;

/// What is done, and how much of it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where a folder is made and taken away again.
    pub dir: PathBuf,
    /// Of each kind of work as many at a time, each with files of its own.
    pub threads: usize,
    /// Bytes of a large file, one for each thread; 0: none.
    pub big_file_size: u64,
    pub small_file_size: u64,
    /// Small files of each thread; 0: none.
    pub small_file_count: u64,
    /// Whether the kernel's caches stay as they are before something is read.
    pub keep_caches: bool,
}

/// What came out of files and names.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub rows: Vec<Row>,
    /// Whether all of the kernel's caches were dropped before something was read; if not, why.
    pub caches: Caches,
}

/// What became of the kernel's caches before something was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Caches {
    /// That was asked for.
    #[default]
    Kept,
    Dropped,
    /// Only the pages of the files that are read; why not all.
    OwnPages(String),
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub what: &'static str,
    pub done: u64,
    pub of: u64,
    /// Whether these are bytes.
    pub bytes: bool,
}

/// Hears how far it is; called often, by many threads.
pub type Tell<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// Works in `options.dir`. Blocks. What was made is gone when it returns; if some of it could not be removed, that is the
/// error.
///
/// [`Kind::Interrupted`] once `stop` is cancelled. [`Kind::Config`] if the directory is not fit for it, with what to do.
pub fn run(options: &Options, stop: &CancellationToken, tell: Tell<'_>) -> Result<Outcome> {
    let place = Place::make(options)?;
    let bench = Bench { options, stop, tell, failed: AtomicBool::new(false) };
    let outcome = bench.run(&place);
    tell(Progress { what: "cleaning up", done: 0, of: 0, bytes: false });
    // The first error counts; what is left is told in any case.
    match (outcome, place.remove()) {
        (Ok(outcome), Ok(())) => Ok(outcome),
        (Err(e), Ok(())) | (Ok(_), Err(e)) => Err(e),
        (Err(e), Err(left)) if e.kind() == Kind::Interrupted => Err(left),
        (Err(e), Err(left)) => Err(e.context(left.to_string())),
    }
}

/// One run.
struct Bench<'a> {
    options: &'a Options,
    stop: &'a CancellationToken,
    tell: Tell<'a>,
    /// One of the threads failed: the others need not go on.
    failed: AtomicBool,
}

impl Bench<'_> {
    fn run(&self, place: &Place) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        if self.options.big_file_size > 0 {
            outcome.rows.extend(self.big_files(place, &mut outcome.caches)?);
        }
        if self.options.small_file_count > 0 {
            outcome.rows.extend(self.small_files(place, &mut outcome.caches)?);
            outcome.rows.extend(self.names(place)?);
        }
        Ok(outcome)
    }

    /// To be asked between any two steps.
    fn go_on(&self) -> Result<()> {
        if self.stop.is_cancelled() || self.failed.load(Relaxed) {
            return Err(interrupted());
        }
        Ok(())
    }

    /// Does `work` in each thread, and tells how long all of them took together and each of its laps. The error is of the
    /// first who had another one than that he was stopped.
    fn in_threads(&self, work: impl Fn(usize, &mut Laps) -> Result<()> + Sync) -> Result<(Laps, Duration)> {
        let begun = Instant::now();
        let one = |n: usize| {
            let mut laps = Laps::default();
            let done = work(n, &mut laps);
            if done.is_err() {
                self.failed.store(true, Relaxed);
            }
            done.map(|()| laps)
        };
        let results: Vec<Result<Laps>> = thread::scope(|scope| {
            let one = &one;
            let started: Vec<_> = (0..self.options.threads)
                .map(|n| thread::Builder::new().spawn_scoped(scope, move || one(n)))
                .collect();
            let joined = started.into_iter().map(|started| {
                let started = started.map_err(|e| Error::with_source(Kind::Internal, "starting a thread", e));
                started?.join().unwrap_or_else(|_| Err(Error::new(Kind::Internal, "a thread panicked")))
            });
            joined.collect()
        });
        let took = begun.elapsed();
        let mut all = Laps::default();
        let mut first = Ok(());
        for result in results {
            match result {
                Ok(laps) => all.merge(&laps),
                Err(e) if first.is_ok() || is_interrupted(&first) => first = Err(e),
                Err(_) => {}
            }
        }
        first.map(|()| (all, took))
    }
}

fn is_interrupted(result: &Result<()>) -> bool {
    result.as_ref().is_err_and(|e| e.kind() == Kind::Interrupted)
}

fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "the benchmark")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::sync::Mutex;

    fn options(dir: &std::path::Path) -> Options {
        Options {
            dir: dir.to_owned(),
            threads: 2,
            big_file_size: (3 << 20) + 77,
            small_file_size: 5000,
            small_file_count: 20,
            keep_caches: true,
        }
    }

    fn left_in(dir: &std::path::Path) -> usize {
        fs::read_dir(dir).expect("list").count()
    }

    #[test]
    fn every_row_is_there_and_nothing_is_left() {
        let tmp = tempfile::tempdir().expect("dir");
        let told = Mutex::new(Vec::new());
        let tell = |p: Progress| told.lock().expect("lock").push(p);
        let outcome = run(&options(tmp.path()), &CancellationToken::new(), &tell).expect("done");
        assert_eq!(left_in(tmp.path()), 0);
        assert_eq!(outcome.caches, Caches::Kept);
        let names: Vec<&str> = outcome.rows.iter().map(|row| row.name).collect();
        assert_eq!(
            names,
            [
                "write_big",
                "read_big",
                "write_small",
                "read_small",
                "stat",
                "list",
                "create",
                "rename",
                "unlink"
            ]
        );
        for row in &outcome.rows {
            let count = if row.name.ends_with("_big") { 2 } else { 40 };
            let bytes = match row.name {
                "write_big" | "read_big" => 2 * ((3 << 20) + 77),
                "write_small" | "read_small" => 40 * 5000,
                _ => 0,
            };
            assert_eq!((row.count, row.bytes), (count, bytes), "{row:?}");
            assert!(row.rate() > 0.0 && row.p50 <= row.p99 && row.mean > Duration::ZERO, "{row:?}");
        }
        let told = told.into_inner().expect("lock");
        assert!(told.iter().all(|p| p.done <= p.of), "{told:?}");
        assert!(told.contains(&Progress {
            what: "writing large files",
            done: 2 * ((3 << 20) + 77),
            of: 2 * ((3 << 20) + 77),
            bytes: true
        }));
    }

    #[test]
    fn stopped_at_any_step_it_leaves_nothing() {
        for step in ["writing large files", "reading large files", "writing small files", "stat", "rename"] {
            let tmp = tempfile::tempdir().expect("dir");
            let stop = CancellationToken::new();
            let tell = |p: Progress| {
                if p.what == step {
                    stop.cancel();
                }
            };
            let stopped = run(&options(tmp.path()), &stop, &tell).expect_err("stopped");
            assert_eq!((stopped.kind(), left_in(tmp.path())), (Kind::Interrupted, 0), "{step}");
        }
    }

    #[test]
    fn an_error_is_told_and_leaves_nothing() {
        let tmp = tempfile::tempdir().expect("dir");
        // Somebody takes the file away between writing and reading.
        let tell = |p: Progress| {
            if p.what == "reading large files" && p.done == 0 {
                let folder =
                    fs::read_dir(tmp.path()).expect("list").next().expect("one").expect("entry").path();
                fs::remove_file(folder.join("big-1.tmp")).expect("removed");
            }
        };
        let failed = run(&options(tmp.path()), &CancellationToken::new(), &tell).expect_err("gone");
        assert!(failed.to_string().contains("big-1.tmp"), "{failed}");
        assert_eq!(left_in(tmp.path()), 0);
    }

    #[test]
    fn what_is_zero_is_left_out() {
        let tmp = tempfile::tempdir().expect("dir");
        let few =
            Options { big_file_size: 0, small_file_count: 1, small_file_size: 0, ..options(tmp.path()) };
        let outcome = run(&few, &CancellationToken::new(), &|_| ()).expect("done");
        assert!(outcome.rows.iter().all(|row| !row.name.ends_with("_big")) && outcome.rows.len() == 7);
        let none = Options { big_file_size: 0, small_file_count: 0, ..options(tmp.path()) };
        assert!(run(&none, &CancellationToken::new(), &|_| ()).expect("done").rows.is_empty());
    }
}
