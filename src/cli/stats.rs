//! `hfmount stats`: what a mount does, as it does it.

mod line;
mod table;

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use clap::builder::RangedU64ValueParser;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};

use super::colours::Colours;
use super::mounts::mount_of;
use super::{Failure, small_runtime};
use crate::config::Home;
use crate::config::units::duration;
use crate::daemon::RunFile;
use crate::error::{Error, Kind, Result};
use crate::fuse;
use crate::metrics::{Page, ask};
use line::Line;
use table::Columns;

/// How long the daemon may take to answer. It needs no server for that: one that does not is stopped, or has no processor.
const PATIENCE: Duration = Duration::from_secs(10);
/// Lines between two headers.
const HEADER_EVERY: u64 = 20;
/// The shortest time between two lines.
const SHORTEST: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hfmount stats
  hfmount stats /mnt/hf

  # Averages of a minute, ten of them, for a script
  hfmount stats --interval 1m --count 10 --json /mnt/hf | jq .fuse.read_bytes_per_second

A line tells what happened since the line before. MB are 1,000,000 bytes, a second.
  fuse     requests of the kernel, the mean time to their answers in ms, and bytes read and
           written. What the kernel has in its own memory, or reads past the daemon, is not there
  meta     operations on the metadata engine and their mean time in ms
  cache    the share of what was read that was on this machine already, and how full the cache is
  storage  requests and bytes to (put, up) and from (get, down) the object store
  peers    bytes from and to other nodes, on volumes that have any
  hub      bytes from the Hub and its mirrors
  daemon   processor time (100 = one core) and memory

It works for mounts of the same user and HFMOUNT_HOME, and needs no --metrics. ^C ends it.

Exit codes: 0 as many lines as asked for, or ^C; 1 nothing is mounted there, or the daemon ended;
2 wrong command line.")]
pub(super) struct StatsArgs {
    /// The directory that is mounted on, or one in it. Default: the one mount that there is.
    dir: Option<PathBuf>,

    /// The time between two lines.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,

    /// End after so many lines. Default: go on until ^C.
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    count: Option<u64>,

    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        short if short < SHORTEST => Err("the shortest is 100ms".to_owned()),
        long if long > Duration::from_secs(86_400) => Err("the longest is 1d".to_owned()),
        time => Ok(time),
    }
}

impl StatsArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let note = find(&RunFile::all(&Home::from_env()?), self.dir.as_deref())?;
        small_runtime()?.block_on(async {
            tokio::select! {
                ended = self.follow(&note) => ended,
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted.map_err(|e| Error::with_source(Kind::Internal, "catching signals", e).into())
                }
            }
        })
    }

    async fn follow(&self, note: &RunFile) -> Result<(), Failure> {
        let mut before = Moment::of(note).await?;
        let columns = Columns::for_page(&before.page);
        let colours = Colours::of_stdout();
        let mut ticks = interval_at(Instant::now() + self.interval, self.interval);
        // A line after a pause is of the whole pause, and the next one of a whole interval.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lines = 0;
        while self.count.is_none_or(|count| lines < count) {
            ticks.tick().await;
            let now = Moment::of(note).await?;
            let line = Line::between(&before.page, &now.page, now.at - before.at);
            let mut text = String::new();
            if self.json {
                text = format!("{}\n", line.as_json(&note.mount_point, now.time));
            } else {
                if lines % HEADER_EVERY == 0 {
                    text.push_str(&columns.header(colours));
                }
                text.push_str(&columns.row(&line, colours));
            }
            if !print(&text)? {
                return Ok(());
            }
            before = now;
            lines += 1;
        }
        Ok(())
    }
}

/// What the daemon said, and when.
struct Moment {
    page: Page,
    at: Instant,
    time: SystemTime,
}

impl Moment {
    async fn of(note: &RunFile) -> Result<Self, Failure> {
        let shown = note.mount_point.display();
        let socket = note.socket.as_deref().ok_or_else(|| {
            Failure::said(format!(
                "the daemon of {shown} is of an older version: mount it again to see its figures"
            ))
        })?;
        match timeout(PATIENCE, ask(socket)).await {
            Ok(Ok(text)) => {
                Ok(Moment { page: Page::read(&text), at: Instant::now(), time: SystemTime::now() })
            }
            Ok(Err(_)) if !note.is_running() => {
                Err(Failure::said(format!("the daemon of {shown} (pid {}) has ended", note.pid)))
            }
            Ok(Err(e)) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                Err(Failure::said(format!(
                    "the daemon of {shown} (pid {}) is ending: it was unmounted",
                    note.pid
                )))
            }
            Ok(Err(e)) => Err(Failure::said(format!("figures of {shown} from {}: {e}", socket.display()))),
            Err(_) => Err(Failure::said(format!(
                "the daemon of {shown} (pid {}) does not answer: it is stopped, or hangs",
                note.pid
            ))),
        }
    }
}

/// `false`: the reader has seen enough.
fn print(text: &str) -> Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Error::with_source(Kind::Config, "standard output", e)),
    }
}

/// The note of the mount that is meant.
fn find(notes: &[RunFile], dir: Option<&Path>) -> Result<RunFile, Failure> {
    let Some(dir) = dir else {
        let running: Vec<&RunFile> = notes.iter().filter(|note| note.is_running()).collect();
        return match running[..] {
            [one] => Ok(one.clone()),
            [] => Err(Failure::said(
                "no mount of this user is there: `hfmount mount` makes one; for another HFMOUNT_HOME, set it"
                    .into(),
            )),
            _ => {
                let points: Vec<String> =
                    running.iter().map(|note| note.mount_point.display().to_string()).collect();
                Err(Failure::said(format!("which mount? There are {}", points.join(", "))))
            }
        };
    };
    let dir = fuse::absolute(dir)?;
    if let Some(note) = mount_of(notes, &dir) {
        return Ok(note);
    }
    let shown = dir.display();
    Err(Failure::said(match fuse::mounted_at(&dir)? {
        Some(true) if notes.iter().any(|note| note.mount_point == dir) => {
            format!("the daemon of {shown} has ended: `hfmount mount` mounts it again")
        }
        Some(true) => format!(
            "{shown} was mounted by another user, or with another HFMOUNT_HOME: ask as that user, or set it"
        ),
        Some(false) => format!("what is mounted on {shown} is no hfmount"),
        None => format!("nothing is mounted on {shown}: `hfmount mount {shown}` mounts a volume there"),
    }))
}
