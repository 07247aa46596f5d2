//! What only asks or changes metadata: the small files' attributes and names, and empty files made, renamed and removed.

use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use super::files::{create, small};
use super::place::{Place, failed};
use super::{Bench, Progress, Row, Unit};
use crate::error::{Error, Kind, Result};

impl Bench<'_> {
    /// After the small files were written.
    pub(super) fn names(&self, place: &Place) -> Result<[Row; 5]> {
        let size = self.options.small_file_size;
        let stat = self.for_each_small("stat", |n, index| {
            let path = small(place, n, index);
            let len = fs::metadata(&path).map_err(|e| failed(&path, e))?.len();
            match len == size {
                true => Ok(()),
                false => {
                    Err(Error::with_source(Kind::Corrupt, path.display().to_string(), format!("{len} bytes")))
                }
            }
        })?;
        let list = self.list(place)?;
        let empty = |n, index| place.file(&format!("empty-{n}-{index}"));
        let renamed = |n, index| place.file(&format!("renamed-{n}-{index}"));
        let made = self.for_each_small("create", |n, index| create(&empty(n, index)).map(drop))?;
        let moved = self.for_each_small("rename", |n, index| {
            let from: PathBuf = empty(n, index);
            fs::rename(&from, renamed(n, index)).map_err(|e| failed(&from, e))
        })?;
        let removed = self.for_each_small("unlink", |n, index| {
            let path = renamed(n, index);
            fs::remove_file(&path).map_err(|e| failed(&path, e))
        })?;
        Ok([
            Row::new("stat", "stat", Unit::Files, 0, stat),
            list,
            Row::new("create", "create empty files", Unit::Files, 0, made),
            Row::new("rename", "rename", Unit::Files, 0, moved),
            Row::new("unlink", "unlink", Unit::Files, 0, removed),
        ])
    }

    /// One thread lists the directory; a lap is one name.
    fn list(&self, place: &Place) -> Result<Row> {
        let all = self.options.small_file_count * self.options.threads as u64;
        let wanted = |name: &OsStr| name.to_str().is_some_and(|name| name.starts_with("small-"));
        (self.tell)(Progress { what: "list", done: 0, of: all, bytes: false });
        let times = self.in_threads(|n, laps| {
            self.go_on()?;
            if n > 0 {
                return Ok(());
            }
            let mut begun = Instant::now();
            for entry in fs::read_dir(place.path()).map_err(|e| failed(place.path(), e))? {
                let entry = entry.map_err(|e| failed(place.path(), e))?;
                if wanted(&entry.file_name()) {
                    laps.note(begun.elapsed());
                    begun = Instant::now();
                }
            }
            Ok(())
        })?;
        let found = times.0.count();
        if found != all {
            let why = format!("{found} names listed, {all} are there");
            return Err(Error::with_source(Kind::Corrupt, place.path().display().to_string(), why));
        }
        Ok(Row::new("list", "list", Unit::Files, 0, times))
    }
}
