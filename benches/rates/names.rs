//! Names in a directory, through the kernel.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::time::Instant;

use clap::ValueEnum;

use crate::Outcome;
use crate::laps::{Laps, summary};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum What {
    /// Make an empty file that is not there, and close it
    Create,
    /// Look at a file that another task made
    Stat,
    Unlink,
}

#[derive(Debug, clap::Args)]
pub struct Args {
    #[arg(value_enum)]
    what: What,
    /// The directory as each mount shows it; tasks take turns with them
    #[arg(required = true)]
    dirs: Vec<PathBuf>,
    #[arg(long, default_value_t = 1)]
    tasks: usize,
    /// Operations of all tasks together
    #[arg(long, default_value_t = 1000)]
    count: usize,
}

pub fn run(args: &Args) -> Outcome {
    let each = (args.count / args.tasks).max(1);
    let start = Arc::new(Barrier::new(args.tasks + 1));
    let threads: Vec<_> = (0..args.tasks)
        .map(|task| {
            // What was made through one mount is looked at through the next.
            let owner = if args.what == What::Stat { (task + 1) % args.tasks } else { task };
            let (dir, what, start) = (args.dirs[task % args.dirs.len()].clone(), args.what, start.clone());
            std::thread::spawn(move || {
                start.wait();
                work(&dir, what, owner, each)
            })
        })
        .collect();
    start.wait();
    let began = Instant::now();
    let mut laps = Vec::new();
    for thread in threads {
        laps.push(thread.join().map_err(|_| "a task panicked")??);
    }
    Ok(summary(laps, began.elapsed()))
}

fn work(dir: &Path, what: What, owner: usize, each: usize) -> io::Result<Laps> {
    let mut laps = Laps::default();
    for n in 0..each {
        let path = dir.join(format!("file-{owner}-{n}"));
        let began = Instant::now();
        match what {
            What::Create => drop::<File>(OpenOptions::new().write(true).create_new(true).open(&path)?),
            What::Stat => {
                std::hint::black_box(std::fs::symlink_metadata(&path)?);
            }
            What::Unlink => std::fs::remove_file(&path)?,
        }
        laps.note(began);
    }
    Ok(laps)
}
