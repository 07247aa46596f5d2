//! Gets a mounted `/dev/fuse`: from the kernel for root, through the set-uid helper `fusermount3` for others.

use std::ffi::{CString, OsString};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use super::mounts::NAME;
use crate::error::{Error, Kind, Result, ResultExt};

const DEVICE: &str = "/dev/fuse";

/// How the mount is to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    /// Users other than the one who mounts may use it.
    pub(super) allow_other: bool,
    pub(super) read_only: bool,
}

/// The helper's name: `FUSERMOUNT_PATH`, else as found in `PATH`.
pub(super) fn program() -> OsString {
    std::env::var_os("FUSERMOUNT_PATH").unwrap_or_else(|| "fusermount3".into())
}

/// Mounts on `path` and returns the device through which the kernel talks. The first message on it is INIT.
pub(super) fn mount(path: &Path, access: Access) -> Result<OwnedFd> {
    if rustix::process::geteuid().is_root() {
        match mount_directly(path, access) {
            // Root in a container without CAP_SYS_ADMIN.
            Err(e) if e.kind() == Kind::NotPermitted => tracing::debug!("{e}; trying {:?}", program()),
            done => return done,
        }
    }
    mount_by_helper(path, access)
}

fn mount_directly(path: &Path, access: Access) -> Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).open(DEVICE).map_err(|e| {
        let hint = if e.kind() == io::ErrorKind::NotFound { " (is the fuse module loaded?)" } else { "" };
        Error::with_source(Kind::Config, format!("{DEVICE}{hint}"), e)
    })?;
    let mode = std::fs::metadata(path).context(|| path.display().to_string())?.mode();
    let mut data = format!(
        "fd={},rootmode={:o},user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        mode & libc::S_IFMT,
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if access.allow_other {
        data.push_str(",allow_other");
    }
    let mut flags = libc::MS_NOSUID | libc::MS_NODEV;
    if access.read_only {
        flags |= libc::MS_RDONLY;
    }
    let strings = [NAME.as_bytes(), path.as_os_str().as_bytes(), b"fuse.hfmount", data.as_bytes()].map(|s| {
        CString::new(s).map_err(|e| Error::with_source(Kind::Config, path.display().to_string(), e))
    });
    let [source, target, fs_type, data] = strings;
    let (source, target, fs_type, data) = (source?, target?, fs_type?, data?);
    // SAFETY: all four are NUL-terminated strings that live across the call; the kernel copies them.
    let failed = unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), fs_type.as_ptr(), flags, data.as_ptr().cast())
    };
    if failed == 0 {
        return Ok(device.into());
    }
    let e = io::Error::last_os_error();
    let kind = if e.raw_os_error() == Some(libc::EPERM) { Kind::NotPermitted } else { Kind::Config };
    Err(Error::with_source(kind, format!("mounting on {}", path.display()), e))
}

/// The helper mounts, and sends the device over a socket whose number it finds in `_FUSE_COMMFD`.
fn mount_by_helper(path: &Path, access: Access) -> Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair().context(|| "socket for fusermount3")?;
    let mut options = format!("fsname={NAME},subtype={NAME},default_permissions,nosuid,nodev");
    if access.allow_other {
        options.push_str(",allow_other");
    }
    if access.read_only {
        options.push_str(",ro");
    }
    let fd = theirs.as_raw_fd();
    let mut command = Command::new(program());
    command.arg("-o").arg(options).arg("--").arg(path);
    command.env("_FUSE_COMMFD", fd.to_string()).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe; `fd` is open in the child.
    unsafe {
        command.pre_exec(move || {
            if libc::fcntl(fd, libc::F_SETFD, 0) == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
        });
    }
    let child = command
        .spawn()
        .map_err(|e| Error::with_source(Kind::Config, "fusermount3 (Debian: apt install fuse3)", e))?;
    drop(theirs);
    let device = receive(&ours);
    drop(ours);
    let output = child.wait_with_output().context(|| "fusermount3")?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match device {
        Ok(Some(device)) if output.status.success() => Ok(device),
        Ok(_) => {
            let hint =
                if said.contains("user_allow_other") { " (or mount without --allow-other)" } else { "" };
            Err(Error::with_source(
                Kind::Config,
                format!("mounting on {}", path.display()),
                format!("{said}{hint}"),
            ))
        }
        Err(e) => Err(Error::with_source(Kind::Config, format!("fusermount3: {said}"), e)),
    }
}

/// The descriptor that comes with a message; `None` when the other side closed without one.
fn receive(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut byte = 0u8;
    let mut iov = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // Aligned for a header, and larger than one with a single descriptor.
    let mut control = [0u64; 8];
    // SAFETY: a zeroed msghdr is a valid empty one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    loop {
        // SAFETY: `message` points at `iov` and `control`, which live and are writable for the lengths given.
        let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
        match n {
            0 => return Ok(None),
            1.. => break,
            _ => {
                let e = io::Error::last_os_error();
                if e.kind() != io::ErrorKind::Interrupted {
                    return Err(e);
                }
            }
        }
    }
    // SAFETY: the kernel filled `message`; CMSG_FIRSTHDR answers null or a header inside `control`, and a header of
    // this level and type is followed by at least one descriptor, which is now ours alone.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null()
            || (*header).cmsg_level != libc::SOL_SOCKET
            || (*header).cmsg_type != libc::SCM_RIGHTS
        {
            return Ok(None);
        }
        let fd = libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned();
        Ok((fd >= 0).then(|| OwnedFd::from_raw_fd(fd)))
    }
}
