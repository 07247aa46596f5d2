//! `hfmount bench`: how fast a place is.

mod table;
mod volume;

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::colours::Colours;
use super::show::show;
use super::volume::Steps;
use super::{Failure, MetaArgs, wide_runtime};
use crate::bench::{self, Caches, Options, Progress, Row};
use crate::config::Home;
use crate::config::units::size;
use crate::error::{Error, Kind, Result};
use volume::{Found, Measured};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hfmount bench /mnt/hf
  hfmount bench --threads 8 --big-file-size 4G /mnt/hf

  # What the disk itself does
  hfmount bench /var/tmp

  # Small files and metadata only, for a script
  hfmount bench --big-file-size 0 --json /mnt/hf | jq '.rows[] | {name, rate, p99_ms}'

Every thread writes one large file (and syncs it) and many small ones (and closes them), then reads
them; then come stat, list, create, rename and unlink. Before something is read the kernel's caches
are dropped: all of them if this is root, else the pages of the files themselves. hfmount's own disk
cache stays: what was written is read from there.

Of a mount of hfmount also the daemon's own count of the kernel's requests and of its operations on
the metadata meanwhile is told, and its object store (objects of 4 MiB and 1 KiB) and its metadata engine are
measured, from here and past the mount. The keys of the bucket and the engine's password are given as
to mount.

All that was made is removed, also after ^C. ^C twice ends it at once.")]
pub(super) struct BenchArgs {
    /// The directory to work in: on a mount, or any other.
    dir: PathBuf,

    /// How many work at a time.
    #[arg(long, short = 'p', value_name = "N", default_value = "1", value_parser = RangedU64ValueParser::<u64>::new().range(1..=256))]
    threads: u64,

    /// How large the large file of each thread is; 0 = none.
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = size)]
    big_file_size: u64,

    /// How large a small file is.
    #[arg(long, value_name = "SIZE", default_value = "128K", value_parser = size)]
    small_file_size: u64,

    /// How many small files each thread writes; 0 = none.
    #[arg(long, value_name = "N", default_value = "100", value_parser = RangedU64ValueParser::<u64>::new().range(..=10_000_000))]
    small_file_count: u64,

    /// Do not drop the kernel's caches: what is read comes from memory.
    #[arg(long)]
    keep_caches: bool,

    #[command(flatten)]
    meta: MetaArgs,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// All that is told.
struct Report {
    args: BenchArgs,
    dir: PathBuf,
    figures: Figures,
}

/// What came out.
struct Figures {
    /// `None`: a directory like any other.
    volume: Option<Found>,
    rows: Vec<Row>,
    caches: Caches,
    /// What could not be measured, and why.
    notes: Vec<String>,
}

impl BenchArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let home = Home::from_env()?;
        let dir = std::fs::canonicalize(&self.dir)
            .map_err(|e| Error::with_source(Kind::Config, self.dir.display().to_string(), e))?;
        let runtime = wide_runtime()?;
        let stop = CancellationToken::new();
        {
            let _context = runtime.enter();
            heed(&stop, &dir)?;
        }
        let steps = Steps::default();
        let tell = |p: Progress| steps.count(p.what, p.done, Some(p.of).filter(|of| *of > 0), p.bytes);
        let result = self.measure(&home, &dir, &runtime, &stop, &tell);
        steps.end();
        let figures = result.map_err(|e| match e.kind() {
            Kind::Interrupted => Failure::said("interrupted; what was made is removed".to_owned()),
            _ => e.into(),
        })?;
        let report = Report { args: self, dir, figures };
        let text = match report.args.json {
            true => format!("{:#}\n", table::as_json(&report)),
            false => table::as_text(&report, Colours::of_stdout()),
        };
        if !report.args.json {
            report.figures.notes.iter().for_each(|note| eprintln!("note: {note}"));
        }
        Ok(show(&text)?)
    }

    fn measure(
        &self,
        home: &Home,
        dir: &std::path::Path,
        runtime: &tokio::runtime::Runtime,
        stop: &CancellationToken,
        tell: bench::Tell<'_>,
    ) -> Result<Figures> {
        let options = Options {
            dir: dir.to_owned(),
            threads: usize::try_from(self.threads).unwrap_or(1),
            big_file_size: self.big_file_size,
            small_file_size: self.small_file_size,
            small_file_count: self.small_file_count,
            keep_caches: self.keep_caches,
        };
        let note = volume::note_of(home, dir);
        let before = note.as_ref().and_then(|note| runtime.block_on(volume::figures(note)));
        let begun = Instant::now();
        let outcome = bench::run(&options, stop, tell)?;
        let took = begun.elapsed();
        let after = note.as_ref().and_then(|note| runtime.block_on(volume::figures(note)));
        let (mut rows, mut notes) = (outcome.rows, Vec::new());
        if let (Some(before), Some(after)) = (before, after) {
            rows.extend(volume::counted(&before, &after, took));
        }
        if let Caches::OwnPages(why) = &outcome.caches {
            notes.push(format!("the kernel's caches were not dropped but for the files' own pages: {why}"));
        }
        let Measured { found: volume, rows: more, notes: about } =
            runtime.block_on(volume::measure(home, &self.meta, (dir, note), options.threads, stop, tell))?;
        rows.extend(more);
        notes.extend(about);
        Ok(Figures { volume, rows, caches: outcome.caches, notes })
    }
}

/// From now on the first signal that asks for an end stops the benchmark in order, the second one at once.
fn heed(stop: &CancellationToken, dir: &std::path::Path) -> Result<()> {
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        let mut signals =
            signal(kind).map_err(|e| Error::with_source(Kind::Internal, "catching signals", e))?;
        let (stop, dir) = (stop.clone(), dir.to_owned());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                if stop.is_cancelled() {
                    eprintln!("hfmount: ended at once: remove {}/tmp_hfmount-bench-*", dir.display());
                    std::process::exit(1);
                }
                stop.cancel();
            }
        });
    }
    Ok(())
}
