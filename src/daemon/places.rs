//! That nothing which the mount needs lies under the mount itself: it would be hidden, and then wait for itself.

use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// What the mount on `point` needs on this disk must lie elsewhere. Each with the words that name it.
pub(super) fn check(point: &Path, needed: &[(&str, &Path)]) -> Result<()> {
    for (what, path) in needed {
        let real = resolved(path);
        if real.starts_with(point) {
            let why = format!("it lies under the mount point {}", point.display());
            return Err(Error::with_source(Kind::Config, format!("{what} {}", path.display()), why));
        }
        if point.starts_with(&real) && real.is_dir() && *what == "cache directory" {
            let why = format!("the mount point {} lies in it", point.display());
            return Err(Error::with_source(Kind::Config, format!("{what} {}", path.display()), why));
        }
    }
    Ok(())
}

/// The path without links, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    for ancestor in path.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            return match path.strip_prefix(ancestor) {
                Ok(rest) if rest.as_os_str().is_empty() => real,
                Ok(rest) => real.join(rest),
                Err(_) => path,
            };
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_needed_lies_under_the_mount() {
        let tmp = tempfile::tempdir().expect("dir");
        let base = tmp.path().canonicalize().expect("real");
        let (point, other) = (base.join("mnt"), base.join("other"));
        std::fs::create_dir(&point).expect("mkdir");
        std::fs::create_dir(&other).expect("mkdir");
        std::os::unix::fs::symlink(&point, other.join("link")).expect("symlink");
        let under = |path: &Path| check(&point, &[("cache directory", path)]).is_err();
        assert!(under(&point) && under(&point.join("a/b")), "also what does not exist yet");
        assert!(under(&other.join("link/cache")), "through a link");
        assert!(!under(&other) && !under(&base.join("mnt2")));
        assert!(under(&base), "the cache would hold its own mount");
        assert!(check(&point, &[("metadata file", &base)]).is_ok());
        let e = check(&point, &[("metadata file", &point.join("x.db"))]).expect_err("under");
        assert!(e.to_string().contains("metadata file"), "{e}");
    }
}
