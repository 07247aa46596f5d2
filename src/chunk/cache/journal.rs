//! What the cache directory holds that is nowhere else: one small file for each content with data that was acknowledged and is
//! not in the bucket yet. What its text says is the business of who writes the data; here it is kept, found again, and the
//! contents that it speaks of are kept from the evictor.
//!
//! ```text
//! <dir>/journal/<ino>        hex; written anew as a whole, synced, and renamed into its place
//! <dir>/journal/<ino>.bad    cannot be used; never deleted by hfmount
//! <dir>/journal/sessions     those that the metadata was told of, because of entries that are or were here
//! ```

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::disk::{Disk, beside};
use super::{ContentKey, lock};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{Ino, SessionId, Timestamp};

const MAGIC: [u8; 8] = *b"hfmjnl\x00\x01";
/// Magic, check over the rest, bytes, since.
const HEADER: usize = 8 + 16 + 8 + 8;

/// What one entry stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Bytes in the content's cache file that are in no object.
    pub bytes: u64,
    /// Since when something of the content waits.
    pub since: Timestamp,
}

/// What waits in a cache directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    pub files: u64,
    pub bytes: u64,
    /// The oldest of them waits since then.
    pub oldest: Option<Timestamp>,
    /// Entries that cannot be used.
    pub bad: u64,
}

impl Waiting {
    /// What waits in the cache directory `root`, whether a daemon uses it or not. Reads the head of each entry.
    pub fn in_dir(root: &Path) -> io::Result<Self> {
        let mut waiting = Waiting::default();
        let entries = match fs::read_dir(root.join("journal")) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(waiting),
            Err(e) => return Err(e),
        };
        for entry in entries {
            let path = entry?.path();
            match name_of(&path) {
                Name::Entry(_) => {
                    let mut head = [0; HEADER];
                    // It may be drained at this moment.
                    let Ok(mut file) = File::open(&path) else { continue };
                    match file.read_exact(&mut head).ok().and_then(|()| kept(&head)) {
                        Some(kept) => waiting.add(&kept),
                        None => waiting.bad += 1,
                    }
                }
                Name::Bad(_) => waiting.bad += 1,
                Name::Other => {}
            }
        }
        Ok(waiting)
    }

    fn add(&mut self, kept: &Kept) {
        self.files += 1;
        self.bytes += kept.bytes;
        self.oldest = Some(self.oldest.map_or(kept.since, |o| o.min(kept.since)));
    }
}

enum Name {
    Entry(Ino),
    Bad(Ino),
    Other,
}

fn name_of(path: &Path) -> Name {
    let Some(name) = path.file_name().and_then(|n| n.to_str()) else { return Name::Other };
    let bad = name.strip_suffix(".bad");
    match u64::from_str_radix(bad.unwrap_or(name), 16) {
        Ok(ino) if bad.is_some() => Name::Bad(Ino(ino)),
        Ok(ino) if name.len() == 16 => Name::Entry(Ino(ino)),
        _ => Name::Other,
    }
}

fn kept(head: &[u8]) -> Option<Kept> {
    let number = |at: usize| head.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let since = Timestamp(number(32)?.cast_signed());
    (head.get(..8)? == MAGIC).then_some(Kept { bytes: number(24)?, since })
}

/// The journal of a cache directory that this process has locked. Its methods block on the disk.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    disk: Disk,
    entries: Mutex<HashMap<Ino, Kept>>,
    /// Entries of earlier runs that nobody has taken over yet. Nothing of their contents may be given back.
    found: Mutex<HashSet<Ino>>,
    /// Contents whose entries cannot be used: for somebody to look at.
    bad: Mutex<HashSet<Ino>>,
    /// Entries that should be gone, and perhaps are not: the disk failed.
    remains: Mutex<HashSet<Ino>>,
}

impl Journal {
    /// The journal below `root`, with what earlier runs left in it.
    pub(super) fn open(root: &Path, disk: &Disk) -> Result<Self> {
        let dir = root.join("journal");
        let name = || dir.display().to_string();
        let journal = Journal {
            dir: dir.clone(),
            disk: disk.clone(),
            entries: Mutex::default(),
            found: Mutex::default(),
            bad: Mutex::default(),
            remains: Mutex::default(),
        };
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(journal),
            Err(e) => return Err(e).context(name),
        };
        for entry in entries {
            let path = entry.context(name)?.path();
            match name_of(&path) {
                Name::Entry(ino) => {
                    let mut head = [0; HEADER];
                    let read = File::open(&path).and_then(|mut f| f.read_exact(&mut head));
                    let found = read.ok().and_then(|()| kept(&head));
                    // One that cannot be read is to be looked at all the same.
                    let found = found.unwrap_or(Kept { bytes: 1, since: Timestamp::now() });
                    lock(&journal.entries).insert(ino, found);
                    lock(&journal.found).insert(ino);
                }
                Name::Bad(ino) => _ = lock(&journal.bad).insert(ino),
                Name::Other if path.extension().is_some_and(|e| e == "new") => {
                    // A crash cut in; it was never acknowledged.
                    let _ = fs::remove_file(&path);
                }
                Name::Other => {}
            }
        }
        Ok(journal)
    }

    fn path(&self, ino: Ino) -> PathBuf {
        self.dir.join(format!("{:016x}", ino.0))
    }

    /// Writes the entry of a content, in the place of the one before. It is durable when this returns.
    pub fn put(&self, ino: Ino, kept: Kept, text: &[u8]) -> Result<()> {
        let path = self.path(ino);
        let mut bytes = Vec::with_capacity(HEADER + text.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[0; 16]);
        bytes.extend_from_slice(&kept.bytes.to_le_bytes());
        bytes.extend_from_slice(&kept.since.0.cast_unsigned().to_le_bytes());
        bytes.extend_from_slice(text);
        let check = check(&bytes);
        bytes[8..24].copy_from_slice(&check);
        let write = || {
            self.make_dir()?;
            self.disk.replace(&path, &bytes)
        };
        // Before it is there: the evictor must not be faster.
        let before = lock(&self.entries).insert(ino, kept);
        let written = write().context(|| path.display().to_string());
        if written.is_err() {
            // Whether the new one took the place of the old one is not known; without an old one there may be one now.
            if before.is_none() {
                let _ = self.remove(ino);
            }
            let _ = fs::remove_file(beside(&path, ".new"));
        }
        written
    }

    /// What the entry says. [`Kind::Corrupt`] if it is not what was written.
    pub fn read(&self, ino: Ino) -> Result<(Kept, Vec<u8>)> {
        let path = self.path(ino);
        let name = || path.display().to_string();
        let mut bytes = self.disk.read(&path).context(name)?;
        let head = kept(&bytes).filter(|_| bytes.len() >= HEADER);
        match head {
            Some(kept) if bytes[8..24] == check(&bytes) => Ok((kept, bytes.split_off(HEADER))),
            _ => Err(Error::with_source(Kind::Corrupt, name(), "an entry of the journal")),
        }
    }

    /// Nothing of the content waits any more. A power loss may bring the entry back; an error means that it may be there still,
    /// for the next run.
    pub fn remove(&self, ino: Ino) -> Result<()> {
        let path = self.path(ino);
        let removed = match self.disk.remove(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e).context(|| path.display().to_string()),
            _ => Ok(()),
        };
        match removed {
            Ok(()) => lock(&self.remains).remove(&ino),
            Err(_) => lock(&self.remains).insert(ino),
        };
        lock(&self.entries).remove(&ino);
        lock(&self.found).remove(&ino);
        removed
    }

    /// Whether entries may be there that should be gone: what says that they were committed must stay.
    #[must_use]
    pub fn has_remains(&self) -> bool {
        !lock(&self.remains).is_empty()
    }

    /// Notes the sessions that the metadata is told of, in the place of those before. Durable when this returns.
    pub fn set_sessions(&self, sessions: &HashSet<SessionId>) -> Result<()> {
        if sessions.is_empty() && !self.dir.exists() {
            return Ok(());
        }
        let path = self.dir.join("sessions");
        let text: String = sessions.iter().map(|session| format!("{session}\n")).collect();
        let write = || {
            self.make_dir()?;
            self.disk.replace(&path, text.as_bytes())
        };
        write().context(|| path.display().to_string())
    }

    /// What [`Journal::set_sessions`] noted last, in an earlier run too.
    pub fn sessions(&self) -> Result<HashSet<SessionId>> {
        let path = self.dir.join("sessions");
        match self.disk.read(&path) {
            Ok(text) => Ok(String::from_utf8_lossy(&text).lines().filter_map(|l| l.parse().ok()).collect()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(HashSet::new()),
            Err(e) => Err(e).context(|| path.display().to_string()),
        }
    }

    fn make_dir(&self) -> io::Result<()> {
        if !self.dir.exists() {
            self.disk.create_dirs(&self.dir)?;
            self.disk.sync_dir(self.dir.parent().unwrap_or(&self.dir))?;
        }
        Ok(())
    }

    /// No power loss brings back what was removed before.
    pub fn sync(&self) -> Result<()> {
        if !self.dir.exists() {
            return Ok(());
        }
        self.disk.sync_dir(&self.dir).context(|| self.dir.display().to_string())
    }

    /// Keeps an entry that cannot be used, and its content, for somebody to look at. Returns what it is called now.
    pub fn set_aside(&self, ino: Ino) -> Result<PathBuf> {
        let (path, bad) = (self.path(ino), beside(&self.path(ino), ".bad"));
        self.disk.rename(&path, &bad).context(|| path.display().to_string())?;
        lock(&self.bad).insert(ino);
        lock(&self.entries).remove(&ino);
        lock(&self.found).remove(&ino);
        Ok(bad)
    }

    /// Entries of earlier runs that nobody has taken over yet.
    #[must_use]
    pub fn found(&self) -> Vec<Ino> {
        let mut found: Vec<Ino> = lock(&self.found).iter().copied().collect();
        found.sort_unstable();
        found
    }

    /// The content of an entry of an earlier run is open, and whoever opened it keeps book of what may go.
    pub fn taken_over(&self, ino: Ino) {
        lock(&self.found).remove(&ino);
    }

    /// Whether the content may not be unlinked: it has data that is nowhere else.
    pub(super) fn protects(&self, key: &ContentKey) -> bool {
        let ContentKey::File(ino) = key else { return false };
        lock(&self.entries).contains_key(ino) || lock(&self.bad).contains(ino)
    }

    /// Whether not even what looks recorded in it may be given back.
    pub(super) fn protects_all_of(&self, key: &ContentKey) -> bool {
        let ContentKey::File(ino) = key else { return false };
        lock(&self.found).contains(ino) || lock(&self.bad).contains(ino)
    }

    /// Whether bytes of the content's cache file wait.
    pub(super) fn has_bytes(&self, key: &ContentKey) -> bool {
        matches!(key, ContentKey::File(ino) if lock(&self.entries).get(ino).is_some_and(|k| k.bytes > 0))
    }

    /// What waits now.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        let mut waiting = Waiting::default();
        lock(&self.entries).values().for_each(|kept| waiting.add(kept));
        waiting
    }
}

fn check(entry: &[u8]) -> [u8; 16] {
    let mut check = [0; 16];
    check.copy_from_slice(&blake3::hash(&entry[24..]).as_bytes()[..16]);
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_again_and_damage_is_noticed() {
        let dir = tempfile::tempdir().expect("a directory");
        let open = || Journal::open(dir.path(), &Disk::default()).expect("a journal");
        let journal = open();
        let kept = Kept { bytes: 77, since: Timestamp(5) };
        journal.put(Ino(1), kept, b"one").expect("put");
        journal.put(Ino(2), Kept { since: Timestamp(3), ..kept }, b"two").expect("put");
        journal.put(Ino(1), kept, b"one again").expect("put");
        journal.put(Ino(3), kept, b"three").expect("put");
        journal.remove(Ino(3)).expect("remove");
        let waiting = Waiting { files: 2, bytes: 154, oldest: Some(Timestamp(3)), bad: 0 };
        assert_eq!(journal.waiting(), waiting);

        let journal = open();
        assert_eq!(journal.found(), [Ino(1), Ino(2)]);
        assert_eq!((journal.waiting(), Waiting::in_dir(dir.path()).expect("read")), (waiting, waiting));
        assert_eq!(journal.read(Ino(1)).expect("read"), (kept, b"one again".to_vec()));
        let key = ContentKey::File(Ino(1));
        assert!(journal.protects(&key) && journal.protects_all_of(&key) && journal.has_bytes(&key));
        journal.taken_over(Ino(1));
        assert!(journal.protects(&key) && !journal.protects_all_of(&key));

        let path = journal.path(Ino(2));
        let mut bytes = fs::read(&path).expect("read");
        *bytes.last_mut().expect("bytes") ^= 1;
        fs::write(&path, bytes).expect("damage");
        assert_eq!(journal.read(Ino(2)).expect_err("damaged").kind(), Kind::Corrupt);
        assert!(journal.set_aside(Ino(2)).expect("kept").ends_with("0000000000000002.bad"));
        assert!(journal.protects(&ContentKey::File(Ino(2))), "its data stays");
        assert_eq!(Waiting::in_dir(dir.path()).expect("read").bad, 1);
        assert!(open().protects_all_of(&ContentKey::File(Ino(2))), "also in the next run");
    }
}
