//! A disk for tests: it fails on demand, and it can lose its power. What is left then is what was synced, and of everything
//! else what chance kept: single pages of files, single names.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Op;

const PAGE: usize = 4096;

#[derive(Debug)]
pub(crate) struct Sim {
    /// The error of what fails.
    pub errno: AtomicI32,
    pub fail_reads: AtomicU32,
    pub fail_writes: AtomicU32,
    pub fail_syncs: AtomicU32,
    /// Sizes, names, holes.
    pub fail_changes: AtomicU32,
    /// Of writes, half is written and then it fails.
    pub halves: AtomicU32,
    /// Everything fails.
    pub broken: AtomicBool,
    /// Every operation waits this long, in ms.
    pub delay: AtomicU64,
    pub syncs: AtomicU64,
    /// The power is gone: nothing of the old run may touch the disk any more.
    off: AtomicBool,
    shadow: Mutex<Shadow>,
}

/// What the platters have.
#[derive(Debug)]
struct Shadow {
    root: PathBuf,
    /// By inode number, which the open file keeps from being given out again.
    files: HashMap<u64, Durable>,
    names: HashMap<PathBuf, u64>,
    dirs: HashSet<PathBuf>,
}

#[derive(Debug)]
struct Durable {
    file: File,
    bytes: Vec<u8>,
}

fn take(n: &AtomicU32) -> bool {
    n.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok()
}

fn all_of(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().expect("metadata").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

impl Sim {
    /// For a cache directory at `root`; what is there now is on the platters.
    pub fn new(root: &Path) -> std::sync::Arc<Self> {
        let mut dirs = HashSet::new();
        collect_dirs(root, &mut dirs);
        let shadow = Shadow { root: root.to_owned(), files: HashMap::new(), names: HashMap::new(), dirs };
        std::sync::Arc::new(Sim {
            errno: AtomicI32::new(libc::EIO),
            fail_reads: AtomicU32::new(0),
            fail_writes: AtomicU32::new(0),
            fail_syncs: AtomicU32::new(0),
            fail_changes: AtomicU32::new(0),
            halves: AtomicU32::new(0),
            broken: AtomicBool::new(false),
            delay: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            off: AtomicBool::new(false),
            shadow: Mutex::new(shadow),
        })
    }

    fn error(&self) -> io::Error {
        io::Error::from_raw_os_error(self.errno.load(SeqCst))
    }

    fn shadow(&self) -> MutexGuard<'_, Shadow> {
        self.shadow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn gate(&self, op: Op) -> io::Result<()> {
        match self.delay.load(SeqCst) {
            0 => {}
            ms => std::thread::sleep(Duration::from_millis(ms)),
        }
        if self.off.load(SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::ENOTCONN));
        }
        if op == Op::Sync {
            self.syncs.fetch_add(1, SeqCst);
        }
        let fails = match op {
            Op::Read => take(&self.fail_reads),
            Op::Write => take(&self.fail_writes),
            Op::Sync => take(&self.fail_syncs),
            Op::Change => take(&self.fail_changes),
            Op::Open => false,
        };
        if fails || self.broken.load(SeqCst) { Err(self.error()) } else { Ok(()) }
    }

    pub fn takes_half(&self) -> Option<io::Error> {
        (!self.off.load(SeqCst) && take(&self.halves)).then(|| self.error())
    }

    pub fn opened(&self, path: &Path, file: &File, fresh: bool) {
        let ino = file.metadata().expect("metadata").ino();
        let mut shadow = self.shadow();
        if shadow.files.contains_key(&ino) {
            return;
        }
        let file = file.try_clone().expect("clone");
        let bytes = if fresh { Vec::new() } else { all_of(&file) };
        if !fresh {
            shadow.names.insert(path.to_owned(), ino);
        }
        shadow.files.insert(ino, Durable { file, bytes });
    }

    /// The name is about to go: it may come back.
    pub fn removing(&self, path: &Path) {
        if let Ok(file) = File::options().read(true).write(true).open(path) {
            self.opened(path, &file, false);
        }
    }

    pub fn synced(&self, file: &File) {
        let ino = file.metadata().expect("metadata").ino();
        let mut shadow = self.shadow();
        if let Some(durable) = shadow.files.get_mut(&ino) {
            durable.bytes = all_of(&durable.file);
        }
    }

    pub fn synced_dir(&self, dir: &Path) {
        self.shadow().sync_dir(dir);
    }

    pub fn synced_all(&self) {
        let mut shadow = self.shadow();
        for durable in shadow.files.values_mut() {
            durable.bytes = all_of(&durable.file);
        }
        let mut dirs = HashSet::new();
        collect_dirs(&shadow.root, &mut dirs);
        for dir in dirs {
            shadow.sync_dir(&dir);
        }
    }

    /// From here on nothing of this run reaches the disk.
    pub fn cut(&self) {
        self.off.store(true, SeqCst);
    }

    /// Makes the directory what it may be after the power came back. The run's own handles must be gone, or [`Sim::cut`].
    pub fn power_loss(&self) {
        self.cut();
        let mut shadow = self.shadow();
        let root = shadow.root.clone();
        let files = std::mem::take(&mut shadow.files);
        let left: HashMap<u64, Vec<u8>> = files.iter().map(|(ino, d)| (*ino, d.left())).collect();
        let mut dirs = HashSet::new();
        collect_dirs(&root, &mut dirs);
        for dir in dirs {
            if dir != root && !shadow.dirs.contains(&dir) && dir.exists() && rand::random_bool(0.5) {
                fs::remove_dir_all(&dir).expect("remove");
            }
        }
        let mut paths: HashSet<PathBuf> = shadow.names.keys().cloned().collect();
        collect_files(&root, &mut paths);
        for path in paths {
            let now = fs::metadata(&path).ok().map(|m| m.ino());
            if now.is_some_and(|ino| !left.contains_key(&ino)) || !path.parent().is_some_and(Path::exists) {
                // Nothing that the run ever touched.
                continue;
            }
            let durable = shadow.names.get(&path).copied();
            let chosen = if rand::random_bool(0.5) { durable } else { now };
            match chosen {
                None => _ = fs::remove_file(&path),
                Some(ino) if now == Some(ino) => {
                    let file = File::options().write(true).open(&path).expect("open");
                    file.set_len(0).expect("cut");
                    file.write_all_at(&left[&ino], 0).expect("write");
                }
                Some(ino) => {
                    let _ = fs::remove_file(&path);
                    fs::write(&path, &left[&ino]).expect("write");
                }
            }
        }
    }
}

impl Durable {
    /// What of it is there when the power comes back.
    fn left(&self) -> Vec<u8> {
        let now = all_of(&self.file);
        if now == self.bytes {
            return now;
        }
        let len = if rand::random_bool(0.5) { now.len() } else { self.bytes.len() };
        let mut left = vec![0; len];
        for at in (0..len).step_by(PAGE) {
            let from = if rand::random_bool(0.5) { &now } else { &self.bytes };
            let end = len.min(at + PAGE).min(from.len());
            if at < end {
                left[at..end].copy_from_slice(&from[at..end]);
            }
        }
        left
    }
}

impl Shadow {
    fn sync_dir(&mut self, dir: &Path) {
        self.names.retain(|path, _| path.parent() != Some(dir) || path.exists());
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                self.dirs.insert(entry.path());
            } else if self.files.contains_key(&meta.ino()) {
                self.names.insert(entry.path(), meta.ino());
            }
        }
    }
}

fn collect_dirs(root: &Path, dirs: &mut HashSet<PathBuf>) {
    if root.is_dir() {
        dirs.insert(root.to_owned());
    }
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            collect_dirs(&entry.path(), dirs);
        }
    }
}

fn collect_files(root: &Path, files: &mut HashSet<PathBuf>) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { collect_files(&path, files) } else { _ = files.insert(path) }
    }
}
