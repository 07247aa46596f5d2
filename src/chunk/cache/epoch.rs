//! Which runs of the daemon can be trusted to have left on the disk what they wrote.
//!
//! Each run that opens a cache directory has an epoch, kept in the file `state`. A run that stops cleanly syncs the disk
//! and says so there. The records of a run that did not are suspect: the data under them is checked before it is used.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::disk::{Disk, beside};
use crate::error::{Error, Kind, Result, ResultExt};

/// Ranges of crashed runs that are told apart; beyond this the oldest are merged with what lies between them.
const MAX_RANGES: usize = 32;
/// Bytes of the file: a block that is there before it is needed, so that a full disk does not keep a run from ending.
const ROOM: usize = 4096;

#[derive(Debug, Serialize, Deserialize)]
struct State {
    version: u32,
    volume: String,
    epoch: u32,
    clean: bool,
    /// First and last epoch of runs that did not stop cleanly, ascending.
    suspect: Vec<(u32, u32)>,
}

/// The epoch of this run, and what it knows of earlier ones.
#[derive(Debug)]
pub struct Epochs {
    state: State,
}

impl Epochs {
    /// Begins a run in the directory `dir`, which the caller has locked. The new state is on the disk before this returns.
    /// [`Kind::Config`] if the directory belongs to another volume or a later version.
    pub fn begin(disk: &Disk, dir: &Path, volume: &str) -> Result<Self> {
        let path = dir.join("state");
        let last = match disk.read(&path) {
            Ok(bytes) => serde_json::from_slice::<State>(&bytes).ok(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(e).context(|| path.display().to_string()),
        };
        if let Some(last) = &last {
            if last.version > 1 {
                let text = format!("cache directory {} was made by a later hfmount", dir.display());
                return Err(Error::new(Kind::Config, text));
            }
            if last.volume != volume {
                let text = format!("cache directory {} belongs to volume {}", dir.display(), last.volume);
                return Err(Error::new(Kind::Config, text));
            }
        }
        // The clock, not a bare counter: a lost state file must not give out an epoch again.
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let clock = u32::try_from(clock).unwrap_or(0);
        let epoch = clock.max(last.as_ref().map_or(1, |l| l.epoch.saturating_add(1)));
        let suspect = match last {
            None => vec![(0, epoch - 1)],
            Some(last) if last.clean => last.suspect,
            Some(last) => with(last.suspect, last.epoch),
        };
        let state = State { version: 1, volume: volume.to_owned(), epoch, clean: false, suspect };
        let epochs = Epochs { state };
        epochs.state.write(disk, dir)?;
        Ok(epochs)
    }

    /// The epoch of this run.
    #[must_use]
    pub fn current(&self) -> u32 {
        self.state.epoch
    }

    /// Whether data recorded in `epoch` may never have reached the disk.
    #[must_use]
    pub fn is_suspect(&self, epoch: u32) -> bool {
        let s = &self.state;
        epoch != s.epoch
            && (epoch > s.epoch || s.suspect.iter().any(|&(first, last)| (first..=last).contains(&epoch)))
    }

    /// Says that everything of this run is on the disk: the caller has synced it.
    pub fn end_clean(&self, disk: &Disk, dir: &Path) -> Result<()> {
        let s = &self.state;
        State {
            version: 1,
            volume: s.volume.clone(),
            epoch: s.epoch,
            clean: true,
            suspect: s.suspect.clone(),
        }
        .write(disk, dir)
    }
}

impl State {
    fn write(&self, disk: &Disk, dir: &Path) -> Result<()> {
        let path = dir.join("state");
        let mut text = serde_json::to_vec(self)
            .map_err(|e| Error::with_source(Kind::Internal, "state of the cache directory", e))?;
        text.resize(text.len().max(ROOM), b' ');
        disk.replace(&path, &text).context(|| path.display().to_string())?;
        // Its way in is paved again: the next one needs no room.
        let reserved = disk.open_or_create(&beside(&path, ".new")).and_then(|new| {
            new.write_all_at(&[b' '; ROOM], 0)?;
            new.sync()
        });
        if let Err(e) = reserved {
            tracing::debug!("no room is reserved for the state of the cache directory: {e}");
        }
        Ok(())
    }
}

/// The ranges with one more epoch, later than all of them.
fn with(mut ranges: Vec<(u32, u32)>, epoch: u32) -> Vec<(u32, u32)> {
    ranges.push((epoch, epoch));
    if ranges.len() > MAX_RANGES {
        let (_, end) = ranges.remove(1);
        ranges[0].1 = end;
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(dir: &Path, volume: &str) -> Result<Epochs> {
        Epochs::begin(&Disk::default(), dir, volume)
    }

    fn end(epochs: &Epochs, dir: &Path) {
        epochs.end_clean(&Disk::default(), dir).expect("clean");
    }

    #[test]
    fn runs_that_crashed_stay_suspect_after_clean_ones() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = begin(dir.path(), "v").expect("first");
        assert!(first.is_suspect(1), "a directory without a state is not trusted");
        assert!(!first.is_suspect(first.current()));
        end(&first, dir.path());

        // The epoch of a run that ended well is trusted although nothing before it is.
        let crashed = begin(dir.path(), "v").expect("second");
        assert!(!crashed.is_suspect(first.current()));
        let third = begin(dir.path(), "v").expect("third");
        assert!(third.is_suspect(crashed.current()) && !third.is_suspect(first.current()));
        end(&third, dir.path());

        let fourth = begin(dir.path(), "v").expect("fourth");
        assert!(fourth.is_suspect(crashed.current()));
        assert!(!fourth.is_suspect(third.current()) && !fourth.is_suspect(first.current()));
        assert!(fourth.is_suspect(fourth.current() + 1), "from the future");
    }

    #[test]
    fn many_crashes_are_merged() {
        let mut ranges = vec![(0, 10)];
        for epoch in (20..400).step_by(2) {
            ranges = with(ranges, epoch);
        }
        assert!(ranges.len() <= MAX_RANGES);
        assert_eq!((ranges[0].0, ranges[ranges.len() - 1]), (0, (398, 398)));
    }

    #[test]
    fn another_volume_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        begin(dir.path(), "one").expect("first");
        let e = begin(dir.path(), "two").expect_err("another volume");
        assert_eq!(e.kind(), Kind::Config);
        assert!(e.to_string().contains("one"), "{e}");
    }
}
