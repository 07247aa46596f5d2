//! One folder with repositories in it. What is opened lies in it: no link leads out of it, and nothing that is mounted in it
//! is entered, since that may be the mount that asks.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat, openat2};
use rustix::io::Errno;

use crate::types::{BlobId, RepoId};

/// A held folder: it stays the same one though something be mounted over it.
#[derive(Debug)]
pub(super) struct Folder(OwnedFd);

impl Folder {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Folder(open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// The names of the repositories.
    pub fn repos(&self) -> Vec<String> {
        // A descriptor of its own: the place where the reading is belongs to the descriptor.
        let dir = openat(&self.0, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let is_repo = |name: &str| RepoId::from_folder(name).is_some() || name.starts_with("kernels--");
        names(dir, |name| is_repo(name).then(|| name.to_owned()))
    }

    /// The blobs of one.
    pub fn blobs(&self, repo: &str) -> Vec<BlobId> {
        names(self.beneath(&[repo, "blobs"], OFlags::DIRECTORY), BlobId::from_etag)
    }

    /// A blob's file, if it has exactly this size. What is still being written has another name, or another size.
    pub fn blob(&self, repo: &str, blob: BlobId, size: u64) -> Option<File> {
        // Whatever lies there, opening it must not wait.
        let file =
            File::from(self.beneath(&[repo, "blobs", &blob.etag()], OFlags::NONBLOCK | OFlags::NOCTTY).ok()?);
        let meta = file.metadata().ok()?;
        (meta.is_file() && meta.len() == size).then_some(file)
    }

    /// How many bytes a blob's file has, if it is one.
    pub fn size(&self, repo: &str, blob: BlobId) -> Option<u64> {
        let file = self.beneath(&[repo, "blobs", &blob.etag()], OFlags::PATH).ok()?;
        let stat = fstat(&file).ok()?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        u64::try_from(stat.st_size).ok().filter(|_| is_file)
    }

    fn beneath(&self, parts: &[&str], flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        match openat2(&self.0, parts.join("/"), flags, Mode::empty(), resolve) {
            // Somebody renames there at this moment.
            Err(Errno::AGAIN) => openat2(&self.0, parts.join("/"), flags, Mode::empty(), resolve),
            // An old kernel, or a sandbox that does not know it: then no links at all.
            Err(Errno::NOSYS | Errno::PERM) => self.step_by_step(parts, flags),
            opened => opened,
        }
    }

    fn step_by_step(&self, parts: &[&str], flags: OFlags) -> Result<OwnedFd, Errno> {
        let Some((last, folders)) = parts.split_last() else { return Err(Errno::INVAL) };
        let step = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at: Option<OwnedFd> = None;
        for name in folders {
            at = Some(openat(at.as_ref().unwrap_or(&self.0), *name, step, Mode::empty())?);
        }
        openat(at.as_ref().unwrap_or(&self.0), *last, flags | OFlags::NOFOLLOW, Mode::empty())
    }
}

/// What `pick` makes of the names in a directory. What cannot be read is empty.
fn names<T>(dir: Result<OwnedFd, Errno>, pick: impl Fn(&str) -> Option<T>) -> Vec<T> {
    let Ok(dir) = dir.and_then(Dir::new) else { return Vec::new() };
    let name = |name: &CStr| name.to_str().ok().and_then(&pick);
    dir.filter_map(|entry| name(entry.ok()?.file_name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_within_are_followed_and_links_out_are_not() {
        let tmp = tempfile::tempdir().expect("dir");
        let (seed, outside) = (tmp.path().join("seed"), tmp.path().join("secret"));
        let blobs = seed.join("models--a--b/blobs");
        fs::create_dir_all(&blobs).expect("mkdir");
        fs::create_dir_all(seed.join("blobs/ab")).expect("mkdir");
        fs::write(&outside, b"secret").expect("write");
        fs::write(seed.join("blobs/ab/cd"), b"shared").expect("write");
        let blob = |n: u8| BlobId::Sha256([n; 32]);
        symlink("../../blobs/ab/cd", blobs.join(blob(1).etag())).expect("symlink");
        symlink(&outside, blobs.join(blob(2).etag())).expect("symlink");
        symlink("../../../secret", blobs.join(blob(3).etag())).expect("symlink");
        fs::create_dir(blobs.join(blob(4).etag())).expect("mkdir");
        fs::write(blobs.join(format!("{}.incomplete", blob(5).etag())), b"x").expect("write");
        let folder = Folder::open(&seed).expect("opens");
        assert_eq!(folder.repos(), ["models--a--b"]);
        let mut found = folder.blobs("models--a--b");
        found.sort();
        assert_eq!(found, [blob(1), blob(2), blob(3), blob(4)], "names only");
        assert!(folder.blob("models--a--b", blob(1), 6).is_some());
        assert!(folder.blob("models--a--b", blob(1), 7).is_none(), "another size");
        assert_eq!(folder.size("models--a--b", blob(1)), Some(6));
        for n in 2..=5 {
            assert_eq!(folder.size("models--a--b", blob(n)), None, "{n}");
            assert!(folder.blob("models--a--b", blob(n), 6).is_none(), "{n}");
        }
        assert!(folder.blob("..", blob(1), 6).is_none());
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let plain = |n: u8| folder.step_by_step(&["models--a--b", "blobs", &blob(n).etag()], flags).is_ok();
        assert!(!plain(1) && !plain(2), "without the help of the kernel no link is followed");
    }

    #[test]
    fn a_pipe_does_not_hold_anybody() {
        let tmp = tempfile::tempdir().expect("dir");
        let blobs = tmp.path().join("models--a/blobs");
        fs::create_dir_all(&blobs).expect("mkdir");
        let blob = BlobId::Git([7; 20]);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            blobs.join(blob.etag()),
            rustix::fs::FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .expect("mkfifo");
        let folder = Folder::open(tmp.path()).expect("opens");
        assert!(folder.blob("models--a", blob, 0).is_none());
    }
}
