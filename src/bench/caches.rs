//! The kernel's caches, so that what is read comes from where it lies.

use std::fs::{self, File};
use std::path::PathBuf;

use rustix::fs::{Advice, fadvise, sync};

use super::Caches;

/// Drops all of the kernel's pages, names and inodes, as root; anybody else only the pages of `files`.
pub(super) fn drop_caches(keep: bool, files: impl Iterator<Item = PathBuf>) -> Caches {
    if keep {
        return Caches::Kept;
    }
    // What is not written yet cannot be dropped.
    sync();
    match fs::write("/proc/sys/vm/drop_caches", "3\n") {
        Ok(()) => Caches::Dropped,
        Err(e) => {
            for path in files {
                if let Ok(file) = File::open(path) {
                    let _ = fadvise(&file, 0, None, Advice::DontNeed);
                }
            }
            Caches::OwnPages(format!("/proc/sys/vm/drop_caches: {e}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_if_that_is_wanted() {
        assert_eq!(drop_caches(true, std::iter::empty()), Caches::Kept);
    }
}
