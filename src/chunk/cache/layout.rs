//! Where things lie in a cache directory, and how they come to be there.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::ContentKey;
use super::index::Header;
use crate::error::{Error, Kind, Result, ResultExt};

/// Sibling directories tried when other daemons hold the first.
const MAX_SIBLINGS: u32 = 64;

/// Locks the directory or the first free sibling.
pub(super) fn claim(path: &Path) -> Result<(PathBuf, File)> {
    for n in 0..=MAX_SIBLINGS {
        let root = match n {
            0 => path.to_path_buf(),
            n => {
                let mut name = path.as_os_str().to_owned();
                name.push(format!("-{n}"));
                PathBuf::from(name)
            }
        };
        let made = fs::create_dir_all(root.join("blobs"))
            .and_then(|()| fs::create_dir_all(root.join("files")))
            // The bytes of private repositories lie here: the daemon's user only.
            .and_then(|()| fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o700)));
        made.context(|| format!("cache directory {}", root.display()))?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(root.join("lock")).context(|| root.join("lock").display().to_string())?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok((root, file)),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(e) => return Err(std::io::Error::from(e)).context(|| root.display().to_string()),
        }
    }
    Err(Error::new(
        Kind::Config,
        format!("cache directory {} and its siblings are all in use", path.display()),
    ))
}

pub(super) fn index_path(data: &Path) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push(".idx");
    PathBuf::from(name)
}

/// The two files if they are there and usable.
pub(super) fn open_pair(
    path: &Path,
    key: &ContentKey,
    size: u64,
    chunk_size: u32,
) -> Option<(File, File, Header)> {
    let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path).ok();
    let (data, index) = (open(path)?, open(&index_path(path))?);
    let mut raw = [0; 64];
    index.read_exact_at(&mut raw, 0).ok()?;
    let header = Header::decode(&raw).ok()?;
    let same_size = header.size == size || matches!(key, ContentKey::File(_));
    (header.chunk_size == chunk_size && same_size).then_some((data, index, header))
}

/// Two new, empty files in the place of whatever is there.
pub(super) fn make_pair(path: &Path, size: u64, chunk_size: u32) -> std::io::Result<(File, File, Header)> {
    let make = |path: &Path| {
        match fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // The old index goes before the new data comes.
    let index = make(&index_path(path))?;
    let data = make(path)?;
    data.set_len(size)?;
    let data_ino = data.metadata()?.ino();
    let header = Header { chunk_size, size, data_ino, passthrough: false, verified: false };
    index.write_all_at(&header.encode(), 0)?;
    Ok((data, index, header))
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
