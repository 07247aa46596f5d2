//! Which inode of which volume is meant.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::admin::find;
use crate::chunk::cache::siblings;
use crate::config::{Home, Volume};
use crate::daemon::RunFile;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::Ino;

use super::Opened;

/// What `hfmount info` was asked for.
pub(super) enum Target {
    /// On a mount: its note, and the inode.
    Mounted(Box<RunFile>, Ino),
    /// From the volume's root.
    Path(String),
    Inode(Ino),
}

impl Target {
    pub(super) fn find(home: &Home, text: &str, follow: bool) -> Result<Self> {
        if let Some(path) = text.strip_prefix("volume:") {
            return Ok(Target::Path(path.to_owned()));
        }
        if let Some(number) = text.strip_prefix("inode:") {
            let number = number.parse().map_err(|_| {
                Error::new(Kind::Config, format!("{text}: an inode has a number, as in inode:4711"))
            })?;
            return Ok(Target::Inode(Ino(number)));
        }
        let path = if follow {
            fs::canonicalize(text).context(|| text.to_owned())?
        } else {
            crate::fuse::absolute(Path::new(text))?
        };
        let meta = fs::symlink_metadata(&path).context(|| path.display().to_string())?;
        let mut notes: Vec<RunFile> = RunFile::all(home)
            .into_iter()
            .filter(|n| n.is_running() && path.starts_with(&n.mount_point))
            // What is mounted within the mount is not its own.
            .filter(|n| fs::symlink_metadata(&n.mount_point).is_ok_and(|top| top.dev() == meta.dev()))
            .collect();
        notes.sort_by_key(|n| n.mount_point.as_os_str().len());
        let note = notes.pop().ok_or_else(|| {
            let words = format!(
                "{} is on no hfmount mount of this user: give --meta URL and volume:/PATH",
                path.display()
            );
            Error::new(Kind::Config, words)
        })?;
        Ok(Target::Mounted(Box::new(note), Ino(meta.ino())))
    }

    /// The metadata that the mount uses.
    pub(super) fn meta(&self) -> Option<&str> {
        match self {
            Target::Mounted(note, _) => Some(note.meta.as_str()).filter(|meta| !meta.is_empty()),
            _ => None,
        }
    }

    pub(super) async fn inode(&self, opened: &Opened, follow: bool) -> Result<Ino> {
        match self {
            Target::Mounted(note, _) if note.volume != opened.volume.uuid => {
                let words = format!("{} shows another volume than --meta has", note.mount_point.display());
                Err(Error::new(Kind::Config, words))
            }
            Target::Mounted(_, ino) | Target::Inode(ino) => Ok(*ino),
            Target::Path(path) => {
                let found = find(&opened.place.survey, path.as_bytes(), follow).await?;
                found.ok_or_else(|| Error::new(Kind::NotFound, format!("volume:{path}")))
            }
        }
    }
}

/// The cache directories of this user's mounts of the volume.
pub(super) fn caches(home: &Home, volume: &Volume) -> Vec<PathBuf> {
    let notes = RunFile::all(home).into_iter().filter(|n| n.volume == volume.uuid && n.is_running());
    notes.map(|n| n.cache_dir).chain(siblings(&home.cache(&volume.name))).collect()
}
