//! Which volume is meant, and which paths in it, by what was said: paths below a mount of this machine, or paths in the volume
//! of `--meta`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;

use crate::cli::MetaArgs;
use crate::config::Home;
use crate::daemon::RunFile;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::fuse::mounted_at;
use crate::meta::url::MetaUrl;

/// Where to work.
pub(super) struct Place {
    pub meta: MetaUrl,
    /// The uuid that the volume must have.
    pub volume: Option<String>,
    /// Names from the volume's root down.
    pub paths: Vec<Vec<Bytes>>,
    pub to: Option<Vec<Bytes>>,
}

/// Reads what was said. The root itself is no path: it means everything.
pub(super) fn find(home: &Home, meta: &MetaArgs, paths: &[String], to: Option<&str>) -> Result<Place> {
    let mut meta = meta.clone();
    let mut mounts = RunFile::all(home);
    // The innermost counts; one that crashed tells what it was.
    mounts.sort_by_key(|m| (std::cmp::Reverse(m.mount_point.as_os_str().len()), !m.is_running()));
    let (urls, paths): (Vec<_>, Vec<_>) = paths.iter().partition(|p| p.contains("://"));
    let explicit = meta.meta.is_some();
    match urls[..] {
        [] => {}
        [url] => meta.meta = Some(url.clone()),
        _ => return Err(Error::new(Kind::Config, "more than one metadata URL")),
    }
    let cwd = std::env::current_dir().context(|| "the current directory")?;
    let mut mount: Option<&RunFile> = None;
    let mut place = |text: &str| -> Result<Vec<Bytes>> {
        let path = plain(&cwd.join(text));
        let noted = mounts.iter().find_map(|m| Some((m, below(&m.mount_point, &path)?)));
        if let Some((m, inner)) = noted {
            if mount.is_some_and(|other| other.volume != m.volume) {
                return Err(Error::new(Kind::Config, "the paths are of several volumes"));
            }
            mount = Some(m);
            return Ok(inner);
        }
        let given = explicit || !urls.is_empty();
        // One that somebody else made: which volume it is only they know.
        let foreign = path.ancestors().find(|p| matches!(mounted_at(p), Ok(Some(true))));
        match foreign.and_then(|m| below(m, &path)) {
            Some(inner) if given => Ok(inner),
            Some(_) => {
                let words = format!("{text} is in a mount that this user did not make: it needs --meta");
                Err(Error::new(Kind::Config, words))
            }
            // As if the volume's root were this machine's.
            None if given || !text.starts_with('/') => Ok(names(&plain(&Path::new("/").join(text)))),
            None => {
                let words = format!("{text} is in no mount of this machine; paths in a volume need --meta");
                Err(Error::new(Kind::Config, words))
            }
        }
    };
    let all = paths.into_iter().map(|p| place(p)).collect::<Result<Vec<_>>>()?;
    let to = to.map(&mut place).transpose()?;
    if let Some(mount) = mount
        && meta.meta.is_none()
        && !mount.meta.is_empty()
    {
        meta.meta = Some(mount.meta.clone());
    }
    let volume = mount.map(|m| m.volume.clone()).filter(|uuid| !uuid.is_empty());
    // Everything, if the root is among them.
    let paths = if all.iter().any(Vec::is_empty) { Vec::new() } else { all };
    Ok(Place { meta: meta.url(home)?, volume, paths, to })
}

/// Without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            _ => {}
        }
    }
    plain
}

/// The names of `path` below a mount point, as it stands or as what of it exists is really called.
fn below(mount: &Path, path: &Path) -> Option<Vec<Bytes>> {
    if let Ok(inner) = path.strip_prefix(mount) {
        return Some(names(inner));
    }
    let existing = path.ancestors().find_map(|p| Some((p, p.canonicalize().ok()?)))?;
    let whole = existing.1.join(path.strip_prefix(existing.0).ok()?);
    whole.strip_prefix(mount).ok().map(names)
}

fn names(path: &Path) -> Vec<Bytes> {
    let name = |name: &OsStr| Bytes::copy_from_slice(name.as_bytes());
    path.components()
        .filter_map(|part| match part {
            Component::Normal(part) => Some(name(part)),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(names: Vec<Bytes>) -> Vec<String> {
        names.iter().map(|n| String::from_utf8_lossy(n).into_owned()).collect()
    }

    #[test]
    fn paths_below_a_mount_point() {
        let temp = tempfile::tempdir().expect("a directory");
        let real = temp.path().canonicalize().expect("its path").join("real");
        std::fs::create_dir(&real).expect("mkdir");
        let link = temp.path().join("link");
        std::os::unix::fs::symlink(&real, &link).expect("symlink");
        let of = |path: PathBuf| below(&real, &plain(&path)).map(strings);
        assert_eq!(of(real.join("gone/./b/../*.pt")), Some(vec!["gone".into(), "*.pt".into()]));
        assert_eq!(of(link.join("gone/x")), Some(vec!["gone".into(), "x".into()]), "through a link");
        assert_eq!(of(real.clone()), Some(Vec::new()));
        assert_eq!(of(temp.path().join("realer")), None);
    }
}
