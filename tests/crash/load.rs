//! Programs at work, each in a directory of its own, with a manifest of what they were told.

mod verify;

use std::ffi::CString;
use std::fs::{self, File as Open, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::child;
use crate::manifest::{Entry, File, Manifest, Pending};

/// Odd while something is broken; counts up with each change of that.
#[derive(Debug, Default)]
pub struct Trouble(AtomicU64);

impl Trouble {
    pub fn begin(&self) {
        assert_eq!(self.0.fetch_add(1, Ordering::SeqCst) % 2, 0, "one after the other");
    }

    pub fn end(&self) {
        assert_eq!(self.0.fetch_add(1, Ordering::SeqCst) % 2, 1, "it had begun");
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    /// Whether nothing was broken between then and now.
    fn calm_since(&self, then: u64) -> bool {
        then.is_multiple_of(2) && self.now() == then
    }
}

/// Why a program stopped.
#[derive(Debug)]
pub enum Stop {
    /// Something was broken meanwhile.
    Excused,
    /// It never should.
    Wrong(String),
}

/// One program.
pub struct Program {
    name: String,
    mounts: Vec<PathBuf>,
    rng: StdRng,
    pub manifest: Manifest,
    trouble: Arc<Trouble>,
    made: u32,
    /// When it last moved a directory.
    moved: Option<Instant>,
    /// What is acknowledged is safe on its mount, and elsewhere later.
    writeback: bool,
    /// Files whose bytes were compared with what they must be.
    pub checked: u64,
    /// Operations that were acknowledged.
    pub done: u64,
}

/// After so long every mount has heard of a change.
const PUSHED: Duration = Duration::from_secs(2);
/// The most that a file grows to: several chunks.
const LARGE: usize = 3 << 20;

impl Program {
    pub fn new(
        number: usize,
        seed: u64,
        mounts: Vec<PathBuf>,
        writeback: bool,
        trouble: Arc<Trouble>,
    ) -> Self {
        let name = format!("program-{number}");
        fs::create_dir(mounts[0].join(&name)).expect("nothing is broken yet");
        let rng = StdRng::seed_from_u64(seed + number as u64);
        let manifest = Manifest::default();
        let (made, moved, checked, done) = (0, None, 0, 0);
        Program { name, mounts, rng, manifest, trouble, made, moved, writeback, checked, done }
    }

    fn at(&self, mount: usize, path: &str) -> PathBuf {
        self.mounts[mount].join(&self.name).join(path)
    }

    /// Does something. What was acknowledged is in the manifest afterwards.
    pub fn work(&mut self) -> Result<(), Stop> {
        let then = self.trouble.now();
        let mount = self.rng.random_range(0..self.mounts.len());
        let done = match self.rng.random_range(0..100) {
            0..17 => self.create(mount),
            17 => self.stream(mount),
            18..42 => self.change(mount),
            42..50 => self.map(mount),
            50..62 => self.replace(mount),
            62..70 => self.rename(mount),
            70..78 => self.remove(mount),
            78..82 => self.make_dir(mount),
            82..86 => self.move_dir(mount),
            _ => return self.read(mount, then),
        };
        match done {
            Ok(()) => {
                self.done += 1;
                Ok(())
            }
            Err(e) if self.trouble.calm_since(then) && !self.may_be_stale(&e) => Err(Stop::Wrong(format!(
                "{}: nothing is broken, and yet: {e} ({:?})",
                self.name, self.manifest.pending
            ))),
            Err(_) => Err(Stop::Excused),
        }
    }

    /// A directory that another mount has just moved is where it was for the kernel of this one until the push arrives. Under its
    /// new name it is found only while no other rename is under way here (`d_splice_alias` tries for a lock, once and once more):
    /// else the answer is ESTALE.
    fn may_be_stale(&self, error: &io::Error) -> bool {
        let moved = self.moved.is_some_and(|when| when.elapsed() < PUSHED);
        error.raw_os_error() == Some(libc::ESTALE) && self.mounts.len() > 1 && moved
    }

    fn fresh(&mut self) -> String {
        self.made += 1;
        let name = format!("f{}", self.made);
        let dirs = self.manifest.dirs();
        match self.rng.random_range(0..=dirs.len()) {
            0 => name,
            n => format!("{}/{name}", dirs[n - 1]),
        }
    }

    /// A file, and the mount on which it can be changed: where it has news, if it has.
    fn pick(&mut self, mount: usize) -> Option<(String, usize)> {
        let files = self.manifest.files();
        if files.is_empty() {
            return None;
        }
        let path = files[self.rng.random_range(0..files.len())].clone();
        let home = self.manifest.file(&path).home;
        Some((path, home.unwrap_or(mount)))
    }

    fn bytes(&mut self) -> Vec<u8> {
        let len = match self.rng.random_range(0..10) {
            0 => 0,
            1..5 => self.rng.random_range(1..4000),
            5..9 => self.rng.random_range(1..120_000),
            _ => self.rng.random_range(1..1_500_000),
        };
        let seed: u32 = self.rng.random();
        (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 24) as u8).collect()
    }

    fn create(&mut self, mount: usize) -> io::Result<()> {
        if self.manifest.entries.len() > 60 {
            return self.remove(mount);
        }
        let path = self.fresh();
        let at = self.at(mount, &path);
        self.manifest.pending = Some(Pending::Make(path.clone(), Entry::File(File::default())));
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(at)?;
        self.manifest.pending = None;
        self.manifest.make(&path, Entry::File(File::default()));
        self.write_into(mount, &path, file)
    }

    /// A large file from its beginning to its end, as a download writes it.
    fn stream(&mut self, mount: usize) -> io::Result<()> {
        if self.manifest.large() > 1 {
            return self.remove(mount);
        }
        let path = self.fresh();
        let at = self.at(mount, &path);
        self.manifest.pending = Some(Pending::Make(path.clone(), Entry::File(File::default())));
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(at)?;
        self.manifest.pending = None;
        self.manifest.make(&path, Entry::File(File::default()));
        let (seed, len): (u64, usize) = (self.rng.random(), self.rng.random_range(LARGE..4 * LARGE));
        let mut bytes = vec![0; len];
        StdRng::seed_from_u64(seed).fill(&mut bytes[..]);
        for piece in bytes.chunks(1 << 20) {
            // One state for all of a piece: what is there after an error is a part of it.
            let place = self.manifest.file(&path).now().len();
            self.manifest.file(&path).change(mount, |bytes| bytes.extend_from_slice(piece));
            file.write_all_at(piece, place as u64)?;
        }
        self.end(&path, file)
    }

    fn change(&mut self, mount: usize) -> io::Result<()> {
        let Some((path, mount)) = self.pick(mount) else { return self.create(mount) };
        let append = self.rng.random_bool(0.4);
        let file = OpenOptions::new().read(true).write(true).append(append).open(self.at(mount, &path))?;
        if append {
            return self.append_to(mount, &path, file);
        }
        self.write_into(mount, &path, file)
    }

    fn append_to(&mut self, mount: usize, path: &str, mut file: Open) -> io::Result<()> {
        for _ in 0..self.rng.random_range(1..4) {
            let mut data = self.bytes();
            data.truncate(100_000);
            let now = self.manifest.file(path);
            if now.now().len() > LARGE {
                break;
            }
            // Before it is done: it may be done and not be answered.
            now.change(mount, |bytes| bytes.extend_from_slice(&data));
            // In one piece, as the kernel sends up to 1 MiB.
            let n = file.write(&data)?;
            whole(n, data.len())?;
        }
        self.end(path, file)
    }

    fn write_into(&mut self, mount: usize, path: &str, file: Open) -> io::Result<()> {
        for _ in 0..self.rng.random_range(1..5) {
            if self.rng.random_bool(0.2) {
                let size = self.rng.random_range(0..200_000);
                self.manifest.file(path).change(mount, |bytes| bytes.resize(size, 0));
                file.set_len(size as u64)?;
                continue;
            }
            let len = self.manifest.file(path).now().len();
            let place = if self.rng.random_bool(0.5) { len } else { self.rng.random_range(0..=len) };
            let mut data = self.bytes();
            if len > LARGE {
                data.truncate(64 << 10);
            }
            for (i, piece) in data.chunks(64 << 10).enumerate() {
                let place = (place + i * (64 << 10)).min(LARGE);
                self.manifest.file(path).change(mount, |bytes| {
                    bytes.resize(bytes.len().max(place + piece.len()), 0);
                    bytes[place..place + piece.len()].copy_from_slice(piece);
                });
                let n = file.write_at(piece, place as u64)?;
                whole(n, piece.len())?;
            }
            if self.rng.random_bool(0.15) {
                file.sync_all()?;
                let writeback = self.writeback;
                self.manifest.file(path).ack(writeback);
            }
        }
        self.end(path, file)
    }

    fn end(&mut self, path: &str, file: Open) -> io::Result<()> {
        if self.rng.random_bool(0.2) {
            file.sync_all()?;
            let writeback = self.writeback;
            self.manifest.file(path).ack(writeback);
        }
        close(file)?;
        let writeback = self.writeback;
        self.manifest.file(path).ack(writeback);
        Ok(())
    }

    fn map(&mut self, mount: usize) -> io::Result<()> {
        let Some((path, mount)) = self.pick(mount) else { return Ok(()) };
        let len = self.manifest.file(&path).now().len();
        if len == 0 {
            return Ok(());
        }
        let at = self.rng.random_range(0..len);
        let n = self.rng.random_range(1..=(len - at).min(50_000));
        let seed = self.rng.random();
        let file = self.manifest.file(&path);
        // The kernel may write any page of it before the others.
        let mut page = at;
        while page < at + n {
            let end = ((page / 4096 + 1) * 4096).min(at + n);
            file.change(mount, |bytes| bytes[page..end].fill(seed));
            page = end;
        }
        child::map_write(&self.at(mount, &path), at, n, seed)?;
        let writeback = self.writeback;
        self.manifest.file(&path).ack(writeback);
        Ok(())
    }

    /// As editors and libraries do: a new file is written, closed, and takes the place of the old one.
    fn replace(&mut self, mount: usize) -> io::Result<()> {
        let Some((path, _)) = self.pick(mount) else { return self.create(mount) };
        let new = self.fresh();
        self.manifest.pending = Some(Pending::Make(new.clone(), Entry::File(File::default())));
        let file = OpenOptions::new().create_new(true).read(true).write(true).open(self.at(mount, &new))?;
        self.manifest.pending = None;
        self.manifest.make(&new, Entry::File(File::default()));
        self.write_into(mount, &new, file)?;
        self.move_to(mount, &new, &path)
    }

    fn move_to(&mut self, mount: usize, from: &str, to: &str) -> io::Result<()> {
        self.manifest.pending = Some(Pending::Rename(from.into(), to.into()));
        fs::rename(self.at(mount, from), self.at(mount, to))?;
        self.manifest.pending = None;
        self.manifest.remove(to);
        self.manifest.rename(from, to);
        Ok(())
    }

    fn rename(&mut self, mount: usize) -> io::Result<()> {
        let Some((path, _)) = self.pick(mount) else { return Ok(()) };
        let new = self.fresh();
        self.move_to(mount, &path, &new)
    }

    fn remove(&mut self, mount: usize) -> io::Result<()> {
        let empty: Vec<String> =
            self.manifest.dirs().into_iter().filter(|d| self.manifest.is_empty_dir(d)).collect();
        if !empty.is_empty() && self.rng.random_bool(0.3) {
            let path = empty[self.rng.random_range(0..empty.len())].clone();
            self.manifest.pending = Some(Pending::Remove(path.clone()));
            fs::remove_dir(self.at(mount, &path))?;
            self.manifest.remove(&path);
        } else if let Some((path, _)) = self.pick(mount) {
            self.manifest.pending = Some(Pending::Remove(path.clone()));
            fs::remove_file(self.at(mount, &path))?;
            self.manifest.remove(&path);
        }
        self.manifest.pending = None;
        Ok(())
    }

    fn make_dir(&mut self, mount: usize) -> io::Result<()> {
        if self.manifest.dirs().len() > 6 {
            return Ok(());
        }
        let path = self.fresh();
        self.manifest.pending = Some(Pending::Make(path.clone(), Entry::Dir));
        fs::create_dir(self.at(mount, &path))?;
        self.manifest.pending = None;
        self.manifest.make(&path, Entry::Dir);
        Ok(())
    }

    fn move_dir(&mut self, mount: usize) -> io::Result<()> {
        let dirs = self.manifest.dirs();
        if dirs.is_empty() {
            return self.make_dir(mount);
        }
        let from = dirs[self.rng.random_range(0..dirs.len())].clone();
        let to = self.fresh();
        if to.starts_with(&format!("{from}/")) {
            return Ok(());
        }
        self.moved = Some(Instant::now());
        self.move_to(mount, &from, &to)
    }

    /// What a program reads while it works.
    fn read(&mut self, mount: usize, then: u64) -> Result<(), Stop> {
        let Some((path, mount)) = self.pick(mount) else { return Ok(()) };
        let at = self.at(mount, &path);
        let read = read_file(&at);
        let read_ino = read.as_ref().map_or(0, |(ino, _)| *ino);
        let read = read.map(|(_, bytes)| bytes);
        let calm = self.trouble.calm_since(then);
        let file = self.manifest.file(&path);
        match read {
            Ok(found) if *found == ***file.now() => Ok(()),
            // A daemon that is killed forgets what was not acknowledged.
            Ok(found) if !calm && file.may_be(&found) => Ok(()),
            Ok(found) => {
                let (told, now) = (file.describe(&found), file.now().clone());
                // Whether the name was an old one, or the data, and for how long.
                std::thread::sleep(Duration::from_millis(1500));
                let again = read_file(&at).map(|(ino, bytes)| (ino, bytes == *now));
                let others: Vec<_> = (0..self.mounts.len())
                    .map(|n| read_file(&self.at(n, &path)).map(|(ino, bytes)| (ino, bytes == *now)))
                    .collect();
                Err(Stop::Wrong(format!(
                    "{} read {path} on mount {mount}, inode {read_ino}: {told}; 1.5 s later the inode and whether it is \
                     right: {again:?}; on each mount: {others:?}",
                    self.name
                )))
            }
            Err(e) if calm && !self.may_be_stale(&e) => {
                Err(Stop::Wrong(format!("{} cannot read {path} on mount {mount}: {e}", self.name)))
            }
            Err(_) => Err(Stop::Excused),
        }
    }
}

/// A write is cut short where what follows fails, and only there.
fn whole(done: usize, wanted: usize) -> io::Result<()> {
    if done == wanted {
        Ok(())
    } else {
        Err(io::Error::other(format!("{done} bytes of {wanted} were written")))
    }
}

/// close(2) with its answer, which the standard library drops.
fn close(file: Open) -> io::Result<()> {
    // SAFETY: the descriptor is this function's own.
    if unsafe { libc::close(file.into_raw_fd()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A file and the number of its inode.
fn read_file(path: &Path) -> io::Result<(u64, Vec<u8>)> {
    let mut file = Open::open(path)?;
    let ino = file.metadata()?.ino();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok((ino, bytes))
}

fn walk(base: &Path, below: &str, found: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(base.join(below))? {
        let entry = entry?;
        let name = entry.file_name().into_string().expect("names are ASCII");
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        if entry.file_type()?.is_dir() {
            walk(base, &path, found)?;
        }
        found.push(path);
    }
    Ok(())
}

/// Whether the mount answers something that needs its metadata.
pub fn answers(root: &Path) -> bool {
    let name = CString::new(root.join("is-nobody-here").as_os_str().as_bytes()).expect("no NUL");
    // SAFETY: the path is a C string that lives until after the call.
    let there = unsafe { libc::access(name.as_ptr(), libc::F_OK) };
    there == -1 && io::Error::last_os_error().kind() == io::ErrorKind::NotFound
}
