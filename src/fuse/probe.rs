//! Whether the kernel can read files of the cache by itself (passthrough): that takes a kernel that can, the right to ask for
//! it, and a file system under the cache that it takes. Found out once, before the mount is used; nothing fails without it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use fuser::BackingId;

use super::faces::Able;

/// As in `linux/magic.h`.
const OVERLAYFS: rustix::fs::FsWord = 0x794c_7630;

/// How many file systems may be stacked below the mount. Overlays, as the file systems of containers are, count as one themselves.
/// Where one is not needed less is better: with two, the mount could not be the lower layer of an overlay.
pub(super) fn stack_depth(cache: &Path) -> u32 {
    match rustix::fs::statfs(cache) {
        Ok(fs) if fs.f_type == OVERLAYFS => 2,
        _ => 1,
    }
}

/// Gives the kernel a file beside those of the cache, and takes it back. `device` is the mount's connection, after its beginning. An error
/// says why not.
pub(super) fn probe(device: BorrowedFd<'_>, cache: &Path) -> Result<Able, String> {
    let path = cache.join(format!("probe-{}", std::process::id()));
    let probed = probe_with(device, &path);
    let _ = fs::remove_file(&path);
    probed
}

fn probe_with(device: BorrowedFd<'_>, path: &Path) -> Result<Able, String> {
    let made = File::options().read(true).write(true).create(true).truncate(true).open(path);
    let file = made.map_err(|e| format!("no file to try it with: {e}"))?;
    let id = BackingId::create_raw(device, file.as_fd()).map_err(|e| why_not(&e))?;
    close(device, id).map_err(|e| why_not(&e))?;
    let direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).is_ok();
    Ok(Able { direct })
}

fn why_not(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(libc::EPERM) => "the daemon lacks CAP_SYS_ADMIN".to_owned(),
        Some(libc::ELOOP) => "the cache lies on a file system that itself lies on others".to_owned(),
        Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL | libc::ENOSYS) => {
            "the kernel cannot, or not with the cache's file system".to_owned()
        }
        _ => e.to_string(),
    }
}

/// What fuser does when it drops a `BackingId`, which can be had with an open's answer only.
fn close(device: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    /// `_IOW(229, 2, uint32_t)` of `linux/fuse.h`.
    const BACKING_CLOSE: libc::Ioctl = 0x4004_e502;
    // SAFETY: the request reads four bytes at the address, which is that of `id`.
    match unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE, &raw const id) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
