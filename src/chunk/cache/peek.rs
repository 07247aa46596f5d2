//! Looking into a cache directory that a daemon may be using, without disturbing it: for tools. What is seen is of a moment.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::ContentKey;
use super::index::{Header, Record, record_offset};
use super::layout::index_path;
use crate::error::{Result, ResultExt};

/// The index of one content in a cache directory.
#[derive(Debug)]
pub struct Peek {
    index: File,
    header: Header,
    /// The data file.
    pub path: PathBuf,
}

impl Peek {
    /// The index of `key` in the cache directory `root`; `None` if it has nothing of it.
    pub fn open(root: &Path, key: &ContentKey) -> Result<Option<Self>> {
        let path = root.join(key.path());
        let index = match File::open(index_path(&path)) {
            Ok(index) => index,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).context(|| path.display().to_string()),
        };
        let mut raw = [0; 64];
        let header = index.read_exact_at(&mut raw, 0).ok().and_then(|()| Header::decode(&raw).ok());
        Ok(header.map(|header| Peek { index, header, path }))
    }

    /// Whether the content as a whole was checked against its name.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.header.verified
    }

    /// The record of chunk `idx`, if it has one.
    #[must_use]
    pub fn record(&self, idx: u64) -> Option<Record> {
        let mut raw = [0; 64];
        self.index.read_exact_at(&mut raw, record_offset(idx)).ok()?;
        Record::decode(&raw, idx)
    }
}

/// `path` and its siblings that other daemons of this machine took, those that are there.
#[must_use]
pub fn siblings(path: &Path) -> Vec<PathBuf> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Vec::new();
    };
    let is_one = |other: &str| {
        let rest = other.strip_prefix(name);
        rest.is_some_and(|r| r.is_empty() || r.strip_prefix('-').is_some_and(|n| n.parse::<u32>().is_ok()))
    };
    let mut found: Vec<PathBuf> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_name().to_str().is_some_and(is_one))
        .map(|entry| entry.path())
        .filter(|path| path.join("state").exists())
        .collect();
    found.sort();
    found
}
