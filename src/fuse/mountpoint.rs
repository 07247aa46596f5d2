//! Looks after the directory that is mounted on: that it is fit to be, what a mount there would hide, and getting a
//! mount off it again.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::mounts;
use crate::error::{Error, Kind, Result, ResultExt};

/// How long a mount that is there already may take to show that it lives.
const PROBE: Duration = Duration::from_secs(5);
/// Names shown of what a mount hides.
const SHOWN: usize = 5;
/// A chain of links or of dead mounts longer than this is a loop.
const LAYERS: usize = 16;

/// A directory that is fit to be mounted on.
#[derive(Debug)]
pub struct MountPoint {
    path: PathBuf,
    dir: OwnedFd,
    hides: Option<String>,
}

impl MountPoint {
    /// Checks `dir` and detaches dead mounts from it. Errors ([`Kind::Config`]) say what is wrong with it: it is not there, is no
    /// directory, or a live hfmount is on it already. Blocks, some seconds at most.
    ///
    /// `ended` tells of a mount point and a device (as in mountinfo) whether the daemon that served it is known to have
    /// ended. A killed daemon can leave a mount that hangs: a thread of it that tells the kernel to forget a name waits
    /// for the lock of a directory, where somebody waits for the dead; `/dev/fuse` stays open until then, so the
    /// kernel does not notice. Only a forced unmount ends that.
    pub fn prepare(dir: &Path, ended: impl Fn(&Path, &str) -> bool) -> Result<Self> {
        let mut path = absolute(dir)?;
        for _ in 0..LAYERS {
            // First of all, since any look at a mount that hangs would hang.
            if let Some(mount) = mounts::at(&path)?.filter(mounts::Mount::is_fuse) {
                match probe(&path) {
                    Probe::Dead => {
                        tracing::warn!("detaching the dead mount on {}", path.display());
                        detach(&path)?;
                        continue;
                    }
                    Probe::Alive if mount.is_hfmount() => {
                        return Err(unfit(&path, "an hfmount is on it already: `hfmount umount` it first"));
                    }
                    Probe::Hangs if mount.is_hfmount() && ended(&path, &mount.device) => {
                        tracing::warn!(
                            "forcing off {} the mount of a daemon that was killed",
                            path.display()
                        );
                        force(&path)?;
                        continue;
                    }
                    Probe::Hangs => {
                        return Err(unfit(
                            &path,
                            "the mount on it does not answer: `hfmount umount --force` it first",
                        ));
                    }
                    Probe::Alive => {}
                }
            }
            let kind = match fs::symlink_metadata(&path) {
                Ok(meta) => meta.file_type(),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(unfit(&path, "the directory does not exist: make it first"));
                }
                Err(e) => return Err(Error::with_source(Kind::Config, path.display().to_string(), e)),
            };
            if kind.is_symlink() {
                let target = fs::read_link(&path).context(|| path.display().to_string())?;
                path = absolute(&path.parent().unwrap_or(Path::new("/")).join(target))?;
                continue;
            }
            if !kind.is_dir() {
                return Err(unfit(&path, "it is not a directory"));
            }
            let dir =
                rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(|e| Error::with_source(Kind::Config, path.display().to_string(), e))?;
            let hides = hidden(&path);
            return Ok(MountPoint { path, dir, hides });
        }
        Err(unfit(&path, "a loop of links, or too many dead mounts"))
    }

    /// Absolute, without links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory beneath the mount, open for look-ups relative to it (`O_PATH`): what it holds can be reached
    /// through it while it is hidden.
    #[must_use]
    pub fn beneath(&self) -> &OwnedFd {
        &self.dir
    }

    /// A sentence about what the mount will hide, if the directory is not empty.
    #[must_use]
    pub fn notice(&self) -> Option<String> {
        let names = self.hides.as_ref()?;
        Some(format!("{} is not empty; while mounted, this hides {names}", self.path.display()))
    }
}

fn unfit(path: &Path, why: &str) -> Error {
    Error::with_source(Kind::Config, path.display().to_string(), why.to_owned())
}

/// The path with all but its last component resolved, so that what is mounted on it is not looked at.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).context(|| path.display().to_string())?;
    let resolve = |p: &Path| {
        fs::canonicalize(p).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => unfit(p, "there is no such directory"),
            _ => Error::with_source(Kind::Config, p.display().to_string(), e),
        })
    };
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(resolve(parent)?.join(name)),
        // The root, or a path that ends in `..`.
        _ => resolve(&path),
    }
}

/// Whether an hfmount is the top mount on `path`; `None` if nothing is mounted there.
pub fn mounted_at(path: &Path) -> Result<Option<bool>> {
    Ok(mounts::at(path)?.map(|m| m.is_hfmount()))
}

enum Probe {
    Alive,
    Dead,
    Hangs,
}

fn probe(path: &Path) -> Probe {
    match ask(path, PROBE) {
        Some(Err(Errno::NOTCONN | Errno::CONNABORTED)) => Probe::Dead,
        // Refused to this user, or another error: somebody is there.
        Some(_) => Probe::Alive,
        None => Probe::Hangs,
    }
}

/// Asks the file system on `path` for its root, whatever the kernel remembers of it: right after a crash it would still
/// answer for the dead. `None` if there is no answer in time; the thread that waits for it is left behind, since nothing
/// can end it.
pub(super) fn ask(path: &Path, limit: Duration) -> Option<Result<(), Errno>> {
    let (tx, rx) = sync_channel(1);
    let owned = path.to_path_buf();
    std::thread::spawn(move || {
        let answer = statx(CWD, &owned, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS);
        // Nobody may be waiting any more.
        let _ = tx.send(answer.map(|_| ()));
    });
    rx.recv_timeout(limit).ok()
}

fn hidden(path: &Path) -> Option<String> {
    let mut names: Vec<String> = Vec::new();
    let mut more = false;
    for entry in fs::read_dir(path).ok()?.flatten() {
        if names.len() == SHOWN {
            more = true;
            break;
        }
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    match (names.is_empty(), more) {
        (true, _) => None,
        (false, false) => Some(names.join(", ")),
        (false, true) => Some(format!("{} and more", names.join(", "))),
    }
}

/// Takes the mount off `path`, however busy it is: processes that use it keep it until they end. False: nothing was mounted there.
pub fn detach(path: &Path) -> Result<bool> {
    take_off(path, UnmountFlags::DETACH, &["-u", "-z"])
}

/// Takes the mount off `path` unless it is in use ([`Kind::Busy`]). False: nothing was mounted there.
pub fn unmount(path: &Path) -> Result<bool> {
    take_off(path, UnmountFlags::empty(), &["-u"])
}

/// As [`detach`]; requests that hang in it fail first.
pub fn force(path: &Path) -> Result<bool> {
    take_off(path, UnmountFlags::DETACH | UnmountFlags::FORCE, &["-u", "-z"])
}

fn take_off(path: &Path, flags: UnmountFlags, helper: &[&str]) -> Result<bool> {
    match rustix::mount::unmount(path, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(Errno::BUSY) => Err(Error::new(Kind::Busy, path.display().to_string())),
        // Only the helper, which is set-uid root, may do it for an ordinary user.
        Err(Errno::PERM) => helper_unmount(path, helper),
        Err(e) => Err(Error::with_source(Kind::Internal, format!("unmounting {}", path.display()), e)),
    }
}

fn helper_unmount(path: &Path, arguments: &[&str]) -> Result<bool> {
    let output = Command::new(super::fusermount::program())
        .args(arguments)
        .arg("--")
        .arg(path)
        .env("LC_ALL", "C")
        .output()
        .map_err(|e| Error::with_source(Kind::Config, "fusermount3 (Debian: apt install fuse3)", e))?;
    if output.status.success() {
        return Ok(true);
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = if said.contains("busy") { Kind::Busy } else { Kind::Access };
    if said.contains("not found in") || said.contains("not mounted") {
        return Ok(false);
    }
    Err(Error::with_source(kind, format!("unmounting {}", path.display()), said))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepare(dir: &Path) -> Result<MountPoint> {
        MountPoint::prepare(dir, |_, _| false)
    }

    #[test]
    fn what_is_not_fit_is_said_by_name() {
        let tmp = tempfile::tempdir().expect("dir");
        let missing = prepare(&tmp.path().join("none")).expect_err("missing");
        assert_eq!(missing.kind(), Kind::Config);
        assert!(
            missing.to_string().contains("none: bad configuration: the directory does not exist"),
            "{missing}"
        );
        let file = tmp.path().join("file");
        fs::write(&file, "x").expect("write");
        let plain = prepare(&file).expect_err("a file");
        assert!(plain.to_string().contains("it is not a directory"), "{plain}");
    }

    #[test]
    fn the_notice_names_what_is_hidden() {
        let tmp = tempfile::tempdir().expect("dir");
        assert_eq!(prepare(tmp.path()).expect("fit").notice(), None);
        fs::create_dir(tmp.path().join("hub")).expect("mkdir");
        fs::write(tmp.path().join("token"), "").expect("write");
        let notice = prepare(tmp.path()).expect("fit").notice().expect("not empty");
        assert!(notice.ends_with("hides hub, token"), "{notice}");
        for n in 0..9 {
            fs::write(tmp.path().join(format!("f{n}")), "").expect("write");
        }
        let notice = prepare(tmp.path()).expect("fit").notice().expect("not empty");
        assert!(notice.ends_with("and more"), "{notice}");
    }

    #[test]
    fn links_lead_to_the_directory_itself() {
        let tmp = tempfile::tempdir().expect("dir");
        let real = tmp.path().canonicalize().expect("real").join("dir");
        fs::create_dir(&real).expect("mkdir");
        let link = tmp.path().join("link");
        std::os::unix::fs::symlink("dir", &link).expect("symlink");
        assert_eq!(prepare(&link).expect("fit").path(), real);
        std::os::unix::fs::symlink("loop", tmp.path().join("loop")).expect("symlink");
        assert!(prepare(&tmp.path().join("loop")).is_err());
    }

    #[test]
    fn unmounting_what_is_not_mounted_is_no_error() {
        let tmp = tempfile::tempdir().expect("dir");
        if rustix::process::geteuid().is_root() {
            assert!(!detach(tmp.path()).expect("nothing there"));
        }
    }
}
