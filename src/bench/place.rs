//! The folder that is worked in.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};

use super::Options;
use crate::config::units::human_size;
use crate::error::{Error, Kind, Result};

/// Room that is left for others beside what is written, bytes.
const SPARE: u64 = 16 << 20;

/// A new folder, of this run alone. Goes when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    removed: bool,
}

impl Place {
    /// Makes it, if the directory is fit for what the options say.
    pub(super) fn make(options: &Options) -> Result<Self> {
        let dir = &options.dir;
        let shown = dir.display();
        let unfit = |words: String| Error::new(Kind::Config, words);
        let meta = fs::metadata(dir).map_err(|e| unfit(format!("{shown}: {}", reason(&e))))?;
        if !meta.is_dir() {
            return Err(unfit(format!("{shown} is not a directory")));
        }
        let found = statvfs(dir).map_err(|e| unfit(format!("{shown}: {}", io::Error::from(e))))?;
        if found.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(unfit(format!("{shown} is read-only: nothing can be written there")));
        }
        let threads = options.threads as u64;
        let small = options.small_file_size.saturating_mul(options.small_file_count);
        let needed = options.big_file_size.saturating_add(small).saturating_mul(threads);
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        if needed > 0 && needed.saturating_add(SPARE) > free {
            return Err(unfit(format!(
                "{shown} has {} free, and {} are needed: --big-file-size, --small-file-count or --threads make it less",
                human_size(free),
                human_size(needed.saturating_add(SPARE))
            )));
        }
        // The files, as many empty ones, and the folder. A file system without such a bound says 0.
        let names = options.small_file_count.saturating_mul(2).saturating_add(2).saturating_mul(threads);
        if found.f_files > 0 && names > found.f_favail {
            return Err(unfit(format!(
                "{shown} has room for {} more files, and {names} are needed: --small-file-count or --threads make it less",
                found.f_favail
            )));
        }
        // Not a dot file: in the root of a mount those are private.
        let path = dir.join(format!("tmp_hfmount-bench-{:08x}", rand::random::<u32>()));
        DirBuilder::new().mode(0o700).create(&path).map_err(|e| match e.kind() {
            io::ErrorKind::ReadOnlyFilesystem => {
                unfit(format!("{shown} is read-only: nothing can be written there"))
            }
            io::ErrorKind::PermissionDenied => unfit(format!("{shown}: this user may not write there")),
            _ => failed(&path, e),
        })?;
        Ok(Place { path, removed: false })
    }

    /// A file in it. The ending tells the trash of a volume that it is not worth keeping.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.tmp"))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it with all that is in it.
    pub(super) fn remove(mut self) -> Result<()> {
        self.removed = true;
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                let words = format!("{} is left behind: remove it", self.path.display());
                Err(Error::with_source(Kind::Config, words, e))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.removed {
            // A panic is on its way: there is nobody to tell.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// An error of the file system about one of the files.
pub(super) fn failed(path: &Path, e: io::Error) -> Error {
    let kind = match e.kind() {
        io::ErrorKind::NotFound => Kind::NotFound,
        io::ErrorKind::StorageFull => Kind::NoSpace,
        io::ErrorKind::QuotaExceeded => Kind::Quota,
        io::ErrorKind::ReadOnlyFilesystem => Kind::ReadOnly,
        io::ErrorKind::PermissionDenied => Kind::Access,
        _ => Kind::Disk,
    };
    Error::with_source(kind, path.display().to_string(), e)
}

fn reason(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::NotFound => "there is no such directory".to_owned(),
        _ => e.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_fit_is_said() {
        let tmp = tempfile::tempdir().expect("dir");
        let options = |dir: &Path, big| Options {
            dir: dir.to_owned(),
            threads: 4,
            big_file_size: big,
            small_file_size: 1,
            small_file_count: 1,
            keep_caches: true,
        };
        let refused = |options| {
            let e = Place::make(&options).expect_err("unfit");
            assert_eq!(e.kind(), Kind::Config);
            e.to_string()
        };
        assert!(refused(options(&tmp.path().join("none"), 1)).contains("there is no such directory"));
        let file = tmp.path().join("file");
        fs::write(&file, "").expect("write");
        assert!(refused(options(&file, 1)).contains("is not a directory"));
        assert!(refused(options(tmp.path(), 1 << 60)).contains("are needed: --big-file-size"));
        let many = Options { small_file_count: u64::MAX, small_file_size: 0, ..options(tmp.path(), 0) };
        assert!(refused(many).contains("more files"));
        assert!(refused(options(Path::new("/proc"), 0)).contains("/proc"));
        assert_eq!(fs::read_dir(tmp.path()).expect("list").count(), 1);

        let place = Place::make(&options(tmp.path(), 1)).expect("fit");
        let path = place.path().to_owned();
        fs::write(place.file("x"), "x").expect("write");
        drop(place);
        assert!(!path.exists());
    }
}
