//! The directories of a publication, laid out before anything is written.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::super::check_name;
use super::super::schema::{NAME_MAX, Role, TARGET_MAX};
use super::PlanFile;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::types::{BlobId, Ino};

/// A directory to be made.
pub(super) struct Dir {
    /// `None`: the top one.
    pub parent: Option<usize>,
    pub name: Bytes,
    pub role: Option<Role>,
    pub subdirs: i64,
    pub ino: Ino,
}

/// Directories that hang together. The first is the top.
pub(super) struct Tree {
    pub dirs: Vec<Dir>,
    index: HashMap<(usize, Bytes), usize>,
    files: HashSet<(usize, Bytes)>,
}

/// A symlink to a blob.
pub(super) struct Pointer {
    pub dir: usize,
    pub name: Bytes,
    pub target: Bytes,
}

impl Tree {
    pub fn new(role: Role) -> Self {
        let top = Dir { parent: None, name: Bytes::new(), role: Some(role), subdirs: 0, ino: Ino(0) };
        Tree { dirs: vec![top], index: HashMap::new(), files: HashSet::new() }
    }

    /// The directory `name` in `parent`, made with `role` if it is not there.
    pub fn dir(&mut self, parent: usize, name: &Bytes, role: Option<Role>) -> Result<usize> {
        let key = (parent, name.clone());
        if let Some(&dir) = self.index.get(&key) {
            return Ok(dir);
        }
        check_name(name)?;
        if self.files.contains(&key) {
            return Err(twice(name));
        }
        let dir = self.dirs.len();
        self.dirs.push(Dir { parent: Some(parent), name: name.clone(), role, subdirs: 0, ino: Ino(0) });
        self.dirs[parent].subdirs += 1;
        self.index.insert(key, dir);
        Ok(dir)
    }

    /// Takes a name for what is no directory.
    pub fn file(&mut self, dir: usize, name: &Bytes) -> Result<()> {
        check_name(name)?;
        let key = (dir, name.clone());
        if self.index.contains_key(&key) || !self.files.insert(key) {
            return Err(twice(name));
        }
        Ok(())
    }

    /// Lays out the files of a commit below `snapshot`.
    pub fn pointers(&mut self, snapshot: usize, files: &[PlanFile]) -> Result<Vec<Pointer>> {
        let mut pointers = Vec::with_capacity(files.len());
        for file in files {
            let pointer = self.pointer(snapshot, file);
            pointers.push(pointer.context(|| format!("file {:?} of the commit", file.repo_path))?);
        }
        Ok(pointers)
    }

    fn pointer(&mut self, snapshot: usize, file: &PlanFile) -> Result<Pointer> {
        let Some((name, path)) = file.path.split_last() else {
            return Err(Error::new(Kind::Invalid, "no path"));
        };
        let role = self.dirs[snapshot].role.clone();
        let mut dir = snapshot;
        for part in path {
            dir = self.dir(dir, part, role.clone())?;
        }
        self.file(dir, name)?;
        let target = format!("{}../../blobs/{}", "../".repeat(path.len()), file.blob.etag());
        if target.len() > TARGET_MAX {
            return Err(Error::new(Kind::NameTooLong, "its path"));
        }
        Ok(Pointer { dir, name: name.clone(), target: Bytes::from(target) })
    }

    /// How many directories there are below the top.
    pub fn below_top(&self) -> u64 {
        self.dirs.len() as u64 - 1
    }
}

/// The blobs of a commit with their sizes and one path of each.
pub(super) fn unique_blobs(files: &[PlanFile]) -> Result<Vec<&PlanFile>> {
    let mut seen: HashMap<BlobId, u64> = HashMap::with_capacity(files.len());
    let mut unique = Vec::with_capacity(files.len());
    for file in files {
        match seen.insert(file.blob, file.size) {
            None => unique.push(file),
            Some(size) if size == file.size => {}
            Some(size) => {
                let words = format!("blob {} has both {size} and {} bytes", file.blob, file.size);
                return Err(Error::new(Kind::Corrupt, words));
            }
        }
    }
    Ok(unique)
}

fn twice(name: &[u8]) -> Error {
    let shown = &name[..name.len().min(NAME_MAX)];
    Error::new(Kind::Invalid, format!("name \"{}\" twice in a directory", shown.escape_ascii()))
}
