//! Large and small files: written, and read again. What is read is compared with what was written, piece by piece.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::caches::drop_caches;
use super::laps::Laps;
use super::place::{Place, failed};
use super::{Bench, Caches, Progress, Row, Unit};
use crate::error::{Error, Kind, Result};

/// What a large file is written and read by, bytes.
const PIECE: usize = 1 << 20;
/// What a piece begins with: where it belongs.
const STAMP: usize = 16;
/// Small files between two words about how far it is.
const TELL_EVERY: u64 = 16;

impl Bench<'_> {
    /// One file for each thread, written and synced, then read.
    pub(super) fn big_files(&self, place: &Place, caches: &mut Caches) -> Result<[Row; 2]> {
        let (threads, size) = (self.options.threads as u64, self.options.big_file_size);
        let all = size * threads;
        let path = |n: usize| place.file(&format!("big-{n}"));
        let tell = |what, done| (self.tell)(Progress { what, done, of: all, bytes: true });

        let done = AtomicU64::new(0);
        tell("writing large files", 0);
        let written = self.in_threads(|n, laps| {
            let (path, begun) = (path(n), Instant::now());
            let mut piece = random_piece(size);
            let mut file = create(&path)?;
            for (index, at) in (0..size).step_by(PIECE).enumerate() {
                self.go_on()?;
                let len = (size - at).min(PIECE as u64) as usize;
                put_stamp(&mut piece[..len], n, index);
                file.write_all(&piece[..len]).map_err(|e| failed(&path, e))?;
                tell("writing large files", done.fetch_add(len as u64, Relaxed) + len as u64);
            }
            file.sync_all().map_err(|e| failed(&path, e))?;
            drop(file);
            laps.note(begun.elapsed());
            Ok(())
        })?;

        *caches = drop_caches(self.options.keep_caches, (0..self.options.threads).map(path));
        let done = AtomicU64::new(0);
        tell("reading large files", 0);
        let read = self.in_threads(|n, laps| {
            let (path, begun) = (path(n), Instant::now());
            let mut piece = vec![0; size.min(PIECE as u64) as usize];
            let mut file = File::open(&path).map_err(|e| failed(&path, e))?;
            let mut at = 0;
            for index in 0.. {
                self.go_on()?;
                let len = read_full(&mut file, &mut piece).map_err(|e| failed(&path, e))?;
                if len == 0 {
                    break;
                }
                check_stamp(&piece[..len], n, index, &path)?;
                at += len as u64;
                tell("reading large files", (done.fetch_add(len as u64, Relaxed) + len as u64).min(all));
            }
            if at != size {
                return Err(wrong(&path, format!("{at} bytes of {size}")));
            }
            laps.note(begun.elapsed());
            Ok(())
        })?;
        Ok([
            Row::new("write_big", "write large file", Unit::Mib, all, written),
            Row::new("read_big", "read large file", Unit::Mib, all, read),
        ])
    }

    /// Many files for each thread, in one directory: created, written and closed; then opened and read.
    pub(super) fn small_files(&self, place: &Place, caches: &mut Caches) -> Result<[Row; 2]> {
        let (threads, size) = (self.options.threads as u64, self.options.small_file_size);
        let (each, all) = (self.options.small_file_count, self.options.small_file_count * threads);
        let bytes = random_piece(size);
        let written = self.for_each_small("writing small files", |n, index| {
            let path = small(place, n, index);
            let mut piece = bytes.clone();
            let mut file = create(&path)?;
            for (part, at) in (0..size).step_by(PIECE).enumerate() {
                let len = (size - at).min(PIECE as u64) as usize;
                put_stamp(&mut piece[..len], n, index as usize + part);
                file.write_all(&piece[..len]).map_err(|e| failed(&path, e))?;
            }
            drop(file);
            Ok(())
        })?;

        let threads = self.options.threads;
        let paths = (0..threads).flat_map(|n| (0..each).map(move |index| (n, index)));
        *caches = drop_caches(self.options.keep_caches, paths.map(|(n, index)| small(place, n, index)));
        let read = self.for_each_small("reading small files", |n, index| {
            let path = small(place, n, index);
            let mut piece = vec![0; size.min(PIECE as u64) as usize + 1];
            let mut file = File::open(&path).map_err(|e| failed(&path, e))?;
            let mut at = 0;
            for part in 0.. {
                let wanted = piece.len().min(PIECE);
                let len = read_full(&mut file, &mut piece[..wanted]).map_err(|e| failed(&path, e))?;
                if len == 0 {
                    break;
                }
                check_stamp(&piece[..len], n, index as usize + part, &path)?;
                at += len as u64;
            }
            if at != size {
                return Err(wrong(&path, format!("{at} bytes of {size}")));
            }
            Ok(())
        })?;
        Ok([
            Row::new("write_small", "write small files", Unit::Files, size * all, written),
            Row::new("read_small", "read small files", Unit::Files, size * all, read),
        ])
    }

    /// Does `work` for each small file of each thread, by its number, one lap for each.
    pub(super) fn for_each_small(
        &self,
        what: &'static str,
        work: impl Fn(usize, u64) -> Result<()> + Sync,
    ) -> Result<(Laps, Duration)> {
        let each = self.options.small_file_count;
        let of = each * self.options.threads as u64;
        let done = AtomicU64::new(0);
        (self.tell)(Progress { what, done: 0, of, bytes: false });
        self.in_threads(|n, laps| {
            for index in 0..each {
                self.go_on()?;
                let begun = Instant::now();
                work(n, index)?;
                laps.note(begun.elapsed());
                let done = done.fetch_add(1, Relaxed) + 1;
                if done.is_multiple_of(TELL_EVERY) || done == of {
                    (self.tell)(Progress { what, done, of, bytes: false });
                }
            }
            Ok(())
        })
    }
}

/// The file of that number of that thread.
pub(super) fn small(place: &Place, thread: usize, index: u64) -> PathBuf {
    place.file(&format!("small-{thread}-{index}"))
}

/// A file that is not there yet.
pub(super) fn create(path: &Path) -> Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path).map_err(|e| failed(path, e))
}

/// Bytes that nothing can make smaller.
fn random_piece(size: u64) -> Vec<u8> {
    let mut piece = vec![0; size.min(PIECE as u64) as usize];
    rand::fill(&mut piece[..]);
    piece
}

fn stamp(thread: usize, index: usize) -> [u8; STAMP] {
    let mut stamp = [0; STAMP];
    stamp[..8].copy_from_slice(&(thread as u64).to_le_bytes());
    stamp[8..].copy_from_slice(&(index as u64).to_le_bytes());
    stamp
}

/// Makes a piece differ from all others; as much of it as there is room for.
fn put_stamp(piece: &mut [u8], thread: usize, index: usize) {
    let len = piece.len().min(STAMP);
    piece[..len].copy_from_slice(&stamp(thread, index)[..len]);
}

fn check_stamp(piece: &[u8], thread: usize, index: usize, path: &Path) -> Result<()> {
    let len = piece.len().min(STAMP);
    if piece[..len] != stamp(thread, index)[..len] {
        return Err(wrong(path, format!("piece {index} is not what was written")));
    }
    Ok(())
}

fn wrong(path: &Path, why: String) -> Error {
    Error::with_source(Kind::Corrupt, path.display().to_string(), why)
}

/// As much as there is, up to the length of `piece`.
fn read_full(file: &mut File, piece: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < piece.len() {
        match file.read(&mut piece[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_in_the_wrong_place_is_found_out() {
        let mut piece = random_piece(100);
        assert_eq!(piece.len(), 100);
        put_stamp(&mut piece, 1, 7);
        let path = Path::new("x");
        assert!(check_stamp(&piece, 1, 7, path).is_ok());
        assert!(check_stamp(&piece, 1, 8, path).is_err() && check_stamp(&piece, 2, 7, path).is_err());
        assert!(check_stamp(&[], 1, 7, path).is_ok() && check_stamp(&piece[..3], 1, 7, path).is_ok());
    }
}
