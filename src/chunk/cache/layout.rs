//! Where things lie in a cache directory, and how they come to be there.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::ContentKey;
use super::disk::{Disk, DiskFile, beside};
use super::index::Header;
use crate::error::{Error, Kind, Result, ResultExt};

/// Sibling directories tried when other daemons hold the first.
const MAX_SIBLINGS: u32 = 64;

/// Locks the directory or the first free sibling.
pub(super) fn claim(path: &Path) -> Result<(PathBuf, File)> {
    for n in 0..=MAX_SIBLINGS {
        let root = sibling(path, n);
        if let Some(file) = claim_this(&root)? {
            return Ok((root, file));
        }
    }
    Err(Error::new(
        Kind::Config,
        format!("cache directory {} and its siblings are all in use", path.display()),
    ))
}

fn sibling(path: &Path, n: u32) -> PathBuf {
    match n {
        0 => path.to_path_buf(),
        n => beside(path, &format!("-{n}")),
    }
}

/// The directory and its siblings, as far as they are there.
pub(super) fn siblings(path: &Path) -> Vec<PathBuf> {
    (0..=MAX_SIBLINGS).map(|n| sibling(path, n)).filter(|root| root.join("lock").exists()).collect()
}

/// Locks this directory; `None`: a daemon uses it.
pub(super) fn claim_this(root: &Path) -> Result<Option<File>> {
    let made = fs::create_dir_all(root.join("blobs"))
        .and_then(|()| fs::create_dir_all(root.join("files")))
        // The bytes of private repositories lie here: the daemon's user only.
        .and_then(|()| fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o700)));
    made.context(|| format!("cache directory {}", root.display()))?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(root.join("lock")).context(|| root.join("lock").display().to_string())?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(std::io::Error::from(e)).context(|| root.display().to_string()),
    }
}

pub(super) fn index_path(data: &Path) -> PathBuf {
    beside(data, ".idx")
}

/// A content's two open files, and what the index says of the whole.
pub(super) struct Pair {
    pub data: DiskFile,
    pub index: DiskFile,
    pub header: Header,
}

/// The two files if they are there and usable.
pub(super) fn open_pair(
    disk: &Disk,
    path: &Path,
    key: &ContentKey,
    size: u64,
    chunk_size: u32,
) -> std::io::Result<Option<Pair>> {
    let open = |path: &Path| match disk.open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    };
    let (Some(data), Some(index)) = (open(path)?, open(&index_path(path))?) else { return Ok(None) };
    let mut raw = [0; 64];
    if index.read_full(&mut raw, 0)? < raw.len() {
        return Ok(None);
    }
    let Ok(header) = Header::decode(&raw) else { return Ok(None) };
    let same_size = header.size == size || matches!(key, ContentKey::File(_));
    let usable = header.chunk_size == chunk_size && same_size;
    Ok(usable.then_some(Pair { data, index, header }))
}

/// Two new, empty files in the place of whatever is there.
pub(super) fn make_pair(disk: &Disk, path: &Path, size: u64, chunk_size: u32) -> std::io::Result<Pair> {
    if let Some(parent) = path.parent() {
        disk.create_dirs(parent)?;
    }
    // The old index goes before the new data comes.
    let index = make(disk, &index_path(path))?;
    let data = make(disk, path)?;
    data.set_len(size)?;
    fill_pair(data, index, size, chunk_size)
}

/// A new, empty index beside a data file that is there and stays as it is.
pub(super) fn make_index(disk: &Disk, path: &Path, size: u64, chunk_size: u32) -> std::io::Result<Pair> {
    let data = disk.open(path)?;
    let index = make(disk, &index_path(path))?;
    let size = data.metadata()?.len().max(size);
    data.set_len(size)?;
    fill_pair(data, index, size, chunk_size)
}

/// Two files in memory, for a disk that is not used any more.
pub(super) fn pair_in_memory(name: &str, size: u64, chunk_size: u32) -> std::io::Result<Pair> {
    let (data, index) = (DiskFile::in_memory(name)?, DiskFile::in_memory(name)?);
    data.set_len(size)?;
    fill_pair(data, index, size, chunk_size)
}

pub(super) fn make(disk: &Disk, path: &Path) -> std::io::Result<DiskFile> {
    match disk.remove(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    disk.create_new(path)
}

fn fill_pair(data: DiskFile, index: DiskFile, size: u64, chunk_size: u32) -> std::io::Result<Pair> {
    let data_ino = data.metadata()?.ino();
    let header = Header { chunk_size, size, data_ino, passthrough: false, verified: false };
    index.write_all_at(&header.encode(), 0)?;
    Ok(Pair { data, index, header })
}

pub(super) fn list(path: &Path) -> Vec<PathBuf> {
    match fs::read_dir(path) {
        Ok(entries) => entries.filter_map(|e| e.ok().map(|e| e.path())).collect(),
        Err(e) => {
            tracing::warn!(path = %path.display(), error = %e, "cannot list a directory of the cache");
            Vec::new()
        }
    }
}
